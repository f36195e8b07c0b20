"""Run KEDA's own scalers, compiled from KEDA's module, against `pilotlight serve` and a real SQS server.

`python -m tests.conformance.keda.run` builds the Go program beside this file once for each KEDA version, starts an SQS
server (moto), a Prometheus where one is installed, and two services (plain text, mutual TLS), does what the program
asks for, and ends with status 1 if any check failed. What was printed is also kept in build/conformance/keda.txt.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import ipaddress
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import IO, TYPE_CHECKING

import boto3
import grpc
import yaml
from botocore.config import Config
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.services.process import LOOPBACK, REPOSITORY, ServerProcess, accepts_connections, free_port, scratch_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).resolve().parent
BUILD = REPOSITORY / "build" / "conformance"
BUILD_SECONDS = 3600.0  # KEDA's scalers link every cloud's client: minutes on a small machine, once
RUN_SECONDS = 900.0
ASK_SECONDS = 30.0
MODULES = {"latest": "go.mod", "integer-only": "integer-only.mod"}
CREDENTIALS = {"awsAccessKeyID": "conformance", "awsSecretAccessKey": "conformance-secret"}
REGION = "us-east-1"
# Short, so that the program sees a connection reach its age; all other checks live with the reconnections.
CONNECTION_AGE_SECONDS = 15


def say(text: str) -> None:
    """Print at once: the Go program's lines and ours must not get out of order."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def build(label: str) -> Path:
    """Compile the program against the KEDA version of `MODULES[label]`."""
    go = shutil.which("go")
    if go is None:
        raise SystemExit("conformance-keda needs Go 1.26 or newer in PATH (https://go.dev/dl/)")
    program = BUILD / f"keda-{label}"
    BUILD.mkdir(parents=True, exist_ok=True)
    flags = f"{os.environ.get('GOFLAGS', '')} -p=2 -mod=readonly -buildvcs=false".strip()
    say(f"building {program.name} from {MODULES[label]} (the first time takes minutes)")
    subprocess.run(
        [go, "build", f"-modfile={MODULES[label]}", "-ldflags=-s -w", "-o", str(program), "."],
        cwd=HERE,
        env={**os.environ, "GOFLAGS": flags},
        timeout=BUILD_SECONDS,
        check=True,
    )
    return program


class Certificates:
    """A CA, a certificate for the server and one for KEDA, as files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "conformance CA")])
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(self._sign(self._name, self._key, names=[], is_ca=True))
        local = x509.IPAddress(ipaddress.ip_address(LOOPBACK))
        self.server, self.server_key = self._issue(folder, "server", [x509.DNSName("localhost"), local])
        self.client, self.client_key = self._issue(folder, "keda", [x509.DNSName("keda")])

    def _issue(self, folder: Path, name: str, names: list[x509.GeneralName]) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate_file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
        certificate_file.write_bytes(self._sign(subject, key, names=names, is_ca=False))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate_file, key_file

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, names: list[x509.GeneralName], is_ca: bool
    ) -> bytes:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def serves(address: str, credentials: grpc.ChannelCredentials | None = None) -> bool:
    """Tell whether grpc.health.v1 says SERVING there."""
    channel = grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
    with channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=2.0)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def service(
    folder: Path,
    name: str,
    port: int,
    command: list[str],
    certificates: Certificates | None = None,
) -> ServerProcess:
    """`pilotlight serve` as a process, with what local use needs to be allowed."""
    server: dict[str, object] = {
        "listen": f"{LOOPBACK}:{port}",
        "hintsListen": None,
        "metricsListen": None,
        "maxConnectionAgeSeconds": CONNECTION_AGE_SECONDS,
        "maxConnectionAgeGraceSeconds": 5,
        "drainSeconds": 5,
    }
    ready_credentials: grpc.ChannelCredentials | None = None
    if certificates is not None:
        server["tls"] = {
            "certFile": str(certificates.server),
            "keyFile": str(certificates.server_key),
            "clientCaFile": str(certificates.ca),
        }
        server["clients"] = [{"name": "keda", "namespaces": ["team-*"]}]
        ready_credentials = grpc.ssl_channel_credentials(
            certificates.ca.read_bytes(), certificates.client_key.read_bytes(), certificates.client.read_bytes()
        )
    settings = {
        "server": server,
        "reading": {"readTimeoutSeconds": 2, "connectTimeoutSeconds": 1},
        "rights": [
            {
                "namespaces": ["*"],
                "metadataEndpoints": True,
                "metadataCredentials": True,
                "privateAddresses": True,  # the SQS server is on this machine
            }
        ],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return ServerProcess(
        name,
        [*command, "--config", str(path)],
        folder=folder,
        environment={"PYTHONPATH": str(REPOSITORY)},
        is_ready=lambda: serves(f"{LOOPBACK}:{port}", ready_credentials),
        ready_seconds=30.0,
    )


class World:
    """What the Go program may ask for: queues and messages, and servers that stop and start."""

    def __init__(self, endpoint: str, servers: dict[str, ServerProcess]) -> None:
        self._servers = servers
        self._sqs = boto3.client(
            "sqs",
            endpoint_url=endpoint,
            region_name=REGION,
            aws_access_key_id=CREDENTIALS["awsAccessKeyID"],
            aws_secret_access_key=CREDENTIALS["awsSecretAccessKey"],
            config=Config(connect_timeout=5, read_timeout=ASK_SECONDS, retries={"max_attempts": 3}),
        )

    def answer(self, request: str) -> str:
        """Do what a line "ask VERB ..." asks for; return the answer's text."""
        verb, *words = request.split()
        match verb, words:
            case "create", [name]:
                return str(self._sqs.create_queue(QueueName=name)["QueueUrl"])
            case "delete", [url]:
                self._sqs.delete_queue(QueueUrl=url)
            case "purge", [url]:
                self._sqs.purge_queue(QueueUrl=url)
            case "send", [count, url]:
                for number in range(int(count)):
                    self._sqs.send_message(QueueUrl=url, MessageBody=f"request {number}")
            case "receive", [count, url]:
                received = self._sqs.receive_message(
                    QueueUrl=url, MaxNumberOfMessages=int(count), VisibilityTimeout=600
                )
                if len(received.get("Messages", [])) != int(count):
                    raise RuntimeError(f"received {len(received.get('Messages', []))} messages")
            case "stop", [name] if name in self._servers:
                self._servers[name].stop()
            case "start", [name] if name in self._servers:
                self._servers[name].start()
            case _:
                raise ValueError("not understood")
        return ""


