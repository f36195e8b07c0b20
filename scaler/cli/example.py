"""`pilotlight example`: what a workload that sleeps most of the day costs, in the simulator.

The document-processor day: 17 documents a day within working hours, a cold start of 30 s, an H100 at 2.60 an hour,
under stock KEDA, with one replica that is always on, and under Pilotlight's SLO policy.
"""

from __future__ import annotations

import json as json_text
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from scaler.backtest.folders import prepared, written
from scaler.core.model import Goals
from scaler.policies import slo
from scaler.simulator.arrivals import DAY_SECONDS, HOUR_SECONDS, Arrival, Service, SparseDocuments, generate
from scaler.simulator.controllers import Pilot
from scaler.simulator.keda import Fixed, KedaHpa
from scaler.simulator.rules import KedaSpec
from scaler.simulator.world import Outcome, Scaler, World, WorldSpec, cold_start

DOCUMENTS_PER_DAY = 17
SERVICE = Service(mean_seconds=45.0, variation=0.5)
COLD_START_SECONDS = 30.0
COST_PER_HOUR = 2.60  # an H100
WAIT_SECONDS, ATTAINMENT = 60.0, 0.95
SQS_QUEUE_LENGTH = 5.0  # KEDA's default for aws-sqs-queue: queueLength
SQS_SAMPLE_SECONDS = 2.0
MONTH_DAYS = 30

_MARGIN_SECONDS = 1_800.0  # of the picture, around the documents of its day


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """An average day of one run. `share_within`: of the documents, started within the promised wait."""

    contender: str
    seed: int
    gpu_seconds: float
    cost: float
    share_within: float
    wait_p95_seconds: float
    starts: float


def example(
    *,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="runs, each with documents of its own")] = 5,
    days: Annotated[int, typer.Option(min=1, max=366, help="days of one run; figures are of an average day")] = 28,
    write: Annotated[Path | None, typer.Option(help="folder for document-day.md and its picture")] = None,
    json: Annotated[bool, typer.Option("--json", help="figures as JSON")] = False,
) -> None:
    """The document-processor day: 17 documents, three ways to run a GPU for them, and what each costs."""
    if write is not None:
        prepared("--write", write)
    results = [day(name, seed, days) for name in CONTENDERS for seed in range(1, seeds + 1)]
    if write is not None:
        with written("--write", write):
            (write / "document-day.md").write_text(page(results, days), encoding="utf-8")
            plot(write / "document-day.png", seed=1)
    if json:
        typer.echo(json_text.dumps({"days": days, "runs": [asdict(result) for result in results]}))
    elif write is None:
        typer.echo(summary(results))


def _keda(chance: random.Random) -> Scaler:
    spec = KedaSpec()  # poll 30 s, cooldown 300 s
    return KedaHpa(keda=spec, hpa=spec.hpa(), target=SQS_QUEUE_LENGTH, chance=chance)


def _always(_chance: random.Random) -> Scaler:
    return Fixed()


def _pilotlight(chance: random.Random) -> Scaler:
    goals = Goals(
        target_value=SQS_QUEUE_LENGTH,
        wait_seconds=WAIT_SECONDS,
        attainment=ATTAINMENT,
        gpu_cost_per_hour=COST_PER_HOUR,
    )
    return Pilot(policy=slo.POLICY, goals=goals, chance=chance, sample_seconds=SQS_SAMPLE_SECONDS, sees_counters=False)


ALWAYS_ON = "always on"
CONTENDERS: dict[str, Callable[[random.Random], Scaler]] = {
    ALWAYS_ON: _always,
    "stock KEDA": _keda,
    "Pilotlight slo": _pilotlight,
}


def documents(seed: int, days: int) -> list[Arrival]:
    """The documents of so many days, in order of time."""
    chance = random.Random(seed)  # noqa: S311 - a seeded load, no secret
    return list(generate(SparseDocuments(documents_per_day=DOCUMENTS_PER_DAY), SERVICE, chance, days * DAY_SECONDS))


