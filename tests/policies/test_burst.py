import json
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.core.decide import Memory, Policy, Proposal, Situation, decide
from scaler.core.model import Decision, Goals, Sample
from scaler.plugins import policies
from scaler.policies.burst import LONG_SECONDS, SHORT_SECONDS, Burst
from scaler.policies.steps import POLICY as STEPS
from scaler.policies.target import POLICY as TARGET
from scaler.state import Durable
from scaler.trigger import parse_steps

GOALS = Goals(target_value=5.0, steps=parse_steps("1:2,6:5,21:10"))


def _run(policy: Policy[Any], looks: list[tuple[float, float]], *, counters: bool = True) -> list[Decision]:
    """A look a second: (arrivals in it, requests in the system)."""
    memory: Memory[Any] = Memory(state=policy.start())
    answers, arrived = [], 0.0
    for second, (arrivals, depth) in enumerate(looks):
        arrived += arrivals
        sample = Sample(
            at_seconds=float(second),
            metric_value=depth,
            active=depth > 0,
            waiting=depth,
            in_flight=0.0,
            arrived_total=arrived if counters else None,
        )
        decision, memory = decide(policy, GOALS, memory, sample=sample, view=None, now_seconds=float(second))
        assert decision is not None
        answers.append(decision)
    return answers


QUIET, DRAINED_BURST = [(0.1, 1.0)] * 300, [(3.0, 30.0)] * 30 + [(3.0, 1.0)] * 200


@pytest.mark.parametrize("policy", [STEPS, TARGET], ids=["steps", "target"])
def test_a_burst_holds_while_requests_keep_coming_though_the_queue_is_drained(policy: Policy[Any]) -> None:
    answers = _run(Burst(policy), QUIET + DRAINED_BURST + QUIET)
    most = max(answer.desired_replicas for answer in answers)
    assert most == {True: 10, False: 6}[policy is STEPS]
    assert {answer.desired_replicas for answer in answers[300:530]} == {most}
    assert answers[-1].desired_replicas == answers[0].desired_replicas
    plain = _run(policy, QUIET + DRAINED_BURST)
    assert plain[-1].desired_replicas < most


def test_a_burst_is_over_soon_after_requests_have_stopped_coming() -> None:
    replicas = [answer.desired_replicas for answer in _run(Burst(STEPS), QUIET + DRAINED_BURST + QUIET)]
    falls = [(at, a, b) for at, (a, b) in enumerate(pairwise(replicas)) if b < a]
    assert [(a, b) for _, a, b in falls] == [(10, 2)]
    assert 530 < falls[0][0] < 530 + 4 * SHORT_SECONDS


def test_without_counters_the_growth_of_what_waits_begins_a_burst() -> None:
    replicas = [a.desired_replicas for a in _run(Burst(STEPS), QUIET + [(3.0, 30.0)] * 30 + QUIET, counters=False)]
    assert replicas[300:330] == [10] * 30
    assert set(replicas[330:338]) == {10}
    assert replicas[-1] == 2


def test_a_slow_rise_is_no_burst() -> None:
    looks = QUIET + [(0.1 + second / 6_000, 1.0 + second / 40) for second in range(800)] + [(0.2, 15.0)] * 30
    assert _run(Burst(STEPS), [*looks, (0.2, 1.0)])[-1].desired_replicas == 2


def test_steady_traffic_that_lasts_is_the_new_normal() -> None:
    answers = _run(Burst(STEPS), QUIET + [(1.0, 30.0)] * 30 + [(1.0, 1.0)] * int(8 * LONG_SECONDS))
    assert answers[-1].desired_replicas == 2


