import pytest

from scaler.core.decide import Memory, decide
from scaler.core.model import Decision, Goals, ReplicaView, Sample
from scaler.policies.steps import POLICY as STEPS
from scaler.policies.utilization import POLICY as UTILIZATION
from scaler.trigger import parse_steps

CLASSIC = Goals(target_value=5.0, steps=parse_steps("1:2,6:5,21:10"))


def _steps(waiting: float | None, in_flight: float | None = None, metric: float = 0.0) -> Decision:
    sample = Sample(at_seconds=0.0, metric_value=metric, active=metric > 0, waiting=waiting, in_flight=in_flight)
    decision, _ = decide(STEPS, CLASSIC, Memory(state=None), sample=sample, view=None, now_seconds=0.0)
    assert decision is not None
    return decision


@pytest.mark.parametrize(
    ("depth", "replicas"), [(0, 0), (1, 2), (5, 2), (6, 5), (20, 5), (21, 10), (5000, 10)], ids=str
)
def test_the_classic_table_answers_as_documented(depth: int, replicas: int) -> None:
    decision = _steps(waiting=float(depth))
    assert (decision.desired_replicas, decision.active) == (replicas, replicas > 0)
    assert decision.metric_value == replicas
    assert decision.target_value == 1.0


def test_requests_in_flight_are_in_the_system_too() -> None:
    assert _steps(waiting=4.0, in_flight=2.0).desired_replicas == 5


@pytest.mark.parametrize(
    ("waiting", "in_flight", "replicas"), [(0, 5, 2), (1, 4, 2), (0, 15, 5), (2, 18, 5), (0, 40, 10)]
)
def test_started_anew_its_rows_are_the_answer_however_much_is_in_flight(
    waiting: int, in_flight: int, replicas: int
) -> None:
    assert _steps(waiting=float(waiting), in_flight=float(in_flight)).desired_replicas == replicas


@pytest.mark.parametrize(
    ("table", "in_flight", "replicas"),
    [
        pytest.param("6:5", 3, 3, id="below the first row what is in flight keeps its replicas"),
        pytest.param("6:2,21:10", 5, 2, id="at most those of the first row"),
        pytest.param("6:2,21:10", 6, 2, id="so that one more does not mean fewer"),
        pytest.param("6:5,21:10", 21, 10, id="reached rows are the answer"),
    ],
)
def test_started_anew_a_table_that_begins_late_keeps_what_works(table: str, in_flight: int, replicas: int) -> None:
    sample = Sample(at_seconds=0.0, metric_value=0.0, active=True, waiting=0.0, in_flight=float(in_flight))
    goals = Goals(target_value=5.0, steps=parse_steps(table))
    decision, _ = decide(STEPS, goals, Memory(state=None), sample=sample, view=None, now_seconds=0.0)
    assert decision is not None
    assert decision.desired_replicas == replicas


def test_a_source_that_tells_no_waiting_is_read_by_its_metric() -> None:
    assert _steps(waiting=None, metric=21.0).desired_replicas == 10


def test_what_is_in_the_system_counts_whatever_the_metric_is_capped_at() -> None:
    sample = Sample(at_seconds=0.0, metric_value=2.0, active=True, in_system=21.0)
    decision, _ = decide(STEPS, CLASSIC, Memory(state=None), sample=sample, view=None, now_seconds=0.0)
    assert decision is not None
    assert decision.desired_replicas == 10


def test_a_table_is_required() -> None:
    assert STEPS.problems(Goals(target_value=5.0)) == (
        ("steps", 'required with policy steps: a table such as "1:2,6:5,21:10"'),
    )


def _utilization(total: float | None, metric: float, view: ReplicaView | None) -> int:
    sample = Sample(at_seconds=0.0, metric_value=metric, active=metric > 0, utilization_sum=total)
    goals = Goals(target_value=70.0)
    decision, _ = decide(UTILIZATION, goals, Memory(state=None), sample=sample, view=view, now_seconds=0.0)
    assert decision is not None
    return decision.desired_replicas


@pytest.mark.parametrize(
    ("total", "ready", "starting", "replicas"),
    [
        pytest.param(200.0, 2, 0, 3, id="two full replicas want a third"),
        pytest.param(200.0, 2, 1, 3, id="a starting replica is counted, not asked for again"),
        pytest.param(150.0, 2, 0, 2, id="within the tolerance nothing moves"),
        pytest.param(60.0, 3, 0, 1, id="little use scales in"),
        pytest.param(60.0, 1, 2, 3, id="while replicas start none is given up"),
        pytest.param(0.0, 3, 0, 0, id="no use is zero"),
    ],
)
def test_the_sum_of_use_is_divided_by_the_target(total: float, ready: int, starting: int, replicas: int) -> None:
    view = ReplicaView(at_seconds=0.0, ready=ready, starting_at_seconds=(0.0,) * starting)
    assert _utilization(total, total / max(ready, 1), view) == replicas


def test_without_a_sum_the_metric_is_the_sum() -> None:
    assert _utilization(None, 200.0, None) == 3


def test_a_load_that_saturates_does_not_multiply_while_replicas_load() -> None:
    memory: Memory[None] = Memory(state=None)
    asked = []
    for second in range(0, 120, 15):
        view = ReplicaView(at_seconds=float(second), ready=2, starting_at_seconds=(0.0,) * (1 if second else 0))
        sample = Sample(at_seconds=float(second), metric_value=100.0, active=True, utilization_sum=200.0)
        decision, memory = decide(
            UTILIZATION, Goals(target_value=70.0), memory, sample=sample, view=view, now_seconds=float(second)
        )
        assert decision is not None
        asked.append(decision.desired_replicas)
    assert set(asked) == {3}
