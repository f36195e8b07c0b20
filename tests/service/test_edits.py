"""A trigger whose metadata is edited, or whose secret is rotated, while it runs: deterministic, through the evaluator.

KEDA calls with a new digest from then on. What was learned and decided is of the same workload and source, so it
stands: an edit must not answer as if nothing had been there before.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from scaler.core.model import Decision, ReplicaView
from scaler.errors import SourceTimeout
from scaler.sources.sqs import SqsReading
from scaler.workload import Workload
from tests.service.test_answers import KEYS, Bench

SERVICE_SECONDS = 60.0
SLO = {"waitSeconds": "30", "maxReplicas": "50", "cooldownSeconds": "0"}
EDITS = [
    pytest.param({"gpuCostPerHour": "3"}, id="a price"),
    pytest.param({"waitSeconds": "31"}, id="the promise"),
    pytest.param({"maxReplicas": "60"}, id="a bound"),
    pytest.param({"awsSecretAccessKey": "rotated"}, id="a secret"),
]


def called(bench: Bench, digest: str, metadata: dict[str, str]) -> Workload:
    """The trigger of this digest, which KEDA calls now; admitted if it is not known."""
    found = bench.evaluator.known(digest.encode())
    return found or bench.evaluator.admit(digest.encode(), "team-a", "llama", metadata)


def admitted(bench: Bench, digest: str, **more: str) -> Workload:
    """The trigger on the one queue."""
    return called(
        bench, digest, {"source": "sqs", "queueURL": "jobs", "awsRegion": "eu-central-1", **KEYS, **SLO, **more}
    )


def orders(bench: Bench, digest: str, **more: str) -> Workload:
    """A trigger on what the script says."""
    return called(bench, digest, {"source": "scripted", "world": "w", "object": "orders", **more})


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


def answered(bench: Bench, workload: Workload) -> tuple[float, float, int, bool]:
    answer = bench.evaluator.metrics(workload)
    assert isinstance(answer, Decision)
    assert bench.evaluator.is_active(workload) is answer.active
    return answer.metric_value, workload.target_value, answer.desired_replicas, answer.active


def failed(bench: Bench, *workloads: Workload) -> None:
    for workload in workloads:
        bench.evaluator.on_outcome(workload, SourceTimeout("too slow"), bench.clock.now)


def test_until_it_is_read_an_edited_threshold_asks_for_the_replicas_of_before() -> None:
    """KEDA writes the target into the HPA when it first asks: the old one would stay there."""
    bench = Bench()
    bench.read(orders(bench, "old", threshold="5"), 40.0)
    new = orders(bench, "new", threshold="10")
    assert answered(bench, new) == (80.0, 10.0, 8, True)
    assert bench.read(new, 40.0).desired_replicas == 4


def test_a_threshold_that_was_edited_while_the_service_was_down_is_announced_as_edited(tmp_path: Path) -> None:
    bench = Bench(tmp_path, wall=1_000_000.0)
    bench.read(orders(bench, "old", threshold="5"), 40.0)
    assert bench.state is not None
    bench.state.close()
    bench = Bench(tmp_path, wall=1_000_010.0)
    assert answered(bench, orders(bench, "new", threshold="10")) == (80.0, 10.0, 8, True)
    assert bench.state is not None
    bench.state.close()


def test_a_metric_of_another_unit_is_not_held_against_the_new_target() -> None:
    """What waits and what is in flight, then only what waits: 52 were 52 replicas while it could not be read."""
    bench = Bench()
    old = admitted(bench, "old", policy="target", queueLength="5")
    assert read(bench, old, 2, 50).desired_replicas == 11
    new = admitted(bench, "new", policy="target", queueLength="1", scaleOnInFlight="false")
    failed(bench, new, old)
    metric_value, *others = answered(bench, new)
    assert metric_value == pytest.approx(52 / 5)
    assert others == [1.0, 11, True]
    assert read(bench, new, 2, 50).desired_replicas == 2


def test_a_table_that_was_mended_during_a_burst_is_not_held_to_the_wrong_one() -> None:
    """A table of 40 replicas instead of 4 was answered for as long as the burst lasted."""
    bench = Bench()
    wrong, right = {"policy": "steps+burst", "steps": "1:40"}, {"policy": "steps+burst", "steps": "1:4"}
    for value in [0.0] * 300 + [20.0] * 30:
        bench.read(orders(bench, "old", **wrong), value)
    new = orders(bench, "new", **right)
    assert answered(bench, new)[2] == 40
    assert {bench.read(new, 20.0 + look).desired_replicas for look in range(60)} == {4}


def test_a_burst_that_is_on_outlives_a_rotated_secret() -> None:
    bench = Bench()
    table = {"policy": "steps+burst", "steps": "1:2,21:10"}
    for value in [1.0] * 300 + [30.0 + 5.0 * look for look in range(6)]:
        held = bench.read(orders(bench, "old", password="first", **table), value).desired_replicas
    new = orders(bench, "new", password="second", **table)
    assert bench.read(new, 20.0).desired_replicas == held == 10


def test_bounds_are_those_of_now() -> None:
    bench = Bench()
    peak = bench.read(orders(bench, "old", waitSeconds="10", serviceSeconds="30"), 400.0).desired_replicas
    assert peak > 10
    new = orders(bench, "new", waitSeconds="10", serviceSeconds="30", maxReplicas="10")
    assert answered(bench, new) == (10.0, 1.0, 10, True)


@pytest.mark.parametrize("policy", [{"policy": "target"}, {**SLO, "holdSeconds": "300"}], ids=["target", "slo"])
@pytest.mark.parametrize("fails", [True, False], ids=["fails", "is read"])
def test_an_edit_that_is_taken_back_goes_on_from_what_the_edited_one_knows(
    policy: dict[str, str], *, fails: bool
) -> None:
    """The first one woke with what it knew before the edit: 0 and inactive, while 40 waited."""
    bench = Bench()
    first = orders(bench, "first", **policy)
    for _ in range(5):
        bench.read(first, 0.0)
    edited = orders(bench, "edited", **policy, sampleSeconds="3")
    for _ in range(30):
        bench.read(orders(bench, "edited"), 40.0)
    assert first.superseded
    desired = bench.read(edited, 40.0).desired_replicas
    again = orders(bench, "first")
    assert again is first
    assert answered(bench, again)[2:] == (desired, True)
    if fails:
        failed(bench, first, edited)
        bench.clock.now += 20.0
        orders(bench, "first")
        assert answered(bench, again)[2:] == (desired, True)
    else:
        assert bench.read(again, 40.0).desired_replicas >= desired - 1
    if policy is not SLO and again.estimates is not None:
        assert again.estimates.samples > 30


def test_an_edit_of_the_policy_that_is_taken_back_does_not_answer_what_was_so_before_it() -> None:
    bench = Bench()
    first = orders(bench, "first", **SLO)
    for _ in range(5):
        bench.read(first, 0.0)
    for _ in range(30):
        bench.read(orders(bench, "edited", threshold="1"), 40.0)
    again = orders(bench, "first")
    failed(bench, again)
    assert isinstance(bench.evaluator.is_active(again), SourceTimeout)  # nobody knows: KEDA leaves all as it is
    assert isinstance(bench.evaluator.metrics(again), SourceTimeout)
    assert again.memory.state.estimates.samples == 5


@pytest.mark.parametrize("first", ["new", "other"])
def test_of_two_triggers_on_one_queue_the_one_that_asks_for_more_is_gone_on_from(first: str) -> None:
    """The HPA takes the larger answer. The edited one got the other's, and both said 0."""
    bench = Bench()
    table, theirs = {"policy": "steps", "steps": "1:20"}, {"policy": "steps", "steps": "200:40"}
    for _ in range(3):
        bench.read(orders(bench, "old", **table), 100.0)
        bench.read(orders(bench, "other", **theirs), 100.0)
    bench.clock.now += 30.0  # KEDA's next poll, in either order
    if first == "other":
        orders(bench, "other")
    new = orders(bench, "new", **table, sampleSeconds="3")
    other = orders(bench, "other")
    failed(bench, new, other)
    assert answered(bench, new) == (20.0, 1.0, 20, True)


