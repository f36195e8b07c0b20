"""`python -m tests.reality`: does the simulator agree with the real thing?

The same load runs twice: through a real RabbitMQ, the real service as a process of its own and KEDA's calls over
real gRPC (loadgen/keda.py), and through scaler/simulator. Time is compressed: the service runs on an event loop whose
clock is `speed` times as fast, so that every interval, timeout and constant of Pilotlight is scaled as KEDA's are.

A run and its simulation share the load, the cold starts (the n-th replica's is the same) and at which moments of their
periods the source is read, KEDA polls and the HPA syncs. Minutes long, and it measures time: no part of `make test`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import selectors
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import aio_pika

from loadgen.endpoints import RabbitEndpoint
from loadgen.experiment import Experiment, Plan
from loadgen.keda import Event, ScaledObject, Trigger
from loadgen.results import Point
from loadgen.workers import Phase as FleetPhase
from scaler.__main__ import Serving, serve
from scaler.core.model import Goals, ReplicaStep
from scaler.policies import slo, steps
from scaler.settings import ReadingSettings, RightsSettings, ServerSettings, Settings
from scaler.simulator.arrivals import Arrival, Bursts, Service, generate
from scaler.simulator.controllers import Pilot
from scaler.simulator.keda import OUR_BEHAVIOR, OUR_KEDA
from scaler.simulator.rules import HPA_SYNC_SECONDS, KedaSpec
from scaler.simulator.world import ColdStart, Outcome, Phase, World, WorldSpec
from scaler.state import read_recording
from tests.services import RabbitMQ, start_rabbitmq, unique

COLD_START_SECONDS, VARIATION = 30.0, 0.25
SERVICE = Service(mean_seconds=20.0, variation=0.5)
WAIT_SECONDS, ATTAINMENT = 60.0, 0.95
SAMPLE_SECONDS = 1.0  # as RabbitMQ is read over AMQP unless a trigger says otherwise
MAX_REPLICAS = 20
# Before the load: the service opens its clients, KEDA builds its HPA.
LEAD_SECONDS = 60.0
KEDA = KedaSpec(max_replicas=MAX_REPLICAS, cooldown_seconds=OUR_KEDA.cooldown_seconds)
TABLE = "1:2,6:5,21:10"
GOALS: dict[str, Goals] = {
    "steps": Goals(
        target_value=5.0,
        max_replicas=MAX_REPLICAS,
        steps=(ReplicaStep(waiting_from=1, replicas=2), ReplicaStep(waiting_from=6, replicas=5),
               ReplicaStep(waiting_from=21, replicas=10)),
    ),
    "slo": Goals(
        target_value=5.0, max_replicas=MAX_REPLICAS, wait_seconds=WAIT_SECONDS, attainment=ATTAINMENT,
        service_seconds=SERVICE.mean_seconds,
    ),
}  # fmt: skip
METADATA: dict[str, dict[str, str]] = {
    "steps": {"policy": "steps", "steps": TABLE},
    "slo": {
        "waitSeconds": f"{WAIT_SECONDS:g}",
        "attainment": f"{ATTAINMENT:g}",
        "serviceSeconds": f"{SERVICE.mean_seconds:g}",
    },
}
POLICIES: dict[str, Any] = {"steps": steps.POLICY, "slo": slo.POLICY}
# What is asked of the medians.
GPU_SECONDS_OFF, REPLICAS_CLOSE = 0.10, 0.95


# --- the service, on a faster clock ------------------------------------------------------------------------------


class _FastSelector(selectors.DefaultSelector):
    """Waits a `speed`-th of what it is asked to."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self._speed = speed

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(None if timeout is None else timeout / self._speed)


