"""The client against real sockets: who is asked how, and servers that hang, lie, redirect or flood."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import gzip
import hashlib
import hmac
import os
import socket
import stat
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import pytest

from scaler.addresses import AddressGuard
from scaler.errors import (
    SourceDenied,
    SourceError,
    SourceMissing,
    SourceTimeout,
    SourceUnavailable,
)
from scaler.parameters import Secret
from scaler.promql import client as client_module
from scaler.promql.client import open_client
from scaler.promql.endpoint import Server
from scaler.promql.questions import Answer, Question
from tests.services.certificates import CertificateAuthority
from tests.sources.prometheus.server import (
    ONE,
    Asked,
    Reply,
    answering_server,
    ask,
    config_of,
    context,
    hung_server,
    local,
    outcomes,
)

GOOD = {"threshold": "10", "query": "up"}


def server_of(port: int, metadata: dict[str, str], *, scheme: str = "http", path: str = "") -> Server:
    address = {"serverAddress": f"{scheme}://127.0.0.1:{port}{path}"}
    return config_of(GOOD | address | metadata).common.server


def value_of(outcome: object) -> float:
    assert isinstance(outcome, Answer), outcome
    return outcome.result.series[0].value


# What is sent.


async def test_the_query_goes_to_the_api_below_the_servers_path() -> None:
    with answering_server() as server:
        found = await ask(local(server.port, path="/team-a"), 'sum(rate(x{a="b+c d"}[5m]))')
    assert value_of(found) == 2.5
    (asked,) = server.asked
    assert asked.path == "/team-a/api/v1/query"
    assert asked.parameters["query"] == ['sum(rate(x{a="b+c d"}[5m]))']
    assert set(asked.parameters) == {"query", "timeout"}
    assert asked.headers["Accept-Encoding"] == "identity"
    assert "Authorization" not in asked.headers


async def test_a_trailing_slash_of_the_address_is_not_doubled() -> None:
    with answering_server() as server:
        await ask(server_of(server.port, {}, path="/p/"))
    assert server.asked[0].path == "/p/api/v1/query"


async def test_parameters_and_headers_of_the_trigger_are_sent() -> None:
    with answering_server() as server:
        found = server_of(server.port, {"customHeaders": "X-Client-Id=cid,X-Tenant-Id=tid"})
        await ask(found, Question(text="up", parameters=(("namespace", "a&b=c"), ("dedup", "true"))))
    (asked,) = server.asked
    assert asked.headers["X-Client-Id"] == "cid"
    assert asked.headers["X-Tenant-Id"] == "tid"
    assert asked.parameters["namespace"] == ["a&b=c"]
    assert asked.parameters["dedup"] == ["true"]


@pytest.mark.parametrize(
    ("metadata", "header", "value"),
    [
        ({"authModes": "bearer", "bearerToken": "tooken\n"}, "Authorization", "Bearer tooken"),
        (
            {"authModes": "basic", "username": "me", "password": "pä:ss"},
            "Authorization",
            f"Basic {base64.b64encode('me:pä:ss'.encode()).decode()}",
        ),
        ({"authModes": "basic", "username": "me"}, "Authorization", f"Basic {base64.b64encode(b'me:').decode()}"),
        ({"authModes": "custom", "customAuthHeader": "X-Key\n", "customAuthValue": "v\n"}, "X-Key", "v"),
        ({"authModes": "apiKey", "apiKey": "k"}, "X-API-KEY", "k"),
        ({"authModes": "apiKey", "apiKey": "k", "keyParamName": "X-Mine"}, "X-Mine", "k"),
        (
            {"authModes": "bearer", "bearerToken": "t", "customHeaders": "Authorization=mine"},
            "Authorization",
            "Bearer t",
        ),
    ],
    ids=["bearer", "basic", "basic without password", "custom", "apiKey", "apiKey by another name", "precedence"],
)
async def test_credentials_are_sent_as_the_mode_says(metadata: dict[str, str], header: str, value: str) -> None:
    with answering_server() as server:
        await ask(server_of(server.port, metadata))
    assert server.asked[0].headers[header] == value


async def test_an_api_key_may_go_into_the_url() -> None:
    with answering_server() as server:
        await ask(server_of(server.port, {"authModes": "apiKey", "apiKey": "k&", "method": "query"}))
    assert server.asked[0].parameters["api_key"] == ["k&"]


async def test_a_rotated_token_is_sent_from_the_next_read_on(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    with answering_server() as server:
        found = replace(local(server.port), bearer_token=Secret(path=str(file)))
        async with open_client(found, context()) as client:
            await outcomes(client, Question(text="up"))
            file.write_text("second")
            await outcomes(client, Question(text="up"))
    assert [asked.headers["Authorization"] for asked in server.asked] == ["Bearer first", "Bearer second"]
    assert server.connections == 1


async def test_a_token_that_would_break_the_line_is_not_sent(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("a\r\nX-Evil: b")
    with answering_server() as server:
        found = await ask(replace(local(server.port), bearer_token=Secret(path=str(file))))
    assert isinstance(found, SourceDenied)
    assert "Evil" not in str(found)
    assert server.asked == []


async def test_nothing_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with answering_server() as server:
        assert value_of(await ask(local(server.port))) == 2.5
    assert "Authorization" not in server.asked[0].headers


async def test_no_cookie_is_kept() -> None:
    with answering_server() as server:
        server.reply = Reply(headers={"Set-Cookie": "a=b"})
        async with open_client(local(server.port), context()) as client:
            await outcomes(client, Question(text="up"))
            await outcomes(client, Question(text="up"))
    assert len(server.asked) == 2
    assert all("Cookie" not in asked.headers for asked in server.asked)


def test_the_signature_is_that_of_sigv4() -> None:
    """Recomputed here from the published algorithm, not with botocore."""

    async def run() -> Asked:
        with answering_server() as server:
            metadata = {
                "awsRegion": "eu-west-1",
                "awsAccessKeyID": "AKID",
                "awsSecretAccessKey": "SECRET",
                "awsSessionToken": "TOKEN",
            }
            await ask(
                server_of(server.port, metadata, path="/workspaces/ws-1"),
                Question(text='sum(x{a="b + c/d~é"})', parameters=(("z", "1"), ("A", "2"))),
            )
            return server.asked[0]

    asked = asyncio.run(run())
    assert asked.headers["X-Amz-Security-Token"] == "TOKEN"
    scheme, _, rest = asked.headers["Authorization"].partition(" ")
    parts = dict(part.strip().split("=", 1) for part in rest.split(","))
    assert scheme == "AWS4-HMAC-SHA256"
    moment = asked.headers["X-Amz-Date"]
    scope = f"{moment[:8]}/eu-west-1/aps/aws4_request"
    assert parts["Credential"] == f"AKID/{scope}"
    signed = parts["SignedHeaders"].split(";")
    assert {"host", "x-amz-date", "x-amz-security-token"} <= set(signed)
    url = urlsplit(asked.raw_path)
    assert "+" not in url.query  # AWS would take it for itself
    pairs = sorted((quote(k, safe="-_.~"), quote(v, safe="-_.~")) for k, v in parse_qsl(url.query))
    headers = {name.lower(): value.strip() for name, value in asked.headers.items()}
    canonical = "\n".join(
        [
            "GET",
            quote(url.path, safe="/-_.~"),
            "&".join(f"{k}={v}" for k, v in pairs),
            *(f"{name}:{headers[name]}" for name in signed),
            "",
            ";".join(signed),
            hashlib.sha256(b"").hexdigest(),
        ]
    )
    to_sign = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = b"AWS4SECRET"
    for element in scope.split("/"):
        key = hmac.new(key, element.encode(), hashlib.sha256).digest()
    assert parts["Signature"] == hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
    sent = dt.datetime.strptime(moment, "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    assert abs((dt.datetime.now(dt.UTC) - sent).total_seconds()) < 60


# What comes back.


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (Reply(status=302, headers={"Location": "http://127.0.0.1:1/"}), SourceDenied, "redirects"),
        (Reply(status=301), SourceDenied, "redirects"),
        (Reply(b'{"status":"error","errorType":"bad_data","error":"s3cr3t"}', 400), SourceMissing, "parse the query"),
        (Reply(b"s3cr3t", 400), SourceMissing, "no Prometheus API"),
        (Reply(b"s3cr3t", 401), SourceDenied, "authModes"),
        (Reply(b"s3cr3t", 403), SourceDenied, "credentials"),
        (Reply(b"s3cr3t", 404), SourceMissing, "serverAddress"),
        (Reply(b'{"errorType":"execution","error":"s3cr3t"}', 422), SourceUnavailable, "evaluate"),
        (Reply(b'{"errorType":"timeout","error":"s3cr3t"}', 503), SourceTimeout, "cheaper"),
        (Reply(b'{"errorType":"s3cr3t"}', 503), SourceUnavailable, "503"),
        (Reply(b"s3cr3t", 500), SourceUnavailable, "500"),
        (Reply(b"s3cr3t", 429), SourceUnavailable, "429"),
        (Reply(b"<html>s3cr3t</html>"), SourceMissing, "not JSON"),
        (Reply(b"\xff\xfe\x00s3cr3t"), SourceMissing, "not JSON"),
        (Reply(b'"s3cr3t"'), SourceMissing, "not JSON"),
        (Reply(b""), SourceMissing, "not JSON"),
        (Reply(b"{}"), SourceMissing, "not one of the Prometheus API"),  # KEDA: an empty result, so 0
        (Reply(b'{"status":"success","data":{}}'), SourceMissing, "not one of the Prometheus API"),
        (Reply(b'{"status":"success","data":null}'), SourceMissing, "not one of the Prometheus API"),
        (Reply(b"[" * 200_000), SourceMissing, "not JSON"),
        (Reply(b'{"a":' * 200_000), SourceMissing, "not JSON"),
        (Reply(b'{"status":"error","error":"s3cr3t"}'), SourceUnavailable, "error"),
        (Reply(gzip.compress(ONE), headers={"Content-Encoding": "gzip"}), SourceUnavailable, "compressed"),
        (Reply(b'{"data":{"resultType":"vector","result":5}}'), SourceUnavailable, "instant query"),
        (Reply(b'{"data":{"resultType":[],"result":{}}}'), SourceUnavailable, "instant query"),
        (Reply(b"{}", headers={"Content-Length": "10"}, closes=True), SourceUnavailable, "connection failed"),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else None,
)
async def test_a_bad_answer_is_the_right_error_and_never_repeats_its_body(
    reply: Reply, error: type[SourceError], words: str
) -> None:
    with answering_server() as server:
        server.reply = reply
        found = await ask(local(server.port))
    assert type(found) is error, found
    assert words in str(found)
    assert f"127.0.0.1:{server.port}" in str(found)
    assert "s3cr3t" not in str(found)


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "only sent"])
async def test_a_huge_body_is_not_read_to_its_end(*, announced: bool) -> None:
    with answering_server() as server:
        huge = b" " * 8_000_000
        headers = {} if announced else {"Content-Length": "8000000000", "Transfer-Encoding": "identity"}
        if not announced:
            headers = {"Content-Length": "", "Connection": "close"}
        server.reply = Reply(huge, headers=headers, closes=True)
        found = await ask(local(server.port))
        small = await ask(local(server.port), max_response_bytes=1000)
    assert isinstance(found, SourceUnavailable)
    assert "larger than 2097152 bytes" in str(found)
    assert "larger than 1000 bytes" in str(small)


async def test_a_server_that_ends_idle_connections_costs_no_read() -> None:
    with answering_server() as server:
        server.reply = Reply(closes=True)
        async with open_client(local(server.port), context()) as client:
            for _ in range(5):
                assert value_of((await outcomes(client, Question(text="up")))[0]) == 2.5
    assert server.connections == 5


async def test_a_connection_that_dies_when_it_is_used_again_is_made_anew_once() -> None:
    """The server takes the second request of a connection and resets it without an answer."""
    lines = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(ONE), b"", ONE]
    accepted = ended = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted, ended
        accepted += 1
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"\r\n".join(lines))
            await writer.drain()
            await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
        ended += 1

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with open_client(local(port), context()) as client:
            for _ in range(3):
                assert value_of((await outcomes(client, Question(text="up")))[0]) == 2.5
        await until(lambda: ended == 3)
        assert accepted == 3


async def test_connections_are_kept_between_reads() -> None:
    with answering_server() as server:
        async with open_client(local(server.port), context()) as client:
            for _ in range(5):
                await outcomes(client, *(Question(text=f"up{n}") for n in range(20)))
    assert len(server.asked) == 100
    assert server.connections <= client_module.THREADS


async def test_each_outcome_is_delivered_when_it_is_there() -> None:
    gate = threading.Event()
    with answering_server() as server:

        def reply(asked: Asked) -> Reply:
            return Reply(before_piece=gate.wait) if asked.parameters["query"] == ["slow"] else Reply()

        server.reply = reply
        order: list[str] = []

        def deliver(query: Any, outcome: object) -> None:
            order.append(query.text)
            assert isinstance(outcome, Answer)
            if query.text == "fast":
                gate.set()

        async with open_client(local(server.port), context()) as client:
            await client.read([Question(text="slow"), Question(text="fast")], deliver)
    assert order == ["fast", "slow"]


async def test_the_freshness_and_wake_queries_are_part_of_the_answer_and_may_fail_alone() -> None:
    with answering_server() as server:

        def reply(asked: Asked) -> Reply:
            return Reply(b"", 500) if asked.parameters["query"] == ["age"] else Reply()

        server.reply = reply
        found = await ask(local(server.port), Question(text="up", freshness="age", wake="wake"))
        failed = await ask(local(server.port), Question(text="age", wake="wake"))
    assert isinstance(found, Answer)
    assert isinstance(found.freshness, SourceUnavailable)
    assert found.wake is not None
    assert not isinstance(found.wake, SourceError)
    assert found.wake.series[0].value == 2.5
    assert isinstance(failed, SourceUnavailable)
    assert server.connections == 2


async def test_a_query_that_is_refused_costs_no_connection() -> None:
    with answering_server() as server:
        server.reply = Reply(b'{"status":"error","errorType":"bad_data"}', 400)
        async with open_client(local(server.port), context()) as client:
            for _ in range(3):
                assert isinstance((await outcomes(client, Question(text="up{")))[0], SourceMissing)
    assert server.connections == 1


# Servers that hang.


async def test_a_server_that_never_answers_costs_its_time_and_frees_the_thread() -> None:
    with hung_server() as port:
        started = time.monotonic()
        async with open_client(local(port), context(read_timeout_seconds=0.3)) as client:
            (found,) = await outcomes(client, Question(text="up"))
            assert isinstance(found, SourceTimeout)
            assert "0.3 s" in str(found)
            assert time.monotonic() - started < 10
            await until(lambda: not client._busy)


@pytest.mark.parametrize("silent", ["handshake", "headers", "body"])
async def test_a_server_that_drips_is_cut_at_the_deadline(silent: str) -> None:
    """A byte now and then resets a socket's own timeout each time: only the deadline of the whole ends it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if silent != "handshake":
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n" if silent == "headers" else b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            # A TLS record that announces 16 KiB of handshake, or a header or a body without end.
            writer.write(b"\x16\x03\x03\x3f\xff" if silent == "handshake" else b"X-A: ")
            while True:
                writer.write(b"\x02" if silent == "handshake" else b"a")
                await writer.drain()
                await asyncio.sleep(0.02)
        except OSError:
            gone.set()
        finally:
            writer.close()

    gone = asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found = local(port, scheme="https" if silent == "handshake" else "http")
        started = time.monotonic()
        # Within this, on a busy machine too, the client has made its TLS context and connected.
        async with open_client(found, context(read_timeout_seconds=3.0)) as client:
            (outcome,) = await outcomes(client, Question(text="up"))
            assert isinstance(outcome, SourceTimeout), outcome
            assert time.monotonic() - started < 15
            await until(lambda: not client._busy)
        async with asyncio.timeout(30):
            await gone.wait()


