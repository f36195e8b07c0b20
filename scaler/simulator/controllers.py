"""Pilotlight behind KEDA and the HPA in the simulator, on the very rules of `rules.py`.

`Pilot` calls the same `core.decide` as the service does; KEDA polls, takes pushes and cools down, and the HPA
syncs, all on grids of their own whose phases are drawn once per run. Moments at which nothing could change are
skipped, which changes no result: a sync that finds its own number, a poll of a workload that is what it should be.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from scaler.core.decide import Memory, Policy, decide
from scaler.core.model import Decision, Goals, Sample
from scaler.simulator.arrivals import Chance
from scaler.simulator.keda import OUR_BEHAVIOR, OUR_KEDA, after
from scaler.simulator.rules import (
    HPA_SYNC_SECONDS,
    HpaBehavior,
    HpaSpec,
    HpaState,
    KedaSpec,
    KedaState,
    Metric,
    Scale,
    hpa_sync,
    keda_poll,
    keda_push,
    metric_proposal,
)
from scaler.simulator.world import NEVER, World


@dataclass(slots=True, kw_only=True)
class Pilot:
    """A policy of ours behind KEDA (external-push) and the HPA.

    `sees_replicas`: whether the policy gets a view. `sees_counters`: whether the source has exact counters of
    arrivals and completions; `sees_in_flight`: whether it tells requests in flight. `sees_use_only`: the source tells
    how busy replicas are and whether anything is to be done (dcgm with a `wakeQuery`), nothing of a queue.
    `fast_scale`: replicas are raised at once, not at the HPA's next sync.
    """

    policy: Policy[Any]
    goals: Goals
    chance: Chance
    keda: KedaSpec = OUR_KEDA
    behavior: HpaBehavior = OUR_BEHAVIOR
    tolerance: float = 0.1
    sample_seconds: float = 5.0
    sees_replicas: bool = True
    sees_counters: bool = True
    sees_in_flight: bool = True
    sees_use_only: bool = False
    fast_scale: bool = False
    keep_decisions: bool = False
    decisions: list[Decision] = field(default_factory=list)
    memory: Memory[Any] = field(init=False)
    _decision: Decision | None = None
    _hpa: HpaSpec = field(init=False)
    _hpa_state: HpaState = field(default_factory=HpaState)
    _keda_state: KedaState = field(default_factory=lambda: KedaState(0.0))
    _phases: tuple[float, float, float] = (0.0, 0.0, 0.0)
    _sample_at_seconds: float = 0.0
    _sync_at_seconds: float = NEVER
    _poll_at_seconds: float = NEVER
    _seen: tuple[int, int, int, int, int] = (-1, -1, -1, -1, -1)
    _weighed: tuple[float, float, int] = (0.0, 0.0, 0)
    _is_content: bool = False
    _looks: int = 0
    _memoryless: bool = False

    def begin(self, world: World) -> float:
        """Phases are drawn; the first sample comes at once."""
        self.memory = Memory(state=self.policy.start())
        # `maxReplicas` says the ScaledObject's maxReplicaCount.
        self.keda = replace(self.keda, max_replicas=min(self.keda.max_replicas, self.goals.max_replicas))
        self._hpa = self.keda.hpa(behavior=self.behavior, tolerance=self.tolerance)
        # Without windows a sync that finds its own number leaves nothing behind: it may be skipped.
        self._memoryless = not (self._hpa.up_window_seconds or self._hpa.down_window_seconds)
        draw = self.chance.random
        self._phases = (
            draw() * self.sample_seconds,
            draw() * HPA_SYNC_SECONDS,
            draw() * self.keda.polling_seconds,
        )
        self._sample_at_seconds = self._phases[0]
        return self._next(world)

    def arrived(self, world: World, now_seconds: float) -> float:
        """The next sample sees it."""
        self._sample_at_seconds = after(now_seconds, self.sample_seconds, self._phases[0])
        return self._next(world)

    def look(self, world: World, now_seconds: float) -> float:
        """Whatever is due: a sample and its decision, a poll, a sync."""
        if self._sample_at_seconds <= now_seconds:
            self._sample(world, now_seconds)
        if self._poll_at_seconds <= now_seconds:
            self._poll(world, now_seconds)
        if self._sync_at_seconds <= now_seconds:
            self._sync(world, now_seconds)
        return self._next(world)

    def _next(self, world: World) -> float:
        sample_at_seconds = self._sample_at_seconds
        at_seconds = min(sample_at_seconds, self._poll_at_seconds, self._sync_at_seconds)
        if at_seconds == NEVER or world.in_system:
            return at_seconds
        # Idle: an arrival must be noticed at the grid's next point, not when the decision is to be reviewed.
        upcoming = world.next_arrival_at_seconds
        if upcoming < at_seconds:
            noticed = after(upcoming, self.sample_seconds, self._phases[0])
            if noticed < sample_at_seconds:
                self._sample_at_seconds = noticed
                return min(noticed, at_seconds)
        return at_seconds

    def _sample(self, world: World, now_seconds: float) -> None:
        arrived, completed, waiting = world.arrived, world.completed, world.waiting
        # A busy replica that is let go does not change the version: it is billed until it is done.
        seen = (arrived, completed, waiting, world.ready, world.replicas_version)
        last = self._decision
        next_at_seconds = after(now_seconds, self.sample_seconds, self._phases[0])
        self._looks += 1
        if last is not None and seen == self._seen and self._looks > 2:  # two tell how often it looks
            review_at_seconds = last.review_at_seconds
            if review_at_seconds is not None and review_at_seconds > now_seconds:
                if arrived != completed:
                    self._sample_at_seconds = next_at_seconds
                elif review_at_seconds == NEVER:
                    self._sample_at_seconds = NEVER
                else:
                    self._sample_at_seconds = max(
                        next_at_seconds, after(review_at_seconds - 1e-6, self.sample_seconds, self._phases[0])
                    )
                return
        self._seen = seen
        if self.sees_use_only:
            sample = self._use(world, now_seconds)
        else:
            sample = self._counts(arrived, completed, waiting, now_seconds)
        decision, self.memory = decide(
            self.policy,
            self.goals,
            self.memory,
            sample=sample,
            view=world.view(now_seconds) if self.sees_replicas else None,
            now_seconds=now_seconds,
        )
        if decision is None:
            raise RuntimeError("a fresh sample gave no decision")
        self._decision = decision
        if self.keep_decisions:
            self.decisions.append(decision)
        self._sample_at_seconds = next_at_seconds
        self._act(world, decision, last, now_seconds)

    def _counts(self, arrived: int, completed: int, waiting: int, now_seconds: float) -> Sample:
        counters = self.sees_counters
        return Sample(
            at_seconds=now_seconds,
            metric_value=float(arrived - completed),
            active=arrived > completed,
            waiting=float(waiting),
            in_flight=float(arrived - completed - waiting) if self.sees_in_flight else None,
            arrived_total=float(arrived) if counters else None,
            completed_total=float(completed) if counters else None,
        )

    def _use(self, world: World, now_seconds: float) -> Sample:
        ready = world._ready  # noqa: SLF001 - world.py is part of the key of kept results, a property isn't worth them
        total = 100.0 * sum([replica.busy for replica in ready]) / world.spec.concurrency
        return Sample(
            at_seconds=now_seconds, metric_value=total, active=world.in_system > 0 or total > 0, utilization_sum=total
        )

    def _act(self, world: World, decision: Decision, last: Decision | None, now_seconds: float) -> None:
        replicas = world.replicas
        if decision.active:
            if replicas == 0:
                # Inactive to active is pushed at once; where KEDA undid it meanwhile, the heartbeat says it again.
                replicas, self._keda_state = keda_push(self.keda, self._keda_state, replicas=0, now_seconds=now_seconds)
                world.scale_to(replicas, now_seconds)
            if self.fast_scale and decision.desired_replicas > replicas:
                replicas = decision.desired_replicas
                world.scale_to(replicas, now_seconds)
        elif last is not None and last.active:
            # KEDA's activity clock stands at its last poll before this moment.
            polled = after(now_seconds, self.keda.polling_seconds, self._phases[2]) - self.keda.polling_seconds
            before = self._keda_state.last_active_at_seconds
            self._keda_state = KedaState(0.0, polled if before is None else max(polled, before))
        self._poll_at_seconds = NEVER
        if not decision.active and (replicas > 0 if self.keda.min_replicas == 0 else replicas < self.keda.min_replicas):
            self._poll_at_seconds = after(now_seconds, self.keda.polling_seconds, self._phases[2])
        self._sync_at_seconds = NEVER
        if replicas and not (self._memoryless and self._contents(decision, replicas)):
            self._sync_at_seconds = after(now_seconds, HPA_SYNC_SECONDS, self._phases[1])

    def _poll(self, world: World, now_seconds: float) -> None:
        self._poll_at_seconds = NEVER
        decision = self._decision
        if decision is None or decision.active:
            return
        wanted, self._keda_state = keda_poll(
            self.keda, self._keda_state, active=False, failed=False, replicas=world.replicas, now_seconds=now_seconds
        )
        world.scale_to(wanted, now_seconds)
        if wanted > 0 and self.keda.min_replicas == 0:
            self._poll_at_seconds = after(now_seconds, self.keda.polling_seconds, self._phases[2])
        else:  # at zero, or at minReplicas, which is what an inactive answer asks the HPA for, too
            self._sync_at_seconds = NEVER

    def _sync(self, world: World, now_seconds: float) -> None:
        decision, replicas = self._decision, world.replicas
        self._sync_at_seconds = NEVER
        if decision is None or replicas == 0:
            return
        wanted, self._hpa_state = hpa_sync(
            self._hpa,
            self._hpa_state,
            (Metric(decision.metric_value, decision.target_value),),
            Scale(replicas, replicas, world.ready),
            now_seconds,
        )
        world.scale_to(wanted, now_seconds)
        # Where it stopped short (a rate limit), it goes on; the last replica of an inactive workload is KEDA's.
        if not (self._memoryless and self._contents(decision, wanted)):
            self._sync_at_seconds = after(now_seconds, HPA_SYNC_SECONDS, self._phases[1])

    def _contents(self, decision: Decision, replicas: int) -> bool:
        """Whether a sync would leave so many replicas alone."""
        weighed = (decision.metric_value, decision.target_value, replicas)
        if weighed != self._weighed:  # most answers are those of before
            hpa, metric = self._hpa, Metric(decision.metric_value, decision.target_value)
            proposal = metric_proposal(hpa, metric, Scale(replicas, replicas, replicas))
            self._is_content = proposal is None or min(max(proposal, hpa.min_replicas), hpa.max_replicas) == replicas
            self._weighed = weighed
        return self._is_content
