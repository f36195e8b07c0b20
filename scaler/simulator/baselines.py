"""Who else scales: KEDA stock and tuned, Knative, Ray Serve, SageMaker's backlog policy, and what nobody can beat.

The algorithms are ported from their descriptions, no code is: Knative `pkg/autoscaler/scaling/autoscaler.go` with
its defaults; Ray Serve `autoscaling_policy.py`; SageMaker's documentation of asynchronous inference (target
tracking on the backlog per instance, and a second alarm for the way from zero).
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from scaler.simulator.arrivals import Arrival, Chance
from scaler.simulator.keda import OUR_BEHAVIOR, KedaHpa, after
from scaler.simulator.rules import HpaBehavior, KedaSpec, ScalingPolicy, ScalingRules, Unit
from scaler.simulator.world import NEVER, World

THRESHOLDS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0)  # requests in the system per slot
COOLDOWNS_SECONDS = (30.0, 60.0, 300.0, 900.0)
STABILIZATIONS_SECONDS = (0.0, 60.0, 300.0)
MINIMUMS = (0, 1, 2, 4)
STOCK_TARGET = 5.0  # queueLength of aws-sqs-queue, with requests in flight counted


@dataclass(frozen=True, slots=True, kw_only=True)
class KedaConfig:
    """One point of the grid. `fast`: the HPA behaviour that Pilotlight's own ScaledObject has, for scaling up."""

    threshold: float
    cooldown_seconds: float
    stabilization_seconds: float
    min_replicas: int
    fast: bool

    def scaler(self, concurrency: int, chance: Chance) -> KedaHpa:
        """KEDA and an HPA so configured."""
        keda = KedaSpec(cooldown_seconds=self.cooldown_seconds, min_replicas=self.min_replicas)
        down = ScalingRules((ScalingPolicy(Unit.PERCENT, 100, 15.0),), stabilization_seconds=self.stabilization_seconds)
        behavior: HpaBehavior | None = HpaBehavior(scale_down=down)
        if self.fast:
            behavior = HpaBehavior(scale_up=OUR_BEHAVIOR.scale_up, scale_down=down)
        elif self.stabilization_seconds == STABILIZATIONS_SECONDS[-1]:
            behavior = None  # the default needs no behaviour, and the HPA's older path applies
        return KedaHpa(keda=keda, hpa=keda.hpa(behavior=behavior), target=self.threshold * concurrency, chance=chance)


def keda_grid() -> Iterator[KedaConfig]:
    """Every point; a cooldown does nothing above a minimum of zero, so there it is not varied."""
    for threshold in THRESHOLDS:
        for fast in (False, True):
            for stabilization_seconds in STABILIZATIONS_SECONDS:
                for minimum in MINIMUMS:
                    for cooldown_seconds in COOLDOWNS_SECONDS if minimum == 0 else COOLDOWNS_SECONDS[2:3]:
                        yield KedaConfig(
                            threshold=threshold,
                            cooldown_seconds=cooldown_seconds,
                            stabilization_seconds=stabilization_seconds,
                            min_replicas=minimum,
                            fast=fast,
                        )


def stock_keda(chance: Chance, *, fast: bool = False) -> KedaHpa:
    """Poll 30 s, cooldown 300 s, five messages a replica; without a behaviour or with Pilotlight's."""
    keda = KedaSpec()
    return KedaHpa(keda=keda, hpa=keda.hpa(behavior=OUR_BEHAVIOR if fast else None), target=STOCK_TARGET, chance=chance)


@dataclass(slots=True, kw_only=True)
class Knative:
    """The KPA on requests in the system: target use 0.7 of the slots, 60 s and 6 s windows, panic at 200 %."""

    concurrency: int
    chance: Chance
    max_replicas: int = 100
    _phase_seconds: float = 0.0
    _seen: deque[int] = field(default_factory=lambda: deque([0] * 30, maxlen=30))
    _panic_until_seconds: float = -math.inf
    _panic_most: int = 0
    _idle_since_seconds: float | None = None

    def begin(self, world: World) -> float:  # noqa: ARG002 - the shape of a Scaler
        """A tick every 2 s."""
        self._phase_seconds = 2.0 * self.chance.random()
        return self._phase_seconds

    def arrived(self, world: World, now_seconds: float) -> float:  # noqa: ARG002 - the shape of a Scaler
        """A request at zero replicas pokes the autoscaler: the activator reports it at once."""
        self._seen.extend([0] * 30)
        return now_seconds

    def look(self, world: World, now_seconds: float) -> float:
        """One tick: two means, panic, rate limits."""
        self._seen.append(world.in_system)
        there = world.replicas
        ready = max(1, world.ready)
        stable = sum(self._seen) / len(self._seen)
        panic = sum(self._seen[index] for index in (-1, -2, -3)) / 3
        target = 0.7 * self.concurrency
        highest, lowest = math.ceil(1_000 * ready), math.floor(ready / 2)
        desired_stable = min(max(math.ceil(stable / target), lowest), highest)
        desired_panic = min(max(math.ceil(panic / target), lowest), highest)
        if desired_panic / ready >= 2.0:
            self._panic_until_seconds = now_seconds + 60.0
        if now_seconds < self._panic_until_seconds:
            self._panic_most = max(self._panic_most, desired_panic, desired_stable)
            desired = self._panic_most
        else:
            self._panic_most = 0
            desired = desired_stable
        if world.in_system:
            self._idle_since_seconds, desired = None, max(desired, 1)
        elif self._idle_since_seconds is None:
            self._idle_since_seconds = now_seconds
        if desired == 0 and not (self._idle_since_seconds is not None and now_seconds - self._idle_since_seconds > 90):
            desired = min(1, there)  # a stable window without requests, then a grace period of 30 s
        world.scale_to(min(desired, self.max_replicas), now_seconds)
        if world.replicas == 0 and not world.in_system:
            return NEVER
        return after(now_seconds, 2.0, self._phase_seconds)