class _FastLoop(asyncio.SelectorEventLoop):
    """An event loop whose seconds are shorter than real ones."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        super().__init__(_FastSelector(speed))

    def time(self) -> float:
        return super().time() * self._speed


def _state_folder(folder: Path) -> Path:
    return folder / "state"


async def _serve(speed: float, ready_file: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    # What depends on this machine is as long as in real time.
    settings = Settings(
        server=ServerSettings(listen="127.0.0.1:0", hints_listen="127.0.0.1:0", metrics_listen=None),
        reading=ReadingSettings(
            read_timeout_seconds=5.0 * speed,
            connect_timeout_seconds=5.0 * speed,
            read_deadline_seconds=15.0 * speed,
            first_answer_seconds=10.0 * speed,
            report_valid_seconds=10.0 * speed,
        ),
        rules=(RightsSettings(private_addresses=True),),
        state_folder=str(_state_folder(ready_file.parent)),
    )

    def ready(serving: Serving) -> None:
        part = ready_file.with_suffix(".part")
        part.write_text(json.dumps(asdict(serving)))
        part.replace(ready_file)

    await serve(settings, ready=ready, stop=stop, clock=lambda: time.monotonic() * speed)


@contextmanager
def _service(speed: float, folder: Path) -> Iterator[tuple[str, str]]:
    """The addresses for KEDA and for reports of a service that runs `speed` times as fast."""
    ready_file, log = folder / "ready.json", folder / "service.log"
    arguments = [sys.executable, "-m", "tests.reality", "--serve", str(ready_file), "--speed", str(speed)]
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while not ready_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the service did not start:\n{log.read_text()}")
            time.sleep(0.05)
        addresses = json.loads(ready_file.read_text())
        yield addresses["grpc"], addresses["hints"]
    finally:
        process.terminate()
        process.wait(timeout=60)


# --- the same load, twice ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One run against its simulation, both up to the end of their last request; seconds of the experiment.

    `within_one_share`: of the time, the wanted replicas differ by at most one. `other_phases`: GPU-seconds of
    simulations in which KEDA and the HPA look at other moments: what differs by chance alone (5 %, 95 %).
    `twins_within_one_share`: the same share between simulations that differ in the moment of their samples only (5 %,
    median): how much hangs on that moment alone.
    """

    policy: str
    seed: int
    requests: int
    real_gpu_seconds: float
    simulated_gpu_seconds: float
    gpu_seconds_off: float
    within_one_share: float
    twins_within_one_share: tuple[float, float]
    real_starts: int
    simulated_starts: int
    real_p95_seconds: float
    simulated_p95_seconds: float
    real_within_share: float
    simulated_within_share: float
    most_replicas: int
    other_phases: tuple[float, float]
    failed_calls: int


def load(seed: int, minutes: float) -> list[Arrival]:
    """Bursts of a minute on a quiet base, a long silence in the second half, and a straggler at the end."""
    whole_seconds = 60.0 * minutes
    pattern = Bursts(quiet_rate_per_second=0.02, burst_rate_per_second=0.5, burst_seconds=60.0, every_seconds=330.0)
    chance = random.Random(seed)
    silent_from, silent_until = 0.5 * whole_seconds, 0.7 * whole_seconds
    arrivals = [
        Arrival(LEAD_SECONDS + arrival.at_seconds, arrival.service_seconds)
        for arrival in generate(pattern, SERVICE, chance, 0.95 * whole_seconds)
        if not silent_from <= arrival.at_seconds < silent_until
    ]
    return [*arrivals, Arrival(LEAD_SECONDS + whole_seconds, SERVICE.mean_seconds)]


@dataclass(frozen=True, slots=True)
class Stage:
    """Where runs take place: a broker, and the service's addresses for KEDA and for reports."""

    rabbitmq: RabbitMQ
    scaler_address: str
    hints_address: str
    speed: float


