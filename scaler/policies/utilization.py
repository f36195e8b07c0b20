"""`policy: utilization`: as many replicas as bring their mean use (DCGM, KV cache) to the target.

It divides the *sum* over replicas by the target. A mean times the replicas would multiply while replicas
load their model: the mean of those that serve stays high and each look would add the same again. The sum does
not grow by starting replicas, so what is starting is counted as soon as it is asked for.
"""

from __future__ import annotations

import math

from scaler.core.decide import Proposal, Situation
from scaler.core.model import Goals, Step
from scaler.core.replicas import current

_EDGE = 1e-9


class Utilization:
    """The sum of the use of all replicas against the target per replica, with a dead zone as the HPA's."""

    decides_replicas = True

    def problems(self, goals: Goals) -> tuple[tuple[str, str], ...]:  # noqa: ARG002 - it works with any goals
        """None: the source has checked its target."""
        return ()

    def start(self) -> None:
        """It remembers nothing."""

    def propose(self, situation: Situation, state: None) -> Proposal[None]:
        """The replicas that the use asks for; while some of them still start, none is given up.

        A query that gives no `utilization_sum` is taken for the sum itself.
        """
        sample, goals, view = situation.sample, situation.goals, situation.view
        total = sample.metric_value if sample.utilization_sum is None else sample.utilization_sum
        needed = math.ceil(total / goals.target_value - _EDGE)
        there = current(view, situation.last)
        desired, reason = needed, "use {:.1f} over all replicas against {:.1f} each"
        if there is not None and needed != there and total > 0:
            if abs(total / (goals.target_value * there) - 1.0) <= goals.hpa_tolerance + _EDGE if there else False:
                desired, reason = there, "use {:.1f} against {:.1f} each is within the tolerance of what is there"
            elif needed < there and view is not None and view.starting:
                desired, reason = there, "use {:.1f} against {:.1f} each, but replicas are still starting"
        step = Step(name="utilization", before=there, after=desired, reason=reason, numbers=(total, goals.target_value))
        active = sample.active or total > 0
        return Proposal(
            state=state,
            active=active,
            metric_value=float(desired),
            target_value=1.0,
            review_at_seconds=math.inf,
            steps=(step,),
        )


POLICY = Utilization()
