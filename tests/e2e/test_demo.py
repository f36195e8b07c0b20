"""The demo as a user runs it, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scaler.loads import read_trace


def start_demo(folder: Path, *arguments: str, duration: str = "60") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scaler.cli", "demo", "--out", str(folder), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DURATION": duration},
    )


@pytest.mark.timeout(180)
def test_the_demo_leaves_zero_bursts_and_comes_back(tmp_path: Path) -> None:
    demo = start_demo(tmp_path, "--json")
    output, progress = demo.communicate(timeout=150)
    assert demo.returncode == 0, progress
    figures = json.loads(output)
    assert figures["served"] == figures["requests"] > 20
    assert figures["most_replicas"] > 1
    assert figures["left_zero"]
    assert figures["returned_to_zero"]
    assert 0 < figures["wait_p50_seconds"] <= figures["wait_p95_seconds"] <= figures["wait_p99_seconds"]
    assert Path(figures["plot"]).read_bytes().startswith(b"\x89PNG")
    assert len(read_trace(Path(figures["trace"]))) == figures["requests"]
    assert "Pilotlight pushed: 0 → 1 replicas" in progress
    assert "the HPA synced: 1 → " in progress


@pytest.mark.timeout(120)
def test_ctrl_c_ends_the_demo_with_its_table_and_leaves_no_process(tmp_path: Path) -> None:
    demo = start_demo(tmp_path)
    assert demo.stdout is not None
    children: list[psutil.Process] = []
    for line in demo.stdout:
        if "decision:" in line:
            children = psutil.Process(demo.pid).children(recursive=True)
            demo.send_signal(signal.SIGINT)
            break
    rest, errors = demo.communicate(timeout=60)
    assert demo.returncode == 130, errors
    assert "GPU-seconds" in rest
    assert errors == ""
    assert len(children) == 2
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


@pytest.mark.timeout(120)
def test_a_service_that_dies_at_the_start_is_told_with_its_log(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("server: {listenn: x}\n")
    demo = subprocess.run(
        [sys.executable, "-m", "scaler.cli", "demo", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PILOTLIGHT_CONFIG": str(config)},
        timeout=90,
        check=False,
    )
    assert demo.returncode == 2
    assert "pilotlight serve ended with status" in demo.stderr
    assert "listenn" in demo.stderr
    assert "Traceback" not in demo.stderr


def test_too_short_a_demo_is_refused(tmp_path: Path) -> None:
    started = time.monotonic()
    demo = start_demo(tmp_path, duration="5")
    _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 2
    assert "30" in errors
    assert time.monotonic() - started < 60
