"""What is done and not committed, told from how a consumer commits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.sources.kafka.history import Track, advance
from scaler.sources.kafka.lumps import Lumps


def consumed(every_seconds: int, messages: int, *, seconds: int, backlog: int = 10_000) -> Track:
    """Looked at each second, of a consumer that commits so many each so many seconds."""
    track = Track(end=backlog, committed=0, arrived=backlog, completed=0)
    for second in range(1, seconds + 1):
        advance(track, backlog, second // every_seconds * messages, None, 1.0)
    return track


@pytest.mark.parametrize(
    ("every_seconds", "messages", "since_seconds", "done_messages", "done_most"),
    [
        pytest.param(10, 20, 0, 0.0, 19, id="just committed"),
        pytest.param(10, 20, 5, 10.0, 19, id="half of the next lump"),
        pytest.param(10, 20, 9, 18.0, 19, id="nearly all of it"),
        pytest.param(10, 1, 9, 0.0, 0, id="one each: none is done before its commit"),
        pytest.param(1, 7, 0, 0.0, 0, id="a commit in each look: as if one by one"),
        pytest.param(1_000, 20, 500, 10.0, 19, id="slow"),
        pytest.param(2_000, 20, 1_000, 0.0, 19, id="too rarely to be told from a consumer that is gone"),
    ],
)
def test_between_two_commits_as_much_is_done_as_time_has_passed(
    every_seconds: int, messages: int, since_seconds: int, done_messages: float, done_most: int
) -> None:
    track = consumed(every_seconds, messages, seconds=4 * every_seconds + since_seconds)
    assert track.lumps.done_messages == pytest.approx(done_messages)
    assert track.done_most == done_most


def test_before_two_lumps_were_seen_nothing_is_believed_and_before_one_all_is_possible() -> None:
    assert consumed(10, 20, seconds=9, backlog=50).done_most == 50
    track = consumed(10, 20, seconds=18)
    assert (track.lumps.done_messages, track.done_most) == (0.0, 19)
    track = consumed(10, 20, seconds=25)
    assert (track.lumps.done_messages, track.done_most) == (10.0, 19)


def test_of_a_group_that_never_committed_all_may_be_done() -> None:
    track = Track(end=50, committed=None, arrived=50, completed=0)
    advance(track, 70, None, None, 1.0)
    assert (track.lumps.done_messages, track.done_most) == (0.0, 70)


def test_a_commit_that_does_not_come_is_believed_in_for_one_lump_more() -> None:
    track = consumed(10, 20, seconds=40)
    committed = track.committed
    for _ in range(20):
        advance(track, 10_000, committed, None, 1.0)
    assert track.lumps.done_messages == 19.0
    advance(track, 10_000, committed, None, 1.0)
    assert track.lumps.done_messages == 0.0


def test_one_leap_of_the_offsets_is_no_lump() -> None:
    track = consumed(10, 20, seconds=45, backlog=1_000_000)
    assert track.committed is not None
    advance(track, 1_000_000, track.committed + 500_000, None, 1.0)
    for _ in range(5):
        advance(track, 1_000_000, track.committed, None, 1.0)
    assert track.lumps.done_messages == pytest.approx(10.0)
    assert track.done_most == 1_000_000 - 500_080  # all of the lag may be


@pytest.mark.parametrize("committed", [None, 10, 20_000], ids=["expired", "set back", "past the end"])
def test_an_offset_that_is_another_one_leaves_nothing_done(committed: int | None) -> None:
    track = consumed(10, 20, seconds=45)
    assert track.lumps.done_messages == 10.0
    advance(track, 10_000, committed, None, 1.0)
    assert track.lumps.done_messages == 0.0


def test_what_was_believed_and_was_not_committed_is_not_done_twice() -> None:
    track = consumed(10, 20, seconds=49)
    assert track.committed is not None
    believed = track.completed + track.lumps.done_messages
    advance(track, 10_000, track.committed + 5, None, 1.0)
    assert track.completed + track.lumps.done_messages == pytest.approx(believed)


def test_how_long_a_lump_took_is_not_known_where_nobody_looked() -> None:
    lumps = Lumps()
    lumps.committed(20, 5.0, None)
    assert lumps.recent == ()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 60), st.floats(0.0, 100.0)), max_size=60))
def test_what_is_done_is_part_of_the_lag(reads: list[tuple[int, int, float]]) -> None:
    track, end, committed = Track(end=0, committed=0, arrived=0, completed=0), 0, 0
    for more, done, gap_seconds in reads:
        end += more
        committed = min(committed + done, end)
        advance(track, end, committed, None, gap_seconds)
        assert 0.0 <= track.lumps.done_messages <= end - committed
        assert 0 <= track.done_most <= end - committed
