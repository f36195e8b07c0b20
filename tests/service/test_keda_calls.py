"""KEDA's calls in KEDA's order, over a real channel, with today's protocol and with the one before 2.17.

The order is that of pkg/scaling and pkg/scalers/external_scaler.go at 8b4f083c: what `loadgen.keda` does for
load, these tests do call by call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc  # type: ignore[import-untyped]  # it ships no types

from scaler._generated import externalscaler_pb2 as current
from scaler._generated import pilotlight_pb2 as ours
from scaler._generated import pilotlight_pb2_grpc as ours_grpc
from scaler.errors import SourceDenied, SourceUnavailable
from scaler.settings import ReadingSettings
from tests.service.conftest import RunShell, Shell, ShellSettings, until
from tests.service.scripted import World

# How long the first answer is waited for outside tests.
AS_BY_DEFAULT: dict[str, object] = {"first_answer_seconds": ReadingSettings().first_answer_seconds}
PROTOS = Path(__file__).resolve().parents[1] / "conformance" / "protos"


@pytest.fixture(scope="session")
def before_2_17(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """KEDA's messages before 2.17: no floats, no StreamMetricSpec. Generated here, in a pool of their own."""
    out = tmp_path_factory.mktemp("protos") / "old.bin"
    code = protoc.main(
        ["protoc", f"-I{PROTOS}", f"--descriptor_set_out={out}", str(PROTOS / "externalscaler_before_2_17.proto")]
    )
    assert code == 0
    files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    module = ModuleType("externalscaler_before_2_17")
    for message in message_factory.GetMessageClassesForFiles([file.name for file in files.file], pool).items():
        setattr(module, message[0].rpartition(".")[2], message[1])
    return module


@pytest.fixture(params=["current", "before-2.17"])
def messages(request: pytest.FixtureRequest) -> Any:
    """The protocol KEDA speaks: both talk to the same server."""
    return current if request.param == "current" else request.getfixturevalue("before_2_17")


