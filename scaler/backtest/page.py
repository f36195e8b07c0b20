"""docs/results.md: the goals, who else was run, what is missed and why, every cell, and what is missing.

Every sentence about results comes from the figures, so that it can't say what they don't.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from scaler.backtest.matrix import OTHERS, TOLERANCE, Cell, Plan, Variant, code_digest
from scaler.backtest.report import (
    OVER,
    csv_text,
    geometric_mean,
    mean,
    median,
    plot_frontier,
    plot_ratios,
    ratios_of,
    row_of_cell,
    summary_of,
)
from scaler.backtest.sensitivity import NOT_VARIED
from scaler.simulator.baselines import keda_grid

Row = dict[str, Any]
NAMES = {
    "keda": "KEDA as it comes (5 each, cooldown 300 s)",
    "keda-fast": "the same with Pilotlight's HPA behaviour",
    "knative": "Knative KPA",
    "ray": "Ray Serve",
    "sagemaker": "SageMaker, backlog per instance",
}
WAITS = {0.5: "W = L/2", 1.0: "W = L", 2.0: "W = 2 L"}
LOOSE = 0.5  # of the allowed misses unused: the promise is kept with so much room that it cost too much
CHOSEN = (
    "On what the constants of `slo` were chosen: its price, its levels and how many start for a queue over generated "
    "patterns only, none of these traces (commits da1179d, cbeb9c1, b9c752b, 01a4433, 08c9a6c, 682d977, 03e374a); "
    "where to look, a former version of this page told. What is older (how unevenness and what waits are looked at, "
    "`LEAST_GAIN`) was tried on three of them, sparse, code and conversation, so their cells are not wholly "
    "blind. That levels are not kept for longer than those below them was found on a generated flash crowd; of "
    "four ways to do so the one was taken that is never much dearer on generated patterns, after a look at the "
    "same three, on which another is cheaper (docs/decisions.md, 60)."
)
UNCOUNTED = (
    "Ours is judged with a source that counts exactly what arrives and is done. Two lines are of sources that don't: "
    "`uncounted` is told what waits and what is being worked on, as SQS tells, `queue only` what waits and nothing "
    "else, as RabbitMQ tells over AMQP; both have a view of replicas and look as often as the others, and the counts "
    "are exact and fresh here, so what SQS's approximate ones, and confirming them before waking, cost is not in it."
)
COLUMNS = (
    "L",
    "W",
    "p",
    "ours: in time (95 %)",
    "cost",
    "p50/p95/p99 wait",
    "starts",
    "rev.",
    "tuned KEDA: in time",
    "cost",
    "starts",
    "ratio (95 %)",
    "fixed n: cost",
    "to bound",
    "unseen: in time, cost",
    "fastScale: in time, cost",
    "uncounted: in time, cost",
    "queue only: in time, cost",
    "configuration of tuned KEDA",
)


def write_results(cells: Sequence[Cell], folder: Path, plan: Plan, variants: Sequence[Variant] = ()) -> None:
    """results.md in `folder`, with results/matrix.csv, matrix.json, sensitivity.csv and plots beside it."""
    rows = [row_of_cell(cell) for cell in cells]
    varied = rows_of_variants(variants)
    beside = folder / "results"
    beside.mkdir(parents=True, exist_ok=True)
    (beside / "matrix.csv").write_text(csv_text(rows))
    (beside / "matrix.json").write_text(json.dumps(rows, indent=1) + "\n")
    (beside / "sensitivity.csv").write_text(csv_text(varied))
    if any(row["ratio"] is not None for row in rows):
        plot_ratios(rows, beside / "ratios.png")
        plot_frontier(rows, beside / "frontier.png")
    (folder / "results.md").write_text(markdown(rows, plan, varied))


def markdown(rows: Sequence[Row], plan: Plan, varied: Sequence[Row] = ()) -> str:
    """The page."""
    lines = [
        "# Pilotlight against tuned KEDA",
        "",
        *_wrapped(
            "Written by `make results-matrix` (`pilotlight backtest matrix`), with the simulator of digest "
            f"{code_digest(ours=False)} and the policy of digest {code_digest(ours=True)}; all figures are in "
            "[results/matrix.csv](results/matrix.csv). One configuration of `slo` for all cells: the wait W, the "
            "attainment p and the concurrency are given; service times and cold starts (mean L) are learned from "
            "nothing. KEDA is tuned for each trace and promise in hindsight, over thresholds, cooldowns, stabilisation "
            "windows, minima and both HPA behaviours: the whole grid with one seed, the best five with all. Cost is "
            "GPU-seconds per second of work: 1 is what no one can be below. Everyone may miss the promise by half a "
            "point. Intervals are of 95 %, by bootstrap over blocks of the trace and seeds."
        ),
        "",
        *_wrapped(CHOSEN),
        "",
        *[line for said in what_is_missing(rows, plan) for line in (*_wrapped(said), "")],
        "| goal | aim | measured |",
        "|---|---|---|",
        *[f"| {goal} | {aim} | {found} |" for goal, aim, found in summary_of(rows)],
        "",
        "![ratios](results/ratios.png)",
        "![frontier](results/frontier.png)",
        "",
        *everybody(rows),
        "",
        *groups(rows),
        "",
        *no_tuned_keda(rows),
        "",
        *_sensitivity(varied, plan),
    ]
    for trace in dict.fromkeys(row["trace"] for row in rows):
        lines += [f"## {trace}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        lines += [_markdown_row(row) for row in rows if row["trace"] == trace]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def what_is_missing(rows: Sequence[Row], plan: Plan) -> list[str]:
    """How many cells and seeds there are, and what the whole would have more."""
    cells = len(plan.pairs()) * len(plan.wait_factors) * len(plan.attainments)
    said = [
        (
            f"{len(rows)} of {cells} cells. Seeds a cell: ours {_span(rows, 'seeds')}, without a view of replicas "
            f"{_span(rows, 'unseen_seeds')}, with fastScale {_span(rows, 'fast_seeds')}, without counters "
            f"{_span(rows, 'uncounted_seeds')}, with what waits alone {_span(rows, 'queue_only_seeds')}, tuned KEDA "
            f"{_span([row for row in rows if row['tuned_cost'] is not None], 'tuned_seeds')}."
        )
    ]
    points = len(list(keda_grid()))
    short = [row for row in rows if row["grid_points"] < points]
    if short:
        said.append(
            f"**Missing:** of the {points} points of KEDA's grid only {_span(short, 'grid_points')} were tried in "
            f"{len(short)} cells: KEDA may be better there than it is shown."
        )
    for name, column, wanted in (
        ("ours", "seeds", plan.seeds),
        ("ours without a view", "unseen_seeds", plan.unseen_seeds),
        ("fastScale", "fast_seeds", plan.fast_seeds),
        ("ours without counters", "uncounted_seeds", plan.uncounted_seeds),
        ("ours with what waits alone", "queue_only_seeds", plan.uncounted_seeds),
    ):
        less = [row for row in rows if row[column] < wanted]
        if less:
            where = ", ".join(dict.fromkeys(row["trace"] for row in less))
            said.append(f"**Missing:** {name} has fewer than {wanted} seeds in {len(less)} cells ({where}).")
    if not any(row["trace"].startswith(("azure", "servegen")) for row in rows):
        said.append("The five traces were not at hand: these are the seeded patterns that ship with the project.")
    return said


def everybody(rows: Sequence[Row]) -> list[str]:
    """Every autoscaler over all cells."""
    lines = [
        "## Everybody",
        "",
        *_wrapped(UNCOUNTED),
        "",
        (
            "| who | promise kept, cells that some fixed number keeps | worst of these, points short "
            "| cost, geometric mean | against tuned KEDA, cells where both were run |"
        ),
        "|---|---|---|---|---|",
    ]

    def line(name: str, kept: Sequence[bool], short: str, costs: Sequence[tuple[float, float | None]]) -> None:
        if costs:
            against = [cost / tuned for cost, tuned in costs if tuned]
            lines.append(
                f"| {name} | {sum(kept)} of {len(kept)} | {short} | {geometric_mean([cost for cost, _ in costs]):.2f} "
                f"| {geometric_mean(against):.2f} |"
            )

    for name, prefix in (
        ("**Pilotlight `slo`**", ""),
        ("... without a view of replicas", "unseen_"),
        ("... with fastScale", "fast_"),
        ("... uncounted (as SQS)", "uncounted_"),
        ("... queue only (as AMQP)", "queue_only_"),
        *((NAMES[name], f"{name}_") for name in OTHERS),
    ):
        some = [row for row in rows if row.get(f"{prefix}cost") is not None]
        keepable = [row for row in some if row["fixed_cost"] is not None]
        line(
            name,
            [row[f"{prefix}kept"] for row in keepable],
            f"{100 * max(_short(row, prefix) for row in keepable):.1f}" if keepable else "-",
            [(row[f"{prefix}cost"], row["tuned_cost"]) for row in some],
        )
    some = [row for row in rows if row["tuned_cost"] is not None]
    line(
        "KEDA tuned in hindsight",
        [row["tuned_cost"] is not None for row in rows if row["fixed_cost"] is not None],
        "",
        [(row["tuned_cost"],) * 2 for row in some],
    )
    some = [row for row in rows if row["fixed_cost"] is not None]
    line(
        "the smallest fixed number that keeps it (hindsight)",
        [True for _ in some],
        "",
        [(row["fixed_cost"], row["tuned_cost"]) for row in some],
    )
    lines.append(
        f"| the bound, which knows all arrivals | | | {geometric_mean([row['bound_cost'] for row in rows]):.2f} | |"
    )
    return lines


def groups(rows: Sequence[Row]) -> list[str]:
    """What is missed, and why, by trace and wait."""
    lines = [
        "## What is missed, and why",
        "",
        *_wrapped(
            "A line is of three cold starts and three attainments. Kept: the promise, with a view / without. Short: "
            "by how many points the worst cell is below the promise. Ratio: cost against tuned KEDA, the geometric "
            "mean and the worst. Bound: cost against the bound, median. Starts: replica starts against tuned KEDA."
        ),
        "",
        "| trace | wait | kept | short | ratio | bound | starts | goals missed, and why |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ran = [row for row in rows if row["share"] is not None]
    for trace in dict.fromkeys(row["trace"] for row in ran):
        for factor, name in WAITS.items():
            some = [row for row in ran if row["trace"] == trace and _factor(row) == factor]
            if some:
                lines.append(_group(trace, name, some))
    return lines


def _group(trace: str, name: str, rows: Sequence[Row]) -> str:
    unseen = [row for row in rows if row["unseen_kept"] is not None]
    short = max(_short(row) for row in rows)
    against = ratios_of(rows)
    starts = [row for row in rows if row["tuned_starts"] is not None]
    started = sum(row["starts"] for row in starts) / max(sum(row["tuned_starts"] for row in starts), 1)
    return (
        f"| {trace} | {name} | {sum(row['kept'] for row in rows)}/{len(rows)}, "
        f"{sum(row['unseen_kept'] for row in unseen)}/{len(unseen)} | {100 * short:.1f} "
        f"| {_number(geometric_mean(against))}, {_number(max(against, default=math.nan))} "
        f"| {median([row['ratio_to_bound'] for row in rows]):.2f} | {_number(started) if starts else '-'} "
        f"| {'; '.join(reasons(rows)) or 'none'} |"
    )


def reasons(rows: Sequence[Row]) -> list[str]:
    """Which goals these cells miss, and what of their figures tells why; in plain words."""
    said = [
        *_why_broken([row for row in rows if not row["kept"]], len(rows)),
        *_why_dear([row for row in rows if row["ratio"] is not None and row["ratio"] > OVER]),
    ]
    far = [row for row in rows if row["ratio_to_bound"] > 1.3]
    if far:
        idle = mean([_idle(row["cost"]) for row in rows])
        least = mean([_idle(row["bound_cost"]) for row in rows])
        said.append(
            f"above 1.3 times the bound in {len(far)}: replicas start, or wait for requests, {100 * idle:.0f} % of "
            f"their time ({100 * least:.0f} % in the bound, which knows all arrivals)"
        )
    return said


def _idle(cost: float) -> float:
    return 1.0 - 1.0 / max(cost, 1.0)


def _why_broken(broken: Sequence[Row], cells: int) -> list[str]:
    if not broken:
        return []
    noise = [row for row in broken if (row["share_high"] or 0.0) >= row["attainment"]]
    some = min(broken, key=lambda row: row["share"] - row["attainment"])
    requests = some["requests"] or 0
    allowed = round(requests * (1.0 - some["attainment"] + TOLERANCE))
    late = round(requests * (1.0 - some["share"]))
    parts = [
        (
            f"the promise is missed in {len(broken)} of {cells} (the worst: {late} requests late of {requests}, "
            f"{allowed} may be)"
        )
    ]
    if len(noise) == len(broken):
        parts.append("in all of them the 95 % interval reaches the promise: the trace has too few bursts to tell")
    elif noise:
        parts.append(f"in {len(noise)} of them the 95 % interval reaches the promise")
    factor = _factor(some)
    if factor < 1:
        parts.append(
            "no replica that is started for a request can serve it in time, so only what was kept or foreseen helps"
        )
    elif factor == 1:
        parts.append("a replica started at once serves at the deadline itself, so about every second one is too late")
    else:
        parts.append("being lazy pays here until a burst comes, and the budget that it costs is not won back")
    return [", ".join(parts)]


def _why_dear(dear: Sequence[Row]) -> list[str]:
    if not dear:
        return []
    loose = [
        row
        for row in dear
        if 1.0 - row["share"] <= LOOSE * (1.0 - row["attainment"]) and row["share"] > row["tuned_share"]
    ]
    always = [row for row in dear if row["tuned_minimum"]]
    parts = [f"dearer than {OVER:g} times tuned KEDA in {len(dear)} (the worst {max(ratios_of(dear)):.2f})"]
    if loose:
        parts.append(f"in {len(loose)} ours keeps more than it must (uses at most half of the misses that it may)")
    if always:
        parts.append(
            f"in {len(always)} hindsight tells KEDA how many replicas to keep for ever "
            f"({'/'.join(str(count) for count in sorted({row['tuned_minimum'] for row in always}))})"
        )
    wide = [row for row in dear if row["ratio_low"] is not None and row["ratio_low"] <= OVER]
    if wide:
        parts.append(f"in {len(wide)} the 95 % interval begins at {OVER:g} or below")
    return [", ".join(parts)]


def no_tuned_keda(rows: Sequence[Row]) -> list[str]:
    """Where no tuned KEDA keeps the promise: our cost against the cheapest fixed number."""
    some = [row for row in rows if row["tuned_cost"] is None]
    lines = [f"## Where no tuned KEDA keeps the promise ({len(some)} of {len(rows)} cells)", ""]
    for row in some:
        ours = "not run" if row["share"] is None else f"{row['share']:.3f} in time at {row['cost']:.2f}"
        fixed = "none keeps it"
        if row["fixed_cost"] is not None:
            fixed = f"{row['fixed_replicas']} at {row['fixed_cost']:.2f}"
            if row["cost"] is not None:
                fixed += f" (ours is {row['cost'] / row['fixed_cost']:.2f} of that)"
        lines.append(
            f"- {row['trace']}, cold start {row['cold_start_seconds']:g} s, {row['attainment']:g} within "
            f"{row['wait_seconds']:g} s: ours {ours}; fixed {fixed}"
        )
    return lines


def rows_of_variants(variants: Sequence[Variant]) -> list[Row]:
    """One flat row a constant and factor."""
    return [
        {
            "constant": variant.constant,
            "factor": variant.factor,
            "cells": len(variant.cells),
            "failed": variant.failed,
            "cost": round(geometric_mean([one[0] for one in variant.cells]), 4),
            "starts": round(geometric_mean([max(one[1], 1e-3) for one in variant.cells]), 4),
            "kept_before": sum(one[2] >= -TOLERANCE for one in variant.cells),
            "kept": sum(one[3] >= -TOLERANCE for one in variant.cells),
            "short_points_before": round(100 * mean([max(-one[2], 0.0) for one in variant.cells]), 3),
            "short_points": round(100 * mean([max(-one[3], 0.0) for one in variant.cells]), 3),
        }
        for variant in variants
    ]


def _sensitivity(varied: Sequence[Row], plan: Plan) -> list[str]:
    if not varied:
        return ["## Sensitivity", "", "**Missing:** no constant was varied.", ""]
    seconds = plan.cold_starts_seconds[len(plan.cold_starts_seconds) // 2]
    whole = max(varied, key=lambda row: row["cells"])
    most = whole["cells"]
    few = [row for row in varied if row["cells"] + row["failed"] < most]
    failed = [row for row in varied if row["failed"]]
    left = ", ".join(f"`{name}`, {why}" for name, why in NOT_VARIED.items())
    lines = [
        "## Sensitivity",
        "",
        *_wrapped(
            "Every constant of policy `slo`, core/estimate.py and core/holds.py halved and doubled, one at a time "
            f"(found in the sources; not varied: {left}; numbers "
            f"without a name and tables are not varied either). Over {most} cells: {', '.join(plan.varied_traces)}, "
            f"cold start {seconds:g} s, three waits, attainments "
            f"{' and '.join(f'{share:g}' for share in plan.varied_attainments)}, one seed. Cost and starts: the "
            "geometric mean against the policy as it is. Short: how far below the promise, in points, on average "
            f"({whole['short_points_before']:.2f} as it is; kept in {whole['kept_before']} cells)."
        ),
        "",
    ]
    if few:
        lines += [f"**Missing:** {len(few)} of {len(varied)} lines are over fewer cells.", ""]
    if failed:
        names = ", ".join(f"`{row['constant'].rpartition(':')[2]}` times {row['factor']:g}" for row in failed)
        lines += [*_wrapped(f"With {names} the policy can't decide in some cells, which are left out."), ""]
    lines += ["| constant | times | cost | starts | kept | short, points |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row['constant'].removeprefix('scaler.').replace(':', ' ')} | {row['factor']:g} | {row['cost']:.3f} "
        f"| {row['starts']:.2f} | {row['kept']}/{row['cells']} | {row['short_points']:.2f} |"
        for row in varied
    ]
    return [*lines, ""]


def _markdown_row(row: Row) -> str:
    def shown(value: Any, form: str = "{}") -> str:
        return "-" if value is None else form.format(value)

    def pair(name: str) -> str:
        return f"{shown(row[f'{name}_share'], '{:.3f}')}, {shown(row[f'{name}_cost'], '{:.2f}')}"

    interval = "" if row["ratio_low"] is None else f" ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"
    ours: tuple[str, ...] = ("-",) * 5
    if row["share"] is not None:
        ours = (
            f"{row['share']:.3f} ({row['share_low']:.3f}-{row['share_high']:.3f}){'' if row['kept'] else ' **✗**'}",
            f"{row['cost']:.2f}",
            f"{row['wait_p50']:g}/{row['wait_p95']:g}/{row['wait_p99']:g}",
            f"{row['starts']:.0f}",
            f"{row['reversals']:.0f}",
        )
    columns = (
        f"{row['cold_start_seconds']:g}",
        f"{row['wait_seconds']:g}",
        f"{row['attainment']:g}",
        *ours,
        shown(row["tuned_share"], "{:.3f}"),
        shown(row["tuned_cost"], "{:.2f}"),
        shown(row["tuned_starts"], "{:.0f}"),
        shown(row["ratio"], "{:.2f}") + interval,
        f"{shown(row['fixed_replicas'])}: {shown(row['fixed_cost'], '{:.2f}')}",
        shown(row["ratio_to_bound"], "{:.2f}"),
        pair("unseen"),
        pair("fast"),
        pair("uncounted"),
        pair("queue_only"),
        row["tuned"] or "none keeps it",
    )
    return f"| {' | '.join(columns)} |"


def _wrapped(text: str) -> list[str]:
    return wrap(text, 120, break_long_words=False, break_on_hyphens=False)


def _factor(row: Row) -> float:
    return float(row["wait_seconds"] / row["cold_start_seconds"])


def _short(row: Row, prefix: str = "") -> float:
    return max(float(row["attainment"] - row[f"{prefix}share"]), 0.0)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _span(rows: Sequence[Row], name: str) -> str:
    counts = [row[name] for row in rows]
    if not counts:
        return "none"
    return f"{min(counts)} to {max(counts)}" if min(counts) != max(counts) else str(counts[0])
