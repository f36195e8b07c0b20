"""Pilotlight behind KEDA and the HPA in the simulator, against KEDA and the HPA alone, and what its policies see."""

import random
from dataclasses import replace
from typing import Any

import pytest

from scaler.core.decide import Policy, Proposal, Situation
from scaler.core.model import Goals, ReplicaStep
from scaler.plugins import policies
from scaler.simulator.arrivals import Arrival, Poisson, Service, generate
from scaler.simulator.controllers import Pilot
from scaler.simulator.keda import OUR_BEHAVIOR, OUR_KEDA, KedaHpa
from scaler.simulator.rules import HpaBehavior, KedaSpec
from scaler.simulator.world import ColdStart, Outcome, Phase, Scaler, World, WorldSpec

FOUR_LONG = [Arrival(0.0, 3_600.0)] * 4 + [Arrival(7_200.0, 1.0)]
LATER_BEHAVIOR = HpaBehavior(
    scale_up=OUR_BEHAVIOR.scale_up, scale_down=replace(OUR_BEHAVIOR.scale_down, stabilization_seconds=60.0)
)


def played(
    scaler: Scaler, trace: list[Arrival], *, initial: int = 1, c: int = 1, cold_seconds: float = 30.0
) -> Outcome:
    spec = WorldSpec(
        cold_start=ColdStart((Phase("load", cold_seconds, 0.0),)),
        initial_replicas=initial,
        concurrency=c,
        keep_timeline=True,
    )
    return World(spec, trace, random.Random(1)).run(scaler)


@pytest.mark.parametrize("behavior", [OUR_BEHAVIOR, LATER_BEHAVIOR], ids=["ours", "with a window"])
@pytest.mark.parametrize("target", [0.5, 1.0, 2.0, 5.0], ids=str)
@pytest.mark.parametrize("initial", [1, 3, 4, 8, 20], ids=str)
def test_policy_target_scales_as_a_built_in_trigger_with_the_same_threshold(
    behavior: HpaBehavior, target: float, initial: int
) -> None:
    goals = Goals(target_value=target)
    ours = Pilot(policy=policies()["target"], goals=goals, chance=random.Random(2), behavior=behavior)
    theirs = KedaHpa(keda=OUR_KEDA, hpa=OUR_KEDA.hpa(behavior=behavior), target=target, chance=random.Random(2))
    steps = [
        [(entry[0], entry[1]) for entry in played(scaler, FOUR_LONG, initial=initial).timeline if entry[0] < 3_600.0]
        for scaler in (ours, theirs)
    ]
    assert steps[0] == steps[1]


def busy_hour() -> list[Arrival]:
    return list(generate(Poisson(rate_per_second=0.4), Service(mean_seconds=10.0), random.Random(3), 3_600.0))


def by_use(target: float) -> Pilot:
    return Pilot(
        policy=policies()["utilization"], goals=Goals(target_value=target), chance=random.Random(2), sees_use_only=True
    )


@pytest.mark.parametrize("concurrency", [1, 4], ids=str)
def test_utilization_keeps_replicas_about_as_busy_as_it_is_told(concurrency: int) -> None:
    outcome = played(by_use(50.0), busy_hour(), c=concurrency)
    assert outcome.busy_seconds / outcome.gpu_seconds == pytest.approx(0.5, abs=0.12)


def test_utilization_sees_nothing_of_the_queue() -> None:
    pilot = by_use(80.0)
    pilot.keep_decisions = True
    played(pilot, [Arrival(0.0, 300.0)] * 50, cold_seconds=60.0)
    first = [decision for decision in pilot.decisions if decision.at_seconds < 60.0]
    assert {decision.desired_replicas for decision in first} == {2}  # the one that serves is busy: 100 over 80
    assert all(decision.active for decision in pilot.decisions)


def test_utilization_wakes_from_zero() -> None:
    outcome = played(by_use(80.0), [Arrival(100.0, 5.0)], initial=0, cold_seconds=10.0)
    assert 10.0 <= outcome.waits_seconds[0] <= 20.0


class Restless:
    """A policy that wants to be asked at every sample."""

    def __init__(self, inner: Policy[Any]) -> None:
        self._inner = inner
        self.decides_replicas, self.problems, self.start = inner.decides_replicas, inner.problems, inner.start

    def propose(self, situation: Situation, state: Any) -> Proposal[Any]:
        return replace(self._inner.propose(situation, state), review_at_seconds=None)


@pytest.mark.parametrize("name", ["target", "steps", "utilization", "target+burst", "steps+burst", "utilization+burst"])
def test_not_looking_while_nothing_can_change_changes_nothing(name: str) -> None:
    hour = busy_hour()
    trace = [later_by(arrival, later) for later in (0.0, 7_200.0, 90_000.0) for arrival in hour[:40]]
    goals = Goals(target_value=60.0 if "utilization" in name else 2.0, steps=(ReplicaStep(waiting_from=3, replicas=4),))
    outcomes = [
        played(
            Pilot(policy=policy, goals=goals, chance=random.Random(2), sees_use_only="utilization" in name),
            trace,
            cold_seconds=60.0,
        )
        for policy in (policies()[name], Restless(policies()[name]))
    ]
    assert outcomes[0].timeline == outcomes[1].timeline
    assert outcomes[0].waits_seconds == outcomes[1].waits_seconds
    if name != "utilization+burst":  # whose windows can't tell what an idle stretch was
        assert outcomes[0].looks < outcomes[1].looks / 10


def later_by(arrival: Arrival, later_seconds: float) -> Arrival:
    return arrival._replace(at_seconds=arrival.at_seconds + later_seconds)


def test_what_is_idle_is_brought_to_its_min_replicas() -> None:
    """As KEDA does at its next poll: without any, a policy that reads their use alone would never see work."""
    pilot = Pilot(
        policy=policies()["utilization"],
        goals=Goals(target_value=80.0, min_replicas=2, max_replicas=5),
        chance=random.Random(1),
        keda=KedaSpec(min_replicas=2, max_replicas=5, cooldown_seconds=0.0),
        sample_seconds=5.0,
        sees_use_only=True,
    )
    world = World(WorldSpec(cold_start=ColdStart((Phase("load", 10.0, 0.0),))), [Arrival(100.0, 5.0)], random.Random(1))
    outcome = world.run(pilot)
    assert outcome.starts == 2
    assert outcome.waits_seconds == [0.0]
