"""A whole run: a load through a real broker, simulated pods, and KEDA's loops against an external scaler."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import grpc

from loadgen.consumers import Delivery, open_pool
from loadgen.endpoints import Endpoint
from loadgen.keda import Event, Keda, ScaledObject
from loadgen.pace import Pace
from loadgen.reports import Reporter
from loadgen.results import Point, Recorder, Summary
from loadgen.senders import Sender, open_sender, send_arrivals
from loadgen.workers import Fleet, Phase, cold_start
from scaler.simulator.arrivals import Arrival

# Real seconds between two points of the record.
SAMPLE_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run. Seconds are experiment seconds, `speed` of them to a real one.

    `scaled_object` None: no KEDA, `fixed_replicas` pods from the start. `hints_address`: where replicas are
    reported; None: the scaler works without a view. `settle_seconds`: the run goes on after the load until it is
    worked off and the pods are gone, at most this long, and then for `linger_seconds`; not past `stop_at_seconds`.
    `scaler_speed`: seconds of the scaler's clock to a real one; 1 unless it was started with a faster clock.
    """

    endpoint: Endpoint
    arrivals: Sequence[Arrival]
    scaled_object: ScaledObject | None = None
    scaler_address: str = "127.0.0.1:6000"
    hints_address: str | None = None
    fixed_replicas: int = 0
    phases: tuple[Phase, ...] = field(default_factory=lambda: cold_start(30.0))
    concurrency: int = 1
    grace_seconds: float | None = None
    speed: float = 1.0
    scaler_speed: float = 1.0
    seed: int = 1
    within_seconds: float | None = None
    start_at_seconds: float = 0.0
    settle_seconds: float = 600.0
    linger_seconds: float = 0.0
    stop_at_seconds: float | None = None


class Experiment:
    """One run of a plan. While it runs, `recorder`, `fleet`, `events` and `pace` can be looked at."""

    def __init__(
        self,
        plan: Plan,
        *,
        on_point: Callable[[Point], None] | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.plan = plan
        self.pace = Pace(plan.speed)
        self.recorder = Recorder()
        self.events: list[Event] = []
        self.fleet: Fleet | None = None
        self.keda: Keda | None = None
        self._on_point = on_point
        self._on_event = on_event

    async def run(self) -> Summary:
        """Run to the end; the figures. Cancel it to end early and ask `summary()`."""
        plan = self.plan
        async with AsyncExitStack() as stack:
            sender = await stack.enter_async_context(open_sender(plan.endpoint))
            pool = await stack.enter_async_context(open_pool(plan.endpoint))
            self.pace = Pace(plan.speed)  # clients are open: the clock starts now
            self.fleet = fleet = await stack.enter_async_context(
                Fleet(
                    pool,
                    self.pace,
                    random.Random(plan.seed),  # noqa: S311 - a seeded experiment, no secret
                    phases=plan.phases,
                    concurrency=plan.concurrency,
                    grace_seconds=plan.grace_seconds,
                    on_started=self._started,
                    on_served=self.recorder.on_served,
                )
            )
            fleet.set_replicas(plan.fixed_replicas)
            background = [asyncio.create_task(self._watch())]
            try:
                if plan.scaled_object is not None:
                    background += await self._start_keda(stack, plan.scaled_object, fleet)
                load = asyncio.create_task(self._load(sender))
                background.append(load)
                await self._until_done(load, background)
            finally:
                for task in background:
                    task.cancel()
                await asyncio.gather(*background, return_exceptions=True)
        return self.summary()

    def summary(self) -> Summary:
        """The figures so far."""
        fleet = self.fleet
        return self.recorder.summary(
            gpu_seconds=0.0 if fleet is None else fleet.gpu_seconds(),
            starts=0 if fleet is None else fleet.starts,
            within_seconds=self.plan.within_seconds,
            worker_errors=0 if fleet is None else fleet.errors.total(),
        )

    async def _start_keda(
        self, stack: AsyncExitStack, scaled_object: ScaledObject, fleet: Fleet
    ) -> list[asyncio.Task[None]]:
        plan = self.plan
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(plan.scaler_address))
        self.keda = Keda(scaled_object, fleet, channel, self.pace, on_event=self._event)
        tasks = [asyncio.create_task(self.keda.run())]
        if plan.hints_address is not None:
            hints = await stack.enter_async_context(grpc.aio.insecure_channel(plan.hints_address))
            reporter = Reporter(
                hints, scaled_object.namespace, scaled_object.name, fleet, self.pace, scaler_speed=plan.scaler_speed
            )
            tasks.append(asyncio.create_task(reporter.run()))
        return tasks

    async def _load(self, sender: Sender) -> None:
        await send_arrivals(
            sender,
            self.plan.arrivals,
            self.pace,
            from_seconds=self.plan.start_at_seconds,
            on_sent=self.recorder.on_sent,
        )

    async def _until_done(self, load: asyncio.Task[None], background: Sequence[asyncio.Task[None]]) -> None:
        """Until the load is sent, worked off and the pods are gone, or a time limit; a failed part fails the run."""
        load_ended_at_seconds: float | None = None
        done_at_seconds: float | None = None
        while True:
            await asyncio.sleep(SAMPLE_SECONDS / 2)
            for task in background:
                if task.done():
                    task.result()
            now_seconds = self.pace.now()
            if self.plan.stop_at_seconds is not None and now_seconds >= self.plan.stop_at_seconds:
                return
            if not load.done():
                continue
            if load_ended_at_seconds is None:
                load_ended_at_seconds = now_seconds
            worked_off = self.recorder.waiting == 0 and self.recorder.in_flight == 0
            assert self.fleet is not None
            gone = self.plan.scaled_object is None or not self.fleet.pods
            if not (worked_off and gone):
                done_at_seconds = None
            elif done_at_seconds is None:
                done_at_seconds = now_seconds
            lingered = done_at_seconds is not None and now_seconds >= done_at_seconds + self.plan.linger_seconds
            if lingered or now_seconds > load_ended_at_seconds + self.plan.settle_seconds:
                self._point()
                return

    async def _watch(self) -> None:
        while True:
            self._point()
            await asyncio.sleep(SAMPLE_SECONDS)

    def _point(self) -> None:
        assert self.fleet is not None
        point = self.recorder.note(self.pace.now(), self.fleet.counts())
        if self._on_point is not None:
            self._on_point(point)

    def _started(self, delivery: Delivery) -> None:
        self.recorder.on_started(delivery.message.identity)

    def _event(self, event: Event) -> None:
        self.events.append(event)
        if self._on_event is not None:
            self._on_event(event)
