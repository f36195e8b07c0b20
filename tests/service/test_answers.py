"""Jobs, several `slo` triggers of one ScaledObject, and dry runs: deterministic, through the evaluator."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from scaler._generated import externalscaler_pb2 as pb
from scaler._generated import pilotlight_pb2 as ours
from scaler._generated import pilotlight_pb2_grpc as ours_grpc
from scaler.core.answers import JOBS
from scaler.core.decide import Memory, decide
from scaler.core.model import Decision, Goals, ReplicaView, Sample
from scaler.errors import SourceNoData, SourceTimeout, TriggerInvalid
from scaler.evaluator import Evaluator
from scaler.joint import joint_goals
from scaler.policies.slo import POLICY as SLO_POLICY
from scaler.settings import Settings, StateSettings, TelemetrySettings
from scaler.simulator.rules import HpaSpec, JobSpec, JobTrigger, Metric, Scale, combined_proposal, jobs_to_create
from scaler.sources.kafka.lag import KafkaReading, PartitionReading
from scaler.sources.sqs import SqsReading
from scaler.state import StateFile
from scaler.telemetry import Telemetry
from scaler.workload import Workload
from tests.service.conftest import RunShell, until
from tests.service.scripted import World
from tests.service.test_evaluator_properties import Clock, Desk
from tests.service.test_keda_calls import Keda, trigger

KEYS = {"awsAccessKeyID": "key", "awsSecretAccessKey": "secret"}
UNIX = 1_790_000_000.0
SLO = {"waitSeconds": "20", "serviceSeconds": "10", "coldStartSeconds": "10", "holdSeconds": "5"}


class Bench:
    """An evaluator with a clock of its own and readings that a test hands in."""

    def __init__(self, folder: Path | None = None, *, wall: float = 0.0) -> None:
        """With a state folder where one is given; the process begins at the wall's time `wall`."""
        self.clock = Clock()
        self.clock.now += wall / 7  # each process's own clock starts elsewhere
        began = self.clock.now
        self.state = None
        if folder is not None:
            settings = StateSettings(commit_seconds=0.02)
            self.state = StateFile(folder, settings, clock=self.clock, wall=lambda: wall + self.clock.now - began)
            self.state.start()
        self.telemetry = Telemetry(TelemetrySettings(), clock=self.clock)
        self.evaluator = Evaluator(
            settings=Settings(),
            telemetry=self.telemetry,
            keeper=self.state,
            clock=self.clock,
            wall=lambda: UNIX + self.clock.now,
            chance=Random(7),
        )
        self.evaluator.attach(Desk())

    def workload(self, thing: str, **more: str) -> Workload:
        metadata = {"source": "scripted", "world": "w", "object": thing, **more}
        return self.evaluator.admit(thing.encode(), "team-a", "llama", metadata)

    def read(self, workload: Workload, value: float, *, after: float = 1.0) -> Decision:
        self.clock.now += after
        self.evaluator.on_outcome(workload, value, self.clock.now)
        decision = workload.memory.last
        assert decision is not None
        return decision


# --- jobs ---


@pytest.mark.parametrize(
    ("waiting", "in_flight", "concurrency", "jobs"),
    [(0, 0, 1, 0), (5, 0, 1, 5), (5, 3, 1, 8), (5, 4, 4, 3), (None, None, 1, 7), (0, 2, 1, 2)],
)
def test_jobs_are_waiting_and_running_requests_over_concurrency(
    waiting: float | None, in_flight: float | None, concurrency: int, jobs: int
) -> None:
    sample = Sample(at_seconds=0.0, metric_value=7.0, active=True, waiting=waiting, in_flight=in_flight)
    goals = Goals(target_value=5.0, concurrency=concurrency)
    decision, _ = decide(JOBS, goals, Memory(state=None), sample=sample, view=None, now_seconds=0.0)
    assert decision is not None
    assert (decision.metric_value, decision.target_value, decision.active) == (jobs, 1.0, jobs > 0)


def test_jobs_count_what_is_in_the_system_where_the_two_are_not_told_apart() -> None:
    sample = Sample(at_seconds=0.0, metric_value=7.0, active=True, in_system=9.0)
    decision, _ = decide(
        JOBS, Goals(target_value=5.0, concurrency=2), Memory(state=None), sample=sample, view=None, now_seconds=0.0
    )
    assert decision is not None
    assert decision.metric_value == 5.0


def test_with_the_default_strategy_every_request_gets_one_job_and_none_gets_two() -> None:
    waiting, running, created = 12, 0, 0
    for _ in range(5):
        sample = Sample(
            at_seconds=0.0,
            metric_value=float(waiting + running),
            active=True,
            waiting=float(waiting),
            in_flight=float(running),
        )
        decision, _ = decide(
            JOBS, Goals(target_value=5.0), Memory(state=None), sample=sample, view=None, now_seconds=0.0
        )
        assert decision is not None
        answer = JobTrigger(active=decision.active, queue_length=decision.metric_value, target=decision.target_value)
        new = jobs_to_create(JobSpec(max_replicas=100), [answer], running=created, pending=0)
        created += new
        started = min(4, waiting)  # the new pods start a few at a time
        waiting, running = waiting - started, running + started
    assert created == 12


def test_answer_jobs_needs_no_policy_and_says_so_in_its_name() -> None:
    bench = Bench()
    workload = bench.workload("orders", answer="jobs", concurrency="2")
    assert workload.trigger.metric_name.startswith("jobs-scripted-")
    decision = bench.read(workload, 7.0)
    assert (decision.metric_value, decision.target_value) == (4.0, 1.0)


# --- several slo triggers ---


