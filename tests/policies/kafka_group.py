"""A group of Kafka consumers and its partitions, which commits as real ones do: each, every k, every few seconds."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from scaler.core.decide import Memory, decide
from scaler.core.model import Goals, ReplicaView, Sample
from scaler.policies.slo import POLICY, SloState
from scaler.sources.kafka import SOURCE
from scaler.sources.kafka.config import KafkaConfig
from scaler.sources.kafka.history import Track, advance
from scaler.sources.kafka.lag import KafkaReading, PartitionReading

Commits = Callable[[int, float], bool]  # whether to commit now: requests done since the last commit, seconds since then
STEP_SECONDS = 0.25
COLD_START_SECONDS = 60.0


@dataclass(slots=True)
class Partition:
    """One partition, its consumer group's offset, and what this project remembers of it."""

    waiting: deque[float] = field(default_factory=deque)  # when they came
    end: int = 0
    done: int = 0
    committed: int = 0
    track: Track = field(default_factory=lambda: Track(0, 0, 0, 0))


@dataclass(slots=True)
class Consumer:
    """Works on one request at a time, the oldest of its partitions."""

    partitions: list[Partition]
    committed_at_seconds: float
    at_work: tuple[Partition, float] | None = None
    left_seconds: float = 0.0
    done: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What it came to."""

    replica_seconds_over_work: float
    share_in_time: float
    service_seconds_learned: float
    most_replicas: int


def consumed(
    config: KafkaConfig,
    goals: Goals,
    commits: Commits,
    *,
    commits_when_idle: bool,
    service_seconds: float,
    rate: float,
    partitions: int,
    hours: float,
    sees_replicas: bool = True,
    sample_seconds: float = 2.0,
) -> Outcome:
    """Poisson arrivals to a group that has as many replicas as `slo` asks for, a cold start later."""
    chance = random.Random(1)
    places = [Partition() for _ in range(partitions)]
    memory: Memory[SloState] = Memory(state=POLICY.start())
    consumers: list[Consumer] = []
    starting: list[float] = []
    asked = most = begun = late = 0
    replica_seconds = work_seconds = now_seconds = 0.0
    next_arrival, next_look = chance.expovariate(rate), sample_seconds
    while now_seconds < hours * 3_600.0:
        now_seconds += STEP_SECONDS
        while next_arrival <= now_seconds:
            place = chance.choice(places)
            place.waiting.append(next_arrival)
            place.end += 1
            next_arrival += chance.expovariate(rate)
        starting = [at for at in starting if now_seconds - at < COLD_START_SECONDS]
        if asked - len(starting) != len(consumers):
            consumers = _rebalanced(consumers, asked - len(starting), places, now_seconds)
        for consumer in consumers:
            if consumer.at_work is not None:
                work_seconds += STEP_SECONDS
                consumer.left_seconds -= STEP_SECONDS
                if consumer.left_seconds > 0.0:
                    continue
                consumer.at_work[0].done += 1
                consumer.at_work = None
                consumer.done += 1
            work = min((place for place in consumer.partitions if place.waiting), key=_oldest, default=None)
            is_due = commits(consumer.done, now_seconds - consumer.committed_at_seconds)
            if is_due or (work is None and commits_when_idle):
                _commit(consumer, now_seconds)
            if work is not None:
                came = work.waiting.popleft()
                consumer.at_work = (work, came)
                consumer.left_seconds += service_seconds * chance.uniform(0.6, 1.4)
                begun += 1
                late += now_seconds - came > (goals.wait_seconds or 0.0)
        replica_seconds += asked * STEP_SECONDS
        if now_seconds >= next_look:
            next_look += sample_seconds
            sample = _looked(config, places, now_seconds, sample_seconds)
            view = ReplicaView(at_seconds=now_seconds, ready=len(consumers), starting_at_seconds=tuple(starting))
            decision, memory = decide(
                POLICY, goals, memory, sample=sample, view=view if sees_replicas else None, now_seconds=now_seconds
            )
            assert decision is not None
            more = decision.desired_replicas - asked
            starting = starting + [now_seconds] * more if more > 0 else starting[: max(len(starting) + more, 0)]
            asked = decision.desired_replicas
            most = max(most, asked)
    learned = memory.state.estimates.service_seconds(goals)
    return Outcome(replica_seconds / work_seconds, 1.0 - late / begun, learned, most)


def _oldest(place: Partition) -> float:
    return place.waiting[0]


def _commit(consumer: Consumer, now_seconds: float) -> None:
    for place in consumer.partitions:
        place.committed = place.done
    consumer.done, consumer.committed_at_seconds = 0, now_seconds


def _rebalanced(consumers: list[Consumer], count: int, places: list[Partition], now_seconds: float) -> list[Consumer]:
    """All commit what is done; what they were working on is begun again by whoever has its partition then."""
    for consumer in consumers:
        _commit(consumer, now_seconds)
        if consumer.at_work is not None:
            place, came = consumer.at_work
            place.waiting.appendleft(came)
    return [Consumer(places[index::count], now_seconds) for index in range(count)]


def _looked(config: KafkaConfig, places: list[Partition], now_seconds: float, gap_seconds: float) -> Sample:
    readings = []
    for number, place in enumerate(places):
        track = place.track
        advance(track, place.end, place.committed, None, gap_seconds)
        readings.append(
            PartitionReading(
                topic=config.topics[0],
                partition=number,
                end=place.end,
                start=0,
                committed=place.committed,
                arrived=track.arrived,
                completed=track.completed,
                still_seconds=track.still_seconds,
                done_messages=track.lumps.done_messages,
                done_most=track.done_most,
            )
        )
    return SOURCE.sample(config, KafkaReading(now_seconds, tuple(readings)), now_seconds=now_seconds, view=None)
