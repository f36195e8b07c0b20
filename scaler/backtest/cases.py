"""One run: a trace, a cold start, a seed and who scales; a plain value in, a plain value out, fit for any process."""

from __future__ import annotations

import bisect
import math
import multiprocessing
import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import asdict, dataclass, field, replace
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
from scaler.simulator.keda import OUR_KEDA, Fixed
from scaler.simulator.rules import JobSpec, JobStrategy
from scaler.simulator.world import Outcome, Scaler, World, WorldSpec, cold_start

BLOCKS = 56  # of a trace, for block bootstrap: a quarter of a day of a fortnight
BASELINES = ("keda", "keda-fast", "knative", "ray", "sagemaker", "fixed")
MOST_POINTS = 2_000  # of what waits over time, for plots
QUANTILES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is run. `scaler`: a policy of ours, a baseline, "fixed" with `replicas`, or "keda-tuned" with `keda`.

    `job_strategy`: the workload is a ScaledJob with this strategy, whose jobs end after `requests_per_job` (None: when
    nothing waits); `scaler` is "jobs" (Pilotlight's `answer: jobs`) or "keda" with `target_value`.
    `score_from_seconds`: where scoring begins; None: after the warm-up. `keep_timeline`: keep what plots need.
    `sees_counters`, `sees_in_flight`: what a policy's source tells, as in Pilot.
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
    sees_counters: bool = True
    sees_in_flight: bool = True
    fast_scale: bool = False
    steps: tuple[Any, ...] = ()
    target_value: float = 5.0
    max_replicas: int = 100
    service_seconds: float = 10.0
    days: float = 1.0
    keep_timeline: bool = False
    score_from_seconds: float | None = None
    varied: tuple[str, float] | None = None
    job_strategy: str | None = None
    requests_per_job: int | None = 1
    most_gpu_seconds: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came out. `shares`: by wait in seconds, the share of requests that started within it.

    `blocks`: for each block of the trace (requests, GPU-seconds, and for each wait of `shares` those in time).
    `stopped`: it cost more than `most_gpu_seconds`; what it would have come to is not known, and its shares are 0.
    Kept for plots only: `timeline` as in Outcome, `waiting` (from, until, most requests that waited in between) and
    `wait_quantiles_seconds`, evenly from the shortest to the longest.
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
    waiting: tuple[tuple[float, float, int], ...] = field(default=())
    wait_quantiles_seconds: tuple[float, ...] = field(default=())
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


def scored_from_seconds(case: Case) -> float:
    """Before it, requests are run but not scored."""
    return warm_up_seconds(case.cold_start_seconds) if case.score_from_seconds is None else case.score_from_seconds


def run(case: Case) -> Result:
    """One simulation of a ScaledObject. Raises PilotlightError for a scaler nobody knows."""
    trace = cached_trace(case.trace, case.service_seconds, case.days)
    from_seconds, block_seconds = _scored(case, trace)
    initial = first_replicas(trace, case.cold_start_seconds, case.concurrency)
    if case.scaler == "fixed":
        initial = case.replicas
    elif case.keda is not None:
        initial = max(initial, case.keda.min_replicas)
    spec = WorldSpec(
        cold_start=cold_start(case.cold_start_seconds, case.variation),
        concurrency=case.concurrency,
        initial_replicas=initial,
        scored_from_seconds=from_seconds,
        block_seconds=block_seconds,
        keep_timeline=case.keep_timeline,
        most_gpu_seconds=case.most_gpu_seconds,
    )
    world = World(spec, trace, random.Random(case.seed))  # noqa: S311 - simulation
    result = _result(case, world.run(scaler_of(case)), from_seconds, block_seconds)
    return _with_plots(case, result, trace, world._waits)  # noqa: SLF001 - an Outcome lacks what came before scoring


def simulated(case: Case) -> Result:
    """One simulation of whatever the case is about. Raises PilotlightError for a scaler or strategy nobody knows.

    A policy whose constant was varied may fail on that: then the run is `stopped` and cost nothing.
    """
    if case.job_strategy is not None:
        return run_jobs(case)
    if case.varied is None:
        return run(case)
    try:
        return run(case)
    except (ArithmeticError, ValueError, LookupError):
        return Result(
            requests=0,
            gpu_seconds=0.0,
            busy_seconds=0.0,
            starts=0,
            reversals=0,
            waits_seconds={},
            shares={},
            blocks=(),
            end_at_seconds=0.0,
            looks=0,
            stopped=True,
        )


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
    from_seconds, block_seconds = _scored(case, trace)
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
    result = _result(case, outcome, from_seconds, block_seconds)
    return _with_plots(case, result, trace, world._waits)  # noqa: SLF001 - as in `run`


def _scored(case: Case, trace: Sequence[Arrival]) -> tuple[float, float]:
    """(from when on, the length of a block in seconds)."""
    from_seconds = scored_from_seconds(case)
    return from_seconds, max(trace[-1].at_seconds - from_seconds, 1.0) / BLOCKS


def _with_plots(case: Case, result: Result, trace: Sequence[Arrival], waits_seconds: Sequence[float]) -> Result:
    if not case.keep_timeline:
        return result
    from_seconds = scored_from_seconds(case)
    ordered = sorted(
        wait for arrival, wait in zip(trace, waits_seconds, strict=True) if arrival.at_seconds >= from_seconds
    )
    quantiles = [
        ordered[round(index * (len(ordered) - 1) / QUANTILES)] for index in range(QUANTILES + 1 if ordered else 0)
    ]
    return replace(result, waiting=tuple(waiting_of(trace, waits_seconds)), wait_quantiles_seconds=tuple(quantiles))


def waiting_of(trace: Sequence[Arrival], waits_seconds: Sequence[float]) -> Iterator[tuple[float, float, int]]:
    """(from, until, most requests that waited in between), in at most `MOST_POINTS` spans that follow one another."""
    changes = [(0.0, 0)]
    for arrival, wait in zip(trace, waits_seconds, strict=True):
        if wait > 0:
            changes += [(arrival.at_seconds, 1), (arrival.at_seconds + wait, -1)]
    changes.sort()
    span_seconds = max(changes[-1][0], trace[-1].at_seconds) / MOST_POINTS or 1.0
    waiting, at = 0, 0
    for index in range(MOST_POINTS):
        most, until_seconds = waiting, (index + 1) * span_seconds
        while at < len(changes) and (changes[at][0] <= until_seconds or index == MOST_POINTS - 1):
            waiting += changes[at][1]
            most = max(most, waiting)
            at += 1
        yield index * span_seconds, until_seconds, most


def scaler_of(case: Case) -> Scaler:
    """Who scales in this case."""
    chance = random.Random(case.seed + 1)  # noqa: S311 - simulation
    name = case.scaler
    if name == "fixed":
        if case.replicas < 1:
            raise PilotlightError("policy fixed needs a number of replicas from 1 up: --replicas")
        return Fixed()
    if name == "keda-tuned" and case.keda is not None:
        return case.keda.scaler(case.concurrency, chance)
    if name in {"keda", "keda-fast"}:
        stock = stock_keda(chance, fast=name == "keda-fast")
        return replace(
            stock,
            target=case.target_value,
            keda=replace(stock.keda, max_replicas=case.max_replicas),
            hpa=replace(stock.hpa, max_replicas=case.max_replicas),
        )
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
        keda=replace(OUR_KEDA, max_replicas=case.max_replicas),
        sees_replicas=case.sees_replicas,
        sees_counters=case.sees_counters,
        sees_in_flight=case.sees_in_flight,
        sees_use_only=by_use(name),
        fast_scale=case.fast_scale,
    )


