"""What every source must do, whatever it reads: one suite over every file of scaler/sources."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from scaler.addresses import AddressGuard
from scaler.errors import SourceDenied, SourceError, SourceTimeout, SourceUnavailable, TriggerInvalid
from scaler.parameters import Belongs
from scaler.plugins import sources
from scaler.settings import Settings
from scaler.source import SourceContext
from scaler.trigger import OURS, Trigger, parse_trigger
from tests.sources.examples import SECRET, example

EVERY = sorted(sources())
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def trigger_at(source: str, port: int, host: str = "127.0.0.1") -> Trigger:
    return parse_trigger("team-a", "llama", example(source, host, port), Settings())


async def outcome_of(trigger: Trigger, *, private_allowed: bool = True, timeout_seconds: float = 1.0) -> object:
    """What one read of the trigger's query delivers; what leaves `read` counts as delivered, as in the service."""
    guard = AddressGuard(private_allowed=private_allowed)
    context = SourceContext(
        clock=time.monotonic,
        read_timeout_seconds=timeout_seconds,
        connect_timeout_seconds=timeout_seconds,
        max_response_bytes=100_000,
        check_address=guard.check,
        judge_address=guard.judge,
    )
    query = trigger.source.query(trigger.config)
    delivered: list[tuple[object, object]] = []
    async with trigger.source.open(trigger.config, context) as client:
        try:
            async with asyncio.timeout(60):
                await client.read([query], lambda query, outcome: delivered.append((query, outcome)))
        except SourceError as err:
            assert not delivered
            return err
    assert [got for got, _ in delivered] == [query]
    return delivered[0][1]


