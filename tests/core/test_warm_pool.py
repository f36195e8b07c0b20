"""The newsvendor's warm pool: the quantile against its definition, the size against common sense."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.core.estimate import Estimates
from scaler.core.hours import HOURS, Hours
from scaler.core.model import Goals
from scaler.core.warm_pool import WarmHint, demand_quantile, warm_hint
from scaler.core.window import Smoothed

GOALS = Goals(target_value=1.0, wait_seconds=10.0, attainment=0.95, service_seconds=5.0, cold_start_seconds=60.0)


def known(rate_per_second: float, **fields: float | Hours) -> Estimates:
    smoothed = Smoothed(rate_per_second, 1.0, 0.0)
    return Estimates(short=smoothed, long=smoothed, **fields)  # type: ignore[arg-type]  # fields of several types


@pytest.mark.parametrize(
    ("expected", "quantile", "count"),
    [(0.0, 0.99, 0), (0.01, 0.98, 0), (0.01, 0.995, 1), (1.0, 0.5, 1), (3.0, 0.95, 6), (10.0, 0.99, 18)],
)
def test_poisson_quantiles_are_those_of_the_tables(expected: float, quantile: float, count: int) -> None:
    assert demand_quantile(expected, 1.0, quantile) == count


@given(
    expected=st.floats(0.01, 200.0),
    dispersion=st.floats(1.0, 20.0),
    quantile=st.floats(0.05, 0.999),
)
def test_the_quantile_is_the_smallest_count_that_is_likely_enough(
    expected: float, dispersion: float, quantile: float
) -> None:
    count = int(demand_quantile(expected, dispersion, quantile))
    assert _at_most(count, expected, dispersion) >= quantile - 1e-6
    assert count == 0 or _at_most(count - 1, expected, dispersion) < quantile + 1e-6


def _at_most(count: int, expected: float, dispersion: float) -> float:
    """P(demand <= count) from the closed forms, by logarithms: written apart from what it checks."""
    total = 0.0
    for k in range(count + 1):
        if dispersion <= 1.0 + 1e-6:
            logarithm = -expected + k * math.log(expected) - math.lgamma(k + 1)
        else:
            size = expected / (dispersion - 1.0)
            logarithm = (
                math.lgamma(k + size)
                - math.lgamma(size)
                - math.lgamma(k + 1)
                - size * math.log(dispersion)
                + k * math.log(1.0 - 1.0 / dispersion)
            )
        total += math.exp(logarithm)
    return total


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("dispersion", [1.0, 3.0, 20.0, 100.0])
def test_more_demand_never_has_a_smaller_quantile_however_it_is_worked_out(dispersion: float, quantile: float) -> None:
    counts = [demand_quantile(expected, dispersion, quantile) for expected in range(280, 320)]
    assert counts == sorted(counts)


def test_large_demand_has_nearly_the_quantile_of_its_distribution() -> None:
    count = demand_quantile(1_000.0, 20.0, 0.99)
    assert _at_most(int(1.03 * count), 1_000.0, 20.0) >= 0.99
    assert _at_most(int(0.97 * count), 1_000.0, 20.0) < 0.99


def test_nothing_known_keeps_nothing_warm() -> None:
    assert warm_hint(Estimates(), GOALS, ready=0, now_seconds=0.0).replicas == 0


def test_where_arrivals_are_too_rare_to_pay_nothing_is_kept_warm() -> None:
    hint = warm_hint(known(1 / 86_400), GOALS, ready=0, now_seconds=0.0)
    assert hint.replicas == 0
    assert hint.expected_demand == pytest.approx(hint.lead_time_seconds / 86_400)


def test_steady_arrivals_keep_a_replica_warm_and_ready_ones_make_it_needless() -> None:
    assert warm_hint(known(0.2), GOALS, ready=0, now_seconds=0.0).replicas >= 1
    assert warm_hint(known(0.2), GOALS, ready=10, now_seconds=0.0).replicas == 0


def test_a_rate_that_was_seen_for_seconds_only_is_worth_as_much() -> None:
    """40 requests in the first 2 s are 20 a second; nobody knows that they go on for a cold start."""
    first = Smoothed(20.0, 1.0 - math.exp(-2.0 / 60.0), 0.0)
    hint = warm_hint(Estimates(short=first, long=first), GOALS, ready=0, now_seconds=0.0)
    assert hint.expected_demand == pytest.approx(20.0 * first.weight * hint.lead_time_seconds)
    assert hint.expected_demand < 60.0


def test_the_usual_hour_ahead_is_prepared_for() -> None:
    quiet, busy = (0.0, 3.0), (1.0, 3.0)
    profile = tuple(busy if hour == 9 else quiet for hour in range(HOURS))
    nine = 9 * 3600.0
    assert warm_hint(known(0.0, hours=Hours(profile=profile)), GOALS, ready=0, now_seconds=nine - 1800).replicas == 0
    assert warm_hint(known(0.0, hours=Hours(profile=profile)), GOALS, ready=0, now_seconds=nine - 30).replicas >= 1
    hint = warm_hint(known(0.0, hours=Hours(profile=profile)), GOALS, ready=0, now_seconds=nine + 600)
    assert hint.replicas >= 1
    assert hint.valid_seconds == pytest.approx(3000.0 - hint.lead_time_seconds)  # then ten is one lead time ahead


@pytest.mark.parametrize("before_nine_seconds", [1800.0, 400.0, 90.0, 70.0, 61.0, 30.0, 0.5])
def test_a_hint_is_valid_no_longer_than_until_the_hour_ahead_makes_it_another(before_nine_seconds: float) -> None:
    quiet, busy = (0.0, 3.0), (1.0, 3.0)
    hours = Hours(profile=tuple(busy if hour == 9 else quiet for hour in range(HOURS)))
    now_seconds = 9 * 3600.0 - before_nine_seconds

    def hint_in(seconds: float) -> WarmHint:
        return warm_hint(known(0.0, hours=hours), GOALS, ready=0, now_seconds=now_seconds + seconds)

    hint = hint_in(0.0)
    assert hint.valid_seconds >= 1.0
    assert hint_in(max(hint.valid_seconds - 1.0, 0.0)).replicas == hint.replicas


@given(rate=st.floats(0.0, 50.0), ready=st.integers(0, 50), more=st.integers(1, 20))
def test_more_ready_replicas_never_ask_for_a_larger_pool(rate: float, ready: int, more: int) -> None:
    few = warm_hint(known(rate), GOALS, ready=ready, now_seconds=0.0)
    many = warm_hint(known(rate), GOALS, ready=ready + more, now_seconds=0.0)
    assert many.replicas <= few.replicas
    assert 0 <= few.replicas <= GOALS.max_replicas - min(ready, GOALS.max_replicas)


@given(rate=st.floats(0.0, 5.0), factor=st.floats(1.0, 10.0))
def test_a_higher_rate_never_asks_for_a_smaller_pool(rate: float, factor: float) -> None:
    low = warm_hint(known(rate), GOALS, ready=1, now_seconds=0.0)
    high = warm_hint(known(rate * factor), GOALS, ready=1, now_seconds=0.0)
    assert low.replicas <= high.replicas


def test_the_reason_names_its_numbers() -> None:
    hint = warm_hint(known(0.2), GOALS, ready=0, now_seconds=0.0)
    assert f"{hint.lead_time_seconds:.0f} s" in hint.reason
    assert hint.quantile == pytest.approx(95.0 / (hint.lead_time_seconds + 95.0))