def test_what_the_old_secret_still_reads_is_known_where_the_new_one_cannot() -> None:
    """The new one said what was so when it came, 0 and inactive, for as long as its secret was wrong."""
    bench = Bench()
    old = orders(bench, "old", password="right", holdSeconds="600")
    bench.read(old, 0.0)
    new = orders(bench, "new", password="wrong", holdSeconds="600")
    failed(bench, new)
    bench.read(old, 40.0, after=2.0)
    bench.clock.now += 15.0
    assert orders(bench, "new", password="wrong", holdSeconds="600") is new
    assert old.superseded
    assert answered(bench, new) == (40.0, 5.0, 8, True)


def test_what_was_learned_outlives_a_failure_and_the_edit_that_mends_it() -> None:
    """Expired, back with a wrong secret, and mended an hour later: nothing was left of what had been learned."""
    bench = Bench()
    for value in range(300):
        bench.read(orders(bench, "first", **SLO), float(value % 7))
    bench.clock.now += 3600.0
    for _ in bench.evaluator.tick(bench.clock.now):
        pass
    wrong = orders(bench, "wrong", password="wrong", **SLO)
    failed(bench, wrong)
    assert isinstance(bench.evaluator.metrics(wrong), SourceTimeout)
    mended = orders(bench, "mended", password="right", **SLO)
    bench.read(mended, 3.0)
    assert mended.estimates is not None
    assert mended.estimates.samples == 301


def test_what_was_learned_outlives_a_quarter_of_an_hour_of_another_policy() -> None:
    bench = Bench()
    for value in range(300):
        bench.read(orders(bench, "first", **SLO), float(value % 7))
    for _ in range(450):
        bench.read(orders(bench, "other", threshold="1"), 3.0, after=2.0)
        for _ in bench.evaluator.tick(bench.clock.now):
            pass
    again = orders(bench, "first", **SLO)
    assert again.admitted_at == bench.clock.now  # the first one has expired
    bench.read(again, 3.0)
    assert again.estimates is not None
    assert again.estimates.samples == 301


