"""Replicas are started for requests: never more than those that wait, and those expected by then, could keep busy."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.core.decide import Memory, decide
from scaler.core.model import Decision, Goals, ReplicaView, Sample
from scaler.policies.slo import HPA_WAIT_SECONDS, POLICY, SloState

MOST_DEVIATIONS = 3.72  # a quantile is never above 1 - 1e-4


def look(
    memory: Memory[SloState], goals: Goals, *, waiting: float, in_flight: float, view: ReplicaView | None, at: float
) -> tuple[Decision, Memory[SloState]]:
    sample = Sample(
        at_seconds=at,
        metric_value=waiting + in_flight,
        active=waiting + in_flight > 0,
        waiting=waiting,
        in_flight=in_flight,
    )
    decision, memory = decide(POLICY, goals, memory, sample=sample, view=view, now_seconds=at)
    assert decision is not None
    return decision, memory


def most_of_use(decision: Decision, before: SloState, goals: Goals) -> int:
    """The replicas that are ready and those that these requests, the expected ones and a crowd could keep busy."""
    need = next(step for step in decision.steps if step.name == "need")
    if len(need.numbers) == 0:
        return 0
    waiting, in_flight, rate, _, ready, starting = (float(number) for number in need.numbers)
    expected = rate * (before.estimates.cold_start(goals)[0] + HPA_WAIT_SECONDS)
    expected += MOST_DEVIATIONS * math.sqrt(before.estimates.dispersion * expected)
    of_use = math.ceil((waiting + expected + before.estimates.crowd) / goals.concurrency + 1e-6)
    return int(max(ready + max(of_use, starting), math.ceil(in_flight / goals.concurrency), 1))


@settings(max_examples=300, deadline=None)
@given(
    looks=st.lists(
        st.tuples(
            st.floats(0.5, 90), st.integers(0, 60), st.integers(0, 20), st.integers(0, 20), st.lists(st.floats(0, 300))
        ),
        min_size=1,
        max_size=30,
    ),
    sees=st.booleans(),
    wait_seconds=st.floats(1, 600),
    attainment=st.floats(0.5, 0.999),
    concurrency=st.integers(1, 16),
    cold_start_seconds=st.floats(5, 300),
    service_seconds=st.floats(0.1, 100),
)
def test_no_more_start_than_the_requests_could_keep_busy(
    *,
    looks: list[tuple[float, int, int, int, list[float]]],
    sees: bool,
    wait_seconds: float,
    attainment: float,
    concurrency: int,
    cold_start_seconds: float,
    service_seconds: float,
) -> None:
    goals = Goals(
        target_value=1.0,
        wait_seconds=wait_seconds,
        attainment=attainment,
        concurrency=concurrency,
        cold_start_seconds=cold_start_seconds,
        service_seconds=service_seconds,
        max_replicas=100_000,
    )
    memory: Memory[SloState] = Memory(state=POLICY.start())
    at = 1_000.0
    for seconds, waiting, in_flight, ready, ages in looks:
        at += seconds
        starting = tuple(sorted(at - age for age in ages))
        view = ReplicaView(at_seconds=at, ready=ready, starting_at_seconds=starting) if sees else None
        before = memory.state
        decision, memory = look(memory, goals, waiting=float(waiting), in_flight=float(in_flight), view=view, at=at)
        need = next(step for step in decision.steps if step.name == "need")
        assert need.after is not None
        assert need.after <= most_of_use(decision, before, goals)


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("service_seconds", [0.5, 5.0, 30.0])
@pytest.mark.parametrize("wait_seconds", [60.0, 120.0])
@pytest.mark.parametrize("requests", [1, 4, 40])
def test_a_queue_that_nobody_serves_starts_a_replica_for_each_request_at_most(
    requests: int, wait_seconds: float, service_seconds: float, concurrency: int
) -> None:
    goals = Goals(
        target_value=1.0,
        wait_seconds=wait_seconds,
        attainment=0.99,
        concurrency=concurrency,
        cold_start_seconds=30.0,
        service_seconds=service_seconds,
        max_replicas=10_000,
    )
    memory: Memory[SloState] = Memory(state=POLICY.start())
    starting: tuple[float, ...] = ()
    for index in range(200):
        at = 1_000.0 + 5.0 * index
        view = ReplicaView(at_seconds=at, ready=0, starting_at_seconds=starting)
        decision, memory = look(memory, goals, waiting=float(requests), in_flight=0.0, view=view, at=at)
        starting += (at,) * (decision.desired_replicas - len(starting))
        assert decision.desired_replicas <= math.ceil(requests / concurrency)


def test_one_more_that_waits_asks_for_no_less_where_more_are_busy_than_are_believed_to_serve() -> None:
    goals = Goals(target_value=1.0, wait_seconds=1.0, attainment=0.5, max_replicas=2)
    idle = Sample(at_seconds=0.0, metric_value=0.0, active=False, arrived_total=0.0)
    _, memory = decide(POLICY, goals, Memory(state=POLICY.start()), sample=idle, view=None, now_seconds=0.0)
    answers = []
    for waiting in (0.0, 1.0):
        busy = Sample(
            at_seconds=5.0, metric_value=waiting + 2, active=True, waiting=waiting, in_flight=2.0, arrived_total=0.0
        )
        decision, _ = decide(POLICY, goals, memory, sample=busy, view=None, now_seconds=5.0)
        answers.append(decision and decision.desired_replicas)
    assert answers == [2, 2]


@pytest.mark.parametrize(("wait_seconds", "attainment"), [(30.0, 0.95), (60.0, 0.95), (60.0, 0.99), (120.0, 0.99)])
@pytest.mark.parametrize("ready", [1, 2, 3, 4])
@pytest.mark.parametrize("starting", [1, 2, 4, 6])
def test_each_more_that_waits_asks_for_no_less_while_replicas_start(
    wait_seconds: float, attainment: float, ready: int, starting: int
) -> None:
    """Those that start count whether or not the ready ones nearly are enough."""
    goals = Goals(target_value=1.0, wait_seconds=wait_seconds, attainment=attainment)
    memory: Memory[SloState] = Memory(state=POLICY.start())
    for index in range(60):
        view = ReplicaView(at_seconds=5.0 * index, ready=1, cold_starts_seconds=(20.0,) if index < 8 else ())
        one = counted(5.0 * index, 0, 1, arrived=index // 2 + 1)
        _, memory = decide(POLICY, goals, memory, sample=one, view=view, now_seconds=5.0 * index)
    view = ReplicaView(at_seconds=300.0, ready=ready, starting_at_seconds=(285.0,) * starting)
    answers = []
    for waiting in range(1, 40):
        many = counted(300.0, waiting, ready, arrived=30 + waiting + ready)
        decision, _ = decide(POLICY, goals, memory, sample=many, view=view, now_seconds=300.0)
        assert decision is not None
        answers.append(decision.desired_replicas)
    assert answers == sorted(answers)


def counted(at: float, waiting: int, in_flight: int, *, arrived: int) -> Sample:
    return Sample(
        at_seconds=at,
        metric_value=float(waiting + in_flight),
        active=True,
        waiting=float(waiting),
        in_flight=float(in_flight),
        arrived_total=float(arrived),
        completed_total=float(arrived - waiting - in_flight),
    )


def test_work_in_flight_on_replicas_that_a_report_does_not_show_yet_is_not_let_go() -> None:
    goals = Goals(target_value=1.0, wait_seconds=600.0, max_replicas=50)  # time enough: nothing is held but what works
    memory, answers = Memory(state=POLICY.start()), []
    for turn, (waiting, in_flight) in enumerate([(0, 1)] * 60 + [(40, 1)] * 8 + [(0, 8)] * 5):
        at = 5.0 * turn
        decision, memory = decide(
            POLICY,
            goals,
            memory,
            sample=counted(at, waiting, in_flight, arrived=1 if turn < 60 else 41),
            view=ReplicaView(at_seconds=min(at, 305.0), ready=1),  # whoever reports has been silent since
            now_seconds=at,
        )
        assert decision is not None
        answers.append(decision.desired_replicas)
    assert answers[60] > 8
    assert min(answers[60:]) >= 8
