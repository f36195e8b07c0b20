"""TLS and SASL against a real broker: what lets us in, and what is said when it does not."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from scaler.addresses import AddressGuard
from scaler.errors import SourceDenied, SourceError, SourceTimeout, SourceUnavailable
from scaler.parameters import Secret, read_values
from scaler.sources.kafka import SOURCE
from scaler.sources.kafka.client import KafkaClient
from scaler.sources.kafka.tokens import MskTokens, OAuthTokens, token_provider
from tests.services.certificates import CertificateAuthority
from tests.services.kafka import USERS, KafkaCluster
from tests.services.process import LOOPBACK, PATIENT_SECONDS, unique
from tests.services.tokens import serve_tokens
from tests.sources.kafka.helpers import Reader, commit, configured, context, reader

PASSWORD = USERS["alice"]


@pytest.fixture(scope="module")
def topic(kafka_cluster: KafkaCluster) -> str:
    name = unique("access")

    async def make() -> None:
        await kafka_cluster.create_topic(name)
        await commit(kafka_cluster.bootstrap, "access", {(name, 0): 0})  # the offsets topic is made on first use

    with ThreadPoolExecutor(1) as pool:  # a loop of its own, beside the one of pytest-asyncio
        pool.submit(asyncio.run, make()).result()
    return name


def tls(cluster: KafkaCluster, **more: str) -> dict[str, str]:
    return {"tls": "enable", "ca": cluster.authority.certificate_pem, **more}


def sasl(mechanism: str, **more: str) -> dict[str, str]:
    return {"sasl": mechanism, "username": "alice", "password": PASSWORD, **more}


async def let_in(cluster: KafkaCluster, listener: str, topic: str, said: Mapping[str, str]) -> None:
    trigger = {
        "bootstrapServers": cluster.listeners[listener],
        "consumerGroup": "access",
        "topic": topic,
        **said,
    }
    async with reader(trigger) as source:
        assert (await source.sample(trigger)).raw["partitions"] == 1.0


async def kept_out(cluster: KafkaCluster, listener: str, topic: str, said: Mapping[str, str]) -> SourceError:
    """The error; its text holds no secret."""
    with pytest.raises(SourceError) as caught:
        await let_in(cluster, listener, topic, said)
    text = str(caught.value)
    assert cluster.listeners[listener] in text or "cert and key" in text or "ca:" in text
    for secret in (PASSWORD, "wrong-password", "PRIVATE KEY"):
        assert secret not in text
    return caught.value


@pytest.mark.parametrize("mechanism", ["plaintext", "scram_sha256", "scram_sha512"])
@pytest.mark.parametrize("listener", ["SASL_PLAINTEXT", "SASL_SSL"])
async def test_passwords(kafka_cluster: KafkaCluster, topic: str, listener: str, mechanism: str) -> None:
    encrypted = tls(kafka_cluster) if listener == "SASL_SSL" else {}
    await let_in(kafka_cluster, listener, topic, {**encrypted, **sasl(mechanism)})


@pytest.mark.parametrize("mechanism", ["plaintext", "scram_sha256", "scram_sha512"])
async def test_a_wrong_password_is_denied(kafka_cluster: KafkaCluster, topic: str, mechanism: str) -> None:
    error = await kept_out(kafka_cluster, "SASL_PLAINTEXT", topic, sasl(mechanism, password="wrong-password"))
    assert isinstance(error, SourceDenied)
    assert "refused the credentials" in str(error)


async def test_a_wrong_password_is_not_tried_again_at_once(kafka_cluster: KafkaCluster, topic: str) -> None:
    trigger = {
        "bootstrapServers": kafka_cluster.listeners["SASL_PLAINTEXT"],
        "consumerGroup": "access",
        "topic": topic,
        **sasl("plaintext", password="wrong-password"),
    }
    async with reader(trigger, context(clock=Clock())) as source:  # no time passes, however busy the machine
        for _ in range(10):
            with pytest.raises(SourceDenied):
                await source.sample(trigger)
        assert sum(broker.connections for broker in source.client.brokers) == 1


async def test_a_rotated_password_is_used_at_the_next_connection(
    kafka_cluster: KafkaCluster, topic: str, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("wrong-password")
    said = {
        "bootstrapServers": kafka_cluster.listeners["SASL_PLAINTEXT"],
        "consumerGroup": "access",
        "topic": topic,
    }
    values = read_values(
        SOURCE.parameters,
        {**said, "sasl": "plaintext", "username": "alice"},
        fixed={"password": Secret(path=str(file))},
    )
    config = SOURCE.parse(values)
    now = [1000.0]
    async with SOURCE.open(config, context(clock=lambda: now[0])) as client:
        assert isinstance(client, KafkaClient)
        query = SOURCE.query(config)
        assert isinstance((await Reader(client).outcomes(query))[query], SourceDenied)
        file.write_text(PASSWORD + "\n")
        now[0] += 6
        assert not isinstance((await Reader(client).outcomes(query))[query], SourceError)


async def test_tls_with_the_right_authority(kafka_cluster: KafkaCluster, topic: str) -> None:
    await let_in(kafka_cluster, "SSL", topic, tls(kafka_cluster))


async def test_tls_with_a_client_certificate(kafka_cluster: KafkaCluster, topic: str) -> None:
    client = kafka_cluster.authority.client("alice")
    await let_in(kafka_cluster, "MTLS", topic, tls(kafka_cluster, cert=client.certificate_pem, key=client.key_pem))


async def test_tls_with_an_encrypted_key(kafka_cluster: KafkaCluster, topic: str) -> None:
    client = kafka_cluster.authority.client("alice")
    key = load_pem_private_key(client.key_pem.encode(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"opens-it")
    )
    said = tls(kafka_cluster, cert=client.certificate_pem, key=key.decode())
    await let_in(kafka_cluster, "MTLS", topic, {**said, "keyPassword": "opens-it"})
    for wrong in ({}, {"keyPassword": "wrong-password"}):
        error = await kept_out(kafka_cluster, "MTLS", topic, {**said, **wrong})
        assert isinstance(error, SourceDenied)
        assert "keyPassword" in str(error)


async def test_an_unknown_authority_is_denied(kafka_cluster: KafkaCluster, topic: str, tmp_path: Path) -> None:
    other = CertificateAuthority(tmp_path)
    for said in ({"tls": "enable"}, {"tls": "enable", "ca": other.certificate_pem}):
        error = await kept_out(kafka_cluster, "SSL", topic, said)
        assert isinstance(error, SourceDenied)
        assert "not trusted" in str(error)


async def test_any_certificate_passes_where_that_is_asked_for(kafka_cluster: KafkaCluster, topic: str) -> None:
    await let_in(kafka_cluster, "SSL", topic, {"tls": "enable", "sourceUnsafeSsl": "true"})


async def test_a_missing_client_certificate(kafka_cluster: KafkaCluster, topic: str) -> None:
    error = await kept_out(kafka_cluster, "MTLS", topic, tls(kafka_cluster))
    assert isinstance(error, SourceDenied)
    assert "`cert`" in str(error)


@pytest.mark.parametrize(
    ("said", "word"),
    [
        pytest.param({"ca": "no pem"}, "ca:", id="authority"),
        pytest.param({"cert": "no pem", "key": "no pem"}, "cert and key", id="pair"),
    ],
)
async def test_what_is_no_certificate(
    kafka_cluster: KafkaCluster, topic: str, said: Mapping[str, str], word: str
) -> None:
    error = await kept_out(kafka_cluster, "SSL", topic, {**tls(kafka_cluster), **said})
    assert isinstance(error, SourceDenied)
    assert word in str(error)


async def test_plain_text_to_a_tls_port(kafka_cluster: KafkaCluster, topic: str) -> None:
    error = await kept_out(kafka_cluster, "SSL", topic, {})
    assert isinstance(error, SourceUnavailable)
    assert "TLS" in str(error)


async def test_tls_to_a_plain_text_port(kafka_cluster: KafkaCluster, topic: str) -> None:
    error = await kept_out(kafka_cluster, "PLAINTEXT", topic, tls(kafka_cluster))
    assert isinstance(error, SourceUnavailable)
    assert "TLS" in str(error)


async def test_no_sasl_where_it_is_wanted(kafka_cluster: KafkaCluster, topic: str) -> None:
    error = await kept_out(kafka_cluster, "SASL_PLAINTEXT", topic, {})
    assert isinstance(error, SourceUnavailable)
    assert "SASL" in str(error)


async def test_sasl_where_it_is_not_offered(kafka_cluster: KafkaCluster, topic: str) -> None:
    error = await kept_out(kafka_cluster, "PLAINTEXT", topic, sasl("plaintext"))
    assert "SASL" in str(error)


# OAUTHBEARER

SECRET = "client-secret"


def oauth(url: str, **more: str) -> dict[str, str]:
    return {"sasl": "oauthbearer", "username": "alice", "password": SECRET, "oauthTokenEndpointUri": url, **more}


async def test_a_token_of_the_token_endpoint(kafka_cluster: KafkaCluster, topic: str) -> None:
    with serve_tokens(kafka_cluster.tokens, clients={"alice": SECRET}) as endpoint:
        said = {**tls(kafka_cluster), **oauth(endpoint.url, scopes="read, list")}
        await let_in(kafka_cluster, "SASL_SSL", topic, said)
        assert [asked.get("scope") for asked in endpoint.requests] == ["read list"]


async def test_an_expired_token_is_denied_by_the_broker(kafka_cluster: KafkaCluster, topic: str) -> None:
    with serve_tokens(kafka_cluster.tokens, clients={"alice": SECRET}, lifetime_seconds=-120.0) as endpoint:
        error = await kept_out(kafka_cluster, "SASL_PLAINTEXT", topic, oauth(endpoint.url))
    assert isinstance(error, SourceDenied)
    assert "OAUTHBEARER" in str(error)


def tokens(
    url: str,
    guard: AddressGuard | None = None,
    clock: Clock | None = None,
    timeout_seconds: float = PATIENT_SECONDS,
) -> OAuthTokens:
    config = configured({"bootstrapServers": "b:1", "consumerGroup": "g", "topic": "t", **oauth(url)})
    where = context(read_timeout_seconds=timeout_seconds, clock=clock or Clock())
    if guard is not None:
        where = replace(where, judge_address=guard.judge)
    provider = token_provider(config.endpoint.sasl, where)
    assert isinstance(provider, OAuthTokens)
    return provider


class Clock:
    """Monotonic seconds that move only when told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