async def run_real(policy: str, arrivals: Sequence[Arrival], seed: int, stage: Stage) -> Experiment:
    """Through the broker, the service and KEDA's calls."""
    endpoint = RabbitEndpoint(url=stage.rabbitmq.amqp_url(), queue=unique("reality"))
    async with await aio_pika.connect(endpoint.url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(endpoint.queue, durable=True)
    metadata = {
        "source": "rabbitmq",
        "host": endpoint.url,
        "queueName": endpoint.queue,
        "mode": "QueueLength",
        "value": "5",
        "sampleSeconds": f"{SAMPLE_SECONDS:g}",
        "maxReplicas": str(MAX_REPLICAS),
        **METADATA[policy],
    }
    scaled_object = ScaledObject(
        namespace="reality",
        name=unique(policy),
        triggers=(Trigger(metadata=metadata),),
        keda=KEDA,
        hpa=KEDA.hpa(behavior=OUR_BEHAVIOR),
    )
    experiment = Experiment(
        Plan(
            endpoint=endpoint,
            arrivals=arrivals,
            scaled_object=scaled_object,
            scaler_address=stage.scaler_address,
            hints_address=stage.hints_address,
            phases=(FleetPhase(name="load", mean_seconds=COLD_START_SECONDS, variation=VARIATION),),
            speed=stage.speed,
            scaler_speed=stage.speed,
            seed=seed,
            within_seconds=WAIT_SECONDS,
            settle_seconds=300.0,
        )
    )
    await experiment.run()
    return experiment


class _Phases:
    """Says when the samples, the syncs and the polls of a simulation are, as shares of their periods."""

    def __init__(self, *shares: float) -> None:
        self._shares = list(shares)

    def random(self) -> float:
        return self._shares.pop(0)

    def expovariate(self, lambd: float, /) -> float:
        raise AssertionError(lambd)

    def lognormvariate(self, mu: float, sigma: float) -> float:
        raise AssertionError(mu, sigma)


def simulate(policy: str, arrivals: Sequence[Arrival], seed: int, phases: tuple[float, float, float]) -> Outcome:
    """Through the simulator; phases are shares of a sample's, a sync's and a poll's period."""
    spec = WorldSpec(cold_start=ColdStart((Phase("load", COLD_START_SECONDS, VARIATION),)), keep_timeline=True)
    pilot = Pilot(
        policy=POLICIES[policy],
        goals=GOALS[policy],
        chance=_Phases(*phases),
        keda=KEDA,
        sample_seconds=SAMPLE_SECONDS,
        sees_counters=False,  # over AMQP, RabbitMQ tells what waits and nothing else
        sees_in_flight=False,
    )
    return World(spec, arrivals, random.Random(seed)).run(pilot)


def compare(policy: str, seed: int, experiment: Experiment, recording: Path) -> Comparison:
    """The run against a simulation of the load that was really sent."""
    recorder, events = experiment.recorder, experiment.events
    arrivals = sorted(recorder.sent)
    scaled_object = experiment.plan.scaled_object
    assert scaled_object is not None
    rows = read_recording(recording, f"{scaled_object.namespace}/{scaled_object.name}")
    phases = (
        _phase([experiment.pace.from_unix_seconds(row.at_seconds) for row in rows], SAMPLE_SECONDS),
        _phase(_scaled(events, "hpa"), HPA_SYNC_SECONDS),
        _phase(_scaled(events, "poll"), KEDA.polling_seconds),
    )
    outcome = simulate(policy, arrivals, seed, phases)
    real_end = max(served.finished_at_seconds for served in recorder.served)
    end = min(real_end, outcome.end_at_seconds)
    chance = random.Random(0)
    others = sorted(
        simulate(policy, arrivals, seed + 1000 * (1 + index), (chance.random(), chance.random(), chance.random()))
        .gpu_seconds
        for index in range(40)
    )  # fmt: skip
    # How close simulations are to each other that differ in nothing but the moment of their samples.
    twins = sorted(
        _close(outcome.timeline, simulate(policy, arrivals, seed, (chance.random(), *phases[1:])), end)
        for _ in range(20)
    )  # fmt: skip
    real_gpu_seconds = _gpu_seconds(recorder.points, real_end)
    waits = sorted(served.wait_seconds for served in recorder.served)
    simulated_waits = sorted(outcome.waits_seconds)
    started = [event.replicas_after - event.replicas_before for event in events
               if event.replicas_after is not None and event.replicas_before is not None
               and event.at_seconds <= real_end]  # fmt: skip
    return Comparison(
        policy=policy,
        seed=seed,
        requests=len(recorder.served),
        real_gpu_seconds=real_gpu_seconds,
        simulated_gpu_seconds=outcome.gpu_seconds,
        gpu_seconds_off=outcome.gpu_seconds / real_gpu_seconds - 1.0,
        within_one_share=_close([(point.at_seconds, point.wanted) for point in recorder.points], outcome, end),
        twins_within_one_share=(twins[1], statistics.median(twins)),
        real_starts=sum(change for change in started if change > 0),
        simulated_starts=outcome.starts,
        real_p95_seconds=waits[int(0.95 * len(waits))],
        simulated_p95_seconds=simulated_waits[int(0.95 * len(simulated_waits))],
        real_within_share=sum(1 for wait in waits if wait <= WAIT_SECONDS) / len(waits),
        simulated_within_share=outcome.share_within(WAIT_SECONDS),
        most_replicas=max(point.wanted for point in recorder.points),
        other_phases=(others[2], others[-3]),
        failed_calls=sum(1 for event in events if event.kind == "failed" and event.at_seconds > LEAD_SECONDS),
    )


def _scaled(events: Sequence[Event], by: str) -> list[float]:
    """When it changed the replicas."""
    return [event.at_seconds for event in events if event.kind == "scaled" and event.by == by]


def _phase(moments: Sequence[float], period_seconds: float) -> float:
    """When in its period somebody looks, as a share: the circular mean of when it was seen to."""
    turns = [2 * math.pi * moment / period_seconds for moment in moments]
    mean = math.atan2(sum(map(math.sin, turns)), sum(map(math.cos, turns))) if turns else 0.0
    return mean / (2 * math.pi) % 1.0


def _gpu_seconds(points: Sequence[Point], end_at_seconds: float) -> float:
    """Replicas alive, terminating ones included, over time; a change counts from the middle of two points."""
    total = 0.0
    for before, later in pairwise(points):
        until = min(later.at_seconds, end_at_seconds)
        if until <= before.at_seconds:
            break
        alive = [point.ready + point.starting + point.terminating for point in (before, later)]
        total += (until - before.at_seconds) * sum(alive) / 2
    return total


def _close(points: Sequence[tuple[Any, ...]], outcome: Outcome, end_at_seconds: float) -> float:
    """The share of the seconds from the load's start on in which the wanted replicas differ by at most one.

    `points` begin with a moment and the replicas wanted from then on.
    """
    real_at, real = [point[0] for point in points], [point[1] for point in points]
    simulated_at = [entry[0] for entry in outcome.timeline]
    simulated = [entry[1] for entry in outcome.timeline]

    def at(moments: Sequence[float], values: Sequence[int], second: float) -> int:
        index = bisect_right(moments, second) - 1
        return values[index] if index >= 0 else 0

    seconds = range(int(LEAD_SECONDS), int(end_at_seconds))
    close = sum(1 for second in seconds if abs(at(real_at, real, second) - at(simulated_at, simulated, second)) <= 1)
    return close / len(seconds)


# --- the command -------------------------------------------------------------------------------------------------


async def _all(
    policies: Sequence[str], runs: int, minutes: float, stage: Stage, *, folder: Path, kept: bool
) -> list[Comparison]:
    """The runs of a policy side by side: they share the machine, the broker and the service, and nothing else."""
    seeds = range(1, runs + 1)
    loads = {seed: load(seed, minutes) for seed in seeds}
    found = []
    for policy in policies:
        experiments = await asyncio.gather(*(run_real(policy, loads[seed], seed, stage) for seed in seeds))
        for seed, experiment in zip(seeds, experiments, strict=True):
            if kept:
                record = {
                    "sent": experiment.recorder.sent,
                    "points": [asdict(point) for point in experiment.recorder.points],
                    "events": [asdict(event) for event in experiment.events],
                    "served": [asdict(served) for served in experiment.recorder.served],
                }
                (folder / f"{policy}-{seed}.json").write_text(json.dumps(record))
            found.append(compare(policy, seed, experiment, _state_folder(folder)))
    return found


def _medians(comparisons: Sequence[Comparison]) -> dict[str, dict[str, float | bool]]:
    """Of each policy: the median distance of GPU-seconds, the median share of the time within one replica."""
    found: dict[str, dict[str, float | bool]] = {}
    for policy in dict.fromkeys(one.policy for one in comparisons):
        ours = [one for one in comparisons if one.policy == policy]
        off = statistics.median(abs(one.gpu_seconds_off) for one in ours)
        close = statistics.median(one.within_one_share for one in ours)
        found[policy] = {
            "gpu_seconds_off": off,
            "within_one_share": close,
            "agrees": off <= GPU_SECONDS_OFF and close >= REPLICAS_CLOSE,
        }
    return found


def table(comparisons: Sequence[Comparison]) -> str:
    """The figures in Markdown."""
    columns = (
        "policy", "run", "requests", "GPU-seconds real", "simulated", "off", "by chance (5 to 95 %)",
        "within 1 replica", "by chance (5 %, median)", "starts real / simulated", "p95 wait real / simulated",
        "in time real / simulated",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [
        f"| {one.policy} | {one.seed} | {one.requests} | {one.real_gpu_seconds:,.0f} | "
        f"{one.simulated_gpu_seconds:,.0f} | {100 * one.gpu_seconds_off:+.1f} % | "
        f"{one.other_phases[0]:,.0f} to {one.other_phases[1]:,.0f} | {100 * one.within_one_share:.1f} % | "
        f"{100 * one.twins_within_one_share[0]:.1f} %, {100 * one.twins_within_one_share[1]:.1f} % | "
        f"{one.real_starts} / {one.simulated_starts} | "
        f"{one.real_p95_seconds:.0f} s / {one.simulated_p95_seconds:.0f} s | "
        f"{100 * one.real_within_share:.1f} % / {100 * one.simulated_within_share:.1f} % |"
        for one in comparisons
    ]
    for policy, median in _medians(comparisons).items():
        outcome = "agrees" if median["agrees"] else "falls short"
        text = (
            f"Median of {policy}: GPU-seconds {100 * median['gpu_seconds_off']:.1f} % apart (asked: at most "
            f"{100 * GPU_SECONDS_OFF:.0f} %), replicas within one for {100 * median['within_one_share']:.1f} % of "
            f"the time (asked: at least {100 * REPLICAS_CLOSE:.0f} %): {outcome}."
        )
        lines += ["", text]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reality", description=__doc__.splitlines()[0])
    parser.add_argument("--policy", action="append", choices=sorted(GOALS), help="several times; all unless given")
    parser.add_argument("--runs", type=int, default=3, help="loads, each with a seed of its own")
    parser.add_argument("--minutes", type=float, default=20.0, help="length of a load, before compression")
    parser.add_argument("--speed", type=float, default=4.0, help="experiment seconds to a real one, at most 10")
    parser.add_argument("--json", action="store_true", help="figures as JSON on standard output")
    parser.add_argument("--keep", type=Path, help="folder for the records of the runs")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not 1.0 <= arguments.speed <= 10.0:
        parser.error("--speed: expected 1 to 10")
    if arguments.serve is not None:
        with asyncio.Runner(loop_factory=lambda: _FastLoop(arguments.speed)) as runner:
            runner.run(_serve(arguments.speed, arguments.serve))
        return 0
    policies = arguments.policy or ["steps", "slo"]
    if arguments.keep is not None:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, start_rabbitmq() as rabbitmq:
        folder = arguments.keep or Path(home)
        (folder / "ready.json").unlink(missing_ok=True)
        with _service(arguments.speed, folder) as addresses:
            stage = Stage(rabbitmq, *addresses, arguments.speed)
            comparisons = asyncio.run(
                _all(policies, arguments.runs, arguments.minutes, stage, folder=folder, kept=arguments.keep is not None)
            )
    medians = _medians(comparisons)
    if arguments.json:
        figures = {
            "speed": arguments.speed,
            "minutes": arguments.minutes,
            "medians": medians,
            "runs": [asdict(comparison) for comparison in comparisons],
        }
        print(json.dumps(figures, indent=2))
        sys.stderr.write(table(comparisons) + "\n")
    else:
        print(table(comparisons))
    return 0 if all(median["agrees"] for median in medians.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
