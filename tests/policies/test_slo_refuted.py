"""What a stranger once showed slo to do wrong."""

from __future__ import annotations

import random

import pytest

from scaler.core.decide import Memory, decide
from scaler.core.model import Goals, Sample
from scaler.policies.slo import POLICY, SloState
from scaler.simulator.arrivals import Arrival
from scaler.simulator.controllers import Pilot
from scaler.simulator.world import World, WorldSpec, cold_start


def reading(at: float, *, waiting: float, in_flight: float | None = 0.0) -> Sample:
    system = waiting + (in_flight or 0.0)
    return Sample(at_seconds=at, metric_value=system, active=system > 0, waiting=waiting, in_flight=in_flight)


def looked(goals: Goals, *samples: Sample) -> Memory[SloState]:
    memory: Memory[SloState] = Memory(state=POLICY.start())
    for one in samples:
        _, memory = decide(POLICY, goals, memory, sample=one, view=None, now_seconds=one.at_seconds)
    return memory


@pytest.mark.parametrize("wait_seconds", [5.0, 30.0, 60.0, 120.0])
@pytest.mark.parametrize(("cold_start_seconds", "service_seconds"), [(None, None), (120.0, 30.0), (300.0, 60.0)])
@pytest.mark.parametrize("requests", [1, 5])
def test_the_first_requests_of_all_are_no_rate(
    requests: int, cold_start_seconds: float | None, service_seconds: float | None, wait_seconds: float
) -> None:
    goals = Goals(
        target_value=1.0,
        max_replicas=10_000,
        wait_seconds=wait_seconds,
        cold_start_seconds=cold_start_seconds,
        service_seconds=service_seconds,
    )
    memory = looked(goals, reading(1.0, waiting=0.0), reading(2.0, waiting=float(requests)))
    assert memory.last is not None
    assert memory.last.desired_replicas <= 3 * requests + 2


@pytest.mark.parametrize("gap_seconds", [30.0, 300.0, 590.0])
def test_what_began_to_work_in_a_gap_of_the_readings_tells_no_cold_start(gap_seconds: float) -> None:
    goals = Goals(target_value=1.0, max_replicas=100, wait_seconds=30.0)
    samples = [reading(float(at), waiting=20.0 if at > 5 else 0.0) for at in range(1, 20)]
    after = [reading(19.0 + gap_seconds + at, waiting=10.0, in_flight=10.0) for at in range(3)]
    memory = looked(goals, *samples, *after)
    assert memory.last is not None
    assert memory.last.desired_replicas >= 10
    assert memory.state.estimates.cold_starts == 0


@pytest.mark.parametrize("times", [1, 3, 10])
def test_a_small_queue_that_is_purged_teaches_no_service_time(times: int) -> None:
    goals = Goals(target_value=1.0, max_replicas=100, wait_seconds=30.0, service_seconds=60.0)
    samples = [
        reading(100.0 * time + at, waiting=20.0 if 10 <= at < 15 else 0.0) for time in range(times) for at in range(100)
    ]
    assert looked(goals, *samples).state.estimates.service_seconds(goals) == pytest.approx(60.0)


@pytest.mark.parametrize("absurd", [1e160, 1e300, float("nan"), float("inf")])
def test_a_reading_beyond_all_counting_is_none(absurd: float) -> None:
    goals = Goals(target_value=1.0, max_replicas=100, wait_seconds=30.0)
    before = looked(goals, reading(1.0, waiting=0.0), reading(2.0, waiting=3.0))
    decision, memory = decide(POLICY, goals, before, sample=reading(3.0, waiting=absurd), view=None, now_seconds=3.0)
    assert decision is not None
    assert decision.held
    assert memory.state == before.state


@pytest.mark.parametrize("sees_replicas", [True, False], ids=["seen", "unseen"])
@pytest.mark.parametrize(("service_seconds", "wait_seconds"), [(60.0, 120.0), (120.0, 120.0), (240.0, 600.0)])
def test_where_only_a_queue_is_told_a_long_request_ends(
    service_seconds: float, wait_seconds: float, *, sees_replicas: bool
) -> None:
    goals = Goals(target_value=5.0, wait_seconds=wait_seconds, cooldown_seconds=0.0)
    pilot = Pilot(
        policy=POLICY,
        goals=goals,
        chance=random.Random(1),
        sample_seconds=1.0,
        sees_replicas=sees_replicas,
        sees_counters=False,
        sees_in_flight=False,
    )
    spec = WorldSpec(cold_start=cold_start(30.0), grace_seconds=30.0)
    outcome = World(spec, [Arrival(700.0, service_seconds)], random.Random(1)).run(pilot)
    assert outcome.end_at_seconds < 700.0 + service_seconds + 120.0
