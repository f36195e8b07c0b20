"""An absurd reading is believed at once and not for long: what was never served is taken back (core/doubts.py)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.core.decide import Memory, decide
from scaler.core.model import Decision, Goals, ReplicaView, Sample
from scaler.plugins import policies
from scaler.trigger import parse_steps

POLICIES = policies()
NAMES = ("slo", "steps+burst", "target+burst", "utilization+burst")
EVERY_SECONDS = 5.0  # a look
COLD_START_SECONDS = 40.0
SERVICE_SECONDS = 8.0
GOALS = Goals(
    target_value=0.6,
    wait_seconds=60.0,
    cold_start_seconds=COLD_START_SECONDS,
    steps=parse_steps("1:2,6:5,21:10,200:100"),
    cooldown_seconds=0.0,
)
GLITCH_AT = 240  # looks: after 20 minutes
TWO_COLD_STARTS = int(2 * COLD_START_SECONDS / EVERY_SECONDS)


@dataclass
class Workload:
    """Requests that come when they are due, replicas that serve them a cold start after they were asked for."""

    name: str
    every_seconds: float = 25.0  # a request
    tells_in_flight: bool = True
    counts: bool = False
    sees: bool = False
    goals: Goals = GOALS
    now_seconds: float = 1_000_000.0
    waiting: int = 0
    arrived: int = 0
    completed: int = 0
    running: list[float] = field(default_factory=list)  # ends at
    replicas: list[tuple[float, float]] = field(default_factory=list)  # (asked for at, serves from)
    memory: Memory[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.memory = Memory(state=POLICIES[self.name].start())

    def look(self, *, more: float = 0.0, come: int = 0) -> Decision:
        """Time passes and what is there is read, `more` than there is; `come`: requests beside those that are due."""
        was = self.now_seconds
        now = self.now_seconds = was + EVERY_SECONDS
        due = int(now // self.every_seconds) - int(was // self.every_seconds)
        self.arrived += due + come
        self.waiting += due + come
        self.completed += sum(end <= now for end in self.running)
        self.running = [end for end in self.running if end > now]
        ready = sum(serves <= now for _, serves in self.replicas)
        while self.waiting and len(self.running) < ready:
            self.waiting -= 1
            self.running.append(now + SERVICE_SECONDS)
        in_flight = float(len(self.running))
        waiting = self.waiting + more
        sample = Sample(
            at_seconds=now,
            metric_value=waiting + in_flight,
            active=waiting + in_flight > 0,
            waiting=waiting,
            in_flight=in_flight if self.tells_in_flight else None,
            completed_total=float(self.completed) if self.counts else None,
            utilization_sum=in_flight + more,
        )
        view = None
        if self.sees:
            starting = tuple(asked for asked, serves in self.replicas if serves > now)
            view = ReplicaView(at_seconds=now, ready=ready, starting_at_seconds=starting)
        decision, self.memory = decide(
            POLICIES[self.name], self.goals, self.memory, sample=sample, view=view, now_seconds=now
        )
        assert decision is not None
        wanted = decision.desired_replicas
        self.replicas += [(now, now + COLD_START_SECONDS)] * (wanted - len(self.replicas))
        del self.replicas[wanted:]
        return decision

    def purge(self) -> None:
        """What waits is dropped by somebody."""
        self.waiting = 0


def twins(name: str, *, looks: int = GLITCH_AT, **told: Any) -> tuple[Workload, Workload]:
    """The same workload twice, after some time."""
    one, other = Workload(name, **told), Workload(name, **told)
    for _ in range(looks):
        assert one.look() == other.look()
    return one, other


def learned(workload: Workload) -> tuple[float, ...]:
    """What the policy knows of arrivals."""
    state = workload.memory.state
    if workload.name == "slo":
        known = state.estimates
        hours = known.hours
        return known.short.value, known.long.value, known.crowd, known.dispersion, hours.arrived, len(state.holds.used)
    known = state.known
    return state.short.value, state.long.value, known.short.value, known.long.value, known.crowd, state.held_value


@pytest.mark.parametrize("sees", [False, True], ids=["blind", "view"])
@pytest.mark.parametrize("counts", [False, True], ids=["", "counters"])
@pytest.mark.parametrize("tells_in_flight", [True, False], ids=["in flight", "queue only"])
@pytest.mark.parametrize("size", [1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("name", NAMES)
def test_two_cold_starts_after_an_absurd_reading_the_answer_is_what_it_would_have_been(
    name: str, size: float, tells_in_flight: bool, counts: bool, sees: bool
) -> None:
    glitched, calm = twins(name, tells_in_flight=tells_in_flight, counts=counts, sees=sees)
    assert glitched.look(more=size).desired_replicas == 100  # at face value
    calm.look()
    assert doubt_of(glitched) is not None
    after = [(glitched.look().desired_replicas, calm.look().desired_replicas) for _ in range(240)][TWO_COLD_STARTS:]
    # The two serve from other moments on: what counts is the most that each asks for.
    assert max(got for got, _ in after) <= max(wanted for _, wanted in after) + 1
    assert doubt_of(glitched) is None


@pytest.mark.parametrize("size", [1e3, 1e6])
@pytest.mark.parametrize("name", NAMES)
def test_what_was_learned_of_arrivals_is_as_before_an_absurd_reading(name: str, size: float) -> None:
    glitched, calm = twins(name)
    glitched.look(more=size)
    calm.look()
    assert learned(glitched) != pytest.approx(learned(calm), rel=0.2)
    glitched.look()
    calm.look()
    assert learned(glitched) == pytest.approx(learned(calm), rel=0.2, abs=0.5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("looks", [0, 1])
def test_an_absurd_first_reading_is_taken_back_too(name: str, looks: int) -> None:
    glitched, calm = twins(name, looks=looks)
    assert glitched.look(more=1e6).desired_replicas == 100
    calm.look()
    assert doubt_of(glitched) is not None
    after = [(glitched.look().desired_replicas, calm.look().desired_replicas) for _ in range(240)][TWO_COLD_STARTS:]
    assert max(got for got, _ in after) <= max(wanted for _, wanted in after) + 1
    assert doubt_of(glitched) is None


@pytest.mark.parametrize("tells_in_flight", [True, False], ids=["in flight", "queue only"])
@pytest.mark.parametrize("name", ["slo", "steps+burst", "target+burst"])
def test_a_burst_that_is_served_ends_the_doubt_and_is_learned(name: str, tells_in_flight: bool) -> None:
    workload, _ = twins(name, tells_in_flight=tells_in_flight)
    workload.look(come=150)
    doubt = doubt_of(workload)
    assert doubt is not None
    crowd = doubt.known.crowd
    for _ in range(60):
        workload.look()
    assert workload.waiting < 20
    assert doubt_of(workload) is None
    state = workload.memory.state
    known = state.estimates if name == "slo" else state.known
    assert known.crowd > 10.0 * max(crowd, 1.0)


@pytest.mark.parametrize("name", ["slo", "steps+burst"])
def test_a_flood_of_which_a_part_was_served_is_not_taken_back_when_it_is_purged(name: str) -> None:
    workload, _ = twins(name)
    workload.look(come=400)
    served = workload.completed
    while workload.completed - served < 150:
        workload.look()
    assert doubt_of(workload) is None
    before = learned(workload)
    workload.purge()
    workload.look()
    assert learned(workload)[:2] == pytest.approx(before[:2], rel=0.3)


@pytest.mark.parametrize("name", NAMES)
def test_while_in_doubt_a_further_jump_only_extends_it(name: str) -> None:
    workload, _ = twins(name)
    workload.look(more=1e3)
    first = doubt_of(workload)
    workload.look(more=1e5)
    second = doubt_of(workload)
    assert (first.known, first.rest) == (second.known, second.rest)
    assert second.arrived >= first.arrived + 9e4


def test_samples_of_other_queues_in_the_middle_of_a_doubt_leave_none_that_cannot_end() -> None:
    policy: Any = POLICIES["slo"]
    for waiting in (0.0, 1e6):
        workload, _ = twins("slo")
        workload.look(more=1e6)
        workload.memory = replace(workload.memory, state=policy.rebased(workload.memory.state))
        workload.look(more=waiting)
        assert (doubt_of(workload) is None) == (waiting == 0.0)
        for _ in range(30):
            workload.look()
        assert doubt_of(workload) is None
        if waiting:
            assert workload.look().desired_replicas <= 2


@pytest.mark.parametrize("shift_seconds", [0.0, -4096.0])
@pytest.mark.parametrize("name", NAMES)
def test_a_doubt_survives_a_restart(name: str, shift_seconds: float) -> None:
    policy: Any = POLICIES[name]
    workload, calm = twins(name)
    workload.look(more=1e5)
    calm.look()
    state = workload.memory.state
    text = json.dumps(policy.dump(state), allow_nan=False)
    restored = policy.load(json.loads(text), shift_seconds=shift_seconds)
    moved = policy.load(json.loads(json.dumps(policy.dump(restored))), shift_seconds=-shift_seconds)
    assert moved.doubt == state.doubt
    if shift_seconds == 0.0:
        assert restored == state
    old = json.loads(text)
    del old["doubt"]
    assert policy.load(old, shift_seconds=0.0) == replace(state, doubt=None)
    workload.memory = replace(workload.memory, state=moved)
    workload.look()
    calm.look()
    assert learned(workload) == pytest.approx(learned(calm), rel=0.2, abs=0.5)


READINGS = st.lists(
    st.tuples(
        st.sampled_from((0.0, 1.0, 5.0, 30.0, 1e3, 1e6, 1e9)) | st.floats(0.0, 1e7),
        st.none() | st.integers(0, 50),
        st.sampled_from((1.0, 5.0, 5.0, 60.0, 4_000.0, -50.0)),
        st.booleans(),
    ),
    min_size=2,
    max_size=40,
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(readings=READINGS)
def test_whatever_is_read_there_is_one_doubt_at_most_and_it_ends(
    name: str, readings: list[tuple[float, int | None, float, bool]]
) -> None:
    policy: Any = POLICIES[name]
    memory: Memory[Any] = Memory(state=policy.start())
    now_seconds = 10_000.0
    calm = [(0.0, 0, 5.0, True)] * 3
    for waiting, in_flight, seconds, sees in [*readings, *calm]:
        now_seconds += seconds
        sample = Sample(
            at_seconds=now_seconds,
            metric_value=waiting + (in_flight or 0),
            active=waiting + (in_flight or 0) > 0,
            waiting=waiting,
            in_flight=None if in_flight is None else float(in_flight),
        )
        view = ReplicaView(at_seconds=now_seconds, ready=3) if sees else None
        decision, memory = decide(policy, GOALS, memory, sample=sample, view=view, now_seconds=now_seconds)
        assert decision is not None
        dumped = policy.dump(memory.state)
        if dumped["doubt"] is not None:
            assert "doubt" not in json.dumps(dumped["doubt"])
    assert memory.state.doubt is None


def doubt_of(workload: Workload) -> Any:
    return workload.memory.state.doubt
