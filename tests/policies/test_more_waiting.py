"""More waiting never means fewer replicas now (issue 3, item 9): after histories of queues that are really served.

What is drawn at random for each reading (test_every_policy.py) seldom is what a policy meets: here requests come, wait
and are worked on by the replicas that were asked for, with a view or without, with sources of every kind; one moment is
then read with more and more waiting.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scaler.core.decide import Memory, decide
from scaler.core.model import Decision, Goals, ReplicaView, Sample
from scaler.plugins import policies
from scaler.trigger import parse_steps

POLICIES = policies()
RATES = (0.0, 0.05, 0.5, 2.0, 10.0)  # arrivals a second


@dataclass
class Queue:
    """What truly waits, runs and serves, roughly."""

    chance: random.Random
    concurrency: int
    cold_start_seconds: float
    service_seconds: float
    rate: float
    waiting: int = 0
    in_flight: int = 0
    ready: int = 0
    starting: list[float] = field(default_factory=list)
    arrived: int = 0
    completed: int = 0

    def pass_by(self, seconds: float, now_seconds: float) -> None:
        """Let time pass until `now_seconds`."""
        chance = self.chance
        while self.starting and now_seconds - self.starting[0] > self.cold_start_seconds * chance.uniform(0.8, 1.2):
            self.starting.pop(0)
            self.ready += 1
        if chance.random() < 0.05:
            self.rate = chance.choice(RATES)
        came = int(chance.expovariate(1.0) * self.rate * seconds + chance.random()) if self.rate else 0
        if chance.random() < 0.03:  # a crowd
            came += chance.randint(1, 150)
        done = sum(chance.random() < seconds / self.service_seconds for _ in range(self.in_flight))
        taken = min(self.waiting + came, max(self.ready * self.concurrency - self.in_flight + done, 0))
        self.waiting += came - taken
        self.in_flight += taken - done
        self.arrived, self.completed = self.arrived + came, self.completed + done
        if chance.random() < 0.01:  # purged
            self.waiting = 0

    def scale(self, wanted: int, now_seconds: float) -> None:
        """Follow what was asked for: at once upwards, some time downwards."""
        there = self.ready + len(self.starting)
        self.starting += [now_seconds] * (wanted - there)
        if wanted < there and self.chance.random() < 0.3:
            loading = min(there - wanted, len(self.starting))
            del self.starting[len(self.starting) - loading :]
            self.ready -= there - wanted - loading


def goals_of(chance: random.Random, *, warm: str) -> Goals:
    low = chance.choice((0, 0, 0, 1, 3))
    return Goals(
        target_value=chance.choice((1.0, 5.0, chance.uniform(0.01, 50.0))),
        wait_seconds=chance.uniform(1.0, chance.choice((60.0, 600.0))),
        attainment=chance.choice((0.95, 0.99, chance.uniform(0.5, 0.999))),
        service_seconds=chance.choice((None, chance.uniform(0.5, 60.0))),
        cold_start_seconds=chance.choice((None, chance.uniform(5.0, 300.0))),
        concurrency=chance.choice((1, 2, 4, 8, 16, 64)),
        min_replicas=low,
        max_replicas=max(low + chance.choice((100, chance.randint(0, 100))), 1),
        cooldown_seconds=chance.choice((None, 0.0, 300.0)),
        confirmations=chance.choice((1, 2, 3)),
        warm=warm,
        steps=parse_steps("1:2,6:5,21:10"),
    )


def reader(chance: random.Random) -> Callable[[Queue, float], Sample]:
    """A source: what it tells of a queue, always the same things."""
    tells_waiting, tells_in_flight = chance.random() < 0.8, chance.random() < 0.5
    counts_arrivals, counts_completions, adds_up_use = (chance.random() < 0.3 for _ in range(3))
    lumpy, approximate = chance.random() < 0.4, chance.random() < 0.3
    # As Kafka: both in one number, and no more than so many can work.
    tells_system = chance.random() < 0.2
    most = chance.choice((None, None, 1, 4, 30)) if tells_system else None
    if tells_system:
        tells_waiting, tells_in_flight = False, False

    def read(queue: Queue, now_seconds: float) -> Sample:
        waiting, in_flight = float(queue.waiting), float(queue.in_flight)
        metric = waiting + (in_flight if tells_in_flight or not tells_waiting else 0.0)
        return Sample(
            at_seconds=now_seconds,
            metric_value=metric,
            active=metric > 0,
            waiting=waiting if tells_waiting else None,
            in_flight=in_flight if tells_in_flight else None,
            in_system=waiting + in_flight if tells_system else None,
            arrived_total=float(queue.arrived) if counts_arrivals else None,
            completed_total=float(queue.completed) if counts_completions else None,
            utilization_sum=60.0 * in_flight if adds_up_use else None,
            in_system_least=max(waiting + in_flight - 4.0, 0.0) if lumpy and tells_system else None,
            in_system_most=waiting + in_flight if lumpy and tells_system else None,
            approximate=approximate,
            most_replicas=most,
        )

    return read


def viewer(chance: random.Random) -> Callable[[Queue, float], ReplicaView | None]:
    """Someone who sees the replicas: always, never, or now and then."""
    sees = chance.choice((0.0, 0.0, 1.0, 0.7))
    tells_scale = chance.random() < 0.7

    def view(queue: Queue, now_seconds: float) -> ReplicaView | None:
        if chance.random() >= sees:
            return None
        return ReplicaView(
            at_seconds=now_seconds,
            ready=queue.ready,
            starting_at_seconds=tuple(queue.starting),
            status_replicas=queue.ready + len(queue.starting) if tells_scale else None,
        )

    return view


def fuller(sample: Sample, more: float, *, counted: bool) -> Sample:
    """The same reading with `more` waiting; `counted`: by the counter of arrivals, too."""
    use, arrived = sample.utilization_sum, sample.arrived_total
    return replace(
        sample,
        metric_value=sample.metric_value + more,
        active=sample.active or more > 0,
        waiting=None if sample.waiting is None else sample.waiting + more,
        in_system=None if sample.in_system is None else sample.in_system + more,
        in_system_least=None if sample.in_system_least is None else sample.in_system_least + more,
        in_system_most=None if sample.in_system_most is None else sample.in_system_most + more,
        arrived_total=arrived + more if counted and arrived is not None else arrived,
        utilization_sum=None if use is None else use + more,
    )


def answers(name: str, seed: int) -> Iterator[list[tuple[float, Decision]]]:
    """The decisions for more and more waiting, at the end of a random history."""
    chance, policy = random.Random(seed), POLICIES[name]
    goals = goals_of(chance, warm=chance.choice(("off", "floor")) if name == "slo" else "off")
    read, view = reader(chance), viewer(chance)
    queue = Queue(
        chance,
        goals.concurrency,
        cold_start_seconds=chance.choice((10.0, 30.0, 60.0, 120.0)),
        service_seconds=chance.choice((1.0, 5.0, 20.0, 60.0)),
        rate=chance.choice(RATES),
    )
    every_seconds = chance.choice((1.0, 2.0, 5.0, 15.0, None))
    memory: Memory[Any] = Memory(state=policy.start())
    now_seconds = 1_000.0
    for _ in range(chance.randint(0, 60)):
        gap_seconds = every_seconds or chance.uniform(0.2, 90.0)
        now_seconds += gap_seconds
        queue.pass_by(gap_seconds, now_seconds)
        decision, memory = decide(
            policy,
            goals,
            memory,
            sample=read(queue, now_seconds),
            view=view(queue, now_seconds),
            now_seconds=now_seconds,
        )
        assert decision is not None
        queue.scale(decision.desired_replicas, now_seconds)
    gap_seconds = every_seconds or chance.uniform(0.2, 90.0)
    now_seconds += gap_seconds
    queue.pass_by(gap_seconds, now_seconds)
    if chance.random() < 0.5:
        queue.waiting = chance.choice((0, 0, 1, 2, 3))
    sample, seen = read(queue, now_seconds), view(queue, now_seconds)
    more = sorted({0.0, 1.0, 2.0, 3.0, chance.choice((5.0, 10.0, 30.0)), chance.uniform(0, 10), chance.uniform(0, 1e3)})
    for counted in (False, True):
        found = []
        for one in more:
            full = fuller(sample, one, counted=counted)
            decision, _ = decide(policy, goals, memory, sample=full, view=seen, now_seconds=now_seconds)
            assert decision is not None
            found.append((one, decision))
        yield found


# The seeds below failed with `slo` before it was mended, four of the first 2,500. Some are left, each by one replica:
# 3 of 72,000 with `slo`, one of 34,000 with `target+burst` (docs/decisions.md, 52).
@pytest.mark.parametrize("name", sorted(POLICIES))
@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**63))
@example(seed=1101)
@example(seed=1926)
@example(seed=1950)
@example(seed=2336)
@example(seed=12634)
@example(seed=40360)
@example(seed=94904)
@example(seed=120903)
@example(seed=139339)
def test_more_waiting_never_means_fewer_replicas_after_any_history(name: str, seed: int) -> None:
    for found in answers(name, seed):
        for (less, fewer), (more, enough) in pairwise(found):
            assert enough.desired_replicas >= fewer.desired_replicas, (seed, less, more)
            assert enough.active >= fewer.active, (seed, less, more)
