"""Counters and standstill between reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.sources.kafka.history import Track, advance


def test_arrivals_and_completions_are_what_the_offsets_moved_by() -> None:
    track = Track(end=100, committed=40, arrived=100, completed=40)
    advance(track, 110, 45, None, 1.0)
    assert (track.arrived, track.completed) == (110, 45)


@pytest.mark.parametrize(
    ("end", "committed", "arrived", "completed"),
    [
        pytest.param(5, None, 100, 40, id="topic created anew"),
        pytest.param(100, 10, 100, 40, id="offset set back"),
        pytest.param(100, None, 100, 40, id="offset expired"),
    ],
)
def test_what_falls_back_counts_as_nothing(end: int, committed: int | None, arrived: int, completed: int) -> None:
    track = Track(end=100, committed=40, arrived=100, completed=40)
    advance(track, end, committed, None, 1.0)
    assert (track.arrived, track.completed) == (arrived, completed)
    advance(track, end + 3, committed, None, 1.0)
    assert track.arrived == arrived + 3


def test_a_first_commit_counts_from_where_the_group_begins() -> None:
    earliest = Track(end=100, committed=None, arrived=100, completed=0)
    advance(earliest, 100, 30, 20, 1.0)
    assert earliest.completed == 10
    latest = Track(end=100, committed=None, arrived=100, completed=0)
    advance(latest, 100, 98, None, 1.0)  # it began somewhere near the end, nobody knows where
    assert latest.completed == 0


def test_an_offset_stands_still_only_while_there_is_lag() -> None:
    track = Track(end=100, committed=40, arrived=100, completed=40)
    for _ in range(5):
        advance(track, 100, 40, None, 2.0)
    assert track.still_seconds == 10.0
    advance(track, 100, 41, None, 2.0)
    assert track.still_seconds == 0.0
    advance(track, 100, 100, None, 2.0)
    advance(track, 100, 100, None, 500.0)
    assert track.still_seconds == 0.0


def test_a_time_without_reads_is_no_proof_of_standing_still() -> None:
    """While nobody could read, the consumers may have been cut off as well."""
    track = Track(end=100, committed=40, arrived=100, completed=40)
    advance(track, 100, 40, None, 3_600.0)
    assert track.still_seconds == 30.0


@given(st.lists(st.tuples(st.integers(0, 10**6), st.none() | st.integers(0, 10**6), st.floats(0, 100)), max_size=50))
def test_counters_never_fall(reads: list[tuple[int, int | None, float]]) -> None:
    track = Track(end=0, committed=None, arrived=0, completed=0)
    for end, committed, gap_seconds in reads:
        before = (track.arrived, track.completed)
        advance(track, end, committed, None, gap_seconds)
        assert track.arrived >= before[0]
        assert track.completed >= before[1]
        assert track.still_seconds >= 0.0


@given(st.integers(1, 50), st.floats(0.01, 20))
def test_how_often_it_is_read_does_not_matter(reads: int, period_seconds: float) -> None:
    often, once = (Track(end=10, committed=1, arrived=10, completed=1) for _ in range(2))
    for _ in range(reads):
        advance(often, 10, 1, None, period_seconds / reads)
    advance(once, 10, 1, None, period_seconds)
    assert often.still_seconds == pytest.approx(once.still_seconds)
