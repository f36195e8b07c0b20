"""An SQS server for tests: moto's, or LocalStack where a container engine runs."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import requests

from tests.services.process import LOOPBACK, ServerProcess, free_port, scratch_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REGION = "eu-central-1"
ACCOUNT = "123456789012"  # moto's


@dataclass(frozen=True, kw_only=True)
class SQS:
    """A running server's address; any credentials will do."""

    host: str
    port: int
    region: str = REGION
    access_key_id: str = "test"
    secret_access_key: str = "test-secret"

    @property
    def endpoint_url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class SQSServer(SQS):
    """A server that a test may stop, kill, pause and start again; it forgets its queues when it ends."""

    process: ServerProcess

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()

    def start(self) -> None:
        """Start it again on its port, without its queues; blocks until it answers (about 1 s)."""
        self.process.start()

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing is answered."""
        self.process.pause()

    def resume(self) -> None:
        """Let it go on."""
        self.process.resume()


@contextlib.contextmanager
def start_sqs(
    *,
    folder: Path | None = None,
    port: int | None = None,
    check_credentials: bool = False,
    outlives_us: bool = False,
) -> Iterator[SQSServer]:
    """Run moto's server. `check_credentials`: after the three calls that create a user, its access key and its policy,
    IAM rules are enforced (moto's INITIAL_NO_AUTH_ACTION_COUNT).
    """
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(scratch_folder("sqs")) if folder is None else folder
        own_port = port or free_port()
        server = SQSServer(
            host=LOOPBACK,
            port=own_port,
            process=ServerProcess(
                "sqs",
                [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(own_port)],
                folder=home,
                environment={"INITIAL_NO_AUTH_ACTION_COUNT": "3"} if check_credentials else {},
                is_ready=lambda: _is_ready(own_port),
                outlives_us=outlives_us,
            ),
        )
        server.process.start()
        stack.callback(server.process.kill)
        if outlives_us:
            stack.pop_all()
        yield server


def _is_ready(port: int) -> bool:
    try:
        return requests.get(f"http://{LOOPBACK}:{port}/moto-api/data.json", timeout=5).ok
    except requests.RequestException:
        return False
