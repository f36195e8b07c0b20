"""How long idle replicas are kept, from the gaps of their levels."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.core.holds import BINS, GROUPS, NOTHING_HELD, TRUSTED, in_use, timeouts_of

NEVER = (0.0,) * BINS
COST = (600.0,) * GROUPS


def gaps(**counts: dict[int, float]) -> tuple[tuple[float, ...], ...]:
    """Histories by group (`g1={bin: count}`); a bin holds gaps up to 5 s, 10 s, 20 s, ..."""
    return tuple(tuple(counts.get(f"g{group}", {}).get(index, 0.0) for index in range(BINS)) for group in range(GROUPS))


def test_before_any_gap_each_is_kept_for_the_break_even() -> None:
    assert timeouts_of(gaps(), COST, highest=0) == COST
    assert timeouts_of(gaps(), COST, highest=128) == COST


def test_a_group_alone_is_kept_for_the_cheapest_time_over_its_gaps_near_the_break_even() -> None:
    """100 gaps of up to 80 s (bin 4), none longer: 80 s, and two gaps' weight of 600 s."""
    first, second, *_ = timeouts_of(gaps(g0={4: 100.0}, g1={4: 100.0}), COST, highest=2)
    assert first == second == pytest.approx((TRUSTED * 600.0 + 100 * 80.0) / (TRUSTED + 100))


def test_gaps_that_are_never_worth_keeping_let_go_at_once_but_for_the_first_guess() -> None:
    (first, *_) = timeouts_of(gaps(g0={12: 98.0}), COST, highest=1)
    assert first == pytest.approx(TRUSTED * 600.0 / 100)


def test_what_was_in_use_once_does_not_keep_all_below_it() -> None:
    """A flash crowd used 33 replicas once; those below have learned to go after 80 s, and go soon."""
    low = gaps(g1={4: 100.0}, g2={4: 100.0}, g3={4: 100.0}, g4={4: 100.0}, g5={4: 100.0})
    alone = timeouts_of(low, COST, highest=32)
    after = timeouts_of(low, COST, highest=33)
    assert alone[5] == pytest.approx(90.2, abs=0.1)
    assert after[6] <= after[5] < 1.1 * alone[5]


def test_what_is_worth_keeping_for_the_most_is_kept_by_the_few_below_them_too() -> None:
    """Sixteen come back every 5 minutes, which is worth keeping; the second one, used in between, is kept with them.

    By itself it would go after 40 s: it is needed for the sixteen all the same.
    """
    cost = (250.0,) * GROUPS
    rows = gaps(g1={3: 20.0, 6: 100.0, 8: 60.0}, g2={6: 100.0}, g3={6: 100.0}, g4={6: 100.0})
    second = timeouts_of(rows, cost, highest=2)[1]
    together = timeouts_of(rows, cost, highest=16)
    assert second < 200.0 < together[1]
    assert together[1] == together[2] == together[3] == together[4]


@given(
    rows=st.lists(
        st.lists(st.floats(0.0, 200.0), min_size=BINS, max_size=BINS).map(tuple), min_size=GROUPS, max_size=GROUPS
    ).map(tuple),
    costs=st.lists(st.floats(0.0, 1e5), min_size=GROUPS, max_size=GROUPS).map(tuple),
    highest=st.integers(0, 500),
)
def test_none_but_the_last_is_kept_for_longer_than_those_below(
    rows: tuple[tuple[float, ...], ...], costs: tuple[float, ...], highest: int
) -> None:
    times = timeouts_of(rows, costs, highest=highest)
    assert len(times) == GROUPS
    assert all(seconds >= 0.0 for seconds in times)
    assert all(lower >= higher for lower, higher in pairwise(times[1:]))
    # Whether to go to zero is asked by itself.
    assert times[0] == timeouts_of((rows[0],) * GROUPS, (costs[0],) * GROUPS, highest=1)[0]


def test_a_level_that_was_never_in_use_before_is_weighed_at_once() -> None:
    known = NOTHING_HELD
    for moment in range(200):  # two replicas, every minute
        known = in_use(known, 2, letting_go=COST, shortest_seconds=5.0, now_seconds=60.0 * moment)
    before = known.timeouts_seconds
    known = in_use(known, 3, letting_go=COST, shortest_seconds=5.0, now_seconds=60.0 * 199 + 1.0)
    assert known.timeouts_seconds == timeouts_of(known.gaps, COST, highest=3)
    assert known.timeouts_seconds[1] > before[1]