async def test_a_hung_server_says_that_its_threads_are_taken_and_starves_no_other() -> None:
    with hung_server() as port, answering_server() as server:
        async with (
            open_client(local(port), context()) as hung,
            open_client(local(server.port), context()) as fine,
        ):
            # They hang for longer than a busy machine stands still, and the others give up meanwhile.
            questions = [Question(text=f"q{n}", timeout_seconds=6.0) for n in range(client_module.THREADS)]
            stuck = asyncio.create_task(outcomes(hung, *questions))
            await until(lambda: len(hung._busy) == client_module.THREADS)
            waiting = [Question(text=f"late{n}", timeout_seconds=0.5) for n in range(50)]
            late = asyncio.create_task(outcomes(hung, *waiting))
            good = await outcomes(fine, *(Question(text=f"good{n}") for n in range(50)))
            assert all(isinstance(found, Answer) for found in good)
            for found in await late:
                assert isinstance(found, SourceTimeout)
                assert f"none of the {client_module.THREADS} threads that ask it was free" in str(found)
            assert all(isinstance(found, SourceTimeout) for found in await stuck)
            (again,) = await outcomes(hung, Question(text="again", timeout_seconds=2.0))
            assert "no answer within" in str(again)


async def test_many_questions_to_a_slow_server_wait_their_turn() -> None:
    """Eight threads and 40 ms each: the last of 300 questions waits 1.5 s, and none is told that no thread was free."""
    with answering_server() as server:
        server.reply = Reply(before_piece=lambda: time.sleep(0.04))
        async with open_client(local(server.port), context(read_timeout_seconds=20.0)) as client:
            found = await outcomes(client, *(Question(text=f"q{n}") for n in range(300)))
    assert all(isinstance(outcome, Answer) for outcome in found)


