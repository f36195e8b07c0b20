"""The last replica: KEDA's cooldown is subtracted from the hold, and a warm floor keeps more than the demand."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from scaler.core.decide import Memory, Proposal, Situation, decide
from scaler.core.model import Decision, Goals, ReplicaView, Sample
from scaler.policies.slo import POLICY, Slo, SloState
from scaler.simulator.arrivals import Poisson, Service, generate
from scaler.simulator.controllers import Pilot
from scaler.simulator.rules import KedaSpec, KedaState, keda_poll
from scaler.simulator.world import World, WorldSpec, cold_start


def goals(**changes: float | str) -> Goals:
    return Goals(target_value=1.0, wait_seconds=30.0, **changes)  # type: ignore[arg-type]  # of several types


def idle_until_inactive(wanted: Goals) -> tuple[float, list[tuple[float, Decision]]]:
    """One request is served, then nothing comes: when the decision turns inactive, with all decisions."""
    memory: Memory[SloState] = Memory(state=POLICY.start())
    decisions = []
    view = ReplicaView(at_seconds=0.0, ready=1)
    for second in range(0, 36_000, 5):
        in_flight = 1.0 if second < 10 else 0.0
        sample = Sample(
            at_seconds=float(second), metric_value=in_flight, active=in_flight > 0, waiting=0.0, in_flight=in_flight
        )
        decision, memory = decide(POLICY, wanted, memory, sample=sample, view=view, now_seconds=float(second))
        assert decision is not None
        decisions.append((float(second), decision))
        if second >= 10 and not decision.active:
            return float(second), decisions
    raise AssertionError("it never let the last replica go")


def test_kedas_cooldown_is_subtracted_from_the_hold_of_the_last_replica() -> None:
    without, _ = idle_until_inactive(goals())
    with_cooldown, _ = idle_until_inactive(goals(cooldown_seconds=40.0))
    assert without > 60.0
    assert with_cooldown == pytest.approx(without - 40.0, abs=5.0)


@pytest.mark.parametrize("cooldown_seconds", [20.0, 60.0])
def test_through_kedas_executor_the_replica_goes_when_the_policy_meant_it_to(cooldown_seconds: float) -> None:
    meant, _ = idle_until_inactive(goals())
    _, decisions = idle_until_inactive(goals(cooldown_seconds=cooldown_seconds))
    spec = KedaSpec(min_replicas=0, max_replicas=10, cooldown_seconds=cooldown_seconds, polling_seconds=5.0)
    state, replicas = KedaState(created_at_seconds=0.0), 1
    last = decisions[-1]
    for second in range(0, 36_000, 5):
        decision = dict(decisions).get(float(second), last[1])
        replicas, state = keda_poll(
            spec, state, replicas=replicas, active=decision.active, failed=False, now_seconds=float(second)
        )
        if replicas == 0:
            assert second == pytest.approx(meant, abs=15.0)
            return
    raise AssertionError("KEDA never scaled to zero")


def test_a_cooldown_longer_than_the_hold_leaves_it_all_to_keda() -> None:
    when, _ = idle_until_inactive(goals(cooldown_seconds=30_000.0))
    assert when == 10.0


class BothWays(Slo):
    """Decides without a floor, and notes what a floor would have asked for in the same situation."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []

    def propose(self, situation: Situation, state: SloState) -> Proposal[SloState]:
        without = super().propose(situation, state)
        floor = super().propose(replace(situation, goals=replace(situation.goals, warm="floor")), state)
        self.asked.append((without.metric_value, floor.metric_value))
        return without


def test_a_warm_floor_asks_for_more_and_never_for_less() -> None:
    # Whole runs can't tell: what a floor averts, the closed loop soon takes as credit.
    arrivals = generate(
        Poisson(rate_per_second=0.2), Service(mean_seconds=10.0, variation=0.5), random.Random(5), 5_000
    )
    policy, wanted = BothWays(), Goals(target_value=1.0, wait_seconds=5.0, attainment=0.8)
    spec = WorldSpec(cold_start=cold_start(60.0), initial_replicas=1)
    World(spec, list(arrivals), random.Random(7)).run(Pilot(policy=policy, goals=wanted, chance=random.Random(6)))
    assert all(floor >= without for without, floor in policy.asked)
    assert any(floor > without for without, floor in policy.asked)


def test_a_warm_floor_says_why() -> None:
    _, decisions = idle_until_inactive(goals(warm="floor"))
    assert "warm pool" in [step.name for step in decisions[3][1].steps]
