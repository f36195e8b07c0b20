"""`python -m tests.services up|down|env|install`: services that stay, for several test runs or for trying things out.

`up` starts what the environment doesn't name already (docker compose where an engine answers, else native servers) and
writes the addresses to build/services/env; `down` stops them; `env` prints the addresses; `install` only installs the
native servers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING, TypeAlias

import psutil

from tests.services import compose, install, session
from tests.services.kafka import start_kafka
from tests.services.process import (
    CACHE,
    LOOPBACK,
    STOP_SECONDS,
    ServerProcess,
    ServiceUnavailableError,
    accepts_connections,
    free_port,
    has_ended,
    wait_until,
)
from tests.services.prometheus import start_prometheus
from tests.services.rabbitmq import start_rabbitmq
from tests.services.sqs import start_sqs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Started: TypeAlias = tuple[dict[str, str], list[ServerProcess]]
"""The addresses by variable, and the processes."""

ENVIRONMENT = CACHE / "env"
RUNNING = CACHE / "running.json"
DATA = CACHE / "data"


def _kafka(home: Path) -> Started:
    with start_kafka(folder=home, plaintext_port=_port(compose.KAFKA_PORT), outlives_us=True) as cluster:
        return {session.KAFKA_VARIABLE: cluster.bootstrap}, list(cluster.nodes.values())


def _rabbitmq(home: Path) -> Started:
    amqp_port, http_port = _port(compose.AMQP_PORT), _port(compose.RABBITMQ_HTTP_PORT)
    with start_rabbitmq(folder=home, amqp_port=amqp_port, http_port=http_port, outlives_us=True) as broker:
        addresses = {
            session.AMQP_VARIABLE: f"{broker.host}:{broker.amqp_port}",
            session.RABBITMQ_HTTP_VARIABLE: f"{broker.host}:{broker.http_port}",
        }
        return addresses, [broker.process, broker.port_mapper]


def _prometheus(home: Path) -> Started:
    with start_prometheus(folder=home, port=_port(compose.PROMETHEUS_PORT), outlives_us=True) as server:
        return {session.PROMETHEUS_VARIABLE: f"{server.host}:{server.port}"}, [server.process]


def _sqs(home: Path) -> Started:
    with start_sqs(folder=home, port=_port(compose.SQS_PORT), outlives_us=True) as server:
        return {session.SQS_VARIABLE: f"{server.host}:{server.port}"}, [server.process]


def _port(wanted: int) -> int:
    """Return the port that compose would publish, or another one where that is taken."""
    return free_port() if accepts_connections(LOOPBACK, wanted) else wanted


# compose service: the addresses that compose gives it, and how to start it natively
SERVICES: dict[str, tuple[dict[str, str], Callable[[Path], Started]]] = {
    "prometheus": ({session.PROMETHEUS_VARIABLE: f"{LOOPBACK}:{compose.PROMETHEUS_PORT}"}, _prometheus),
    "localstack": ({session.SQS_VARIABLE: f"{LOOPBACK}:{compose.SQS_PORT}"}, _sqs),
    "rabbitmq": (
        {
            session.AMQP_VARIABLE: f"{LOOPBACK}:{compose.AMQP_PORT}",
            session.RABBITMQ_HTTP_VARIABLE: f"{LOOPBACK}:{compose.RABBITMQ_HTTP_PORT}",
        },
        _rabbitmq,
    ),
    "kafka": ({session.KAFKA_VARIABLE: f"{LOOPBACK}:{compose.KAFKA_PORT}"}, _kafka),
}


def up() -> None:
    """Start what is missing; a second call finds everything there."""
    if ENVIRONMENT.exists():
        sys.stderr.write(f"services are up, see {ENVIRONMENT}; `make services-down` stops them\n")
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    addresses: dict[str, str] = {}
    processes: list[dict[str, float]] = []
    try:
        for name, (composed, start) in SERVICES.items():
            given = {variable: os.environ[variable] for variable in composed if os.environ.get(variable)}
            if given:
                addresses |= given
                continue
            began = time.monotonic()
            if compose.engine_answers():
                compose.up(name)
                addresses |= composed
            else:
                home = DATA / name
                shutil.rmtree(home, ignore_errors=True)
                home.mkdir(parents=True)
                started, servers = start(home)
                addresses |= started
                processes.extend(
                    {"pid": server.pid, "created": psutil.Process(server.pid).create_time()} for server in servers
                )
                RUNNING.write_text(json.dumps(processes))
            sys.stderr.write(f"{name}: ready after {time.monotonic() - began:.1f} s\n")
    except BaseException:
        down()
        raise
    ENVIRONMENT.write_text("".join(f"{variable}={address}\n" for variable, address in addresses.items()))
    env()


def down() -> None:
    """Stop what `up` started, and forget its data."""
    if compose.engine_answers():
        compose.down()
    if RUNNING.exists():
        for known in json.loads(RUNNING.read_text()):
            _end(int(known["pid"]), float(known["created"]))
        RUNNING.unlink()
    shutil.rmtree(DATA, ignore_errors=True)
    ENVIRONMENT.unlink(missing_ok=True)


def _end(pid: int, created: float) -> None:
    """Kill a process group whose leader is still the process that we started, not one that got its number. There is
    nothing to save: its data is deleted next.
    """
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        process = psutil.Process(pid)
        if abs(process.create_time() - created) < 1:
            os.killpg(pid, signal.SIGKILL)
            # not process.wait(): it also waits for its new parent to fetch the exit status
            wait_until(lambda: has_ended(process), what=f"end of {pid}", timeout_seconds=STOP_SECONDS)


def env() -> None:
    """Print the addresses as shell assignments."""
    sys.stdout.write(ENVIRONMENT.read_text() if ENVIRONMENT.exists() else "")


def main() -> int:
    verbs = {"up": up, "down": down, "env": env, "install": install.everything}
    parser = argparse.ArgumentParser(prog="python -m tests.services", description=__doc__)
    parser.add_argument("verb", choices=verbs)
    try:
        verbs[parser.parse_args().verb]()
    except ServiceUnavailableError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
