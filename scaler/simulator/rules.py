"""How KEDA and the HPA turn answers into replicas, as pure functions: written once, for simulator and loadgen.

Sources: KEDA `pkg/scaling/executor/scale_scaledobjects.go`, `scale_jobs.go`, `pkg/fallback/fallback.go` at 8b4f083c
(2.21-dev); Kubernetes `pkg/controller/podautoscaler/replica_calculator.go`, `horizontal.go` and
`pkg/apis/autoscaling/v2/defaults.go`. Time is an argument, in seconds of any one clock. State goes in frozen and
comes out frozen. The HPA computes in thousandths (a Quantity's MilliValue), and so do we.

`keda_poll` and `keda_push` move a workload between zero and one; `hpa_sync` moves it from one upwards;
`jobs_to_create` is a ScaledJob's whole rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from scaler.core.values import value_class

HPA_SYNC_SECONDS = 15.0  # kube-controller-manager --horizontal-pod-autoscaler-sync-period
HPA_TOLERANCE = 0.1  # --horizontal-pod-autoscaler-tolerance
HPA_DOWNSCALE_STABILIZATION_SECONDS = 300.0  # --horizontal-pod-autoscaler-downscale-stabilization
KEDA_POLLING_SECONDS = 30.0
KEDA_COOLDOWN_SECONDS = 300.0
KEDA_MAX_REPLICAS = 100
PUSH_RETRY_FIRST_SECONDS = 2.0  # external_scaler.go: doubles, and only a stream that ended with OK resets it
PUSH_RETRY_MAX_SECONDS = 60.0

_MAX_INT64 = 2**63 - 1


class MetricType(Enum):
    """How the HPA compares a metric with its target: per replica, or as it is times the ready pods."""

    AVERAGE_VALUE = "AverageValue"
    VALUE = "Value"


@value_class(frozen=True, slots=True)
class Metric:
    """One external metric as the HPA reads it; `value` None: the read failed, which is not zero."""

    value: float | None
    target: float
    metric_type: MetricType = MetricType.AVERAGE_VALUE


@value_class(frozen=True, slots=True)
class Scale:
    """What the HPA sees of the scale target: wanted replicas, existing ones, and those Running and Ready."""

    spec_replicas: int
    status_replicas: int
    ready_replicas: int


# --- Quantities -------------------------------------------------------------------------------------------------


def milli(value: float) -> int:
    """Thousandths, as KEDA writes a number into a Quantity: three decimals; NaN, infinite or negative is 0."""
    if not 0 < value < math.inf:
        return 0
    return min(round(round(value, 3) * 1000), _MAX_INT64)


def wire_number(as_float: float, as_integer: int) -> float:
    """KEDA's reading of a pair of fields (metric value or target size): the float above zero, else the integer."""
    if as_float > 0:
        return as_float
    return float(max(as_integer, 0))


# --- The HPA ----------------------------------------------------------------------------------------------------


class Select(Enum):
    """Which of several scaling policies counts; MAX is the one that changes most, in both directions."""

    MAX = "Max"
    MIN = "Min"
    DISABLED = "Disabled"


class Unit(Enum):
    """What a scaling policy's value counts."""

    PODS = "Pods"
    PERCENT = "Percent"


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    """At most `value` pods, or percent of the replicas at the start of the period, in `period_seconds`."""

    unit: Unit
    value: int
    period_seconds: float


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """One direction of `behavior`.

    `stabilization_seconds` None: the controller's flag (scale-down). `tolerance` is a share; None: the
    controller's flag (KEP-4951; beta in Kubernetes 1.35).
    """

    policies: tuple[ScalingPolicy, ...]
    stabilization_seconds: float | None = None
    select: Select = Select.MAX
    tolerance: float | None = None


# The defaults that fill whatever a `behavior` leaves out (defaults.go).
DEFAULT_SCALE_UP = ScalingRules(
    policies=(ScalingPolicy(Unit.PODS, 4, 15.0), ScalingPolicy(Unit.PERCENT, 100, 15.0)), stabilization_seconds=0.0
)
DEFAULT_SCALE_DOWN = ScalingRules(policies=(ScalingPolicy(Unit.PERCENT, 100, 15.0),))


