"""KEDA's five modes over what the management API tells, and where stuck consumers make us differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.core.model import ReplicaView
from scaler.sources.rabbitmq import SOURCE
from scaler.sources.rabbitmq.config import Mode
from scaler.sources.rabbitmq.reading import Counts, counts_of, measure, one, several
from tests.sources.rabbitmq.support import config_of

QUEUE, MESSAGE, DELIVER, RATIO, ETA = Mode


@dataclass(frozen=True)
class Case:
    """Messages m, publish rate p, delivery rate d, connected consumers c; KEDA's (metric, active) and ours."""

    mode: Mode
    m: float
    p: float
    d: float
    keda: tuple[float, bool]
    ours: tuple[float, bool] | None = None  # None: as KEDA
    c: float | None = 1
    a: float = 0
    why: str = ""


STUCK = "work and no deliveries: consumers are stuck, and stuck consumers scale up"
ASLEEP = "work and nobody connected: one replica is wanted, though KEDA's mode sees no rate"
KEEP = 100.0  # the metric of one replica (value) in these cases

CASES = [
    Case(QUEUE, 0, 0, 0, (0, False)),
    Case(QUEUE, 1, 0, 0, (1, True)),
    Case(QUEUE, 4, 1.4, 0.5, (4, True)),
    Case(QUEUE, 4, 0, 0, (4, False), a=4),
    Case(QUEUE, 5, 0, 0, (5, True), a=4),
    Case(MESSAGE, 0, 0, 0, (0, False)),
    Case(MESSAGE, 4, 0, 0, (0, True)),
    Case(MESSAGE, 0, 1.4, 0, (1.4, True)),
    Case(MESSAGE, 4, 1.4, 0, (1.4, True)),
    Case(MESSAGE, 1, 1.4, 0, (1.4, False), a=2),
    Case(DELIVER, 0, 0, 0, (0, False)),
    Case(DELIVER, 0, 1.4, 0, (0, False)),
    Case(DELIVER, 4, 1.4, 0.5, (0.5, True)),
    Case(DELIVER, 4, 1.4, 0.5, (0.5, False), a=0.5),
    Case(DELIVER, 4, 0, 0, (0, False), (KEEP, True), why=STUCK),
    Case(DELIVER, 4, 700, 0, (0, False), (700, True), why=STUCK),
    Case(DELIVER, 4, 700, 0, (0, False), (KEEP, True), c=0, why=ASLEEP),
    Case(RATIO, 0, 0, 0, (0, False)),
    Case(RATIO, 4, 0, 2, (0, False)),
    Case(RATIO, 0, 3, 2, (1.5, True)),
    Case(RATIO, 4, 3, 2, (1.5, True)),
    Case(RATIO, 4, 3, 2, (1.5, False), a=1.5),
    Case(RATIO, 0, 1.4, 0, (0, True), (KEEP, True), why=STUCK),
    Case(RATIO, 0, 1.4, 0, (5, True), (KEEP, True), a=5, why=STUCK),
    Case(RATIO, 0, 50, 0, (0, True), (250, True), why=STUCK),
    Case(RATIO, 4, 50, 0, (0, True), (KEEP, True), c=0, why=ASLEEP),
    Case(RATIO, 4, 0, 0, (0, False), (KEEP, True), why=STUCK),
    Case(ETA, 0, 0, 0, (0, False)),  # idle
    Case(ETA, 0, 0.5, 1.5, (0, False)),  # drained, the rate decays
    Case(ETA, 10, 3, 2, (5.5, True)),
    Case(ETA, 4, 0, 2, (1, False), a=1),
    Case(ETA, 4, 0, 2, (1, True)),
    Case(ETA, 10, 3, 0, (0, True), (KEEP, True), c=0, why=ASLEEP),  # backlog without consumers
    Case(ETA, 10, 3, 0, (7, True), (KEEP, True), c=0, a=7, why=ASLEEP),
    Case(ETA, 1000, 3, 0, (0, True), (5014, True), why=STUCK),
    Case(ETA, 1000, 3, 0, (0, True), (5014, True), c=None, why=STUCK),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.mode.value}-m{c.m:g}-p{c.p:g}-d{c.d:g}-c{c.c}-A{c.a:g}")
