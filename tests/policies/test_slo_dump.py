"""What `slo` learned survives its serialised form, also where the clock of the next process started elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.core.decide import Memory, decide
from scaler.core.model import Decision, Goals, ReplicaView, Sample
from scaler.policies.slo import POLICY, SloState

GOALS = Goals(target_value=1.0, wait_seconds=30.0, service_seconds=5.0)
STEPS = st.lists(
    st.tuples(st.floats(0.5, 300), st.integers(0, 60), st.integers(0, 20), st.integers(0, 20), st.booleans()),
    min_size=2,
    max_size=40,
)


def play(
    memory: Memory[SloState], steps: list[tuple[float, int, int, int, bool]], now: float
) -> tuple[Memory[SloState], list[Decision], float]:
    decisions = []
    arrived = 0.0
    for seconds, waiting, in_flight, ready, seen in steps:
        now += seconds
        arrived += waiting
        sample = Sample(
            at_seconds=now,
            metric_value=float(waiting + in_flight),
            active=waiting + in_flight > 0,
            waiting=float(waiting),
            in_flight=float(in_flight),
            arrived_total=arrived,
        )
        view = ReplicaView(at_seconds=now, ready=ready) if seen else None
        decision, memory = decide(POLICY, GOALS, memory, sample=sample, view=view, now_seconds=now)
        assert decision is not None
        decisions.append(decision)
    return memory, decisions, now


@pytest.mark.parametrize("shift", [0.0, -4096.0])  # a power of two: no rounding
@settings(max_examples=60, deadline=None)
@given(before=STEPS, after=STEPS)
def test_decisions_after_a_round_trip_are_the_same(
    shift: float, before: list[tuple[float, int, int, int, bool]], after: list[tuple[float, int, int, int, bool]]
) -> None:
    # Moments are rounded to what floats of either clock can hold alike.
    before, after = ([(round(step[0] * 64) / 64 + 1 / 64, *step[1:]) for step in steps] for steps in (before, after))
    memory, _, now = play(Memory(state=POLICY.start()), before, 8192.0)
    assert memory.last is not None
    state = POLICY.load(json.loads(json.dumps(POLICY.dump(memory.state))), shift_seconds=shift)
    restored = Memory(
        state=state,
        last=replace(memory.last, at_seconds=memory.last.at_seconds + shift),
        sample=memory.sample,
        confirmed=memory.confirmed,
    )
    if shift == 0.0:
        assert state == memory.state
    _, wanted, _ = play(memory, after, now)
    _, got, _ = play(restored, after, now + shift)
    assert [(d.desired_replicas, d.active) for d in got] == [(d.desired_replicas, d.active) for d in wanted]


def test_gaps_of_another_version_are_learned_anew() -> None:
    values = json.loads(json.dumps(POLICY.dump(POLICY.start())))
    values["holds"]["gaps"] = [[1.0, 2.0]]
    assert POLICY.load(values, shift_seconds=0.0) == POLICY.start()
