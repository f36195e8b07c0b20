"""A clock that is put back or forward in the middle of a history, in one process or between two (items 1 and 8)."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scaler.core.decide import Memory, decide
from scaler.core.model import Decision, Goals, ReplicaView, Sample
from tests.policies.test_more_waiting import POLICIES, RATES, Queue, goals_of, reader, viewer

HOUR = 3_600.0
Look = tuple[float, Sample, ReplicaView | None]


def looks_of(chance: random.Random, goals: Goals, name: str, *, count: int, every_seconds: float) -> list[Look]:
    """What is seen of a queue that is served as `name` asks, by a clock that nobody puts."""
    read, view = reader(chance), viewer(chance)
    queue = Queue(
        chance,
        goals.concurrency,
        cold_start_seconds=chance.choice((10.0, 30.0, 60.0)),
        service_seconds=chance.choice((1.0, 5.0, 20.0)),
        rate=chance.choice(RATES[1:]),
    )
    memory: Memory[Any] = Memory(state=POLICIES[name].start())
    looks, now_seconds = [], 16_384.0
    for _ in range(count):
        now_seconds += every_seconds
        queue.pass_by(every_seconds, now_seconds)
        look = now_seconds, read(queue, now_seconds), view(queue, now_seconds)
        looks.append(look)
        decision, memory = decided(name, goals, memory, look)
        queue.scale(decision.desired_replicas, now_seconds)
    return looks


def decided(name: str, goals: Goals, memory: Memory[Any], look: Look) -> tuple[Decision, Memory[Any]]:
    now_seconds, sample, view = look
    decision, memory = decide(POLICIES[name], goals, memory, sample=sample, view=view, now_seconds=now_seconds)
    assert decision is not None
    return decision, memory


def put(look: Look, seconds: float) -> Look:
    """The same look by a clock that was put by so much."""
    now_seconds, sample, view = look
    if view is not None:
        view = replace(
            view,
            at_seconds=view.at_seconds + seconds,
            starting_at_seconds=tuple(at_seconds + seconds for at_seconds in view.starting_at_seconds),
        )
    return now_seconds + seconds, replace(sample, at_seconds=sample.at_seconds + seconds), view


def played(name: str, goals: Goals, looks: list[Look], memory: Memory[Any] | None = None) -> tuple[list[Decision], Any]:
    memory = memory or Memory(state=POLICIES[name].start())
    decisions = []
    for look in looks:
        decision, memory = decided(name, goals, memory, look)
        decisions.append(decision)
    return decisions, memory


def asked(decisions: list[Decision]) -> list[tuple[bool, float]]:
    return [(decision.active, decision.metric_value) for decision in decisions]


SEEDS = st.integers(0, 2**63)
each_policy = pytest.mark.parametrize("name", sorted(POLICIES))


@each_policy
@given(seed=SEEDS, back=st.sampled_from([64.0, HOUR, 24 * HOUR, 1e6 * HOUR]))
@example(seed=474, back=24 * HOUR)  # gone at one look is what waited at the first: when that came nobody knows
@settings(max_examples=40, deadline=None)
def test_after_a_step_back_decisions_are_as_if_there_had_been_none(name: str, seed: int, back: float) -> None:
    chance = random.Random(seed)
    goals = goals_of(chance, warm=chance.choice(("off", "floor")) if name == "slo" else "off")
    # A reading that is not confirmed leaves nothing behind, so the usual interval is learned from longer ones, too.
    goals = replace(goals, confirmations=1)
    every_seconds = chance.choice((1.0, 2.0, 4.0, 16.0))
    looks = looks_of(chance, goals, name, count=60, every_seconds=every_seconds)
    steps_at = chance.randint(2, 59)
    plain, _ = played(name, goals, looks)
    stepped, _ = played(name, goals, [*looks[:steps_at], *(put(look, -back) for look in looks[steps_at:])])
    assert asked(stepped) == asked(plain)


@given(seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_step_forward_while_there_is_work_teaches_nothing_and_lets_nothing_go(seed: int) -> None:
    chance = random.Random(seed)
    goals = goals_of(chance, warm="off")
    looks = looks_of(chance, goals, "slo", count=60, every_seconds=4.0)
    steps_at = chance.randint(2, 59)
    before, memory = played("slo", goals, looks[:steps_at])
    known = memory.state.estimates
    if known.waiting + known.in_flight == 0:  # an hour in which nothing came: that can be
        return
    plain, _ = decided("slo", goals, memory, looks[steps_at])
    after, stepped = decided("slo", goals, memory, put(looks[steps_at], HOUR))
    learned = stepped.state.estimates
    for name in ("cold", "completions"):
        assert getattr(learned, name) == getattr(known, name), name
    for name in ("counted", "missed", "debt"):
        assert getattr(learned.waits, name) == getattr(known.waits, name), name
    assert learned.hours.profile == known.hours.profile
    assert (learned.short.value, learned.long.value) == (known.short.value, known.long.value)
    assert learned.interval_seconds == known.interval_seconds
    assert all(sum(row[7:]) == 0.0 for row in stepped.state.holds.gaps)  # of more than the four minutes that passed
    assert after.desired_replicas >= min(plain.desired_replicas, before[-1].desired_replicas)


@pytest.mark.parametrize("name", sorted(name for name in POLICIES if name.endswith("+burst")))
def test_a_burst_that_is_on_survives_a_step_forward(name: str) -> None:
    goals = goals_of(random.Random(1), warm="off")
    goals = replace(goals, min_replicas=0, max_replicas=100, target_value=1.0, concurrency=1, confirmations=1)

    def look(at_seconds: float, load: float) -> Look:
        told = load if name == "utilization+burst" else None
        waiting = None if told is not None else load
        return (
            at_seconds,
            Sample(at_seconds=at_seconds, metric_value=load, active=True, waiting=waiting, utilization_sum=told),
            None,
        )

    quiet = [look(2.0 * index, 1.0) for index in range(1, 400)]
    burst = [look(800.0 + 2.0 * index, 30.0 + 5.0 * index) for index in range(6)]
    decisions, memory = played(name, goals, [*quiet, *burst])
    after, _ = decided(name, goals, memory, look(812.0 + HOUR, 5.0))
    assert after.metric_value >= decisions[-1].metric_value > 5.0


@each_policy
def test_a_held_decision_expires_although_the_clock_stepped_back(name: str) -> None:
    goals = goals_of(random.Random(1), warm="off")
    sample = Sample(at_seconds=10_000.0, metric_value=3.0, active=True, waiting=3.0)
    _, memory = played(name, goals, [(10_000.0, sample, None)])
    decision: Decision | None = None
    for at_seconds in (5_000.0, 5_060.0, 5_119.0):
        decision, memory = decide(POLICIES[name], goals, memory, sample=None, view=None, now_seconds=at_seconds)
        assert decision is not None
        assert not decision.expired
    decision, _ = decide(POLICIES[name], goals, memory, sample=None, view=None, now_seconds=5_121.0)
    assert decision is not None
    assert decision.expired


@pytest.mark.parametrize("name", ["slo", "steps+burst", "utilization+burst"])
@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_what_another_process_wrote_goes_on_wherever_its_clock_stood(name: str, seed: int) -> None:
    chance = random.Random(seed)
    goals = goals_of(chance, warm="off")
    looks = looks_of(chance, goals, name, count=60, every_seconds=4.0)
    plain, _ = played(name, goals, looks)
    _, memory = played(name, goals, looks[:40])
    policy: Any = POLICIES[name]
    state = policy.load(json.loads(json.dumps(policy.dump(memory.state))), shift_seconds=-HOUR)
    assert memory.last is not None
    last = replace(memory.last, at_seconds=memory.last.at_seconds - HOUR)
    rest, _ = played(name, goals, [put(look, -HOUR) for look in looks[40:]], replace(memory, state=state, last=last))
    assert asked(rest) == asked(plain[40:])