def converse(program: list[str], world: World, transcript: IO[str]) -> int:
    """Run the Go program, answer what it asks, show the rest; return its exit status."""
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for line in process.stdout:
                text = line.rstrip("\n")
                if not text.startswith("ask "):
                    say(text)
                    transcript.write(text + "\n")
                    continue
                try:
                    answer = f"ok {world.answer(text.removeprefix('ask '))}".rstrip()
                except Exception as error:  # noqa: BLE001 - whatever it was, the program reports it with its check
                    answer = f"error {type(error).__name__}: {error}".replace("\n", " ")
                process.stdin.write(answer + "\n")
                process.stdin.flush()
            return process.wait(RUN_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()


@contextlib.contextmanager
def running(server: ServerProcess) -> Iterator[ServerProcess]:
    """Start a server and stop it in the end."""
    server.start()
    try:
        yield server
    finally:
        server.stop()


def sqs_server(folder: Path, port: int) -> ServerProcess:
    """moto's server: in memory, real SQS protocol."""
    return ServerProcess(
        "sqs",
        [str(Path(sys.executable).with_name("moto_server")), "-H", LOOPBACK, "-p", str(port)],
        folder=folder,
        is_ready=lambda: accepts_connections(LOOPBACK, port),
    )


def answers(url: str) -> Callable[[], bool]:
    """Return a function that tells whether a GET of `url` succeeds."""

    def ready() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    return ready


def prometheus_server(folder: Path, port: int, program: str) -> ServerProcess:
    """An empty Prometheus: `vector(7.25)` needs no data."""
    config = folder / "prometheus.yml"
    config.write_text("global: {}\n", encoding="utf-8")
    return ServerProcess(
        "prometheus",
        [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address={LOOPBACK}:{port}",
        ],
        folder=folder,
        is_ready=answers(f"http://{LOOPBACK}:{port}/-/ready"),
    )


def main() -> int:
    """Build, start, run, stop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=sorted(MODULES), help="one KEDA version instead of both")
    parser.add_argument(
        "--serve",
        nargs="+",
        default=[sys.executable, "-m", "scaler", "serve"],
        help="what to start in place of `pilotlight serve`; it gets --config FILE",
    )
    parser.add_argument("--show-log", action="store_true", help="print the service's log at the end")
    options = parser.parse_args()
    programs = [build(label) for label in ([options.only] if options.only else MODULES)]

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch_folder("conformance"))
        certificates = Certificates(folder)
        sqs_port, plain_port, tls_port = free_port(), free_port(), free_port()
        sqs = stack.enter_context(running(sqs_server(folder, sqs_port)))
        plain = stack.enter_context(running(service(folder, "service", plain_port, options.serve)))
        tls = stack.enter_context(running(service(folder, "service-tls", tls_port, options.serve, certificates)))
        endpoint = f"http://{LOOPBACK}:{sqs_port}"
        metadata = {"source": "sqs", "awsRegion": REGION, "awsEndpoint": endpoint, **CREDENTIALS}
        arguments = [
            f"--address={LOOPBACK}:{plain_port}",
            f"--metadata={json.dumps(metadata)}",
            f"--tls-address={LOOPBACK}:{tls_port}",
            f"--tls-ca={certificates.ca}",
            f"--tls-cert={certificates.client}",
            f"--tls-key={certificates.client_key}",
        ]
        prometheus = shutil.which("prometheus")
        if prometheus is not None:
            port = free_port()
            stack.enter_context(running(prometheus_server(folder, port, prometheus)))
            arguments.append(f"--prometheus=http://{LOOPBACK}:{port}")
        world = World(endpoint, {"source": sqs, "service": plain})
        with (BUILD / "keda.txt").open("w", encoding="utf-8") as transcript:
            statuses = [converse([str(program), *arguments], world, transcript) for program in programs]
        if options.show_log:
            say(plain.log_tail(2000))
            say(tls.log_tail(200))
    return 1 if any(statuses) else 0


if __name__ == "__main__":
    sys.exit(main())