@dataclass(frozen=True, slots=True, kw_only=True)
class HpaBehavior:
    """`spec.behavior` of an HPA. With it set at all, both directions follow rules; without, the older path."""

    scale_up: ScalingRules = DEFAULT_SCALE_UP
    scale_down: ScalingRules = DEFAULT_SCALE_DOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class HpaSpec:
    """One HPA and the flags of its controller. `min_replicas` is at least 1 in what KEDA writes."""

    min_replicas: int = 1
    max_replicas: int = KEDA_MAX_REPLICAS
    behavior: HpaBehavior | None = None
    tolerance: float = HPA_TOLERANCE
    downscale_stabilization_seconds: float = HPA_DOWNSCALE_STABILIZATION_SECONDS
    # Worked out once, since a backtest syncs millions of times.
    lowest_ratio: float = field(init=False, repr=False, compare=False)
    highest_ratio: float = field(init=False, repr=False, compare=False)
    up_window_seconds: float = field(init=False, repr=False, compare=False)
    down_window_seconds: float = field(init=False, repr=False, compare=False)
    events_seconds: float = field(init=False, repr=False, compare=False)
    up_rules: ScalingRules = field(init=False, repr=False, compare=False)
    down_rules: ScalingRules = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Derive the tolerance bounds and how long recommendations and events matter."""
        up = DEFAULT_SCALE_UP if self.behavior is None else self.behavior.scale_up
        down = DEFAULT_SCALE_DOWN if self.behavior is None else self.behavior.scale_down
        down_window_seconds = down.stabilization_seconds
        if down_window_seconds is None:
            down_window_seconds = self.downscale_stabilization_seconds
        derived = {
            "lowest_ratio": 1.0 - (self.tolerance if down.tolerance is None else down.tolerance),
            "highest_ratio": 1.0 + (self.tolerance if up.tolerance is None else up.tolerance),
            "up_window_seconds": up.stabilization_seconds or 0.0,
            "down_window_seconds": down_window_seconds,
            # Either direction's policies look at the events of both.
            "events_seconds": max((policy.period_seconds for policy in up.policies + down.policies), default=0.0),
            "up_rules": up,
            "down_rules": down,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)


@value_class(frozen=True, slots=True)
class HpaState:
    """What the HPA controller remembers.

    `recommendations` are (at_seconds, replicas); of equal replicas only the newest is kept, which changes no
    minimum and no maximum over a window. Events are (at_seconds, replicas changed).
    """

    recommendations: tuple[tuple[float, int], ...] = ()
    up_events: tuple[tuple[float, int], ...] = ()
    down_events: tuple[tuple[float, int], ...] = ()


def metric_proposal(spec: HpaSpec, metric: Metric, scale: Scale) -> int | None:
    """The replicas that one metric asks for; None where it can't be used.

    AverageValue compares with the *status* replicas and ignores readiness; Value multiplies by the *ready*
    pods. A ratio within the tolerance (bounds included) asks for what is there.

    >>> metric_proposal(HpaSpec(), Metric(22.222, 6.111), Scale(1, 1, 1))
    4
    """
    value = metric.value
    if value is None:
        return None
    usage, target = milli(value), milli(metric.target)
    if target == 0:
        return None  # the API server refuses such an HPA
    if metric.metric_type is MetricType.AVERAGE_VALUE:
        replicas = scale.status_replicas
        if replicas and spec.lowest_ratio <= usage / (target * replicas) <= spec.highest_ratio:
            return replicas
        return math.ceil(usage / target)
    ratio = usage / target
    if scale.spec_replicas == 0:
        return math.ceil(ratio)
    if spec.lowest_ratio <= ratio <= spec.highest_ratio:
        return scale.spec_replicas
    if scale.status_replicas == 0:
        return None  # "no pods returned by selector"
    return math.ceil(ratio * scale.ready_replicas)


def combined_proposal(spec: HpaSpec, metrics: Sequence[Metric], scale: Scale) -> int | None:
    """The largest proposal; None where none is valid, or where one is missing and the others would scale in."""
    best: int | None = None
    missing = False
    for metric in metrics:
        proposal = metric_proposal(spec, metric, scale)
        if proposal is None:
            missing = True
        elif best is None or proposal > best:
            best = proposal
    if missing and best is not None and best < scale.spec_replicas:
        return None
    return best


def hpa_sync(
    spec: HpaSpec, state: HpaState, metrics: Sequence[Metric], scale: Scale, now_seconds: float
) -> tuple[int, HpaState]:
    """One sync of the HPA: (replicas to write into spec.replicas, what it remembers).

    The first number equals `scale.spec_replicas` where nothing is to be done: disabled at zero replicas,
    no usable metric, or content.
    """
    current = scale.spec_replicas
    if not state.recommendations:
        state = HpaState(((now_seconds, current),), state.up_events, state.down_events)
    if current == 0 and spec.min_replicas != 0:
        return 0, state
    if current > spec.max_replicas:
        desired = spec.max_replicas
    elif current < spec.min_replicas:
        desired = spec.min_replicas
    else:
        proposal = combined_proposal(spec, metrics, scale)
        if proposal is None:
            return current, state
        if spec.behavior is None:
            highest = _highest_since(state.recommendations, now_seconds - spec.down_window_seconds, proposal)
            desired = max(min(highest, spec.max_replicas, max(2 * current, 4)), spec.min_replicas)
        else:
            desired = _by_behavior(spec, state, proposal, current, now_seconds)
        state = _with_recommendation(spec, state, proposal, now_seconds)
    if desired != current and spec.behavior is not None:
        state = _with_event(spec, state, desired - current, now_seconds)
    return desired, state


def _by_behavior(spec: HpaSpec, state: HpaState, proposal: int, current: int, now_seconds: float) -> int:
    """Stabilise in both directions, then limit the rate."""
    highest = _highest_since(state.recommendations, now_seconds - spec.down_window_seconds, proposal)
    lowest = proposal
    if spec.up_window_seconds:
        cutoff_at_seconds = now_seconds - spec.up_window_seconds
        for at_seconds, replicas in state.recommendations:
            if at_seconds > cutoff_at_seconds and replicas < lowest:
                lowest = replicas
    desired = min(max(current, lowest), highest)
    if desired > current:
        limit = max(_up_limit(spec.up_rules, state, current, now_seconds), current)
        return min(desired, limit, spec.max_replicas)
    if desired < current:
        limit = min(_down_limit(spec.down_rules, state, current, now_seconds), current)
        return max(desired, limit, spec.min_replicas)
    return current


def _up_limit(rules: ScalingRules, state: HpaState, current: int, now_seconds: float) -> int:
    if rules.select is Select.DISABLED or not rules.policies:
        return current
    limits = []
    for policy in rules.policies:
        start = _period_start(state, current, now_seconds - policy.period_seconds)
        if policy.unit is Unit.PODS:
            limits.append(start + policy.value)
        else:
            limits.append(math.ceil(start * (1 + policy.value / 100)))
    return max(limits) if rules.select is Select.MAX else min(limits)


def _down_limit(rules: ScalingRules, state: HpaState, current: int, now_seconds: float) -> int:
    if rules.select is Select.DISABLED or not rules.policies:
        return current
    limits = []
    for policy in rules.policies:
        start = _period_start(state, current, now_seconds - policy.period_seconds)
        if policy.unit is Unit.PODS:
            limits.append(start - policy.value)
        else:
            limits.append(int(start * (1 - policy.value / 100)))
    return min(limits) if rules.select is Select.MAX else max(limits)


def _period_start(state: HpaState, current: int, cutoff_at_seconds: float) -> int:
    """The replicas at the start of a policy's period, by the HPA's own recorded changes of both directions."""
    for at_seconds, change in state.up_events:
        if at_seconds > cutoff_at_seconds:
            current -= change
    for at_seconds, change in state.down_events:
        if at_seconds > cutoff_at_seconds:
            current += change
    return current


def _highest_since(recommendations: tuple[tuple[float, int], ...], cutoff_at_seconds: float, proposal: int) -> int:
    """The largest of the proposal and the recommendations newer than the cutoff.

    Real syncs come a little late, so one that is due exactly a window later no longer sees the first.
    """
    highest = proposal
    for at_seconds, replicas in recommendations:
        if replicas > highest and at_seconds > cutoff_at_seconds:
            highest = replicas
    return highest


def _with_recommendation(spec: HpaSpec, state: HpaState, proposal: int, now_seconds: float) -> HpaState:
    cutoff_at_seconds = now_seconds - max(spec.up_window_seconds, spec.down_window_seconds)
    kept = tuple([pair for pair in state.recommendations if pair[0] > cutoff_at_seconds and pair[1] != proposal])
    return HpaState((*kept, (now_seconds, proposal)), state.up_events, state.down_events)


def _with_event(spec: HpaSpec, state: HpaState, change: int, now_seconds: float) -> HpaState:
    cutoff_at_seconds = now_seconds - spec.events_seconds
    up_events = tuple([pair for pair in state.up_events if pair[0] > cutoff_at_seconds])
    down_events = tuple([pair for pair in state.down_events if pair[0] > cutoff_at_seconds])
    if change > 0:
        return HpaState(state.recommendations, (*up_events, (now_seconds, change)), down_events)
    return HpaState(state.recommendations, up_events, (*down_events, (now_seconds, -change)))


# --- KEDA's executor --------------------------------------------------------------------------------------------


class FallbackBehavior(Enum):
    """What `fallback.replicas` is weighed against."""

    STATIC = "static"
    CURRENT = "currentReplicas"
    CURRENT_IF_HIGHER = "currentReplicasIfHigher"
    CURRENT_IF_LOWER = "currentReplicasIfLower"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """`spec.fallback` of a ScaledObject."""

    failure_threshold: int
    replicas: int
    behavior: FallbackBehavior = FallbackBehavior.STATIC


@dataclass(frozen=True, slots=True, kw_only=True)
class KedaSpec:
    """What a ScaledObject says about replicas and time; defaults are KEDA's."""

    min_replicas: int = 0
    max_replicas: int = KEDA_MAX_REPLICAS
    idle_replicas: int | None = None
    polling_seconds: float = KEDA_POLLING_SECONDS
    cooldown_seconds: float = KEDA_COOLDOWN_SECONDS
    initial_cooldown_seconds: float = 0.0
    fallback: Fallback | None = None

    def hpa(
        self,
        *,
        behavior: HpaBehavior | None = None,
        tolerance: float = HPA_TOLERANCE,
        downscale_stabilization_seconds: float = HPA_DOWNSCALE_STABILIZATION_SECONDS,
    ) -> HpaSpec:
        """The HPA that KEDA writes for it: never below one replica."""
        return HpaSpec(
            min_replicas=max(1, self.min_replicas),
            max_replicas=self.max_replicas,
            behavior=behavior,
            tolerance=tolerance,
            downscale_stabilization_seconds=downscale_stabilization_seconds,
        )


