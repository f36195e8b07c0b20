"""`policy: steps`: a table from queue depth to replicas, "1:2,6:5,21:10".

From 1 request in the system on 2 replicas, from 6 five, from 21 ten, and none below the first row. Requests in
the system are those waiting and, where the source knows, those in flight; else the source's metric.
"""

from __future__ import annotations

import math

from scaler.core.decide import Proposal, Situation
from scaler.core.model import Goals, Step


class Steps:
    """The row of the table that the queue has reached."""

    decides_replicas = True

    def problems(self, goals: Goals) -> tuple[tuple[str, str], ...]:
        """It needs its table."""
        if goals.steps:
            return ()
        return (("steps", 'required with policy steps: a table such as "1:2,6:5,21:10"'),)

    def start(self) -> None:
        """It remembers nothing."""

    def propose(self, situation: Situation, state: None) -> Proposal[None]:
        """The replicas of the last row whose depth is reached; zero requests or no row reached: none."""
        requests = situation.sample.requests
        replicas = 0
        for row in situation.goals.steps:
            if requests < row.waiting_from:
                break
            replicas = row.replicas
        reason = "{:.0f} requests in the system"
        step = Step(name="steps", before=None, after=replicas, reason=reason, numbers=(requests,))
        return Proposal(
            state=state,
            active=replicas > 0,
            metric_value=float(replicas),
            target_value=1.0,
            review_at_seconds=math.inf,
            steps=(step,),
        )


POLICY = Steps()
