"""The world with a ScaledJob in it: KEDA creates jobs at its polls, and each ends with its work.

Polls come on a grid whose phase is drawn once per run; what a poll creates is `rules.jobs_to_create`. A job starts
cold, takes what waits, or comes, into its slots, and ends when what it took is done and it may take no more; one that
finds nothing ends at once. It is billed from its creation to its end. A job is pending until its model begins to load:
its pod runs from then on (KEDA's default, without `pendingPodConditions`). Nothing ever takes a job away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Any, Protocol

from scaler.core.decide import Memory, Policy, decide
from scaler.core.model import Goals, Sample
from scaler.simulator.arrivals import Arrival, Chance, lognormal
from scaler.simulator.keda import after
from scaler.simulator.rules import KEDA_POLLING_SECONDS, JobSpec, JobStrategy, JobTrigger, jobs_to_create
from scaler.simulator.world import NEVER, Outcome, WorldSpec

_RUNS, _SERVES, _DONE = range(3)


class Reader(Protocol):
    """What KEDA reads from one trigger of a ScaledJob."""

    def read(self, *, waiting: int, in_flight: int, now_seconds: float) -> JobTrigger:
        """The trigger as polled at this moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlogged:
    """A built-in trigger of KEDA: the queue's length against a target.

    `counts_in_flight`: as SQS with `scaleOnInFlight`, which strategies `default` and `custom` expect; `accurate` and
    `eager` expect a length without the messages that somebody works on.
    """

    target: float = 1.0
    counts_in_flight: bool = True

    def read(self, *, waiting: int, in_flight: int, now_seconds: float) -> JobTrigger:  # noqa: ARG002 - as the protocol
        """Active where there is anything."""
        length = float(waiting + (in_flight if self.counts_in_flight else 0))
        return JobTrigger(length > 0, length, self.target)


def backlogged(strategy: JobStrategy, target: float) -> Backlogged:
    """A trigger that counts what this strategy expects."""
    return Backlogged(target=target, counts_in_flight=strategy in {JobStrategy.DEFAULT, JobStrategy.CUSTOM})


