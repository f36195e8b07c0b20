"""A run as it happens: a live picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from loadgen.experiment import Experiment
from loadgen.keda import Event
from loadgen.reports import Why
from loadgen.results import Point, Summary

_BARS = " ▁▂▃▄▅▆▇█"
_PLAIN_EVERY_SECONDS = 3.0
_EVENTS_SHOWN = 6
_REASONS_SHOWN = 4
_MARGIN = 22  # columns beside a history: its label and numbers


class View(Protocol):
    """Shows a run; `update` is called a few times a second."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *error: object) -> None:
        """End; what was shown stays readable."""

    def update(self, experiment: Experiment, whys: Sequence[Why]) -> None:
        """Show the present."""


def view_for(console: Console, *, title: str, duration_seconds: float) -> View:
    """Live on a terminal, lines elsewhere."""
    if console.is_terminal:
        return LiveView(console, title=title, duration_seconds=duration_seconds)
    return PlainView(console)


def summary_table(summary: Summary, *, title: str, within_seconds: float | None = None) -> Table:
    """The figures for people."""

    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f} s"

    table = Table(title=title, show_header=False, title_justify="left")
    table.add_row("requests", f"{summary.requests}, served {summary.served}")
    table.add_row("wait p50", seconds(summary.wait_p50_seconds))
    table.add_row("wait p95", seconds(summary.wait_p95_seconds))
    table.add_row("wait p99", seconds(summary.wait_p99_seconds))
    if summary.within_share is not None and within_seconds is not None:
        table.add_row(f"within {within_seconds:g} s", f"{100 * summary.within_share:.1f} %")
    table.add_row("GPU-seconds", f"{summary.gpu_seconds:.0f}")
    table.add_row("replica starts", str(summary.starts))
    table.add_row("most replicas", str(summary.most_replicas))
    if summary.worker_errors:
        table.add_row("broker errors", f"{summary.worker_errors}, tried again")
    zero = "left and reached again" if summary.returned_to_zero else "left" if summary.left_zero else "never left"
    table.add_row("scale to zero", zero)
    return table


class PlainView:
    """A line every few seconds, and one for each change of the replicas."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_at_seconds = 0.0
        self._events_shown = 0

    def __enter__(self) -> Self:
        """Nothing to prepare."""
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to end."""

    def update(self, experiment: Experiment, whys: Sequence[Why]) -> None:
        """Print what is new."""
        for event in _scalings(experiment.events)[self._events_shown :]:
            self._print(_event_text(event))
            self._events_shown += 1
        if experiment.recorder.points and experiment.pace.now() >= self._next_at_seconds:
            point = experiment.recorder.points[-1]
            self._next_at_seconds = point.at_seconds + _PLAIN_EVERY_SECONDS
            self._print(
                f"{point.at_seconds:5.1f} s  waiting {point.waiting:3}  working {point.busy:3}  ready {point.ready:2}"
                f"  starting {point.starting:2}  decision: {_decision_text(whys)}"
            )

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


