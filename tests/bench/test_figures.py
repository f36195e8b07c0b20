"""What the bench says of its own figures; the figures are no tests."""

from __future__ import annotations

import pytest

from tests.bench.__main__ import _p99, missed
from tests.bench.goals import goal
from tests.bench.wire import percentile


@pytest.mark.parametrize(
    ("value", "limit", "at_least", "met"),
    [
        pytest.param(9.9, 10.0, False, True, id="below"),
        pytest.param(10.0, 10.0, False, True, id="just met"),
        pytest.param(10.1, 10.0, False, False, id="above"),
        pytest.param(0.9, 0.85, True, True, id="more than asked for"),
        pytest.param(0.8, 0.85, True, False, id="less than asked for"),
        pytest.param(None, 10.0, False, False, id="nothing was measured"),
    ],
)
def test_figure_without_a_value_meets_no_goal(*, value: float | None, limit: float, at_least: bool, met: bool) -> None:
    assert goal(value, limit, at_least=at_least) == {"value": value, "goal": limit, "met": met}


def test_missed_goals_are_named_wherever_they_stand() -> None:
    result = {"a": goal(1, 2), "b": {"c": goal(3, 2), "d": [1, 2], "e": {"f": goal(None, 5)}}, "g": 7}
    assert list(missed(result)) == ["b.c: 3 (goal 2)", "b.e.f: None (goal 5)"]


def test_burst_in_one_window_stands_beside_the_figure_and_is_not_the_figure() -> None:
    calm = [(due / 100, 0.002) for due in range(1_500) if not 500 <= due < 1_000]
    said = _p99(calm + [(due / 100, 0.2) for due in range(500, 1_000)], 10.0)
    assert said["p99_ms"] == goal(2.0, 10.0)
    assert said["p99_of_each_window_ms"] == [2.0, 200.0, 2.0]
    assert said["p99_of_all_ms"] == 200.0


def test_nothing_heard_meets_no_goal() -> None:
    assert _p99([], 10.0)["p99_ms"] == goal(None, 10.0)


def test_percentile_of_nothing_is_nothing() -> None:
    assert percentile([], 0.99) is None
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
