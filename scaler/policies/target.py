"""`policy: target`: the raw metric and the user's threshold, so that the HPA's own arithmetic applies.

A ScaledObject moved over from a built-in KEDA trigger scales as before.
"""

from __future__ import annotations

import math

from scaler.core.decide import Proposal, Situation
from scaler.core.model import Goals, Step


class Target:
    """Passes the source's metric and activation on, unchanged."""

    decides_replicas = False

    def problems(self, goals: Goals) -> tuple[tuple[str, str], ...]:  # noqa: ARG002 - it works with any goals
        """None: the source has checked its threshold."""
        return ()

    def start(self) -> None:
        """It remembers nothing."""

    def propose(self, situation: Situation, state: None) -> Proposal[None]:
        """The metric as read."""
        sample, goals = situation.sample, situation.goals
        step = Step(
            name="target",
            before=None,
            after=sample.metric_value,
            reason="metric {:.3f} against the threshold {:.3f}",
            numbers=(sample.metric_value, goals.target_value),
        )
        return Proposal(
            state=state,
            active=sample.active,
            metric_value=sample.metric_value,
            target_value=goals.target_value,
            review_at_seconds=math.inf,
            steps=(step,),
        )


POLICY = Target()
