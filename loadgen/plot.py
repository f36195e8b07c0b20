"""A run as a picture: the queue, the replicas, what each request waited. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loadgen.keda import Event
from loadgen.results import Recorder

# Colours that people with colour-blindness tell apart (Okabe and Ito).
_BLUE, _ORANGE, _GREEN, _GREY, _RED = "#0072B2", "#E69F00", "#009E73", "#999999", "#D55E00"


def plot_run(
    path: Path,
    recorder: Recorder,
    *,
    title: str,
    subtitle: str = "",
    events: Sequence[Event] = (),
    within_seconds: float | None = None,
) -> None:
    """Write the picture as PNG."""
    import matplotlib as mpl  # noqa: PLC0415 - half a second and 40 MiB, only where a picture is asked for

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - as above

    points = recorder.points
    at_seconds = [point.at_seconds for point in points]
    figure, (queue, replicas, waits) = plt.subplots(
        3, 1, sharex=True, figsize=(10, 8), height_ratios=[1, 1.5, 1], constrained_layout=True
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold")
    queue.set_title(subtitle, loc="left", fontsize=10, color="#555555")

    queue.fill_between(at_seconds, [point.waiting for point in points], color=_ORANGE, alpha=0.8, lw=0, label="waiting")
    queue.plot(at_seconds, [point.busy for point in points], color=_BLUE, lw=1.6, label="being worked on")
    queue.set_ylabel("requests")

    bands = {
        "ready": ([point.ready for point in points], _GREEN),
        "starting": ([point.starting for point in points], _ORANGE),
        "terminating": ([point.terminating for point in points], _GREY),
    }
    replicas.stackplot(
        at_seconds,
        [values for values, _ in bands.values()],
        labels=list(bands),
        colors=[color for _, color in bands.values()],
        alpha=0.85,
        step="post",
        lw=0,
    )
    replicas.step(at_seconds, [point.wanted for point in points], where="post", color="black", lw=1.2, label="wanted")
    for event in events:
        if event.kind == "scaled":
            replicas.annotate(
                f"{event.by}\n{event.replicas_before}→{event.replicas_after}",
                (event.at_seconds, max(event.replicas_before or 0, event.replicas_after or 0)),
                textcoords="offset points",
                xytext=(3, 3),
                fontsize=8,
                color="#333333",
            )
    replicas.set_ylabel("replicas")
    replicas.margins(y=0.25)

    served = recorder.served
    waits.scatter(
        [one.created_at_seconds for one in served], [one.wait_seconds for one in served], s=12, color=_BLUE, alpha=0.6,
        label="one request", lw=0,
    )  # fmt: skip
    if within_seconds is not None:
        waits.axhline(within_seconds, color=_RED, lw=1.2, ls="--", label=f"promised: {within_seconds:g} s")
    waits.set_ylabel("wait, seconds")
    waits.set_xlabel("seconds")

    for axes in (queue, replicas, waits):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.legend(loc="upper right", fontsize=8, frameon=False, ncols=4, bbox_to_anchor=(1.0, 1.14))
        if at_seconds:
            axes.set_xlim(0, 1.03 * at_seconds[-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