def test_a_mode_measures_as_keda_but_for_stuck_consumers(case: Case) -> None:
    counts = Counts(ready=case.m, unacknowledged=0.0, publish_rate=case.p, deliver_rate=case.d, consumers=case.c)
    assert bool(case.why) == (case.ours is not None), "a case that differs says why"
    metric, active = measure(case.mode, counts, case.m, activation=case.a, keep=KEEP)
    expected_metric, expected_active = case.keda if case.ours is None else case.ours
    assert metric == pytest.approx(expected_metric)
    assert active is expected_active


def config(mode: Mode, **more: str) -> Any:
    metadata = {"queueName": "q", "host": "http://h/", "mode": mode.value, "value": "100"} | more
    return config_of(metadata)


def sample(config: Any, *queues: Counts, view: ReplicaView | None = None) -> Any:
    found = several(queues, 7.0) if config.regex else one(queues[0], 7.0)
    return SOURCE.sample(config, found, now_seconds=8.0, view=view)


def view(ready: int, starting: int = 0) -> ReplicaView:
    return ReplicaView(at_seconds=0.0, ready=ready, starting_at_seconds=(0.0,) * starting)


def test_while_nothing_is_consumed_the_replicas_that_are_there_are_kept() -> None:
    unattended = Counts(ready=1000, unacknowledged=0, publish_rate=9, consumers=0)
    for mode in (DELIVER, RATIO, ETA):
        assert sample(config(mode), unattended).metric_value == 100
        assert sample(config(mode), unattended, view=view(0)).metric_value == 100
        assert sample(config(mode), unattended, view=view(2, starting=3)).metric_value == 500


def test_a_negative_expectation_is_zero() -> None:
    leaving = sample(config(ETA), Counts(ready=1, unacknowledged=0, publish_rate=0, deliver_rate=10))
    assert (leaving.metric_value, leaving.active) == (0, False)


def test_unacknowledged_messages_count_unless_excluded() -> None:
    counts = Counts(ready=3, unacknowledged=4)
    with_them = sample(config(QUEUE), counts)
    without = sample(config(QUEUE, excludeUnacknowledged="true"), counts)
    assert (with_them.metric_value, without.metric_value) == (7, 3)
    assert (without.waiting, without.in_flight) == (3, 4), "what is told of the work does not depend on the metric"


MATCHES = (
    Counts(ready=3, unacknowledged=2, publish_rate=1.5, deliver_rate=0.5, consumers=1, published_total=9),
    Counts(ready=0, unacknowledged=6, publish_rate=2.5, deliver_rate=4.5, consumers=2, completed_total=8),
    Counts(ready=4, unacknowledged=0, publish_rate=0.0, deliver_rate=1.0, consumers=0),
)
OPERATED = [
    # operation, excludeUnacknowledged, mode, metric
    ("sum", False, QUEUE, 15),
    ("sum", True, QUEUE, 7),
    ("sum", False, MESSAGE, 4),
    ("sum", False, DELIVER, 6),
    ("sum", False, RATIO, 4 / 6),
    ("sum", False, ETA, (4 - 6) / 6 + 15 / 6),
    ("avg", False, QUEUE, 5),
    ("avg", True, QUEUE, 2),  # 7 / 3, truncated as KEDA's integers are
    ("avg", False, MESSAGE, 4 / 3),
    ("avg", False, DELIVER, 2),
    ("max", False, QUEUE, 6),
    ("max", True, QUEUE, 4),
    ("max", False, MESSAGE, 2.5),
    ("max", False, DELIVER, 4.5),
    ("max", False, RATIO, 2.5 / 4.5),  # each field by itself, as KEDA has it
    ("max", True, ETA, (2.5 - 4.5) / 4.5 + 4 / 4.5),
]


@pytest.mark.parametrize(("operation", "exclude", "mode", "metric"), OPERATED)
def test_queues_that_match_become_one_by_the_operation(
    operation: str, exclude: bool, mode: Mode, metric: float
) -> None:
    one_of_many = config(mode, useRegex="true", operation=operation, excludeUnacknowledged=str(exclude).lower())
    found = sample(one_of_many, *MATCHES)
    assert found.metric_value == pytest.approx(metric)
    assert (found.waiting, found.in_flight) == (7, 8), "the work is the sum, whatever the metric"


