"""Offsets into lag, and lag into a metric: everything about Kafka that can be decided without a broker.

The rules are KEDA's (kafka_scaler.go, read at 8b4f083c) with differences on purpose, each with its reason at
the function: the low watermark counts, a committed offset past the end is invalid, unknown is no zero, no lag
is negative, the cap is strict, and persistent lag is told by time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt


@dataclass(frozen=True, slots=True, kw_only=True)
class LagRules:
    """How offsets become a metric. `persistent_lag_seconds` is None where persistent lag counts like any other."""

    lag_threshold: int
    activation_lag_threshold: int = 0
    earliest: bool = False
    zero_on_invalid_offset: bool = False
    allow_idle_consumers: bool = False
    persistent_lag_seconds: float | None = None
    limit_to_partitions_with_lag: bool = False
    even_distribution: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionReading:
    """One partition of one group.

    end            the log-end offset (high watermark), or None where the broker did not say
    start          the first offset still in the log, or None where it was not needed
    committed      the group's committed offset, or None where it has none
    arrived        messages that arrived since the partition was first read (at first: its end)
    completed      offsets that were committed since then (at first: what was committed)
    still_seconds  for how long the committed offset has been seen to stand still while there was lag
    done_messages  likely done and not committed yet, and ...
    done_most      ... at most (lumps.py)
    """

    topic: str
    partition: int
    end: int | None
    start: int | None
    committed: int | None
    arrived: int
    completed: int
    still_seconds: float
    done_messages: float = 0.0
    done_most: int = 0


@dataclass(frozen=True, slots=True)
class KafkaReading:
    """Every partition of the query's topics at one moment."""

    at_seconds: float
    partitions: tuple[PartitionReading, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over the partitions that count.

    `lag` leaves persistent lag out where the rules ask for that; `full_lag` never does. Of `lag`, `done_messages` are
    likely done and not committed yet, and at most `done_most`; one is always left to do, since nobody knows.
    """

    lag: int
    full_lag: int
    partitions: int
    with_lag: int
    stuck: int
    without_commit: int
    arrived: int
    completed: int
    done_messages: float
    done_most: int


def has_valid_offset(*, end: int | None, committed: int | None) -> bool:
    """Whether the group's committed offset is one its consumers could go on from.

    None: it never committed, its commit has expired, or the broker's answer left the partition out. Past the
    end: the topic was deleted and created anew (or lost messages), and a consumer that fetches there is told
    OFFSET_OUT_OF_RANGE and starts over by its reset policy.
    """
    return committed is not None and (end is None or committed <= end)


def lag_messages(
    *, end: int | None, committed: int | None, start: int | None, earliest: bool, zero_on_invalid_offset: bool
) -> int | None:
    """Messages between the group and the end of the partition; None where that is not known.

    | committed | policy   | zero_on_invalid | end     | lag                         | KEDA            |
    |-----------|----------|-----------------|---------|-----------------------------|-----------------|
    | none      | any      | yes             | any     | 0                           | same            |
    | none      | latest   | no              | any     | 1: a consumer must come     | same            |
    | none      | earliest | no              | known   | end - start                 | end (1)         |
    | none      | earliest | no              | unknown | None                        | 0 (2)           |
    | past end  | as none  |                 | known   | as none                     | negative        |
    | valid     | any      | any             | known   | end - max(committed, start) | end - committed (1) |
    | valid     | any      | any             | unknown | None                        | 0 (2)           |

    (1) KEDA counts what retention has deleted (kedacore/keda#7936). (2) KEDA takes an unknown for a zero.
    A partition that the broker's answer leaves out counts as none; KEDA fails then, forever (#4215).
    """
    if not has_valid_offset(end=end, committed=committed):
        if zero_on_invalid_offset:
            return 0
        if not earliest:
            return 1
        return None if end is None or start is None else max(end - start, 0)
    if end is None or committed is None:
        return None
    return max(end - max(committed, start or 0), 0)


def totals(partitions: Iterable[PartitionReading], rules: LagRules) -> Totals | None:
    """The sums, or None where some partition's lag is not known: a part is never taken for the whole."""
    lag = full_lag = count = with_lag = stuck = without_commit = arrived = completed = 0
    done_messages, done_most = 0.0, 0
    for reading in partitions:
        messages = lag_messages(
            end=reading.end,
            committed=reading.committed,
            start=reading.start,
            earliest=rules.earliest,
            zero_on_invalid_offset=rules.zero_on_invalid_offset,
        )
        if messages is None:
            return None
        count += 1
        full_lag += messages
        arrived += reading.arrived
        completed += reading.completed
        without_commit += reading.committed is None
        if messages > 0 and is_persistent(reading, rules):
            stuck += 1
            continue
        lag += messages
        done_messages += min(reading.done_messages, messages)
        done_most += min(reading.done_most, messages)
        with_lag += messages > 0
    return Totals(
        lag=lag,
        full_lag=full_lag,
        partitions=count,
        with_lag=with_lag,
        stuck=stuck,
        without_commit=without_commit,
        arrived=arrived,
        completed=completed,
        done_messages=max(min(done_messages, lag - 1.0), 0.0),
        done_most=done_most,
    )


def is_persistent(reading: PartitionReading, rules: LagRules) -> bool:
    """Whether the partition is stuck: its committed offset is valid and has stood still for long enough.

    By time, so that it does not matter who asks how often; KEDA compares with the last evaluation, whoever
    caused it, and takes a consumer that commits rarely for a stuck one. Partitions without a valid offset
    have nothing that could stand still (kedacore/keda#5274).
    """
    return (
        rules.persistent_lag_seconds is not None
        and reading.still_seconds >= rules.persistent_lag_seconds
        and has_valid_offset(end=reading.end, committed=reading.committed)
    )


def metric_value(sums: Totals, rules: LagRules) -> int:
    """The metric: lag, rounded up to an even distribution and capped where asked for.

    The cap is `min`, so that a lag of 59 over 5 partitions at threshold 10 gives 50 and thus 5 replicas.
    KEDA compares by integer division, 59 // 10 <= 5, and so asks for a sixth consumer that has no partition.
    """
    value = sums.lag
    if rules.even_distribution and sums.partitions > 0:
        value = even_factor(sums.lag, sums.partitions, rules.lag_threshold) * rules.lag_threshold
    if rules.limit_to_partitions_with_lag:
        return min(value, sums.with_lag * rules.lag_threshold)
    if rules.even_distribution or not rules.allow_idle_consumers:
        return min(value, sums.partitions * rules.lag_threshold)
    return value


def most_replicas(sums: Totals, rules: LagRules) -> int | None:
    """How many replicas can have work at once, by the cap of `metric_value`; None: it has none, or knows no partition.

    A partition is read by one consumer of a group, and a replica is taken for one.
    """
    if rules.limit_to_partitions_with_lag:
        return sums.with_lag
    if rules.even_distribution or not rules.allow_idle_consumers:
        return sums.partitions or None
    return None


def is_active(sums: Totals, rules: LagRules) -> bool:
    """Strictly above the activation threshold, persistent lag included."""
    return sums.full_lag > rules.activation_lag_threshold


def even_factor(lag: int, partitions: int, lag_threshold: int) -> int:
    """The smallest divisor `f` of `partitions` with `f * lag_threshold >= lag`, else `partitions`."""
    return next((factor for factor in divisors(partitions) if factor * lag_threshold >= lag), partitions)


@lru_cache(maxsize=1024)
def divisors(number: int) -> tuple[int, ...]:
    """Every divisor of `number`, rising."""
    low = [candidate for candidate in range(1, isqrt(number) + 1) if number % candidate == 0]
    return (*low, *(number // factor for factor in reversed(low) if factor * factor != number))
