"""The decision: read this first.

A policy proposes, the rails constrain, and every stage leaves a step that says what it did and why. All of
it is a function of values: what was read, who can be seen, what is remembered, what time it is. The service
and the simulator call the same `decide`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from scaler.core.model import Decision, Goals, ReplicaView, Sample, Step

StateT = TypeVar("StateT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a policy decides on: a fresh sample, the replicas if anyone sees them, and the last decision."""

    now_seconds: float
    goals: Goals
    sample: Sample
    view: ReplicaView | None
    last: Decision | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal(Generic[StateT]):
    """What a policy asks for, before the rails; `state` is what it remembers for the next time.

    `metric_value / target_value` becomes replicas at the HPA. A policy that decides replicas itself answers
    `metric_value=desired, target_value=1`.
    """

    state: StateT
    active: bool
    metric_value: float
    target_value: float
    steps: tuple[Step, ...] = ()


class Policy(Protocol[StateT]):
    """One file in `scaler/policies/` ends with `POLICY = MyPolicy()`; the file name is its name."""

    @property
    def decides_replicas(self) -> bool:
        """Whether it answers desired replicas with target 1 (else: the raw metric and the user's threshold)."""

    def problems(self, goals: Goals) -> tuple[tuple[str, str], ...]:
        """(field, what was expected) for each goal that this policy can't work with."""

    def start(self) -> StateT:
        """What it remembers before the first sample."""

    def propose(self, situation: Situation, state: StateT) -> Proposal[StateT]:
        """The answer to one fresh sample. Pure; must not depend on how often it is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory(Generic[StateT]):
    """What one workload remembers between decisions."""

    state: StateT
    last: Decision | None = None
    sample: Sample | None = None
    confirmed: int = 0


def decide(
    policy: Policy[StateT],
    goals: Goals,
    memory: Memory[StateT],
    *,
    sample: Sample | None,
    view: ReplicaView | None,
    now_seconds: float,
) -> tuple[Decision | None, Memory[StateT]]:
    """The decision at `now_seconds` and what to remember.

    Without a fresh `sample` the last decision is held: its numbers stand, `expired` is set once it is older
    than `goals.hold_seconds`. With neither a sample nor a last decision there is no answer: None.
    """
    if sample is None:
        return _held(memory, goals, now_seconds), memory
    situation = Situation(now_seconds=now_seconds, goals=goals, sample=sample, view=view, last=memory.last)
    proposal = policy.propose(situation, memory.state)
    active, confirmed, steps = _confirm(proposal, memory, goals, sample)
    metric_value, steps = _within_bounds(proposal, goals, steps, active=active, decides=policy.decides_replicas)
    decision = Decision(
        at_seconds=now_seconds,
        active=active,
        metric_value=metric_value,
        target_value=proposal.target_value,
        desired_replicas=_replicas(metric_value, proposal.target_value, goals, active=active),
        steps=steps,
    )
    return decision, Memory(state=proposal.state, last=decision, sample=sample, confirmed=confirmed)


def _held(memory: Memory[StateT], goals: Goals, now_seconds: float) -> Decision | None:
    last = memory.last
    if last is None:
        return None
    age_seconds = now_seconds - last.at_seconds
    step = Step(
        name="hold",
        before=last.desired_replicas,
        after=last.desired_replicas,
        reason="no fresh sample for {:.0f} s: the last decision stands for {:.0f} s",
        numbers=(age_seconds, goals.hold_seconds),
    )
    return replace(last, held=True, expired=age_seconds > goals.hold_seconds, steps=(*last.steps, step))


def _confirm(
    proposal: Proposal[StateT], memory: Memory[StateT], goals: Goals, sample: Sample
) -> tuple[bool, int, tuple[Step, ...]]:
    """Approximate counts may show work that isn't there: waking from zero needs reads that agree."""
    if not proposal.active:
        return False, 0, proposal.steps
    needed = goals.confirmations if sample.approximate else 1
    seen = memory.confirmed + 1
    was_active = memory.last is not None and memory.last.active
    if was_active or seen >= needed:
        return True, seen, proposal.steps
    step = Step(
        name="confirm", before=1, after=0, reason="read {} of {} that must agree before waking", numbers=(seen, needed)
    )
    return False, seen, (*proposal.steps, step)


def _within_bounds(
    proposal: Proposal[StateT], goals: Goals, steps: tuple[Step, ...], *, active: bool, decides: bool
) -> tuple[float, tuple[Step, ...]]:
    value = max(proposal.metric_value, 0.0)
    if not decides:
        return value, steps
    bounded = min(max(value, float(goals.min_replicas)), float(goals.max_replicas))
    if not active:
        bounded = min(bounded, float(goals.min_replicas))
    elif bounded < 1:
        bounded = 1.0
    if bounded != value:
        step = Step(
            name="bounds",
            before=value,
            after=bounded,
            reason="within minReplicas {} and maxReplicas {}",
            numbers=(goals.min_replicas, goals.max_replicas),
        )
        return bounded, (*steps, step)
    return bounded, steps


def _replicas(metric_value: float, target_value: float, goals: Goals, *, active: bool) -> int:
    """What KEDA and the HPA make of the metric (AverageValue, tolerance left out)."""
    if not active:
        return goals.min_replicas
    wanted = math.ceil(metric_value / target_value - 1e-9)
    return min(max(wanted, goals.min_replicas, 1), goals.max_replicas)
