"""The first and the last replica that are allowed: the HPA compares first and keeps to its bounds then."""

from __future__ import annotations

import random

import pytest

from scaler.core.decide import Memory, decide
from scaler.core.model import Decision, Goals, ReplicaView, Sample
from scaler.policies.slo import POLICY
from scaler.policies.steps import POLICY as STEPS
from scaler.simulator.arrivals import Poisson, Service, generate
from scaler.simulator.controllers import Pilot
from scaler.simulator.rules import HpaSpec, Metric, Scale, combined_proposal
from scaler.simulator.world import World, WorldSpec, cold_start
from scaler.trigger import parse_steps


@pytest.mark.parametrize("sees_replicas", [True, False], ids=["seen", "unseen"])
def test_a_load_that_needs_all_that_is_allowed_gets_it(*, sees_replicas: bool) -> None:
    """10.2 replicas are busy and 11 allowed: from 10 the HPA ignored them for a day, and 1 % was in time."""
    trace = list(generate(Poisson(rate_per_second=1.02), Service(mean_seconds=10.0), random.Random(1), 6 * 3_600.0))
    pilot = Pilot(
        policy=POLICY,
        goals=Goals(target_value=1.0, wait_seconds=30.0, max_replicas=11),
        chance=random.Random(2),
        sees_replicas=sees_replicas,
        keep_decisions=True,
    )
    outcome = World(WorldSpec(cold_start=cold_start(60.0), keep_timeline=True), trace, random.Random(1)).run(pilot)
    assert outcome.share_within(30.0) >= 0.7
    assert max(ready for _, _, ready, _, _ in outcome.timeline) == 11
    assert max(decision.desired_replicas for decision in pilot.decisions) == 11


@pytest.mark.parametrize("most", [*range(1, 60), 100, 1_000])
@pytest.mark.parametrize("seen", [True, False])
def test_from_anywhere_the_hpa_comes_to_the_maximum_and_not_beyond(most: int, *, seen: bool) -> None:
    goals = Goals(target_value=1.0, max_replicas=most, steps=parse_steps(f"1:{most}"))
    sample = Sample(at_seconds=0.0, metric_value=50.0, active=True, waiting=50.0)
    for there in range(1, most + 1):
        view = ReplicaView(at_seconds=0.0, ready=there, status_replicas=there) if seen else None
        decision = decided(goals, sample, view)
        proposal = combined_proposal(
            HpaSpec(max_replicas=most),
            [Metric(decision.metric_value, decision.target_value)],
            Scale(there, there, there),
        )
        assert min(there if proposal is None else proposal, most) == most
        assert decision.desired_replicas == most


@pytest.mark.parametrize("least", [*range(1, 60), 100])
@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("waiting", [0.0, 3.0], ids=["idle", "working"])
def test_from_anywhere_the_hpa_comes_down_to_the_minimum_with_each_answer(
    least: int, waiting: float, *, seen: bool
) -> None:
    """Without a view it was asked for in one answer only, which the HPA's window outlasts: 11 stayed for 10."""
    most = 3 * least
    goals = Goals(
        target_value=1.0, min_replicas=least, max_replicas=most, steps=parse_steps(f"1:{least},9:{least + 1}")
    )
    for there in range(least, most + 1):
        view = ReplicaView(at_seconds=0.0, ready=there, status_replicas=there) if seen else None
        memory: Memory[None] = Memory(state=None)
        for depth in (9.0, waiting, waiting, waiting):
            sample = Sample(at_seconds=0.0, metric_value=depth, active=depth > 0, waiting=depth)
            decision, memory = decide(STEPS, goals, memory, sample=sample, view=view, now_seconds=0.0)
            assert decision is not None
            if depth == waiting:
                spec = HpaSpec(min_replicas=least, max_replicas=most)
                metric = Metric(decision.metric_value, decision.target_value)
                proposal = combined_proposal(spec, [metric], Scale(there, there, there))
                assert max(there if proposal is None else proposal, least) == least
                assert decision.desired_replicas == least


@pytest.mark.parametrize("sees_replicas", [True, False], ids=["seen", "unseen"])
def test_a_table_that_begins_late_lets_no_replica_go_that_works(*, sees_replicas: bool) -> None:
    """Below six the table has nothing; five in flight were scaled to zero."""
    view = ReplicaView(at_seconds=0.0, ready=5, status_replicas=5) if sees_replicas else None
    goals = Goals(target_value=1.0, steps=parse_steps("6:5,21:10"))
    memory: Memory[None] = Memory(state=None)
    answers = []
    for waiting, in_flight in ((20.0, 0.0), (1.0, 5.0), (0.0, 5.0), (0.0, 2.0), (0.0, 0.0)):
        sample = Sample(at_seconds=0.0, metric_value=waiting, active=waiting > 0, waiting=waiting, in_flight=in_flight)
        decision, memory = decide(STEPS, goals, memory, sample=sample, view=view, now_seconds=0.0)
        assert decision is not None
        answers.append((decision.active, decision.desired_replicas))
    assert answers == [(True, 5), (True, 5), (True, 5), (True, 2), (False, 0)]


@pytest.mark.parametrize(("in_flight", "kept"), [(0.0, 0), (1.0, 1), (5.0, 5), (10.0, 5), (99.0, 5), (100.0, 5)])
def test_what_is_in_flight_is_believed_after_a_restart_that_nobody_remembers(in_flight: float, kept: int) -> None:
    """No more than the first row, which is what 100 are answered: one more must not ask for fewer."""
    goals = Goals(target_value=1.0, steps=parse_steps("100:5,200:10"))
    sample = Sample(at_seconds=0.0, metric_value=0.0, active=False, waiting=0.0, in_flight=in_flight)
    decision = decided(goals, sample, None)
    assert (decision.desired_replicas, decision.active) == (kept, kept > 0)


def decided(goals: Goals, sample: Sample, view: ReplicaView | None) -> Decision:
    decision, _ = decide(STEPS, goals, Memory(state=None), sample=sample, view=view, now_seconds=0.0)
    assert decision is not None
    return decision
