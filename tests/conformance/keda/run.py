"""Run KEDA's own scalers, compiled from KEDA's module, against `pilotlight serve` and a real SQS server.

`python -m tests.conformance.keda.run` builds the Go program beside this file once for each KEDA version, starts an SQS
server (moto), a Prometheus, and two services (plain text, mutual TLS), does what the program asks for, and ends with
status 1 if any check failed. What was printed is also kept in build/conformance/keda.txt.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import boto3
import grpc
import yaml
from botocore.config import Config
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.services import (
    REPOSITORY,
    CertificateAuthority,
    ServerProcess,
    SQSServer,
    free_port,
    start_prometheus,
    start_sqs,
)
from tests.services.process import LOOPBACK, scratch_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
BUILD = REPOSITORY / "build" / "conformance"
BUILD_SECONDS = 3600.0  # KEDA's scalers link every cloud's client: minutes on a small machine, once
RUN_SECONDS = 900.0
ASK_SECONDS = 30.0
MODULES = {"latest": "go.mod", "integer-only": "integer-only.mod"}
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
    done = subprocess.run(
        [go, "build", f"-modfile={MODULES[label]}", "-ldflags=-s -w", "-o", str(program), "."],
        cwd=HERE,
        env={**os.environ, "GOFLAGS": flags},
        timeout=BUILD_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{program.name} did not compile; go's messages are above")
    return program


def serves(address: str, credentials: grpc.ChannelCredentials | None = None) -> bool:
    """Tell whether grpc.health.v1 says SERVING there."""
    channel = grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
    with channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=2.0)  # type: ignore[attr-defined]  # the stubs lack it
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service under test and where it listens."""

    address: str
    process: ServerProcess


def service(folder: Path, name: str, command: list[str], authority: CertificateAuthority | None = None) -> Service:
    """`pilotlight serve` as a process, with what local use needs to be allowed; `authority` makes it mutual TLS."""
    address = f"{LOOPBACK}:{free_port()}"
    server: dict[str, object] = {
        "listen": address,
        "hintsListen": None,
        "metricsListen": None,
        "maxConnectionAgeSeconds": CONNECTION_AGE_SECONDS,
        "maxConnectionAgeGraceSeconds": 5,
        "drainSeconds": 5,
    }
    credentials: grpc.ChannelCredentials | None = None
    if authority is not None:
        certificate, client = authority.server(), authority.client("keda")
        server["tls"] = {
            "certFile": str(certificate.certificate_path),
            "keyFile": str(certificate.key_path),
            "clientCaFile": str(authority.certificate_path),
        }
        server["clients"] = [{"name": "keda", "namespaces": ["team-*"]}]
        credentials = grpc.ssl_channel_credentials(
            authority.certificate_pem.encode(), client.key_pem.encode(), client.certificate_pem.encode()
        )
    settings = {
        "server": server,
        "reading": {"readTimeoutSeconds": 2, "connectTimeoutSeconds": 1},
        "rights": [{"namespaces": ["*"], "privateAddresses": True}],  # the SQS server is on this machine
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    process = ServerProcess(
        name,
        [*command, "--config", str(path)],
        folder=folder,
        environment={"PYTHONPATH": str(REPOSITORY)},
        is_ready=lambda: serves(address, credentials),
    )
    return Service(address=address, process=process)


class World:
    """What the Go program may ask for: queues and messages, and servers that stop and start."""

    def __init__(self, sqs: SQSServer, service: ServerProcess) -> None:
        self._servers = {"source": sqs.process, "service": service}
        self._sqs = boto3.client(
            "sqs",
            endpoint_url=sqs.endpoint_url,
            region_name=sqs.region,
            aws_access_key_id=sqs.access_key_id,
            aws_secret_access_key=sqs.secret_access_key,
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
                if not self._servers[name].is_running:
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


def main() -> int:
    """Build, start, run, stop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=sorted(MODULES), help="one KEDA version instead of both")
    parser.add_argument(
        "--serve",
        nargs="+",
        default=[sys.executable, "-m", "scaler.cli", "serve"],
        help="what to start in place of `pilotlight serve`; it gets --config FILE",
    )
    parser.add_argument("--show-log", action="store_true", help="print the service's log at the end")
    options = parser.parse_args()
    programs = [build(label) for label in ([options.only] if options.only else MODULES)]

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch_folder("conformance"))
        authority = CertificateAuthority(folder / "certificates")
        sqs = stack.enter_context(start_sqs())
        prometheus = stack.enter_context(start_prometheus())
        plain = service(folder, "service", options.serve)
        secure = service(folder, "service-tls", options.serve, authority)
        for one in (plain, secure):
            stack.enter_context(running(one.process))
        metadata = {
            "source": "sqs",
            "awsRegion": sqs.region,
            "awsEndpoint": sqs.endpoint_url,
            "awsAccessKeyID": sqs.access_key_id,
            "awsSecretAccessKey": sqs.secret_access_key,
        }
        arguments = [
            f"--address={plain.address}",
            f"--metadata={json.dumps(metadata)}",
            f"--prometheus={prometheus.url}",
            f"--tls-address={secure.address}",
            f"--tls-ca={authority.certificate_path}",
            f"--tls-cert={authority.folder / 'keda.pem'}",
            f"--tls-key={authority.folder / 'keda.key.pem'}",
        ]
        world = World(sqs, plain.process)
        with (BUILD / "keda.txt").open("w", encoding="utf-8") as transcript:
            statuses = [converse([str(program), *arguments], world, transcript) for program in programs]
        if options.show_log:
            say(plain.process.log_tail(2000))
            say(secure.process.log_tail(200))
    return 1 if any(statuses) else 0


if __name__ == "__main__":
    sys.exit(main())