async def test_a_read_that_is_cancelled_frees_its_threads() -> None:
    with hung_server() as port:
        async with open_client(local(port), context(read_timeout_seconds=60.0)) as client:
            reading = asyncio.create_task(outcomes(client, Question(text="a"), Question(text="b")))
            await until(lambda: len(client._busy) == 2)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            await until(lambda: not client._busy)


async def test_closing_the_client_ends_threads_that_hang() -> None:
    with hung_server() as port:
        before = threading.active_count()
        async with open_client(local(port), context(read_timeout_seconds=60.0)) as client:
            reading = asyncio.create_task(outcomes(client, Question(text="a")))
            await until(lambda: len(client._busy) == 1)
        await asyncio.gather(reading, return_exceptions=True)
        await until(lambda: threading.active_count() <= before)


async def test_no_socket_is_left_open() -> None:
    await ask(local(1))
    before = sockets()
    with answering_server() as server, hung_server() as port:
        await ask(local(server.port))
        await ask(local(port), read_timeout_seconds=0.1)
    await until(lambda: sockets() <= before)


async def test_the_triggers_own_timeout_counts_within_the_services() -> None:
    with hung_server() as port:
        short = await ask(local(port), Question(text="up", timeout_seconds=0.2))
        long = await ask(local(port), Question(text="up", timeout_seconds=60.0), read_timeout_seconds=0.3)
    assert "0.2 s" in str(short)
    assert "0.3 s" in str(long)


