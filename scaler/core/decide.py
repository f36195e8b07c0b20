"""The decision: read this first.

A policy proposes, the rails constrain, and every stage leaves a step that says what it did and why. All of
it is a function of values: what was read, who can be seen, what is remembered, what time it is. The service
and the simulator call the same `decide`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from scaler.core import rails
from scaler.core.model import Decision, Goals, ReplicaView, Sample, Step
from scaler.core.replicas import fresh
from scaler.core.values import value_class

StateT = TypeVar("StateT")


@value_class(frozen=True, slots=True, kw_only=True)
class Situation:
    """What a policy decides on: a fresh sample, the replicas if anyone sees them, and the last decision.

    Where hours of the day matter, `now_seconds` counts from Unix time (in the service since its start, by a clock that
    nobody puts).
    """

    now_seconds: float
    goals: Goals
    sample: Sample
    view: ReplicaView | None
    last: Decision | None


@value_class(frozen=True, slots=True, kw_only=True)
class Proposal(Generic[StateT]):
    """What a policy asks for, before the rails; `state` is what it remembers for the next time.

    `metric_value / target_value` becomes replicas at the HPA. A policy that decides replicas itself answers
    `metric_value=desired, target_value=1`.

    `review_at_seconds`: as long as samples and replicas stay as they are, the answer does not change before
    then (infinite: never), so nobody needs to look; None: look at every sample.
    """

    state: StateT
    active: bool
    metric_value: float
    target_value: float
    review_at_seconds: float | None = None
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


@value_class(frozen=True, slots=True, kw_only=True)
class Memory(Generic[StateT]):
    """What one workload remembers between decisions.

    `tentative` is the policy's state as it will be if the readings that are not yet confirmed turn out right. Until
    then `state` has not seen them: work that was never there must leave nothing behind.
    """

    state: StateT
    last: Decision | None = None
    sample: Sample | None = None
    confirmed: int = 0
    tentative: StateT | None = None


def decide(
    policy: Policy[StateT],
    goals: Goals,
    memory: Memory[StateT],
    *,
    sample: Sample | None,
    view: ReplicaView | None,
    now_seconds: float,
    agreed: int | None = None,
) -> tuple[Decision | None, Memory[StateT]]:
    """The decision at `now_seconds` and what to remember.

    `agreed`: readings in a row that show work, where the caller counts them (a sample put together from several
    sources); else they are counted here.

    Without a fresh `sample`, or with one that is not finite, the last decision is held: its numbers stand, `expired`
    is set once it is older than `goals.hold_seconds`. With neither a sample nor a last decision there is no answer:
    None.
    """
    view = fresh(view, now_seconds)
    if sample is None or not sample.is_finite:  # what is no number says nothing: unknown is never zero
        if memory.last is not None and memory.last.at_seconds > now_seconds:  # the clock stepped back: time goes on
            memory = replace(memory, last=replace(memory.last, at_seconds=now_seconds))
        return _held(memory, goals, now_seconds), memory
    last = memory.last
    unconfirmed = memory.tentative if rails.shows_work(sample) else None
    situation = Situation(now_seconds=now_seconds, goals=goals, sample=sample, view=view, last=last)
    proposal = policy.propose(situation, memory.state if unconfirmed is None else unconfirmed)
    steps = proposal.steps
    if agreed is None:
        agreed = rails.agreeing(sample, before=memory.sample, confirmed=memory.confirmed, goals=goals)
    confirmed, tentative = agreed if proposal.active else 0, None
    step = rails.confirm(active=proposal.active, agreed=agreed, last=last, goals=goals, sample=sample)
    if step is not None or unconfirmed is not None:
        # Only what rests on readings that show work is withheld; nor does work that is confirmed at last ask for less
        # than had it never been seen.
        without = policy.propose(replace(situation, sample=rails.without_work(sample)), memory.state)
        if step is not None:
            tentative, steps = proposal.state, (*steps, step, *without.steps)
            # Of a raw metric only the waking is withheld: what KEDA keeps for its cooldown, the HPA scales by it.
            raw = 0.0 if policy.decides_replicas else proposal.metric_value
            value = max(without.metric_value, raw)
            proposal = replace(without, state=memory.state, metric_value=value, review_at_seconds=None)
        elif without.metric_value > proposal.metric_value:
            steps = (*steps, *without.steps)
            proposal = replace(without, state=proposal.state, review_at_seconds=None)
    active, value = proposal.active, max(proposal.metric_value, 0.0)
    if policy.decides_replicas:
        if tentative is None:  # else what runs may be as little there as the rest of the reading
            kept, step = rails.keep_busy(value, sample=sample, view=view, last=last, goals=goals)
            if step is not None and not active:  # it would wake, so it must be confirmed as well
                confirmed = agreed
                unbelieved = rails.confirm(active=True, agreed=agreed, last=last, goals=goals, sample=sample)
                active = unbelieved is None
                if unbelieved is not None:
                    kept, step, proposal = value, unbelieved, replace(proposal, review_at_seconds=None)
            value = kept
            steps = steps if step is None else (*steps, step)
        value, step = rails.cap(value, sample=sample, goals=goals)
        steps = steps if step is None else (*steps, step)
        value, step = rails.bound(value, active=active, goals=goals)
        steps = steps if step is None else (*steps, step)
        value, step = rails.reach(value, sample=sample, view=view, last=last, goals=goals)
        steps = steps if step is None else (*steps, step)
    decision = Decision(
        at_seconds=now_seconds,
        active=active,
        metric_value=value,
        target_value=proposal.target_value,
        desired_replicas=_replicas(value, proposal.target_value, goals, active=active),
        review_at_seconds=proposal.review_at_seconds,
        steps=steps,
    )
    return decision, Memory(
        state=proposal.state, last=decision, sample=sample, confirmed=confirmed, tentative=tentative
    )


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


def _replicas(metric_value: float, target_value: float, goals: Goals, *, active: bool) -> int:
    """What KEDA and the HPA make of the metric (AverageValue, tolerance left out)."""
    if not active:
        return goals.min_replicas
    wanted = math.ceil(metric_value / target_value - 1e-9)
    return min(max(wanted, goals.min_replicas, 1), goals.max_replicas)
