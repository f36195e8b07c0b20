"""Waking from zero on approximate counts: several readings must show the work; a wrong one leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.core.decide import Memory, decide
from scaler.core.hours import NO_HOURS
from scaler.core.model import Decision, Goals, ReplicaView, Sample
from scaler.core.window import Smoothed
from scaler.plugins import policies
from scaler.trigger import parse_steps

POLICIES = policies()
each_policy = pytest.mark.parametrize("name", sorted(POLICIES))


def goals(confirmations: int = 2) -> Goals:
    return Goals(target_value=5.0, wait_seconds=60.0, confirmations=confirmations, steps=parse_steps("1:2,6:5,21:10"))


def reading(at_seconds: float, waiting: float, in_flight: float = 0.0, *, approximate: bool = True) -> Sample:
    return Sample(
        at_seconds=at_seconds,
        metric_value=waiting + in_flight,
        active=waiting + in_flight > 0,
        waiting=waiting,
        in_flight=in_flight,
        utilization_sum=10.0 * waiting,
        approximate=approximate,
    )


def played(
    name: str, samples: list[Sample], wanted: Goals, memory: Memory[Any] | None = None
) -> tuple[list[Decision], Memory[Any]]:
    policy = POLICIES[name]
    memory = memory or Memory(state=policy.start())
    decisions = []
    for sample in samples:
        decision, memory = decide(policy, wanted, memory, sample=sample, view=None, now_seconds=sample.at_seconds)
        assert decision is not None
        decisions.append(decision)
    return decisions, memory


@each_policy
def test_one_wrong_reading_at_zero_wakes_nobody_however_long_one_waits(name: str) -> None:
    waits = [0.0, 0.0, 0.0, 7.0] + [0.0] * 200
    decisions, _ = played(name, [reading(2.0 * index, wait) for index, wait in enumerate(waits)], goals())
    assert not any(decision.active for decision in decisions)


@each_policy
@given(
    wrong=st.lists(st.tuples(st.integers(1, 10_000), st.integers(0, 50)), min_size=1, max_size=3),
    waits=st.lists(st.integers(0, 20), max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_what_is_not_confirmed_leaves_nothing_behind(name: str, wrong: list[tuple[int, int]], waits: list[int]) -> None:
    wanted = goals(confirmations=len(wrong) + 1)
    _, memory = played(name, [reading(2.0 * index, 0.0) for index in range(5)], wanted)
    seen = [reading(10.0 + index, waiting, busy) for index, (waiting, busy) in enumerate(wrong)]
    unconfirmed, after = played(name, seen, wanted, memory)
    assert not any(decision.active for decision in unconfirmed)
    assert after.state == memory.state
    rest = [reading(20.0, 0.0), *[reading(22.0 + 2.0 * index, wait) for index, wait in enumerate(waits)]]
    got, _ = played(name, rest, wanted, after)
    clean, _ = played(name, rest, wanted, memory)
    assert [(one.active, one.metric_value) for one in got] == [(one.active, one.metric_value) for one in clean]


def test_a_reading_that_is_not_confirmed_does_not_take_away_what_is_kept_warm() -> None:
    wanted = replace(goals(confirmations=3), warm="floor")
    rest = [reading(2.0 * index, 0.0) for index in range(3)]
    usual = Smoothed(0.2, 1.0, 4.0)  # what is learned expects the next requests soon; the last answer was none
    _, memory = played("slo", rest, wanted)
    state = memory.state
    memory = replace(
        memory, state=replace(state, estimates=replace(state.estimates, short=usual, long=usual, hours=NO_HOURS))
    )
    assert memory.last is not None
    assert not memory.last.active
    (idle,), _ = played("slo", [reading(6.0, 0.0)], wanted, memory)
    assert idle.active
    (unsure,), after = played("slo", [reading(6.0, 3.0)], wanted, memory)
    assert (unsure.active, unsure.metric_value) == (idle.active, idle.metric_value)
    assert after.state == memory.state
    assert after.tentative is not None


@each_policy
def test_work_that_a_second_reading_shows_wakes_and_is_counted_from_the_first(name: str) -> None:
    waits = [0.0, 0.0, 0.0, 7.0, 7.0]
    decisions, memory = played(name, [reading(2.0 * index, wait) for index, wait in enumerate(waits)], goals())
    assert [decision.active for decision in decisions] == [False] * 4 + [True]
    assert memory.tentative is None
    if name == "slo":
        assert [at for _, at in memory.state.estimates.waits.batches] == [
            5.0
        ]  # half a look before the first that saw it


@each_policy
def test_the_same_reading_looked_at_twice_confirms_nothing(name: str) -> None:
    _, memory = played(name, [reading(2.0 * index, 0.0) for index in range(3)], goals())
    once = reading(6.0, 7.0)
    for _ in range(5):
        (decision,), memory = played(name, [once], goals(), memory)
        assert not decision.active
    (decision,), _ = played(name, [reading(8.0, 7.0)], goals(), memory)
    assert decision.active


@each_policy
def test_an_exact_source_needs_no_confirmation(name: str) -> None:
    samples = [reading(0.0, 0.0, approximate=False), reading(2.0, 7.0, approximate=False)]
    decisions, _ = played(name, samples, goals())
    assert [decision.active for decision in decisions] == [False, True]


def test_requests_in_flight_below_the_first_row_wake_only_once_they_are_confirmed() -> None:
    """KEDA keeps the replicas of the last burst for a while: one wrong count of an approximate source woke them."""
    wanted = Goals(target_value=1.0, confirmations=2, steps=parse_steps("6:5"))
    memory: Memory[Any] = Memory(state=None)
    answers = []
    for second, busy in ((0.0, 0.0), (2.0, 1.0), (2.0, 1.0), (4.0, 0.0), (6.0, 1.0), (8.0, 1.0), (10.0, 1.0)):
        view = ReplicaView(at_seconds=second, ready=5, status_replicas=5)
        decision, memory = decide(
            POLICIES["steps"], wanted, memory, sample=reading(second, 0.0, busy), view=view, now_seconds=second
        )
        assert decision is not None
        told = [step.name for step in decision.steps]
        if told[-1] == "confirm":
            assert decision.review_at_seconds is None  # else nobody may look at the reading that confirms it
        answers.append((decision.desired_replicas, told[1:]))
    assert answers == [
        (0, []),
        (0, ["confirm"]),
        (0, ["confirm"]),
        (0, []),
        (0, ["confirm"]),
        (1, ["in flight"]),
        (1, ["in flight"]),
    ]


@pytest.mark.parametrize("name", ["target", "target+burst"])
@pytest.mark.parametrize("waiting", [11.0, 12.0, 40.0])
def test_of_a_raw_metric_only_the_waking_is_withheld(name: str, waiting: float) -> None:
    """The HPA scales by it while KEDA's cooldown keeps replicas: it was 0 for one look, and they were let go."""
    below, above = replace(reading(0.0, 9.0), active=False), reading(2.0, waiting)  # with an activation threshold of 10
    (one, two, three), _ = played(name, [below, above, replace(above, at_seconds=4.0)], goals())
    assert [one.active, two.active, three.active] == [False, False, True]
    assert [one.metric_value, two.metric_value, three.metric_value] == [9.0, waiting, waiting]
    assert two.desired_replicas == 0