@dataclass(slots=True, kw_only=True)
class RayServe:
    """Two ongoing requests a replica, a look every 10 s at the last 30 s, up after 30 s, down after 600 s."""

    concurrency: int
    chance: Chance
    max_replicas: int = 100
    _phase_seconds: float = 0.0
    _seen: deque[int] = field(default_factory=lambda: deque(maxlen=3))
    _up_since_seconds: float | None = None
    _down_since_seconds: float | None = None

    def begin(self, world: World) -> float:  # noqa: ARG002 - the shape of a Scaler
        """A tick every 10 s."""
        self._phase_seconds = 10.0 * self.chance.random()
        return self._phase_seconds

    def arrived(self, world: World, now_seconds: float) -> float:  # noqa: ARG002 - the shape of a Scaler
        """From zero no delay applies."""
        self._seen.clear()
        return now_seconds

    def look(self, world: World, now_seconds: float) -> float:
        """One tick."""
        self._seen.append(world.in_system)
        there = world.replicas
        desired = min(math.ceil(sum(self._seen) / len(self._seen) / (2.0 * self.concurrency)), self.max_replicas)
        if there == 0:
            if world.in_system:
                world.scale_to(max(desired, 1), now_seconds)
        elif desired > there:
            self._down_since_seconds = None
            if self._up_since_seconds is None:
                self._up_since_seconds = now_seconds
            if now_seconds - self._up_since_seconds >= 30.0:
                world.scale_to(desired, now_seconds)
                self._up_since_seconds = None
        elif desired < there:
            self._up_since_seconds = None
            if self._down_since_seconds is None:
                self._down_since_seconds = now_seconds
            if now_seconds - self._down_since_seconds >= 600.0:
                world.scale_to(max(desired, 1 if there > 1 else 0), now_seconds)
                self._down_since_seconds = None
        else:
            self._up_since_seconds = self._down_since_seconds = None
        if world.replicas == 0 and not world.in_system:
            return NEVER
        return after(now_seconds, 10.0, self._phase_seconds)


@dataclass(slots=True, kw_only=True)
class Backlog:
    """SageMaker's asynchronous endpoints: five waiting requests an instance, alarms of minutes, cooldowns of 300 s."""

    chance: Chance
    max_replicas: int = 100
    _phase_seconds: float = 0.0
    _above: int = 0
    _below: int = 0
    _acted_at_seconds: float = -math.inf

    def begin(self, world: World) -> float:  # noqa: ARG002 - the shape of a Scaler
        """A data point every 60 s."""
        self._phase_seconds = 60.0 * self.chance.random()
        return self._phase_seconds

    def arrived(self, world: World, now_seconds: float) -> float:  # noqa: ARG002 - the shape of a Scaler
        """The next data point sees it."""
        return after(now_seconds, 60.0, self._phase_seconds)

    def look(self, world: World, now_seconds: float) -> float:
        """Three points above scale out, fifteen below scale in; backlog without capacity starts one."""
        there, waiting = world.replicas, world.waiting
        if there == 0:
            if waiting:
                world.scale_to(1, now_seconds)
                self._acted_at_seconds = now_seconds
        else:
            per_instance = waiting / there
            self._above = self._above + 1 if per_instance > 5.0 else 0
            self._below = self._below + 1 if per_instance < 4.5 else 0
            rested = now_seconds - self._acted_at_seconds >= 300.0
            if self._above >= 3 and rested:
                world.scale_to(min(math.ceil(waiting / 5.0), self.max_replicas), now_seconds)
                self._acted_at_seconds, self._above = now_seconds, 0
            elif self._below >= 15 and rested:
                world.scale_to(max(math.ceil(waiting / 5.0), 1 if world.in_system else 0), now_seconds)
                self._acted_at_seconds, self._below = now_seconds, 0
        if world.replicas == 0 and not world.in_system:
            return NEVER
        return after(now_seconds, 60.0, self._phase_seconds)


def clairvoyant_bound(
    trace: Sequence[Arrival],
    *,
    cold_start_seconds: float,
    concurrency: int,
    wait_seconds: float,
    attainment: float,
    from_seconds: float = 0.0,
) -> float:
    """GPU-seconds below which nobody gets, who knows all arrivals and keeps the promise.

    Work: each request occupies a slot for its service time, so at least the sum over `concurrency` is billed.
    Gaps: let every request up to some moment start in time; the last of them has ended by the largest of arrival
    + wait + service so far. If the next request arrives later than that, then in between every replica idles.
    Either one of them is kept (it costs the gap) or all go and one must start again (it costs a cold start, on
    which no request is served), so the smaller of both is billed. Requests beyond the promise, a share of 1 -
    attainment, may be late, and each of them can fill or remove at most one such gap: the dearest are left out.
    """
    scored = [arrival for arrival in trace if arrival.at_seconds >= from_seconds]
    work_seconds = sum(arrival.service_seconds for arrival in scored) / concurrency
    gaps, ended_seconds = [], math.inf
    for arrival in scored:
        gap_seconds = arrival.at_seconds - ended_seconds
        if gap_seconds > 0:
            gaps.append(min(gap_seconds, cold_start_seconds))
        end_seconds = arrival.at_seconds + wait_seconds + arrival.service_seconds
        ended_seconds = end_seconds if ended_seconds == math.inf else max(ended_seconds, end_seconds)
    late = math.floor((1.0 - attainment) * len(scored))
    return work_seconds + sum(gaps) - sum(heapq.nlargest(late, gaps))
