"""What a standing queue tells of arrivals and service times where nobody counts either."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.core.flows import Flow


def grown(
    looks: list[tuple[float, float]],
    *,
    guess_seconds: float,
    flow: Flow,
    usual_rate: float,
    elapsed_seconds: float = 5.0,
    weight: float = 1.0,
) -> tuple[Flow, float, float, float]:
    """(flow, arrivals, completions, learned service seconds) after looks of (change, busy slots)."""
    pace, arrived, done = 1.0 / guess_seconds, 0.0, 0.0
    for change, busy in looks:
        flow, arrivals, pace, weight = flow.fed(
            change,
            busy=busy,
            pace=pace,
            weight=weight,
            usual_rate=usual_rate,
            dispersion=1.0,
            elapsed_seconds=elapsed_seconds,
            tau_seconds=60.0,
        )
        arrived += arrivals
        done += arrivals - change
    return flow, arrived, done, 1.0 / pace


def known_rate(rate: float, seen_seconds: float) -> Flow:
    return Flow(rate, rate / seen_seconds)


@pytest.mark.parametrize(
    ("service_seconds", "guess_seconds"), [(10.0, 5.0), (10.0, 20.0), (120.0, 5.0), (120.0, 20.0), (120.0, 300.0)]
)
def test_slots_that_are_added_tell_how_long_a_service_takes(guess_seconds: float, service_seconds: float) -> None:
    """1.6 arrive a second; every minute 8 slots more work, and the queue grows by so much less."""
    chance = random.Random(1)
    looks = []
    for look in range(200):
        busy = min(8.0 * (1 + look // 12), 0.9 * 1.6 * service_seconds)
        change = sum(chance.random() < 0.016 for _ in range(500))
        change -= sum(chance.random() < busy * 5.0 / service_seconds / 500 for _ in range(500))
        looks.append((float(change), busy))
    flow, arrived, _, learned_seconds = grown(
        looks, guess_seconds=guess_seconds, flow=known_rate(1.6, 300.0), usual_rate=1.6
    )
    assert learned_seconds == pytest.approx(service_seconds, rel=0.35)
    assert flow.rate == pytest.approx(1.6, rel=0.35)
    assert arrived == pytest.approx(1.6 * 1_000.0, rel=0.3)


def test_even_traffic_is_not_taken_for_little_traffic() -> None:
    """As many come as are completed, look by look: by the variance of the changes nothing would happen at all."""
    _, arrived, _, learned_seconds = grown(
        [(0.0, 16.0)] * 10_000, guess_seconds=10.0, weight=100.0, flow=known_rate(1.6, 600.0), usual_rate=1.6
    )
    assert learned_seconds == pytest.approx(10.0, rel=0.05)
    assert arrived == pytest.approx(1.6 * 50_000.0, rel=0.05)


def test_a_queue_that_only_falls_tells_that_nothing_arrives_any_more() -> None:
    """A burst of 1 a second is over; 10 slots work through what is left, 1 a second."""
    looks = [(-5.0, 10.0)] * 20
    flow, arrived, done, learned_seconds = grown(
        looks, guess_seconds=10.0, weight=100.0, flow=known_rate(1.0, 60.0), usual_rate=0.05
    )
    assert learned_seconds == pytest.approx(10.0, rel=0.1)
    assert arrived < 0.15 * done
    assert flow.rate < 0.1


@pytest.mark.parametrize("guess_seconds", [8.3, 10.0, 14.0])
def test_the_end_of_a_burst_does_not_hide_how_long_services_take(guess_seconds: float) -> None:
    """What falls more slowly than was expected is a longer service, not a few that still arrive: usually none do."""
    looks = [(5.0, 0.0)] * 12 + [(-0.5 * busy, float(busy)) for busy in (1, 2, 3, 4, 5, 6) for _ in range(4)]
    for _ in range(4):  # bursts
        flow, arrived, _, guess_seconds = grown(
            looks, guess_seconds=guess_seconds, weight=100.0, flow=known_rate(0.05, 60.0), usual_rate=0.0
        )
    assert guess_seconds == pytest.approx(10.0, rel=0.12)
    assert arrived < 1.12 * 60.0
    assert flow.rate < 0.1


@pytest.mark.parametrize("change", [-60.0, -5.0, 0.0, 5.0, 60.0])
def test_a_service_time_that_is_believed_is_not_learned(change: float) -> None:
    flow, arrived, done, service_seconds = grown(
        [(change, 10.0)] * 20, guess_seconds=10.0, weight=math.inf, flow=known_rate(1.0, 60.0), usual_rate=0.0
    )
    assert service_seconds == pytest.approx(10.0, rel=1e-12)
    assert arrived - done == pytest.approx(20.0 * change)
    assert flow.covariance == 0.0


@pytest.mark.parametrize("usual_rate", [0.0, 0.5, 1.0])
def test_more_than_usual_that_lasts_for_hours_is_not_taken_for_ever_longer_services(usual_rate: float) -> None:
    """2 arrive a second, 16 slots complete 1.6; an expectation that fades as fast all the time finds 1,000 s."""
    flow, _, _, learned_seconds = grown(
        [(2.0, 16.0)] * 3_000, guess_seconds=10.0, weight=100.0, flow=known_rate(2.0, 60.0), usual_rate=usual_rate
    )
    assert 8.0 < learned_seconds < 20.0
    assert flow.rate > 1.0


def test_no_more_can_be_completed_than_arrives_and_goes_and_it_tells_too_long_a_guess() -> None:
    """10 slots complete 1 a second: a service takes 10 s at most, whatever arrives."""
    _, _, _, learned_seconds = grown(
        [(-5.0, 10.0)] * 40, guess_seconds=100.0, flow=known_rate(0.0, 600.0), usual_rate=0.0
    )
    assert learned_seconds < 13.0


@pytest.mark.parametrize("change", [0.0, 1.0, 7.0])
def test_while_nothing_works_all_of_the_growth_arrived(change: float) -> None:
    """Else a completion that never was would be taken for a cold start that is over."""
    flow, arrivals, pace, _ = known_rate(0.03, 600.0).fed(
        change,
        busy=0.0,
        pace=0.1,
        weight=3.0,
        usual_rate=0.03,
        dispersion=1.0,
        elapsed_seconds=5.0,
        tau_seconds=60.0,
    )
    assert arrivals == change
    assert pace == pytest.approx(0.1)
    assert flow.rate >= 0


@given(
    looks=st.lists(
        st.tuples(st.floats(-1e6, 1e6), st.floats(0.0, 1e4), st.floats(1e-3, 600.0)), min_size=1, max_size=40
    ),
    pace=st.floats(1e-5, 1e3),
    weight=st.floats(1.0, 3_000.0),
    dispersion=st.floats(0.5, 100.0),
)
def test_whatever_is_read_it_stays_a_number(
    looks: list[tuple[float, float, float]], pace: float, weight: float, dispersion: float
) -> None:
    flow = Flow()
    for change, busy, elapsed_seconds in looks:
        flow, arrivals, pace, weight = flow.fed(
            change,
            busy=busy,
            pace=pace,
            weight=weight,
            usual_rate=0.5,
            dispersion=dispersion,
            elapsed_seconds=elapsed_seconds,
            tau_seconds=60.0,
        )
        assert arrivals >= max(change, 0.0)
        assert all(math.isfinite(value) for value in (arrivals, pace, weight, flow.rate, flow.rate_variance))
        assert pace > 0
        assert weight > 0
        assert flow.rate >= 0


@given(
    busy=st.floats(0.0, 100.0),
    pace=st.floats(1e-3, 10.0),
    rate=st.floats(0.0, 10.0),
    change=st.integers(-50, 50),
    more=st.integers(1, 50),
)
def test_a_longer_queue_never_tells_of_fewer_arrivals(
    busy: float, pace: float, rate: float, change: int, more: int
) -> None:
    def arrivals(change: float) -> float:
        return known_rate(rate, 60.0).fed(
            change,
            busy=busy,
            pace=pace,
            weight=10.0,
            usual_rate=rate,
            dispersion=1.0,
            elapsed_seconds=5.0,
            tau_seconds=60.0,
        )[1]

    assert arrivals(float(change + more)) >= arrivals(float(change)) - 1e-6
