"""What a trigger answers other than its demand: `jobs` for a ScaledJob, and the size of a `warm` pool.

`answer: jobs` is for KEDA's `default` strategy. KEDA creates what is answered less the jobs that run
(executor/scale_jobs.go: maxScale - runningJobCount), so the answer counts requests that are worked on, too: each
job keeps its request, and a job ends with its work. Whatever the policy, no job is ended early, so there is
nothing to hold and nothing to let go.
"""

from __future__ import annotations

import math

from scaler.core.decide import Proposal, Situation
from scaler.core.model import Goals, Step


class Jobs:
    """Waiting and running requests over concurrency, with target 1."""

    decides_replicas = True

    def problems(self, goals: Goals) -> tuple[tuple[str, str], ...]:  # noqa: ARG002 - it works with any goals
        """None."""
        return ()

    def start(self) -> None:
        """It remembers nothing."""

    def propose(self, situation: Situation, state: None) -> Proposal[None]:
        """One job for each `concurrency` requests in the system; none where the source's activation says so."""
        sample, goals = situation.sample, situation.goals
        # Where the source can't tell what waits from what runs, that is one number for both (Kafka's lag).
        waiting = sample.requests if sample.waiting is None else sample.waiting
        running = 0.0 if sample.waiting is None else sample.in_flight or 0.0
        jobs = math.ceil((max(waiting, 0.0) + max(running, 0.0)) / goals.concurrency - 1e-9)
        return Proposal(
            state=state,
            active=sample.active and jobs > 0,
            metric_value=float(jobs),
            target_value=1.0,
            steps=(
                Step(
                    name="jobs",
                    before=None,
                    after=jobs,
                    reason="{:.0f} wait and {:.0f} run, {} to a job",
                    numbers=(waiting, running, goals.concurrency),
                ),
            ),
        )


class Warm:
    """The warm pool's size as it stands in the sample (core/warm_pool.py), with target 1."""

    decides_replicas = True

    def problems(self, goals: Goals) -> tuple[tuple[str, str], ...]:  # noqa: ARG002 - it works with any goals
        """None."""
        return ()

    def start(self) -> None:
        """It remembers nothing: the workload that the pool is for does."""

    def propose(self, situation: Situation, state: None) -> Proposal[None]:
        """Active exactly when at least one replica is to be warm."""
        replicas = situation.sample.metric_value
        return Proposal(state=state, active=replicas >= 1.0, metric_value=replicas, target_value=1.0)


JOBS = Jobs()
WARM = Warm()