def by_use(name: str) -> bool:
    """Whether this policy is about how busy replicas are, in percent, and not about a queue."""
    return name.partition("+")[0] == "utilization"


def run_all(cases: Iterable[Case], *, processes: int) -> Iterator[tuple[Case, Result]]:
    """Every case with its result, as they finish; in this process where one is enough.

    Cases are taken one by one, shortly before they run: an iterator that ends early ends the work. If it is given up,
    or a case fails, what still runs is ended at once.
    """
    if processes <= 1:
        for case in cases:
            yield case, simulated(case)
        return
    with ProcessPoolExecutor(max_workers=processes) as pool:
        running: dict[Future[Result], Case] = {}
        try:
            for case in cases:
                running[pool.submit(simulated, case)] = case
                while len(running) > processes:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        except BaseException:
            # A worker takes an interrupt for the result of its case and goes on with the next one, which may take
            # minutes; and the pool waits for all of them.
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _finished(running: dict[Future[Result], Case]) -> list[tuple[Case, Result]]:
    done, _ = wait_for(running, return_when=FIRST_COMPLETED)
    return [(running.pop(one), one.result()) for one in done]


def as_plain(result: Result) -> dict[str, Any]:
    """For JSON; without what is kept for plots."""
    plain = asdict(result)
    for name in ("timeline", "waiting", "wait_quantiles_seconds"):
        del plain[name]
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
    result = Result(
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
        stopped=outcome.stopped,
    )
    if outcome.stopped:
        return result
    ordered = sorted(outcome.waits_seconds)
    blocks = [[0.0] * (2 + len(waits)) for _ in range(BLOCKS)]
    for block, gpu_seconds in enumerate(outcome.gpu_seconds_by_block):
        blocks[min(block, BLOCKS - 1)][1] += gpu_seconds
    for at_seconds, wait in zip(outcome.arrived_at_seconds, outcome.waits_seconds, strict=True):
        row = blocks[min(int((at_seconds - from_seconds) / block_seconds), BLOCKS - 1)]
        row[0] += 1
        for index in range(bisect.bisect_left(waits, wait), len(waits)):
            row[2 + index] += 1
    return replace(
        result,
        waits_seconds={
            name: ordered[min(int(share * total), total - 1)] if total else 0.0
            for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
        },
        shares={f"{wait:g}": bisect.bisect_right(ordered, wait) / total if total else 1.0 for wait in waits},
        blocks=tuple(tuple(round(value, 1) for value in row) for row in blocks),
        timeline=tuple(outcome.timeline),
    )
