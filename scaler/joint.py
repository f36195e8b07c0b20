"""Several `slo` triggers of one ScaledObject: their replicas are the same, so they are sized as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from scaler.core import rails
from scaler.core.decide import Memory, Policy, decide
from scaler.core.model import Decision, Goals, ReplicaView, Sample, Step
from scaler.errors import quoted
from scaler.workload import Joint, Workload


@runtime_checkable
class Believing(Protocol):
    """A policy that knows which replicas should be there where nobody sees them, and that can be asked for several."""

    def rebased(self, state: Any) -> Any:
        """`state` as it is for samples of other queues than before."""

    def believed(self, state: Any, last: Decision, sample: Sample, goals: Goals, *, now_seconds: float) -> ReplicaView:
        """What the last decision has led to by now, as far as `state` and its `sample` tell."""


def sized_memory(workload: Workload) -> Memory[Any] | None:
    """What `slo` remembers of it, where `slo` answers its demand."""
    return workload.memory if workload.decides_demand else None


def trial_memory(workload: Workload) -> Memory[Any] | None:
    """What `slo` remembers of it, where `slo` answers its demand or would if its dry run were none."""
    if workload.dry_run is not None and workload.trigger.goals.answer == "demand":
        return workload.dry_run.memory
    return sized_memory(workload)


def sized_with(workload: Workload, memory_of: Callable[[Workload], Memory[Any] | None]) -> list[Workload]:
    """The other triggers of the ScaledObject that are sized with it and have been read, each thing read once."""
    found: dict[str, Workload] = {}
    if len(workload.scaled_object.workloads) == 1 or memory_of(workload) is None:
        return []
    for other in workload.scaled_object.workloads:
        identity, memory = other.trigger.identity, memory_of(other)
        if (
            identity != workload.trigger.identity
            and not other.superseded
            and memory is not None
            and memory.sample is not None
        ):
            found.setdefault(identity, other)
    return list(found.values())


def decided_together(
    policy: Policy[Any],
    workload: Workload,
    others: list[Workload],
    memory_of: Callable[[Workload], Memory[Any] | None],
    joint: Joint,
    *,
    sample: Sample,
    view: ReplicaView | None,
    now: float,
) -> tuple[Decision | None, Memory[Any]]:
    """The decision for all `slo` triggers of a ScaledObject: their replicas are the same, so they are sized as one.

    The HPA takes the maximum of its metrics, so each trigger answers the whole. Of a trigger that can't be read at
    present the last sample counts: unknown is not zero. `memory_of` is not None for `workload` and `others`.
    """
    members = frozenset((workload.trigger.identity, *(other.trigger.identity for other in others)))
    joined = members == joint.of
    joint.of = members
    mine, *theirs = (memory for one in (workload, *others) if (memory := memory_of(one)) is not None)
    before = joint.memory
    if before is None:  # the first to have learned something has learned it for both
        before = next((memory for memory in (mine, *theirs) if memory.last is not None), mine)
    samples = [sample, *(memory.sample for memory in theirs if memory.sample is not None)]
    # Each source's readings confirm their own: a sibling that decides meanwhile has read nothing new of it.
    agreed = rails.agreeing(sample, before=mine.sample, confirmed=mine.confirmed, goals=workload.trigger.goals)
    state = before.state
    if not joined and isinstance(policy, Believing):  # what another queue holds did not arrive just now
        state = policy.rebased(state)
    decision, memory = decide(
        policy,
        joint_goals([workload.trigger.goals, *(other.trigger.goals for other in others)]),
        Memory(state=state, last=before.last, sample=before.sample, tentative=before.tentative if joined else None),
        # Counters of other triggers than before tell nothing about what arrived in between.
        sample=_joint_sample(samples, counters=joined),
        view=view,
        now_seconds=now,
        agreed=max(agreed, *(memory.confirmed for memory in theirs)),
    )
    if decision is not None:
        held = tuple(
            Step(
                name="hold",
                before=decision.desired_replicas,
                after=decision.desired_replicas,
                reason="{} can't be read: what it told {:.0f} s ago counts until it can, or its trigger is removed",
                numbers=(other.trigger.metric_name, now - then.sample.at_seconds),
            )
            for other, then in zip(others, theirs, strict=True)
            if other.error is not None and then.sample is not None
        )
        decision = replace(decision, steps=(*decision.steps, *held)) if held else decision
    return decision, replace(memory, last=decision, sample=sample, confirmed=min(agreed, memory.confirmed))


def joint_warnings(workload: Workload) -> tuple[str, ...]:
    """What is odd about a trigger beside those that it is sized with, or would be if their dry runs were none."""
    trigger = workload.trigger
    if trial_memory(workload) is None:
        return ()
    for other in workload.scaled_object.workloads:
        beside = other.trigger
        if (
            trial_memory(other) is not None
            and beside.identity != trigger.identity
            and beside.goals.service_seconds != trigger.goals.service_seconds
            and not other.superseded
        ):
            told = (
                f"serviceSeconds is not the same as that of {quoted(beside.metric_name)}, with which this is sized: "
                "neither is believed; say the mean over the requests of both on each"
            )
            return (told,)
    return ()


def _joint_sample(samples: list[Sample], *, counters: bool) -> Sample:
    """What waits and runs for the same replicas, in all. `samples` begins with the one just read."""

    def total(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    def bound(values: list[float | None]) -> float | None:
        if all(value is None for value in values):
            return None
        return sum(sample.requests if value is None else value for sample, value in zip(samples, values, strict=True))

    # Where one source can't tell waiting from running, the whole can't: what is in the system is told of all.
    waiting = total([sample.waiting for sample in samples])
    requests = sum(sample.requests for sample in samples)
    are_counted = all(sample.waiting is not None or sample.in_system is not None for sample in samples)
    most = [sample.most_replicas for sample in samples if sample.most_replicas is not None]
    return Sample(
        at_seconds=samples[0].at_seconds,
        metric_value=requests,
        active=any(sample.active for sample in samples),
        waiting=waiting,
        in_flight=total([sample.in_flight for sample in samples]),
        in_system=requests if waiting is None and are_counted else None,
        arrived_total=total([sample.arrived_total for sample in samples]) if counters else None,
        completed_total=total([sample.completed_total for sample in samples]) if counters else None,
        oldest_age_seconds=max(
            (sample.oldest_age_seconds for sample in samples if sample.oldest_age_seconds is not None), default=None
        ),
        in_system_least=bound([sample.in_system_least for sample in samples]),
        in_system_most=bound([sample.in_system_most for sample in samples]),
        # Work that an exact source shows is there.
        approximate=any(sample.approximate for sample in samples)
        and not any(rails.shows_work(sample) for sample in samples if not sample.approximate),
        # As the HPA takes the largest of the triggers' metrics.
        most_replicas=max(most) if len(most) == len(samples) else None,
    )


def joint_goals(goals: list[Goals]) -> Goals:
    """The strictest of each promise, the most of each bound and of what KEDA keeps; the rest as just read.

    A service time is told of a trigger's own requests: where they differ none is true of all, and it is learned.
    """
    waits = [one.wait_seconds for one in goals if one.wait_seconds is not None]
    cooldowns = [one.cooldown_seconds for one in goals if one.cooldown_seconds is not None]
    cold_starts = [one.cold_start_seconds for one in goals if one.cold_start_seconds is not None]
    is_one_service = len({one.service_seconds for one in goals}) == 1
    return replace(
        goals[0],
        wait_seconds=min(waits, default=None),
        attainment=max(one.attainment for one in goals),
        concurrency=min(one.concurrency for one in goals),
        min_replicas=max(one.min_replicas for one in goals),
        max_replicas=max(one.max_replicas for one in goals),
        service_seconds=goals[0].service_seconds if is_one_service else None,
        cold_start_seconds=max(cold_starts, default=None),
        cooldown_seconds=max(cooldowns, default=None),
        warm="floor" if any(one.warm == "floor" for one in goals) else goals[0].warm,
    )
