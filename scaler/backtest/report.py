"""Tables (text, CSV, JSON), plots and docs/results.md from what was run. matplotlib is imported only to plot."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scaler.backtest.cases import BLOCKS, Case, Result
from scaler.backtest.matrix import TOLERANCE, Cell

RESAMPLES = 300
_TITLE = "Pilotlight against tuned KEDA"
_COLUMNS = (
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
    "fastScale",
    "configuration",
)


def mean(values: Sequence[float]) -> float:
    """The mean; nan of nothing."""
    return sum(values) / len(values) if values else math.nan


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean; nan of nothing."""
    return math.exp(mean([math.log(value) for value in values])) if values else math.nan


def rows_of_runs(runs: Sequence[tuple[Case, Result]]) -> list[dict[str, Any]]:
    """One flat row a run."""
    rows = []
    for case, result in runs:
        row: dict[str, Any] = {
            "trace": case.trace,
            "policy": case.scaler,
            "cold_start_seconds": case.cold_start_seconds,
            "wait_seconds": case.wait_seconds,
            "attainment": case.attainment,
            "seed": case.seed,
            "requests": result.requests,
        }
        if case.wait_seconds is not None:
            row["share_in_time"] = round(result.shares[f"{case.wait_seconds:g}"], 4)
        row |= {f"wait_{name}_seconds": round(value, 1) for name, value in result.waits_seconds.items()}
        row |= {
            "gpu_seconds": round(result.gpu_seconds),
            "gpu_seconds_per_busy": round(result.gpu_seconds / result.busy_seconds, 3) if result.busy_seconds else None,
            "starts": result.starts,
            "reversals": result.reversals,
        }
        rows.append(row)
    return rows


def row_of_cell(cell: Cell) -> dict[str, Any]:
    """One flat row a cell; GPU-seconds are given per second of work."""
    wait = f"{cell.wait_seconds:g}"
    busy = cell.busy_seconds

    def cost(results: Sequence[Result]) -> float | None:
        return round(mean([result.gpu_seconds for result in results]) / busy, 3) if results else None

    def share(results: Sequence[Result]) -> float | None:
        return round(mean([result.shares[wait] for result in results]), 4) if results else None

    def middle(results: Sequence[Result], what: Callable[[Result], float]) -> float | None:
        return round(mean([what(result) for result in results]), 1) if results else None

    ours, tuned = cost(cell.ours), cost(cell.tuned_results)
    achieved = share(cell.ours) or 0.0
    low_share, high_share, low_ratio, high_ratio = intervals(cell)
    row: dict[str, Any] = {
        "trace": cell.trace,
        "cold_start_seconds": cell.cold_start_seconds,
        "wait_seconds": cell.wait_seconds,
        "attainment": cell.attainment,
        "share": achieved,
        "share_low": round(low_share, 4),
        "share_high": round(high_share, 4),
        "kept": achieved >= cell.attainment - TOLERANCE,
        "seeds": len(cell.ours),
        "unseen_seeds": len(cell.unseen),
        "tuned_seeds": len(cell.tuned_results),
        "cost": ours,
        "wait_p50": middle(cell.ours, lambda result: result.waits_seconds["p50"]),
        "wait_p95": middle(cell.ours, lambda result: result.waits_seconds["p95"]),
        "wait_p99": middle(cell.ours, lambda result: result.waits_seconds["p99"]),
        "starts": middle(cell.ours, lambda result: result.starts),
        "reversals": middle(cell.ours, lambda result: result.reversals),
        "tuned": _config(cell),
        "tuned_share": share(cell.tuned_results),
        "tuned_cost": tuned,
        "tuned_starts": middle(cell.tuned_results, lambda result: result.starts),
        "ratio": round(ours / tuned, 3) if ours and tuned else None,
        "ratio_low": None if low_ratio is None else round(low_ratio, 3),
        "ratio_high": None if high_ratio is None else round(high_ratio, 3),
        "fixed_replicas": cell.fixed_replicas,
        "fixed_cost": round(cell.fixed.gpu_seconds / busy, 3) if cell.fixed else None,
        "bound_cost": round(cell.bound_gpu_seconds / busy, 3),
        "ratio_to_bound": round(ours * busy / cell.bound_gpu_seconds, 3) if ours else None,
        "unseen_share": share(cell.unseen),
        "unseen_cost": cost(cell.unseen),
        "fast_share": share(cell.fast),
        "fast_cost": cost(cell.fast),
    }
    for name, results in cell.others.items():
        row[f"{name}_share"], row[f"{name}_cost"] = share(results), cost(results)
    return row