# Addresses.


async def test_a_refused_connection_says_so() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        found = await ask(local(unused.getsockname()[1]))
    assert type(found) is SourceUnavailable
    assert "refused" in str(found)


async def test_only_the_checked_addresses_are_connected_to() -> None:
    """The name would lead elsewhere (nowhere) if it were resolved again."""
    with answering_server() as server:
        found = await ask(
            replace(local(server.port), url=f"http://nowhere.invalid:{server.port}", host="nowhere.invalid")
        )
    assert value_of(found) == 2.5
    assert server.asked[0].headers["Host"] == f"nowhere.invalid:{server.port}"


async def test_the_next_address_is_tried() -> None:
    async def two(host: str, port: int) -> tuple[str, ...]:  # noqa: ARG001 - the guard's signature
        return ("127.0.0.2", "127.0.0.1")

    with answering_server() as server:
        assert value_of(await ask(local(server.port), check_address=two)) == 2.5


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "169.254.169.254", "0.0.0.0", "[::1]", "2130706433"])
async def test_metadata_reaches_no_address_that_it_may_not(host: str) -> None:
    with answering_server() as server:
        found = config_of(GOOD | {"serverAddress": f"http://{host}:{server.port}"}).common.server
        outcome = await ask(found, check_address=AddressGuard(private_allowed=False).check)
    assert isinstance(outcome, SourceError)
    assert server.asked == []


