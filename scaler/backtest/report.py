"""Tables (text, CSV, JSON), plots and docs/results.md from what was run. matplotlib is imported only to plot."""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scaler.backtest.cases import BLOCKS, Case, Result
from scaler.backtest.matrix import OTHERWISE, TOLERANCE, Cell

RESAMPLES = 300
SHORTEST_BLOCK_SECONDS = 300.0  # what lasts as long as a burst or a few cold starts is drawn as a whole
OVER = 1.05  # of tuned KEDA's cost: what no cell may be above


def mean(values: Sequence[float]) -> float:
    """The mean; nan of nothing."""
    return sum(values) / len(values) if values else math.nan


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean; nan of nothing."""
    return math.exp(mean([math.log(value) for value in values])) if values else math.nan


def median(values: Sequence[float]) -> float:
    """The middle; nan of nothing."""
    return sorted(values)[len(values) // 2] if values else math.nan


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
            share = result.shares[f"{case.wait_seconds:g}"]
            row["share_in_time"] = round(share, 4) if result.requests else None
        row |= {
            f"wait_{name}_seconds": round(value, 1) if result.requests else None
            for name, value in result.waits_seconds.items()
        }
        row |= {
            "gpu_seconds": round(result.gpu_seconds),
            "gpu_seconds_per_busy": round(result.gpu_seconds / result.busy_seconds, 3) if result.busy_seconds else None,
            "starts": result.starts,
            "reversals": result.reversals,
        }
        rows.append(row)
    return rows


def row_of_cell(cell: Cell) -> dict[str, Any]:
    """One flat row a cell; GPU-seconds are given per second of work. What was not run is None."""
    wait = f"{cell.wait_seconds:g}"
    busy = cell.busy_seconds

    def cost(results: Sequence[Result]) -> float | None:
        return round(mean([result.gpu_seconds for result in results]) / busy, 3) if results else None

    def share(results: Sequence[Result]) -> float | None:
        return round(mean([result.shares[wait] for result in results]), 4) if results else None

    def middle(results: Sequence[Result], what: Callable[[Result], float]) -> float | None:
        return round(mean([what(result) for result in results]), 1) if results else None

    def kept(achieved: float | None) -> bool | None:
        return None if achieved is None else achieved >= cell.attainment - TOLERANCE - 1e-9

    ours, tuned = cost(cell.ours), cost(cell.tuned_results)
    share_low, share_high, ratio_low, ratio_high = intervals(cell)
    row: dict[str, Any] = {
        "trace": cell.trace,
        "cold_start_seconds": cell.cold_start_seconds,
        "wait_seconds": cell.wait_seconds,
        "attainment": cell.attainment,
        "requests": cell.ours[0].requests if cell.ours else None,
        "share": share(cell.ours),
        "share_low": share_low,
        "share_high": share_high,
        "kept": kept(share(cell.ours)),
        "seeds": len(cell.ours),
        **{f"{name}_seeds": len(getattr(cell, name)) for name in OTHERWISE},
        "tuned_seeds": len(cell.tuned_results),
        "grid_points": cell.grid_points,
        "cost": ours,
        "wait_p50": middle(cell.ours, lambda result: result.waits_seconds["p50"]),
        "wait_p95": middle(cell.ours, lambda result: result.waits_seconds["p95"]),
        "wait_p99": middle(cell.ours, lambda result: result.waits_seconds["p99"]),
        "starts": middle(cell.ours, lambda result: result.starts),
        "reversals": middle(cell.ours, lambda result: result.reversals),
        "tuned": _config(cell),
        "tuned_minimum": None if cell.tuned is None else cell.tuned.min_replicas,
        "tuned_share": share(cell.tuned_results),
        "tuned_cost": tuned,
        "tuned_starts": middle(cell.tuned_results, lambda result: result.starts),
        "ratio": round(ours / tuned, 3) if ours and tuned else None,
        "ratio_low": ratio_low,
        "ratio_high": ratio_high,
        "fixed_replicas": cell.fixed_replicas,
        "fixed_cost": round(cell.fixed.gpu_seconds / busy, 3) if cell.fixed else None,
        "bound_cost": round(cell.bound_gpu_seconds / busy, 3),
        "ratio_to_bound": round(ours * busy / cell.bound_gpu_seconds, 3) if ours else None,
    }
    for name, results in ({name: getattr(cell, name) for name in OTHERWISE} | cell.others).items():
        row[f"{name}_share"], row[f"{name}_cost"] = share(results), cost(results)
        row[f"{name}_kept"] = kept(share(results))
    return row


def intervals(cell: Cell) -> tuple[float | None, float | None, float | None, float | None]:
    """95 % of (share low, share high, ratio low, ratio high) by circular block bootstrap over the trace, and seeds.

    Neighbouring blocks are drawn together, as long as what makes them alike lasts: five cold starts, at least five
    minutes. Seeds are drawn with replacement too.
    """
    if not cell.ours:
        return None, None, None, None
    waits = sorted(float(wait) for wait in cell.ours[0].shares)
    column = 2 + waits.index(cell.wait_seconds)
    together_seconds = max(SHORTEST_BLOCK_SECONDS, 5 * cell.cold_start_seconds)
    length = min(max(math.ceil(together_seconds / cell.block_seconds), 1), BLOCKS // 4)
    chance = random.Random(1)  # noqa: S311 - resampling
    ours = [_running(result, (0, 1, column)) for result in cell.ours]
    theirs = [_running(result, (1,)) for result in cell.tuned_results]
    shares, ratios = [], []
    for _ in range(RESAMPLES):
        begins = [chance.randrange(BLOCKS) for _ in range(math.ceil(BLOCKS / length))]

        def drawn(sums: Sequence[Sequence[Sequence[float]]], index: int, begins: list[int] = begins) -> float:
            return sum(one[index][begin + length] - one[index][begin] for one in sums for begin in begins)

        some = [ours[chance.randrange(len(ours))] for _ in ours]
        requests = drawn(some, 0)
        if requests:
            shares.append(drawn(some, 2) / requests)
        if theirs:
            total = drawn([theirs[chance.randrange(len(theirs))] for _ in theirs], 0) / len(theirs)
            if total:
                ratios.append(drawn(some, 1) / len(some) / total)
    return *_middle_95(shares), *_middle_95(ratios)


def _running(result: Result, columns: Sequence[int]) -> list[list[float]]:
    """Sums of the blocks so far, twice round, for each column."""
    sums = []
    for column in columns:
        line = [0.0]
        for block in result.blocks * 2:
            line.append(line[-1] + block[column])
        sums.append(line)
    return sums


def _middle_95(values: list[float]) -> tuple[float | None, float | None]:
    if not values:
        return None, None
    values.sort()
    low, high = int(0.025 * len(values)), max(math.ceil(0.975 * len(values)) - 1, 0)
    return round(values[low], 4), round(values[high], 4)


def summary_of(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(goal, aim, measured)."""
    ran = [row for row in rows if row["share"] is not None]
    against = [row for row in ran if row["ratio"] is not None]
    keepable = [row for row in ran if row["fixed_cost"] is not None]
    tight = [row for row in against if row["wait_seconds"] < row["cold_start_seconds"]]
    both = [row for row in against if row["kept"]]

    def kept(name: str) -> str:
        some = [row[f"{name}_kept"] for row in keepable if row[f"{name}_kept"] is not None]
        return f"{sum(some)} of {len(some)}"

    starts = sum(row["starts"] for row in against), sum(row["tuned_starts"] for row in against)
    over = sum(ratio > OVER for ratio in ratios_of(against))
    return [
        (
            "promise kept within half a point, cells that some fixed number keeps",
            "all",
            f"{sum(row['kept'] for row in keepable)} of {len(keepable)}",
        ),
        ("the same, without a view of replicas", "all", kept("unseen")),
        ("the same, with fastScale", "all", kept("fast")),
        ("the same, with a source without counters (as SQS)", "all", kept("uncounted")),
        ("the same, with a source that tells what waits alone (as AMQP)", "all", kept("queue_only")),
        (
            "GPU-seconds against the cheapest tuned KEDA that keeps the promise, geometric mean",
            "0.70",
            f"{geometric_mean(ratios_of(against)):.2f} over {len(against)} cells",
        ),
        (
            "... of these, cells where ours keeps it too",
            "",
            f"{geometric_mean(ratios_of(both)):.2f} over {len(both)} cells",
        ),
        (
            "... cells with a wait below the cold start",
            "0.60",
            f"{geometric_mean(ratios_of(tight)):.2f} over {len(tight)} cells",
        ),
        ("... no cell above", "1.05", f"{over} are; the worst {max(ratios_of(against), default=math.nan):.2f}"),
        ("GPU-seconds against the bound, median cell", "1.3", f"{median([row['ratio_to_bound'] for row in ran]):.2f}"),
        ("replica starts against tuned KEDA, all cells together", "1.2", f"{starts[0] / max(starts[1], 1):.2f}"),
    ]


