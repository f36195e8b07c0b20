"""What holds for every policy of the folder, whatever it is fed (issue 3, item 9)."""

from __future__ import annotations

import math
import random
from dataclasses import replace
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
DECIDING = {name: policy for name, policy in POLICIES.items() if policy.decides_replicas}
each_policy = pytest.mark.parametrize("name", sorted(POLICIES))
each_deciding = pytest.mark.parametrize("name", sorted(DECIDING))

COUNTS = st.one_of(st.integers(0, 60).map(float), st.floats(0, 1e7))
MAYBE = st.one_of(st.none(), COUNTS)
GOALS = st.builds(
    lambda low, span, wait, attainment, c, target, table: Goals(
        target_value=target,
        wait_seconds=wait,
        attainment=attainment,
        gpu_cost_per_hour=2.6,
        concurrency=c,
        min_replicas=low,
        max_replicas=max(low + span, 1),
        steps=parse_steps(table),
    ),
    st.integers(0, 3),
    st.integers(0, 100),
    st.floats(1, 600),
    st.floats(0.5, 0.999),
    st.integers(1, 64),
    st.floats(0.001, 1e4),
    # No trigger has both a table and another policy than `steps` or `burst`: what holds for all must not depend on it.
    st.sampled_from(["1:2,6:5,21:10", "6:5", "6:2,21:10", "1:1,2:40"]),
)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    metric, waiting, in_system, untold = draw(COUNTS), draw(MAYBE), draw(MAYBE), draw(MAYBE)
    in_system = in_system if waiting is None else None
    return Sample(
        at_seconds=0.0,
        metric_value=metric,
        active=metric > 0,
        waiting=waiting,
        in_flight=draw(MAYBE),
        in_system=in_system,
        arrived_total=draw(MAYBE),
        completed_total=draw(MAYBE),
        oldest_age_seconds=draw(MAYBE),
        utilization_sum=draw(MAYBE),
        in_system_least=None if untold is None or in_system is None else max(in_system - untold, 0.0),
        in_system_most=None if untold is None else in_system,
        approximate=draw(st.booleans()),
        most_replicas=draw(st.one_of(st.none(), st.none(), st.integers(0, 20))),
    )


# Of a source with an activation threshold: below it, or at it, there is a metric and nothing that wakes.
ACTIVATION = st.sampled_from([0.0, 0.0, 3.0, 20.0])


def activated(sample: Sample, activation: float) -> Sample:
    """As a source with this threshold tells it."""
    return replace(sample, active=sample.metric_value > activation)


@st.composite
def views(draw: st.DrawFn) -> ReplicaView | None:
    if draw(st.booleans()):
        return None
    ready, starting = draw(st.integers(0, 60)), draw(st.lists(st.floats(-300, 0), max_size=12))
    return ReplicaView(
        at_seconds=0.0,
        ready=ready,
        starting_at_seconds=tuple(sorted(starting)),
        terminating=draw(st.integers(0, 5)),
        status_replicas=draw(st.sampled_from([None, ready + len(starting)])),
        cold_starts_seconds=tuple(draw(st.lists(st.floats(0, 600), max_size=3))),
        phases_seconds=tuple(draw(st.lists(st.tuples(st.integers(-1, 4), st.floats(0, 600)), max_size=3))),
    )


def played(
    name: str,
    goals: Goals,
    feeds: list[tuple[float, Sample | None, ReplicaView | None]],
    memory: Memory[Any] | None = None,
) -> tuple[list[Decision | None], Memory[Any]]:
    """The decisions after feeding (gap in seconds, sample, view) one after the other."""
    policy = POLICIES[name]
    memory = memory or Memory(state=policy.start())
    now_seconds, answers = 1_000.0 if memory.last is None else memory.last.at_seconds, []
    for gap_seconds, sample, view in feeds:
        now_seconds += gap_seconds
        decision, memory = decide(
            policy,
            goals,
            memory,
            sample=None if sample is None else replace(sample, at_seconds=now_seconds),
            view=None
            if view is None
            else replace(
                view,
                at_seconds=now_seconds,
                starting_at_seconds=tuple(now_seconds + at for at in view.starting_at_seconds),
            ),
            now_seconds=now_seconds,
        )
        answers.append(decision)
    return answers, memory