async def test_a_token_is_kept_until_shortly_before_it_ends(kafka_cluster: KafkaCluster) -> None:
    clock = Clock()
    with serve_tokens(kafka_cluster.tokens, clients={"alice": SECRET}, lifetime_seconds=600.0) as endpoint:
        provider = tokens(endpoint.url, clock=clock)
        first = await provider.token()
        clock.seconds = 530
        assert await provider.token() == first
        clock.seconds = 545
        await provider.token()
        assert len(endpoint.requests) == 2


async def test_a_refused_client_is_denied_without_its_secret(kafka_cluster: KafkaCluster) -> None:
    with serve_tokens(kafka_cluster.tokens, clients={"bob": SECRET}) as endpoint:
        with pytest.raises(SourceDenied, match="refused the client") as caught:
            await tokens(endpoint.url).token()
        # In the header first, then in the body, as Go's oauth2 library does.
        assert len(endpoint.requests) == 2
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        pytest.param("HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n", SourceUnavailable, id="redirect"),
        pytest.param("HTTP/1.1 500 Oops\r\n", SourceUnavailable, id="error"),
        pytest.param("HTTP/1.1 403 No\r\n", SourceDenied, id="forbidden"),
        pytest.param("HTTP/1.1 200 OK\r\n\r\n<html>", SourceUnavailable, id="no JSON"),
        pytest.param("HTTP/1.1 200 OK\r\n\r\n[1]", SourceUnavailable, id="no object"),
        pytest.param('HTTP/1.1 200 OK\r\n\r\n{"access_token": 7}', SourceUnavailable, id="no text"),
        pytest.param('HTTP/1.1 200 OK\r\n\r\n{"access_token": "a\\u0001auth=b"}', SourceUnavailable, id="injection"),
        pytest.param('HTTP/1.1 200 OK\r\n\r\n"' + "x" * 300_000, SourceUnavailable, id="endless"),
        pytest.param("no HTTP\r\n\r\n", SourceUnavailable, id="no HTTP"),
        pytest.param(None, SourceTimeout, id="silence"),
    ],
)
async def test_an_endpoint_that_answers_oddly(answer: str | None, kind: type[SourceError]) -> None:
    async def serve(incoming: asyncio.StreamReader, outgoing: asyncio.StreamWriter) -> None:
        await incoming.readuntil(b"\r\n\r\n")
        if answer is None:
            await incoming.read()  # until the other side hangs up
        else:
            head, _, body = answer.partition("\r\n\r\n")
            outgoing.write(f"{head.strip()}\r\nConnection: close\r\n\r\n{body}".encode())
        outgoing.close()
        with suppress(ConnectionError):
            await outgoing.wait_closed()
        done.set()

    done = asyncio.Event()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    port = server.sockets[0].getsockname()[1]
    patience = PATIENT_SECONDS if answer is not None else 1.0
    async with server:
        with pytest.raises(kind) as caught:
            await tokens(f"http://{LOOPBACK}:{port}/token", timeout_seconds=patience).token()
        await asyncio.wait_for(done.wait(), 20)
    assert type(caught.value) is kind
    assert f"{port}" in str(caught.value)


