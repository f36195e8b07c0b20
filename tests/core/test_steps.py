"""How many come and go unseen, and with it how long services take, from how much their number fluctuates."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.core.steps import NO_STEPS, Steps

INTERVAL_SECONDS = 5.0


def happened(mean: float, chance: random.Random) -> int:
    """How many of what happens by chance (Poisson)."""
    left, count = math.exp(-mean), 0
    product = chance.random()
    while product > left:
        product *= chance.random()
        count += 1
    return count


def looked(changes: list[float], *, busy: float, guess_seconds: float, steps: Steps = NO_STEPS) -> Steps:
    for change in changes:
        steps = steps.fed(
            change,
            slot_seconds=busy * INTERVAL_SECONDS,
            service_seconds=steps.bounded(guess_seconds, INTERVAL_SECONDS),
            elapsed_seconds=INTERVAL_SECONDS,
        )
    return steps


@pytest.mark.parametrize("guess_seconds", [1.0, 5.0])
@pytest.mark.parametrize(("service_seconds", "busy"), [(20.0, 1.0), (20.0, 16.0), (120.0, 16.0), (120.0, 160.0)])
@pytest.mark.parametrize("drift", [0.5, 1.0, 3.0])
def test_a_queue_in_which_much_seems_to_come_and_go_would_fluctuate_more(
    service_seconds: float, busy: float, drift: float, guess_seconds: float
) -> None:
    """Whether it falls, stands or grows: any rate of completions explains its mean, and a guess of 5 s its own."""
    chance = random.Random(1)
    done = busy * INTERVAL_SECONDS / service_seconds
    changes = [float(happened(drift * done, chance) - happened(done, chance)) for _ in range(1_200)]
    learned = looked(changes, busy=busy, guess_seconds=guess_seconds).bounded(guess_seconds, INTERVAL_SECONDS)
    assert 0.65 * service_seconds < learned < 1.5 * service_seconds


def test_sixteen_that_end_at_once_are_sixteen_completions() -> None:
    """Batches of services of two minutes: by the squares of their steps 16 times as many would have come and gone."""
    chance = random.Random(2)
    changes = [float(happened(0.7, chance) - (16 if look % 24 == 23 else 0)) for look in range(600)]
    assert 60.0 < looked(changes, busy=16.0, guess_seconds=5.0).bounded(5.0, INTERVAL_SECONDS) < 240.0


@pytest.mark.parametrize("known_seconds", [5.0, 10.0, 4_000.0])
def test_what_falls_was_completed_however_evenly(known_seconds: float) -> None:
    steps = looked([-4.0] * 100, busy=8.0, guess_seconds=5.0)
    assert steps.bounded(known_seconds, INTERVAL_SECONDS) <= 1.3 * 10.0 + 1e-6


@pytest.mark.parametrize("times", [0.2, 1.0, 3.0])
def test_services_much_shorter_than_a_look_are_not_taken_for_longer_ones(times: float) -> None:
    """What is in flight at two looks has nothing in common then: its fluctuation says no more than that."""
    chance = random.Random(3)
    service_seconds, looks = 1.0, 2_000
    arrivals = 4.0 / service_seconds
    left = math.exp(-times)  # of what is in flight, one look later
    at_work, steps = 4, NO_STEPS
    for _ in range(looks):
        stay = sum(chance.random() < left for _ in range(at_work))
        now = stay + happened(arrivals * service_seconds * (1.0 - left), chance)
        steps = steps.fed(
            float(now - at_work),
            slot_seconds=0.5 * (now + at_work) * times * service_seconds,
            service_seconds=steps.bounded(0.5, times * service_seconds),
            elapsed_seconds=times * service_seconds,
        )
        at_work = now
    assert steps.bounded(0.5, times * service_seconds) < 1.4 * service_seconds


@given(
    looks=st.lists(
        st.tuples(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.floats(1e-3, 600.0)), min_size=1, max_size=40
    ),
    service_seconds=st.floats(1e-3, 1e5),
)
def test_whatever_is_read_it_stays_a_number(looks: list[tuple[float, float, float]], service_seconds: float) -> None:
    steps = NO_STEPS
    for change, slot_seconds, elapsed_seconds in looks:
        steps = steps.fed(
            change, slot_seconds=slot_seconds, service_seconds=service_seconds, elapsed_seconds=elapsed_seconds
        )
        told = steps.bounded(service_seconds, 5.0)
        assert math.isfinite(told)
        assert told > 0.0
