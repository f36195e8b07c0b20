"""Simulated GPU pods: a cold start in phases, then requests from a real broker, a few at a time.

A `Fleet` is a Deployment and its ReplicaSet: it starts and stops pods to match `spec.replicas`, pods that are
not ready first, then the newest ready (pkg/controller/controller_utils.go, ActivePods). A pod that is asked to
stop takes nothing more, finishes what it works on, and is billed until then. Times are experiment seconds.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Self

from loadgen.consumers import Consumer, Delivery, Pool
from loadgen.pace import Pace
from scaler.simulator.arrivals import Chance, lognormal
from scaler.simulator.rules import Scale

# How long one receive waits for work, in real seconds.
_RECEIVE_WAIT_SECONDS = 1.0
# How long a worker that lost its broker waits before it connects again, in real seconds.
_RESTART_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One part of a cold start: lognormal with this mean and coefficient of variation."""

    name: str
    mean_seconds: float
    variation: float = 0.25


def cold_start(total_seconds: float, variation: float = 0.25) -> tuple[Phase, ...]:
    """A cold start of this mean in the usual proportions: mostly image and model, a little of the rest."""
    shares = {"schedule": 0.05, "pull": 0.35, "start": 0.05, "load": 0.55}
    return tuple(
        Phase(name=name, mean_seconds=total_seconds * share, variation=variation) for name, share in shares.items()
    )


class PodState(Enum):
    """Where a pod is in its life."""

    STARTING = "starting"
    READY = "ready"
    TERMINATING = "terminating"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Served:
    """One request that was worked on to the end; experiment seconds."""

    identity: str
    created_at_seconds: float
    started_at_seconds: float
    finished_at_seconds: float
    service_seconds: float

    @property
    def wait_seconds(self) -> float:
        """From when it was due to when a worker began with it."""
        return self.started_at_seconds - self.created_at_seconds


@dataclass(slots=True)
class Pod:
    """One simulated GPU pod."""

    name: str
    created_at_seconds: float
    concurrency: int
    state: PodState = PodState.STARTING
    phase: str = ""
    phases_seconds: list[tuple[str, float]] = field(default_factory=list)  # how long those took that are over
    ready_at_seconds: float | None = None
    ended_at_seconds: float | None = None
    busy: int = 0
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def gpu_seconds(self, now_seconds: float) -> float:
        """How long it has held its GPU."""
        return (now_seconds if self.ended_at_seconds is None else self.ended_at_seconds) - self.created_at_seconds


@dataclass(frozen=True, slots=True)
class FleetCounts:
    """The pods by state."""

    wanted: int
    ready: int
    starting: int
    terminating: int
    busy: int


