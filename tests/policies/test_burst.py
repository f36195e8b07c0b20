from itertools import pairwise

from scaler.core.decide import Memory, decide
from scaler.core.model import Decision, Goals, Sample
from scaler.plugins import policies
from scaler.policies.burst import LONG_SECONDS, Burst
from scaler.policies.steps import POLICY as STEPS
from scaler.policies.target import POLICY as TARGET
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