class Keda:
    """The stubs that KEDA's external scaler has, for either protocol."""

    def __init__(self, shell: Shell, messages: Any, metadata: Mapping[str, str], *, name: str = "llama") -> None:
        self._channel = shell.keda
        self._messages = messages
        self.ref = messages.ScaledObjectRef(
            namespace="team-a", name=name, scalerMetadata={"scalerAddress": "pilotlight:6000", **metadata}
        )

    def _unary(self, method: str, answer: Any) -> Any:
        return self._channel.unary_unary(
            f"/externalscaler.ExternalScaler/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )

    async def spec(self) -> Any:
        answer = await self._unary("GetMetricSpec", self._messages.GetMetricSpecResponse)(self.ref, timeout=30)
        assert len(answer.metricSpecs) == 1
        return answer.metricSpecs[0]

    async def metrics(self, name: str) -> Any:
        request = self._messages.GetMetricsRequest(scaledObjectRef=self.ref, metricName=name)
        answer = await self._unary("GetMetrics", self._messages.GetMetricsResponse)(request, timeout=30)
        assert len(answer.metricValues) == 1
        return answer.metricValues[0]

    async def active(self) -> bool:
        answer = await self._unary("IsActive", self._messages.IsActiveResponse)(self.ref, timeout=30)
        return bool(answer.result)

    def stream(self, method: str = "StreamIsActive", answer: Any = None) -> Any:
        return self._channel.unary_stream(
            f"/externalscaler.ExternalScaler/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=(answer or self._messages.IsActiveResponse).FromString,
        )(self.ref)

    def number(self, message: Any, name: str) -> float:
        """What KEDA reads: the float where it is above zero, else the integer; before 2.17 the integer."""
        value = getattr(message, f"{name}Float", 0.0)
        return value if value > 0 else float(getattr(message, name))

    async def poll(self) -> tuple[float, float, bool]:
        """One tick of the scale loop: (value, target, active)."""
        spec = await self.spec()
        value = await self.metrics(spec.metricName)
        active = await self.active()
        return self.number(value, "metricValue"), self.number(spec, "targetSize"), active


def trigger(thing: str = "orders", **more: str) -> dict[str, str]:
    return {"source": "scripted", "world": "w", "object": thing, **more}


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def settled(keda: Keda, wanted: tuple[float, float, bool]) -> None:
    """Poll until the answer is `wanted`: the source is read once a second, a failing one every few."""

    async def reached() -> bool:
        try:
            return await keda.poll() == wanted
        except grpc.aio.AioRpcError:
            return False

    await until(reached, seconds=20)


async def test_a_poll_gets_value_target_and_activity_of_one_evaluation(
    shell: RunShell, world: World, messages: Any
) -> None:
    world.answers["orders"] = 12.0
    async with shell() as running:
        assert await Keda(running, messages, trigger()).poll() == (12.0, 5.0, True)


async def test_fractions_are_rounded_up_for_a_keda_that_reads_integers_only(
    shell: RunShell, world: World, messages: Any
) -> None:
    world.answers["orders"] = 0.25
    async with shell() as running:
        value, target, active = await Keda(running, messages, trigger(threshold="2.5")).poll()
    if messages is current:
        assert (value, target, active) == (0.25, 2.5, True)
    else:
        assert (value, target, active) == (1.0, 3.0, True)


async def test_zero_is_zero_in_both_fields(shell: RunShell, world: World) -> None:
    world.answers["orders"] = 0.0
    async with shell() as running:
        keda = Keda(running, current, trigger())
        value = await keda.metrics((await keda.spec()).metricName)
    assert (value.metricValue, value.metricValueFloat) == (0, 0.0)


async def test_hpa_reads_of_three_triggers_cost_one_read_each_however_many_specs_they_ask(
    shell: RunShell, world: World, messages: Any
) -> None:
    world.answers.update(one=1.0, two=2.0, three=3.0)
    async with shell() as running:
        triggers = [Keda(running, messages, trigger(thing)) for thing in ("one", "two", "three")]
        names = [(await keda.spec()).metricName for keda in triggers]
        assert len(set(names)) == 3
        started = time.monotonic()
        for _ in range(5):
            for keda, name in zip(triggers, names, strict=True):
                for other in triggers:  # KEDA asks the spec of every trigger to find the one that matches
                    await other.spec()
                value = keda.number(await keda.metrics(name), "metricValue")
                assert (value, await keda.active()) == (
                    {"one": 1.0, "two": 2.0, "three": 3.0}[keda.ref.scalerMetadata["object"]],
                    True,
                )
        # 45 specs and 15 reads of metrics, on a quiet machine within well under a second: each object is read when it
        # is new, and then once a second.
        assert max(world.asked.values()) <= 2 + int(time.monotonic() - started)
        assert world.opened == 1


async def test_the_immediate_retry_after_an_error_does_not_reach_the_source(
    shell: RunShell, world: World, messages: Any
) -> None:
    world.answers["orders"] = SourceDenied('credentials of connection "x" were refused')
    async with shell() as running:
        keda = Keda(running, messages, trigger())
        name = (await keda.spec()).metricName
        started = time.monotonic()
        for _ in range(10):
            code, detail = await code_of(keda.metrics(name))
            assert (code, "refused" in detail) == (grpc.StatusCode.FAILED_PRECONDITION, True)
        assert world.asked["orders"] <= 2 + int(time.monotonic() - started)
        assert (await keda.spec()).metricName == name  # else KEDA's fallback would be blocked (#8056)


async def test_the_first_call_waits_for_the_first_reading_and_no_longer_than_two_seconds(
    shell: RunShell, world: World, messages: Any
) -> None:
    world.hang()
    async with shell(ShellSettings(reading=AS_BY_DEFAULT)) as running:
        keda = Keda(running, messages, trigger())
        name = (await keda.spec()).metricName

        async def took_seconds(asked: Keda) -> float:
            started = time.monotonic()
            code, detail = await code_of(asked.metrics(name))
            assert (code, "not been read yet" in detail) == (grpc.StatusCode.UNAVAILABLE, True)
            return time.monotonic() - started

        # A busy machine may make any of several calls longer, but not all of them.
        new = [await took_seconds(keda)]
        new += [await took_seconds(Keda(running, messages, trigger(), name=f"llama-{number}")) for number in range(2)]
        assert 1.5 < min(new) < 3.0
        known = [await took_seconds(keda) for _ in range(5)]  # only a new workload is waited for
        assert min(known) < 0.5
        world.default = 7.0
        world.resume()
        await settled(keda, (7.0, 5.0, True))


async def test_an_error_holds_the_last_answer_then_fails_getmetrics_but_never_turns_isactive_false(
    shell: RunShell, world: World, messages: Any
) -> None:
    world.answers["orders"] = 9.0
    async with shell() as running:
        keda = Keda(running, messages, trigger(holdSeconds="60"))
        assert await keda.poll() == (9.0, 5.0, True)
        world.answers["orders"] = SourceUnavailable("the broker is gone")
        await asyncio.sleep(1.5)
        assert await keda.poll() == (9.0, 5.0, True)
        running.clock.forward(50)
        assert await keda.poll() == (9.0, 5.0, True)
        running.clock.forward(20)
        spec = await keda.spec()
        code, detail = await code_of(keda.metrics(spec.metricName))
        assert (code, detail) == (grpc.StatusCode.UNAVAILABLE, "the broker is gone")
        assert await keda.active()
        world.answers["orders"] = 0.0
        await settled(keda, (0.0, 5.0, False))


async def test_a_metric_name_that_was_never_announced_is_not_found(shell: RunShell, world: World) -> None:
    assert world.default == 0.0
    async with shell() as running:
        code, detail = await code_of(Keda(running, current, trigger()).metrics("s0-other"))
        assert code == grpc.StatusCode.NOT_FOUND
        assert "target-scripted-orders" in detail


async def test_a_stream_tells_its_state_when_it_opens_and_activity_at_once(
    shell: RunShell, world: World, messages: Any
) -> None:
    world.answers["orders"] = 0.0
    async with shell() as running:
        keda = Keda(running, messages, trigger())
        await keda.poll()
        stream = keda.stream()
        assert (await stream.read()).result is False
        world.answers["orders"] = 3.0
        async with asyncio.timeout(15):  # well before it would be repeated
            assert (await stream.read()).result is True
        stream.cancel()
        reconnected = keda.stream()
        async with asyncio.timeout(15):
            assert (await reconnected.read()).result is True


async def test_a_stream_that_opens_before_the_first_reading_gets_it_when_it_comes(
    shell: RunShell, world: World, messages: Any
) -> None:
    world.default = 2.0
    async with shell() as running:
        stream = Keda(running, messages, trigger()).stream()
        async with asyncio.timeout(15):
            assert (await stream.read()).result is True


async def test_true_is_repeated_slowly_while_nobody_sees_a_replica(shell: RunShell, world: World) -> None:
    world.default = 2.0
    async with shell() as running:
        stream = Keda(running, current, trigger(heartbeatSeconds="1")).stream()
        async with asyncio.timeout(30):
            assert [(await stream.read()).result for _ in range(4)] == [True] * 4


async def messages_within(stream: Any, seconds: float) -> int:
    """How many messages came. The stream is of no use afterwards."""
    count = 0
    try:
        async with asyncio.timeout(seconds):
            while await stream.read() is not grpc.aio.EOF:
                count += 1
    except TimeoutError:
        pass
    return count


async def report(running: Shell, ready: int, starting: int = 0) -> None:
    await ours_grpc.ReplicasStub(running.hints).Report(
        ours.ReplicaReport(
            workload=ours.WorkloadRef(namespace="team-a", name="llama"),
            ready=ready,
            starting=[ours.StartingReplica(started_seconds_ago=3)] * starting,
        )
    )


async def test_repeats_end_when_replicas_serve_and_go_on_while_one_starts(shell: RunShell, world: World) -> None:
    world.default = 2.0
    async with shell() as running:
        keda = Keda(running, current, trigger(heartbeatSeconds="1"))
        await report(running, ready=1)
        stream = keda.stream()
        async with asyncio.timeout(30):
            assert (await stream.read()).result is True
        await report(running, ready=1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await stream.read()
        stream = keda.stream()
        await stream.read()
        await report(running, ready=1, starting=1)
        async with asyncio.timeout(30):
            assert (await stream.read()).result is True


async def test_a_failing_workload_stays_active_on_its_stream_for_hold_and_ten_minutes(
    shell: RunShell, world: World
) -> None:
    world.default = 2.0
    async with shell() as running:
        keda = Keda(running, current, trigger(heartbeatSeconds="1", holdSeconds="30"))
        stream = keda.stream()
        await stream.read()
        await report(running, ready=4)  # replicas serve: nothing to repeat but for the failure
        world.default = SourceUnavailable("gone")
        async with asyncio.timeout(30):
            assert (await stream.read()).result is True
        running.clock.forward(500)  # within 30 s + 600 s
        async with asyncio.timeout(30):
            assert (await stream.read()).result is True
        running.clock.forward(200)
        await asyncio.sleep(1.1)
        assert await messages_within(stream, 4) <= 1


async def test_streams_end_with_ok_before_the_connection_is_too_old(shell: RunShell, world: World) -> None:
    world.default = 1.0
    async with shell(ShellSettings(server={"max_connection_age_seconds": 1000.0})) as running:
        keda = Keda(running, current, trigger())
        stream = keda.stream()
        assert (await stream.read()).result is True
        running.clock.forward(690)
        await asyncio.sleep(1.2)
        assert not stream.done()
        running.clock.forward(120)
        async with asyncio.timeout(30):
            while await stream.read() is not grpc.aio.EOF:
                pass
        assert await stream.code() == grpc.StatusCode.OK
        assert (await keda.stream().read()).result is True


async def test_stream_metric_spec_is_unimplemented_unless_switched_on(shell: RunShell, world: World) -> None:
    world.default = 1.0
    async with shell() as running:
        stream = Keda(running, current, trigger()).stream("StreamMetricSpec", current.GetMetricSpecResponse)
        assert await stream.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_stream_metric_spec_sends_at_open_what_getmetricspec_says(shell: RunShell, world: World) -> None:
    world.default = 1.0
    async with shell(ShellSettings(server={"stream_metric_spec": True})) as running:
        keda = Keda(running, current, trigger())
        stream = keda.stream("StreamMetricSpec", current.GetMetricSpecResponse)
        async with asyncio.timeout(30):
            assert (await stream.read()).metricSpecs[0] == await keda.spec()
        running.stop.set()
        async with asyncio.timeout(30):
            assert await stream.read() is grpc.aio.EOF
        assert await stream.code() == grpc.StatusCode.OK


async def test_invalid_metadata_is_told_whole_and_repeats_are_cheap(shell: RunShell, world: World) -> None:
    async with shell() as running:
        keda = Keda(
            running, current, {"source": "scripted", "world": "w", "object": "x", "treshold": "4", "holdSeconds": "-1"}
        )
        for _ in range(3):
            code, detail = await code_of(keda.spec())
            assert code == grpc.StatusCode.INVALID_ARGUMENT
            assert "threshold" in detail
            assert "holdSeconds" in detail
    assert world.opened == 0


async def test_getmetricspec_needs_no_source(shell: RunShell, world: World) -> None:
    world.open_error = OSError("no such library")
    async with shell() as running:
        keda = Keda(running, current, trigger())
        spec = await keda.spec()
        assert (spec.metricName, spec.targetSize, spec.targetSizeFloat) == ("target-scripted-orders", 5, 5.0)
        code, _ = await code_of(keda.metrics(spec.metricName))
        assert code == grpc.StatusCode.UNAVAILABLE


async def test_a_rotated_secret_takes_over_and_the_old_stream_carries_on(shell: RunShell, world: World) -> None:
    world.default = 0.0
    async with shell() as running:
        old = Keda(running, current, trigger(passwordFromEnv="first"))
        await old.poll()
        stream = old.stream()
        assert (await stream.read()).result is False
        running.clock.forward(30)
        new = Keda(running, current, trigger(passwordFromEnv="second"))
        assert await new.poll() == (0.0, 5.0, False)
        assert world.passwords == ["first", "second"]
        await asyncio.sleep(1.0)  # a read of the first may have been under way
        reads = len(world.reads)
        await asyncio.sleep(2.5)
        assert len(world.reads) - reads <= 3  # one client reads, once a second
        world.default = 6.0
        async with asyncio.timeout(15):  # KEDA's stream still holds the old secret
            assert (await stream.read()).result is True
        # The old credentials stop working; the new ones do work: nothing of that shows.
        assert await new.poll() == (6.0, 5.0, True)


async def test_an_edited_trigger_answers_at_once_though_nothing_can_be_read(shell: RunShell, world: World) -> None:
    world.default = 40.0
    async with shell(ShellSettings(reading=AS_BY_DEFAULT)) as running:
        await settled(Keda(running, current, trigger(threshold="5")), (40.0, 5.0, True))
        world.hang()
        new = Keda(running, current, trigger(threshold="10"))
        assert (await new.spec()).targetSizeFloat == 10.0  # which KEDA writes into the HPA once
        assert await new.poll() == (80.0, 10.0, True)  # as many replicas, against the new threshold
        world.resume()


async def test_two_triggers_on_one_object_both_live(shell: RunShell, world: World) -> None:
    world.default = 8.0
    async with shell() as running:
        pair = [Keda(running, current, trigger(threshold=threshold)) for threshold in ("2", "4")]
        for _ in range(3):
            assert [await keda.poll() for keda in pair] == [(8.0, 2.0, True), (8.0, 4.0, True)]
            running.clock.forward(30)
            await asyncio.sleep(1.2)


async def test_a_workload_nobody_asks_about_is_read_no_more(shell: RunShell, world: World) -> None:
    world.default = 1.0
    async with shell() as running:
        await Keda(running, current, trigger()).poll()
        running.clock.forward(601)

        async def gone() -> bool:
            return not (await ours_grpc.ExplainStub(running.hints).List(ours.ListRequest())).explanations

        await until(gone)
        reads = len(world.reads)
        await asyncio.sleep(1.5)
        assert len(world.reads) == reads


async def test_a_stream_keeps_its_workload(shell: RunShell, world: World) -> None:
    world.default = 1.0
    async with shell() as running:
        stream = Keda(running, current, trigger()).stream()
        await stream.read()
        for _ in range(2):
            running.clock.forward(550)
            await asyncio.sleep(1.2)
        assert len((await ours_grpc.ExplainStub(running.hints).List(ours.ListRequest())).explanations) == 1


def test_the_old_protocol_has_no_floats(before_2_17: ModuleType) -> None:
    fields = {field.name for field in before_2_17.MetricValue.DESCRIPTOR.fields}
    assert fields == {"metricName", "metricValue"}
