"""What holds for every policy: confirmation before waking, work in flight, bounds, and what the HPA can reach.

Each rail takes what is proposed and returns it, changed or not, with a step that says so. Rails know no
policy; a policy can't forget them.
"""

from __future__ import annotations

import math
from dataclasses import replace

from scaler.core.model import Decision, Goals, ReplicaView, Sample, Step
from scaler.core.replicas import current, most_useful, reachable


def shows_work(sample: Sample) -> bool:
    """Whether the reading itself shows something to do, whatever is remembered from before it."""
    return (
        sample.active
        or sample.metric_value > 0
        or bool(sample.waiting)
        or bool(sample.in_flight)
        or bool(sample.in_system)
        or bool(sample.utilization_sum)
    )


def agreeing(sample: Sample, *, before: Sample | None, confirmed: int, goals: Goals) -> int:
    """How many readings in a row, this one included, show work. A reading looked at again is the same reading."""
    if not shows_work(sample):
        return 0
    if before is not None and before.at_seconds == sample.at_seconds:
        return max(confirmed, 1)
    return min(confirmed + 1, goals.confirmations)


def without_work(sample: Sample) -> Sample:
    """The reading, had it shown nothing to do."""
    return replace(
        sample,
        metric_value=min(sample.metric_value, 0.0),
        active=False,
        waiting=None if sample.waiting is None else 0.0,
        in_flight=None if sample.in_flight is None else 0.0,
        in_system=None if sample.in_system is None else 0.0,
        utilization_sum=None if sample.utilization_sum is None else 0.0,
    )


def confirm(*, active: bool, agreed: int, last: Decision | None, goals: Goals, sample: Sample) -> Step | None:
    """Why the work that the reading shows is not believed yet, or None where it is.

    Approximate counts may show work that isn't there, so `agreed` readings must show it. Only what is known to be
    inactive is woken: with nothing remembered (a restart) replicas may well be serving, and an answer of inactive
    could scale them to zero.
    """
    if not active or last is None or last.active or not sample.approximate:
        return None
    needed = goals.confirmations
    if agreed >= needed or not shows_work(sample):
        return None
    reason = "{} of {} readings that must agree before waking: until then this one wakes nothing"
    return Step(name="confirm", before=1, after=0, reason=reason, numbers=(agreed, needed))


def keep_busy(
    desired: float, *, sample: Sample, view: ReplicaView | None, last: Decision | None, goals: Goals
) -> tuple[float, Step | None]:
    """Scale-in never goes below what requests in flight occupy: their replicas would be killed or drained.

    Where nobody sees any and nothing is remembered (a restart), there are at least the fewest that are ever asked for:
    those of a table's first row, else one. To take more for there would answer little waiting with more replicas than
    much, of which the policy says how many it wants.
    """
    if not sample.in_flight:
        return desired, None
    busy = math.ceil(sample.in_flight / goals.concurrency)
    if desired >= busy:
        return desired, None
    there = current(view, last)
    if there is None:
        there = goals.steps[0].replicas if goals.steps else 1
    if desired >= there:
        return desired, None
    busy = min(busy, there)
    reason = "{:.0f} requests in flight occupy {} replicas"
    return float(busy), Step(
        name="in flight", before=desired, after=busy, reason=reason, numbers=(sample.in_flight, busy)
    )


def bound(desired: float, *, active: bool, goals: Goals) -> tuple[float, Step | None]:
    """Within minReplicas and maxReplicas; at least one replica exactly while active."""
    lowest, highest = goals.min_replicas, goals.max_replicas
    if not active:
        highest = min(highest, lowest)
    elif lowest < 1:
        lowest, highest = 1, max(highest, 1)
    if lowest <= desired <= highest:
        return desired, None
    bounded = float(min(max(desired, lowest), highest))
    reason = "within minReplicas {} and maxReplicas {}"
    return bounded, Step(
        name="bounds", before=desired, after=bounded, reason=reason, numbers=(goals.min_replicas, goals.max_replicas)
    )


def cap(desired: float, *, sample: Sample, goals: Goals) -> tuple[float, Step | None]:
    """No more than the source has work for at once."""
    most = most_useful(sample, goals)
    if most is None or desired <= most:
        return desired, None
    reason = "at most {} replicas can have work at once (of Kafka: one for each partition): more would have none"
    return float(most), Step(
        name="most", before=desired, after=most, reason=reason, numbers=(sample.most_replicas or 0,)
    )


def reach(
    desired: float, *, sample: Sample, view: ReplicaView | None, last: Decision | None, goals: Goals
) -> tuple[float, Step | None]:
    """A count that the HPA can be moved to from the replicas that it sees.

    Where nobody tells which it sees, what was asked for last stays if it is let go by so little that the HPA ignores
    it: it is there, and to take it for gone would make its next use look like a cold start. Never is more asked for,
    but where it must be maxReplicas, and less where it must be minReplicas: whatever is asked for beyond its bounds,
    the HPA keeps to them. They are asked for as from the count beside them, in each decision: from any other it is a
    larger step, and of one decision alone the HPA may never hear (its window remembers the highest).

    Of jobs KEDA makes as many as are asked for: no HPA compares them with anything.
    """
    if goals.answer == "jobs":
        return desired, None
    status_replicas = None if view is None else view.status_replicas
    if status_replicas is None:
        status_replicas = _beside(desired, last, goals)
    if status_replicas is None or desired < 1 or desired == status_replicas:
        return desired, None
    count = reachable(
        math.ceil(desired - 1e-9), status_replicas, goals.hpa_tolerance, goals.max_replicas, goals.min_replicas
    )
    most = most_useful(sample, goals)
    if most is not None and most < goals.max_replicas and count > status_replicas:
        # One that is out of reach is done without, as with KEDA's metric. Above maxReplicas nothing comes of it.
        count = max(min(count, most), math.ceil(desired - 1e-9))
    if count == desired:
        return desired, None
    reason = "from {} replicas the HPA ignores steps within {:.0%}"
    return float(count), Step(
        name="reach", before=desired, after=count, reason=reason, numbers=(status_replicas, goals.hpa_tolerance)
    )


def _beside(desired: float, last: Decision | None, goals: Goals) -> int | None:
    """Where the HPA may stand so that what is wanted is hardest to reach, where nobody tells; None: anywhere."""
    if desired >= goals.max_replicas:
        return goals.max_replicas - 1
    if desired <= goals.min_replicas:
        return goals.min_replicas + 1
    if last is not None and desired < last.desired_replicas:
        return last.desired_replicas
    return None
