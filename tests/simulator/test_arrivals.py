"""Arrival patterns: seeded, in order, with the rates they promise."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.simulator.arrivals import (
    DAY_SECONDS,
    HOUR_SECONDS,
    PATTERNS,
    Arrival,
    Bursts,
    Diurnal,
    FlashCrowd,
    Pattern,
    Poisson,
    Service,
    SparseDocuments,
    Steady,
    generate,
    in_order,
    parse_pattern,
    replay,
)


def times(pattern: Pattern, duration_seconds: float, seed: int = 1) -> list[float]:
    return list(pattern.times(random.Random(seed), duration_seconds))


@given(name=st.sampled_from(sorted(PATTERNS)), seed=st.integers(0, 1000), duration_seconds=st.floats(0, 3000))
def test_every_pattern_is_seeded_in_order_and_inside_its_duration(
    name: str, seed: int, duration_seconds: float
) -> None:
    pattern = parse_pattern(name)
    load = list(generate(pattern, Service(), random.Random(seed), duration_seconds))
    assert in_order(load)
    assert all(0 <= arrival.at_seconds < duration_seconds and arrival.service_seconds > 0 for arrival in load)
    assert load == list(generate(pattern, Service(), random.Random(seed), duration_seconds))


def test_steady_is_evenly_spaced() -> None:
    assert times(Steady(rate_per_second=2), 2) == [0, 0.5, 1, 1.5]


def test_poisson_keeps_its_rate_and_its_dispersion() -> None:
    counts = [0] * 1000
    for at_seconds in times(Poisson(rate_per_second=5), 1000):
        counts[int(at_seconds)] += 1
    assert statistics.mean(counts) == pytest.approx(5, rel=0.05)
    assert statistics.variance(counts) == pytest.approx(5, rel=0.15)


def test_a_day_peaks_at_its_hour_and_weekends_are_quieter() -> None:
    pattern = Diurnal(mean_rate_per_second=0.1, peak_hour=14, swing=0.8, weekend_share=0.5)
    hours, days = [0] * 24, [0] * 7
    for at_seconds in times(pattern, 28 * DAY_SECONDS):
        hours[int(at_seconds // HOUR_SECONDS) % 24] += 1
        days[int(at_seconds // DAY_SECONDS) % 7] += 1
    assert sum(hours[12:16]) > 5 * sum(hours[0:4])
    assert sum(days[5:]) / 2 == pytest.approx(0.5 * sum(days[:5]) / 5, rel=0.1)
    assert sum(days[:5]) == pytest.approx(0.1 * 20 * DAY_SECONDS, rel=0.02)


def test_bursts_come_when_they_should_and_nothing_between() -> None:
    pattern = Bursts(burst_rate_per_second=10, burst_seconds=5, every_seconds=60, first_seconds=20)
    found = times(pattern, 200)
    assert all(20 <= at_seconds % 60 < 25 for at_seconds in found)
    assert len(found) == pytest.approx(4 * 50 - 50, rel=0.3)


def test_irregular_bursts_keep_their_mean_gap() -> None:
    pattern = Bursts(burst_rate_per_second=5, burst_seconds=5, every_seconds=600, irregularity=1)
    found = times(pattern, 2000 * 600)
    starts = 1 + sum(1 for before, after in itertools.pairwise(found) if after - before > 10)
    assert starts == pytest.approx(2000, rel=0.1)


def test_a_flash_crowd_climbs_and_dies_away() -> None:
    found = times(FlashCrowd(base_rate_per_second=0.1, peak_rate_per_second=10), 3600)
    in_second = [sum(1 for at in found if start <= at < start + 60) for start in (300, 630, 1800)]
    assert in_second[1] > 20 * max(in_second[0], 1)
    assert in_second[2] < in_second[1] / 5


def test_documents_are_as_many_each_day_in_working_hours() -> None:
    found = times(SparseDocuments(), 3 * DAY_SECONDS)
    assert [sum(1 for at in found if at // DAY_SECONDS == day) for day in range(3)] == [17, 17, 17]
    assert all(8 <= at % DAY_SECONDS / HOUR_SECONDS < 18 for at in found)


def test_service_times_keep_mean_and_variation() -> None:
    chance = random.Random(3)
    drawn = [Service(mean_seconds=20, variation=0.7).draw(chance) for _ in range(20_000)]
    assert statistics.mean(drawn) == pytest.approx(20, rel=0.03)
    assert statistics.stdev(drawn) / statistics.mean(drawn) == pytest.approx(0.7, rel=0.08)
    assert Service(mean_seconds=2, variation=0).draw(chance) == 2


TRACE = [Arrival(0, 1), Arrival(10, 2), Arrival(10, 3), Arrival(40, 4)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param({}, TRACE, id="as it is"),
        pytest.param({"speed": 10}, [(0, 1), (1, 2), (1, 3), (4, 4)], id="denser"),
        pytest.param(
            {"speed": 10, "service_too": True}, [(0, 0.1), (1, 0.2), (1, 0.3), (4, 0.4)], id="time compressed"
        ),
        pytest.param({"from_seconds": 10, "duration_seconds": 30}, [(0, 2), (0, 3)], id="a part"),
        pytest.param({"from_seconds": 50}, [], id="past the end"),
    ],
)
def test_a_trace_is_replayed(arguments: dict[str, float], expected: list[Arrival]) -> None:
    assert list(replay(TRACE, **arguments)) == expected  # type: ignore[arg-type]  # a table of mixed settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("burst", 'pattern "burst" is unknown; there are: bursts, diurnal'),
        ("poisson:rate=3", 'setting "rate" is unknown; there are: rate_per_second'),
        ("poisson:rate_per_second=-1", 'rate_per_second is "-1"; it must be a number from 0 up'),
        ("poisson:rate_per_second=inf", "it must be a number from 0 up"),
        ("poisson:rate_per_second", 'rate_per_second is ""; it must be a number'),
    ],
)
def test_a_wrong_pattern_says_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"pattern") as error:
        parse_pattern(text)
    assert message in str(error.value)


def test_a_pattern_takes_its_settings_from_text() -> None:
    assert parse_pattern("bursts: every_seconds=60, burst_seconds=5") == Bursts(every_seconds=60, burst_seconds=5)