# TLS.


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


async def test_a_server_signed_by_the_given_authority_is_asked(authority: CertificateAuthority) -> None:
    with answering_server(authority.server_context(authority.server("good"))) as server:
        found = server_of(server.port, {"ca": authority.certificate_pem}, scheme="https")
        assert value_of(await ask(found)) == 2.5


async def test_the_client_certificate_is_shown_and_its_file_is_gone(
    authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    modes: list[int] = []
    unlink = os.unlink

    def watched(path: Any, **options: Any) -> None:
        modes.append(stat.S_IMODE(os.stat(path).st_mode))  # noqa: PTH116 - the descriptor's own view
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", watched)
    mine = authority.client("me")
    metadata = {"ca": authority.certificate_pem, "authModes": "tls", "cert": mine.certificate_pem, "key": mine.key_pem}
    with answering_server(authority.server_context(authority.server("strict"), require_client=True)) as server:
        found = server_of(server.port, metadata, scheme="https")
        assert value_of(await ask(found)) == 2.5
        without = await ask(server_of(server.port, {"ca": authority.certificate_pem}, scheme="https"))
    assert isinstance(without, SourceError)
    assert modes == [0o600]
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - no event loop waits here


async def test_a_rotated_client_certificate_is_shown_on_new_connections(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    first, second = authority.client("first"), authority.client("second")
    cert, key = tmp_path / "cert", tmp_path / "key"
    cert.write_text(first.certificate_pem)
    key.write_text(first.key_pem)
    with answering_server(authority.server_context(authority.server("rotating"), require_client=True)) as server:
        found = replace(
            local(server.port, scheme="https"),
            ca=Secret(authority.certificate_pem),
            cert=Secret(path=str(cert)),
            key=Secret(path=str(key)),
        )
        async with open_client(found, context()) as client:
            for _ in range(2):
                assert value_of((await outcomes(client, Question(text="up")))[0]) == 2.5
            assert server.connections == 1
            cert.write_text(second.certificate_pem)
            key.write_text(second.key_pem)
            assert value_of((await outcomes(client, Question(text="up")))[0]) == 2.5
            assert server.connections == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ca": None}, "not trusted"),
        ({"expired": True}, "not trusted"),
        ({"hosts": ("elsewhere.example",)}, "not trusted"),
        ({"ca": Secret("no certificate")}, "ca is not"),
        ({"cert": Secret("x"), "key": Secret("y")}, "cert and key"),
    ],
    ids=["unknown authority", "expired", "another host", "broken ca", "broken pair"],
)
async def test_wrong_tls_is_told_and_asks_a_person(
    authority: CertificateAuthority, changes: dict[str, Any], words: str
) -> None:
    certificate = authority.server(
        "wrong", hosts=changes.pop("hosts", ("127.0.0.1",)), expired=changes.pop("expired", False)
    )
    with answering_server(authority.server_context(certificate)) as server:
        found = replace(local(server.port, scheme="https"), **({"ca": Secret(authority.certificate_pem)} | changes))
        outcome = await ask(found)
    assert type(outcome) is SourceDenied, outcome
    assert words in str(outcome)
    assert server.asked == []