class Fleet:
    """A Deployment of simulated GPU pods; use it as an async context manager, which owns their tasks.

    `pool` None: pods take no work (for drills of the scaling alone). `on_started` and `on_served` hear of
    every request.
    """

    def __init__(
        self,
        pool: Pool | None,
        pace: Pace,
        chance: Chance,
        *,
        phases: Sequence[Phase] = (),
        concurrency: int = 1,
        grace_seconds: float | None = None,
        on_started: Callable[[Delivery], None] | None = None,
        on_served: Callable[[Served], None] | None = None,
    ) -> None:
        self._pool = pool
        self._pace = pace
        self._chance = chance
        self._phases = tuple(phases)
        self._concurrency = concurrency
        self._grace_seconds = grace_seconds
        self._on_started = on_started
        self._on_served = on_served
        self._tasks = asyncio.TaskGroup()
        self._wanted = 0
        self.pods: list[Pod] = []  # alive ones, oldest first
        self.starts = 0
        self.cold_starts_seconds: list[float] = []
        self.phases_seconds: list[tuple[str, float]] = []  # of those
        self._ended_gpu_seconds = 0.0
        # What went wrong with the broker, by kind of error.
        self.errors: Counter[str] = Counter()
        self.changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        """The fleet, empty."""
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stop every pod where it stands."""
        for pod in tuple(self.pods):
            if pod.task is not None:
                pod.task.cancel()
        await self._tasks.__aexit__(None, None, None)

    # --- what KEDA, the HPA and the reports see -----------------------------------------------------------------

    def scale(self) -> Scale:
        """/scale: pods that are asked to stop no longer count in status.replicas."""
        counts = self.counts()
        return Scale(self._wanted, counts.ready + counts.starting, counts.ready)

    def set_replicas(self, replicas: int) -> None:
        """Write spec.replicas: pods are made or asked to stop at once."""
        self._wanted = replicas
        alive = [pod for pod in self.pods if pod.state in {PodState.STARTING, PodState.READY}]
        for _ in range(replicas - len(alive)):
            self._create()
        for pod in sorted(alive, key=_deletion_order)[: max(len(alive) - replicas, 0)]:
            self._delete(pod)
        self.changed.set()

    def counts(self) -> FleetCounts:
        """The pods by state, now."""
        states = [pod.state for pod in self.pods]
        return FleetCounts(
            wanted=self._wanted,
            ready=states.count(PodState.READY),
            starting=states.count(PodState.STARTING),
            terminating=states.count(PodState.TERMINATING),
            busy=sum(pod.busy for pod in self.pods),
        )

    def gpu_seconds(self) -> float:
        """GPU time held so far, creation to end, all pods."""
        now_seconds = self._pace.now()
        return self._ended_gpu_seconds + sum(pod.gpu_seconds(now_seconds) for pod in self.pods)

    # --- a pod's life -------------------------------------------------------------------------------------------

    def _create(self) -> None:
        self.starts += 1
        pod = Pod(f"pod-{self.starts}", self._pace.now(), self._concurrency)
        self.pods.append(pod)
        pod.task = self._tasks.create_task(self._live(pod), name=pod.name)

    def _delete(self, pod: Pod) -> None:
        pod.stop.set()
        if pod.state is PodState.READY:
            pod.state = PodState.TERMINATING
            return
        self._end(pod)  # nothing to finish; here, since a task that never ran runs no `finally` either
        if pod.task is not None:
            pod.task.cancel()

    async def _live(self, pod: Pod) -> None:
        try:
            for phase in self._phases:
                pod.phase = phase.name
                entered_at_seconds = self._pace.now()
                await self._pace.sleep(lognormal(self._chance, phase.mean_seconds, phase.variation))
                pod.phases_seconds.append((phase.name, self._pace.now() - entered_at_seconds))
            pod.phase = ""
            while pod.state is not PodState.GONE:
                try:
                    async with self._consumer() as consumer:
                        self._is_ready(pod)
                        if consumer is None:
                            await pod.stop.wait()
                            return
                        await self._work(pod, consumer)
                except Exception as err:  # noqa: BLE001 - whatever the broker did: a container restarts, a pod stays
                    self.errors[type(err).__name__] += 1
                    await asyncio.sleep(_RESTART_SECONDS)
        finally:
            self._end(pod)

    def _is_ready(self, pod: Pod) -> None:
        if pod.state is not PodState.STARTING:
            return
        pod.state = PodState.READY
        pod.ready_at_seconds = self._pace.now()
        self.cold_starts_seconds.append(pod.ready_at_seconds - pod.created_at_seconds)
        self.phases_seconds.extend(pod.phases_seconds)
        self.changed.set()

    def _consumer(self) -> AbstractAsyncContextManager[Consumer | None]:
        return nullcontext() if self._pool is None else self._pool.consumer(self._concurrency)

    async def _work(self, pod: Pod, consumer: Consumer) -> None:
        """Take work while there is a free slot, until asked to stop; then finish what is in hand."""
        stopping = asyncio.ensure_future(pod.stop.wait())
        in_hand: set[asyncio.Task[None]] = set()
        receiving: asyncio.Future[Sequence[Delivery]] | None = None
        try:
            while not pod.stop.is_set():
                if len(in_hand) >= pod.concurrency:
                    _, in_hand = await _first(in_hand, stopping)
                    continue
                receiving = asyncio.ensure_future(
                    consumer.receive(pod.concurrency - len(in_hand), _RECEIVE_WAIT_SECONDS)
                )
                await asyncio.wait({receiving, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not receiving.done():
                    break
                deliveries, receiving = receiving.result(), None
                in_hand = {task for task in in_hand if not task.done()}
                in_hand |= {asyncio.create_task(self._serve(pod, consumer, delivery)) for delivery in deliveries}
            if in_hand:
                grace_seconds = None if self._grace_seconds is None else self._pace.real_seconds(self._grace_seconds)
                await asyncio.wait(in_hand, timeout=grace_seconds)
            self._end(pod)  # the GPU is free; what follows is only good manners towards the broker
            if receiving is not None:
                for delivery in await receiving:
                    await consumer.release(delivery)
        finally:
            for task in in_hand:
                task.cancel()
            await asyncio.gather(*in_hand, return_exceptions=True)
            stopping.cancel()
            if receiving is not None:
                receiving.cancel()

    async def _serve(self, pod: Pod, consumer: Consumer, delivery: Delivery) -> None:
        message = delivery.message
        started_at_seconds = self._pace.now()
        pod.busy += 1
        if self._on_started is not None:
            self._on_started(delivery)
        try:
            await self._pace.sleep(message.service_seconds)
            finished_at_seconds = self._pace.now()
            await consumer.done(delivery)
        except asyncio.CancelledError:
            await consumer.release(delivery)  # killed after its grace: somebody else does it again
            raise
        except Exception as err:  # noqa: BLE001 - not acknowledged, so the broker delivers it again
            self.errors[type(err).__name__] += 1
            return
        finally:
            pod.busy -= 1
        if self._on_served is not None:
            self._on_served(
                Served(
                    message.identity,
                    self._pace.from_unix_seconds(message.created_unix_seconds),
                    started_at_seconds,
                    finished_at_seconds,
                    message.service_seconds,
                )
            )

    def _end(self, pod: Pod) -> None:
        if pod.state is PodState.GONE:
            return
        pod.state = PodState.GONE
        pod.ended_at_seconds = self._pace.now()
        self._ended_gpu_seconds += pod.gpu_seconds(pod.ended_at_seconds)
        self.pods.remove(pod)
        self.changed.set()


async def _first(
    tasks: set[asyncio.Task[None]], stopping: asyncio.Future[Any]
) -> tuple[set[asyncio.Task[None]], set[asyncio.Task[None]]]:
    """(done, not done) once one of the tasks, or `stopping`, is done."""
    await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
    done = {task for task in tasks if task.done()}
    return done, tasks - done


def _deletion_order(pod: Pod) -> tuple[bool, float]:
    """Not ready first, then the newest."""
    if pod.ready_at_seconds is None:
        return (False, -pod.created_at_seconds)
    return (True, -pod.ready_at_seconds)