@value_class(frozen=True, slots=True)
class KedaState:
    """What the ScaledObject's status holds: creation, and the last evaluation that found it active."""

    created_at_seconds: float
    last_active_at_seconds: float | None = None


def keda_poll(
    spec: KedaSpec, state: KedaState, *, active: bool, failed: bool, replicas: int, now_seconds: float
) -> tuple[int, KedaState]:
    """One evaluation by KEDA: (replicas to write into spec.replicas, what it remembers).

    `active`: any trigger is (a running fallback counts). `failed`: any trigger's read failed. The first
    number equals `replicas` where nothing is to be done.
    """
    if active:
        idle_below_min = spec.idle_replicas is not None and replicas < spec.min_replicas
        if idle_below_min or replicas == 0:
            return max(spec.min_replicas, 1), KedaState(state.created_at_seconds, now_seconds)
        if failed:
            return replicas, state  # the activity clock is not refreshed: cooldown goes on running
        return replicas, KedaState(state.created_at_seconds, now_seconds)
    if failed and (spec.fallback is None or spec.fallback.replicas != 0):
        return replicas, state
    idle_replicas = spec.idle_replicas
    above_idle = idle_replicas is not None and replicas > idle_replicas
    if above_idle or (replicas > 0 and spec.min_replicas == 0):
        if _cooled_down(spec, state, now_seconds):
            return idle_replicas or 0, state
        return replicas, state
    if idle_replicas is None and replicas < spec.min_replicas:
        return spec.min_replicas, state
    return replicas, state


