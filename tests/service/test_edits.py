"""A trigger whose metadata is edited, or whose secret is rotated, while it runs: deterministic, through the evaluator.

KEDA calls with a new digest from then on. What was learned and decided is of the same workload and source, so it
stands: an edit must not answer as if nothing had been there before.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from scaler.core.model import Decision
from scaler.errors import SourceTimeout
from scaler.evaluator import Workload
from scaler.sources.sqs import SqsReading
from tests.service.test_answers import KEYS, Bench

SERVICE_SECONDS = 60.0
SLO = {"waitSeconds": "30", "maxReplicas": "50", "cooldownSeconds": "0"}
EDITS = [
    pytest.param({"gpuCostPerHour": "3"}, id="a price"),
    pytest.param({"waitSeconds": "31"}, id="the promise"),
    pytest.param({"maxReplicas": "60"}, id="a bound"),
    pytest.param({"awsSecretAccessKey": "rotated"}, id="a secret"),
]


def admitted(bench: Bench, digest: str, **more: str) -> Workload:
    """The trigger on the one queue, as KEDA first calls it with this metadata."""
    found = bench.evaluator.known(digest.encode())
    if found is not None:
        return found
    metadata = {"source": "sqs", "queueURL": "jobs", "awsRegion": "eu-central-1", **KEYS, **SLO, **more}
    return bench.evaluator.admit(digest.encode(), "team-a", "llama", metadata)


def read(bench: Bench, workload: Workload, visible: int, in_flight: int, *, after: float = 2.0) -> Decision:
    bench.clock.now += after
    reading = SqsReading(bench.clock.now, visible, in_flight, 0, None)
    bench.evaluator.on_outcome(workload, reading, bench.clock.now)
    decision = workload.memory.last
    assert decision is not None
    return decision


def under_load(bench: Bench, *, counts_work: bool) -> tuple[Workload, Decision, tuple[int, int]]:
    """After an hour of one request each five seconds, which nobody sees the replicas of: what was decided and read."""
    chance, workload = Random(3), admitted(bench, "old")
    queue, running, arrives, now = 0, list[float](), 0.0, 0.0
    decision, reading = None, (0, 0)
    for look in range(1800):
        now += 2.0
        while arrives < now:
            queue, arrives = queue + 1, arrives + chance.expovariate(0.2)
        running = [end for end in running if end > now]
        while queue and len(running) < (decision.desired_replicas if decision else 0):
            queue -= 1
            running.append(now + chance.expovariate(1 / SERVICE_SECONDS))
        if look % 7 == 0:
            admitted(bench, "old")
        reading = (queue, len(running) if counts_work else 0)
        decision = read(bench, workload, *reading)
    assert decision is not None
    assert decision.desired_replicas >= 10
    return workload, decision, reading


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("since_seconds", [0.0, 12.0], ids=["just called", "called a while ago"])
@pytest.mark.parametrize("counts_work", [True, False], ids=["tells what is in flight", "tells the queue alone"])
def test_what_was_learned_and_asked_for_stands(
    edit: dict[str, str], *, since_seconds: float, counts_work: bool
) -> None:
    """It was 0 and inactive, of 16, with the queue alone; and everything learned began anew."""
    bench = Bench()
    old, before, reading = under_load(bench, counts_work=counts_work)
    known = old.estimates
    assert known is not None
    bench.clock.now += since_seconds
    new = admitted(bench, "new", **edit)
    assert bench.evaluator.metrics(new) == before  # until it is read, which a first call waits for
    after = read(bench, new, *reading)
    assert abs(after.desired_replicas - before.desired_replicas) <= 1
    learned = new.estimates
    assert learned is not None
    assert learned.samples > known.samples
    assert learned.service_seconds(new.trigger.goals) == pytest.approx(
        known.service_seconds(old.trigger.goals), rel=0.3
    )


@pytest.mark.parametrize("policy", [SLO, {"policy": "target"}], ids=["slo", "target"])
def test_a_source_that_cannot_be_read_after_the_edit_is_not_unknown(policy: dict[str, str]) -> None:
    """As with a typing error in the new secret: what was decided is held, and the failure told."""
    bench = Bench()
    metadata = {"holdSeconds": "60", **policy}
    old = bench.workload("orders", **metadata)
    before = [bench.read(old, 40.0) for _ in range(5)][-1]
    new = bench.evaluator.admit(
        b"new", "team-a", "llama", {"source": "scripted", "world": "w", "object": "orders", "password": "x", **metadata}
    )
    bench.evaluator.on_outcome(new, SourceTimeout("too slow"), bench.clock.now)
    assert bench.evaluator.metrics(new) == before
    assert bench.evaluator.is_active(new) is True
    bench.clock.now += 30.0
    assert bench.evaluator.metrics(new) == before


def test_a_threshold_is_announced_as_edited_and_the_metric_as_last_read() -> None:
    """KEDA writes the target into the HPA when it first asks: the old one would stay there."""
    bench = Bench()
    bench.read(bench.workload("orders", threshold="5"), 40.0)
    metadata = {"source": "scripted", "world": "w", "object": "orders", "threshold": "10"}
    new = bench.evaluator.admit(b"new", "team-a", "llama", metadata)
    answer = bench.evaluator.metrics(new)
    assert isinstance(answer, Decision)
    assert (new.target_value, answer.target_value) == (10.0, 10.0)
    assert (answer.metric_value, answer.desired_replicas, answer.active) == (40.0, 4, True)
    assert bench.read(new, 40.0).desired_replicas == 4


def test_a_threshold_that_was_edited_while_the_service_was_down_is_announced_as_edited(tmp_path: Path) -> None:
    bench = Bench(tmp_path, wall=1_000_000.0)
    bench.read(bench.workload("orders", threshold="5"), 40.0)
    assert bench.state is not None
    bench.state.close()
    bench = Bench(tmp_path, wall=1_000_010.0)
    new = bench.workload("orders", threshold="10")
    assert new.memory.last is not None
    assert (new.target_value, new.memory.last.metric_value, new.memory.last.desired_replicas) == (10.0, 40.0, 4)
    assert bench.state is not None
    bench.state.close()


def test_what_is_kept_in_the_state_file_is_what_was_learned_before_the_edit_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path, wall=1_000_000.0)
    old = bench.workload("orders", **SLO)
    for value in range(100):
        bench.read(old, float(value % 7))
    metadata = {"source": "scripted", "world": "w", "object": "orders", **SLO, "gpuCostPerHour": "3"}
    bench.read(bench.evaluator.admit(b"new", "team-a", "llama", metadata), 3.0)
    assert bench.state is not None
    bench.state.close()
    bench = Bench(tmp_path, wall=1_000_120.0)
    again = bench.evaluator.admit(b"new", "team-a", "llama", metadata)
    assert again.estimates is not None
    assert again.estimates.samples == 101
    assert bench.state is not None
    bench.state.close()


def test_the_caution_of_a_service_that_knew_nothing_goes_on() -> None:
    """Nothing is let go for one cold start and holdSeconds after a start without state: an edit does not end that."""
    bench = Bench()
    promise = {"waitSeconds": "60", "serviceSeconds": "20", "coldStartSeconds": "6", "holdSeconds": "60"}
    old = admitted(bench, "old", **promise)
    peak = read(bench, old, 40, 0).desired_replicas
    assert peak >= 4
    new = admitted(bench, "new", **promise, gpuCostPerHour="3")
    answers = [read(bench, new, 0, 0, after=1.0).desired_replicas for _ in range(62)]
    assert set(answers) == {peak}
    assert [read(bench, new, 0, 0, after=1.0).desired_replicas for _ in range(4)][-1] == 0


def test_an_edit_of_one_of_several_triggers_leaves_what_they_have_learned_together() -> None:
    edited, plain = Bench(), Bench()
    pairs = [[bench.workload(name, **SLO) for name in ("orders", "mails")] for bench in (edited, plain)]
    chance = Random(5)
    for look in range(200):
        if look == 120:
            metadata = {"source": "scripted", "world": "w", "object": "orders", **SLO, "sampleSeconds": "2"}
            edited.clock.now += 11.0
            plain.clock.now += 11.0
            edited.evaluator.known(b"mails")
            pairs[0][0] = edited.evaluator.admit(b"new", "team-a", "llama", metadata)
        values = [float(chance.randint(0, 30)), float(chance.randint(0, 9))]
        answers = [
            [bench.read(one, value) for one, value in zip(pair, values, strict=True)]
            for bench, pair in zip((edited, plain), pairs, strict=True)
        ]
        assert [one.metric_value for one in answers[0]] == [one.metric_value for one in answers[1]], look
    assert pairs[0][1].estimates == pairs[1][1].estimates
