"""KEDA's executor and the HPA's arithmetic against worked examples, then against properties."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.simulator.rules import (
    DEFAULT_SCALE_DOWN,
    DEFAULT_SCALE_UP,
    Fallback,
    FallbackBehavior,
    HpaBehavior,
    HpaSpec,
    HpaState,
    JobCalculation,
    JobSpec,
    JobStrategy,
    JobTrigger,
    KedaSpec,
    KedaState,
    Metric,
    MetricType,
    Scale,
    ScalingPolicy,
    ScalingRules,
    Select,
    Unit,
    combined_proposal,
    fallback_value,
    hpa_sync,
    jobs_to_create,
    keda_poll,
    keda_push,
    metric_proposal,
    milli,
    wire_number,
)

AVERAGE, VALUE = MetricType.AVERAGE_VALUE, MetricType.VALUE
DEFAULTED = HpaBehavior()


def run_hpa(
    spec: HpaSpec,
    metrics: Sequence[float | None],
    *,
    start: int = 1,
    target: float = 1.0,
    step_seconds: float = 15.0,
    state: HpaState | None = None,
) -> list[int]:
    """The replicas after each sync, pods existing and ready at once."""
    replicas, timeline = start, []
    state = HpaState() if state is None else state
    for index, value in enumerate(metrics):
        scale = Scale(replicas, replicas, replicas)
        replicas, state = hpa_sync(spec, state, [Metric(value, target)], scale, index * step_seconds)
        timeline.append(replicas)
    return timeline


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(22.222, 22222, id="three decimals"),
        pytest.param(0.0004, 0, id="below half a thousandth"),
        pytest.param(0.0006, 1, id="above half a thousandth"),
        pytest.param(-3.0, 0, id="negative"),
        pytest.param(math.nan, 0, id="not a number"),
        pytest.param(math.inf, 0, id="infinite"),
        pytest.param(1e30, 2**63 - 1, id="more than an int64"),
    ],
)
def test_a_quantity_has_three_decimals_and_is_never_negative(value: float, expected: int) -> None:
    assert milli(value) == expected


@pytest.mark.parametrize(
    ("as_float", "as_integer", "expected"),
    [(2.5, 3, 2.5), (0.0, 3, 3.0), (0.0, 0, 0.0), (-1.0, -1, 0.0), (-1.0, 4, 4.0)],
)
def test_the_float_field_wins_above_zero(as_float: float, as_integer: int, expected: float) -> None:
    assert wire_number(as_float, as_integer) == expected


@pytest.mark.parametrize(
    ("metric", "scale", "expected"),
    [
        pytest.param(Metric(22.222, 6.111), Scale(1, 1, 1), 4, id="e2e: 22.222 by 6.111"),
        pytest.param(Metric(8, 2), Scale(8, 8, 8), 4, id="value_metric_type: 8 to 4 by average"),
        pytest.param(Metric(11, 1), Scale(10, 10, 10), 10, id="tolerance swallows 10 to 11"),
        pytest.param(Metric(9, 1), Scale(10, 10, 10), 10, id="tolerance swallows 10 to 9"),
        pytest.param(Metric(12, 1), Scale(10, 10, 10), 12, id="10 to 12 is a step"),
        pytest.param(Metric(10, 1), Scale(9, 9, 9), 10, id="9 to 10 is a step"),
        pytest.param(Metric(8, 1), Scale(9, 9, 9), 8, id="9 to 8 is a step"),
        pytest.param(Metric(12, 1), Scale(12, 11, 11), 11, id="within tolerance: status replicas, below spec"),
        pytest.param(Metric(5, 1), Scale(1, 0, 0), 5, id="no status replicas: infinite ratio"),
        pytest.param(Metric(0, 1), Scale(1, 0, 0), 0, id="no status replicas and nothing to do"),
        pytest.param(Metric(20, 1), Scale(2, 2, 0), 20, id="average ignores readiness"),
        pytest.param(Metric(20, 5, VALUE), Scale(4, 4, 1), 4, id="Value multiplies by ready pods"),
        pytest.param(Metric(20, 5, VALUE), Scale(4, 4, 0), 0, id="Value with none ready asks for none"),
        pytest.param(Metric(20, 5, VALUE), Scale(8, 8, 1), 4, id="Value proposes fewer than requested while loading"),
        pytest.param(Metric(5.5, 5, VALUE), Scale(8, 8, 1), 8, id="Value within tolerance: spec replicas"),
        pytest.param(Metric(20, 5, VALUE), Scale(0, 0, 0), 4, id="Value at zero"),
        pytest.param(Metric(20, 5, VALUE), Scale(3, 0, 0), None, id="Value without any pod"),
        pytest.param(Metric(None, 5), Scale(3, 3, 3), None, id="failed read"),
        pytest.param(Metric(3, 0.0001), Scale(3, 3, 3), None, id="target that rounds to zero"),
    ],
)
def test_one_metric_asks_for(metric: Metric, scale: Scale, expected: int | None) -> None:
    assert metric_proposal(HpaSpec(), metric, scale) == expected


def test_the_value_type_grows_with_ready_pods_as_in_kedas_own_test() -> None:
    # value_metric_type: 8 replicas, ratio 1.25, all ready: 10.
    assert metric_proposal(HpaSpec(), Metric(2.5, 2, VALUE), Scale(8, 8, 8)) == 10


@pytest.mark.parametrize(
    ("up", "down", "value", "expected"),
    [
        pytest.param(0.0, None, 10.001, 11, id="no tolerance upwards"),
        pytest.param(0.0, None, 9, 10, id="upwards only: 10 to 9 still swallowed"),
        pytest.param(None, 0.0, 9, 9, id="no tolerance downwards"),
        pytest.param(None, 0.0, 11, 10, id="downwards only: 10 to 11 still swallowed"),
        pytest.param(0.5, 0.5, 15, 10, id="wide, bound included"),
        pytest.param(0.5, 0.5, 5, 10, id="wide, lower bound included"),
    ],
)
def test_tolerance_is_per_direction(up: float | None, down: float | None, value: float, expected: int) -> None:
    behavior = HpaBehavior(
        scale_up=replace(DEFAULT_SCALE_UP, tolerance=up), scale_down=replace(DEFAULT_SCALE_DOWN, tolerance=down)
    )
    assert metric_proposal(HpaSpec(behavior=behavior), Metric(value, 1), Scale(10, 10, 10)) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([3, 7], 7, id="the largest"),
        pytest.param([3, None], None, id="one missing, scale-in blocked"),
        pytest.param([9, None], 9, id="one missing, scale-out allowed"),
        pytest.param([5, None], 5, id="one missing, no change"),
        pytest.param([None, None], None, id="all missing"),
        pytest.param([], None, id="none"),
    ],
)
def test_several_metrics_combine(values: list[float | None], expected: int | None) -> None:
    assert combined_proposal(HpaSpec(), [Metric(value, 1) for value in values], Scale(5, 5, 5)) == expected


def test_a_burst_without_behavior_doubles_from_four() -> None:
    assert run_hpa(HpaSpec(max_replicas=100), [1000] * 6) == [4, 8, 16, 32, 64, 100]


def test_a_burst_with_defaulted_behavior_adds_four_then_doubles() -> None:
    assert run_hpa(HpaSpec(max_replicas=100, behavior=DEFAULTED), [1000] * 6) == [5, 10, 20, 40, 80, 100]


def test_a_burst_with_900_percent_takes_one_sync_a_decade() -> None:
    up = replace(DEFAULT_SCALE_UP, policies=(ScalingPolicy(Unit.PERCENT, 900, 15.0),))
    assert run_hpa(HpaSpec(behavior=HpaBehavior(scale_up=up)), [1000] * 2) == [10, 100]


def test_a_pods_policy_adds_at_most_its_pods_in_a_period() -> None:
    up = replace(DEFAULT_SCALE_UP, policies=(ScalingPolicy(Unit.PODS, 2, 60.0),))
    timeline = run_hpa(HpaSpec(behavior=HpaBehavior(scale_up=up)), [1000] * 6)
    assert timeline == [3, 3, 3, 3, 5, 5]


def test_select_min_takes_the_smallest_change() -> None:
    up = replace(DEFAULT_SCALE_UP, select=Select.MIN)
    assert run_hpa(HpaSpec(behavior=HpaBehavior(scale_up=up)), [1000] * 3, start=2) == [4, 8, 12]


@pytest.mark.parametrize(
    ("behavior", "value"),
    [
        (HpaBehavior(scale_up=replace(DEFAULT_SCALE_UP, select=Select.DISABLED)), 50.0),
        (HpaBehavior(scale_down=replace(DEFAULT_SCALE_DOWN, select=Select.DISABLED)), 1.0),
    ],
    ids=["up", "down"],
)
def test_a_disabled_direction_does_not_move(behavior: HpaBehavior, value: float) -> None:
    assert run_hpa(HpaSpec(behavior=behavior), [value] * 30, start=5) == [5] * 30


@pytest.mark.parametrize("behavior", [None, DEFAULTED], ids=["legacy", "defaulted behavior"])
def test_scale_in_waits_for_the_stabilisation_window(behavior: HpaBehavior | None) -> None:
    timeline = run_hpa(HpaSpec(behavior=behavior), [10.0] + [2.0] * 21, start=10)
    # The last recommendation of ten is of second 0; the sync at second 300 no longer sees it.
    assert timeline == [10] * 20 + [2, 2]


def test_a_scale_in_window_of_zero_scales_in_at_once() -> None:
    behavior = HpaBehavior(scale_down=replace(DEFAULT_SCALE_DOWN, stabilization_seconds=0.0))
    assert run_hpa(HpaSpec(behavior=behavior), [2.0], start=10) == [2]


def test_a_percent_policy_scales_in_by_steps_rounded_towards_fewer_replicas() -> None:
    down = ScalingRules(policies=(ScalingPolicy(Unit.PERCENT, 50, 60.0),), stabilization_seconds=0.0)
    spec = HpaSpec(behavior=HpaBehavior(scale_down=down))
    state = HpaState(recommendations=((-15.0, 1),))
    assert run_hpa(spec, [1.0] * 9, start=11, state=state) == [5, 5, 5, 5, 2, 2, 2, 2, 1]


def test_a_scale_up_window_takes_the_lowest_recommendation() -> None:
    up = replace(DEFAULT_SCALE_UP, stabilization_seconds=60.0)
    spec = HpaSpec(behavior=HpaBehavior(scale_up=up))
    assert run_hpa(spec, [5.0] * 6, start=1) == [1, 1, 1, 1, 5, 5]


def test_changes_by_keda_are_no_scale_events() -> None:
    # KEDA's 0 to 1 is not recorded, so the whole +4 is left at the first sync; then the HPA's own +4 counts.
    spec = HpaSpec(behavior=DEFAULTED)
    desired, state = hpa_sync(spec, HpaState(), [Metric(50, 1)], Scale(1, 1, 1), 0.0)
    assert desired == 5
    assert state.up_events == ((0.0, 4),)
    assert hpa_sync(spec, state, [Metric(50, 1)], Scale(5, 5, 5), 10.0)[0] == 5


@pytest.mark.parametrize(
    ("replicas", "expected"), [(0, 0), (1, 2), (30, 20)], ids=["disabled at zero", "below minimum", "above maximum"]
)
def test_bounds_come_before_the_metric(replicas: int, expected: int) -> None:
    spec = HpaSpec(min_replicas=2, max_replicas=20)
    assert hpa_sync(spec, HpaState(), [Metric(None, 1)], Scale(replicas, replicas, replicas), 0.0)[0] == expected


def test_an_unreadable_metric_changes_nothing() -> None:
    assert run_hpa(HpaSpec(), [None] * 30, start=7) == [7] * 30


behaviors = st.none() | st.builds(
    HpaBehavior,
    scale_up=st.builds(
        ScalingRules,
        policies=st.lists(
            st.builds(ScalingPolicy, st.sampled_from(Unit), st.integers(1, 900), st.sampled_from([15.0, 60.0])),
            min_size=1,
            max_size=3,
        ).map(tuple),
        stabilization_seconds=st.sampled_from([0.0, 30.0, 120.0]),
        select=st.sampled_from(Select),
    ),
    scale_down=st.builds(
        ScalingRules,
        policies=st.lists(
            st.builds(ScalingPolicy, st.sampled_from(Unit), st.integers(1, 100), st.sampled_from([15.0, 60.0])),
            min_size=1,
            max_size=3,
        ).map(tuple),
        stabilization_seconds=st.sampled_from([None, 0.0, 30.0, 600.0]),
        select=st.sampled_from(Select),
    ),
)


@given(
    behavior=behaviors,
    start=st.integers(0, 60),
    low=st.integers(1, 5),
    high=st.integers(5, 50),
    values=st.lists(st.none() | st.floats(0, 200), max_size=60),
)
def test_the_hpa_stays_within_bounds_once_it_is_there(
    behavior: HpaBehavior | None, start: int, low: int, high: int, values: list[float | None]
) -> None:
    timeline = run_hpa(HpaSpec(min_replicas=low, max_replicas=high, behavior=behavior), values, start=start)
    if start == 0:
        assert timeline == [0] * len(values)
    else:
        assert all(low <= replicas <= high for replicas in timeline)


@given(behavior=behaviors, values=st.lists(st.floats(0, 200), min_size=1, max_size=60), step=st.sampled_from([5, 15]))
def test_keeping_the_newest_of_equal_recommendations_changes_nothing(
    behavior: HpaBehavior | None, values: list[float], step: int
) -> None:
    """Against a model that keeps every recommendation, as the controller does."""
    spec = HpaSpec(behavior=behavior)
    replicas, state = 1, HpaState()
    history: list[tuple[float, int]] = []
    for index, value in enumerate(values):
        now_seconds, metrics, scale = float(index * step), [Metric(value, 1)], Scale(replicas, replicas, replicas)
        if not history:
            history.append((now_seconds, replicas))
        full = HpaState(tuple(history), state.up_events, state.down_events)
        expected, _ = hpa_sync(spec, full, metrics, scale, now_seconds)
        replicas, state = hpa_sync(spec, state, metrics, scale, now_seconds)
        assert replicas == expected
        assert len({pair[1] for pair in state.recommendations}) == len(state.recommendations)
        proposal = combined_proposal(spec, metrics, scale)
        assert proposal is not None
        history.append((now_seconds, proposal))


@given(current=st.integers(1, 9), desired=st.integers(1, 9))
def test_desired_replicas_over_target_one_are_exact_below_ten(current: int, desired: int) -> None:
    assert metric_proposal(HpaSpec(), Metric(desired, 1), Scale(current, current, current)) == desired


@given(current=st.integers(1, 500), value=st.floats(0, 1e6), more=st.floats(0, 1e6), target=st.floats(0.001, 1e3))
def test_a_larger_metric_never_asks_for_less(current: int, value: float, more: float, target: float) -> None:
    spec = HpaSpec(tolerance=0.0)
    scale = Scale(current, current, current)
    less = metric_proposal(spec, Metric(value, target), scale)
    greater = metric_proposal(spec, Metric(value + more, target), scale)
    assert less is not None
    assert greater is not None
    assert less <= greater


# --- KEDA -------------------------------------------------------------------------------------------------------

FRESH = KedaState(created_at_seconds=0.0)
SEEN = KedaState(created_at_seconds=0.0, last_active_at_seconds=1000.0)
FALLBACK = Fallback(failure_threshold=3, replicas=6)


@pytest.mark.parametrize(
    ("spec", "state", "active", "failed", "replicas", "now_seconds", "expected", "clock"),
    [
        pytest.param(KedaSpec(), SEEN, True, False, 0, 2000.0, 1, 2000.0, id="wakes to one"),
        pytest.param(KedaSpec(min_replicas=3), SEEN, True, False, 0, 2000.0, 3, 2000.0, id="wakes to the minimum"),
        pytest.param(KedaSpec(), SEEN, True, True, 0, 2000.0, 1, 2000.0, id="wakes though another trigger fails"),
        pytest.param(KedaSpec(), SEEN, True, False, 5, 2000.0, 5, 2000.0, id="active keeps the clock fresh"),
        pytest.param(KedaSpec(), SEEN, True, True, 5, 2000.0, 5, 1000.0, id="a failing trigger lets the clock age"),
        pytest.param(
            KedaSpec(min_replicas=4, idle_replicas=0), SEEN, True, False, 2, 2000.0, 4, 2000.0, id="idle to minimum"
        ),
        pytest.param(KedaSpec(), SEEN, False, False, 5, 1300.0, 5, 1000.0, id="cooldown not over at 300 s"),
        pytest.param(KedaSpec(), SEEN, False, False, 5, 1300.1, 0, 1000.0, id="cooldown over: to zero in one step"),
        pytest.param(KedaSpec(), SEEN, False, True, 5, 9999.0, 5, 1000.0, id="failed, no fallback: holds"),
        pytest.param(
            KedaSpec(fallback=FALLBACK), SEEN, False, True, 5, 9999.0, 5, 1000.0, id="failed with fallback: holds"
        ),
        pytest.param(
            KedaSpec(fallback=replace(FALLBACK, replicas=0)),
            SEEN, False, True, 5, 9999.0, 0, 1000.0, id="fallback of zero falls through to zero",
        ),
        pytest.param(KedaSpec(min_replicas=2), SEEN, False, False, 5, 9999.0, 5, 1000.0, id="minimum: left to the HPA"),
        pytest.param(KedaSpec(min_replicas=2), SEEN, False, False, 1, 1001.0, 2, 1000.0, id="raised to the minimum"),
        pytest.param(KedaSpec(min_replicas=2), SEEN, False, False, 0, 1001.0, 2, 1000.0, id="raised from zero"),
        pytest.param(
            KedaSpec(min_replicas=2, idle_replicas=0), SEEN, False, False, 5, 1300.1, 0, 1000.0, id="to idle"
        ),
        pytest.param(
            KedaSpec(min_replicas=2, idle_replicas=0), SEEN, False, False, 0, 9999.0, 0, 1000.0, id="stays idle"
        ),
        pytest.param(
            KedaSpec(min_replicas=5, idle_replicas=2), SEEN, False, False, 5, 9999.0, 2, 1000.0, id="idle of two"
        ),
        pytest.param(KedaSpec(), FRESH, False, False, 5, 0.1, 0, None, id="older than KEDA: zeroed at once"),
        pytest.param(
            KedaSpec(initial_cooldown_seconds=60), FRESH, False, False, 5, 60.0, 5, None, id="initial cooldown holds"
        ),
        pytest.param(
            KedaSpec(initial_cooldown_seconds=60), FRESH, False, False, 5, 60.1, 0, None, id="initial cooldown over"
        ),
        pytest.param(KedaSpec(), SEEN, False, False, 0, 9999.0, 0, 1000.0, id="stays at zero"),
    ],
)  # fmt: skip
def test_a_poll_decides(
    *,
    spec: KedaSpec,
    state: KedaState,
    active: bool,
    failed: bool,
    replicas: int,
    now_seconds: float,
    expected: int,
    clock: float | None,
) -> None:
    desired, after = keda_poll(spec, state, active=active, failed=failed, replicas=replicas, now_seconds=now_seconds)
    assert (desired, after.last_active_at_seconds) == (expected, clock)


def test_a_push_wakes_and_postpones_the_cooldown() -> None:
    replicas, state = keda_push(KedaSpec(), FRESH, replicas=0, now_seconds=50.0)
    assert replicas == 1
    replicas, state = keda_push(KedaSpec(), state, replicas=replicas, now_seconds=340.0)
    poll = keda_poll(KedaSpec(), state, active=False, failed=False, replicas=replicas, now_seconds=600.0)
    assert poll[0] == 1
    poll = keda_poll(KedaSpec(), state, active=False, failed=False, replicas=replicas, now_seconds=640.5)
    assert poll[0] == 0


@given(
    active=st.booleans(),
    failed=st.booleans(),
    replicas=st.integers(0, 50),
    minimum=st.integers(0, 5),
    now_seconds=st.floats(0, 1e6),
)
def test_keda_never_lowers_while_active_or_failing(
    active: bool, failed: bool, replicas: int, minimum: int, now_seconds: float
) -> None:
    spec = KedaSpec(min_replicas=minimum)
    desired, _ = keda_poll(spec, SEEN, active=active, failed=failed, replicas=replicas, now_seconds=now_seconds)
    if active or failed:
        assert desired >= replicas
    assert desired in {replicas, 0, max(minimum, 1)}


@pytest.mark.parametrize(
    ("behavior", "current", "expected"),
    [
        (FallbackBehavior.STATIC, 10, 6),
        (FallbackBehavior.STATIC, 2, 6),
        (FallbackBehavior.CURRENT, 10, 10),
        (FallbackBehavior.CURRENT_IF_HIGHER, 10, 10),
        (FallbackBehavior.CURRENT_IF_HIGHER, 2, 6),
        (FallbackBehavior.CURRENT_IF_LOWER, 10, 6),
        (FallbackBehavior.CURRENT_IF_LOWER, 2, 2),
    ],
)
def test_a_fallback_asks_for_its_replicas(behavior: FallbackBehavior, current: int, expected: int) -> None:
    fallback, scale = replace(FALLBACK, behavior=behavior), Scale(current, current, current)
    value = fallback_value(fallback, failures=4, target=2.5, metric_type=AVERAGE, scale=scale)
    assert value is not None
    assert value == 2.5 * expected
    assert metric_proposal(HpaSpec(), Metric(value, 2.5), scale) == expected


def test_a_fallback_waits_for_more_failures_than_its_threshold() -> None:
    scale = Scale(3, 3, 3)
    assert fallback_value(FALLBACK, failures=3, target=1, metric_type=AVERAGE, scale=scale) is None
    assert fallback_value(FALLBACK, failures=4, target=1, metric_type=AVERAGE, scale=scale) == 6
    assert fallback_value(None, failures=99, target=1, metric_type=AVERAGE, scale=scale) is None


def test_a_fallback_of_type_value_needs_a_ready_pod() -> None:
    assert fallback_value(FALLBACK, failures=4, target=2, metric_type=VALUE, scale=Scale(4, 4, 3)) == 4
    assert fallback_value(FALLBACK, failures=4, target=2, metric_type=VALUE, scale=Scale(4, 4, 0)) is None


@pytest.mark.parametrize(
    ("spec", "queue", "running", "pending", "expected"),
    [
        pytest.param(JobSpec(), 3, 0, 0, 3, id="e2e: three jobs"),
        pytest.param(JobSpec(), 3, 3, 3, 0, id="default counts the running"),
        pytest.param(JobSpec(), 5, 3, 0, 2, id="default fills up"),
        pytest.param(JobSpec(max_replicas=4), 50, 1, 0, 3, id="default within the maximum"),
        pytest.param(JobSpec(), 2, 5, 0, 0, id="never negative"),
        pytest.param(JobSpec(min_replicas=2), 0, 0, 0, 2, id="minimum without a queue"),
        pytest.param(JobSpec(min_replicas=2), 3, 2, 0, 3, id="minimum is not counted as running"),
        pytest.param(
            JobSpec(strategy=JobStrategy.CUSTOM, custom_queue_length_deduction=1, custom_running_job_share=0.5),
            10, 5, 0, 7, id="custom",
        ),
        pytest.param(JobSpec(strategy=JobStrategy.ACCURATE), 5, 10, 2, 3, id="accurate leaves out the pending"),
        pytest.param(
            JobSpec(strategy=JobStrategy.ACCURATE, max_replicas=12), 5, 10, 2, 2, id="accurate at the maximum"
        ),
        pytest.param(JobSpec(strategy=JobStrategy.EAGER, max_replicas=10), 6, 3, 0, 6, id="eager"),
        pytest.param(JobSpec(strategy=JobStrategy.EAGER, max_replicas=10), 6, 6, 1, 3, id="eager at the maximum"),
    ],
)  # fmt: skip
def test_a_scaled_job_creates(spec: JobSpec, queue: float, running: int, pending: int, expected: int) -> None:
    trigger = JobTrigger(active=queue > 0, queue_length=queue, target=1.0)
    assert jobs_to_create(spec, [trigger], running=running, pending=pending) == expected


@pytest.mark.parametrize(
    ("calculation", "expected"),
    [(JobCalculation.MAX, 9), (JobCalculation.MIN, 2), (JobCalculation.AVG, 6), (JobCalculation.SUM, 11)],
)
def test_several_job_triggers_combine_over_the_active(calculation: JobCalculation, expected: int) -> None:
    triggers = [JobTrigger(True, 9, 1.0), JobTrigger(True, 2, 1.0), JobTrigger(False, 50, 1.0)]
    assert jobs_to_create(JobSpec(calculation=calculation), triggers, running=0, pending=0) == expected


def test_a_job_trigger_of_type_value_creates_nothing() -> None:
    trigger = JobTrigger(active=True, queue_length=9, target=None)
    assert jobs_to_create(JobSpec(), [trigger], running=0, pending=0) == 0
