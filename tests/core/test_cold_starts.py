"""Cold starts: whole ones and their phases, in the mean and at p95."""

import json
import math
import random
from statistics import quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.core.cold_starts import KEPT, NO_COLD_STARTS, PHASES, ColdStarts, Lasting, loaded_cold_starts

PULLING = PHASES.index("pulling")


def test_mean_and_p95_are_those_of_what_was_seen() -> None:
    chance = random.Random(3)
    seen = [chance.gauss(40.0, 8.0) for _ in range(20)]
    known = Lasting()
    for seconds in seen:
        known = known.fed(seconds)
    assert known.mean_seconds == pytest.approx(sum(seen) / len(seen))
    assert known.p95_seconds == pytest.approx(quantiles(seen, n=20)[-1], rel=0.1)


def test_what_changed_is_followed_and_what_was_is_forgotten() -> None:
    known = Lasting()
    for seconds in [30.0] * 50 + [120.0] * 100:
        known = known.fed(seconds)
    assert known.count == KEPT
    assert known.mean_seconds == pytest.approx(120.0, rel=0.01)


@pytest.mark.parametrize("seconds", [0.0, -5.0, 5e-324, math.nan, math.inf])
def test_what_can_not_be_teaches_nothing(seconds: float) -> None:
    known = NO_COLD_STARTS.fed((30.0,), ((PULLING, 12.0),))
    assert known.fed((seconds,), ((PULLING, seconds),)) == known


def test_each_phase_is_learned_by_itself_and_one_that_nobody_tells_stays_unknown() -> None:
    known = NO_COLD_STARTS
    for _ in range(5):
        known = known.fed((60.0,), ((PULLING, 20.0), (PHASES.index("loading"), 35.0)))
    lengths = {name: (phase.count, phase.mean_seconds) for name, phase in zip(PHASES, known.phases, strict=True)}
    assert lengths == {
        "scheduling": (0.0, 0.0),
        "pulling": (5.0, pytest.approx(20.0)),
        "starting": (0.0, 0.0),
        "loading": (5.0, pytest.approx(35.0)),
    }
    assert known.whole.mean_seconds == pytest.approx(60.0)


@pytest.mark.parametrize("phase", [-1, len(PHASES), 99])
def test_a_phase_that_there_is_not_is_left_out(phase: int) -> None:
    known = NO_COLD_STARTS.fed((60.0,), ((phase, 20.0),))
    assert all(one.count == 0 for one in known.phases)


@given(
    st.lists(st.floats(0.01, 1e4), max_size=40),
    st.lists(st.tuples(st.integers(0, len(PHASES) - 1), st.floats(0.01, 1e4)), max_size=40),
)
def test_they_survive_a_file(seconds: list[float], phases: list[tuple[int, float]]) -> None:
    known = NO_COLD_STARTS.fed(seconds, phases)
    assert loaded_cold_starts(json.loads(json.dumps(known.dumped()))) == known


def test_phases_of_another_version_are_learned_anew_and_the_whole_is_kept() -> None:
    values = NO_COLD_STARTS.fed((60.0,), ((PULLING, 20.0),)).dumped()
    values["phases"] = values["phases"][:2]
    assert loaded_cold_starts(values) == ColdStarts(Lasting().fed(60.0))
