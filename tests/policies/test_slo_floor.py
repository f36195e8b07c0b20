"""`warm: floor`: a pool of idle replicas beside the demand, which does not follow it with each request."""

from __future__ import annotations

import random

from scaler.core.model import Goals
from scaler.policies.slo import POLICY
from scaler.simulator.arrivals import Poisson, Service, generate
from scaler.simulator.controllers import Pilot
from scaler.simulator.world import World, WorldSpec, cold_start


def test_a_floor_stays_for_a_cold_start_and_does_not_turn_with_each_request() -> None:
    """It turned eight times as often, with each request."""
    trace = list(generate(Poisson(rate_per_second=0.3), Service(mean_seconds=20.0), random.Random(1), 12 * 3_600.0))
    turns, shares = {}, {}
    for warm in ("off", "floor"):
        pilot = Pilot(
            policy=POLICY, goals=Goals(target_value=1.0, wait_seconds=30.0, warm=warm), chance=random.Random(1)
        )
        spec = WorldSpec(cold_start=cold_start(60.0), initial_replicas=6, scored_from_seconds=3_600.0)
        outcome = World(spec, trace, random.Random(1)).run(pilot)
        turns[warm], shares[warm] = outcome.reversals, outcome.share_within(30.0)
    assert turns["floor"] <= 3 * turns["off"]
    assert shares["floor"] > shares["off"]