@contextlib.asynccontextmanager
async def server(talk: Talk) -> AsyncIterator[int]:
    running: set[asyncio.Task[object]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            running.discard(task)
            writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield int(listener.sockets[0].getsockname()[1])
    finally:
        listener.close()
        for task in tuple(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    while await reader.read(65_536):
        pass


def says(answer: bytes) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            writer.write(answer)
            await writer.drain()

    return talk


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(65_536)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"[" * 65_536 + b"\r\n"
    while True:
        writer.write(chunk)
        await writer.drain()


def http(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "content-type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize("source", EVERY)
def test_its_name_is_its_files_name_and_it_is_documented(source: str) -> None:
    found = sources()[source]
    assert found.name == source
    assert found.summary
    assert found.sample_seconds > 0
    assert not [parameter.name for parameter in found.parameters if len(parameter.help) < 6]


@pytest.mark.parametrize("source", EVERY)
def test_no_key_is_declared_twice_or_taken_from_us(source: str) -> None:
    keys = [key for parameter in sources()[source].parameters for key in parameter.keys]
    assert len(keys) == len(set(keys))
    ours = {parameter.name for parameter in OURS} - {"onNoData", "staleSeconds", "metricName"}
    assert not ours & set(keys)
    assert not {"scalerAddress", "enableTLS", "unsafeSsl"} & set(keys)


@pytest.mark.parametrize("source", EVERY)
def test_secrets_belong_to_credentials(source: str) -> None:
    for parameter in sources()[source].parameters:
        if parameter.secret and parameter.refused is None:
            assert parameter.belongs is not Belongs.TRIGGER, parameter.name


def test_listing_the_sources_loads_no_client_library() -> None:
    script = (
        "import sys; from scaler.plugins import sources; sources(); "
        "print([m for m in ('aiobotocore', 'botocore', 'aiokafka', 'aio_pika', 'aiohttp', 'requests', "
        "'prometheus_api_client', 'kubernetes_asyncio', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("source", EVERY)
def test_equal_triggers_share_a_client_and_a_read(source: str) -> None:
    one, other = trigger_at(source, 1234), trigger_at(source, 1234)
    assert one.config == other.config
    assert one.source.endpoint(one.config) == other.source.endpoint(other.config)
    assert hash(one.source.query(one.config)) == hash(other.source.query(other.config))
    elsewhere = trigger_at(source, 4321)
    assert one.source.endpoint(one.config) != elsewhere.source.endpoint(elsewhere.config)
    assert one.identity != elsewhere.identity


@pytest.mark.parametrize("source", EVERY)
def test_secrets_are_shown_nowhere(source: str) -> None:
    trigger = trigger_at(source, 1234)
    shown = [repr(trigger.config), repr(trigger.source.query(trigger.config)), trigger.identity, trigger.metric_name]
    shown += [repr(trigger.source.endpoint(trigger.config)), *trigger.warnings]
    assert not [text for text in shown if SECRET in text]


@pytest.mark.parametrize("source", EVERY)
@pytest.mark.parametrize(
    "text", ["", " ", "\x00", "\ud800", "a" * 5000, "☃", "{}", "../..", "%", "http://[", "-1", "1e400"]
)
def test_odd_values_are_refused_or_taken_never_a_crash(source: str, text: str) -> None:
    good = example(source, "127.0.0.1", 1234)
    for parameter in (*sources()[source].parameters, *OURS):
        if parameter.name == "source":
            continue
        with contextlib.suppress(TriggerInvalid):
            parse_trigger("team-a", "llama", good | {parameter.name: text}, Settings())


@pytest.mark.parametrize("source", EVERY)
async def test_an_address_where_nobody_listens_is_unavailable(source: str) -> None:
    async with server(silence) as port:
        pass  # free again
    outcome = await outcome_of(trigger_at(source, port))
    assert isinstance(outcome, SourceUnavailable)
    assert SECRET not in str(outcome)


@pytest.mark.parametrize("source", EVERY)
async def test_a_name_that_does_not_resolve_is_unavailable(source: str) -> None:
    outcome = await outcome_of(trigger_at(source, 1234, host="no-such-host.invalid"), timeout_seconds=5)
    assert isinstance(outcome, SourceUnavailable)


@pytest.mark.parametrize("source", EVERY)
async def test_a_server_that_never_answers_times_out(source: str) -> None:
    async with server(silence) as port:
        started_at_seconds = time.monotonic()
        outcome = await outcome_of(trigger_at(source, port))
        assert isinstance(outcome, SourceTimeout)
        assert time.monotonic() - started_at_seconds < 15


@pytest.mark.parametrize("source", EVERY)
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"\x00\xff" * 50, id="bytes of no protocol"),
        pytest.param(http("200 OK", b"\xff\xfe\x00nonsense"), id="not UTF-8"),
        pytest.param(http("200 OK", b"[]"), id="another shape of JSON"),
        pytest.param(http("200 OK", b"{}"), id="empty object"),
        pytest.param(http("200 OK", b"null"), id="null"),
        pytest.param(http("200 OK", b"[" * 50_000), id="deeply nested"),
        pytest.param(
            http("500 Internal Server Error", f"password {SECRET}".encode()), id="an error that tells secrets"
        ),
        pytest.param(http("302 Found", b"", "location: http://169.254.169.254/latest/"), id="a redirect"),
    ],
)
async def test_answers_that_make_no_sense_are_errors_never_zero(source: str, answer: bytes) -> None:
    async with server(says(answer)) as port:
        outcome = await outcome_of(trigger_at(source, port))
    assert isinstance(outcome, SourceError)
    assert SECRET not in str(outcome)
    assert len(str(outcome)) < 500


@pytest.mark.parametrize("source", EVERY)
async def test_an_endless_answer_is_cut_off(source: str) -> None:
    async with server(flood) as port:
        outcome = await outcome_of(trigger_at(source, port), timeout_seconds=5)
    assert isinstance(outcome, SourceError)


@pytest.mark.parametrize("source", EVERY)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_tenant_cannot_reach_loopback(source: str, host: str) -> None:
    reached = False

    async def notice(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        nonlocal reached
        reached = True

    async with server(notice) as port:
        outcome = await outcome_of(trigger_at(source, port, host=host), private_allowed=False, timeout_seconds=20)
    assert isinstance(outcome, SourceDenied)
    assert not reached


@pytest.mark.parametrize("source", EVERY)
async def test_errors_survive_being_copied(source: str) -> None:
    async with server(silence) as port:
        pass
    outcome = await outcome_of(trigger_at(source, port))
    assert str(pickle.loads(pickle.dumps(outcome))) == str(outcome)


@pytest.mark.parametrize("policy", [{}, {"policy": "slo"}, {"dryRun": "true"}], ids=["target", "slo", "dry run"])
@pytest.mark.parametrize("said", [{}, {"serviceSeconds": "8"}], ids=["not said", "said"])
@pytest.mark.parametrize("source", EVERY)
def test_who_leaves_slo_without_a_service_time_where_nothing_counts_is_told(
    source: str, said: dict[str, str], policy: dict[str, str]
) -> None:
    metadata = example(source, "127.0.0.1", 1) | policy | said
    if policy:
        metadata |= {"waitSeconds": "30"}
    trigger = parse_trigger("team-a", "llama", metadata, Settings())
    told = [warning for warning in trigger.warnings if warning.startswith("serviceSeconds is not given")]
    assert bool(told) is (bool(policy) and not said and source not in {"kafka", "rabbitmq"})


ACTIVATION = {
    "kafka": "activationLagThreshold",
    "rabbitmq": "activationValue",
    "sqs": "activationQueueLength",
}


@pytest.mark.parametrize("source", EVERY)
def test_an_activation_threshold_where_it_has_no_effect_is_told(source: str) -> None:
    key = ACTIVATION.get(source, "activationThreshold")
    plain = example(source, "127.0.0.1", 1)
    for policy, value, is_told in (
        ({}, "10", False),
        ({"policy": "slo", "waitSeconds": "30"}, "10", True),
        ({"policy": "slo", "waitSeconds": "30"}, "0", False),
        ({"policy": "slo", "waitSeconds": "30"}, "0" if source in {"kafka", "sqs"} else "0.0", False),
        ({"policy": "target+burst"}, "10", False),
        ({"policy": "steps", "steps": "1:2"}, "10", True),
        ({"answer": "jobs"}, "10", False),
    ):
        trigger = parse_trigger("team-a", "llama", plain | policy | {key: value}, Settings())
        assert any(warning.startswith(f"{key} is for policy target") for warning in trigger.warnings) is is_told


@pytest.mark.parametrize("source", EVERY)
def test_an_activation_threshold_from_the_environment_counts_where_it_is_the_one_that_is_read(source: str) -> None:
    key = ACTIVATION.get(source, "activationThreshold")
    plain = example(source, "127.0.0.1", 1) | {"policy": "slo", "waitSeconds": "30"}
    for values, is_told in (
        ({f"{key}FromEnv": "10"}, True),
        ({f"{key}FromEnv": "0"}, False),
        ({key: "10", f"{key}FromEnv": "0"}, True),
        ({key: "0", f"{key}FromEnv": "not read"}, False),
    ):
        trigger = parse_trigger("team-a", "llama", plain | values, Settings())
        assert any(warning.startswith(f"{key} is for policy target") for warning in trigger.warnings) is is_told
