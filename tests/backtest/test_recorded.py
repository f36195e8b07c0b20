"""A recording becomes the requests that it saw, and a backtest runs on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scaler.backtest.recorded import recorded_trace
from scaler.backtest.traces import TraceInvalid
from scaler.cli import build_app
from scaler.core.model import Decision, Sample
from scaler.policies.target import POLICY
from scaler.settings import StateSettings
from scaler.state import StateFile


def record(folder: Path, *, counters: bool, requests: bool = True, seconds: int = 600) -> None:
    """Two requests every ten seconds, each of which takes five seconds, seen once a second."""
    now = [1_000_000.0]
    state = StateFile(folder, StateSettings(commit_seconds=0.05), clock=lambda: now[0], wall=lambda: now[0])
    state.start()
    for second in range(seconds):
        now[0] = 1_000_000.0 + second
        busy = 2.0 if requests and 1 <= second % 10 <= 5 else 0.0
        arrived = 2.0 * ((second + 9) // 10)
        sample = Sample(
            at_seconds=now[0],
            metric_value=busy,
            active=busy > 0,
            waiting=0.0,
            in_flight=busy,
            arrived_total=arrived if counters else None,
        )
        decision = Decision(
            at_seconds=now[0], active=True, metric_value=2.0, target_value=1.0, desired_replicas=2, held=False
        )
        state.keep(
            ("team-a", "llama", "sqs:orders", "slo"), POLICY, decision=decision, state=None, sample=sample, view=None
        )
    state.close()


def test_requests_and_their_length_are_found_again_from_counters(tmp_path: Path) -> None:
    record(tmp_path, counters=True)
    trace = recorded_trace(tmp_path, "team-a/llama")
    assert len(trace) == pytest.approx(120, abs=6)
    assert trace[-1].at_seconds == pytest.approx(591, abs=2)
    assert trace[0].service_seconds == pytest.approx(5.0, rel=0.15)


def test_without_counters_the_work_is_found_again(tmp_path: Path) -> None:
    record(tmp_path, counters=False)
    trace = recorded_trace(tmp_path, "team-a/llama")
    assert sum(one.service_seconds for one in trace) == pytest.approx(600.0, rel=0.25)


def test_a_recording_without_requests_says_so(tmp_path: Path) -> None:
    record(tmp_path, counters=False, requests=False)
    with pytest.raises(TraceInvalid, match="no request of team-a/llama"):
        recorded_trace(tmp_path, "team-a/llama")


def test_the_command_runs_policies_on_it(tmp_path: Path) -> None:
    record(tmp_path, counters=True, seconds=3600)
    words = [
        "backtest",
        "--cold-start",
        "15",
        "--recorded",
        str(tmp_path),
        "--workload",
        "team-a/llama",
        "--policy",
        "slo",
        "--json",
    ]
    result = CliRunner().invoke(build_app(), words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["gpu_seconds"] > 0