def test_slo_triggers_of_one_scaled_object_are_sized_as_one_and_each_answers_the_whole() -> None:
    bench, alone = Bench(), Bench()
    orders, mails = bench.workload("orders", **SLO), bench.workload("mails", **SLO)
    single = alone.workload("orders", **SLO)
    for step, (first, second) in enumerate([(20.0, 30.0), (20.0, 30.0), (40.0, 10.0), (0.0, 10.0), (0.0, 0.0)]):
        a = bench.read(orders, first)
        wanted_before = (first + (mails.memory.sample.waiting or 0.0)) if mails.memory.sample else first
        assert a.desired_replicas == alone.read(single, wanted_before).desired_replicas
        b = bench.read(mails, second)
        if step == 0:  # what the second holds was there before it was looked at
            single.memory = replace(single.memory, state=SLO_POLICY.rebased(single.memory.state))
        wanted = alone.read(single, first + second)
        assert b.desired_replicas == wanted.desired_replicas, step
        assert b.active == wanted.active
        metrics = [Metric(answer.metric_value, answer.target_value) for answer in (a, b)]
        scale = Scale(spec_replicas=1, status_replicas=1, ready_replicas=1)
        spec = HpaSpec(min_replicas=1, max_replicas=100)
        # The HPA takes the larger of two answers, each of which is the whole: never their sum.
        proposal = combined_proposal(spec, metrics, scale)
        assert proposal is not None
        assert proposal == max(a.desired_replicas, b.desired_replicas, 1)


KAFKA = {"source": "kafka", "bootstrapServers": "127.0.0.1:1", "consumerGroup": "workers", "topic": "orders"}


def lag_of(clock: Clock, *lags: int) -> KafkaReading:
    return KafkaReading(
        clock.now,
        tuple(
            PartitionReading(
                topic="orders",
                partition=number,
                end=1_000,
                start=None,
                committed=1_000 - lag,
                arrived=1_000,
                completed=1_000 - lag,
                still_seconds=0.0,
            )
            for number, lag in enumerate(lags)
        ),
    )