def keda_push(spec: KedaSpec, state: KedaState, *, replicas: int, now_seconds: float) -> tuple[int, KedaState]:
    """A `true` on StreamIsActive: as a poll that found it active. A `false` is ignored (2.19 and later)."""
    return keda_poll(spec, state, active=True, failed=False, replicas=replicas, now_seconds=now_seconds)


def _cooled_down(spec: KedaSpec, state: KedaState, now_seconds: float) -> bool:
    if state.last_active_at_seconds is None:
        return state.created_at_seconds + spec.initial_cooldown_seconds < now_seconds
    return state.last_active_at_seconds + spec.cooldown_seconds < now_seconds


def fallback_value(
    fallback: Fallback | None, *, failures: int, target: float, metric_type: MetricType, scale: Scale
) -> float | None:
    """The metric value that stands in for a failing read; None: the error is passed on.

    `failures` counts failing evaluations in a row, polls and HPA reads alike, this one included. While a
    value stands in, the trigger counts as active.
    """
    if fallback is None or failures <= fallback.failure_threshold:
        return None
    replicas, current = fallback.replicas, scale.spec_replicas
    if fallback.behavior is FallbackBehavior.CURRENT:
        replicas = current
    elif fallback.behavior is FallbackBehavior.CURRENT_IF_HIGHER:
        replicas = max(replicas, current)
    elif fallback.behavior is FallbackBehavior.CURRENT_IF_LOWER:
        replicas = min(replicas, current)
    if metric_type is MetricType.AVERAGE_VALUE:
        return target * replicas
    if scale.ready_replicas == 0:
        return None
    return target * replicas / scale.ready_replicas


