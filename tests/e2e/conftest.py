"""`pilotlight serve` as a process of its own, for tests that reach it as KEDA does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Service:
    """Where the running service listens."""

    grpc: str
    hints: str
    metrics: str


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for the session: each test uses a ScaledObject of its own."""
    folder = tmp_path_factory.mktemp("service")
    ready = folder / "ready.json"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "scaler.cli", "serve", "--local", "--json", "--listen", "127.0.0.1:0",
                "--hints-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--ready-file", str(ready),
            ],
            stdout=log,
            stderr=log,
        )  # fmt: skip
    try:
        _wait_until_ready(process, ready, folder / "log")
        addresses = json.loads(ready.read_text())
        yield Service(addresses["grpc"], addresses["hints"], addresses["metrics"])
    finally:
        process.terminate()
        status = process.wait(timeout=40)
    assert status == 0, (folder / "log").read_text()


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> None:
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
