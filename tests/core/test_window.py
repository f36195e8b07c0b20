import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.core.window import NOTHING, Peak

GAPS = st.lists(st.floats(0.1, 40), min_size=1, max_size=60)


def test_the_mean_of_one_value_is_that_value() -> None:
    assert NOTHING.fed(7.0, 100.0, 60.0).value == 7.0


def test_before_tau_has_passed_what_was_seen_counts_by_its_time() -> None:
    mean = NOTHING.fed(0.0, 0.0, 1e6).fed(4.0, 10.0, 1e6).fed(0.0, 20.0, 1e6)
    assert mean.value == pytest.approx(2.0, rel=1e-3)


@given(GAPS, st.floats(1, 300))
def test_a_constant_is_its_own_mean_at_any_intervals(gaps: list[float], tau: float) -> None:
    mean, now = NOTHING.fed(3.0, 0.0, tau), 0.0
    for gap in gaps:
        now += gap
        mean = mean.fed(3.0, now, tau)
    assert mean.value == pytest.approx(3.0)
    assert 0 <= mean.weight <= 1


def test_a_clock_that_steps_back_changes_nothing() -> None:
    mean = NOTHING.fed(1.0, 100.0, 60.0).fed(2.0, 110.0, 60.0)
    stepped = mean.fed(1000.0, 50.0, 60.0)
    assert (stepped.value, stepped.weight) == (mean.value, mean.weight)
    assert stepped.fed(3.0, 60.0, 60.0).value == mean.fed(3.0, 120.0, 60.0).value  # and time goes on from there


@given(st.lists(st.tuples(st.floats(0.1, 30), st.floats(0, 100)), min_size=1, max_size=100))
def test_a_peak_never_forgets_early_and_stays_small(feeds: list[tuple[float, float]]) -> None:
    peak, now, seen = Peak(), 0.0, []
    for gap, value in feeds:
        now += gap
        seen.append((now, value))
        peak = peak.fed(value, now, 60.0)
        exact = max(v for at, v in seen if at >= now - 60.0)
        late = max(v for at, v in seen if at >= now - 60.0 * (1 + 1 / 16) - 30)
        found = peak.over(now, 60.0)
        assert found is not None
        assert exact <= found <= late
        assert len(peak.entries) <= 40
