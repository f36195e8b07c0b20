"""`pilotlight serve` as a process of its own: start, addresses, certificates, tokens, and its end on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from scaler.__main__ import serve
from scaler._generated import externalscaler_pb2 as pb
from scaler._generated import externalscaler_pb2_grpc as pb_grpc
from scaler._generated import pilotlight_pb2 as ours
from scaler._generated import pilotlight_pb2_grpc as ours_grpc
from scaler.errors import SettingsInvalid, quoted
from scaler.settings import load_settings
from tests.service.conftest import until
from tests.services.certificates import Certificate, CertificateAuthority

LISTEN = {"listen": "127.0.0.1:0", "hintsListen": "127.0.0.1:0", "metricsListen": "127.0.0.1:0"}


@dataclass
class Process:
    """A running `pilotlight serve`."""

    child: subprocess.Popen[bytes]
    log: Path
    serving: Mapping[str, Any]

    def events(self) -> list[dict[str, Any]]:
        """Its log so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextlib.asynccontextmanager
async def serving(folder: Path, settings: Mapping[str, Any], *options: str) -> AsyncIterator[Process]:
    """Start the command, wait until it serves, and end it."""
    config, ready, log = folder / "pilotlight.yaml", folder / "ready.json", folder / "log"
    config.write_text(yaml.safe_dump(settings))
    with log.open("wb") as output:
        child = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            [sys.executable, "-m", "scaler.cli", "serve", "--config", config, "--ready-file", ready, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
    try:
        await until(lambda: ready.exists() or child.poll() is not None, seconds=80)
        assert ready.exists(), log.read_text()
        yield Process(child, log, json.loads(ready.read_text()))
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()


def ref(namespace: str = "team-a") -> pb.ScaledObjectRef:
    """A trigger on a server that nobody runs: its spec stands, its metrics fail."""
    return pb.ScaledObjectRef(
        namespace=namespace,
        name="llama",
        scalerMetadata={
            "source": "sqs",
            "queueURL": "orders",
            "awsRegion": "eu-central-1",
            "awsEndpoint": "http://127.0.0.1:9",
            "awsAccessKeyID": "a",
            "awsSecretAccessKey": "b",
        },
    )


async def test_sigterm_ends_streams_with_ok_finishes_calls_and_exits_with_zero(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, {"server": LISTEN}, "--local") as process,
        grpc.aio.insecure_channel(process.serving["grpc"]) as channel,
    ):
        stub, health = pb_grpc.ExternalScalerStub(channel), _health(channel)
        names = ("", "externalscaler.ExternalScaler")
        for name in names:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        streams = [stub.StreamIsActive(ref()) for _ in range(20)]
        await until(lambda: _serves(process, "scaler_streams 20"), seconds=30)  # a call on its way would be cancelled
        # A call that waits for its first reading when the signal comes: its answer still arrives.
        in_flight = asyncio.create_task(_code(stub.IsActive(ref("team-b"))))
        await asyncio.sleep(0.05)
        started = time.monotonic()
        process.child.send_signal(signal.SIGTERM)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for stream in streams:
            assert await stream.read() is grpc.aio.EOF
            assert await stream.code() == grpc.StatusCode.OK
        assert await in_flight == grpc.StatusCode.UNAVAILABLE  # its own answer: the server has no such broker
        await until(lambda: process.child.poll() is not None, seconds=30)
        assert process.child.returncode == 0
        assert time.monotonic() - started < 18  # of the 20 that it might take
    assert process.events()[-1]["event"] == "stopped"
    assert not [event for event in process.events() if event["level"] == "error"]


