"""What is made of a server's answer: results to numbers, numbers to samples. Nothing here does I/O."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.core.model import ReplicaView, Sample
from scaler.errors import SourceError, SourceNoData, SourceTimeout, SourceUnavailable
from scaler.promql.questions import Answer, Result, Series, age_seconds, one_number, read_result
from tests.sources.prometheus.server import config_of, parse

GOOD = {"serverAddress": "http://prometheus:9090", "threshold": "10", "query": "sum(queue)"}
NOW_SECONDS = 1_700_000_000.0


def vector(*values: float) -> Result:
    return Result(
        kind="vector", series=tuple(Series(labels={}, value=v, evaluated_at_seconds=NOW_SECONDS) for v in values)
    )


def sample(
    answer: Result | Answer, metadata: dict[str, str] | None = None, *, view: ReplicaView | None = None
) -> Sample:
    if isinstance(answer, Result):
        answer = Answer(at_seconds=5.0, result=answer)
    trigger = parse(GOOD | (metadata or {}))
    return trigger.source.sample(trigger.config, answer, now_seconds=6.0, view=view)


@dataclass(frozen=True)
class Row:
    """One row of KEDA's matrix: what it makes of `data`, and what we do (a number, or an error's class)."""

    name: str
    data: str
    keda: str
    ours: float | type[SourceError]


# KEDA's answers are with ignoreNullValues at its default, true; no data means 0 there.
ROWS = [
    Row("an empty result", '{"result": []}', "0", SourceNoData),
    Row("a series with an empty sample", '{"result": [{"value": []}]}', "0", SourceNoData),
    Row("a sample that is null", '{"result": [{"value": null}]}', "-1", SourceNoData),
    Row("a value", '{"result": [{"value": ["1", "2"]}]}', "2", 2.0),
    Row("a sample without a value", '{"result": [{"value": ["1"]}]}', "error", SourceUnavailable),
    Row("several series", '{"result": [{"value": [1, "1"]}, {"value": [1, "2"]}]}', "error", SourceUnavailable),
    Row("+Inf", '{"result": [{"value": [1, "+Inf"]}]}', "0", SourceNoData),
    Row("-Inf", '{"result": [{"value": [1, "-Inf"]}]}', "0", SourceNoData),
    Row("NaN", '{"result": [{"value": [1, "NaN"]}]}', "0", SourceNoData),
    Row("no number", '{"result": [{"value": [1, "two"]}]}', "error", SourceUnavailable),
    Row("a negative number", '{"result": [{"value": [1, "-3"]}]}', "-3", -3.0),
    Row("a scalar", '{"resultType": "scalar", "result": [1, "4"]}', "error", 4.0),
    Row("a string that is a number", '{"resultType": "string", "result": [1, "4"]}', "error", 4.0),
    Row("a string that is none", '{"resultType": "string", "result": [1, "x"]}', "error", SourceUnavailable),
    Row("a matrix", '{"resultType": "matrix", "result": [{"values": [[1, "1"]]}]}', "error", SourceUnavailable),
    Row("an unknown type", '{"resultType": "tensor", "result": []}', "error", SourceUnavailable),
    Row("a histogram", '{"result": [{"histogram": [1, {}]}]}', "error", SourceUnavailable),
    Row("an exponent", '{"result": [{"value": [1, "1e3"]}]}', "1000", 1000.0),
    Row("a number that is too large", '{"result": [{"value": [1, "1e999"]}]}', "0", SourceNoData),
    Row("an underscore", '{"result": [{"value": [1, "1_000"]}]}', "error", SourceUnavailable),
    Row("a boolean", '{"result": [{"value": [1, true]}]}', "error", SourceUnavailable),
    Row("labels that are no strings", '{"result": [{"metric": {"a": 1}, "value": [1, "1"]}]}', "1", SourceUnavailable),
    Row("a result that is no list", '{"resultType": "vector", "result": {"a": 1}}', "error", SourceUnavailable),
    Row("elements that are no series", '{"resultType": "vector", "result": [1]}', "error", SourceUnavailable),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_result_is_one_number_or_an_error_and_never_a_zero_by_accident(row: Row) -> None:
    data = json.loads(row.data)

    def read() -> Sample:
        return sample(read_result(data.get("resultType"), data["result"], what="test"))

    if isinstance(row.ours, float):
        assert read().metric_value == row.ours
    else:
        with pytest.raises(row.ours) as found:
            read()
        assert type(found.value) is row.ours


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["metric", "value", "a"]), inner),
    max_leaves=8,
)


@given(st.sampled_from([None, "vector", "scalar", "string", "matrix", 3]), json_values)
def test_any_answer_is_a_finite_number_or_a_source_error(kind: object, result: object) -> None:
    try:
        found = sample(read_result(kind, result, what="test"))
    except SourceError:
        return
    assert math.isfinite(found.metric_value)


@pytest.mark.parametrize(
    ("value", "activation", "active"),
    [(0.0, "0", False), (0.5, "0", True), (5.0, "5", False), (5.1, "5", True), (-1.0, "-2", True), (-3.0, "-2", False)],
)
def test_strictly_above_the_activation_threshold_is_active(value: float, activation: str, *, active: bool) -> None:
    found = sample(vector(value), {"activationThreshold": activation})
    assert found.active is active
    assert found.metric_value == value
    assert found.waiting == max(value, 0.0)


@pytest.mark.parametrize("said", [{}, {"ignoreNullValues": "true"}, {"ignoreNullValues": "false"}])
@pytest.mark.parametrize("result", [vector(), vector(math.nan)], ids=["empty", "NaN"])
def test_no_data_is_never_zero_whatever_ignore_null_values_says(said: dict[str, str], result: Result) -> None:
    with pytest.raises(SourceNoData):
        sample(result, said)


@pytest.mark.parametrize("result", [vector(), vector(math.nan)], ids=["empty", "NaN"])
def test_no_data_is_zero_where_it_was_asked_for(result: Result) -> None:
    found = sample(result, {"onNoData": "zero"})
    assert (found.metric_value, found.active, found.waiting) == (0.0, False, 0.0)


def test_an_infinite_value_is_no_data_even_where_zero_was_asked_for() -> None:
    with pytest.raises(SourceNoData, match="division"):
        sample(vector(math.inf), {"onNoData": "zero"})


@pytest.mark.parametrize(
    ("freshness", "age"),
    [
        (vector(30.0), 30.0),
        (vector(NOW_SECONDS - 30.0), 30.0),
        (vector(NOW_SECONDS + 5.0), 0.0),
        (vector(-2.0), 0.0),
        (vector(0.0), 0.0),
    ],
    ids=["an age", "a time", "a time in the future", "a negative age", "now"],
)
def test_freshness_is_an_age_or_a_time_on_the_servers_clock(freshness: Result, age: float) -> None:
    assert age_seconds(freshness, what="test") == age


@pytest.mark.parametrize(
    ("freshness", "fine"),
    [
        (vector(59.0), True),
        (vector(61.0), False),
        (vector(NOW_SECONDS - 61.0), False),
        (vector(), False),
        (vector(math.nan), False),
        (vector(math.inf), False),
        (vector(1.0, 2.0), False),
        (SourceTimeout("slow"), False),
    ],
    ids=["fresh", "stale", "stale time", "empty", "NaN", "Inf", "two series", "failed"],
)
@pytest.mark.parametrize("zero", [{}, {"onNoData": "zero"}], ids=["hold", "zero"])
def test_a_stale_value_is_no_sample_even_where_no_data_means_zero(
    freshness: Result | SourceError, zero: dict[str, str], *, fine: bool
) -> None:
    answer = Answer(at_seconds=5.0, result=vector(0.0), freshness=freshness)
    metadata = {"freshnessQuery": "time() - max(timestamp(queue))", "staleSeconds": "60"} | zero
    if fine:
        assert sample(answer, metadata).raw["age_seconds"] == 59.0
    else:
        with pytest.raises(SourceError):
            sample(answer, metadata)


def seen(ready: int, *, starting: int = 0, terminating: int = 0) -> ReplicaView:
    return ReplicaView(at_seconds=5.0, ready=ready, starting_at_seconds=(1.0,) * starting, terminating=terminating)


WAKE = {"wakeQuery": "sum(gateway_waiting)"}


@pytest.mark.parametrize(
    ("result", "wake", "view", "expected"),
    [
        (vector(0.0), vector(3.0), None, (0.0, True, 3.0)),
        (vector(0.0), vector(0.0), None, (0.0, False, 0.0)),
        (vector(0.0), vector(), None, (0.0, False, 0.0)),
        (vector(7.0), SourceTimeout("slow"), None, (7.0, True, 7.0)),
        (vector(0.0), SourceTimeout("slow"), None, SourceTimeout),
        (vector(), vector(3.0), None, (10.0, True, 3.0)),
        (vector(), vector(3.0), seen(2), (10.0, True, 3.0)),
        (vector(), vector(0.0), None, (0.0, False, 0.0)),
        (vector(), vector(0.0), seen(0), (0.0, False, 0.0)),
        (vector(), vector(0.0), seen(2), SourceNoData),
        (vector(), vector(), None, SourceNoData),
        (vector(), vector(), seen(0), SourceNoData),
        (vector(), SourceTimeout("slow"), None, SourceTimeout),
    ],
    ids=[
        "waiting upstream wakes",
        "nothing waits",
        "no series upstream adds nothing",
        "active anyway",
        "unknown is not inactive",
        "own series gone, waiting upstream",
        "own series gone while replicas serve, waiting upstream",
        "own series gone, nothing waits",
        "nothing waits, no replica seen",
        "nothing waits, but replicas serve unseen",
        "neither has data",
        "neither has data, no replica seen",
        "own series gone, waking unknown",
    ],
)
def test_the_wake_query_wakes_and_decides_while_the_own_series_are_gone(
    result: Result,
    wake: Result | SourceError,
    view: ReplicaView | None,
    expected: tuple[float, bool, float] | type[SourceError],
) -> None:
    answer = Answer(at_seconds=5.0, result=result, wake=wake)
    if isinstance(expected, tuple):
        found = sample(answer, WAKE, view=view)
        assert (found.metric_value, found.active, found.waiting) == expected
    else:
        with pytest.raises(expected):
            sample(answer, WAKE, view=view)


def test_an_empty_result_stays_no_data_when_no_replica_is_seen() -> None:
    with pytest.raises(SourceNoData):
        sample(vector(), view=seen(0))


def test_one_number_raises_the_error_that_a_part_holds() -> None:
    with pytest.raises(SourceTimeout):
        one_number(SourceTimeout("slow"), what="test")


def test_a_sample_is_as_old_as_its_read() -> None:
    assert sample(vector(1.0)).at_seconds == 5.0


def test_the_question_carries_all_queries_and_parameters() -> None:
    trigger = parse(
        GOOD
        | WAKE
        | {"namespace": "team a", "queryParameters": "dedup=true", "freshnessQuery": "1", "timeout": "500ms"}
    )
    question = trigger.source.query(trigger.config)
    assert question.parameters == (("namespace", "team a"), ("dedup", "true"))
    assert (question.freshness, question.wake, question.timeout_seconds) == ("1", "sum(gateway_waiting)", 0.5)
    assert config_of(GOOD | {"timeout": "0"}).common.timeout_seconds is None
