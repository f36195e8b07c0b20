"""Whatever comes in gets a clear error: no traceback, no hang, no changed answer for anyone else."""

from __future__ import annotations

import asyncio
import string
from typing import Any
from urllib.parse import quote

import grpc
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler._generated import externalscaler_pb2 as pb
from scaler._generated import pilotlight_pb2 as ours
from scaler._generated import pilotlight_pb2_grpc as ours_grpc
from scaler.errors import PilotlightError, quoted
from scaler.evaluator import Evaluator
from scaler.settings import LimitSettings, RightsSettings, Settings, TelemetrySettings
from scaler.telemetry import Telemetry
from tests.service.conftest import RunShell, Shell, ShellSettings, until
from tests.service.scripted import SOURCE, World

GOOD = {"source": "scripted", "world": "w", "object": "orders"}


async def call(shell: Shell, method: str, body: bytes) -> tuple[grpc.StatusCode, str]:
    """The code and detail of a call with these very bytes."""
    stub: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = shell.keda.unary_unary(
        f"/externalscaler.ExternalScaler/{method}"
    )
    try:
        await stub(body, timeout=30)
    except grpc.aio.AioRpcError as err:
        return err.code(), err.details() or ""
    return grpc.StatusCode.OK, ""


def ref(metadata: dict[str, str], *, name: str = "llama", namespace: str = "team-a") -> bytes:
    return pb.ScaledObjectRef(name=name, namespace=namespace, scalerMetadata=metadata).SerializeToString()


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        pytest.param(b"\xff\xff\xff", "INVALID_ARGUMENT", "protobuf message", id="no protobuf"),
        pytest.param(b"\x0a\x02\xc3\x28", "INVALID_ARGUMENT", "UTF-8", id="a name that is not UTF-8"),
        pytest.param(b"", "INVALID_ARGUMENT", "Kubernetes name", id="nothing"),
        pytest.param(ref(GOOD, name=""), "INVALID_ARGUMENT", "Kubernetes name", id="no name"),
        pytest.param(ref(GOOD, name="a\nb"), "INVALID_ARGUMENT", "�", id="a line break in the name"),
        pytest.param(ref(GOOD, name="x" * 254), "INVALID_ARGUMENT", "at most 253", id="a name that is too long"),
        pytest.param(ref(GOOD, namespace="team/a"), "INVALID_ARGUMENT", "team/a", id="a slash in the namespace"),
        pytest.param(ref(GOOD, name="../../etc"), "INVALID_ARGUMENT", "Kubernetes name", id="a path as name"),
        pytest.param(ref({}), "INVALID_ARGUMENT", "required", id="no metadata"),
        pytest.param(ref(GOOD | {"source": "telnet"}), "INVALID_ARGUMENT", "telnet", id="an unknown source"),
        pytest.param(ref(GOOD | {"threshold": "NaN"}), "INVALID_ARGUMENT", "threshold", id="no number"),
        pytest.param(ref(GOOD | {"threshold": "1e999"}), "INVALID_ARGUMENT", "threshold", id="an infinite number"),
        pytest.param(ref(GOOD | {"\x00": "\x1b[31m"}), "INVALID_ARGUMENT", "unknown key", id="control characters"),
        pytest.param(ref(GOOD | {"\u202ekey": "x"}), "INVALID_ARGUMENT", "unknown key", id="a right-to-left override"),
        pytest.param(
            ref(GOOD | {f"key-{number}": "x" for number in range(5000)}),
            "RESOURCE_EXHAUSTED",
            "at most 128",
            id="five thousand keys",
        ),
        pytest.param(
            ref(GOOD | {"object": "x" * 100_000}), "RESOURCE_EXHAUSTED", "limits.metadataBytes", id="a huge value"
        ),
        pytest.param(ref(GOOD | {"object": "x" * 300_000}), "RESOURCE_EXHAUSTED", "message", id="a huge message"),
        pytest.param(ref(GOOD | {"steps": "1:" * 30_000}), "INVALID_ARGUMENT", "steps", id="a table bomb"),
    ],
)
async def test_bad_requests_are_told_what_is_wrong(
    shell: RunShell, world: World, body: bytes, code: str, words: str
) -> None:
    async with shell() as running:
        for method in ("IsActive", "GetMetricSpec"):
            got, detail = await call(running, method, body)
            assert got.name == code
            assert words in detail
            assert len(detail) <= 4_000
            assert detail.isprintable()
        assert (await call(running, "GetMetricSpec", ref(GOOD)))[0] == grpc.StatusCode.OK
        scrape = await _metrics(running)
    assert b"scaler_internal_errors_total 0.0" in scrape
    assert world.opened <= 1


