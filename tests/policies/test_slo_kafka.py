"""A source that does not tell what waits from what is worked on, but counts exactly: Kafka's lag."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from scaler.core.decide import Memory, decide
from scaler.core.estimate import NOTHING_KNOWN, updated
from scaler.core.model import Goals, ReplicaView, Sample
from scaler.policies.slo import POLICY, SloState
from scaler.policies.steps import POLICY as STEPS
from scaler.simulator.arrivals import Poisson, Service, generate
from scaler.simulator.controllers import Pilot
from scaler.simulator.world import World, WorldSpec, cold_start
from scaler.trigger import parse_steps

GOALS = Goals(target_value=5.0, wait_seconds=60.0)


class Lag(Pilot):
    """What is not committed, whether it waits or is being worked on, and exact counters."""

    def _counts(self, arrived: int, completed: int, waiting: int, now_seconds: float) -> Sample:  # noqa: ARG002 - it is not told
        lag = float(arrived - completed)
        return Sample(
            at_seconds=now_seconds,
            metric_value=lag,
            active=lag > 0,
            in_system=lag,
            arrived_total=float(arrived),
            completed_total=float(completed),
            in_system_least=lag,
            in_system_most=lag,
        )


def played(kind: type[Pilot], *, sees_replicas: bool) -> tuple[float, float, float]:
    """(GPU-seconds over those of the work, share in time, service seconds learned) of six hours, requests of 60 s."""
    trace = tuple(generate(Poisson(rate_per_second=0.05), Service(mean_seconds=60.0), random.Random(3), 6 * 3_600.0))
    spec = WorldSpec(cold_start=cold_start(60.0), initial_replicas=1, scored_from_seconds=1_800.0)
    goals = replace(GOALS, max_replicas=100)
    pilot = kind(policy=POLICY, goals=goals, chance=random.Random(2), sees_replicas=sees_replicas, sample_seconds=2.0)
    outcome = World(spec, trace, random.Random(1)).run(pilot)
    learned = pilot.memory.state.estimates.service_seconds(goals)
    return outcome.gpu_seconds / outcome.busy_seconds, outcome.share_within(60.0), learned


@pytest.mark.parametrize("sees_replicas", [True, False], ids=["seen", "blind"])
def test_lag_costs_about_what_it_costs_where_all_is_told(*, sees_replicas: bool) -> None:
    """Taking all slots for busy whenever one is made it 30 times as much, with a service time of half an hour."""
    cost, share, learned = played(Lag, sees_replicas=sees_replicas)
    told, _, _ = played(Pilot, sees_replicas=sees_replicas)
    assert learned == pytest.approx(60.0, rel=0.3)
    assert cost <= 1.5 * told
    assert share >= 0.93


@pytest.mark.parametrize(
    ("in_system", "ready", "concurrency", "most", "split"),
    [
        (1.0, 26, 1, None, (0.0, 1.0)),
        (5.0, 3, 1, None, (2.0, 3.0)),
        (5.0, 1, 4, None, (1.0, 4.0)),
        (5.0, 0, 1, None, (5.0, 0.0)),
        (0.0, 3, 1, None, (0.0, 0.0)),
        (5.0, 4, 1, 2, (3.0, 2.0)),
        (5.0, 4, 2, 2, (1.0, 4.0)),
        (5.0, 1, 1, 2, (4.0, 1.0)),
    ],
)
def test_as_many_as_there_are_slots_are_taken_to_be_worked_on(
    in_system: float, ready: int, concurrency: int, most: int | None, split: tuple[float, float]
) -> None:
    sample = Sample(at_seconds=1.0, metric_value=0.0, active=True, in_system=in_system, most_replicas=most)
    goals = replace(GOALS, concurrency=concurrency)
    known = updated(NOTHING_KNOWN, sample, goals, ready=ready, cold_starts_seconds=(), waking=False, now_seconds=1.0)
    assert (known.waiting, known.in_flight) == split


@pytest.mark.parametrize(
    ("most", "least", "desired"), [(2, 0, 2), (0, 0, 1), (2, 3, 3), (None, 0, 10), (40, 0, 10)], ids=str
)
def test_no_policy_asks_for_replicas_that_could_have_nothing_to_do(most: int | None, least: int, desired: int) -> None:
    sample = Sample(at_seconds=0.0, metric_value=2.0, active=True, in_system=30.0, most_replicas=most)
    goals = replace(GOALS, min_replicas=least, steps=parse_steps("1:2,6:5,21:10"))
    decision, _ = decide(STEPS, goals, Memory(state=None), sample=sample, view=None, now_seconds=0.0)
    assert decision is not None
    assert decision.desired_replicas == desired
    assert any(step.name == "most" for step in decision.steps) is (desired < 10)


@pytest.mark.parametrize(("most", "desired"), [(11, 11), (12, 12), (None, 12)])
def test_a_count_out_of_the_hpas_reach_does_not_lead_beyond_what_can_have_work(most: int | None, desired: int) -> None:
    sample = Sample(at_seconds=0.0, metric_value=2.0, active=True, in_system=30.0, most_replicas=most)
    goals = replace(GOALS, steps=parse_steps("1:11"))
    view = ReplicaView(at_seconds=0.0, ready=10, status_replicas=10)
    decision, _ = decide(STEPS, goals, Memory(state=None), sample=sample, view=view, now_seconds=0.0)
    assert decision is not None
    assert decision.desired_replicas == desired


def test_replicas_that_were_not_answered_are_not_believed_to_start_again_and_again() -> None:
    """Of 40 that are needed two can have work; blind, both serve after their cold start, however long it lasts."""
    memory: Memory[SloState] = Memory(state=POLICY.start())
    for second in range(0, 1_200, 5):
        sample = Sample(
            at_seconds=float(second),
            metric_value=2.0,
            active=True,
            in_system=400.0,
            arrived_total=400.0 + second,
            completed_total=float(second),
            most_replicas=2,
        )
        decision, memory = decide(POLICY, GOALS, memory, sample=sample, view=None, now_seconds=float(second))
        assert decision is not None
        assert decision.desired_replicas == 2
    assert memory.state.estimates.in_flight == 2.0
    assert len(memory.state.asked_at_seconds) == 0


def woken(*, requests: int, serves_after_seconds: int, service_seconds: int) -> SloState:
    """Blind: requests come to an idle group; the first is committed when one serves and has worked on it."""
    memory: Memory[SloState] = Memory(state=POLICY.start())
    goals = replace(GOALS, service_seconds=float(service_seconds), cooldown_seconds=0.0, wait_seconds=600.0)
    for second in range(0, 400, 2):
        arrived = requests if second >= 100 else 0
        done = min(max(second - 100 - serves_after_seconds, 0) // service_seconds, requests)
        sample = Sample(
            at_seconds=float(second),
            metric_value=float(arrived - done),
            active=arrived > done,
            in_system=float(arrived - done),
            arrived_total=float(arrived),
            completed_total=float(done),
        )
        _, memory = decide(POLICY, goals, memory, sample=sample, view=None, now_seconds=float(second))
    return memory.state


def test_blind_the_first_commit_after_zero_tells_a_cold_start_once_and_without_its_service_time() -> None:
    known = woken(requests=1, serves_after_seconds=90, service_seconds=20).estimates
    assert known.cold_starts == 1
    assert known.cold.whole.mean_seconds == pytest.approx(90.0, abs=15.0)


def test_blind_the_first_commit_of_many_replicas_tells_no_cold_start() -> None:
    assert woken(requests=200, serves_after_seconds=90, service_seconds=20).estimates.cold_starts == 0
