"""docker-compose.test.yml, for machines where a container engine answers."""

from __future__ import annotations

import functools
import shutil
import subprocess

from tests.services.process import REPOSITORY, ServiceUnavailableError

FILE = REPOSITORY / "docker-compose.test.yml"
PROJECT = "pilotlight-test"
UP_SECONDS = 600
QUICK_SECONDS = 15

# The ports on 127.0.0.1 that the file publishes; a test compares them with the file. `make services-up` takes the same
# ones for native servers.
KAFKA_PORT = 19_092
AMQP_PORT = 19_672
RABBITMQ_HTTP_PORT = 19_673
PROMETHEUS_PORT = 19_090
SQS_PORT = 19_566


@functools.cache
def engine_answers() -> bool:
    """Tell whether a container engine runs here and its client knows compose. A client alone is not enough."""
    if shutil.which("docker") is None:
        return False
    try:
        return all(
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=QUICK_SECONDS,
                check=False,
            ).returncode
            == 0
            for command in (["docker", "info"], ["docker", "compose", "version"])
        )
    except subprocess.TimeoutExpired:
        return False


def compose(*arguments: str) -> str:
    """Run `docker compose` on the file and return what it prints."""
    done = subprocess.run(
        ["docker", "compose", "--project-name", PROJECT, "--file", str(FILE), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=UP_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceUnavailableError(
            f"docker compose {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}"
        )
    return done.stdout


def is_up(service: str) -> bool:
    """Tell whether a service of the file is running already."""
    return service in compose("ps", "--services", "--status", "running").split()


def up(service: str) -> None:
    """Start a service and wait until its health check passes."""
    compose("up", "--detach", "--wait", service)


def down(*services: str) -> None:
    """Stop and remove services with their data; all of them where none is named."""
    if services:
        compose("rm", "--force", "--stop", "--volumes", *services)
    else:
        compose("down", "--volumes", "--remove-orphans")