@pytest.mark.parametrize("letter", ["😀", "é", "%", "x"])
async def test_a_long_error_in_any_script_keeps_its_code(shell: RunShell, world: World, letter: str) -> None:
    metadata = {"source": "rabbitmq"} | {f"{letter * 60}{number}": "x" for number in range(40)}
    async with shell() as running:
        for method in ("IsActive", "GetMetricSpec"):
            code, detail = await call(running, method, ref(metadata))
            assert code == grpc.StatusCode.INVALID_ARGUMENT, detail
            assert "unknown key" in detail
            assert len(quote(detail, safe=string.punctuation.replace("%", "") + " ")) <= 4_000
    assert world.opened == 0


def open_stream(shell: Shell) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
    """StreamIsActive of the good trigger."""
    stub: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = shell.keda.unary_stream(
        "/externalscaler.ExternalScaler/StreamIsActive"
    )
    return stub(ref(GOOD))


async def _metrics(shell: Shell, request: bytes = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") -> bytes:
    assert shell.serving.metrics is not None
    host, _, port = shell.serving.metrics.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    async with asyncio.timeout(30):
        body = await reader.read()
    writer.close()
    return body


async def test_the_same_bad_metadata_is_parsed_once(shell: RunShell, world: World) -> None:
    async with shell() as running:
        bad = ref(GOOD | {"treshold": "3"})
        details = {(await call(running, "GetMetricSpec", bad))[1] for _ in range(200)}
        assert len(details) == 1
        assert b"scaler_triggers_refused_total 1.0" in await _metrics(running)
    assert world.opened == 0


async def test_workloads_above_the_limit_keep_their_spec_and_say_why_they_are_not_read(
    shell: RunShell, world: World
) -> None:
    async with shell(ShellSettings(limits={"workloads": 2})) as running:
        for number in range(4):
            body = ref(GOOD, name=f"llama-{number}")
            assert (await call(running, "GetMetricSpec", body))[0] == grpc.StatusCode.OK
            code, detail = await call(running, "IsActive", body)
            if number < 2:
                assert code == grpc.StatusCode.OK
            else:
                assert (code, "limits.workloads" in detail) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        running.clock.forward(700)  # two expire: there is room again

        async def served() -> bool:
            return (await call(running, "IsActive", ref(GOOD, name="llama-3")))[0] == grpc.StatusCode.OK

        await until(served)
    assert world.asked["orders"] >= 2


async def test_one_scaled_object_can_not_fill_the_house(shell: RunShell, world: World) -> None:
    async with shell(ShellSettings(limits={"workloads_per_object": 3})) as running:
        codes = [
            (await call(running, "IsActive", ref(GOOD | {"password": str(number)})))[0].name for number in range(5)
        ]
    assert codes == ["OK", "OK", "OK", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"]
    assert world.opened == 3


async def test_streams_above_the_limit_are_refused(shell: RunShell, world: World) -> None:
    world.default = 1.0
    async with shell(ShellSettings(limits={"streams": 2})) as running:
        streams = [open_stream(running) for _ in range(2)]
        for stream in streams:
            await stream.read()
        refused = open_stream(running)
        assert await refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "limits.streams" in (await refused.details() or "")
        streams[0].cancel()

        async def another_is_let_in() -> bool:
            try:
                return bool(await open_stream(running).read())
            except grpc.aio.AioRpcError:
                return False

        await until(another_is_let_in)


async def test_an_endpoint_that_a_namespace_may_not_name_blocks_metrics_but_not_the_spec(
    shell: RunShell, world: World
) -> None:
    closed = Settings(rules=(RightsSettings(metadata_endpoints=False, metadata_credentials=False),))
    async with shell(ShellSettings(whole=closed)) as running:
        assert (await call(running, "GetMetricSpec", ref(GOOD)))[0] == grpc.StatusCode.OK
        code, detail = await call(running, "IsActive", ref(GOOD))
        assert (code, "metadataEndpoints" in detail) == (grpc.StatusCode.PERMISSION_DENIED, True)
        stream = open_stream(running)
        assert await stream.code() == grpc.StatusCode.PERMISSION_DENIED
    assert world.opened == 0


async def test_a_bug_of_ours_is_hidden_from_the_caller_and_logged_once(
    shell: RunShell, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_more: object) -> None:
        raise ZeroDivisionError("password=hunter2")

    monkeypatch.setattr(Evaluator, "undisturbed", broken)
    with structlog.testing.capture_logs() as logs:
        async with shell() as running:
            for _ in range(5):
                code, detail = await call(running, "IsActive", ref(GOOD))
                assert (code, "hunter2" in detail) == (grpc.StatusCode.INTERNAL, False)
    assert [log["event"] for log in logs].count("rpc_failed") == 1
    assert world.opened <= 1


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(b"GET /healthz HTTP/1.1\r\n\r\n", b"200", id="health"),
        pytest.param(b"GET /secrets HTTP/1.1\r\n\r\n", b"404", id="another path"),
        pytest.param(b"POST /metrics HTTP/1.1\r\n\r\n", b"405", id="another method"),
        pytest.param(b"\x16\x03\x01 \r\n\r\n", b"405", id="no HTTP"),
        pytest.param(b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", b"", id="endless"),
    ],
)
async def test_the_metrics_listener_answers_little_else(
    shell: RunShell, world: World, request_bytes: bytes, status: bytes
) -> None:
    async with shell() as running:
        answer = await _metrics(running, request_bytes)
    assert answer.split(b" ")[1:2] == ([status] if status else [])
    assert world.opened == 0


@pytest.mark.parametrize(
    ("report", "words"),
    [
        pytest.param({"ready": 1}, "Kubernetes name", id="no workload"),
        pytest.param({"workload": {"namespace": "a", "name": "b\x00"}}, "Kubernetes name", id="odd name"),
        pytest.param(
            {
                "workload": {"namespace": "a", "name": "b"},
                "starting": [{"started_seconds_ago": float("nan")}],
            },
            "started_seconds_ago",
            id="no number",
        ),
        pytest.param(
            {"workload": {"namespace": "a", "name": "b"}, "finished_cold_starts_seconds": [float("inf")]},
            "finished_cold_starts_seconds",
            id="an endless cold start",
        ),
        pytest.param(
            {"workload": {"namespace": "a", "name": "b"}, "finished_phases": [{"phase": 2, "seconds": -1}]},
            "finished_phases.seconds",
            id="a phase of less than no time",
        ),
        pytest.param(
            {"workload": {"namespace": "a", "name": "b"}, "finished_cold_starts_seconds": [9.0] * 5 + [float("nan")]},
            "finished_cold_starts_seconds",
            id="one of many is no number",
        ),
        pytest.param(
            {"workload": {"namespace": "a", "name": "b"}, "starting": [{"started_seconds_ago": -5}]},
            "started_seconds_ago",
            id="started in the future",
        ),
    ],
)
async def test_bad_replica_reports_are_refused(
    shell: RunShell, world: World, report: dict[str, Any], words: str
) -> None:
    async with shell() as running:
        with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
            await ours_grpc.ReplicasStub(running.hints).Report(ours.ReplicaReport(**report))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert world.opened == 0


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
keys = st.one_of(text, st.sampled_from(["source", "world", "object", "threshold", "steps", "policy", "holdSeconds"]))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(namespace=text, name=text, metadata=st.dictionaries(keys, text, max_size=12))
def test_any_metadata_is_either_admitted_or_refused_with_a_clear_error(
    namespace: str, name: str, metadata: dict[str, str]
) -> None:
    with structlog.testing.capture_logs():
        evaluator = Evaluator(
            settings=Settings(limits=LimitSettings(metadata_keys=10)), telemetry=Telemetry(TelemetrySettings())
        )
        for chosen in (metadata, GOOD | metadata):
            refusal = None
            try:
                workload = evaluator.admit(repr(chosen).encode(), namespace, name, chosen)
            except PilotlightError as err:
                refusal = err
            if refusal is None:
                assert workload.trigger.source is SOURCE
                assert quoted(workload.label).isascii()
            else:
                assert str(refusal).isprintable()
                assert refusal.grpc_code in {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