@pytest.mark.parametrize(
    ("more", "most"),
    [
        ({}, 2),
        ({"limitToPartitionsWithLag": "true"}, 1),
        ({"minReplicas": "4"}, 4),
        ({"allowIdleConsumers": "true"}, None),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "policy", [{"waitSeconds": "30"}, {"policy": "steps", "steps": "1:2,6:5,21:10"}], ids=["slo", "steps"]
)
def test_no_more_replicas_are_asked_for_than_partitions_can_keep_busy(
    policy: dict[str, str], more: dict[str, str], most: int | None
) -> None:
    bench = Bench()
    workload = bench.evaluator.admit(b"kafka", "team-a", "llama", {**KAFKA, **policy, **more})
    for _ in range(3):
        bench.clock.now += 1.0
        bench.evaluator.on_outcome(workload, lag_of(bench.clock, 60, 0), bench.clock.now)
    decision = workload.memory.last
    assert decision is not None
    told = [step.text() for step in decision.steps if step.name == "most"]
    if most is None:
        assert decision.desired_replicas > 4
        assert not told
    else:
        assert decision.desired_replicas == most
        assert [text.split(" can have work")[0] for text in told] == [
            f"at most {1 if 'limitToPartitionsWithLag' in more else 2} replicas"
        ]


@pytest.mark.parametrize("policy", [{"waitSeconds": "30"}, {"policy": "steps", "steps": "1:11"}], ids=["slo", "steps"])
@pytest.mark.parametrize(("partitions", "asked"), [(11, 12.0), (12, 12.0), (10, 10.0)])
def test_as_many_partitions_as_replicas_are_allowed_leave_none_of_these_out_of_the_hpas_reach(
    partitions: int, asked: float, policy: dict[str, str]
) -> None:
    bench = Bench()
    workload = bench.evaluator.admit(b"kafka", "team-a", "llama", {**KAFKA, **policy, "maxReplicas": "11"})
    for _ in range(3):
        bench.clock.now += 1.0
        view = ReplicaView(at_seconds=bench.clock.now, ready=10, status_replicas=10)
        bench.evaluator.report("team-a", "llama", view)
        bench.evaluator.on_outcome(workload, lag_of(bench.clock, *[500] * partitions), bench.clock.now)
    decision = workload.memory.last
    assert decision is not None
    assert (decision.metric_value, decision.desired_replicas) == (asked, min(partitions, 11))


def test_a_source_that_tells_nothing_apart_makes_one_number_of_all_that_are_sized_together() -> None:
    bench = Bench()
    queue = bench.evaluator.admit(
        b"sqs",
        "team-a",
        "llama",
        {
            "source": "sqs",
            "queueURL": "https://sqs.eu-west-1.amazonaws.com/1/q",
            "awsRegion": "eu-west-1",
            **KEYS,
            **SLO,
        },
    )
    topic = bench.evaluator.admit(b"kafka", "team-a", "llama", {**KAFKA, **SLO})
    for _ in range(3):
        bench.clock.now += 1.0
        counts = SqsReading(at_seconds=bench.clock.now, visible=4, in_flight=3, delayed=0, oldest_age_seconds=None)
        bench.evaluator.on_outcome(queue, counts, bench.clock.now)
        bench.evaluator.on_outcome(topic, lag_of(bench.clock, 5, 0), bench.clock.now)
    known = topic.estimates
    assert known is not None
    assert known.waiting + known.in_flight == 12.0
    decision = topic.memory.last
    assert decision is not None
    assert decision.desired_replicas > 2  # the queue's messages need no partition


def test_what_one_of_them_says_of_kedas_cooldown_and_of_the_warm_pool_is_said_for_all() -> None:
    """KEDA has one cooldown for a ScaledObject: one that knew it and one that did not turned each other around."""
    said = Goals(target_value=1.0, wait_seconds=30.0, cooldown_seconds=600.0, warm="floor")
    less, unsaid = replace(said, cooldown_seconds=0.0, warm="off"), Goals(target_value=2.0, wait_seconds=60.0)
    for goals in ([said, less, unsaid], [less, unsaid, said], [unsaid, said, less]):
        joint = joint_goals(goals)
        assert (joint.cooldown_seconds, joint.warm, joint.wait_seconds) == (600.0, "floor", 30.0)
    assert joint_goals([less, unsaid]).cooldown_seconds == 0.0
    assert joint_goals([unsaid, unsaid]).cooldown_seconds is None


def test_service_times_that_differ_are_true_of_none_of_them_and_learned() -> None:
    """0.5 s and 50 s, of whom the one that was read last was believed of all requests: 47 replicas where 3 do."""
    short = Goals(target_value=1.0, wait_seconds=30.0, service_seconds=0.5, cold_start_seconds=20.0)
    long, unsaid = replace(short, service_seconds=50.0, cold_start_seconds=90.0), replace(short, service_seconds=None)
    for goals in ([short, long], [long, short], [short, unsaid], [unsaid, long]):
        assert joint_goals(goals).service_seconds is None
    assert joint_goals([short, short]).service_seconds == 0.5
    assert joint_goals([short, long]).cold_start_seconds == joint_goals([long, short]).cold_start_seconds == 90.0


def test_who_tells_other_service_times_than_the_triggers_that_it_is_sized_with_is_warned() -> None:
    bench = Bench()
    with capture_logs() as logs:
        queue(bench, "a", serviceSeconds="1")
        queue(bench, "b", serviceSeconds="1")
        queue(bench, "c", serviceSeconds="50")
    assert [len(entry["warnings"]) for entry in logs if entry["event"] == "workload_started"] == [0, 0, 1]
    assert 'serviceSeconds is not the same as that of "slo-sqs-a"' in logs[-1]["warnings"][0]


def test_a_trigger_that_is_not_sized_with_a_dry_run_is_none_that_its_service_time_is_compared_with() -> None:
    bench = Bench()
    with capture_logs() as logs:
        bench.workload("orders")
        bench.workload("mails", dryRun="true", **SLO)
        bench.workload("more", dryRun="true", **(SLO | {"serviceSeconds": "50"}))
    assert [len(entry["warnings"]) for entry in logs if entry["event"] == "workload_started"] == [0, 0, 1]


def test_a_trigger_that_cannot_be_read_keeps_its_share_in_the_sum() -> None:
    bench = Bench()
    orders, mails = bench.workload("orders", **SLO), bench.workload("mails", **SLO)
    bench.read(orders, 30.0)
    bench.read(mails, 30.0)
    before = bench.read(orders, 30.0)
    bench.evaluator.on_outcome(mails, SourceTimeout("away"), bench.clock.now)
    after = bench.read(orders, 30.0, after=600.0)
    assert after.desired_replicas >= before.desired_replicas
    assert f"{mails.trigger.metric_name} can't be read: what it told 60" in after.steps[-1].text()
    bench.read(mails, 30.0)
    assert "can't be read" not in bench.read(orders, 30.0).steps[-1].text()


def test_a_sibling_that_cannot_be_read_after_a_restart_keeps_its_share_in_the_sum(tmp_path: Path) -> None:
    before = Bench(tmp_path, wall=1_000_000.0)
    assert before.state is not None
    orders, mails = before.workload("orders", **SLO), before.workload("mails", **SLO)
    for _ in range(3):
        before.read(mails, 30.0)
        wanted = before.read(orders, 2.0)
    before.state.close()
    after = Bench(tmp_path, wall=1_000_002.0)
    assert after.state is not None
    orders, mails = after.workload("orders", **SLO), after.workload("mails", **SLO)
    after.evaluator.on_outcome(mails, SourceTimeout("away"), after.clock.now)
    decision = after.read(orders, 2.0)
    after.state.close()
    assert "32 wait" in next(step for step in decision.steps if step.name == "need").text()
    assert decision.desired_replicas >= wanted.desired_replicas


def queue(bench: Bench, name: str, **more: str) -> Workload:
    metadata = {"source": "sqs", "queueURL": name, "awsRegion": "eu-central-1", **KEYS, **SLO, **more}
    return bench.evaluator.admit(name.encode(), "team-a", "llama", metadata)


def read_queue(bench: Bench, workload: Workload, visible: int, in_flight: int = 0, *, after: float = 1.0) -> Decision:
    bench.clock.now += after
    reading = SqsReading(
        at_seconds=bench.clock.now, visible=visible, in_flight=in_flight, delayed=0, oldest_age_seconds=None
    )
    bench.evaluator.on_outcome(workload, reading, bench.clock.now)
    decision = workload.memory.last
    assert decision is not None
    return decision


def test_a_sibling_that_reads_meanwhile_confirms_nothing_of_an_approximate_source() -> None:
    bench = Bench()
    jobs, mails = queue(bench, "jobs"), bench.workload("mails", **SLO)
    for _ in range(3):
        read_queue(bench, jobs, 0)
        bench.read(mails, 0.0)
    bench.clock.now += 500.0
    read_queue(bench, jobs, 0)
    assert not bench.read(mails, 0.0).active
    read_queue(bench, jobs, 7)  # wrong, once
    assert not any(bench.read(mails, 0.0, after=0.3).active for _ in range(6))
    assert not read_queue(bench, jobs, 0).active
    assert not any(bench.read(mails, 0.0, after=0.3).active for _ in range(6))
    read_queue(bench, jobs, 7)
    assert not bench.read(mails, 0.0, after=0.3).active
    assert read_queue(bench, jobs, 7).active  # a second reading of the queue itself
    assert bench.read(mails, 0.0, after=0.3).active


def test_one_queue_does_not_confirm_another_and_an_exact_sibling_needs_no_confirmation() -> None:
    bench = Bench()
    jobs, tasks, mails = queue(bench, "jobs"), queue(bench, "tasks"), bench.workload("mails", **SLO)
    for _ in range(2):
        read_queue(bench, jobs, 0)
        read_queue(bench, tasks, 0)
        bench.read(mails, 0.0)
    bench.clock.now += 500.0
    assert not read_queue(bench, jobs, 7).active
    assert not read_queue(bench, tasks, 7, after=0.1).active
    assert not any(bench.read(mails, 0.0, after=0.1).active for _ in range(3))
    assert bench.read(mails, 1.0, after=0.1).active


@pytest.mark.parametrize("wait_seconds", ["20", "60", "300"])
def test_what_a_second_queue_holds_when_it_is_first_read_did_not_arrive_just_then(wait_seconds: str) -> None:
    one, two = Bench(), Bench()
    alone = queue(one, "jobs", waitSeconds=wait_seconds)
    pair = [queue(two, name, waitSeconds=wait_seconds) for name in ("jobs", "mails")]
    wanted = max(read_queue(one, alone, 0, 10).desired_replicas for _ in range(60))
    asked = [read_queue(two, workload, 0, 5).desired_replicas for _ in range(60) for workload in pair]
    assert max(asked) == wanted == 10


def test_a_trigger_of_another_policy_between_them_leaves_what_slo_triggers_know_together() -> None:
    bench, alone = Bench(), Bench()
    workloads, pair = ([one.workload(name, **SLO) for name in ("orders", "mails")] for one in (bench, alone))
    other = bench.workload("other")
    for value in (20.0, 40.0, 60.0, 30.0, 0.0):
        bench.read(other, value, after=0.5)
        asked = [bench.read(workloads[0], value, after=0.5), bench.read(workloads[1], 30.0)]
        wanted = [alone.read(pair[0], value), alone.read(pair[1], 30.0)]
        assert [one.desired_replicas for one in asked] == [one.desired_replicas for one in wanted]
    assert workloads[1].estimates == pair[1].estimates


def test_other_policies_are_not_sized_together() -> None:
    bench = Bench()
    orders, mails = bench.workload("orders"), bench.workload("mails")
    assert bench.read(orders, 20.0).metric_value == 20.0
    assert bench.read(mails, 30.0).metric_value == 30.0


# --- dry runs ---


def test_a_dry_run_answers_by_target_and_records_what_slo_would_have_asked_for() -> None:
    bench, alone = Bench(), Bench()
    watched = bench.workload("orders", dryRun="true", **SLO)
    single = alone.workload("orders", **SLO)
    assert watched.trigger.policy_name == "target"
    answered = would = 0.0
    before: tuple[int, int] | None = None
    for value in (5.0, 60.0, 60.0, 20.0, 0.0):
        decision = bench.read(watched, value)
        slo = alone.read(single, value)
        assert (decision.metric_value, decision.target_value) == (value, 5.0)
        if before is not None:
            would, answered = would + before[0], answered + before[1]
        assert watched.watched is not None
        # Without the caution of a restarted service, which a dry run has no use for.
        assert watched.watched.desired_replicas <= slo.desired_replicas
        before = (watched.watched.desired_replicas, decision.desired_replicas)
    assert watched.watched is not None
    assert (watched.watched.gpu_seconds, watched.watched.answered_gpu_seconds) == (would, answered)
    assert would > 0


WAVE = [(20.0, 30.0), (20.0, 30.0), (40.0, 10.0), (90.0, 10.0), (30.0, 0.0), (0.0, 10.0), (0.0, 0.0)]


@pytest.mark.parametrize(
    ("ready", "cold_starts_seconds"),
    [((None, 0, 40), ()), ((0, 1, 40), (10.0,))],
    ids=["no cold starts", "cold starts, which are learned"],
)
def test_a_dry_run_asks_for_the_same_whatever_replicas_serve_the_other_answer(
    ready: tuple[int | None, ...], cold_starts_seconds: tuple[float, ...]
) -> None:
    """It was shown them, kept them while something waited or started, and told three times the cost."""
    costs = []
    for reported in ready:
        bench = Bench()
        watched = bench.workload("orders", dryRun="true", **SLO)
        for value in [40.0, 40.0, 10.0, 0.0, 0.0] * 40:
            if reported is not None:
                view = ReplicaView(at_seconds=bench.clock.now, ready=reported, cold_starts_seconds=cold_starts_seconds)
                bench.evaluator.report("team-a", "llama", view)
            bench.read(watched, value)
        assert watched.watched is not None
        costs.append(watched.watched.gpu_seconds)
    assert costs[0] == costs[1] == costs[2] > 0


def test_where_replicas_are_reported_these_are_what_the_answers_of_a_dry_run_cost() -> None:
    """The HPA's window and KEDA's cooldown keep more than is asked for; slo was told to cost three times as much."""
    bench = Bench()
    pair = [bench.workload(name, dryRun="true", **SLO) for name in ("orders", "mails")]
    for at in range(10):
        now = bench.clock.now
        if at >= 4:  # until then nobody sees any: five for each of 20 requests are asked for
            view = ReplicaView(at_seconds=now, ready=16, starting_at_seconds=(now, now), terminating=1)
            bench.evaluator.report("team-a", "llama", view)
        bench.read(pair[0], 20.0)
    bench.read(pair[1], 20.0)
    seen = [one.watched for one in pair]
    assert sum(one.answered_gpu_seconds for one in seen if one is not None) == 3 * 4 + 7 * 19


def test_dry_runs_that_are_sized_together_are_told_the_reported_cold_starts_too() -> None:
    asked = []
    for reported in ((), (200.0, 200.0)):
        bench = Bench()
        told = {"waitSeconds": "20", "serviceSeconds": "10", "dryRun": "true"}
        orders, mails = bench.workload("orders", **told), bench.workload("mails", **told)
        for value in [0.0, 0.0, 2.0, 5.0, 9.0, 9.0] * 30:
            view = ReplicaView(at_seconds=bench.clock.now, ready=5, cold_starts_seconds=reported)
            bench.evaluator.report("team-a", "llama", view)
            for one in (orders, mails):
                bench.read(one, value)
        assert orders.watched is not None
        asked.append(orders.watched.gpu_seconds)
    assert asked[0] != asked[1]


def test_dry_runs_of_one_scaled_object_are_sized_together_as_the_real_triggers_would_be() -> None:
    tried, real = Bench(), Bench()
    dry = [tried.workload(name, dryRun="true", **SLO) for name in ("orders", "mails")]
    sized = [real.workload(name, **SLO) for name in ("orders", "mails")]
    for workload in sized:  # without the caution of a restarted service, which a dry run has no use for
        workload.blank_until = real.clock.now - 1.0
    would = answered = 0.0
    before: tuple[int, int] | None = None
    for values in WAVE:
        for each, value in enumerate(values):
            decision, wanted = tried.read(dry[each], value), real.read(sized[each], value)
            assert (decision.metric_value, decision.target_value) == (value, 5.0)
            watched = dry[each].watched
            assert watched is not None
            assert watched.desired_replicas == wanted.desired_replicas
            if before is not None:  # one second after the reading before, whichever trigger's it was
                would, answered = would + before[0], answered + before[1]
            lasts = [workload.memory.last for workload in dry]
            before = wanted.desired_replicas, max(last.desired_replicas for last in lasts if last is not None)
    seen = [workload.watched for workload in dry]
    # Each second once: the parts of the triggers add up to what the replicas, which are the same ones, would have cost.
    assert sum(one.gpu_seconds for one in seen if one is not None) == would
    assert sum(one.answered_gpu_seconds for one in seen if one is not None) == answered
    assert 0 < would != answered


def test_a_dry_run_beside_a_trigger_that_slo_answers_is_sized_with_it() -> None:
    bench = Bench()
    orders, mails = bench.workload("orders", **SLO), bench.workload("mails", dryRun="true", **SLO)
    asked = bench.read(orders, 30.0)
    bench.read(mails, 30.0)
    assert mails.watched is not None
    assert mails.watched.desired_replicas > asked.desired_replicas
    assert bench.read(orders, 30.0).desired_replicas == asked.desired_replicas  # which doesn't count what is only tried


def test_dry_runs_of_a_scaled_object_leave_one_out_that_is_gone() -> None:
    bench, alone = Bench(), Bench()
    orders, mails = (bench.workload(name, dryRun="true", **SLO) for name in ("orders", "mails"))
    bench.read(orders, 2.0)
    bench.read(mails, 90.0)
    mails.superseded = True
    single = alone.workload("orders", dryRun="true", **SLO)
    for _ in range(400):
        bench.read(orders, 2.0)
        alone.read(single, 2.0)
    assert orders.watched is not None
    assert single.watched is not None
    assert orders.watched.desired_replicas == single.watched.desired_replicas


def tried(folder: Path, times: int, *, wall: float, **more: str) -> Workload:
    """One life of the process: the same trigger, so many readings, and everything written at the end."""
    bench = Bench(folder, wall=wall)
    assert bench.state is not None
    workload = bench.workload("orders", **SLO, **more)
    for value in [5.0, 60.0, 60.0, 20.0, 0.0] * times:
        bench.read(workload, value)
    bench.state.close()
    return workload


def test_what_a_dry_run_learned_and_what_it_saved_survive_a_restart(tmp_path: Path) -> None:
    first = tried(tmp_path, 8, wall=1_000_000.0, dryRun="true")
    before, known = first.watched, first.estimates
    assert before is not None
    assert known is not None
    again = tried(tmp_path, 0, wall=1_000_100.0, dryRun="true")
    assert again.estimates is not None
    assert again.estimates.at_seconds is not None
    assert again.estimates.at_seconds < 1_000.0 + 1_000_100.0 / 7  # by the new process's clock, before it began
    assert (again.estimates.samples, again.estimates.completions) == (known.samples, known.completions)
    went_on = tried(tmp_path, 1, wall=1_000_200.0, dryRun="true").watched
    assert went_on is not None
    assert went_on.gpu_seconds > before.gpu_seconds
    assert went_on.answered_gpu_seconds > before.answered_gpu_seconds > 0


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("more", [{"dryRun": "true"}, {}], ids=["goes on", "slo takes over"])
def test_the_cold_starts_that_a_dry_run_was_told_of_are_learned(
    tmp_path: Path, more: dict[str, str], *, restarted: bool
) -> None:
    """They were lost where `slo` took over: 60 s were believed for 12, and the first answers six times too high."""
    bench = Bench(tmp_path, wall=1_000_000.0)
    assert bench.state is not None
    trial = bench.workload("orders", dryRun="true", **SLO)
    for index in range(15):
        view = ReplicaView(at_seconds=bench.clock.now, ready=1, cold_starts_seconds=(12.0,), phases_seconds=((2, 4.0),))
        bench.evaluator.report("team-a", "llama", view)
        bench.read(trial, float(index % 3))
    assert trial.learned is not None
    assert trial.learned.cold_start_seconds == pytest.approx(12.0)
    if restarted:
        bench.state.close()
        bench = Bench(tmp_path, wall=1_000_100.0)
        after = bench.workload("orders", **SLO, **more)
    else:
        metadata = {"source": "scripted", "world": "w", "object": "orders", **SLO, **more}
        after = bench.evaluator.admit(b"changed", "team-a", "llama", metadata)
    assert after.estimates is not None
    assert after.estimates.cold.whole.count == 15
    assert after.estimates.cold_start(after.trigger.goals)[0] == pytest.approx(12.0)
    assert after.estimates.cold.phases[2].mean_seconds == pytest.approx(4.0)
    assert bench.state is not None
    bench.state.close()


def test_slo_takes_over_what_it_learned_while_it_was_tried(tmp_path: Path) -> None:
    known = tried(tmp_path, 8, wall=1_000_000.0, dryRun="true").estimates
    taken = tried(tmp_path, 0, wall=1_000_100.0).estimates
    assert known is not None
    assert taken is not None
    assert taken.samples == known.samples
    # ... also where only the trigger was changed, and the process goes on.
    bench = Bench()
    trial = bench.workload("orders", dryRun="true", **SLO)
    for value in (5.0, 60.0, 20.0):
        bench.read(trial, value)
    metadata = {"source": "scripted", "world": "w", "object": "orders", **SLO}
    changed = bench.evaluator.admit(b"changed", "team-a", "llama", metadata)
    assert changed.estimates is not None
    assert changed.estimates == trial.estimates


def test_a_dry_run_needs_what_slo_needs() -> None:
    with pytest.raises(TriggerInvalid, match="waitSeconds"):
        Bench().workload("orders", dryRun="true")


async def test_explain_and_metrics_show_the_difference(shell: RunShell, world: World) -> None:
    world.answers["orders"] = 12.0
    async with shell() as running:
        assert await Keda(running, pb, trigger(dryRun="true", **SLO)).poll() == (12.0, 5.0, True)
        stub = ours_grpc.ExplainStub(running.hints)
        request = ours.ExplainRequest(workload=ours.WorkloadRef(namespace="team-a", name="llama"))
        observed = (await stub.Get(request)).explanations[0].observed
        assert observed["dry_run_desired_replicas"] > 0
        assert {"dry_run_gpu_seconds", "dry_run_answered_gpu_seconds", "dry_run_saved_gpu_seconds"} <= set(observed)


async def test_explain_shows_what_is_learned_cold_starts_by_phase(shell: RunShell, world: World) -> None:
    world.answers["orders"] = 12.0
    async with shell() as running:
        keda, ref = Keda(running, pb, trigger(**SLO)), ours.WorkloadRef(namespace="team-a", name="llama")
        assert (await keda.poll())[2]
        finished = [
            ours.FinishedPhase(phase=ours.COLD_START_PHASE_PULLING, seconds=20.0),
            ours.FinishedPhase(phase=ours.COLD_START_PHASE_LOADING, seconds=70.0),
            ours.FinishedPhase(phase=ours.COLD_START_PHASE_UNSPECIFIED, seconds=5.0),
        ]
        report = ours.ReplicaReport(
            workload=ref, ready=1, finished_cold_starts_seconds=[95.0], finished_phases=finished
        )
        await ours_grpc.ReplicasStub(running.hints).Report(report)
        stub = ours_grpc.ExplainStub(running.hints)

        async def told() -> dict[str, float]:
            return dict((await stub.Get(ours.ExplainRequest(workload=ref))).explanations[0].observed)

        async def is_learned() -> bool:
            return (await told()).get("learned_cold_starts", 0.0) > 0

        await until(is_learned)
        observed = await told()
        assert observed["learned_cold_start_seconds"] == observed["learned_cold_starts"] * 95.0 == 95.0
        assert (observed["learned_pulling_seconds"], observed["learned_loading_seconds"]) == (20.0, 70.0)
        assert observed["learned_loading_p95_seconds"] > 70.0
        assert not {"learned_scheduling_seconds", "learned_starting_seconds"} & set(observed)


def test_the_series_of_slo_tell_the_share_in_time_and_what_is_learned() -> None:
    bench = Bench()
    workload = bench.workload("orders", **SLO)
    names = "scaler_achieved_ratio", "scaler_service_seconds", "scaler_cold_start_seconds"

    def told() -> dict[str, float]:
        text = b"".join(bench.telemetry.text()).decode()
        return {
            name: float(value)
            for name, value in re.findall(r"^(scaler_\w+)\{.*\} (\S+)$", text, re.MULTILINE)
            if name in names
        }

    assert not told()
    for value in [0.0, 3.0, 9.0, 2.0] * 15:
        bench.read(workload, value)
    known = workload.estimates
    assert known is not None
    goals = workload.trigger.goals
    assert told() == dict(
        zip(names, (known.waits.achieved, known.service_seconds(goals), known.lead_seconds(goals)), strict=True)
    )
    plain = bench.workload("plain")
    bench.read(plain, 9.0)
    assert plain.learned is None


# --- the warm pool ---


def pool(bench: Bench, **more: str) -> Workload:
    """A second ScaledObject of the namespace, whose replicas are the first one's warm pool."""
    metadata = {"source": "scripted", "world": "w", "object": "orders", "answer": "warm", "warmFor": "llama", **more}
    return bench.evaluator.admit(b"pool", "team-a", "llama-pool", metadata)


def test_a_warm_pool_answers_the_hint_of_the_first_and_is_active_exactly_when_it_is_one_or_more() -> None:
    bench = Bench()
    first, second = bench.workload("orders", **SLO), pool(bench)
    assert second.trigger.metric_name.startswith("warm-scripted-")
    seen = set()
    for value in [0.0] * 3 + [3.0, 9.0, 2.0] * 20 + [0.0] * 300:
        bench.read(first, value)
        answer = bench.read(second, value, after=0.5)
        hint = bench.evaluator.hint(first)
        assert hint is not None
        assert (answer.metric_value, answer.target_value) == (hint.replicas, 1.0)
        assert answer.active == (hint.replicas >= 1)
        assert answer.steps[0].text() == hint.reason
        seen.add(answer.active)
    assert seen == {False, True}


def test_a_warm_pool_whose_demand_cannot_be_read_any_more_is_unknown_too() -> None:
    bench = Bench()
    first, second = bench.workload("orders", **SLO), pool(bench)
    for value in [3.0, 9.0, 2.0] * 20:
        bench.read(first, value)
        before = bench.read(second, value, after=0.5)
    bench.evaluator.on_outcome(first, SourceTimeout("away"), bench.clock.now)
    assert isinstance(bench.evaluator.metrics(second), Decision)
    bench.clock.now += 600.0
    bench.evaluator.on_outcome(first, SourceTimeout("away"), bench.clock.now)
    bench.evaluator.on_outcome(second, 9.0, bench.clock.now)
    answer = bench.evaluator.metrics(second)
    assert isinstance(answer, SourceNoData)
    assert "its demand can't be read (SourceTimeout)" in str(answer)
    assert second.memory.last == before  # whatever was answered last stands: unknown is not zero
    mails = bench.workload("mails", **SLO)  # another trigger of the same, which can be read
    bench.read(mails, 9.0)
    bench.evaluator.on_outcome(second, 9.0, bench.clock.now)
    assert isinstance(bench.evaluator.metrics(second), Decision)


def test_what_was_just_asked_for_is_not_told_as_ready() -> None:
    bench = Bench()
    workload = queue(bench, "jobs", coldStartSeconds="60")
    for visible in (0, 40, 40):
        decision = read_queue(bench, workload, visible)
    assert decision.desired_replicas > 1
    hint = bench.evaluator.hint(workload)
    assert hint is not None
    assert f" 0 that serve and {decision.desired_replicas} that start begin" in hint.reason
    read_queue(bench, workload, 40, decision.desired_replicas, after=60.0)
    hint = bench.evaluator.hint(workload)
    assert hint is not None
    assert f" {decision.desired_replicas} that serve and " in hint.reason


@pytest.mark.parametrize("is_seen", [True, False], ids=["replicas are reported", "nobody sees them"])
def test_the_pool_does_not_ask_for_what_the_demand_has_asked_for(*, is_seen: bool) -> None:
    """Until the HPA has synced the reports show none of it; each burst asked for a pool as well."""
    bench = Bench()
    workload, beside = queue(bench, "jobs", waitSeconds="60", serviceSeconds="20", coldStartSeconds="60"), pool(bench)
    desired = pooled = 0
    for look in range(20):
        if is_seen:
            there = (bench.clock.now,) * (desired if look >= 15 else min(desired, 1))  # the first is KEDA's
            bench.evaluator.report(
                "team-a", "llama", ReplicaView(at_seconds=bench.clock.now, ready=0, starting_at_seconds=there)
            )
        desired = read_queue(bench, workload, 40 if look >= 3 else 0).desired_replicas
        pooled = max(pooled, bench.read(beside, 0.0, after=0.0).desired_replicas)
    assert desired >= 10
    assert pooled == 0


def test_a_dry_run_over_replicas_that_serve_already_learns_no_cold_start() -> None:
    bench = Bench()
    workload = queue(bench, "jobs", dryRun="true", coldStartSeconds="120")
    for visible, in_flight in [(4, 5)] * 5 + [(0, 5)] * 10 + [(0, 0)] * 200 + [(1, 0), (1, 0), (0, 1), (0, 1)]:
        read_queue(bench, workload, visible, in_flight)
    assert workload.estimates is not None
    assert workload.estimates.cold_starts == 0  # also not where KEDA's cooldown may have kept the last replica


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"warm": "pool"}, 'warm "pool": only policy slo'),
        ({"warm": "floor", "policy": "steps", "steps": "1:2"}, 'warm "floor": only policy slo'),
        ({"warm": "pool", "answer": "jobs", **SLO}, 'warm "pool": only policy slo'),
        ({"warmFor": "other", **SLO}, "warmFor: it means something with answer warm only"),
        ({"warmFor": "llama", "answer": "warm"}, 'warmFor "llama": expected another ScaledObject'),
    ],
)
def test_what_has_no_effect_on_the_warm_pool_is_refused(metadata: dict[str, str], told: str) -> None:
    with pytest.raises(TriggerInvalid) as caught:
        Bench().workload("orders", **metadata)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("coldStartSeconds", "at least 0.001 seconds"),
        ("serviceSeconds", "above 0 seconds"),
        ("waitSeconds", "above 0 seconds"),
    ],
)
def test_a_guess_or_promise_of_no_time_is_refused_rather_than_taken_for_none(name: str, expected: str) -> None:
    with pytest.raises(TriggerInvalid) as caught:
        Bench().workload("orders", **SLO | {name: "0"})
    assert f'{name} "0": it must be {expected}' in str(caught.value)


