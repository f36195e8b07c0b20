"""The pictures of docs/policies.md, from the simulator with fixed seeds: `make pictures`."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scaler.backtest.folders import prepared, written
from scaler.backtest.report import pyplot, save
from scaler.core.model import Goals
from scaler.errors import PilotlightError
from scaler.plugins import policies
from scaler.simulator.arrivals import Arrival, Bursts, Poisson, Service, generate
from scaler.simulator.baselines import stock_keda
from scaler.simulator.controllers import Pilot
from scaler.simulator.world import Outcome, Scaler, World, WorldSpec, cold_start

DAY_SECONDS = 86_400.0
HOUR_SECONDS = 3_600.0
COLD_START_SECONDS = 60.0
WAIT_SECONDS = 120.0
SHORT_WAIT_SECONDS = 30.0
ATTAINMENT = 0.95
SEED = 1

# Quiet nights, and from eight o'clock on bursts of twenty minutes: about 960 requests, eight replicas' work.
BURSTY_DAY = Bursts(
    quiet_rate_per_second=0.004,
    burst_rate_per_second=0.8,
    burst_seconds=1_200.0,
    every_seconds=7_200.0,
    first_seconds=8 * HOUR_SECONDS,
    irregularity=0.6,
)
_READY, _STARTING, _WAITING = "#2a78b5", "#f0a13a", "#b3261e"


def seeded(seed: int = SEED) -> random.Random:
    """Chance that is the same for everybody."""
    return random.Random(seed)  # noqa: S311 - simulation


def pilot(*, wait_seconds: float = WAIT_SECONDS, sees_replicas: bool = True) -> Pilot:
    """`policy: slo` as a user gets it: 95 % within two minutes unless said otherwise, at most 20 replicas."""
    goals = Goals(target_value=5.0, wait_seconds=wait_seconds, attainment=ATTAINMENT, max_replicas=20)
    return Pilot(
        policy=policies()["slo"], goals=goals, chance=seeded(SEED + 1), sees_replicas=sees_replicas, keep_decisions=True
    )


def bursty_day() -> tuple[Arrival, ...]:
    """The requests of the day, each of ten seconds or so."""
    chance = seeded()
    return tuple(generate(BURSTY_DAY, Service(mean_seconds=10.0, variation=0.5), chance, DAY_SECONDS))


def played(scaler: Scaler, trace: Sequence[Arrival]) -> Outcome:
    """One run from zero replicas."""
    spec = WorldSpec(cold_start=cold_start(COLD_START_SECONDS), keep_timeline=True)
    return World(spec, trace, seeded()).run(scaler)


@dataclass(slots=True)
class Watched:
    """A Pilot whose hold of the first replica is written down, with the idle gaps that it learned from."""

    pilot: Pilot
    holds: list[tuple[float, float]] = field(default_factory=list)
    gaps: list[tuple[float, float, bool]] = field(default_factory=list)  # (at, seconds, replica still there)
    _idle_since_seconds: float | None = None

    def begin(self, world: World) -> float:
        """As the Pilot."""
        return self.pilot.begin(world)

    def arrived(self, world: World, now_seconds: float) -> float:
        """As the Pilot."""
        return self.pilot.arrived(world, now_seconds)

    def look(self, world: World, now_seconds: float) -> float:
        """As the Pilot; afterwards its memory is read."""
        there = world.replicas > 0
        after = self.pilot.look(world, now_seconds)
        if world.in_system and self._idle_since_seconds is not None:
            self.gaps.append((now_seconds, now_seconds - self._idle_since_seconds, there))
            self._idle_since_seconds = None
        elif not world.in_system and self._idle_since_seconds is None:
            self._idle_since_seconds = now_seconds
        timeouts_seconds = self.pilot.memory.state.holds.timeouts_seconds
        if timeouts_seconds:
            self.holds.append((now_seconds, timeouts_seconds[0]))
        return after


def changing_gaps() -> tuple[Arrival, ...]:
    """A day with a request every two minutes, then two days with one every forty."""
    chance, service = seeded(), Service(mean_seconds=10.0, variation=0.5)
    busy = [*generate(Poisson(rate_per_second=1 / 120.0), service, chance, DAY_SECONDS)]
    sparse = generate(Poisson(rate_per_second=1 / 2400.0), service, chance, 2 * DAY_SECONDS)
    return (*busy, *(Arrival(DAY_SECONDS + at, seconds) for at, seconds in sparse))


def draw_day(folder: Path) -> list[str]:
    """The whole day and one burst of it, under stock KEDA and under slo; a line of figures for each."""
    trace = bursty_day()
    seen = pilot()
    runs = [
        ("stock KEDA (5 requests a replica, cooldown 300 s)", played(stock_keda(seeded(SEED + 1)), trace)),
        ("policy: slo (95 % within 120 s)", played(seen, trace)),
    ]
    unseen = ("policy: slo, without a view of replicas", played(pilot(sees_replicas=False), trace))
    _draw(runs, folder / "day.png", 7.0, 24.0)
    burst_hour = BURSTY_DAY.first_seconds / HOUR_SECONDS
    _draw(runs, folder / "burst.png", burst_hour - 0.05, burst_hour + 0.6, minutes=True)
    return [*(_figures(name, outcome) for name, outcome in (*runs, unseen)), *_explained(seen)]


def _explained(pilot: Pilot) -> list[str]:
    """The first decision of a burst that asks for five replicas or more, and the one that lets the first go, whole."""
    at = [d.at_seconds >= BURSTY_DAY.first_seconds and d.desired_replicas >= 5 for d in pilot.decisions].index(True)
    before = [decision.desired_replicas for decision in pilot.decisions]
    fewer = next(index for index in range(at, len(before)) if before[index] < before[index - 1])
    lines = []
    for decision in (pilot.decisions[at], pilot.decisions[fewer]):
        lines.append(f"at {decision.at_seconds:.0f} s: {decision.desired_replicas} replicas")
        lines += [f"  {step.name}: {step.before:g} -> {step.after:g}: {step.text()}" for step in decision.steps]
    return lines


def draw_hold(folder: Path) -> list[str]:
    """How long the last replica is held, and the idle gaps that this follows."""
    plt = pyplot()
    watched = Watched(pilot(wait_seconds=SHORT_WAIT_SECONDS))
    outcome = played(watched, changing_gaps())
    figure, axes = plt.subplots(figsize=(9.0, 3.6))
    for kept, label, colour in ((True, "gap, replica kept", _READY), (False, "gap, replica let go", _WAITING)):
        some = [(at, seconds) for at, seconds, there in watched.gaps if there is kept and seconds > 0]
        axes.scatter(
            [at / HOUR_SECONDS for at, _ in some], [gap for _, gap in some], s=9, alpha=0.55, color=colour, label=label
        )
    axes.step(
        [at / HOUR_SECONDS for at, _ in watched.holds],
        [max(hold, 1.0) for _, hold in watched.holds],
        where="post",
        color="black",
        linewidth=1.6,
        label="hold of the last replica",
    )
    axes.set_yscale("log")
    axes.set_ylim(5, 20_000)
    axes.set_yticks([10, 60, 600, 3_600], ["10 s", "1 min", "10 min", "1 h"])
    axes.minorticks_off()
    axes.set_xlim(0, 72)
    axes.set_xticks(range(0, 73, 12))
    axes.axvline(24, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xlabel("hours")
    axes.set_ylabel("seconds idle")
    axes.set_title("A request every 2 minutes, after a day one every 40", fontsize=10)
    axes.legend(fontsize=8, loc="upper left")
    save(figure, folder / "hold.png")
    return [_figures("hold", outcome, SHORT_WAIT_SECONDS)]


def _draw(
    runs: Sequence[tuple[str, Outcome]],
    path: Path,
    from_hour: float,
    to_hour: float,
    *,
    minutes: bool = False,
) -> None:
    def shown(points: Sequence[tuple[float, ...]]) -> list[float]:
        return [(point[0] / HOUR_SECONDS - from_hour) * 60 if minutes else point[0] / HOUR_SECONDS for point in points]

    plt = pyplot()
    rows = 2 * len(runs)
    heights = [2.2, 1.0] * len(runs)
    figure, panels = plt.subplots(rows, 1, figsize=(9.0, 6.4), sharex=True, height_ratios=heights)
    queues = [_part(_queue(outcome), from_hour * HOUR_SECONDS, to_hour * HOUR_SECONDS) for _, outcome in runs]
    most_waiting = max(point[1] for queue in queues for point in queue)
    for index, ((name, outcome), queue) in enumerate(zip(runs, queues, strict=True)):
        above, below = panels[2 * index], panels[2 * index + 1]
        points = _part(outcome.timeline, from_hour * HOUR_SECONDS, to_hour * HOUR_SECONDS)
        ready = [point[2] for point in points]
        alive = [point[2] + point[3] for point in points]
        above.fill_between(shown(points), ready, step="post", color=_READY, linewidth=0, label="ready")
        above.fill_between(shown(points), ready, alive, step="post", color=_STARTING, linewidth=0, label="starting")
        above.set_ylim(0, 21)
        above.set_ylabel("replicas")
        above.set_title(f"{name}: {_short(outcome)}", fontsize=10, loc="left")
        waiting = [point[1] for point in queue]
        below.fill_between(shown(queue), waiting, step="post", color=_WAITING, linewidth=0)
        below.set_ylim(0, 1.1 * most_waiting)
        below.set_ylabel("waiting")
        below.set_xlim(shown(points)[0], shown(points)[-1])
    panels[0].legend(fontsize=8, loc="upper right")
    panels[-1].set_xlabel("minutes" if minutes else "hour of the day")
    save(figure, path)


def _queue(outcome: Outcome) -> list[tuple[float, ...]]:
    """(at, requests that wait), whenever that changes."""
    changes = []
    for at, waited in zip(outcome.arrived_at_seconds, outcome.waits_seconds, strict=True):
        if waited > 0:
            changes += [(at, 1), (at + waited, -1)]
    waiting = 0
    queue: list[tuple[float, ...]] = []
    for at, change in sorted(changes):
        waiting += change
        queue.append((at, float(waiting)))
    return queue


def _part(points: Sequence[tuple[float, ...]], from_seconds: float, until_seconds: float) -> list[tuple[float, ...]]:
    """What holds from one moment to another, with the state at both ends; nothing before the first point."""
    before = [point for point in points if point[0] <= from_seconds]
    start = before[-1] if before else (0.0,) * len(points[0])
    part = [(from_seconds, *start[1:]), *(point for point in points if from_seconds < point[0] < until_seconds)]
    return [*part, (until_seconds, *part[-1][1:])]


def _short(outcome: Outcome, wait_seconds: float = WAIT_SECONDS) -> str:
    share = outcome.share_within(wait_seconds)
    return f"{share:.1%} start within {wait_seconds:.0f} s, {outcome.gpu_seconds / HOUR_SECONDS:.1f} GPU-hours"


def _figures(name: str, outcome: Outcome, wait_seconds: float = WAIT_SECONDS) -> str:
    work_hours = outcome.busy_seconds / HOUR_SECONDS
    return f"{name}: {_short(outcome, wait_seconds)} ({work_hours:.1f} of them work), {outcome.starts} starts"


def main(folder: Path = Path("docs/pictures")) -> None:
    """Draw every picture into `folder` and print the figures. Raises PilotlightError where it can't be written."""
    prepared("the folder", folder)
    with written("the folder", folder):
        figures = [*draw_day(folder), *draw_hold(folder)]
    sys.stdout.write("\n".join(figures) + "\n")


if __name__ == "__main__":
    try:
        main()
    except PilotlightError as err:
        sys.stderr.write(f"pictures: {err}\n")
        sys.exit(2)