FEEDS = st.lists(st.tuples(st.floats(0.1, 90), st.one_of(st.none(), samples()), views()), max_size=12)


@each_policy
@given(goals=GOALS, feeds=FEEDS)
@settings(max_examples=150, deadline=None)
def test_answers_are_finite_within_bounds_and_active_exactly_when_desired(
    name: str, goals: Goals, feeds: list[tuple[float, Sample | None, ReplicaView | None]]
) -> None:
    answers, _ = played(name, goals, feeds)
    for answer in answers:
        if answer is None:
            continue
        assert math.isfinite(answer.metric_value)
        assert answer.metric_value >= 0
        assert answer.target_value > 0
        assert goals.min_replicas <= answer.desired_replicas <= goals.max_replicas
        if DECIDING.get(name) is not None:
            # What the HPA makes of it is within its bounds: for it to come to the last one it may be asked for more.
            most = max(goals.max_replicas, goals.min_replicas)
            assert answer.metric_value <= most or answer.desired_replicas == most
            assert answer.metric_value <= math.floor(most * (1.0 + goals.hpa_tolerance)) + 1
        if answer.active:
            assert answer.desired_replicas >= 1
        else:
            assert answer.desired_replicas == goals.min_replicas
        for step in answer.steps:
            assert step.text()


@each_policy
@given(
    goals=GOALS,
    feeds=FEEDS,
    sample=samples(),
    field=st.sampled_from(["metric_value", "waiting", "in_flight", "arrived_total", "completed_total"]),
    number=st.sampled_from([math.nan, math.inf, -math.inf]),
)
@settings(max_examples=60, deadline=None)
def test_what_is_no_number_is_no_sample(
    name: str,
    *,
    goals: Goals,
    feeds: list[tuple[float, Sample | None, ReplicaView | None]],
    sample: Sample,
    field: str,
    number: float,
) -> None:
    _, memory = played(name, goals, feeds)
    wrong = replace(sample, **{field: number})  # type: ignore[arg-type]  # its fields that are numbers
    assert played(name, goals, [(5.0, wrong, None)], memory) == played(name, goals, [(5.0, None, None)], memory)


@each_policy
@given(goals=GOALS, feeds=FEEDS, view=views())
@settings(max_examples=60, deadline=None)
def test_no_sample_never_lowers_the_answer(
    name: str, goals: Goals, feeds: list[tuple[float, Sample | None, ReplicaView | None]], view: ReplicaView | None
) -> None:
    answers, memory = played(name, goals, feeds)
    before = next((answer for answer in reversed(answers) if answer is not None), None)
    (held,), _ = played(name, goals, [(30.0, None, view)], memory)
    if before is None:
        assert held is None
    else:
        assert held is not None
        assert (held.active, held.metric_value) == (before.active, before.metric_value)
        assert held.held


@each_policy
@given(
    goals=GOALS,
    feeds=FEEDS,
    sample=samples(),
    view=views(),
    more=st.one_of(st.integers(0, 30).map(float), st.floats(0, 1e4)),
    activation=ACTIVATION,
)
@example(  # started anew, all but one of the first row in flight
    goals=Goals(target_value=1.0, steps=parse_steps("6:2,21:10")),
    feeds=[],
    sample=Sample(at_seconds=0.0, metric_value=0.0, active=False, waiting=0.0, in_flight=5.0),
    view=None,
    more=1.0,
    activation=0.0,
)
@example(  # the same where the table is not what answers
    goals=Goals(target_value=1.0, steps=parse_steps("1:2,6:5,21:10")),
    feeds=[],
    sample=Sample(at_seconds=0.0, metric_value=0.0, active=False, in_flight=2.0),
    view=None,
    more=1.0,
    activation=0.0,
)
@settings(max_examples=250, deadline=None)
def test_more_waiting_never_means_fewer_replicas_now(
    name: str,
    *,
    goals: Goals,
    feeds: list[tuple[float, Sample | None, ReplicaView | None]],
    sample: Sample,
    view: ReplicaView | None,
    more: float,
    activation: float,
) -> None:
    _, memory = played(name, goals, [(gap, one and activated(one, activation), seen) for gap, one, seen in feeds])
    sample = activated(sample, activation)
    fuller = replace(
        sample,
        metric_value=sample.metric_value + more,
        active=sample.metric_value + more > activation,
        waiting=None if sample.waiting is None else sample.waiting + more,
        in_system=None if sample.in_system is None else sample.in_system + more,
        in_system_least=None if sample.in_system_least is None else sample.in_system_least + more,
        in_system_most=None if sample.in_system_most is None else sample.in_system_most + more,
        utilization_sum=None if sample.utilization_sum is None else sample.utilization_sum + more,
    )
    (less,), _ = played(name, goals, [(5.0, sample, view)], memory)
    (greater,), _ = played(name, goals, [(5.0, fuller, view)], memory)
    assert less is not None
    assert greater is not None
    assert greater.desired_replicas >= less.desired_replicas
    assert greater.active >= less.active
    if name not in DECIDING:  # KEDA asks for the metric while replicas are there, active or not
        assert greater.metric_value >= less.metric_value