# --- ScaledJobs -------------------------------------------------------------------------------------------------


class JobStrategy(Enum):
    """`scalingStrategy.strategy` of a ScaledJob."""

    DEFAULT = "default"
    CUSTOM = "custom"
    ACCURATE = "accurate"
    EAGER = "eager"


class JobCalculation(Enum):
    """`scalingStrategy.multipleScalersCalculation`: how several active triggers become one number."""

    MAX = "max"
    MIN = "min"
    AVG = "avg"
    SUM = "sum"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What a ScaledJob says; the two `custom_` fields are for strategy `custom`."""

    strategy: JobStrategy = JobStrategy.DEFAULT
    calculation: JobCalculation = JobCalculation.MAX
    min_replicas: int = 0
    max_replicas: int = KEDA_MAX_REPLICAS
    custom_queue_length_deduction: int = 0
    custom_running_job_share: float = 0.0


@dataclass(frozen=True, slots=True)
class JobTrigger:
    """One trigger of a ScaledJob as polled; `target` None: metricType Value, which creates no jobs."""

    active: bool
    queue_length: float
    target: float | None


def jobs_to_create(spec: JobSpec, triggers: Sequence[JobTrigger], *, running: int, pending: int) -> int:
    """Jobs that one poll creates. `running`: not finished; `pending`: of these, without a running pod."""
    active, queue_length, max_scale = _job_demand(spec, triggers)
    if not (active or spec.min_replicas > 0):
        return 0
    if running < spec.min_replicas:
        return spec.min_replicas - running
    running -= spec.min_replicas
    if spec.strategy is JobStrategy.DEFAULT:
        allowed = max_scale - running
    elif spec.strategy is JobStrategy.CUSTOM:
        taken = spec.custom_queue_length_deduction + int(running * spec.custom_running_job_share)
        allowed = min(max_scale - taken, spec.max_replicas)
    elif spec.strategy is JobStrategy.ACCURATE:
        if max_scale + running - pending > spec.max_replicas:
            allowed = spec.max_replicas - running
        else:
            allowed = max_scale - pending
    else:
        allowed = min(spec.max_replicas - running - pending, max_scale)
        queue_length = spec.max_replicas
    return max(min(queue_length, allowed), 0)


def _job_demand(spec: JobSpec, triggers: Sequence[JobTrigger]) -> tuple[bool, int, int]:
    """(any active, queue length, highest sensible number of jobs) over the active triggers."""
    pairs = [
        (trigger.queue_length, min(trigger.queue_length / trigger.target, spec.max_replicas) if trigger.target else 0.0)
        for trigger in triggers
        if trigger.active
    ]
    if spec.calculation is JobCalculation.MAX:
        pairs = [pair for pair in pairs if pair[0] > 0]
    if not pairs:
        return False, 0, 0
    if spec.calculation is JobCalculation.MAX:
        queue_length, max_scale = max(pairs, key=lambda pair: pair[0])
    elif spec.calculation is JobCalculation.MIN:
        queue_length, max_scale = min(pairs, key=lambda pair: pair[0])
    else:
        parts = len(pairs) if spec.calculation is JobCalculation.AVG else 1
        queue_length = sum(pair[0] for pair in pairs) / parts
        max_scale = sum(pair[1] for pair in pairs) / parts
    return True, math.ceil(queue_length), math.ceil(max_scale)