@dataclass(slots=True, kw_only=True)
class Answered:
    """Pilotlight's answer to a ScaledJob (`policy` decides how many), by the same `core.decide` as in the service."""

    policy: Policy[Any]
    goals: Goals
    _memory: Memory[Any] = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is remembered yet; whatever the policy, no HPA is asked."""
        self.goals = replace(self.goals, answer="jobs")
        self._memory = Memory(state=self.policy.start())

    def read(self, *, waiting: int, in_flight: int, now_seconds: float) -> JobTrigger:
        """What IsActive, GetMetrics and GetMetricSpec say."""
        sample = Sample(
            at_seconds=now_seconds,
            metric_value=float(waiting + in_flight),
            active=waiting + in_flight > 0,
            waiting=float(waiting),
            in_flight=float(in_flight),
        )
        decision, self._memory = decide(
            self.policy, self.goals, self._memory, sample=sample, view=None, now_seconds=now_seconds
        )
        if decision is None:
            raise RuntimeError("a fresh sample gave no decision")
        return JobTrigger(decision.active, decision.metric_value, decision.target_value)


@dataclass(slots=True, eq=False)  # two that were created at once are not the same
class _Job:
    created_at_seconds: float
    runs: bool = False
    busy: int = 0
    left: float = NEVER  # requests that it may still take


@dataclass(slots=True, kw_only=True)
class JobWorld:
    """Requests, jobs and the bill.

    `requests_per_job`: how many a job takes before it ends; None: whatever waits, until nothing does.
    """

    spec: WorldSpec
    job: JobSpec
    reader: Reader
    trace: Sequence[Arrival]
    chance: Chance
    polling_seconds: float = KEDA_POLLING_SECONDS
    requests_per_job: int | None = 1
    _queue: deque[int] = field(default_factory=deque)
    _jobs: list[_Job] = field(default_factory=list)
    _heap: list[tuple[float, int, int, _Job]] = field(default_factory=list)  # (at, order, what happens, job)
    _waits: list[float] = field(default_factory=list)
    _order: int = 0
    _in_flight: int = 0
    _completed: int = 0
    _starts: int = 0
    _gpu_seconds: float = 0.0
    _blocks: list[float] = field(default_factory=list)
    _timeline: list[tuple[float, int, int, int, int]] = field(default_factory=list)

    def run(self, grid: Chance) -> Outcome:
        """Everything until the last request is served; `grid` draws when polls are due."""
        total, upcoming, looks = len(self.trace), 0, 0
        self._waits = [-1.0] * total
        phase_seconds = grid.random() * self.polling_seconds
        poll_at_seconds = phase_seconds
        now_seconds = 0.0
        while self._completed < total:
            event_at_seconds = self._heap[0][0] if self._heap else NEVER
            arrives_at_seconds = self.trace[upcoming].at_seconds if upcoming < total else NEVER
            if arrives_at_seconds <= min(event_at_seconds, poll_at_seconds):
                now_seconds = arrives_at_seconds
                self._queue.append(upcoming)
                upcoming += 1
                free = self._with_free_slot()
                if free is not None:
                    self._take(free, now_seconds)
            elif event_at_seconds <= poll_at_seconds:
                now_seconds, _, happens, job = heappop(self._heap)
                self._happen(happens, job, now_seconds)
            else:
                now_seconds, looks = poll_at_seconds, looks + 1
                self._poll(now_seconds)
                since_seconds = now_seconds
                if not self._queue and not self._jobs and not self.job.min_replicas:
                    since_seconds = arrives_at_seconds  # polls that find nothing and change nothing
                poll_at_seconds = after(since_seconds, self.polling_seconds, phase_seconds)
        for job in self._jobs:
            self._bill(job, now_seconds)
        from_seconds = self.spec.scored_from_seconds
        first = next((i for i, arrival in enumerate(self.trace) if arrival.at_seconds >= from_seconds), total)
        return Outcome(
            waits_seconds=self._waits[first:],
            arrived_at_seconds=[arrival.at_seconds for arrival in self.trace[first:]],
            gpu_seconds=self._gpu_seconds,
            starts=self._starts,
            reversals=0,
            looks=looks,
            end_at_seconds=now_seconds,
            busy_seconds=sum(arrival.service_seconds for arrival in self.trace[first:]) / self.spec.concurrency,
            gpu_seconds_by_block=self._blocks,
            timeline=self._timeline,
        )

    def _poll(self, now_seconds: float) -> None:
        trigger = self.reader.read(waiting=len(self._queue), in_flight=self._in_flight, now_seconds=now_seconds)
        pending = sum(not job.runs for job in self._jobs)
        for _ in range(jobs_to_create(self.job, [trigger], running=len(self._jobs), pending=pending)):
            job = _Job(now_seconds, left=NEVER if self.requests_per_job is None else self.requests_per_job)
            self._jobs.append(job)
            if now_seconds >= self.spec.scored_from_seconds:
                self._starts += 1
            *before, load = [
                lognormal(self.chance, phase.mean_seconds, phase.variation) for phase in self.spec.cold_start.phases
            ]
            runs_at_seconds = now_seconds + sum(before)
            self._push(runs_at_seconds, _RUNS, job)
            self._push(runs_at_seconds + load, _SERVES, job)
        self._mark(now_seconds)

    def _happen(self, happens: int, job: _Job, now_seconds: float) -> None:
        if happens == _RUNS:
            job.runs = True
            return
        if happens == _DONE:
            job.busy -= 1
            self._in_flight -= 1
            self._completed += 1
        self._take(job, now_seconds)
        if job.busy == 0:
            self._jobs.remove(job)
            self._bill(job, now_seconds)
        self._mark(now_seconds)

    def _with_free_slot(self) -> _Job | None:
        """One that serves and may take more at once, the oldest first."""
        most = self.spec.concurrency
        return next((job for job in self._jobs if 0 < job.busy < most and job.left), None) if most > 1 else None

    def _take(self, job: _Job, now_seconds: float) -> None:
        while self._queue and job.left and job.busy < self.spec.concurrency:
            request = self._queue.popleft()
            arrival = self.trace[request]
            self._waits[request] = now_seconds - arrival.at_seconds
            job.left -= 1
            job.busy += 1
            self._in_flight += 1
            self._push(now_seconds + arrival.service_seconds, _DONE, job)

    def _push(self, at_seconds: float, happens: int, job: _Job) -> None:
        self._order += 1
        heappush(self._heap, (at_seconds, self._order, happens, job))

    def _bill(self, job: _Job, until_seconds: float) -> None:
        origin_seconds, block_seconds = self.spec.scored_from_seconds, self.spec.block_seconds
        since_seconds = max(job.created_at_seconds, origin_seconds)
        if until_seconds <= since_seconds:
            return
        self._gpu_seconds += until_seconds - since_seconds
        while block_seconds != NEVER and since_seconds < until_seconds:
            block = int((since_seconds - origin_seconds) / block_seconds + 1e-9)
            end_seconds = min(origin_seconds + (block + 1) * block_seconds, until_seconds)
            self._blocks.extend([0.0] * (block + 1 - len(self._blocks)))
            self._blocks[block] += end_seconds - since_seconds
            since_seconds = end_seconds

    def _mark(self, now_seconds: float) -> None:
        if self.spec.keep_timeline:
            serving = sum(job.busy > 0 for job in self._jobs)
            there = len(self._jobs)
            self._timeline.append((now_seconds, there, serving, there - serving, len(self._queue)))


def strategy_of(name: str) -> JobStrategy | None:
    """By the name that a ScaledJob has it under; None: there is none."""
    return next((one for one in JobStrategy if one.value == name), None)