async def test_a_tenants_token_endpoint_may_not_be_loopback(kafka_cluster: KafkaCluster) -> None:
    with serve_tokens(kafka_cluster.tokens, clients={"alice": SECRET}) as endpoint:
        with pytest.raises(SourceDenied, match="loopback"):
            await tokens(endpoint.url, AddressGuard(private_allowed=False)).token()
        assert endpoint.requests == []


# AWS MSK


async def test_an_msk_token_is_a_signed_request_for_fifteen_minutes() -> None:
    said = {
        "bootstrapServers": "b:1",
        "consumerGroup": "g",
        "topic": "t",
        "tls": "enable",
        "sasl": "aws_msk_iam",
        "awsRegion": "eu-west-1",
        "awsAccessKeyID": "AKIAEXAMPLE",
        "awsSecretAccessKey": "hidden-key",
        "awsSessionToken": "session",
    }
    provider = token_provider(configured(said).endpoint.sasl, context())
    assert isinstance(provider, MskTokens)
    token = await provider.token()
    url = urlsplit(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode())
    asked = {name: values[0] for name, values in parse_qs(url.query).items()}
    assert (url.scheme, url.netloc, url.path) == ("https", "kafka.eu-west-1.amazonaws.com", "/")
    assert asked["Action"] == "kafka-cluster:Connect"
    assert asked["X-Amz-Expires"] == "900"
    assert asked["X-Amz-Security-Token"] == "session"
    assert asked["X-Amz-Credential"].startswith("AKIAEXAMPLE/")
    assert asked["X-Amz-Credential"].endswith("/eu-west-1/kafka-cluster/aws4_request")
    assert len(asked["X-Amz-Signature"]) == 64
    signed_at = datetime.strptime(asked["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    assert datetime.now(UTC) - signed_at < timedelta(minutes=1)
    assert "hidden-key" not in base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()


async def test_no_log_line_holds_a_password(
    kafka_cluster: KafkaCluster, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await let_in(kafka_cluster, "SASL_PLAINTEXT", topic, sasl("plaintext"))
    assert PASSWORD not in caplog.text
