"""A recording becomes the requests that it saw, and a backtest runs on them."""

from __future__ import annotations

import bisect
import heapq
import json
import math
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scaler.backtest.recorded import recorded_trace
from scaler.backtest.traces import TraceInvalid
from scaler.cli import build_app
from scaler.core.model import Decision, Sample
from scaler.policies.target import POLICY
from scaler.settings import StateSettings
from scaler.simulator.arrivals import Poisson, Service, generate
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


def served(folder: Path, *, rate: float, slots: int, in_flight: bool, seconds: int = 7_200) -> tuple[int, float]:
    """Poisson arrivals, lognormal service of about 20 s, first in first out, seen every two seconds; (number, work)."""
    chance = random.Random(4)
    requests = list(generate(Poisson(rate_per_second=rate), Service(mean_seconds=20.0), chance, seconds))
    free, began, ended = [0.0] * slots, [], []
    for at, service in requests:
        begins = max(at, heapq.heappop(free))
        began.append(begins)
        ended.append(begins + service)
        heapq.heappush(free, begins + service)
    ended.sort()
    now = [1_000_000.0]
    state = StateFile(folder, StateSettings(commit_seconds=0.05), clock=lambda: now[0], wall=lambda: now[0])
    state.start()
    for second in range(0, seconds, 2):
        now[0] = 1_000_000.0 + second
        arrived = bisect.bisect_right(requests, (second, math.inf))
        busy, done = bisect.bisect_right(began, second), bisect.bisect_right(ended, second)
        sample = Sample(
            at_seconds=now[0],
            metric_value=float(arrived - (done if in_flight else busy)),
            active=True,
            waiting=float(arrived - busy),
            in_flight=float(busy - done) if in_flight else None,
        )
        decision = Decision(
            at_seconds=now[0], active=True, metric_value=1.0, target_value=1.0, desired_replicas=slots, held=False
        )
        state.keep(
            ("team-a", "llama", "sqs:orders", "slo"), POLICY, decision=decision, state=None, sample=sample, view=None
        )
    state.close()
    return len(requests), sum(one.service_seconds for one in requests)


@pytest.mark.parametrize(
    ("rate", "slots", "in_flight", "number_within", "work_within"),
    [
        (0.15, 6, True, 0.1, 0.03),
        (0.02, 3, True, 0.1, 0.05),
        (0.5, 12, True, 0.15, 0.03),
        (0.27, 6, False, 0.15, 0.15),
        (0.15, 6, False, 0.5, 0.4),
    ],
    ids=["SQS", "SQS, sparse", "SQS, busy", "AMQP, slots busy", "AMQP, slots half busy"],
)
def test_without_counters_requests_and_work_are_found_as_well_as_the_page_says(
    tmp_path: Path, *, rate: float, slots: int, in_flight: bool, number_within: float, work_within: float
) -> None:
    number, work = served(tmp_path, rate=rate, slots=slots, in_flight=in_flight)
    trace = recorded_trace(tmp_path, "team-a/llama")
    assert len(trace) == pytest.approx(number, rel=number_within)
    assert sum(one.service_seconds for one in trace) == pytest.approx(work, rel=work_within)


def test_requests_that_came_while_nobody_looked_long_are_not_made_of_an_unchanged_queue(tmp_path: Path) -> None:
    """Rows come once a minute while nothing changes: that is thirty looks which saw nothing, not one."""
    changes = [(0, 0), (2, 1), (4, 1), (602, 1), (604, 0), (606, 0)]
    now = [1_000_000.0]
    state = StateFile(tmp_path, StateSettings(commit_seconds=0.05), clock=lambda: now[0], wall=lambda: now[0])
    state.start()
    for second in range(0, 1_200, 2):
        now[0] = 1_000_000.0 + second
        busy = float([value for at, value in changes if at <= second][-1])
        sample = Sample(at_seconds=now[0], metric_value=busy, active=True, waiting=0.0, in_flight=busy)
        decision = Decision(at_seconds=now[0], active=True, metric_value=1.0, target_value=1.0, desired_replicas=1)
        state.keep(("a", "b", "sqs:c", "slo"), POLICY, decision=decision, state=None, sample=sample, view=None)
    state.close()
    (only,) = recorded_trace(tmp_path, "a/b")
    assert only.service_seconds == pytest.approx(602.0, rel=0.05)


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
