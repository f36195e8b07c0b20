"""A recording becomes the requests that it saw, and a backtest runs on them."""

from __future__ import annotations

import bisect
import heapq
import json
import math
import random
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from scaler.backtest.cases import Case, run
from scaler.backtest.recorded import recorded_trace
from scaler.cli import build_app
from scaler.core.model import Decision, Sample
from scaler.errors import PilotlightError
from scaler.loads import TraceInvalid
from scaler.policies.target import POLICY
from scaler.settings import StateSettings
from scaler.simulator.arrivals import Poisson, Service, generate
from scaler.state import FILE_NAME, StateFile


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
    trace = recorded_trace(tmp_path, "team-a/llama").requests
    assert len(trace) == pytest.approx(120, abs=6)
    assert trace[-1].at_seconds == pytest.approx(591, abs=2)
    assert trace[0].service_seconds == pytest.approx(5.0, rel=0.15)


def test_without_counters_the_work_is_found_again(tmp_path: Path) -> None:
    record(tmp_path, counters=False)
    trace = recorded_trace(tmp_path, "team-a/llama").requests
    assert sum(one.service_seconds for one in trace) == pytest.approx(600.0, rel=0.25)


def served(
    folder: Path, *, rate: float, slots: int, in_flight: bool, seconds: int = 7_200, lag: str | None = None
) -> tuple[int, float]:
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
        if lag is not None:  # Kafka's, as it is told now, or as an older version told it
            sample = Sample(
                at_seconds=now[0],
                metric_value=min(float(arrived - done), 3.0),
                active=True,
                arrived_total=float(arrived),
                completed_total=float(done),
                in_system=float(arrived - done) if lag == "in_system" else None,
                waiting=float(arrived - done) if lag == "waiting" else None,
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
    trace = recorded_trace(tmp_path, "team-a/llama").requests
    assert len(trace) == pytest.approx(number, rel=number_within)
    assert sum(one.service_seconds for one in trace) == pytest.approx(work, rel=work_within)


@pytest.mark.parametrize("lag", ["in_system", "waiting"])
@pytest.mark.parametrize(("rate", "slots"), [(0.15, 6), (0.02, 3), (0.27, 6)])
def test_of_kafkas_lag_requests_are_exact_and_the_work_is_found_again(
    tmp_path: Path, *, rate: float, slots: int, lag: str
) -> None:
    number, work = served(tmp_path, rate=rate, slots=slots, in_flight=False, lag=lag)
    trace = recorded_trace(tmp_path, "team-a/llama").requests
    assert len(trace) == pytest.approx(number, abs=2)
    assert sum(one.service_seconds for one in trace) == pytest.approx(work, rel=0.03)


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
    (only,) = recorded_trace(tmp_path, "a/b").requests
    assert only.service_seconds == pytest.approx(602.0, rel=0.05)


DAY = 86_400.0
YEAR = 365 * DAY
UNIX = 1_790_000_000.0
LOOKS = 400
Wall = Callable[[int], float]


def looked_at(folder: Path, wall: Wall, *, counters: bool = True, restart_at: int = LOOKS, each: float = 1.0) -> None:
    """A look every five seconds, `each` requests between two, by a wall clock that is `wall` seconds off at a look."""
    for looks in (range(restart_at), range(restart_at, LOOKS)):
        clock_from = 0.0 if looks.start == 0 else 900_000.0  # each process's own clock starts elsewhere
        now = [looks.start]
        state = StateFile(
            folder,
            StateSettings(commit_seconds=0.02),
            clock=lambda now=now, clock_from=clock_from: clock_from + 5.0 * now[0],  # type: ignore[misc]
            wall=lambda now=now: UNIX + 5.0 * now[0] + wall(now[0]),  # type: ignore[misc]
        )
        state.start()
        for look in looks:
            now[0] = look
            sample = Sample(
                at_seconds=0.0,
                metric_value=1.0,
                active=True,
                waiting=float(look % 3),
                in_flight=1.0,
                arrived_total=look * each if counters else None,
                completed_total=(look - 1) * each - look % 3 if counters else None,
            )
            decision = Decision(at_seconds=0.0, active=True, metric_value=1.0, target_value=1.0, desired_replicas=1)
            state.keep(("a", "b", "sqs:c", "slo"), POLICY, decision=decision, state=None, sample=sample, view=None)
        state.close()


def as_of_an_older_version(folder: Path) -> None:
    """Rows that tell the wall's time alone."""
    with sqlite3.connect(folder / FILE_NAME) as connection:
        connection.execute("UPDATE observation SET run = NULL, ran = NULL")
    connection.close()


CLOCKS: list[Wall] = [
    lambda look: DAY if look < 20 else 0.0,
    lambda look: -UNIX if look < 20 else 0.0,
    lambda look: YEAR if look == 200 else 0.0,
    lambda look: -1_800.0 if look > 200 else 0.0,
    lambda look: 1_800.0 if look > 200 else 0.0,
]
CLOCK_NAMES = ["a day fast at first", "1970 at first", "a year fast once", "half an hour back", "half an hour on"]


@pytest.mark.parametrize("counters", [True, False], ids=["counters", "no counters"])
@pytest.mark.parametrize("wall", CLOCKS, ids=CLOCK_NAMES)
def test_a_wall_clock_that_steps_changes_nothing(tmp_path: Path, wall: Wall, *, counters: bool) -> None:
    looked_at(tmp_path / "straight", lambda _: 0.0, counters=counters)
    looked_at(tmp_path / "steps", wall, counters=counters)
    told: list[str] = []
    trace = recorded_trace(tmp_path / "steps", "a/b", tell=told.append)
    assert trace == recorded_trace(tmp_path / "straight", "a/b", tell=told.append)
    assert not told


@pytest.mark.parametrize("wall", CLOCKS[:3], ids=CLOCK_NAMES[:3])
def test_steps_in_a_recording_of_an_older_version_cost_a_look_each_and_are_told(tmp_path: Path, wall: Wall) -> None:
    looked_at(tmp_path, wall)
    as_of_an_older_version(tmp_path)
    told: list[str] = []
    trace = recorded_trace(tmp_path, "a/b", tell=told.append).requests
    assert len(trace) == pytest.approx(LOOKS - 1, abs=2)
    assert trace[-1].at_seconds == pytest.approx(5.0 * (LOOKS - 1), abs=11.0)
    assert trace[0].service_seconds == pytest.approx(5.0, rel=0.02)
    assert len(told) == 1
    assert re.match(r"recording of a/b: [12] gaps between observations are of unknown length \(the wall", told[0])


@pytest.mark.parametrize(
    ("off", "unknown"),
    [(0.0, False), (3_600.0, False), (-DAY, True), (YEAR, True), (-0.5 * UNIX, True)],
    ids=["at once", "an hour later", "a day fast before", "a year on", "at 1970"],
)
def test_a_restart_is_a_gap_by_the_wall_clock_or_of_a_look_where_that_makes_no_sense(
    tmp_path: Path, *, off: float, unknown: bool
) -> None:
    looked_at(tmp_path, lambda look: off if look >= 200 else 0.0, restart_at=200)
    told: list[str] = []
    trace = recorded_trace(tmp_path, "a/b", tell=told.append).requests
    assert len(trace) == pytest.approx(LOOKS - 1, abs=2)
    assert trace[-1].at_seconds == pytest.approx(5.0 * (LOOKS - 1) + (0.0 if unknown else off), abs=6.0)
    assert bool(told) == unknown


def test_a_look_that_two_processes_had_counts_once(tmp_path: Path) -> None:
    looked_at(tmp_path, lambda _: 0.0, restart_at=200)
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:  # the second process waited for a minute
        connection.execute("UPDATE observation SET at = at - 60, ran = ran - 60 WHERE run = 2")
    connection.close()
    told: list[str] = []
    trace = recorded_trace(tmp_path, "a/b", tell=told.append).requests
    assert trace[-1].at_seconds == pytest.approx(5.0 * (LOOKS - 1) - 60.0, abs=6.0)
    assert len(trace) == pytest.approx(LOOKS - 1, abs=1)  # those of the minute are counted, as the counters say
    assert len(told) == 1
    assert re.match(r"recording of a/b: 1\d observations of times that others tell of", told[0])


def test_a_recording_of_more_requests_than_can_be_simulated_says_so(tmp_path: Path) -> None:
    looked_at(tmp_path, lambda _: 0.0, each=1e12)
    with pytest.raises(TraceInvalid, match=r"of a/b comes to 3.99e\+14 requests; expected at most 10,000,000"):
        recorded_trace(tmp_path, "a/b")


def test_the_command_tells_what_it_left_out(tmp_path: Path) -> None:
    looked_at(tmp_path, CLOCKS[2])
    as_of_an_older_version(tmp_path)
    words = ["backtest", "--recorded", str(tmp_path), "--workload", "a/b", "--policy", "fixed", "--replicas", "2"]
    result = CliRunner().invoke(build_app(), words)
    assert result.exit_code == 0, result.output
    assert "note: recording of a/b: 2 gaps between observations are of unknown length" in result.stderr


def test_a_recording_without_requests_says_so(tmp_path: Path) -> None:
    record(tmp_path, counters=False, requests=False)
    with pytest.raises(TraceInvalid, match="no request of team-a/llama"):
        recorded_trace(tmp_path, "team-a/llama")


def kafka(folder: Path, partitions: list[int | None]) -> None:
    """A lag that comes at once and takes eight replicas' work for an hour, read of so many partitions in turn."""
    now = [1_000_000.0]
    state = StateFile(folder, StateSettings(commit_seconds=0.05), clock=lambda: now[0], wall=lambda: now[0])
    state.start()
    for look in range(720):
        now[0] = 1_000_000.0 + 5 * look
        done = 4.0 * look
        sample = Sample(
            at_seconds=now[0],
            metric_value=1.0,
            active=True,
            in_system=80.0,
            arrived_total=done + 80.0,
            completed_total=done,
            most_replicas=partitions[look % len(partitions)],
        )
        decision = Decision(at_seconds=now[0], active=True, metric_value=8.0, target_value=1.0, desired_replicas=8)
        state.keep(("a", "b", "kafka:c", "slo"), POLICY, decision=decision, state=None, sample=sample, view=None)
    state.close()


def test_what_waited_before_anybody_looked_is_left_out_and_told(tmp_path: Path) -> None:
    kafka(tmp_path, [None])
    told: list[str] = []
    recorded_trace(tmp_path, "a/b", tell=told.append)
    assert told == ["recording of a/b: 72 requests that waited already at the first look are left out"]


def backtest(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(build_app(), ["backtest", "--recorded", str(folder), "--workload", "a/b", *words])


@pytest.mark.parametrize(
    ("partitions", "most"),
    [([None], None), ([3], 3), ([3, 5], 5), ([None, 3], 3), ([0], 1)],
    ids=["not told", "told", "partitions were added", "an older version first", "none at the time"],
)
def test_no_policy_is_given_more_replicas_than_can_have_work(
    tmp_path: Path, partitions: list[int | None], most: int | None
) -> None:
    kafka(tmp_path, partitions)
    assert recorded_trace(tmp_path, "a/b").most_replicas == most
    policies = [word for name in ("slo", "target", "keda") for word in ("--policy", name)]
    result = backtest(tmp_path, "--score-from", "0", "--json", "--out", str(tmp_path / "out"), *policies)
    assert result.exit_code == 0, result.output
    said = f"note: recording of a/b: at most {most} replicas can have work at once"
    assert (said in result.stderr) == (most is not None)


@pytest.mark.parametrize("scaler", ["slo", "target", "keda", "keda-fast", "knative", "ray", "sagemaker"])
def test_everybody_keeps_to_the_most_replicas(tmp_path: Path, scaler: str) -> None:
    (tmp_path / "trace.csv").write_text("t_s,service_s\n" + "".join(f"{at},60\n" for at in range(600, 2_400, 3)))
    reached = []
    for most in (100, 3):
        case = Case(
            trace=str(tmp_path / "trace.csv"),
            cold_start_seconds=30.0,
            scaler=scaler,
            wait_seconds=60.0,
            max_replicas=most,
            keep_timeline=True,
        )
        reached.append(max(alive for _, alive, *_ in run(case).timeline))
    assert reached[0] > 3
    assert reached[1] == 3


def test_a_fixed_number_of_replicas_of_which_some_never_have_work_is_refused(tmp_path: Path) -> None:
    kafka(tmp_path, [3])
    result = backtest(tmp_path, "--policy", "fixed", "--replicas", "4")
    assert isinstance(result.exception, PilotlightError)
    assert str(result.exception) == (
        "--replicas is 4; of a/b at most 3 can have work at once, as its source says: name no more"
    )
    assert backtest(tmp_path, "--policy", "fixed", "--replicas", "3").exit_code == 0


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
    row = json.loads(result.stdout)[0]
    assert row["gpu_seconds"] > 0
    assert row["trace"] == "team-a/llama"  # not the file that it was written to for the time of the run
