"""The words of the field, as values: the glossary of the project.

Units stand in the names. A clock reading ends in `_at_seconds` and comes from one monotonic clock; a length
ends in `_seconds`. Absent is None, never -1, 0 or "".

trigger           one entry of a ScaledObject that points at us
backlog           requests that wait, not yet picked up by a replica
activation        the step between zero and one replica: a workload is active or not
desired replicas  what a policy asks for
cold start        from the creation of a replica until it serves
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scaler.core.values import value_class

_BEYOND_COUNTING = 1e18  # a nanosecond each for thirty years: a mistake, and squares of it still are numbers


@value_class(frozen=True, slots=True, kw_only=True)
class Sample:
    """One reading of a source, interpreted by one trigger.

    metric_value       what KEDA's own scaler would report; `policy: target` passes it on
    active             the source's own activation rule (KEDA: strictly above the activation threshold)
    waiting            requests not yet picked up, or None where the source can't tell
    in_flight          requests being worked on, or None
    in_system          requests waiting or being worked on, where the source can't tell the two apart (Kafka's lag: what
                       is not committed), or None; `waiting` is None then
    arrived_total      requests ever arrived by an exact counter (may restart), or None
    completed_total    requests ever finished by an exact counter (may restart), or None
    oldest_age_seconds age of the oldest waiting request, or None
    utilization_sum    sum over replicas of the share in use, in the unit of `metric_value`, or None
    in_system_least    how many surely are in the system, where what is done is told in lumps (commits), or None
    in_system_most     how many may be at most, there
    approximate        single readings may be wrong for a moment (SQS): waking needs confirmations
    most_replicas      replicas that can have work at once, as far as the source says (Kafka: partitions), or None
    raw                the parts as read, for people; never used by a policy
    """

    at_seconds: float
    metric_value: float
    active: bool
    waiting: float | None = None
    in_flight: float | None = None
    in_system: float | None = None
    arrived_total: float | None = None
    completed_total: float | None = None
    oldest_age_seconds: float | None = None
    utilization_sum: float | None = None
    in_system_least: float | None = None
    in_system_most: float | None = None
    approximate: bool = False
    most_replicas: int | None = None
    raw: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_finite(self) -> bool:
        """Whether all that is told are numbers, neither NaN nor infinite nor beyond anything that is counted."""
        return (
            abs(
                self.metric_value
                + (self.waiting or 0.0)
                + (self.in_flight or 0.0)
                + (self.in_system or 0.0)
                + (self.in_system_least or 0.0)
                + (self.in_system_most or 0.0)
                + (self.arrived_total or 0.0)
                + (self.completed_total or 0.0)
                + (self.oldest_age_seconds or 0.0)
                + (self.utilization_sum or 0.0)
            )
            < _BEYOND_COUNTING
        )

    @property
    def maybe_done(self) -> float:
        """Requests that may be done and are not told yet (`in_system_least`, `in_system_most`); mostly none."""
        return 0.0 if self.in_system_most is None else self.in_system_most - (self.in_system_least or 0.0)

    @property
    def requests(self) -> float:
        """Requests waiting or being worked on, as far as the source counts them; else its metric is taken for that."""
        if self.waiting is not None:
            return self.waiting + (self.in_flight or 0.0)
        return self.metric_value if self.in_system is None else self.in_system


@value_class(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """The replicas of the scale target as someone who can see them reports them.

    `starting_at_seconds` holds one creation time per replica that does not serve yet, oldest first.
    `status_replicas` is `status.replicas` of /scale, which the HPA's arithmetic starts from; None: unknown.
    `cold_starts_seconds`: cold starts finished since the last view. `phases_seconds`: how long phases of those took,
    each as an index into cold_starts.PHASES and its length, where somebody tells.
    """

    at_seconds: float
    ready: int
    starting_at_seconds: tuple[float, ...] = ()
    terminating: int = 0
    status_replicas: int | None = None
    cold_starts_seconds: tuple[float, ...] = ()
    phases_seconds: tuple[tuple[int, float], ...] = ()

    @property
    def starting(self) -> int:
        """How many replicas do not serve yet."""
        return len(self.starting_at_seconds)

    @property
    def alive(self) -> int:
        """Ready and starting: what the scale target holds, terminating replicas left out."""
        return self.ready + len(self.starting_at_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStep:
    """From `waiting_from` requests in the system on, `replicas` replicas."""

    waiting_from: float
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """What the user states about one trigger, parsed; the same for every policy.

    `target_value` is the source's threshold. `wait_seconds` and `attainment` are the service-level
    objective: a share `attainment` of requests starts within `wait_seconds`. `service_seconds` and
    `cold_start_seconds` are first guesses, or None. `hpa_tolerance` is a share (0.1: 10 %). `sample_seconds`: how
    often the source is read, where that was said.
    """

    target_value: float
    wait_seconds: float | None = None
    attainment: float = 0.95
    service_seconds: float | None = None
    cold_start_seconds: float | None = None
    concurrency: int = 1
    gpu_cost_per_hour: float | None = None
    min_replicas: int = 0
    max_replicas: int = 100
    cooldown_seconds: float | None = None
    steps: tuple[ReplicaStep, ...] = ()
    confirmations: int = 1
    warm: str = "off"
    answer: str = "demand"
    hold_seconds: float = 120.0
    stale_seconds: float | None = None
    hpa_tolerance: float = 0.1
    sample_seconds: float | None = None


@value_class(frozen=True, slots=True, kw_only=True)
class Step:
    """What one stage of a decision did, for people: replicas (or the metric's unit) before and after.

    `reason` is a format string over `numbers`, put together only when someone reads it.
    """

    name: str
    before: float | None
    after: float | None
    reason: str = ""
    numbers: tuple[float | str, ...] = ()

    def text(self) -> str:
        """The reason with its numbers."""
        return self.reason.format(*self.numbers)


@value_class(frozen=True, slots=True, kw_only=True)
class Decision:
    """The answer for one trigger; GetMetricSpec, GetMetrics and IsActive are three views of it.

    `metric_value / target_value` is what the HPA rounds up to replicas (AverageValue). `desired_replicas` is
    that number where the policy decides replicas, and for `target` what the HPA would make of it.
    `held`: no fresh sample, this is the last decision. `expired`: held for longer than `hold_seconds`, so
    GetMetrics answers UNAVAILABLE; `active` still stands.
    `review_at_seconds`: while samples and replicas stay as they are, the answer can't change before then;
    None: it may change with the next look.
    """

    at_seconds: float
    active: bool
    metric_value: float
    target_value: float
    desired_replicas: int
    held: bool = False
    expired: bool = False
    review_at_seconds: float | None = None
    steps: tuple[Step, ...] = ()
