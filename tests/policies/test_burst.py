import json
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.core.decide import Memory, Policy, Proposal, Situation, decide
from scaler.core.model import Decision, Goals, Sample
from scaler.plugins import policies
from scaler.policies.burst import LONG_SECONDS, Burst
from scaler.policies.steps import POLICY as STEPS
from scaler.policies.target import POLICY as TARGET
from scaler.state import Durable
from scaler.trigger import parse_steps

GOALS = Goals(target_value=5.0, steps=parse_steps("1:2,6:5,21:10"))


def _run(policy: object, depths: list[float]) -> list[Decision]:
    """One depth a second."""
    memory: Memory[object] = Memory(state=policy.start())  # type: ignore[attr-defined]  # any policy of the folder
    answers = []
    for second, depth in enumerate(depths):
        sample = Sample(at_seconds=float(second), metric_value=depth, active=depth > 0, waiting=depth)
        decision, memory = decide(
            policy,  # type: ignore[arg-type]  # as above
            GOALS,
            memory,
            sample=sample,
            view=None,
            now_seconds=float(second),
        )
        assert decision is not None
        answers.append(decision)
    return answers


def test_a_burst_is_answered_in_full_at_once_and_held_until_it_is_over() -> None:
    depths = [1.0] * 200 + [30.0] * 3 + [1.0] * 300
    replicas = [answer.desired_replicas for answer in _run(Burst(STEPS), depths)]
    assert replicas[199] == 2
    assert replicas[200:203] == [10, 10, 10]
    assert set(replicas[203 : 203 + int(LONG_SECONDS) - 5]) == {10}
    assert replicas[-1] == 2
    falls = [(a, b) for a, b in pairwise(replicas) if b < a]
    assert falls == [(10, 2)]


def test_a_slow_rise_is_no_burst() -> None:
    depths = [1.0] * 60 + [1.0 + second / 40 for second in range(800)] + [15.0] * 30
    answers = _run(Burst(STEPS), [*depths, 1.0])
    assert answers[-1].desired_replicas == 2


def test_the_raw_metric_of_target_is_held_too() -> None:
    answers = _run(Burst(TARGET), [1.0] * 200 + [50.0] + [1.0] * 20)
    assert {answer.metric_value for answer in answers[200:]} == {50.0}
    assert {answer.target_value for answer in answers} == {5.0}


def test_every_threshold_policy_can_be_wrapped_by_name() -> None:
    assert {"target+burst", "steps+burst", "utilization+burst"} <= set(policies())
    assert "slo+burst" not in policies()


@dataclass(frozen=True)
class Counted:
    """What a wrapped policy may remember."""

    since_seconds: float | None = None


class Patient:
    """Answers the metric ten seconds after it first saw any: a wrapped policy with a moment in its state."""

    decides_replicas = False

    def problems(self, goals: Goals) -> tuple[tuple[str, str], ...]:  # noqa: ARG002 - as the protocol
        return ()

    def start(self) -> Counted:
        return Counted()

    def dump(self, state: Counted) -> dict[str, Any]:
        return {"since_seconds": state.since_seconds}

    def load(self, values: dict[str, Any], *, shift_seconds: float) -> Counted:
        since = values["since_seconds"]
        return Counted(None if since is None else since + shift_seconds)

    def propose(self, situation: Situation, state: Counted) -> Proposal[Counted]:
        value, now = situation.sample.metric_value, situation.now_seconds
        since = state.since_seconds if state.since_seconds is not None else (now if value else None)
        shown = value if since is not None and now - since >= 10.0 else 0.0
        return Proposal(state=Counted(since), active=value > 0, metric_value=shown, target_value=5.0)


LOOKS = st.lists(st.tuples(st.integers(1, 6_000), st.integers(0, 60)), min_size=1, max_size=40)


def _played(
    policy: Policy[Any], memory: Memory[Any], looks: list[tuple[int, int]], now: float
) -> tuple[Memory[Any], list[tuple[float, int, bool]], float]:
    answers = []
    for elapsed, depth in looks:
        now += elapsed / 64  # what floats of either clock hold alike
        sample = Sample(at_seconds=now, metric_value=float(depth), active=depth > 0, waiting=float(depth))
        decision, memory = decide(policy, GOALS, memory, sample=sample, view=None, now_seconds=now)
        assert decision is not None
        answers.append((decision.metric_value, decision.desired_replicas, decision.active))
    return memory, answers, now


@pytest.mark.parametrize("shift", [0.0, -4096.0, 65536.0])  # powers of two: no rounding
@pytest.mark.parametrize("inner", [STEPS, TARGET, Patient()], ids=["steps", "target", "one that remembers"])
@settings(max_examples=40, deadline=None)
@given(before=LOOKS, after=LOOKS)
def test_decisions_after_a_round_trip_are_the_same(
    inner: Policy[Any], shift: float, before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> None:
    policy = Burst(inner)
    memory, _, now = _played(policy, Memory(state=policy.start()), before, 8192.0)
    assert memory.last is not None
    state = policy.load(json.loads(json.dumps(policy.dump(memory.state))), shift_seconds=shift)
    restored = Memory(
        state=state, last=replace(memory.last, at_seconds=memory.last.at_seconds + shift), confirmed=memory.confirmed
    )
    if shift == 0.0:
        assert state == memory.state
    assert _played(policy, restored, after, now + shift)[1] == _played(policy, memory, after, now)[1]


def test_what_burst_wraps_survives_a_restart_by_the_state_files_own_judgement() -> None:
    assert all(isinstance(policy, Durable) for name, policy in policies().items() if name.endswith("+burst"))
