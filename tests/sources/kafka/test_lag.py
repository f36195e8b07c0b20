"""Offsets into lag and lag into a metric: the whole table, KEDA's own cases, and what must always hold."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.sources.kafka.lag import (
    LagRules,
    PartitionReading,
    divisors,
    even_factor,
    is_active,
    lag_messages,
    metric_value,
    most_replicas,
    totals,
)

END, START, COMMITTED = 100, 20, 60

# (committed, earliest, zero_on_invalid_offset, end, start) -> lag; None: not known.
TABLE: dict[tuple[int | None, bool, bool, int | None, int | None], int | None] = {
    # No committed offset, latest: one replica must come first, wherever the log ends. As KEDA.
    (None, False, False, END, START): 1,
    (None, False, False, END, None): 1,
    (None, False, False, None, START): 1,
    (None, False, False, None, None): 1,
    # ... unless the user asked for zero. As KEDA.
    (None, False, True, END, START): 0,
    (None, False, True, END, None): 0,
    (None, False, True, None, START): 0,
    (None, False, True, None, None): 0,
    # No committed offset, earliest: all that is still in the log. KEDA: 100, what retention deleted included.
    (None, True, False, END, START): 80,
    (None, True, False, END, None): None,
    # KEDA: 0. Unknown is no zero.
    (None, True, False, None, START): None,
    (None, True, False, None, None): None,
    (None, True, True, END, START): 0,
    (None, True, True, END, None): 0,
    (None, True, True, None, START): 0,
    (None, True, True, None, None): 0,
    # A valid offset: policy and flag don't matter.
    **{
        (COMMITTED, earliest, zero, END, start): 40
        for earliest, zero, start in product((False, True), (False, True), (START, None))
    },
    # KEDA: 0, "the Event Hub case". Unknown is no zero.
    **{
        (COMMITTED, earliest, zero, None, start): None
        for earliest, zero, start in product((False, True), (False, True), (START, None))
    },
    # Before the log's start: retention deleted what lies between. KEDA: 90, of which 10 can't be read by anyone.
    **{
        (10, earliest, zero, END, START): 80 for earliest, zero in product((False, True), (False, True))
    },
    # The start was not looked up.
    **{
        (10, earliest, zero, END, None): 90 for earliest, zero in product((False, True), (False, True))
    },
    **{
        (10, earliest, zero, None, start): None
        for earliest, zero, start in product((False, True), (False, True), (START, None))
    },
    # Past the end: the topic was created anew; consumers start over by their policy. KEDA: -50.
    (150, False, False, END, START): 1,
    (150, False, False, END, None): 1,
    (150, False, True, END, START): 0,
    (150, False, True, END, None): 0,
    (150, True, False, END, START): 80,
    (150, True, False, END, None): None,
    (150, True, True, END, START): 0,
    (150, True, True, END, None): 0,
    **{
        (150, earliest, zero, None, start): None
        for earliest, zero, start in product((False, True), (False, True), (START, None))
    },
    # At the end.
    **{
        (END, earliest, zero, end, start): (0 if end is not None else None)
        for earliest, zero, end, start in product((False, True), (False, True), (END, None), (START, None))
    },
}  # fmt: skip


@pytest.mark.parametrize(("given", "lag"), TABLE.items(), ids=str)
def test_lag_follows_the_table(
    given: tuple[int | None, bool, bool, int | None, int | None],
    lag: int | None,
) -> None:
    committed, earliest, zero, end, start = given
    assert (
        lag_messages(end=end, committed=committed, start=start, earliest=earliest, zero_on_invalid_offset=zero) == lag
    )


def test_the_table_is_the_full_cross_product() -> None:
    everything = product((None, 10, COMMITTED, END, 150), (False, True), (False, True), (END, None), (START, None))
    assert set(TABLE) == set(everything)


RULES = LagRules(lag_threshold=10)


def reading(**changes: Any) -> PartitionReading:
    base = PartitionReading(
        topic="t", partition=0, end=100, start=None, committed=50, arrived=100, completed=50, still_seconds=0.0
    )
    return replace(base, **changes)


def metric(lags: list[int], rules: LagRules, still_seconds: float = 0.0) -> int:
    partitions = [
        reading(partition=number, committed=1000 - lag, end=1000, still_seconds=still_seconds)
        for number, lag in enumerate(lags)
    ]
    sums = totals(partitions, rules)
    assert sums is not None
    return metric_value(sums, rules)


def active(lags: list[int], rules: LagRules, still_seconds: float = 0.0) -> bool:
    sums = totals(
        [
            reading(partition=number, committed=1000 - lag, end=1000, still_seconds=still_seconds)
            for number, lag in enumerate(lags)
        ],
        rules,
    )
    assert sums is not None
    return is_active(sums, rules)


@pytest.mark.parametrize(
    ("lags", "rules", "expected"),
    [
        pytest.param([50], RULES, 10, id="one partition feeds one consumer"),
        pytest.param([50], replace(RULES, allow_idle_consumers=True), 50, id="idle consumers allowed: no cap"),
        # KEDA: 59, since 59 // 10 is not above 5; the HPA then asks for a sixth consumer.
        pytest.param([59, 0, 0, 0, 0], RULES, 50, id="the cap is strict"),
        pytest.param([9, 9, 9, 9, 9], RULES, 45, id="below the cap nothing changes"),
        pytest.param(
            [500, 0, 7], replace(RULES, limit_to_partitions_with_lag=True), 20, id="two of three partitions have lag"
        ),
        pytest.param([5, 0], replace(RULES, limit_to_partitions_with_lag=True), 5, id="limit above the lag"),
        pytest.param([0, 0], replace(RULES, limit_to_partitions_with_lag=True), 0, id="no partition has lag"),
        pytest.param(
            [5] + [0] * 9,
            replace(RULES, lag_threshold=1, even_distribution=True),
            5,
            id="KEDA e2e: 10 partitions, lag 5 gives 5",
        ),
        pytest.param(
            [8] + [0] * 9,
            replace(RULES, lag_threshold=1, even_distribution=True),
            10,
            id="KEDA e2e: 10 partitions, lag 8 gives 10",
        ),
        pytest.param([0] * 10, replace(RULES, even_distribution=True), 10, id="even distribution of no lag is one"),
        pytest.param(
            [5000] + [0] * 9,
            replace(RULES, even_distribution=True, allow_idle_consumers=True),
            100,
            id="even distribution caps although idle consumers are allowed",
        ),
        pytest.param([], RULES, 0, id="a group without any topic"),
        pytest.param([], replace(RULES, even_distribution=True), 0, id="even distribution of no partitions"),
    ],
)
def test_metric(lags: list[int], rules: LagRules, expected: int) -> None:
    assert metric(lags, rules) == expected


PERSISTENT = replace(RULES, persistent_lag_seconds=120.0, allow_idle_consumers=True)


@pytest.mark.parametrize(
    ("still_seconds", "expected"),
    [
        pytest.param(0.0, 30, id="moving"),
        pytest.param(119.9, 30, id="standing for less than the limit, however many reads that were"),
        pytest.param(120.0, 0, id="standing for the limit"),
    ],
)
def test_persistent_lag_leaves_the_metric_by_time_and_stays_in_activation(still_seconds: float, expected: int) -> None:
    assert metric([30], PERSISTENT, still_seconds) == expected
    assert active([30], PERSISTENT, still_seconds)
    assert metric([30], replace(PERSISTENT, persistent_lag_seconds=None), still_seconds) == 30


def test_invalid_offsets_are_never_persistent() -> None:
    sums = totals([reading(committed=None, still_seconds=1e6)], PERSISTENT)
    assert sums is not None
    assert (sums.lag, sums.stuck) == (1, 0)


def test_partitions_with_lag_leaves_stuck_ones_out() -> None:
    rules = replace(RULES, persistent_lag_seconds=120.0, limit_to_partitions_with_lag=True)
    sums = totals([reading(still_seconds=200.0), reading(partition=1)], rules)
    assert sums is not None
    assert (sums.with_lag, sums.stuck, sums.lag, sums.full_lag) == (1, 1, 50, 100)
    assert metric_value(sums, rules) == 10


@pytest.mark.parametrize(
    ("lags", "rules", "most"),
    [
        pytest.param([500, 0, 7], RULES, 3, id="a consumer for each partition"),
        pytest.param([0, 0, 0], RULES, 3, id="whether or not it has lag"),
        pytest.param([500, 0, 7], replace(RULES, allow_idle_consumers=True), None, id="idle consumers allowed"),
        pytest.param([500, 0, 7], replace(RULES, limit_to_partitions_with_lag=True), 2, id="partitions with lag"),
        pytest.param([0, 0], replace(RULES, limit_to_partitions_with_lag=True), 0, id="none has lag"),
        pytest.param(
            [5, 0], replace(RULES, allow_idle_consumers=True, limit_to_partitions_with_lag=True), 1, id="both asked for"
        ),
        pytest.param(
            [5, 0], replace(RULES, allow_idle_consumers=True, even_distribution=True), 2, id="even distribution caps"
        ),
        pytest.param([], RULES, None, id="of no partitions nothing is known"),
    ],
)
def test_replicas_that_can_have_work_at_once(lags: list[int], rules: LagRules, most: int | None) -> None:
    partitions = [reading(partition=number, committed=1000 - lag, end=1000) for number, lag in enumerate(lags)]
    sums = totals(partitions, rules)
    assert sums is not None
    assert most_replicas(sums, rules) == most
    if most:
        assert metric_value(sums, rules) <= most * rules.lag_threshold


def test_one_unknown_partition_makes_the_whole_unknown() -> None:
    assert totals([reading(), reading(partition=1, end=None)], RULES) is None


@pytest.mark.parametrize(
    ("threshold", "lag", "expected"),
    [(0, 0, False), (0, 1, True), (5, 5, False), (5, 6, True)],
    ids=["none", "one", "at the threshold", "above it"],
)
def test_active_strictly_above_the_activation_threshold(threshold: int, lag: int, *, expected: bool) -> None:
    assert active([lag], replace(RULES, activation_lag_threshold=threshold)) is expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1, (1,)),
        (10, (1, 2, 5, 10)),
        (13, (1, 13)),
        (17, (1, 17)),
        (25, (1, 5, 25)),
        (50, (1, 2, 5, 10, 25, 50)),
        (100, (1, 2, 4, 5, 10, 20, 25, 50, 100)),
    ],
)
def test_divisors_as_kedas_table(number: int, expected: tuple[int, ...]) -> None:
    assert divisors(number) == expected


@pytest.mark.parametrize(
    ("lag", "factor"), [(10, 1), (20, 2), (40, 4), (50, 5), (99, 10), (100, 10), (101, 20), (1001, 100), (0, 1)]
)
def test_even_factor_as_kedas_table(lag: int, factor: int) -> None:
    assert even_factor(lag, 100, 10) == factor


offsets = st.integers(0, 2**62)
rules_strategy = st.builds(
    LagRules,
    lag_threshold=st.integers(1, 10**6),
    activation_lag_threshold=st.integers(0, 10**6),
    earliest=st.booleans(),
    zero_on_invalid_offset=st.booleans(),
    allow_idle_consumers=st.booleans(),
    persistent_lag_seconds=st.none() | st.floats(1, 1000),
    limit_to_partitions_with_lag=st.booleans(),
    even_distribution=st.booleans(),
)
partition_strategy = st.builds(
    PartitionReading,
    topic=st.just("t"),
    partition=st.integers(0, 100),
    end=offsets,
    start=offsets,
    committed=st.none() | offsets,
    arrived=offsets,
    completed=offsets,
    still_seconds=st.floats(0, 1e6),
)


@given(st.lists(partition_strategy, max_size=40), rules_strategy)
def test_lag_is_never_negative_and_the_cap_always_holds(partitions: list[PartitionReading], rules: LagRules) -> None:
    sums = totals(partitions, rules)
    assert sums is not None
    assert 0 <= sums.lag <= sums.full_lag
    assert sums.with_lag <= sums.partitions
    value = metric_value(sums, rules)
    assert value >= 0
    if rules.limit_to_partitions_with_lag:
        assert value <= sums.with_lag * rules.lag_threshold
    if not rules.allow_idle_consumers:
        assert value <= sums.partitions * rules.lag_threshold
    if value > 0 and not rules.even_distribution:
        assert sums.full_lag > 0


@given(st.lists(partition_strategy, min_size=1, max_size=20), rules_strategy, st.integers(1, 10**6))
def test_more_messages_never_mean_a_smaller_metric(
    partitions: list[PartitionReading], rules: LagRules, more: int
) -> None:
    # Valid offsets only: a message that arrives may turn an offset past the end into a valid one.
    partitions = [
        replace(one, committed=min(one.committed or 0, one.end or 0), still_seconds=0.0) for one in partitions
    ]
    before = totals(partitions, rules)
    fuller = [replace(partitions[0], end=(partitions[0].end or 0) + more), *partitions[1:]]
    after = totals(fuller, rules)
    assert before is not None
    assert after is not None
    assert metric_value(after, rules) >= metric_value(before, rules)


@given(st.integers(1, 5000), st.integers(0, 10**6), st.integers(1, 1000))
def test_an_even_factor_divides_the_partitions_and_covers_the_lag(partitions: int, lag: int, threshold: int) -> None:
    factor = even_factor(lag, partitions, threshold)
    assert partitions % factor == 0
    assert factor * threshold >= lag or factor == partitions
