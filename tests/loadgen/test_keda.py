"""The KEDA loop against a small external scaler over a real channel: call order, errors, fallback, push."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc

from loadgen.keda import Event, Keda, ScaledObject, Trigger, scaled
from loadgen.pace import Pace
from scaler._generated import externalscaler_pb2 as pb
from scaler._generated import externalscaler_pb2_grpc as pb_grpc
from scaler.simulator.rules import Fallback, KedaSpec, Scale


@dataclass
class Clock:
    """Seconds that pass when told to."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Target:
    """A scale target whose pods are there and ready at once."""

    replicas: int = 0

    def scale(self) -> Scale:
        return Scale(self.replicas, self.replicas, self.replicas)

    def set_replicas(self, replicas: int) -> None:
        self.replicas = replicas


@dataclass
class Scaler(pb_grpc.ExternalScalerServicer):
    """An external scaler that answers what a test sets; `value` None: UNAVAILABLE."""

    value: float | None = 0.0
    target: float = 1.0
    fail_next: int = 0
    specs_fail: bool = False
    calls: list[str] = field(default_factory=list)
    pushes: asyncio.Queue[bool | Exception | None] = field(default_factory=asyncio.Queue)
    streamed_target: asyncio.Queue[float] | None = None

    async def GetMetricSpec(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802
        self.calls.append(f"GetMetricSpec {request.scalerMetadata['id']}")
        if self.specs_fail:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        spec = pb.MetricSpec(metricName="depth", targetSize=int(self.target), targetSizeFloat=self.target)
        return pb.GetMetricSpecResponse(metricSpecs=[spec])

    async def GetMetrics(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802
        self.calls.append(f"GetMetrics {request.scaledObjectRef.scalerMetadata['id']} {request.metricName}")
        if self.value is None or self.fail_next > 0:
            self.fail_next -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no reading")
        value = pb.MetricValue(metricName="other", metricValue=int(self.value or 0), metricValueFloat=self.value or 0)
        return pb.GetMetricsResponse(metricValues=[value])

    async def IsActive(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002
        self.calls.append(f"IsActive {request.scalerMetadata['id']}")
        return pb.IsActiveResponse(result=bool(self.value))

    async def StreamIsActive(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802, ARG002
        self.calls.append("StreamIsActive")
        while True:
            push = await self.pushes.get()
            if push is None:
                return
            if isinstance(push, Exception):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
            yield pb.IsActiveResponse(result=push)

    async def StreamMetricSpec(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802, ARG002
        self.calls.append("StreamMetricSpec")
        if self.streamed_target is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "off")
        while True:
            spec = pb.MetricSpec(metricName="depth", targetSizeFloat=await self.streamed_target.get())
            yield pb.GetMetricSpecResponse(metricSpecs=[spec])


@asynccontextmanager
async def served(scaler: Scaler) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    pb_grpc.add_ExternalScalerServicer_to_server(scaler, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)


def scaled_object(triggers: int = 1, **settings: Any) -> ScaledObject:
    return ScaledObject(
        namespace="team-a",
        name="llama",
        triggers=tuple(Trigger(metadata={"id": str(index)}) for index in range(triggers)),
        **settings,
    )


async def test_a_poll_asks_spec_metrics_and_activity_in_that_order() -> None:
    scaler = Scaler(value=3.0)
    async with served(scaler) as channel:
        target = Target()
        await Keda(scaled_object(), target, channel, Pace()).poll()
    assert scaler.calls == ["GetMetricSpec 0", "GetMetrics 0 depth", "IsActive 0"]
    assert target.replicas == 1


async def test_an_hpa_sync_of_k_triggers_asks_k_squared_specs() -> None:
    scaler, target = Scaler(value=9.0), Target(1)
    async with served(scaler) as channel:
        keda = Keda(scaled_object(3), target, channel, Pace())
        await keda._reconcile_once()
        assert keda.counts == {"GetMetricSpec": 3}
        await keda.sync()
    assert keda.counts == {"GetMetricSpec": 3 + 9, "GetMetrics": 3, "IsActive": 3}
    assert scaler.calls[3:8] == [
        "GetMetricSpec 0", "GetMetrics 0 depth", "IsActive 0", "GetMetricSpec 1", "GetMetricSpec 2",
    ]  # fmt: skip
    assert target.replicas == 4


async def test_an_hpa_asks_nothing_at_zero_replicas() -> None:
    scaler = Scaler(value=9.0)
    async with served(scaler) as channel:
        keda = Keda(scaled_object(), Target(0), channel, Pace())
        await keda._reconcile_once()
        scaler.calls.clear()
        await keda.sync()
    assert scaler.calls == []


async def test_a_failed_read_is_repeated_once_and_then_holds() -> None:
    scaler, target, events = Scaler(value=5.0, fail_next=1), Target(3), list[Event]()
    async with served(scaler) as channel:
        keda = Keda(scaled_object(), target, channel, Pace(), on_event=events.append)
        await keda.poll()
        assert scaler.calls == ["GetMetricSpec 0", "GetMetrics 0 depth", "GetMetrics 0 depth", "IsActive 0"]
        scaler.value = None
        scaler.calls.clear()
        await keda.poll()
        assert scaler.calls == ["GetMetricSpec 0", "GetMetrics 0 depth", "GetMetrics 0 depth"]
    assert target.replicas == 3
    assert [event.text for event in events if event.by == "poll"] == ["UNAVAILABLE: no reading"]


async def test_a_fallback_wakes_from_zero_after_its_threshold() -> None:
    scaler, target = Scaler(value=None), Target(0)
    spec = KedaSpec(fallback=Fallback(failure_threshold=2, replicas=4))
    async with served(scaler) as channel:
        keda = Keda(scaled_object(keda=spec), target, channel, Pace())
        await keda._reconcile_once()
        found = []
        for _ in range(3):
            await keda.poll()
            found.append(target.replicas)
        assert found == [0, 0, 1]
        await keda.sync()
        assert target.replicas == 4


async def test_a_scaler_that_can_not_be_reached_never_reaches_the_fallback() -> None:
    scaler, target = Scaler(specs_fail=True), Target(2)
    spec = KedaSpec(fallback=Fallback(failure_threshold=1, replicas=4))
    async with served(scaler) as channel:
        keda = Keda(scaled_object(keda=spec), target, channel, Pace())
        for _ in range(5):
            await keda.poll()
    assert target.replicas == 2
    assert keda.counts == {"GetMetricSpec": 10}


async def test_kedas_cooldown_is_counted_from_the_last_active_poll() -> None:
    clock, scaler, target = Clock(), Scaler(value=2.0), Target(0)
    async with served(scaler) as channel:
        keda = Keda(scaled_object(keda=KedaSpec(cooldown_seconds=60)), target, channel, Pace(clock=clock))
        timeline = []
        for now_seconds, value in [(0, 2.0), (30, 2.0), (60, 0.0), (90, 0.0), (120, 0.0)]:
            clock.now, scaler.value = now_seconds, value
            await keda.poll()
            timeline.append(target.replicas)
    assert timeline == [1, 1, 1, 1, 0]


async def test_old_keda_reads_the_integer_fields() -> None:
    scaler, target = Scaler(value=22.222, target=6.111), Target(1)
    async with served(scaler) as channel:
        floats = Keda(scaled_object(), target, channel, Pace())
        await floats._reconcile_once()
        await floats.sync()
        assert target.replicas == 4
        target.replicas = 1
        integers = Keda(scaled_object(), target, channel, Pace(), integers_only=True)
        await integers._reconcile_once()
        await integers.sync()
    assert target.replicas == 4  # ceil(22 / 6)


async def eventually(condition: Any, *, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for belongs to the code under test
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(keda: Keda) -> AsyncIterator[None]:
    task = asyncio.create_task(keda.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_pushed_true_wakes_between_polls_and_false_is_ignored() -> None:
    scaler, target, events = Scaler(value=0.0), Target(0), list[Event]()
    async with served(scaler) as channel:
        keda = Keda(scaled_object(), target, channel, Pace(), on_event=events.append)
        async with running(keda):
            await eventually(lambda: any(event.kind == "reconciled" for event in events))
            scaler.pushes.put_nowait(False)
            scaler.pushes.put_nowait(True)
            await eventually(lambda: target.replicas == 1)
    assert keda.counts["pushed"] == 1
    assert scaled(events) == [("push", 0, 1)]


class NotingPace(Pace):
    """Knows how long it was asked to sleep: how long it did so on a busy machine is another matter."""

    def __init__(self, speed: float) -> None:
        super().__init__(speed)
        self.asked_seconds: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.asked_seconds.append(seconds)
        await super().sleep(seconds)


async def test_a_stream_comes_back_later_each_time_until_it_ends_with_ok() -> None:
    """Ends: error, error, OK, error. Waits in experiment seconds: 2, 4, 2 (reset by OK), 4."""
    scaler, events, pace = Scaler(), list[Event](), NotingPace(speed=20)
    for push in (RuntimeError(), RuntimeError(), None, RuntimeError()):
        scaler.pushes.put_nowait(push)
    async with served(scaler) as channel:
        keda = Keda(scaled_object(), Target(), channel, pace, on_event=events.append)
        async with running(keda):
            await eventually(lambda: scaler.calls.count("StreamIsActive") == 5)
    streams = [event for event in events if event.kind.startswith("stream_")]
    waits = [opened.at_seconds - ended.at_seconds for ended, opened in zip(streams[1::2], streams[2::2], strict=False)]
    # Polls and syncs sleep until their next moment, which is no whole number of seconds away.
    asked = [seconds for seconds in pace.asked_seconds if seconds in {2.0**doubled for doubled in range(7)}]
    assert asked == [2.0, 4.0, 2.0, 4.0]
    assert all(wait > 0.9 * seconds for wait, seconds in zip(waits[:4], asked, strict=True))
    assert [event.text for event in streams[1::2]] == ["UNAVAILABLE: broken"] * 2 + ["OK", "UNAVAILABLE: broken"]


async def test_streamed_specs_replace_get_metric_spec_and_reach_the_hpa() -> None:
    streamed_target: asyncio.Queue[float] = asyncio.Queue()
    scaler, target = Scaler(value=3.0, streamed_target=streamed_target), Target(1)
    async with served(scaler) as channel:
        keda = Keda(scaled_object(hpa_sync_seconds=1.0), target, channel, Pace(speed=20))
        async with running(keda):
            await eventually(lambda: target.replicas == 3)
            streamed_target.put_nowait(0.25)
            await eventually(lambda: target.replicas == 12)
            asked = keda.counts["GetMetricSpec"]
            read = keda.counts["GetMetrics"]
            await eventually(lambda: keda.counts["GetMetrics"] >= read + 5)
            assert keda.counts["GetMetricSpec"] == asked


async def test_unimplemented_ends_the_spec_stream_for_good() -> None:
    scaler = Scaler()
    async with served(scaler) as channel:
        keda = Keda(scaled_object(keda=replace(KedaSpec(), polling_seconds=1.0)), Target(), channel, Pace(speed=20))
        async with running(keda):
            await eventually(lambda: keda.counts["IsActive"] >= 10)
    assert keda.counts["StreamMetricSpec"] == 1