async def test_a_key_with_a_password_is_an_error_and_no_prompt(authority: CertificateAuthority) -> None:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - only here

    mine = authority.client("locked")
    key = serialization.load_pem_private_key(mine.key_pem.encode(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    ).decode()
    found = replace(local(1, scheme="https"), cert=Secret(mine.certificate_pem), key=Secret(locked))
    outcome = await ask(found)
    assert isinstance(outcome, SourceDenied)
    assert "without a password" in str(outcome)


async def test_source_unsafe_ssl_verifies_nothing(authority: CertificateAuthority) -> None:
    with answering_server(authority.server_context(authority.server("any", hosts=("elsewhere.example",)))) as server:
        found = server_of(server.port, {"sourceUnsafeSsl": "true"}, scheme="https")
        assert value_of(await ask(found)) == 2.5


async def test_plain_http_behind_https_is_told() -> None:
    with answering_server() as server:
        outcome = await ask(local(server.port, scheme="https"))
    assert isinstance(outcome, SourceDenied)
    assert "TLS failed" in str(outcome)


# What a connection allows.


async def test_matchers_of_a_connection_are_in_every_query_that_is_sent() -> None:
    allow = {"matchers": ('namespace="team-a"',)}
    with answering_server() as server:
        await ask(local(server.port), Question(text="sum(up)", freshness="f", wake="w{a='b'}"), allow=allow)
    assert [asked.parameters["query"][0] for asked in server.asked] == [
        'sum ( up {namespace = "team-a"} )',
        'f {namespace = "team-a"}',
        'w { namespace = "team-a" , a = "b" }',
    ]


@pytest.mark.parametrize(
    ("allow", "question"),
    [
        ({"matchers": ('namespace="a"',)}, Question(text="info(up)")),
        ({"matchers": ("namespace=",)}, Question(text="up")),
        ({"matchers": ()}, Question(text="up")),
        ({"queue": ("a",)}, Question(text="up")),
        ({"namespace": ("a",)}, Question(text="up")),
        ({"namespace": ("a",)}, Question(text="up", ours=True, wake="up")),
    ],
    ids=["unclear query", "broken matcher", "no matcher", "unknown kind", "namespace alone", "wake query alone"],
)
async def test_what_a_connection_cannot_hold_is_refused_and_not_sent(
    allow: dict[str, tuple[str, ...]], question: Question
) -> None:
    with answering_server() as server:
        outcome = await ask(local(server.port), question, allow=allow)
    assert isinstance(outcome, SourceDenied)
    assert server.asked == []


async def test_a_query_that_was_built_here_needs_no_matchers() -> None:
    with answering_server() as server:
        outcome = await ask(local(server.port), Question(text="up", ours=True), allow={"namespace": ("a",)})
    assert isinstance(outcome, Answer)


async def until(true: Any, *, seconds: float = 30.0) -> None:
    """Wait for something that other threads do."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def sockets() -> int:
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += entry.readlink().name.startswith("socket:")
        except OSError:
            continue
    return found