def run(contender: str, seed: int, days: int, *, keep_timeline: bool = False) -> Outcome:
    """One run from zero knowledge; every contender has the same documents and the same cold starts."""
    spec = WorldSpec(
        cold_start=cold_start(COLD_START_SECONDS),
        initial_replicas=1 if contender == ALWAYS_ON else 0,
        keep_timeline=keep_timeline,
    )
    world = World(spec, documents(seed, days), random.Random(1_000 + seed))  # noqa: S311 - as above
    return world.run(CONTENDERS[contender](random.Random(2_000 + seed)))  # noqa: S311 - as above


def day(contender: str, seed: int, days: int) -> Day:
    """The average day of a run.

    A run ends with its last document: what is kept after that is not counted, except for "always on".
    """
    outcome = run(contender, seed, days)
    gpu_seconds = DAY_SECONDS if contender == ALWAYS_ON else outcome.gpu_seconds / days
    waits = sorted(outcome.waits_seconds)
    return Day(
        contender=contender,
        seed=seed,
        gpu_seconds=gpu_seconds,
        cost=gpu_seconds / HOUR_SECONDS * COST_PER_HOUR,
        share_within=outcome.share_within(WAIT_SECONDS),
        wait_p95_seconds=waits[max(math.ceil(0.95 * len(waits)) - 1, 0)],
        starts=outcome.starts / days,
    )


_HEAD = (
    "| | GPU-seconds a day | cost a day | cost a month | within 60 s | p95 wait | starts a day |\n"
    "|---|---:|---:|---:|---:|---:|---:|"
)


def summary(results: Sequence[Day]) -> str:
    """A row for each contender: the median over its runs."""
    lines = [_HEAD]
    for name in dict.fromkeys(result.contender for result in results):
        ours = [result for result in results if result.contender == name]

        def median(of: Callable[[Day], float], runs: Sequence[Day] = ours) -> float:
            return statistics.median(of(one) for one in runs)

        lines.append(
            _row(
                name,
                median(lambda one: one.gpu_seconds),
                median(lambda one: one.share_within),
                median(lambda one: one.wait_p95_seconds),
                median(lambda one: one.starts),
            )
        )
    return "\n".join(lines)


def _row(name: str, gpu_seconds: float, share: float, p95_seconds: float, starts: float) -> str:
    cost = gpu_seconds / HOUR_SECONDS * COST_PER_HOUR
    return (
        f"| {name} | {gpu_seconds:,.0f} | {cost:.2f} | {MONTH_DAYS * cost:,.2f} | {100 * share:.1f} % | "
        f"{p95_seconds:.0f} s | {starts:.1f} |"
    )


def page(results: Sequence[Day], days: int) -> str:
    """docs/examples/document-day.md."""
    seeds = len({result.seed for result in results})
    each = "\n".join(
        _row(
            f"{result.contender}, run {result.seed}",
            result.gpu_seconds,
            result.share_within,
            result.wait_p95_seconds,
            result.starts,
        )
        for result in results
    )
    return f"""# The document-processor day

Written by `pilotlight example --write docs/examples --seeds {seeds} --days {days}`; do not edit.

A service reads documents with a model on an H100 at {COST_PER_HOUR:.2f} an hour. {DOCUMENTS_PER_DAY} documents come a
day, at random moments between 8 and 18 o'clock; one takes {SERVICE.mean_seconds:g} s on average (lognormal, coefficient
of variation {SERVICE.variation:g}). A replica serves {COLD_START_SECONDS:g} s after its creation (coefficient of
variation 0.25). The promise: {ATTAINMENT:.0%} of the documents are begun within {WAIT_SECONDS:g} s.

- **always on**: one replica, day and night.
- **stock KEDA**: `aws-sqs-queue` with its defaults: poll every 30 s, cooldown 300 s, queueLength {SQS_QUEUE_LENGTH:g},
  the HPA as it is.
- **Pilotlight slo**: `waitSeconds: "{WAIT_SECONDS:g}"` as `external-push` on the same queue, read every
  {SQS_SAMPLE_SECONDS:g} s, `cooldownPeriod: 0`. Service time and cold start are learned from nothing.

All of it in the simulator, {seeds} runs of {days} days, each run with documents of its own and the same ones for
everybody. The median of the runs, an average day of each (a month is {MONTH_DAYS} days):

{summary(results)}

![One day: what waits, and the replicas of each](document-day.png)

Every run:

{_HEAD}
{each}

The work itself is {DOCUMENTS_PER_DAY} times {SERVICE.mean_seconds:g} s,
{DOCUMENTS_PER_DAY * SERVICE.mean_seconds:,.0f} GPU-seconds a day, and every wake from zero adds a cold start. Stock
KEDA also pays its cooldown after nearly every document, and lets a document wait for the next poll before the cold
start begins. Pilotlight reads the queue itself and pushes at once, and keeps the last replica only for as long as that
costs less than the cold start and the late document that it may save; KEDA's poll, up to 30 s later, takes it away.

What it leaves out: the time to schedule and to release a node (a cloud bills a GPU by the node), and SQS's approximate
counts, for which the service asks for a second read before it wakes a workload.
"""


