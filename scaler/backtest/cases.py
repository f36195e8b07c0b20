"""One run: a trace, a cold start, a seed and who scales; a plain value in, a plain value out, fit for any process."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from scaler.backtest.sensitivity import varied_policy
from scaler.backtest.traces import load_trace
from scaler.core.answers import JOBS
from scaler.core.model import Goals
from scaler.errors import PilotlightError
from scaler.plugins import policies
from scaler.simulator.arrivals import Arrival
from scaler.simulator.baselines import Backlog, KedaConfig, Knative, RayServe, stock_keda
from scaler.simulator.controllers import Pilot
from scaler.simulator.jobs import Answered, JobWorld, Reader, backlogged, strategy_of
from scaler.simulator.keda import Fixed
from scaler.simulator.rules import JobSpec, JobStrategy
from scaler.simulator.world import Outcome, Scaler, World, WorldSpec, cold_start

BLOCKS = 56  # of a trace, for block bootstrap: a quarter of a day of a fortnight
BASELINES = ("keda", "keda-fast", "knative", "ray", "sagemaker", "fixed", "keda-tuned")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is run. `scaler`: a policy of ours, a baseline, "fixed" with `replicas`, or "keda-tuned" with `keda`.

    `job_strategy`: the workload is a ScaledJob with this strategy, whose jobs end after `requests_per_job` (None: when
    nothing waits); `scaler` is "jobs" (Pilotlight's `answer: jobs`) or "keda" with `target_value`.
    `varied`: a constant of policy slo, as "module:NAME", and the factor it is multiplied by. `most_gpu_seconds`: a run
    that has cost more is stopped.
    """

    trace: str
    cold_start_seconds: float
    scaler: str
    seed: int = 1
    wait_seconds: float | None = None
    attainment: float = 0.95
    concurrency: int = 1
    variation: float = 0.25
    replicas: int = 0
    keda: KedaConfig | None = None
    sees_replicas: bool = True
    fast_scale: bool = False
    steps: tuple[Any, ...] = ()
    target_value: float = 5.0
    max_replicas: int = 100
    service_seconds: float = 10.0
    days: float = 1.0
    keep_timeline: bool = False
    varied: tuple[str, float] | None = None
    job_strategy: str | None = None
    requests_per_job: int | None = 1
    most_gpu_seconds: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came out. `shares`: by wait in seconds, the share of requests that started within it.

    `blocks`: for each block of the trace (requests, GPU-seconds, and for each wait of `shares` those in time).
    `stopped`: it cost more than `most_gpu_seconds`; what it would have come to is not known, and its shares are 0.
    """

    requests: int
    gpu_seconds: float
    busy_seconds: float
    starts: int
    reversals: int
    waits_seconds: dict[str, float]
    shares: dict[str, float]
    blocks: tuple[tuple[float, ...], ...]
    end_at_seconds: float
    looks: int
    timeline: tuple[tuple[float, int, int, int, int], ...] = field(default=())
    stopped: bool = False


@lru_cache(maxsize=5)
def cached_trace(name: str, service_seconds: float, days: float) -> tuple[Arrival, ...]:
    """The trace, read once a process."""
    return tuple(load_trace(name, service_seconds=service_seconds, days=days))


def warm_up_seconds(cold_start_seconds: float) -> float:
    """What is run but not scored."""
    return max(600.0, 5.0 * cold_start_seconds)


def first_replicas(trace: tuple[Arrival, ...], cold_start_seconds: float, concurrency: int) -> int:
    """The warm replicas that everybody starts with: the load of the span that is not scored."""
    span_seconds = warm_up_seconds(cold_start_seconds)
    work = sum(arrival.service_seconds for arrival in trace if arrival.at_seconds < span_seconds)
    return max(1, math.ceil(work / span_seconds / concurrency))


def run(case: Case) -> Result:
    """One simulation. Raises PilotlightError for a scaler nobody knows."""
    trace = cached_trace(case.trace, case.service_seconds, case.days)
    from_seconds = warm_up_seconds(case.cold_start_seconds)
    initial = first_replicas(trace, case.cold_start_seconds, case.concurrency)
    if case.scaler == "fixed":
        initial = case.replicas
    elif case.keda is not None:
        initial = max(initial, case.keda.min_replicas)
    span_seconds = max(trace[-1].at_seconds - from_seconds, 1.0)
    spec = WorldSpec(
        cold_start=cold_start(case.cold_start_seconds, case.variation),
        concurrency=case.concurrency,
        initial_replicas=initial,
        scored_from_seconds=from_seconds,
        block_seconds=span_seconds / BLOCKS,
        keep_timeline=case.keep_timeline,
        most_gpu_seconds=case.most_gpu_seconds,
    )
    world = World(spec, trace, random.Random(case.seed))  # noqa: S311 - simulation
    outcome = world.run(scaler_of(case))
    return _result(case, outcome, from_seconds, span_seconds / BLOCKS)


def simulated(case: Case) -> Result:
    """One simulation of whatever the case is about. Raises PilotlightError for a scaler or strategy nobody knows."""
    return run(case) if case.job_strategy is None else run_jobs(case)


def run_jobs(case: Case) -> Result:
    """One simulation with a ScaledJob. Raises PilotlightError for a scaler or strategy nobody knows."""
    strategy = strategy_of(case.job_strategy or "")
    if strategy is None:
        allowed = ", ".join(one.value for one in JobStrategy)
        raise PilotlightError(f'ScaledJob strategy "{case.job_strategy}" is unknown; there are: {allowed}')
    reader: Reader
    if case.scaler == "jobs":
        goals = Goals(target_value=1.0, concurrency=case.concurrency, max_replicas=case.max_replicas)
        reader = Answered(policy=JOBS, goals=goals)
    elif case.scaler == "keda":
        reader = backlogged(strategy, case.target_value)
    else:
        raise PilotlightError(f'"{case.scaler}" does not scale a ScaledJob here; jobs and keda do')
    trace = cached_trace(case.trace, case.service_seconds, case.days)
    from_seconds = warm_up_seconds(case.cold_start_seconds)
    block_seconds = max(trace[-1].at_seconds - from_seconds, 1.0) / BLOCKS
    world = JobWorld(
        spec=WorldSpec(
            cold_start=cold_start(case.cold_start_seconds, case.variation),
            concurrency=case.concurrency,
            scored_from_seconds=from_seconds,
            block_seconds=block_seconds,
            keep_timeline=case.keep_timeline,
        ),
        job=JobSpec(strategy=strategy, max_replicas=case.max_replicas),
        reader=reader,
        trace=trace,
        chance=random.Random(case.seed),  # noqa: S311 - simulation
        requests_per_job=case.requests_per_job,
    )
    outcome = world.run(random.Random(case.seed + 1))  # noqa: S311 - simulation
    return _result(case, outcome, from_seconds, block_seconds)


def scaler_of(case: Case) -> Scaler:
    """Who scales in this case."""
    chance = random.Random(case.seed + 1)  # noqa: S311 - simulation
    name = case.scaler
    if name == "fixed":
        return Fixed()
    if name == "keda-tuned" and case.keda is not None:
        return case.keda.scaler(case.concurrency, chance)
    if name in {"keda", "keda-fast"}:
        return stock_keda(chance, fast=name == "keda-fast")
    if name == "knative":
        return Knative(concurrency=case.concurrency, chance=chance, max_replicas=case.max_replicas)
    if name == "ray":
        return RayServe(concurrency=case.concurrency, chance=chance, max_replicas=case.max_replicas)
    if name == "sagemaker":
        return Backlog(chance=chance, max_replicas=case.max_replicas)
    known = policies()
    if name not in known:
        allowed = ", ".join(sorted({*known, *BASELINES}))
        raise PilotlightError(f'policy "{name}" is unknown; there are: {allowed}')
    goals = Goals(
        target_value=case.target_value,
        wait_seconds=case.wait_seconds,
        attainment=case.attainment,
        concurrency=case.concurrency,
        max_replicas=case.max_replicas,
        steps=case.steps,
    )
    problems = known[name].problems(goals)
    if problems:
        raise PilotlightError("; ".join(f"policy {name}: {key}: {expected}" for key, expected in problems))
    return Pilot(
        policy=known[name] if case.varied is None else varied_policy(*case.varied),
        goals=goals,
        chance=chance,
        sees_replicas=case.sees_replicas,
        sees_use_only=by_use(name),
        fast_scale=case.fast_scale,
    )


def by_use(name: str) -> bool:
    """Whether this policy is about how busy replicas are, in percent, and not about a queue."""
    return name.partition("+")[0] == "utilization"


def run_all(cases: Iterable[Case], *, processes: int) -> Iterator[tuple[Case, Result]]:
    """Every case with its result, as they finish; in this process where one is enough.

    Cases are taken one by one, shortly before they run: an iterator that ends early ends the work.
    """
    if processes <= 1:
        for case in cases:
            yield case, simulated(case)
        return
    with ProcessPoolExecutor(max_workers=processes) as pool:
        running: dict[Future[Result], Case] = {}
        for case in cases:
            running[pool.submit(simulated, case)] = case
            while len(running) > processes:
                yield from _finished(running)
        while running:
            yield from _finished(running)


def _finished(running: dict[Future[Result], Case]) -> list[tuple[Case, Result]]:
    done, _ = wait_for(running, return_when=FIRST_COMPLETED)
    return [(running.pop(one), one.result()) for one in done]


def as_plain(result: Result) -> dict[str, Any]:
    """For JSON; without the timeline."""
    plain = asdict(result)
    del plain["timeline"]
    return plain


def from_plain(plain: dict[str, Any]) -> Result:
    """From `as_plain`."""
    return Result(**{**plain, "blocks": tuple(tuple(block) for block in plain["blocks"])})


def _result(case: Case, outcome: Outcome, from_seconds: float, block_seconds: float) -> Result:
    total = len(outcome.waits_seconds)
    limits = {case.cold_start_seconds * factor for factor in (0.5, 1.0, 2.0)}
    if case.wait_seconds is not None:
        limits.add(case.wait_seconds)
    waits = sorted(limits)
    if outcome.stopped:
        return Result(
            requests=total,
            gpu_seconds=outcome.gpu_seconds,
            busy_seconds=outcome.busy_seconds,
            starts=outcome.starts,
            reversals=outcome.reversals,
            waits_seconds={},
            shares=dict.fromkeys([f"{wait:g}" for wait in waits], 0.0),
            blocks=(),
            end_at_seconds=outcome.end_at_seconds,
            looks=outcome.looks,
            stopped=True,
        )
    ordered = sorted(outcome.waits_seconds)
    blocks = [[0.0] * (2 + len(waits)) for _ in range(BLOCKS)]
    for block, gpu_seconds in enumerate(outcome.gpu_seconds_by_block):
        blocks[min(block, BLOCKS - 1)][1] += gpu_seconds
    for at_seconds, wait in zip(outcome.arrived_at_seconds, outcome.waits_seconds, strict=True):
        row = blocks[min(int((at_seconds - from_seconds) / block_seconds), BLOCKS - 1)]
        row[0] += 1
        for index in range(bisect.bisect_left(waits, wait), len(waits)):
            row[2 + index] += 1
    return Result(
        requests=total,
        gpu_seconds=outcome.gpu_seconds,
        busy_seconds=outcome.busy_seconds,
        starts=outcome.starts,
        reversals=outcome.reversals,
        waits_seconds={
            name: ordered[min(int(share * total), total - 1)] if total else 0.0
            for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
        },
        shares={f"{wait:g}": bisect.bisect_right(ordered, wait) / total if total else 1.0 for wait in waits},
        blocks=tuple(tuple(round(value, 1) for value in row) for row in blocks),
        end_at_seconds=outcome.end_at_seconds,
        looks=outcome.looks,
        timeline=tuple(outcome.timeline),
    )