async def _serves(process: Process, line: str) -> bool:
    """Whether the service's own metrics hold this line."""
    reader, writer = await asyncio.open_connection(*process.serving["metrics"].split(":"))
    writer.write(b"GET /metrics HTTP/1.1\r\nconnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return any(found.startswith(line) for found in text.splitlines())


def _health(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)  # its methods are missing in the types


async def _code(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as err:
        return err.code()
    return grpc.StatusCode.OK


async def test_it_says_where_it_serves_and_reflects_its_services(tmp_path: Path) -> None:
    async with serving(tmp_path, {}, *_options()) as process:
        said = process.serving
        assert said["pid"] == process.child.pid
        event = next(event for event in process.events() if event["event"] == "serving")
        assert (event["grpc"], event["metrics"]) == (said["grpc"], said["metrics"])
        async with grpc.aio.insecure_channel(said["grpc"]) as channel:
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            stub: Any = reflection_pb2_grpc.ServerReflectionStub
            call = stub(channel).ServerReflectionInfo(iter([request]))
            listed = [service.name for service in (await call.read()).list_services_response.service]
        assert "externalscaler.ExternalScaler" in listed


def _options() -> list[str]:
    return ["--listen", "127.0.0.1:0", "--hints-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]


async def test_a_client_that_vanishes_leaves_no_stream_behind(tmp_path: Path) -> None:
    async with serving(tmp_path, {"server": LISTEN}) as process:
        for _ in range(3):
            channel = grpc.aio.insecure_channel(process.serving["grpc"])
            calls = [pb_grpc.ExternalScalerStub(channel).StreamIsActive(ref()) for _ in range(10)]
            await asyncio.sleep(0.3)
            calls[0].cancel()
            await channel.close()

        async def none_open() -> bool:
            reader, writer = await asyncio.open_connection(*process.serving["metrics"].split(":"))
            writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
            body = await reader.read()
            writer.close()
            return b"scaler_streams 0.0" in body

        await until(none_open)


# --- certificates ---


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path / "ca")


def channel_to(address: str, authority: CertificateAuthority, client: Certificate | None = None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        root_certificates=authority.certificate_path.read_bytes(),
        private_key=None if client is None else client.key_path.read_bytes(),
        certificate_chain=None if client is None else client.certificate_path.read_bytes(),
    )
    # Channels of one process share connections unless told not to: each must make its own handshake.
    return grpc.aio.secure_channel(address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])


async def spec(address: str, authority: CertificateAuthority, client: Certificate | None, namespace: str) -> str:
    """The code of GetMetricSpec."""
    async with channel_to(address, authority, client) as channel:
        return (await _code(pb_grpc.ExternalScalerStub(channel).GetMetricSpec(ref(namespace), timeout=30))).name


async def test_client_certificates_speak_for_their_namespaces_only(
    tmp_path: Path, authority: CertificateAuthority
) -> None:
    server = authority.server()
    settings = {
        "server": LISTEN
        | {
            "tls": {
                "certFile": str(server.certificate_path),
                "keyFile": str(server.key_path),
                "clientCaFile": str(authority.certificate_path),
            },
            "clients": [
                {"name": "keda", "namespaces": ["*"]},
                {"name": "team-a.example", "namespaces": ["team-a", "team-a-*"]},
            ],
        }
    }
    keda, tenant = authority.client("keda"), authority.client("whoever", hosts=("team-a.example",))
    stranger = authority.client("stranger")
    other = CertificateAuthority(tmp_path / "other")
    async with serving(tmp_path, settings) as process:
        address = process.serving["grpc"]
        assert await spec(address, authority, keda, "team-b") == "OK"
        assert await spec(address, authority, tenant, "team-a") == "OK"
        assert await spec(address, authority, tenant, "team-b") == "PERMISSION_DENIED"
        assert await spec(address, authority, stranger, "team-a") == "PERMISSION_DENIED"
        assert await spec(address, authority, None, "team-a") == "UNAVAILABLE"
        assert await spec(address, authority, other.client("keda"), "team-a") == "UNAVAILABLE"


async def test_a_rotated_certificate_is_used_for_the_next_connection(
    tmp_path: Path, authority: CertificateAuthority
) -> None:
    first, second_authority = authority.server(), CertificateAuthority(tmp_path / "second")
    second = second_authority.server()
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    cert.write_bytes(first.certificate_path.read_bytes())
    key.write_bytes(first.key_path.read_bytes())
    settings = {"server": LISTEN | {"tls": {"certFile": str(cert), "keyFile": str(key)}}}
    async with serving(tmp_path, settings) as process:
        address = process.serving["grpc"]
        assert await spec(address, authority, None, "team-a") == "OK"
        cert.unlink()  # half a rotation: the old pair goes on
        assert await spec(address, authority, None, "team-a") == "OK"
        cert.write_bytes(second.certificate_path.read_bytes())
        assert await spec(address, authority, None, "team-a") == "OK"  # a pair that does not match is not used
        key.write_bytes(second.key_path.read_bytes())
        assert await spec(address, second_authority, None, "team-a") == "OK"
        assert await spec(address, authority, None, "team-a") == "UNAVAILABLE"


async def test_the_hints_listener_asks_for_its_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("open-sesame\n")
    settings = {"server": LISTEN | {"hintsTokenFile": str(token)}}
    async with (
        serving(tmp_path, settings) as process,
        grpc.aio.insecure_channel(process.serving["hints"]) as channel,
    ):
        explain = ours_grpc.ExplainStub(channel)
        for metadata, code in (
            (None, "PERMISSION_DENIED"),
            ((("authorization", "Bearer wrong"),), "PERMISSION_DENIED"),
            ((("authorization", "Bearer open-sesame"),), "OK"),
        ):
            assert (await _code(explain.List(ours.ListRequest(), metadata=metadata))).name == code
        token.write_text("rotated")
        metadata = (("authorization", "Bearer rotated"),)
        assert (await _code(explain.List(ours.ListRequest(), metadata=metadata))).name == "OK"
        assert "open-sesame" not in process.log.read_text()


@pytest.mark.parametrize(
    ("server", "words"),
    [
        pytest.param({"listen": "127.0.0.1"}, "server.listen", id="no port"),
        pytest.param({"listen": "256.0.0.1:0"}, "server.listen", id="no address"),
        pytest.param({"hintsListen": "0.0.0.0:0"}, "hintsTokenFile", id="hints open to the network"),
        pytest.param({"metricsListen": "here:there"}, "server.metricsListen", id="no metrics port"),
        pytest.param({"clients": [{"name": "a", "namespaces": ["*"]}]}, "clientCaFile", id="clients without mTLS"),
        pytest.param({"tls": {"certFile": "/nowhere", "keyFile": "/nowhere"}}, "/nowhere", id="no certificate"),
        pytest.param({"lissen": "127.0.0.1:0"}, "lissen", id="a setting that does not exist"),
    ],
)
async def test_settings_that_can_not_serve_say_which_and_why(
    tmp_path: Path, server: Mapping[str, Any], words: str
) -> None:
    config = tmp_path / "pilotlight.yaml"
    config.write_text(yaml.safe_dump({"server": LISTEN | dict(server)}))
    with pytest.raises(SettingsInvalid, match=words):
        await serve(load_settings(str(config)), ready=lambda _: None, stop=asyncio.Event())


@pytest.mark.parametrize(
    ("field", "words"),
    [
        pytest.param("certFile", "expected certificates in PEM form", id="no certificate"),
        pytest.param("clientCaFile", "expected certificates in PEM form", id="no authority"),
        pytest.param("keyFile", "expected a private key in PEM form", id="no key"),
        pytest.param("another", "expected the private key of the first certificate", id="the key of another"),
        pytest.param("locked", "without a password", id="a key under a password"),
    ],
)
@pytest.mark.parametrize("listener", ["tls", "hintsTls"])
async def test_tls_files_that_can_not_serve_are_named(
    tmp_path: Path,
    authority: CertificateAuthority,
    capfd: pytest.CaptureFixture[str],
    *,
    field: str,
    words: str,
    listener: str,
) -> None:
    server, bad = authority.server(), tmp_path / "bad.pem"
    bad.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    if field == "another":
        field, bad = "keyFile", authority.client("another").key_path
    elif field == "locked":
        field = "keyFile"
        key = serialization.load_pem_private_key(server.key_path.read_bytes(), password=None)
        bad.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"hunter2"),
            )
        )
    files = {"certFile": server.certificate_path, "keyFile": server.key_path, field: bad}
    config = tmp_path / "pilotlight.yaml"
    tls = {name: str(path) for name, path in files.items()}
    config.write_text(yaml.safe_dump({"server": LISTEN | {listener: tls}}))
    with pytest.raises(SettingsInvalid, match=words) as caught:
        await serve(load_settings(str(config)), ready=lambda _: None, stop=asyncio.Event())
    assert f"server.{listener}.{field}" in str(caught.value)
    assert quoted(bad) in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("listener", ["listen", "hintsListen", "metricsListen"])
@pytest.mark.parametrize("port", ["65536", "99999", "-1", "٣", "1" * 5000])
async def test_a_port_that_is_none_is_told(tmp_path: Path, listener: str, port: str) -> None:
    config = tmp_path / "pilotlight.yaml"
    listeners = {"listen": "127.0.0.1:0", "hintsListen": None, "metricsListen": None}
    config.write_text(yaml.safe_dump({"server": listeners | {listener: f"127.0.0.1:{port}"}}))
    with pytest.raises(SettingsInvalid, match="expected host:port") as caught:
        await serve(load_settings(str(config)), ready=lambda _: None, stop=asyncio.Event())
    assert f"server.{listener}" in str(caught.value)


def test_the_command_tells_what_keeps_it_from_serving_in_one_line(tmp_path: Path) -> None:
    config = tmp_path / "pilotlight.yaml"
    config.write_text("server: {listen: nowhere}")
    done = subprocess.run(
        [sys.executable, "-m", "scaler.cli", "serve", "--config", config, "--json"],
        capture_output=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    error = done.stderr.decode()
    assert (done.returncode, len(error.splitlines())) == (2, 1), error
    assert 'server.listen "nowhere": expected host:port' in error