def ratios_of(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Cost against tuned KEDA, where there is some."""
    return [row["ratio"] for row in rows if row["ratio"] is not None]


def text_table(rows: Sequence[dict[str, Any]], *, width: int | None = None) -> str:
    """Aligned columns, for a terminal without colours.

    Where a line would be longer than `width` characters, each run is a column instead, as many side by side as fit.
    """
    if not rows:
        return ""
    names = list(rows[0])
    cells = [["-" if row.get(name) is None else str(row.get(name)) for name in names] for row in rows]
    table = _aligned([names, *cells])
    if width is None or len(table[0]) <= width:
        return "\n".join(table)
    blocks: list[list[str]] = []
    shown: list[list[str]] = []
    for run in cells:
        if shown and len(_aligned(_turned([names, *shown, run]), head=True)[0]) > width:
            blocks.append(_aligned(_turned([names, *shown]), head=True))
            shown = []
        shown.append(run)
    blocks.append(_aligned(_turned([names, *shown]), head=True))
    return "\n\n".join("\n".join(block) for block in blocks)


def _turned(cells: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    return list(zip(*cells, strict=True))


def _aligned(cells: Sequence[Sequence[str]], *, head: bool = False) -> list[str]:
    """Lines of columns as wide as their widest cell; `head`: the first column holds names, on the left."""
    widths = [max(map(len, column)) for column in _turned(cells)]
    return [
        "  ".join(
            text.ljust(width) if head and not index else text.rjust(width)
            for index, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Comma separated, with a header."""
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()


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


def plots_of_runs(runs: Sequence[tuple[Case, Result]], folder: Path) -> None:
    """replicas.png and waits.png of what was kept for plots; frontier.png where several policies were run."""
    kept = [(case, result) for case, result in runs if result.timeline]
    if kept:
        plot_replicas(kept, folder / "replicas.png")
    if any(result.wait_quantiles_seconds for _, result in kept):
        plot_waits(kept, folder / "waits.png")
    scored = [(case, result) for case, result in runs if result.requests]
    if len({case.scaler for case, _ in scored}) > 1:
        plot_costs(scored, folder / "frontier.png")


def plot_replicas(runs: Sequence[tuple[Case, Result]], path: Path) -> None:
    """Replicas ready and starting, and below them what waits, over time: two panels a run."""
    plt = pyplot()
    figure, panels = plt.subplots(
        2 * len(runs),
        1,
        figsize=(10, 3.4 * len(runs)),
        squeeze=False,
        sharex=True,
        height_ratios=[2.0, 1.0] * len(runs),
    )
    most = max((span[2] for _, result in runs for span in result.waiting), default=1)
    for index, (case, result) in enumerate(runs):
        above, below = panels[2 * index, 0], panels[2 * index + 1, 0]
        end = max(result.end_at_seconds, result.timeline[-1][0])
        timeline = [*result.timeline, (end, *result.timeline[-1][1:])]
        hours, ready = [point[0] / 3600 for point in timeline], [point[2] for point in timeline]
        alive = [point[2] + point[3] for point in timeline]
        above.fill_between(hours, ready, step="post", linewidth=0, label="ready")
        above.fill_between(hours, ready, alive, step="post", linewidth=0, alpha=0.6, label="starting")
        above.set_ylim(bottom=0)
        above.set_ylabel("replicas")
        above.set_title(f"{case.scaler}, seed {case.seed}", fontsize=9, loc="left")
        above.legend(fontsize=7, loc="upper right")
        below.fill_between(
            [span[0] / 3600 for span in result.waiting],
            [span[2] for span in result.waiting],
            step="post",
            linewidth=0,
            color="tab:red",
        )
        below.set_ylim(0, 1.1 * max(most, 1))
        below.set_ylabel("waiting")
    panels[-1, 0].set_xlabel("hours; requests that wait: the most of each span")
    save(figure, path)


def plot_waits(runs: Sequence[tuple[Case, Result]], path: Path) -> None:
    """The share of requests that started within a wait, one line a run; the promise dashed."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(9, 4.5))
    for case, result in runs:
        waits = result.wait_quantiles_seconds
        if waits:
            shares = [100 * index / (len(waits) - 1) for index in range(len(waits))]
            axes.step(waits, shares, where="post", label=case.scaler)
    wait_seconds = runs[0][0].wait_seconds
    if wait_seconds is not None:
        axes.axvline(wait_seconds, color="grey", linewidth=0.8, linestyle="--")
        axes.axhline(100 * runs[0][0].attainment, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 101)
    ticks = [0, 1, 3, 10, 30, 60, 120, 300, 600, 1_800, 3_600]
    longest = max(
        (result.wait_quantiles_seconds[-1] for _, result in runs if result.wait_quantiles_seconds), default=1.0
    )
    shown = [tick for tick in ticks if tick <= max(longest, wait_seconds or 1.0)]
    axes.set_xticks(shown, [str(tick) for tick in shown])
    axes.minorticks_off()
    axes.set_xlabel("wait in seconds")
    axes.set_ylabel("% of requests that started within it")
    axes.legend(fontsize=8, loc="lower right")
    save(figure, path)


def plot_costs(runs: Sequence[tuple[Case, Result]], path: Path) -> None:
    """GPU-seconds over the share in time: small dots are runs, large ones their means; the line joins the cheapest."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.5))
    by_policy: dict[str, list[tuple[float, float]]] = {}
    for case, result in runs:
        if case.wait_seconds is not None:
            point = (100 * result.shares[f"{case.wait_seconds:g}"], result.gpu_seconds / 3600)
            by_policy.setdefault(case.scaler, []).append(point)
    means = {name: (mean([x for x, _ in some]), mean([y for _, y in some])) for name, some in by_policy.items()}
    best = [point for point in means.values() if not any(x >= point[0] and y < point[1] for x, y in means.values())]
    best.sort()
    axes.plot([x for x, _ in best], [y for _, y in best], color="grey", linewidth=0.8, zorder=1)
    for name, (x, y) in means.items():
        dots = axes.scatter([x], [y], s=60, label=name, zorder=3)
        some = by_policy[name]
        if len(some) > 1:
            axes.scatter([one[0] for one in some], [one[1] for one in some], s=8, color=dots.get_facecolor(), zorder=2)
    case = runs[0][0]
    axes.axvline(100 * case.attainment, color="grey", linewidth=0.8, linestyle="--")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"% of requests that started within {case.wait_seconds:g} s (dashed: promised)")
    axes.set_ylabel("GPU-hours")
    axes.legend(fontsize=8)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write the picture, the same bytes for the same figure, and let go of it."""
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot().close(figure)


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