def test_a_refused_edit_is_not_answered_from_before_it() -> None:
    bench = Bench()
    assert read(bench, admitted(bench, "old"), 40, 0).active
    metadata = {"source": "sqs", "queueURL": "jobs", "connection": "theirs", **SLO}
    new = bench.evaluator.admit(b"new", "team-a", "llama", metadata)
    assert new.trigger.refusal is not None
    for seconds in (0.0, 15.0, 700.0):
        bench.clock.now += seconds
        assert bench.evaluator.metrics(new) is new.trigger.refusal
        assert bench.evaluator.is_active(new) is new.trigger.refusal
        assert bench.evaluator.undisturbed(b"new") is None
        for _ in bench.evaluator.tick(bench.clock.now):
            pass
        bench.evaluator.known(b"new")


DRY = {"dryRun": "true", **SLO}


def test_a_dry_run_goes_on_however_often_an_edit_is_made_and_taken_back() -> None:
    bench = Bench()
    digests: tuple[tuple[str, dict[str, str]], ...] = ("first", {}), ("edited", {"sampleSeconds": "3"})
    for phase in range(6):
        digest, more = digests[phase % 2]
        bench.clock.now += 15.0
        for look in range(50):
            workload = orders(bench, digest, **DRY, **more)
            bench.read(workload, float(look % 7))
        assert workload.estimates is not None
        assert workload.estimates.samples == 50 * (phase + 1)
    watched = workload.watched
    assert watched is not None
    assert watched.gpu_seconds > 0.9 * 300 * watched.desired_replicas / 2


def test_a_dry_run_goes_on_over_a_restart_and_an_edit_before_anything_was_read(tmp_path: Path) -> None:
    bench = Bench(tmp_path, wall=1_000_000.0)
    for look in range(100):
        before = orders(bench, "first", **DRY)
        bench.read(before, float(look % 7))
    assert bench.state is not None
    bench.state.close()
    assert before.watched is not None
    bench = Bench(tmp_path, wall=1_000_110.0)
    orders(bench, "first", **DRY)
    edited = orders(bench, "edited", **DRY, sampleSeconds="3")
    bench.read(edited, 3.0)
    assert edited.estimates is not None
    assert edited.watched is not None
    assert edited.estimates.samples == 101
    assert edited.watched.gpu_seconds >= before.watched.gpu_seconds
    assert bench.state is not None
    bench.state.close()


def test_the_caution_goes_on_where_a_wrong_edit_is_taken_back() -> None:
    bench = Bench()
    promise = {"waitSeconds": "60", "serviceSeconds": "20", "coldStartSeconds": "60", "holdSeconds": "120"}
    peak = read(bench, admitted(bench, "old", **promise), 40, 0).desired_replicas
    assert peak >= 4
    for _ in range(14):
        read(bench, admitted(bench, "old", **promise), 0, 2)
    for _ in range(15):
        bench.clock.now += 2.0
        failed(bench, admitted(bench, "wrong", **promise, awsSecretAccessKey="wrong"))
    answers = [read(bench, admitted(bench, "old", **promise), 0, 2).desired_replicas for _ in range(50)]
    assert set(answers) == {peak}


def test_a_cold_start_is_learned_once_however_often_an_edit_is_taken_back() -> None:
    alone, edited = Bench(), Bench()
    for look in range(600):
        for bench in (alone, edited):
            digest = "edited" if bench is edited and look // 30 % 2 else "first"
            workload = orders(bench, digest, **SLO, **({"sampleSeconds": "3"} if digest == "edited" else {}))
            started = (80.0 if look > 300 else 40.0,) if look % 20 == 19 else ()
            view = ReplicaView(at_seconds=bench.clock.now, ready=3, cold_starts_seconds=started)
            bench.evaluator.report("team-a", "llama", view)
            bench.read(workload, 3.0)
    (one, two) = (bench.evaluator.of("team-a", "llama")[0].estimates for bench in (alone, edited))
    assert one is not None
    assert two is not None
    assert two.cold_starts == pytest.approx(one.cold_starts, rel=0.1)
    assert two.cold == one.cold


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


@pytest.mark.parametrize("read_between", [True, False], ids=["read once more", "not read again"])
def test_what_several_triggers_need_together_stands_after_a_rotated_secret_of_one(*, read_between: bool) -> None:
    """It may be above that one's own maxReplicas, and is so again with its next reading."""
    bench = Bench()
    first = bench.workload("orders", **SLO)

    def mails(password: str) -> Workload:
        metadata = {"source": "scripted", "world": "w", "object": "mails", **SLO, "maxReplicas": "5"}
        return called(bench, password, {**metadata, "password": password})

    old = mails("old")
    together = (bench.read(first, 40.0), bench.read(old, 0.0))[1]
    assert together.desired_replicas > 5
    new = mails("new")
    if read_between:
        together = bench.read(old, 0.0)
    bench.clock.now += 11.0
    mails("new")
    assert answered(bench, new)[2] == together.desired_replicas
    assert bench.read(new, 0.0).desired_replicas > 5