@each_deciding
@given(goals=GOALS, in_flight=st.integers(1, 200), waiting=COUNTS, ready=st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_scale_in_never_goes_below_what_in_flight_work_needs(
    name: str, goals: Goals, in_flight: int, waiting: float, ready: int
) -> None:
    sample = Sample(
        at_seconds=0.0, metric_value=waiting + in_flight, active=True, waiting=waiting, in_flight=float(in_flight)
    )
    (answer,), _ = played(name, goals, [(5.0, sample, ReplicaView(at_seconds=0.0, ready=ready))])
    assert answer is not None
    if answer.active:
        assert answer.desired_replicas >= min(math.ceil(in_flight / goals.concurrency), ready, goals.max_replicas)


# `slo` learns from what is served: a reading that never changes means that nothing is. So its readings are those of a
# source that tells what waits from what is worked on; its constant load is in test_slo.py, in the simulator.
@pytest.mark.parametrize("attainment", [0.95, 0.99])
@pytest.mark.parametrize("wait_seconds", [15.0, 30.0, 120.0])
@pytest.mark.parametrize(("waiting", "in_flight"), [(0, 3), (0, 1), (1, 0), (2, 1), (5, 2), (40, 3), (1000, 10)])
def test_a_constant_reading_settles_slo_without_reversal(
    waiting: int, in_flight: int, wait_seconds: float, attainment: float
) -> None:
    still = Sample(
        at_seconds=0.0,
        metric_value=float(waiting + in_flight),
        active=True,
        waiting=float(waiting),
        in_flight=float(in_flight),
    )
    goals = Goals(target_value=1.0, wait_seconds=wait_seconds, attainment=attainment)
    answers, _ = played("slo", goals, [(5.0, still, None)] * 360)
    counts = [answer.desired_replicas for answer in answers if answer is not None]
    turns = [b - a for a, b in pairwise(counts) if b != a]
    assert all(turn > 0 for turn in turns) or all(turn < 0 for turn in turns)


# Where what waits is not told, replicas that are believed to serve take from it what they could: 26 of 620 such
# readings rose to as many as 98 replicas and fell back.
@pytest.mark.parametrize("attainment", [0.95, 0.99])
@pytest.mark.parametrize("wait_seconds", [5.0, 30.0, 60.0, 120.0])
@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("load", [1.0, 3.0, 7.0, 20.0, 43.0, 100.0])
def test_a_constant_reading_that_does_not_tell_what_waits_settles_slo_without_reversal(
    load: float, concurrency: int, wait_seconds: float, attainment: float
) -> None:
    still = Sample(at_seconds=0.0, metric_value=load, active=True)
    goals = Goals(target_value=1.0, wait_seconds=wait_seconds, attainment=attainment, concurrency=concurrency)
    answers, _ = played("slo", goals, [(5.0, still, None)] * 360)
    counts = [answer.desired_replicas for answer in answers if answer is not None]
    turns = [b - a for a, b in pairwise(counts) if b != a]
    assert all(turn > 0 for turn in turns) or all(turn < 0 for turn in turns)


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"slo"}))
@given(goals=GOALS, sample=samples(), gap=st.floats(1, 15))
@settings(max_examples=50, deadline=None)
def test_a_constant_reading_settles_without_reversal(name: str, goals: Goals, sample: Sample, gap: float) -> None:
    still = replace(sample, arrived_total=None, completed_total=None)
    answers, _ = played(name, goals, [(gap, still, None)] * int(1800 / gap))
    counts = [answer.desired_replicas for answer in answers if answer is not None]
    turns = [b - a for a, b in pairwise(counts) if b != a]
    assert all(turn > 0 for turn in turns) or all(turn < 0 for turn in turns)
    assert len(set(counts[-5:])) == 1