@pytest.mark.parametrize(
    "metadata", [{"warm": "off"}, {"warm": "pool", **SLO}, {"warm": "floor", "dryRun": "1", **SLO}]
)
def test_a_warm_pool_that_somebody_sizes_is_accepted(metadata: dict[str, str]) -> None:
    assert Bench().workload("orders", **metadata).trigger.goals.warm == metadata["warm"]


def test_a_pool_for_a_workload_that_nobody_knows_has_no_number() -> None:
    bench = Bench()
    second = pool(bench)
    bench.evaluator.on_outcome(second, 5.0, bench.clock.now)
    answer = bench.evaluator.metrics(second)
    assert isinstance(answer, SourceNoData)
    assert 'warmFor "llama"' in str(answer)


def warm_series(bench: Bench) -> dict[str, float]:
    """What `/metrics` tells of warm pools, by name."""
    text = b"".join(bench.telemetry.text()).decode()
    found = re.findall(r"^(scaler_warm_pool_\w+)\{.*\} (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_the_series_of_a_warm_pool_tell_the_hint_whole_and_until_when() -> None:
    bench = Bench()
    workload = bench.workload("orders", warm="pool", **SLO)
    assert not warm_series(bench)  # nothing was read yet: not known is absent, not 0
    for value in [0.0, 3.0, 9.0, 2.0] * 5:
        bench.read(workload, value)
    hint = workload.warm
    assert hint is not None
    told = {
        "scaler_warm_pool_replicas": hint.replicas,
        "scaler_warm_pool_expected_demand": hint.expected_demand,
        "scaler_warm_pool_demand_quantile": hint.demand_quantile,
        "scaler_warm_pool_quantile_ratio": hint.quantile,
        "scaler_warm_pool_lead_time_seconds": hint.lead_time_seconds,
        "scaler_warm_pool_valid_until_timestamp_seconds": UNIX + bench.clock.now + hint.valid_seconds,
    }
    assert 0 < hint.quantile < 1
    assert warm_series(bench) == told
    bench.clock.now += 1_000.0  # the source tells nothing: the hint gets no younger by being looked at
    assert warm_series(bench) == told


def test_a_workload_whose_warm_pool_nobody_asks_for_has_no_series_of_one() -> None:
    bench = Bench()
    workload = bench.workload("orders", **SLO)
    bench.read(workload, 9.0)
    assert not warm_series(bench)


async def test_no_hint_is_told_of_a_demand_that_cannot_be_read_any_more(shell: RunShell, world: World) -> None:
    """It was told as if it were fresh, until the workload was forgotten."""
    world.answers["orders"] = 12.0
    async with shell() as running:
        stub: Any = ours_grpc.WarmPoolStub(running.hints)
        request = ours.WarmPoolRequest(workload=ours.WorkloadRef(namespace="team-a", name="llama"))
        keda = Keda(running, pb, trigger(**SLO))
        await keda.poll()
        assert (await stub.GetHint(request)).valid_seconds > 0
        world.answers["orders"] = SourceTimeout("the broker did not answer")
        await keda.poll()
        assert (await stub.GetHint(request)).valid_seconds > 0  # for as long as an answer stands
        running.clock.forward(60.0)

        async def unknown() -> bool:
            try:
                await keda.poll()
            except grpc.aio.AioRpcError as err:
                return err.code() == grpc.StatusCode.UNAVAILABLE
            return False

        await until(unknown)
        for watched in (False, True):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await (stub.WatchHint(request).read() if watched else stub.GetHint(request))
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert "team-a/llama" in (caught.value.details() or "")
            assert "its demand can't be read (Source" in (caught.value.details() or "")


async def test_hints_are_told_on_request_and_watched_and_in_metrics(shell: RunShell, world: World) -> None:
    world.answers["orders"] = 12.0
    async with shell() as running:
        stub: Any = ours_grpc.WarmPoolStub(running.hints)
        request = ours.WarmPoolRequest(workload=ours.WorkloadRef(namespace="team-a", name="llama"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetHint(request)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert (await Keda(running, pb, trigger(**SLO)).poll())[2]
        hint = await stub.GetHint(request)
        assert hint.lead_time_seconds > 0
        assert "expected within a lead time" in hint.reason
        assert 0 < hint.quantile < 1
        watch = stub.WatchHint(request)
        assert (await watch.read()).workload.metric_name == hint.workload.metric_name
        host, _, port = (running.serving.metrics or "").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b'scaler_warm_pool_replicas{namespace="team-a",name="llama"' in await reader.read()
        writer.close()
        running.stop.set()
        assert await watch.read() is grpc.aio.EOF  # a drain ends it with OK
        assert await watch.code() == grpc.StatusCode.OK


def test_a_workload_that_expired_and_comes_back_goes_on_where_it_was() -> None:
    bench = Bench()
    workload = bench.workload("orders", waitSeconds="30", serviceSeconds="60", coldStartSeconds="30")
    for second in range(300):
        before = bench.read(workload, 20.0 if second < 200 else 5.0).desired_replicas
        if second % 30 == 0:
            bench.evaluator.known(b"orders")
    assert before > 20
    while b"orders" in bench.evaluator._workloads:  # nobody calls, the queue is still read
        before = bench.read(workload, 5.0).desired_replicas
        for _ in bench.evaluator.tick(bench.clock.now):
            pass
    again = bench.workload("orders", waitSeconds="30", serviceSeconds="60", coldStartSeconds="30")
    assert bench.read(again, 5.0).desired_replicas >= 0.8 * before


def expired(bench: Bench, workload: Workload) -> None:
    """Time passes until `workload` is gone; nobody calls it and nothing is read."""
    while workload.digest in bench.evaluator._workloads:
        bench.clock.now += 60.0
        for _ in bench.evaluator.tick(bench.clock.now):
            pass


@pytest.mark.parametrize("off_seconds", [10.0, 7_200.0], ids=["a moment off", "two hours off"])
def test_what_was_learned_before_a_restart_outlives_an_expiry_without_a_reading(
    tmp_path: Path, off_seconds: float
) -> None:
    before = Bench(tmp_path, wall=1_000_000.0)
    workload = before.workload("orders", **SLO)
    for _ in range(300):
        before.read(workload, 5.0)
    assert before.state is not None
    before.state.close()
    after = Bench(tmp_path, wall=1_000_300.0 + off_seconds)
    unread = after.workload("orders", **SLO)
    learned = unread.estimates
    assert learned is not None
    for _ in range(2):
        expired(after, unread)
        unread = after.workload("orders", **SLO)
        assert unread.estimates == learned
    assert after.read(unread, 5.0).desired_replicas > 0


def test_what_a_dry_run_learned_outlives_an_expiry_without_a_reading() -> None:
    bench = Bench()
    tried = bench.workload("orders", dryRun="true", **SLO)
    for _ in range(300):
        bench.read(tried, 5.0)
    learned = tried.estimates
    expired(bench, tried)
    in_earnest = bench.workload("orders", **SLO)
    assert in_earnest.estimates == learned
    expired(bench, in_earnest)
    again = bench.workload("orders", **SLO)
    assert again.estimates == learned
    assert again.blank_until > bench.clock.now  # of replicas it still knows nothing


def test_a_workload_that_expired_unread_is_as_new_when_it_comes_back() -> None:
    bench = Bench()
    expired(bench, bench.workload("orders", **SLO))
    again = bench.workload("orders", **SLO)
    assert again.estimates is None
    assert again.blank_until > bench.clock.now
