"""What `slo` promises, in the simulator; small and seeded."""

import math
import random
from dataclasses import replace
from itertools import product

import pytest

from scaler.core.decide import Memory, decide
from scaler.core.estimate import NOTHING_KNOWN
from scaler.core.model import Goals, Sample
from scaler.core.waits import Waits
from scaler.policies import slo
from scaler.policies.slo import POLICY
from scaler.simulator.arrivals import Arrival, Bursts, Pattern, Poisson, Service, Steady, generate
from scaler.simulator.controllers import Pilot
from scaler.simulator.world import Outcome, World, WorldSpec, cold_start


def simulate(
    pattern: Pattern,
    *,
    wait: float,
    cold: float = 30.0,
    attainment: float = 0.95,
    hours: float = 6.0,
    sees: bool = True,
    spread: float = 0.5,
) -> tuple[Outcome, Pilot]:
    trace = list(generate(pattern, Service(mean_seconds=10.0, variation=spread), random.Random(5), hours * 3600))
    pilot = Pilot(
        policy=POLICY,
        goals=Goals(target_value=1.0, wait_seconds=wait, attainment=attainment),
        chance=random.Random(6),
        sees_replicas=sees,
        keep_decisions=True,
    )
    spec = WorldSpec(cold_start=cold_start(cold), initial_replicas=1, scored_from_seconds=1_800.0, keep_timeline=True)
    return World(spec, trace, random.Random(7)).run(pilot), pilot


@pytest.mark.parametrize("sees", [True, False], ids=["sees replicas", "sees none"])
@pytest.mark.parametrize("wait", [15.0, 30.0, 60.0], ids=["half a cold start", "one", "two"])
def test_the_promise_is_kept_on_steady_random_traffic(wait: float, sees: bool) -> None:
    outcome, _ = simulate(Poisson(rate_per_second=0.3), wait=wait, sees=sees)
    assert outcome.share_within(wait) >= 0.945
    assert outcome.gpu_seconds <= 3.0 * outcome.busy_seconds


def test_a_constant_load_settles_without_reversal() -> None:
    outcome, pilot = simulate(Steady(rate_per_second=0.25), wait=15.0, spread=0.0)
    late = [decision.desired_replicas for decision in pilot.decisions if 3 * 3600 < decision.at_seconds < 5.9 * 3600]
    assert max(late) - min(late) <= 1
    assert outcome.share_within(15.0) >= 0.95


def test_it_returns_to_zero_between_bursts_and_wakes_for_each() -> None:
    outcome, _ = simulate(Bursts(every_seconds=3_000.0, burst_seconds=30.0), wait=60.0)
    wanted = [entry[1] for entry in outcome.timeline]
    assert wanted.count(0) >= 3
    assert max(wanted) > 3


def test_what_is_loading_is_never_killed() -> None:
    _, pilot = simulate(Bursts(every_seconds=600.0, burst_seconds=20.0, irregularity=1.0), wait=30.0, hours=3.0)
    for decision in pilot.decisions:
        need = next(step for step in decision.steps if step.name == "need")
        starting = need.numbers[5] if len(need.numbers) > 5 else 0
        if starting and need.before is not None:
            assert decision.desired_replicas >= need.before


def test_service_time_and_cold_start_are_learned_from_zero() -> None:
    for sees in (True, False):
        _, pilot = simulate(Bursts(every_seconds=1_000.0, burst_seconds=60.0), wait=60.0, cold=90.0, sees=sees)
        known = pilot.memory.state.estimates
        assert known.service_seconds(pilot.goals) == pytest.approx(10.0, rel=0.3)
        assert known.cold_start(pilot.goals)[0] == pytest.approx(90.0, rel=0.35)


def test_every_decision_says_why() -> None:
    _, pilot = simulate(Poisson(rate_per_second=0.3), wait=30.0, hours=1.0)
    text = " | ".join(step.text() for step in pilot.decisions[-1].steps)
    assert "wait" in text
    assert "GPU-seconds" in text


def test_how_often_it_is_asked_changes_little() -> None:
    trace = list(generate(Poisson(rate_per_second=0.3), Service(mean_seconds=10.0), random.Random(5), 6 * 3600.0))
    costs, shares = [], []
    for sample_seconds in (1.0, 3.0, 5.0):
        pilot = Pilot(
            policy=POLICY,
            goals=Goals(target_value=1.0, wait_seconds=60.0),
            chance=random.Random(6),
            sample_seconds=sample_seconds,
        )
        spec = WorldSpec(cold_start=cold_start(30.0), initial_replicas=1, scored_from_seconds=1_800.0)
        outcome = World(spec, trace, random.Random(7)).run(pilot)
        costs.append(outcome.gpu_seconds)
        shares.append(outcome.share_within(60.0))
    assert max(costs) <= 1.2 * min(costs)
    assert min(shares) >= 0.945


@pytest.mark.parametrize("floor", [1e-6, 0.6, 1.0, 1e6])
@pytest.mark.parametrize("attainment", [1e-6, 0.5, 0.999999])
def test_a_price_can_be_told_at_whatever_its_floor_is(
    floor: float, attainment: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slo, "FLOOR", floor)
    for wait_seconds, debt, first_seconds in product((1.0, 600.0), (-1e9, 0.0, 1e9), (None, 0.0, 1e-9)):
        goals = Goals(
            target_value=1.0, wait_seconds=wait_seconds, attainment=attainment, cold_start_seconds=first_seconds
        )
        known = replace(NOTHING_KNOWN, waits=Waits(debt=debt))
        price = slo._price(known, goals, slo._starting(known, goals), 0.0)
        assert price.seconds > 0
        assert math.isfinite(price.seconds)
        assert math.isfinite(price.margin)
        assert price.margin >= 0


def test_it_asks_for_its_wait() -> None:
    assert [field for field, _ in POLICY.problems(Goals(target_value=1.0))] == ["waitSeconds"]
    assert POLICY.problems(Goals(target_value=1.0, wait_seconds=30.0)) == ()


def test_huge_numbers_stay_finite() -> None:
    goals = Goals(target_value=1.0, wait_seconds=1.0, attainment=0.999)
    memory = Memory(state=POLICY.start())
    for index, waiting in enumerate([0.0, 1e9, 0.0, 1e12, 5.0]):
        sample = Sample(at_seconds=10.0 * index, metric_value=waiting, active=waiting > 0, waiting=waiting)
        decision, memory = decide(POLICY, goals, memory, sample=sample, view=None, now_seconds=10.0 * index)
        assert decision is not None
        assert math.isfinite(decision.metric_value)
        assert decision.desired_replicas <= goals.max_replicas


def test_a_single_request_at_zero_wakes_exactly_as_many_as_it_needs() -> None:
    trace = [Arrival(5_000.0, 10.0)]
    pilot = Pilot(
        policy=POLICY,
        goals=Goals(target_value=1.0, wait_seconds=120.0, cold_start_seconds=30.0),
        chance=random.Random(1),
    )
    outcome = World(WorldSpec(cold_start=cold_start(30.0)), trace, random.Random(2)).run(pilot)
    assert outcome.starts == 1
    assert outcome.waits_seconds[0] <= 120.0