def intervals(cell: Cell) -> tuple[float, float, float | None, float | None]:
    """95 % of (share low, share high, ratio low, ratio high) by bootstrap over blocks and seeds."""
    waits = sorted(float(wait) for wait in cell.ours[0].shares)
    column = 2 + waits.index(cell.wait_seconds)
    chance = random.Random(1)  # noqa: S311 - resampling
    shares, ratios = [], []
    tuned_waits = column
    for _ in range(RESAMPLES):
        blocks = [chance.randrange(BLOCKS) for _ in range(BLOCKS)]
        ours = cell.ours[chance.randrange(len(cell.ours))].blocks
        requests = sum(ours[block][0] for block in blocks)
        if requests:
            shares.append(sum(ours[block][tuned_waits] for block in blocks) / requests)
        if cell.tuned_results:
            theirs = cell.tuned_results[chance.randrange(len(cell.tuned_results))].blocks
            total = sum(theirs[block][1] for block in blocks)
            if total:
                ratios.append(sum(ours[block][1] for block in blocks) / total)
    shares.sort()
    ratios.sort()
    low, high = int(0.025 * RESAMPLES), int(0.975 * RESAMPLES) - 1
    share_low, share_high = (shares[low * len(shares) // RESAMPLES], shares[high * len(shares) // RESAMPLES])
    if not ratios:
        return share_low, share_high, None, None
    return share_low, share_high, ratios[low * len(ratios) // RESAMPLES], ratios[high * len(ratios) // RESAMPLES]


def summary_of(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(goal, aim, measured)."""
    against = [row for row in rows if row["ratio"] is not None]
    keepable = [row for row in rows if row["fixed_cost"] is not None]
    tight = [row for row in against if row["wait_seconds"] < row["cold_start_seconds"]]
    both = [row for row in against if row["kept"]]

    def ratios(some: Sequence[dict[str, Any]]) -> list[float]:
        return [row["ratio"] for row in some]

    bounds = sorted(row["ratio_to_bound"] for row in rows)
    starts = sum(row["starts"] for row in against), sum(row["tuned_starts"] for row in against)
    unseen = [row for row in keepable if row["unseen_share"] is not None]
    return [
        (
            "promise kept within half a point, cells that some fixed number keeps",
            "all",
            f"{sum(row['kept'] for row in keepable)} of {len(keepable)}",
        ),
        (
            "the same, without a view of replicas",
            "all",
            f"{sum(row['unseen_share'] >= row['attainment'] - TOLERANCE for row in unseen)} of {len(unseen)}",
        ),
        (
            "GPU-seconds against the cheapest tuned KEDA that keeps the promise, geometric mean",
            "0.70",
            f"{geometric_mean(ratios(against)):.2f} over {len(against)} cells",
        ),
        (
            "... of these, cells where ours keeps it too",
            "",
            f"{geometric_mean(ratios(both)):.2f} over {len(both)} cells",
        ),
        (
            "... cells with a wait below the cold start",
            "0.60",
            f"{geometric_mean(ratios(tight)):.2f} over {len(tight)} cells",
        ),
        (
            "... no cell above",
            "1.05",
            f"{sum(ratio > 1.05 for ratio in ratios(against))} are; the worst {max(ratios(against), default=0):.2f}",
        ),
        ("... against the bound, median cell", "1.3", f"{bounds[len(bounds) // 2]:.2f}" if bounds else ""),
        ("replica starts against tuned KEDA, all cells together", "1.2", f"{starts[0] / max(starts[1], 1):.2f}"),
    ]


def text_table(rows: Sequence[dict[str, Any]]) -> str:
    """Aligned columns, for a terminal without colours."""
    if not rows:
        return ""
    names = list(rows[0])
    cells = [names, *[["" if row.get(name) is None else str(row.get(name)) for name in names] for row in rows]]
    widths = [max(len(line[index]) for line in cells) for index in range(len(names))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells)


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Comma separated, with a header."""
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()


def write_results(cells: Sequence[Cell], folder: Path, sensitivity: Sequence[dict[str, Any]] = ()) -> None:
    """results.md in `folder`, with results/matrix.csv, matrix.json and plots beside it."""
    rows = [row_of_cell(cell) for cell in cells]
    beside = folder / "results"
    beside.mkdir(parents=True, exist_ok=True)
    (beside / "matrix.csv").write_text(csv_text(rows))
    (beside / "matrix.json").write_text(json.dumps(rows, indent=1) + "\n")
    plot_ratios(rows, beside / "ratios.png")
    plot_frontier(rows, beside / "frontier.png")
    (folder / "results.md").write_text(markdown(rows, sensitivity))


def markdown(rows: Sequence[dict[str, Any]], sensitivity: Sequence[dict[str, Any]]) -> str:
    """docs/results.md."""
    lines = [
        f"# {_TITLE}",
        "",
        "Written by `make results` (`pilotlight backtest matrix`); the figures are in",
        "[results/matrix.csv](results/matrix.csv). One configuration of `slo` for all cells: the wait, the attainment",
        "and the concurrency are given, service times and cold starts are learned from nothing. KEDA is tuned for each",
        "trace and promise in hindsight, over thresholds, cooldowns, stabilisation windows, minima and both HPA",
        "behaviours. Cost is GPU-seconds per second of work: 1 is what no one can be below.",
        "",
        (
            f"{len(rows)} cells. Seeds a cell: ours {_span(rows, 'seeds')}, without a view of replicas "
            f"{_span(rows, 'unseen_seeds')}, tuned KEDA {_span(rows, 'tuned_seeds')}."
        ),
        "",
        "| goal | aim | measured |",
        "|---|---|---|",
        *[f"| {goal} | {aim} | {found} |" for goal, aim, found in summary_of(rows)],
        "",
        "![ratios](results/ratios.png)",
        "![frontier](results/frontier.png)",
        "",
    ]
    if sensitivity:
        lines += [
            "## Sensitivity",
            "",
            "Every constant of the policy halved and doubled, over a part of the matrix: the geometric mean of cost",
            "against the policy as it is, and by how much the share falls short of the promise, in points, on average.",
            "",
            "| constant | factor | cost | short of the promise, points |",
            "|---|---|---|---|",
            *[
                f"| {row['constant']} | {row['factor']} | {row['cost']:.3f} | {row['short_points']:.2f} |"
                for row in sensitivity
            ],
            "",
        ]
    for trace in dict.fromkeys(row["trace"] for row in rows):
        lines += [
            f"## {trace}",
            "",
            f"| {' | '.join(_COLUMNS)} |",
            "|---" * len(_COLUMNS) + "|",
        ]
        lines += [_markdown_row(row) for row in rows if row["trace"] == trace]
        lines.append("")
    short = [row for row in rows if not row["kept"]]
    lines += [f"## Where the promise is not kept ({len(short)} of {len(rows)} cells)", ""]
    lines += [
        f"- {row['trace']}, cold start {row['cold_start_seconds']:g} s, {row['attainment']:g} within "
        f"{row['wait_seconds']:g} s: {row['share']:.4f}"
        + (
            f" (tuned KEDA {row['tuned_share']:.4f})"
            if row["tuned_share"]
            else f" (no tuned KEDA keeps it; fixed {row['fixed_replicas']} replicas do)"
        )
        for row in short
    ]
    return "\n".join(lines) + "\n"


def _span(rows: Sequence[dict[str, Any]], name: str) -> str:
    counts = [row[name] for row in rows]
    return f"{min(counts)} to {max(counts)}" if min(counts) != max(counts) else str(counts[0])


def _markdown_row(row: dict[str, Any]) -> str:
    def shown(value: Any, form: str = "{}") -> str:
        return "-" if value is None else form.format(value)

    interval = "" if row["ratio_low"] is None else f" ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"
    mark = "" if row["kept"] else " **✗**"
    return (
        f"| {row['cold_start_seconds']:g} | {row['wait_seconds']:g} | {row['attainment']:g} "
        f"| {row['share']:.3f} ({row['share_low']:.3f}-{row['share_high']:.3f}){mark} | {row['cost']:.2f} "
        f"| {row['wait_p50']:g}/{row['wait_p95']:g}/{row['wait_p99']:g} | {row['starts']:.0f} | {row['reversals']:.0f} "
        f"| {shown(row['tuned_share'], '{:.3f}')} | {shown(row['tuned_cost'], '{:.2f}')} "
        f"| {shown(row['tuned_starts'], '{:.0f}')} | {shown(row['ratio'], '{:.2f}')}{interval} "
        f"| {shown(row['fixed_replicas'])}: {shown(row['fixed_cost'], '{:.2f}')} | {row['ratio_to_bound']:.2f} "
        f"| {shown(row['unseen_share'], '{:.3f}')}, {shown(row['unseen_cost'], '{:.2f}')} "
        f"| {shown(row['fast_share'], '{:.3f}')}, {shown(row['fast_cost'], '{:.2f}')} "
        f"| {row['tuned'] or 'none keeps it'} |"
    )


def plot_ratios(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Cost against tuned KEDA by wait, one colour a trace."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(9, 4.5))
    traces = list(dict.fromkeys(row["trace"] for row in rows))
    for index, trace in enumerate(traces):
        some = [row for row in rows if row["trace"] == trace and row["ratio"] is not None]
        xs = [
            math.log2(row["wait_seconds"] / row["cold_start_seconds"]) + 0.12 * (index - len(traces) / 2)
            for row in some
        ]
        axes.scatter(xs, [row["ratio"] for row in some], s=22, label=trace)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.axhline(0.7, color="grey", linewidth=0.8, linestyle="--")
    axes.set_yscale("log")
    axes.set_xticks([-1, 0, 1], ["half a cold start", "one cold start", "two cold starts"])
    axes.set_xlabel("promised wait")
    axes.set_ylabel("GPU-seconds, ours / tuned KEDA")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def plot_frontier(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Cost over the share in time: ours, tuned KEDA, and the others where they were run."""
    plt = pyplot()
    traces = list(dict.fromkeys(row["trace"] for row in rows))
    figure, panels = plt.subplots(1, len(traces), figsize=(3.2 * len(traces), 3.4), squeeze=False)
    for axes, trace in zip(panels[0], traces, strict=True):
        some = [row for row in rows if row["trace"] == trace]
        for name, share, cost in (
            ("slo", "share", "cost"),
            ("tuned KEDA", "tuned_share", "tuned_cost"),
            ("stock KEDA", "keda_share", "keda_cost"),
            ("Knative", "knative_share", "knative_cost"),
        ):
            points = [(row[share], row[cost]) for row in some if row.get(share) is not None]
            if points:
                axes.scatter([point[0] for point in points], [point[1] for point in points], s=14, label=name)
        axes.set_yscale("log")
        axes.set_title(trace, fontsize=8)
        axes.set_xlabel("share in time")
    panels[0][0].set_ylabel("GPU-seconds per second of work")
    panels[0][0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def plot_runs(runs: Sequence[tuple[Case, Result]], path: Path) -> None:
    """Replicas wanted, ready and starting, and what waits, over time: one panel a run."""
    plt = pyplot()
    figure, panels = plt.subplots(len(runs), 1, figsize=(10, 2.6 * len(runs)), squeeze=False, sharex=True)
    for axes, (case, result) in zip(panels[:, 0], runs, strict=True):
        hours = [point[0] / 3600 for point in result.timeline]
        axes.step(hours, [point[2] for point in result.timeline], where="post", label="ready")
        axes.step(hours, [point[3] for point in result.timeline], where="post", label="starting", linewidth=0.8)
        axes.step(
            hours, [point[4] for point in result.timeline], where="post", label="waiting", linewidth=0.8, alpha=0.6
        )
        axes.set_title(f"{case.scaler}, seed {case.seed}", fontsize=8)
        axes.legend(fontsize=7)
    panels[-1, 0].set_xlabel("hours")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _config(cell: Cell) -> str | None:
    config = cell.tuned
    if config is None:
        return None
    return (
        f"{config.threshold:g} each, cooldown {config.cooldown_seconds:g} s, "
        f"window {config.stabilization_seconds:g} s, min {config.min_replicas}, "
        f"{'fast' if config.fast else 'default'} behaviour"
    )


def pyplot() -> Any:
    """The pyplot of matplotlib, without a screen."""
    import matplotlib as mpl  # noqa: PLC0415 - heavy, and only plots need it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

    return plt