def test_no_queue_matches_is_zero_and_inactive() -> None:
    for operation in ("sum", "avg", "max"):
        for mode in Mode:
            found = sample(config(mode, useRegex="true", operation=operation))
            assert (found.metric_value, found.active, found.waiting, found.in_flight) == (0, False, 0, 0)


def test_totals_of_several_queues_are_not_told_since_a_deleted_queue_takes_its_part_along() -> None:
    found = sample(config(QUEUE, useRegex="true"), *MATCHES)
    assert (found.arrived_total, found.completed_total) == (None, None)


ROWS: list[tuple[str, Mapping[str, object], Counts | None]] = [
    ("new: no statistics yet", {"name": "q"}, None),
    ("ready only", {"messages_ready": 3}, None),
    ("no traffic so far", {"messages_ready": 0, "messages_unacknowledged": 0}, Counts(ready=0, unacknowledged=0)),
    (
        "all of it",
        {
            "messages_ready": 3,
            "messages_unacknowledged": 1,
            "consumers": 2,
            "message_stats": {
                "publish": 10,
                "publish_details": {"rate": 1.5},
                "deliver_get_details": {"rate": 0.5},
                "ack": 5,
                "deliver_no_ack": 1,
                "get_no_ack": 2,
            },
        },
        Counts(
            ready=3,
            unacknowledged=1,
            consumers=2,
            publish_rate=1.5,
            deliver_rate=0.5,
            published_total=10,
            completed_total=8,
        ),
    ),
    ("negative", {"messages_ready": -1, "messages_unacknowledged": 0}, None),
    ("text", {"messages_ready": "3", "messages_unacknowledged": 0}, None),
    ("not a number", {"messages_ready": math.nan, "messages_unacknowledged": 0}, None),
    ("endless", {"messages_ready": 10**400, "messages_unacknowledged": 0}, None),
    ("flag", {"messages_ready": True, "messages_unacknowledged": 0}, None),
    (
        "odd statistics",
        {"messages_ready": 1, "messages_unacknowledged": 0, "message_stats": [], "consumers": None},
        Counts(ready=1, unacknowledged=0),
    ),
    (
        "odd rates",
        {"messages_ready": 1, "messages_unacknowledged": 0, "message_stats": {"publish_details": {"rate": math.inf}}},
        Counts(ready=1, unacknowledged=0),
    ),
    (
        "rates too small to divide by",
        {
            "messages_ready": 1,
            "messages_unacknowledged": 0,
            "message_stats": {"deliver_get_details": {"rate": 5e-324}, "publish_details": {"rate": 1e300}},
        },
        Counts(ready=1, unacknowledged=0, publish_rate=1e15),
    ),
]


@pytest.mark.parametrize(("row", "expected"), [case[1:] for case in ROWS], ids=[case[0] for case in ROWS])
def test_a_row_without_usable_counts_is_unknown_never_zero(row: Mapping[str, object], expected: Counts | None) -> None:
    assert counts_of(row) == expected


# What `counts_of` lets through.
amounts = st.just(0.0) | st.floats(min_value=1e-6, max_value=1e15)


@given(
    mode=st.sampled_from(Mode), messages=st.integers(0, 10**9), p=amounts, d=amounts, c=st.none() | st.integers(0, 9)
)
def test_every_metric_is_finite_and_never_negative(
    mode: Mode, messages: int, p: float, d: float, c: int | None
) -> None:
    found = sample(config(mode), Counts(ready=messages, unacknowledged=0, publish_rate=p, deliver_rate=d, consumers=c))
    assert math.isfinite(found.metric_value)
    assert found.metric_value >= 0


@given(mode=st.sampled_from([QUEUE, DELIVER, RATIO, ETA]), messages=st.integers(1, 10**6), more=st.integers(1, 10**6))
def test_more_stuck_messages_never_mean_less(mode: Mode, messages: int, more: int) -> None:
    def stuck(count: int) -> float:
        return float(sample(config(mode), Counts(ready=count, unacknowledged=0, consumers=1)).metric_value)

    assert stuck(messages + more) >= stuck(messages) > 0