class LiveView:
    """Queue and replicas over time, the decision and why, and what KEDA and the HPA did."""

    def __init__(self, console: Console, *, title: str, duration_seconds: float) -> None:
        self._console = console
        self._title = title
        self._duration_seconds = duration_seconds
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        """Take the terminal."""
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the last picture standing."""
        self._live.__exit__(None, None, None)

    def update(self, experiment: Experiment, whys: Sequence[Why]) -> None:
        """Draw."""
        self._live.update(self._picture(experiment, whys), refresh=True)

    def _picture(self, experiment: Experiment, whys: Sequence[Why]) -> RenderableType:
        points = experiment.recorder.points
        if not points:
            return Panel("starting …", title=self._title)
        now = points[-1]
        columns = max(self._console.width - 6 - _MARGIN, 10)
        history = Table.grid(padding=(0, 1))
        history.add_column(width=8, justify="right", style="bold")
        history.add_column(width=columns)
        history.add_column(no_wrap=True)
        total = self._duration_seconds
        history.add_row(
            "queue",
            _history(points, total, columns, lambda point: point.waiting, "yellow"),
            f"[yellow]{now.waiting}[/] waiting",
        )
        history.add_row(
            "work", _history(points, total, columns, lambda point: point.busy, "blue"), f"[blue]{now.busy}[/] working"
        )
        most = max(point.ready + point.starting for point in points)
        history.add_row(
            "ready",
            _history(points, total, columns, lambda point: point.ready, "green", most=most),
            f"[green]{now.ready}[/] ready",
        )
        history.add_row(
            "starting",
            _history(points, total, columns, lambda point: point.starting, "magenta", most=most),
            f"[magenta]{now.starting}[/] starting",
        )
        history.add_row("", _axis(total, columns), "")
        details = Table.grid(padding=(0, 1))
        details.add_column(width=8, justify="right", style="bold")
        details.add_column()
        details.add_row()
        details.add_row("pods", _pods(now))
        details.add_row()
        details.add_row("decision", _why(whys))
        details.add_row()
        details.add_row("scale", _events(experiment.events))
        return Panel(
            Group(history, details),
            title=f"{self._title}  [dim]{now.at_seconds:.0f} of {total:.0f} s, Ctrl-C ends it earlier[/]",
            title_align="left",
            border_style="dim",
        )


def _history(
    points: Sequence[Point],
    total_seconds: float,
    columns: int,
    value: Callable[[Point], int],
    style: str,
    *,
    most: int | None = None,
) -> Text:
    """One bar per column of time: the most in it, or what was before where nothing was noted."""
    heights = [0] * columns
    column = -1
    for point in points:
        reached = min(int(point.at_seconds / total_seconds * columns), columns - 1)
        now = value(point)
        if reached == column:
            heights[column] = max(heights[column], now)
            continue
        heights[column + 1 : reached] = [heights[column]] * (reached - column - 1)
        heights[reached], column = now, reached
    highest = max(most or max(heights), 1)
    bars = "".join(_BARS[-(-height * (len(_BARS) - 1) // highest)] for height in heights[: column + 1])
    return Text(bars, style=style, no_wrap=True) + Text("·" * (columns - column - 1), style="dim")


def _axis(total_seconds: float, columns: int) -> Text:
    """Seconds under the histories."""
    marks = [" "] * (columns + 6)
    for share in (0.0, 0.25, 0.5, 0.75):
        start = int(share * columns)
        label = f"{share * total_seconds:.0f} s"
        marks[start : start + len(label)] = label
    return Text("".join(marks)[:columns], style="dim", no_wrap=True)


def _pods(point: Point) -> Text:
    text = Text()
    text.append("■ " * min(point.busy, point.ready), style="green")
    text.append("■ " * max(point.ready - point.busy, 0), style="dim green")
    text.append("□ " * point.starting, style="magenta")
    text.append("x " * point.terminating, style="dim")
    if not point.ready + point.starting + point.terminating:
        text.append("none: scaled to zero", style="dim")
    return text


def _why(whys: Sequence[Why]) -> Text:
    text = Text(_decision_text(whys, reasons=False), style="cyan")
    for why in whys:
        for reason in why.reasons[:_REASONS_SHOWN]:
            text.append(f"\n{reason}", style="default dim")
        if why.error:
            text.append(f"\n{why.error}", style="red")
    return text


def _events(events: Sequence[Event]) -> Text:
    return Text("\n".join(_event_text(event) for event in _scalings(events)[-_EVENTS_SHOWN:]) or "-")


def _decision_text(whys: Sequence[Why], *, reasons: bool = True) -> str:
    if not whys:
        return "none yet"
    parts = []
    for why in whys:
        replicas = "?" if why.desired_replicas is None else str(why.desired_replicas)
        unit = "replica" if replicas == "1" else "replicas"
        text = f"{replicas} {unit}, {'active' if why.active else 'inactive'}"
        if why.held:
            text += ", held"
        if reasons and why.reasons:
            text += f" ({why.reasons[0]})"
        parts.append(text)
    return " | ".join(parts)


_WHO = {"poll": "KEDA polled", "push": "Pilotlight pushed", "hpa": "the HPA synced", "reconcile": "KEDA"}


def _event_text(event: Event) -> str:
    return (
        f"{event.at_seconds:5.1f} s  {_WHO.get(event.by, event.by)}: "
        f"{event.replicas_before} → {event.replicas_after} replicas"
    )


def _scalings(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event.kind == "scaled"]