def _served(policy: Policy[Any], flights: list[float]) -> list[Decision]:
    """A look a second: a burst that fades, with a queue that is empty and so many requests in flight."""
    memory: Memory[Any] = Memory(state=policy.start())
    answers, arrived, completed = [], 0.0, 0.0
    for second, in_flight in enumerate(flights):
        arrived += max(in_flight - (flights[second - 1] if second else 0.0), 0.0) + 0.1 * in_flight
        completed = arrived - in_flight
        sample = Sample(
            at_seconds=float(second),
            metric_value=in_flight,
            active=in_flight > 0,
            waiting=0.0,
            in_flight=in_flight,
            arrived_total=arrived,
            completed_total=completed,
        )
        decision, memory = decide(policy, GOALS, memory, sample=sample, view=None, now_seconds=float(second))
        assert decision is not None
        answers.append(decision)
    return answers


def test_what_still_works_after_a_burst_is_let_go_step_by_step() -> None:
    flights = [1.0] * 300 + [60.0] * 120 + [max(60.0 * math.exp(-second / 60), 1.0) for second in range(600)]
    replicas = [answer.desired_replicas for answer in _served(Burst(TARGET), flights)]
    assert max(replicas) == 12
    after = replicas[420:]
    falls = [a - b for a, b in pairwise(after) if b < a]
    assert sum(falls) == 11
    assert max(falls) <= 4
    assert after[-1] == 1


def test_of_a_metric_that_tells_nothing_of_a_queue_its_own_rise_is_held() -> None:
    memory: Memory[Any] = Memory(state=Burst(TARGET).start())
    answers = []
    for second, value in enumerate([1.0] * 200 + [50.0] + [1.0] * 300):
        sample = Sample(at_seconds=float(second), metric_value=value, active=True)
        decision, memory = decide(Burst(TARGET), GOALS, memory, sample=sample, view=None, now_seconds=float(second))
        assert decision is not None
        answers.append(decision)
    assert {answer.metric_value for answer in answers[200 : 200 + int(SHORT_SECONDS)]} == {50.0}
    assert {answer.target_value for answer in answers} == {5.0}
    assert answers[-1].metric_value == 1.0


def test_below_an_activation_threshold_there_is_no_answer_to_hold() -> None:
    """A queue that shrank from 5 to 3 woke the workload, with a threshold of 10; 5 and 8 then did not."""
    depths = [0.0] * 300 + [5.0, 3.0, 2.0, 8.0, 10.0, 11.0, 8.0, 3.0]
    memory: Memory[Any] = Memory(state=Burst(TARGET).start())
    answers = []
    for second, depth in enumerate(depths):
        sample = Sample(at_seconds=second, metric_value=depth, active=depth > 10.0, waiting=depth, in_flight=0.0)
        decision, memory = decide(Burst(TARGET), GOALS, memory, sample=sample, view=None, now_seconds=second)
        assert decision is not None
        answers.append((decision.active, decision.metric_value))
    assert answers[:305] == [(False, depth) for depth in depths[:305]]
    assert answers[305:] == [(True, 11.0)] * 3  # that one was active, and is held


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


@pytest.mark.parametrize("gap_seconds", [10.0, 48.0])
def test_more_waiting_never_means_fewer_where_fewer_would_look_like_a_purge(gap_seconds: float) -> None:
    policy, memory = Burst(TARGET), Memory[Any](state=Burst(TARGET).start())

    def read(at_seconds: float, waiting: float, arrived: float) -> Sample:
        return Sample(
            at_seconds=at_seconds,
            metric_value=waiting + 3.0,
            active=True,
            waiting=waiting,
            in_flight=3.0,
            arrived_total=arrived,
        )

    at_seconds, arrived = 0.0, 0.0
    for waiting, came in [(0.0, 0.1)] * 300 + [(3.0 * second, 3.0) for second in range(60)]:
        at_seconds, arrived = at_seconds + 1.0, arrived + came
        sample = read(at_seconds, waiting, arrived)
        _, memory = decide(policy, GOALS, memory, sample=sample, view=None, now_seconds=at_seconds)
    at_seconds += gap_seconds
    answers = []
    for waiting in range(180):
        sample = read(at_seconds, float(waiting), arrived)
        decision, _ = decide(policy, GOALS, memory, sample=sample, view=None, now_seconds=at_seconds)
        assert decision is not None
        answers.append(decision.desired_replicas)
    assert answers == sorted(answers)
