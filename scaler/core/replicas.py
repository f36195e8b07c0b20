"""What a view of replicas tells: whom to believe, who is about to serve, and what the HPA can reach."""

from __future__ import annotations

import math

from scaler.core.model import Decision, Goals, ReplicaView, Sample

VIEW_STALE_SECONDS = 60.0  # replicas change on the scale of cold starts; an older view says nothing about now
_EDGE = 1e-9  # the HPA compares floats; a ratio that is meant to be on its edge is on it


def fresh(view: ReplicaView | None, now_seconds: float) -> ReplicaView | None:
    """The view if it is recent enough to decide on, else None."""
    if view is None or abs(now_seconds - view.at_seconds) > VIEW_STALE_SECONDS:  # below: the clock stepped back since
        return None
    return view


def current(view: ReplicaView | None, last: Decision | None) -> int | None:
    """The replicas that there are or should be: as seen, else as last asked for, else None."""
    if view is not None:
        return view.alive
    return None if last is None else last.desired_replicas


def most_useful(sample: Sample, goals: Goals) -> int | None:
    """Replicas beyond which, says the source, none has anything to do; None: it does not say.

    Never below minReplicas, nor below the one that looks for work.
    """
    most = sample.most_replicas
    return None if most is None else max(most, goals.min_replicas, 1)


def remaining_seconds(age_seconds: float, median_seconds: float, p95_seconds: float) -> float:
    """How much longer a replica of this age takes to serve, expected.

    Before the median: the rest to it. After it, what is late tends to stay late: the rest to p95, and past
    that a quarter of the median, again and again, since nobody knows.
    """
    if age_seconds < median_seconds * 0.9:
        return median_seconds - max(age_seconds, 0.0)
    if age_seconds < p95_seconds:
        return max((p95_seconds - age_seconds) / 2.0, 0.1 * median_seconds)
    return 0.25 * median_seconds


def reachable(
    desired: int, status_replicas: int | None, tolerance: float, max_replicas: int, min_replicas: int = 0
) -> int:
    """The count nearest to `desired`, not below it, to ask for so that the HPA moves.

    The HPA leaves `status_replicas` alone while desired / status_replicas is within 1 plus or minus the
    tolerance, bounds included (Kubernetes replica_calculator.go): with 10 %, from ten replicas up a step
    of one does nothing. Upwards the next count outside is taken, which may be above `max_replicas`: the HPA compares
    first and keeps to its bounds then, so that else 10 of 11 would be all for ever. So may what is asked for be below
    `min_replicas` where it is they that are wanted. Else what is there stays downwards, since any count that could be
    reached would be too few, but for what is there above `max_replicas`: the HPA takes that down before it compares.
    Unknown status replicas: `desired`, never more.

    >>> reachable(11, 10, 0.1, 100), reachable(9, 10, 0.1, 100), reachable(8, 10, 0.1, 100)
    (12, 10, 8)
    >>> reachable(11, 10, 0.1, 11), reachable(50, 55, 0.1, 100, 50)
    (12, 49)
    >>> reachable(10, 11, 0.1, 10)
    10
    """
    if status_replicas is None or status_replicas in (0, desired):
        return desired
    ratio = desired / status_replicas
    if ratio > 1.0 + tolerance + _EDGE or ratio < 1.0 - tolerance - _EDGE:
        return desired
    if desired < status_replicas and desired <= min_replicas:
        return max(math.ceil(status_replicas * (1.0 - tolerance) - _EDGE) - 1, 0)
    if desired < status_replicas:
        return min(status_replicas, max(max_replicas, desired))
    return math.floor(status_replicas * (1.0 + tolerance) + _EDGE) + 1