# A policy that works with deadlines asks for more while time passes, and by leaps. What two pollers answer at one
# moment differs by what one of them learns and asks for before the other looks. So regular polling itself leaves open
# what pollers between the fastest and the slowest of these gaps answer within one slowest gap of the same moment.
# Beyond them one step is allowed: one replica, the tenth that the HPA does not tell apart, or what one look of the
# slowest poller changed at most. The last is for looks near a deadline: who looks just before something lacks and next
# when no start can help any more is one look behind for good, without a wrong rule. So it was in the one seed of the
# first 6,000 that the rest of the definition does not cover: 3880 looks after 144 s (nothing lacks yet) and 156 s (a
# replica more would begin 0.2 requests in time) and stays with 12 replicas where regular pollers have 14 and 15.
# About one seed in 4,000 is beyond all of that: where nobody counts, a queue that stands still tells two pollers two
# service times. The seeds are the same in each run, so that a failure is a change and not one of these.
@pytest.mark.parametrize("seed", [*range(250), 3880])
def test_polled_at_random_intervals_slo_asks_for_what_a_regular_poller_asks_for_then(seed: int) -> None:
    # Drawn evenly, where hypothesis would draw mostly from the edges: gaps that are all alike, promises of one half.
    chance = random.Random(seed)
    low = chance.randint(0, 3)
    goals = Goals(
        target_value=1.0,
        wait_seconds=chance.uniform(1, chance.choice((60, 600))),
        attainment=chance.choice((0.95, 0.99, chance.uniform(0.5, 0.999))),
        concurrency=chance.choice((1, chance.randint(1, 8), chance.randint(1, 64))),
        min_replicas=low,
        max_replicas=max(low + chance.randint(0, 100), 1),
    )

    def count() -> float:
        return float(chance.choice((chance.randint(0, 60), chance.uniform(0, 200))))

    metric, waiting, in_flight = count(), count(), count()
    still = Sample(
        at_seconds=0.0,
        metric_value=metric,
        active=metric > 0,
        waiting=None if chance.random() < 0.3 else waiting,
        in_flight=None if chance.random() < 0.4 else in_flight,
    )
    gaps = [chance.uniform(1.0, 15.0) for _ in range(chance.randint(20, 60))]
    over_seconds, slowest_seconds = sum(gaps), 15.0
    near: list[int] = []
    leap = 0
    for gap in (1.0, 3.0, over_seconds / len(gaps), slowest_seconds):
        regular, _ = played("slo", goals, [(gap, still, None)] * math.ceil((over_seconds + slowest_seconds) / gap))
        counts = [answer.desired_replicas for answer in regular if answer is not None]
        near += [
            asked for index, asked in enumerate(counts, start=1) if abs(index * gap - over_seconds) <= slowest_seconds
        ]
        leap = max((abs(after - before) for before, after in pairwise(counts)), default=0)  # of the slowest, the last
    irregular, _ = played("slo", goals, [(gap, still, None) for gap in gaps])
    assert irregular[-1] is not None
    asked = irregular[-1].desired_replicas
    assert min(near) - max(1.0, 0.1 * min(near), leap) <= asked <= max(near) + max(1.0, 0.1 * max(near), leap)


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"slo"}))
@given(goals=GOALS, sample=samples(), gaps=st.lists(st.floats(0.5, 15), min_size=20, max_size=60))
@settings(max_examples=50, deadline=None)
def test_how_often_it_is_asked_changes_nothing_beyond_one_step(
    name: str, goals: Goals, sample: Sample, gaps: list[float]
) -> None:
    still = replace(sample, arrived_total=None, completed_total=None, approximate=False)
    regular, _ = played(name, goals, [(sum(gaps) / len(gaps), still, None)] * len(gaps))
    irregular, _ = played(name, goals, [(gap, still, None) for gap in gaps])
    assert regular[-1] is not None
    assert irregular[-1] is not None
    assert abs(regular[-1].desired_replicas - irregular[-1].desired_replicas) <= 1
