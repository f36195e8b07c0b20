"""Kafka consumers that commit rarely: what is done and not committed is lag, and no reason for more replicas."""

from __future__ import annotations

import pytest

from scaler.core.model import Goals
from tests.policies.kafka_group import Commits, consumed
from tests.sources.kafka.helpers import configured

GOALS = Goals(target_value=1.0, wait_seconds=60.0, max_replicas=50)
TOPIC = {"bootstrapServers": "kafka:9092", "consumerGroup": "workers", "topic": "jobs", "lagThreshold": "1"}


def each(done: int, _: float) -> bool:
    return done >= 1


def by_twenty(done: int, _: float) -> bool:
    return done >= 20


def by_five(done: int, _: float) -> bool:
    return done >= 5


def half_minutely(_: int, past_seconds: float) -> bool:
    return past_seconds >= 30.0


def every_five_seconds(_: int, past_seconds: float) -> bool:
    return past_seconds >= 5.0


# The work is that of three replicas, and `slo` may take fifty. With all that is not committed taken for work it took
# 1.7, 2.3, 2.8, 9.7, 10 and 10 times as much, the last three with all fifty from the first minutes on.
@pytest.mark.parametrize("sees_replicas", [True, False], ids=["seen", "blind"])
@pytest.mark.parametrize(
    ("commits", "when_idle", "times_the_work"),
    [
        (each, True, 1.8),
        (by_twenty, True, 2.2),
        (every_five_seconds, False, 2.5),
        (by_five, False, 3.7),
        (by_twenty, False, 3.6),
        (half_minutely, False, 2.6),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_who_commits_rarely_is_not_given_ever_more_replicas(
    commits: Commits, *, when_idle: bool, times_the_work: float, sees_replicas: bool
) -> None:
    outcome = consumed(
        configured(TOPIC),
        GOALS,
        commits,
        commits_when_idle=when_idle,
        service_seconds=1.0,
        rate=3.0,
        partitions=50,
        hours=3.0,
        sees_replicas=sees_replicas,
    )
    assert outcome.replica_seconds_over_work <= times_the_work
    assert outcome.share_in_time >= 0.95
    assert outcome.most_replicas < GOALS.max_replicas
