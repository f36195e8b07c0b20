"""What the simulator leaves out must change nothing: a service looks at every interval, idle or not."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest

from scaler.core.model import Goals, ReplicaStep
from scaler.plugins import policies
from scaler.simulator.arrivals import Arrival, Bursts, Poisson, Service, generate
from scaler.simulator.controllers import Pilot
from scaler.simulator.keda import after
from scaler.simulator.rules import KedaSpec
from scaler.simulator.world import ColdStart, Outcome, Phase, World, WorldSpec

HOURS = 3.0
KEDA = KedaSpec(max_replicas=20, cooldown_seconds=0.0)
SERVICE = Service(mean_seconds=20.0, variation=0.5)
GOALS = Goals(
    target_value=2.0,
    max_replicas=20,
    wait_seconds=60.0,
    service_seconds=10.0,
    steps=(ReplicaStep(waiting_from=1, replicas=2), ReplicaStep(waiting_from=6, replicas=5)),
)


@dataclass(slots=True, kw_only=True)
class Diligent(Pilot):
    """Leaves nothing out."""

    def _next(self, world: World) -> float:  # noqa: ARG002 - the shape of a Pilot
        return min(self._sample_at_seconds, self._poll_at_seconds, self._sync_at_seconds)

    def arrived(self, world: World, now_seconds: float) -> float:  # noqa: ARG002 - the shape of a Pilot
        return self._next(world)

    def _sample(self, world: World, now_seconds: float) -> None:
        self._seen = (-1, -1, -1, -1, -1)
        Pilot._sample(self, world, now_seconds)
        self._sample_at_seconds = after(now_seconds, self.sample_seconds, self._phases[0])


def _load(seed: int) -> list[Arrival]:
    pattern = Bursts(quiet_rate_per_second=0.003, burst_rate_per_second=0.5, burst_seconds=60.0, every_seconds=1500.0)
    arrivals = generate(pattern, SERVICE, random.Random(seed), 3600.0 * HOURS)
    return [one for one in arrivals if not 3000.0 <= one.at_seconds < 8000.0]


def _changes(pilot: Pilot) -> list[tuple[float, bool, float]]:
    found: list[tuple[float, bool, float]] = []
    for decision in pilot.decisions:
        if not found or found[-1][1:] != (decision.active, decision.metric_value):
            found.append((round(decision.at_seconds, 3), decision.active, decision.metric_value))
    return found


def _run(
    kind: type[Pilot],
    name: str,
    seed: int,
    goals: Goals,
    options: dict[str, Any],
    *,
    load: list[Arrival] | None = None,
) -> tuple[Pilot, Outcome]:
    pilot = kind(
        policy=policies()[name],
        goals=goals,
        chance=random.Random(seed),
        keda=replace(KEDA, min_replicas=goals.min_replicas),
        keep_decisions=True,
        **options,
    )
    spec = WorldSpec(cold_start=ColdStart((Phase("load", 40.0, 0.25),)))
    return pilot, World(spec, load or _load(seed), random.Random(seed)).run(pilot)


@pytest.mark.parametrize("sees", [{}, {"sees_counters": False, "sees_in_flight": False}, {"sees_replicas": False}])
@pytest.mark.parametrize("sample_seconds", [1.0, 5.0, 7.0])
@pytest.mark.parametrize("name", ["slo", "steps", "target+burst", "steps+burst"])
def test_leaving_out_looks_that_see_nothing_new_changes_no_decision(
    name: str, sample_seconds: float, sees: dict[str, bool]
) -> None:
    options = {"sample_seconds": sample_seconds, **sees}
    for seed in (1, 2):
        lazy, outcome = _run(Pilot, name, seed, GOALS, options)
        diligent, same = _run(Diligent, name, seed, GOALS, options)
        assert _changes(lazy) == _changes(diligent)
        assert (outcome.starts, outcome.waits_seconds) == (same.starts, same.waits_seconds)
        assert outcome.gpu_seconds == pytest.approx(same.gpu_seconds)
        assert len(lazy.decisions) < 0.9 * len(diligent.decisions) or not sees.get("sees_in_flight", True)


def test_a_busy_replica_that_is_let_go_is_seen_where_only_its_use_is() -> None:
    """What it works on is no longer in the sum."""
    goals = replace(GOALS, target_value=80.0, min_replicas=2)
    options = {"sees_use_only": True, "fast_scale": True}
    service = Service(mean_seconds=100.0, variation=0.5)
    for seed in range(3):
        load = list(generate(Poisson(rate_per_second=0.03), service, random.Random(seed), 3600.0 * HOURS))
        lazy, outcome = _run(Pilot, "utilization", seed, goals, options, load=load)
        diligent, same = _run(Diligent, "utilization", seed, goals, options, load=load)
        assert _changes(lazy) == _changes(diligent)
        assert outcome.waits_seconds == same.waits_seconds
