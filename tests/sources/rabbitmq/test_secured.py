"""TLS, client certificates and OAuth 2.0 against a real broker and a real token endpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from scaler.errors import SourceDenied, SourceError, SourceUnavailable
from scaler.parameters import Secret
from scaler.sources.rabbitmq.reading import Reading
from tests.services.certificates import CertificateAuthority
from tests.services.process import unique
from tests.services.rabbitmq import RabbitMQBroker, start_rabbitmq
from tests.services.tokens import TokenServer, serve_tokens
from tests.sources.rabbitmq.conftest import Vhost, until
from tests.sources.rabbitmq.support import config_of, opened, outcome, sampled

PROTOCOLS = ["amqp", "http"]


@pytest.fixture(scope="module")
def strict_broker() -> Iterator[RabbitMQBroker]:
    """A broker that takes client certificates as identity, and nobody without one under TLS."""
    strict = {
        "ssl_options.fail_if_no_peer_cert": "true",
        "management.ssl.fail_if_no_peer_cert": "true",
        "auth_mechanisms.1": "PLAIN",
        "auth_mechanisms.2": "EXTERNAL",
        "ssl_cert_login_from": "common_name",
    }
    with start_rabbitmq(configuration=strict, plugins=["rabbitmq_auth_mechanism_ssl"]) as broker:
        yield broker


def encrypted(broker: RabbitMQBroker, protocol: str, *, user: str = "guest:guest@", vhost: str = "%2F") -> str:
    if protocol == "amqp":
        return f"amqps://{user}{broker.host}:{broker.amqps_port}/{vhost}"
    return f"https://{user}{broker.host}:{broker.https_port}/{vhost}"


async def read(metadata: dict[str, str], fixed: dict[str, str | Secret] | None = None) -> object:
    config = config_of(metadata, fixed)
    async with opened(config) as client:
        return await outcome(client, config)


async def waiting(metadata: dict[str, str], fixed: dict[str, str | Secret] | None = None) -> float | None:
    config = config_of(metadata, fixed)
    async with opened(config) as client:
        await until(lambda: outcome(client, config), lambda found: isinstance(found, Reading))
        found = await until(lambda: sampled(client, config), lambda sample: sample.waiting == 3)
        return float(found.waiting)


@pytest.fixture
async def queue(rabbitmq_broker: RabbitMQBroker) -> str:
    name = unique("secured")
    await Vhost(rabbitmq_broker, "/").declare(name, messages=3)
    return name


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_an_authority_given_in_ca_is_trusted(rabbitmq_broker: RabbitMQBroker, queue: str, protocol: str) -> None:
    host, ca = encrypted(rabbitmq_broker, protocol), rabbitmq_broker.authority.certificate_pem
    assert await waiting({"queueName": queue, "host": host, "tls": "enable", "ca": ca}) == 3


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_an_unknown_authority_is_not_trusted_unless_asked_for(
    rabbitmq_broker: RabbitMQBroker, queue: str, protocol: str, tmp_path: Path
) -> None:
    metadata = {"queueName": queue, "host": encrypted(rabbitmq_broker, protocol)}
    found = await read(metadata)
    assert type(found) is SourceUnavailable
    assert "certificate is not trusted" in str(found)
    other = CertificateAuthority(tmp_path).certificate_pem
    found = await read(metadata | {"tls": "enable", "ca": other})
    assert type(found) is SourceUnavailable
    assert await waiting(metadata | {"sourceUnsafeSsl": "true"}) == 3


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_certificate_for_another_name_is_not_trusted(
    rabbitmq_broker: RabbitMQBroker, queue: str, protocol: str
) -> None:
    host = encrypted(rabbitmq_broker, protocol).replace("127.0.0.1", "127.0.0.2")
    found = await read(
        {"queueName": queue, "host": host, "tls": "enable", "ca": rabbitmq_broker.authority.certificate_pem}
    )
    assert isinstance(found, SourceUnavailable)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("scheme", "port"), [("plain", "encrypted"), ("encrypted", "plain")])
async def test_the_wrong_scheme_is_told(
    rabbitmq_broker: RabbitMQBroker, queue: str, protocol: str, scheme: str, port: str
) -> None:
    ports = {
        ("amqp", "plain"): rabbitmq_broker.amqp_port,
        ("amqp", "encrypted"): rabbitmq_broker.amqps_port,
        ("http", "plain"): rabbitmq_broker.http_port,
        ("http", "encrypted"): rabbitmq_broker.https_port,
    }
    s = "s" if scheme == "encrypted" else ""
    found = await read({"queueName": queue, "host": f"{protocol}{s}://guest:guest@127.0.0.1:{ports[protocol, port]}/"})
    assert isinstance(found, SourceUnavailable)
    assert "scheme" in str(found)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("field", ["ca", "cert"])
async def test_texts_that_are_no_pem_are_told_and_not_shown(
    rabbitmq_broker: RabbitMQBroker, queue: str, protocol: str, field: str
) -> None:
    metadata = {"queueName": queue, "host": encrypted(rabbitmq_broker, protocol), "tls": "enable", field: "hunter2"}
    found = await read(metadata | ({"key": "hunter2"} if field == "cert" else {}))
    assert isinstance(found, SourceDenied)
    assert "PEM" in str(found)
    assert "hunter2" not in str(found)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("password", [None, "opens sesame"])
async def test_a_client_certificate_is_shown(
    strict_broker: RabbitMQBroker, protocol: str, password: str | None
) -> None:
    name = unique("strict")
    await Vhost(strict_broker, "/").declare(name, messages=3)
    pair = strict_broker.authority.client("anyone")
    key = pair.key_pem
    metadata = {
        "queueName": name,
        "host": encrypted(strict_broker, protocol),
        "tls": "enable",
        "ca": strict_broker.authority.certificate_pem,
    }
    found = await read(metadata)
    assert isinstance(found, SourceUnavailable), "nobody is let in without a certificate"
    if password is not None:
        key = (
            serialization.load_pem_private_key(key.encode(), password=None)
            .private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(password.encode()),
            )
            .decode()
        )
        found = await read(metadata | {"cert": pair.certificate_pem, "key": key, "keyPassword": "wrong"})
        assert isinstance(found, SourceDenied)
        found = await read(metadata | {"cert": pair.certificate_pem, "key": key})
        assert isinstance(found, SourceDenied), "and nobody is asked for the password on a terminal"
        metadata |= {"keyPassword": password}
    assert await waiting(metadata | {"cert": pair.certificate_pem, "key": key}) == 3


async def test_by_amqp_the_certificate_alone_is_the_identity(strict_broker: RabbitMQBroker) -> None:
    name = unique("external")
    await Vhost(strict_broker, "/").declare(name, messages=3)
    with strict_broker.account(tags="") as user:
        pair = strict_broker.authority.client(user)
        metadata = {
            "queueName": name,
            "host": encrypted(strict_broker, "amqp", user=""),
            "tls": "enable",
            "ca": strict_broker.authority.certificate_pem,
            "cert": pair.certificate_pem,
            "key": pair.key_pem,
        }
        found = await read(metadata)
        assert isinstance(found, SourceDenied), "no rights yet"
        strict_broker.allow(user, "/")
        assert await waiting(metadata) == 3


async def test_a_server_without_external_says_so(rabbitmq_broker: RabbitMQBroker, queue: str) -> None:
    pair = rabbitmq_broker.authority.client("anyone")
    found = await read(
        {
            "queueName": queue,
            "host": encrypted(rabbitmq_broker, "amqp", user=""),
            "tls": "enable",
            "ca": rabbitmq_broker.authority.certificate_pem,
            "cert": pair.certificate_pem,
            "key": pair.key_pem,
        }
    )
    assert isinstance(found, SourceDenied)
    assert "EXTERNAL" in str(found)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_rotated_authority_takes_effect(
    rabbitmq_broker: RabbitMQBroker, queue: str, protocol: str, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    file.write_text(CertificateAuthority(tmp_path / "old").certificate_pem)
    metadata = {"queueName": queue, "host": encrypted(rabbitmq_broker, protocol), "tls": "enable"}
    config = config_of(metadata, {"ca": Secret(path=str(file), what="ca")})
    async with opened(config) as client:
        assert isinstance(await outcome(client, config), SourceUnavailable)
        file.write_text(rabbitmq_broker.authority.certificate_pem)
        await until(lambda: outcome(client, config), lambda found: isinstance(found, Reading))


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_rotated_password_takes_effect(
    rabbitmq_broker: RabbitMQBroker, queue: str, protocol: str, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("wrong\n")
    broker = rabbitmq_broker
    with broker.account(password="right") as user:
        broker.allow(user, "/")
        host = (
            f"amqp://{broker.host}:{broker.amqp_port}/"
            if protocol == "amqp"
            else f"http://{broker.host}:{broker.http_port}/"
        )
        secrets = {"username": Secret(user), "password": Secret(path=str(file))}
        config = config_of({"queueName": queue, "host": host}, secrets)
        async with opened(config) as client:
            assert isinstance(await outcome(client, config), SourceDenied)
            file.write_text("right\n")
            await until(lambda: outcome(client, config), lambda found: isinstance(found, Reading))
            file.unlink()
            if protocol == "http":
                found = await outcome(client, config)
                assert isinstance(found, SourceDenied)
                assert "can't be read" in str(found)


# --- OAuth 2.0 -----------------------------------------------------------------------------------------------------

SCOPES = ("rabbitmq.read:*/*", "rabbitmq.tag:monitoring")


@pytest.fixture
def issuer(rabbitmq_broker: RabbitMQBroker) -> Iterator[TokenServer]:
    with serve_tokens(rabbitmq_broker.tokens, clients={"scaler": "hunter2"}, scopes=SCOPES) as server:
        yield server


def by_token(broker: RabbitMQBroker, queue: str, issuer: TokenServer, **more: str) -> dict[str, str]:
    return {
        "queueName": queue,
        "host": f"http://{broker.host}:{broker.http_port}/",
        "oauthTokenURI": issuer.url,
        "clientID": "scaler",
        "clientSecret": "hunter2",
    } | more


async def test_a_token_opens_the_management_api_and_is_kept(
    rabbitmq_broker: RabbitMQBroker, queue: str, issuer: TokenServer
) -> None:
    assert await waiting(by_token(rabbitmq_broker, queue, issuer)) == 3
    assert len(issuer.requests) == 1


async def test_scopes_and_endpoint_parameters_are_sent(
    rabbitmq_broker: RabbitMQBroker, queue: str, issuer: TokenServer
) -> None:
    more = {"scopes": ", ".join(SCOPES), "endpointParams": "audience=rabbitmq&resource=a%26b"}
    assert await waiting(by_token(rabbitmq_broker, queue, issuer, **more)) == 3
    asked = issuer.requests[0]
    assert asked["grant_type"] == "client_credentials"
    assert asked["scope"] == " ".join(SCOPES)
    assert (asked["audience"], asked["resource"]) == ("rabbitmq", "a&b")


async def test_a_token_without_the_right_is_denied(
    rabbitmq_broker: RabbitMQBroker, queue: str, issuer: TokenServer
) -> None:
    found = await read(by_token(rabbitmq_broker, queue, issuer, scopes="rabbitmq.read:other/*,rabbitmq.tag:monitoring"))
    assert isinstance(found, SourceDenied)


async def test_a_wrong_client_secret_is_denied_and_not_shown(
    rabbitmq_broker: RabbitMQBroker, queue: str, issuer: TokenServer
) -> None:
    found = await read(by_token(rabbitmq_broker, queue, issuer, clientSecret="hunter3"))
    assert isinstance(found, SourceDenied)
    assert "invalid_client" in str(found)
    assert "hunter3" not in str(found)
    assert len(issuer.requests) == 2, "in the header, then in the form"


async def test_tokens_are_renewed_before_they_expire(rabbitmq_broker: RabbitMQBroker, queue: str) -> None:
    now = [1000.0]
    with serve_tokens(
        rabbitmq_broker.tokens, clients={"scaler": "hunter2"}, scopes=SCOPES, lifetime_seconds=600
    ) as issuer:
        config = config_of(by_token(rabbitmq_broker, queue, issuer))
        async with opened(config, clock=lambda: now[0]) as client:
            await until(lambda: outcome(client, config), lambda found: isinstance(found, Reading))
            now[0] += 539
            await outcome(client, config)
            assert len(issuer.requests) == 1
            now[0] += 2
            await outcome(client, config)
            assert len(issuer.requests) == 2


async def test_a_token_that_rabbitmq_refuses_is_replaced_once(rabbitmq_broker: RabbitMQBroker, queue: str) -> None:
    with serve_tokens(
        rabbitmq_broker.tokens, clients={"scaler": "hunter2"}, scopes=SCOPES, lifetime_seconds=6
    ) as issuer:
        # A clock that stands still never renews by itself: RabbitMQ's refusal does.
        config = config_of(by_token(rabbitmq_broker, queue, issuer))
        async with opened(config, clock=lambda: 1000.0) as client:
            await until(lambda: outcome(client, config), lambda found: isinstance(found, Reading))
            before = len(issuer.requests)
            give_up_at = time.monotonic() + 30
            while len(issuer.requests) == before and time.monotonic() < give_up_at:
                found = await until(lambda: outcome(client, config), lambda _: True)
                assert isinstance(found, Reading), found
            assert len(issuer.requests) == before + 1


async def test_a_token_endpoint_that_is_gone_is_unavailable(
    rabbitmq_broker: RabbitMQBroker, queue: str, issuer: TokenServer
) -> None:
    found = await read(by_token(rabbitmq_broker, queue, issuer, oauthTokenURI="http://127.0.0.1:1/token"))
    assert isinstance(found, SourceUnavailable)
    assert "token endpoint" in str(found)


async def test_a_token_endpoint_that_answers_nonsense_is_unavailable(
    rabbitmq_broker: RabbitMQBroker, queue: str, issuer: TokenServer
) -> None:
    # The management API's own front page is a web server that issues no tokens.
    url = f"http://{rabbitmq_broker.host}:{rabbitmq_broker.http_port}/"
    found = await read(by_token(rabbitmq_broker, queue, issuer, oauthTokenURI=url))
    assert isinstance(found, SourceError)
    assert "token endpoint" in str(found)
