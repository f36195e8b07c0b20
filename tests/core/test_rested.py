"""An idle queue that nobody looked at teaches what looks that see nothing would have."""

from __future__ import annotations

import math
from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from scaler.core.estimate import NOTHING_KNOWN, Estimates, rested, updated
from scaler.core.model import Goals, Sample


def look(known: Estimates, goals: Goals, at: float, arrived: float, done: float) -> Estimates:
    sample = Sample(
        at_seconds=at,
        metric_value=arrived - done,
        active=arrived > done,
        waiting=max(arrived - done - 2.0, 0.0),
        in_flight=min(arrived - done, 2.0),
        arrived_total=arrived,
        completed_total=done,
    )
    return updated(known, sample, goals, ready=2, cold_starts_seconds=(), waking=False, now_seconds=at)


def near(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(near, one, other))
    if hasattr(one, "__dataclass_fields__"):
        return all(near(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))  # type: ignore[arg-type]  # a dataclass
    return one == other


@given(
    busy=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30),
    interval_seconds=st.sampled_from([1.0, 5.0, 7.0, 30.0]),
    cold_start_seconds=st.sampled_from([0.5, 15.0, 40.0, 300.0]),
    idle_looks=st.integers(1, 2_000),
    came=st.integers(1, 5),
)
def test_a_gap_at_an_idle_queue_is_as_looks_that_see_nothing(
    *,
    busy: list[tuple[int, int]],
    interval_seconds: float,
    cold_start_seconds: float,
    idle_looks: int,
    came: int,
) -> None:
    goals = Goals(target_value=1.0, wait_seconds=30.0, cold_start_seconds=cold_start_seconds)
    known, at, arrived, done = NOTHING_KNOWN, 0.0, 0.0, 0.0
    for more, less in [*busy, (0, 1_000)]:  # idle in the end
        at += interval_seconds
        arrived, done = arrived + more, min(done + less, arrived + more)
        known = look(known, goals, at, arrived, done)
    often = known
    for _ in range(idle_looks):
        at += interval_seconds
        often = look(often, goals, at, arrived, done)
    at += interval_seconds
    seldom = rested(known, goals, at)
    assert near(seldom, often)
    assert near(look(seldom, goals, at, arrived + came, done), look(often, goals, at, arrived + came, done))