def plot(path: Path, *, seed: int) -> None:
    """One day, the third, so that something has been learned: replicas over the hours, documents as marks.

    A fourth is run too, since a run ends with its last document.
    """
    from scaler.backtest.report import pyplot  # noqa: PLC0415 - only where a picture is asked for

    plt = pyplot()
    names = list(CONTENDERS)
    from_seconds, until_seconds = 2 * DAY_SECONDS, 3 * DAY_SECONDS
    arrived = [at for at, _ in documents(seed, 3) if at >= from_seconds]
    left = (arrived[0] - _MARGIN_SECONDS - from_seconds) / HOUR_SECONDS
    right = (arrived[-1] + _MARGIN_SECONDS - from_seconds) / HOUR_SECONDS
    figure, rows = plt.subplots(len(names), 1, sharex=True, figsize=(11, 6), constrained_layout=True)
    figure.suptitle("One day of the document processor", x=0.01, ha="left", fontsize=15, fontweight="bold")
    colors = {"ready": "#009E73", "starting": "#E69F00"}  # Okabe and Ito
    for name, axes in zip(names, rows, strict=True):
        outcome = run(name, seed, 4, keep_timeline=True)
        timeline = [(0.0, 1, 1, 0, 0)] if name == ALWAYS_ON else outcome.timeline
        moments = [entry[0] for entry in timeline] + [until_seconds + DAY_SECONDS]
        hours = [(at - from_seconds) / HOUR_SECONDS for at in moments]
        ready = [entry[2] for entry in timeline] + [timeline[-1][2]]
        starting = [entry[3] for entry in timeline] + [timeline[-1][3]]
        axes.fill_between(hours, ready, step="post", color=colors["ready"], lw=0, label="ready")
        both = [one + other for one, other in zip(ready, starting, strict=True)]
        axes.fill_between(hours, ready, both, step="post", color=colors["starting"], lw=0, label="starting")
        axes.plot(
            [(at - from_seconds) / HOUR_SECONDS for at in arrived],
            [-0.16] * len(arrived), "|", color="#0072B2", ms=9, mew=1.5, label="a document arrives",
        )  # fmt: skip
        pairs = [
            (at, wait) for at, wait in zip(outcome.arrived_at_seconds, outcome.waits_seconds, strict=True)
            if from_seconds <= at < until_seconds
        ]  # fmt: skip
        late = sum(1 for _, wait in pairs if wait > WAIT_SECONDS)
        axes.set_title(
            f"{name}: {len(pairs) - late} of {len(pairs)} documents begun within {WAIT_SECONDS:g} s",
            loc="left", fontsize=10,
        )  # fmt: skip
        axes.set_ylabel("replicas")
        axes.set_yticks(range(max(both) + 1))
        axes.set_ylim(-0.4, max(both) + 0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(left, right)
    rows[0].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=8, frameon=False)
    rows[-1].set_xlabel("hour of the day")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
