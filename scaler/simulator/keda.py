"""KEDA and the HPA in the simulator, on the very rules of `rules.py`; and nobody at all.

Polls and syncs run on grids of their own, whose phases are drawn once per run. Moments at which nothing could change
are skipped, which changes no result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from scaler.simulator.arrivals import Chance
from scaler.simulator.rules import (
    HPA_SYNC_SECONDS,
    HpaBehavior,
    HpaSpec,
    HpaState,
    KedaSpec,
    KedaState,
    Metric,
    Scale,
    ScalingPolicy,
    ScalingRules,
    Unit,
    hpa_sync,
    keda_poll,
)
from scaler.simulator.world import NEVER, World

# What Pilotlight writes into a ScaledObject: scale-in is smoothed by the policy, so the HPA adds nothing.
OUR_BEHAVIOR = HpaBehavior(
    scale_up=ScalingRules((ScalingPolicy(Unit.PERCENT, 900, 15.0),), stabilization_seconds=0.0),
    scale_down=ScalingRules((ScalingPolicy(Unit.PERCENT, 100, 15.0),), stabilization_seconds=0.0),
)
OUR_KEDA = KedaSpec(cooldown_seconds=0.0)


def after(now_seconds: float, period_seconds: float, phase_seconds: float) -> float:
    """The first moment of a grid strictly after `now_seconds`."""
    steps = math.floor((now_seconds - phase_seconds) / period_seconds + 1e-9) + 1
    return phase_seconds + steps * period_seconds


@dataclass(slots=True, kw_only=True)
class KedaHpa:
    """A built-in KEDA trigger on requests in the system (SQS with in-flight), and the HPA that reads it live."""

    keda: KedaSpec
    hpa: HpaSpec
    target: float
    chance: Chance
    _hpa_state: HpaState = field(default_factory=HpaState)
    _keda_state: KedaState = field(default_factory=lambda: KedaState(0.0))
    _phases: tuple[float, float] = (0.0, 0.0)
    _sync_at_seconds: float = NEVER
    _poll_at_seconds: float = NEVER

    def begin(self, world: World) -> float:  # noqa: ARG002 - the shape of a Scaler
        """Phases are drawn."""
        self.chance.random()  # where `Pilot` draws the phase of its samples: the same seed, the same grids
        self._phases = (self.chance.random() * HPA_SYNC_SECONDS, self.chance.random() * self.keda.polling_seconds)
        self._sync_at_seconds, self._poll_at_seconds = self._phases
        return min(self._phases)

    def arrived(self, world: World, now_seconds: float) -> float:  # noqa: ARG002 - the shape of a Scaler
        """Wakes both grids."""
        self._sync_at_seconds = after(now_seconds, HPA_SYNC_SECONDS, self._phases[0])
        self._poll_at_seconds = after(now_seconds, self.keda.polling_seconds, self._phases[1])
        return min(self._sync_at_seconds, self._poll_at_seconds)

    def look(self, world: World, now_seconds: float) -> float:
        """A poll, a sync, or both."""
        metric, replicas = world.in_system, world.replicas
        if self._poll_at_seconds <= now_seconds:
            self._poll_at_seconds += self.keda.polling_seconds
            wanted, self._keda_state = keda_poll(
                self.keda, self._keda_state, active=metric > 0, failed=False, replicas=replicas, now_seconds=now_seconds
            )
            if wanted != replicas:
                world.scale_to(wanted, now_seconds)
                replicas = wanted
        if self._sync_at_seconds <= now_seconds:
            self._sync_at_seconds += HPA_SYNC_SECONDS
            if replicas:
                wanted, self._hpa_state = hpa_sync(
                    self.hpa,
                    self._hpa_state,
                    (Metric(float(metric), self.target),),
                    Scale(replicas, replicas, world.ready),
                    now_seconds,
                )
                if wanted != replicas:
                    world.scale_to(wanted, now_seconds)
                    replicas = wanted
        if metric == 0 and (replicas == 0 or (replicas == self.hpa.min_replicas and self.keda.min_replicas > 0)):
            return NEVER  # nothing to take away, nothing to serve
        if replicas == 0:
            return self._poll_at_seconds
        return min(self._sync_at_seconds, self._poll_at_seconds)


class Fixed:
    """The replicas that are there at the start, for ever."""

    def begin(self, world: World) -> float:  # noqa: ARG002 - the shape of a Scaler
        """Never looks."""
        return NEVER

    def arrived(self, world: World, now_seconds: float) -> float:  # noqa: ARG002 - the shape of a Scaler
        """Never looks."""
        return NEVER

    def look(self, world: World, now_seconds: float) -> float:  # noqa: ARG002 - the shape of a Scaler
        """Never looks."""
        return NEVER
