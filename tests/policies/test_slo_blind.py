"""Where nobody sees replicas `slo` learns cold starts from wakes, and only from those that it can be sure of."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.core.decide import Memory, decide
from scaler.core.model import Decision, Goals, ReplicaView, Sample
from scaler.policies.slo import POLICY, SloState

STATED_SECONDS = 90.0


class Blind:
    """One workload without a view, looked at every second."""

    def __init__(self, *, approximate: bool = False, interval_seconds: float = 1.0, **more: float) -> None:
        self.approximate, self.interval_seconds = approximate, interval_seconds
        self.goals = Goals(
            target_value=1.0,
            wait_seconds=60.0,
            service_seconds=20.0,
            cold_start_seconds=STATED_SECONDS,
            **more,  # type: ignore[arg-type]  # of several types
        )
        self.memory: Memory[SloState] = Memory(state=POLICY.start())
        self.now_seconds = 1_000.0

    def look(self, waiting: float, in_flight: float) -> Decision:
        self.now_seconds += self.interval_seconds
        sample = Sample(
            at_seconds=self.now_seconds,
            metric_value=waiting + in_flight,
            active=waiting + in_flight > 0,
            waiting=waiting,
            in_flight=in_flight,
            approximate=self.approximate,
        )
        decision, self.memory = decide(
            POLICY, self.goals, self.memory, sample=sample, view=None, now_seconds=self.now_seconds
        )
        assert decision is not None
        return decision

    def feed(self, looks: Iterable[tuple[float, float]]) -> Decision:
        for waiting, in_flight in looks:
            decision = self.look(waiting, in_flight)
        return decision

    def let_go(self) -> None:
        for _ in range(20_000):
            if not self.look(0.0, 0.0).active:
                return
        raise AssertionError("it never let the last replica go")

    @property
    def seen(self) -> float:
        return self.memory.state.estimates.cold_starts

    @property
    def cold_start_seconds(self) -> float:
        return self.memory.state.estimates.cold_start(self.goals)[0]


@settings(max_examples=60, deadline=None)
@given(
    looks=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8)), min_size=1, max_size=25),
    busy=st.integers(1, 8),
)
def test_replicas_that_serve_at_the_first_reading_teach_no_cold_start(looks: list[tuple[int, int]], busy: int) -> None:
    blind = Blind(max_replicas=8)
    blind.feed([(5.0, busy), *[(float(waiting), float(min(working, busy))) for waiting, working in looks]])
    assert blind.seen == 0
    assert blind.cold_start_seconds == STATED_SECONDS


def test_replicas_that_serve_at_the_first_reading_are_taken_for_what_they_are() -> None:
    blind = Blind()
    decision = blind.feed([(0.0, 5.0)] * 3)
    assert decision.desired_replicas == 5
    assert blind.memory.state.asked_at_seconds == ()


def test_a_first_request_that_waits_from_the_first_reading_on_tells_no_cold_start() -> None:
    blind = Blind()
    blind.feed([(3.0, 0.0)] * 10 + [(2.0, 1.0)] * 5)
    assert blind.seen == 0


@pytest.mark.parametrize("took_seconds", [20, 45, 200])
def test_a_wake_from_zero_tells_its_cold_start(took_seconds: int) -> None:
    blind = Blind(cooldown_seconds=0.0)
    blind.feed([(0.0, 0.0)] * 5 + [(1.0, 0.0)] * took_seconds + [(0.0, 1.0)])
    assert blind.seen == 1
    assert blind.cold_start_seconds == pytest.approx(took_seconds, abs=2.0)


@pytest.mark.parametrize("interval_seconds", [1.0, 2.0, 5.0])
def test_a_wake_is_timed_from_the_answer_that_woke_to_the_middle_of_the_look_that_shows_it(
    interval_seconds: float,
) -> None:
    """From one look later 15 s were learned as 10, looked at each 5 s: where as long may be waited all were late."""
    blind = Blind(cooldown_seconds=0.0, interval_seconds=interval_seconds)
    blind.feed([(0.0, 0.0)] * 5 + [(1.0, 0.0)] * 12 + [(0.0, 1.0)])
    assert blind.memory.state.estimates.cold.whole.mean_seconds == pytest.approx(11.5 * interval_seconds)


def test_a_wake_within_kedas_cooldown_may_find_the_replica_still_there_and_tells_nothing() -> None:
    for cooldown_seconds, idle_seconds, wanted in ((None, 100, 0), (120.0, 100, 0), (120.0, 200, 1), (None, 400, 1)):
        blind = Blind() if cooldown_seconds is None else Blind(cooldown_seconds=cooldown_seconds)
        blind.feed([(0.0, 1.0)] * 5)
        blind.let_go()
        blind.feed([(0.0, 0.0)] * idle_seconds)
        blind.feed([(1.0, 0.0)] * 3 + [(0.0, 1.0)] * 3)
        assert blind.seen == wanted, (cooldown_seconds, idle_seconds)


def test_a_replica_that_was_kept_idle_tells_no_cold_start_when_it_is_used_again() -> None:
    blind = Blind(cooldown_seconds=0.0)
    blind.feed([(0.0, 1.0)] * 5 + [(0.0, 0.0)] * 5)
    assert blind.feed([(1.0, 0.0)] * 2).active
    blind.feed([(0.0, 1.0)] * 5)
    assert blind.seen == 0


def test_one_more_that_is_busy_tells_its_cold_start_but_one_that_was_busy_before_does_not() -> None:
    blind = Blind(cooldown_seconds=0.0)
    blind.feed([(0.0, 0.0)] * 5 + [(1.0, 0.0)] * 30 + [(0.0, 1.0)] * 3)  # a wake of 30 s
    before = blind.seen
    blind.feed([(30.0, 1.0)] * 20)
    blind.feed([(30.0, 0.0), (30.0, 1.0)] * 5)  # between two requests
    assert blind.seen == before
    blind.feed([(30.0, 2.0)])
    assert blind.seen == before + 1


def test_a_reported_cold_start_of_no_length_is_a_mistake_and_teaches_nothing() -> None:
    memory: Memory[SloState] = Memory(state=POLICY.start())
    goals = Goals(target_value=1.0, wait_seconds=60.0)
    for index, cold_starts_seconds in enumerate([(), (5e-324, 0.0), ()]):
        at_seconds = 10.0 * index
        view = ReplicaView(at_seconds=at_seconds, ready=1, cold_starts_seconds=cold_starts_seconds)
        sample = Sample(at_seconds=at_seconds, metric_value=0.0, active=False)
        decision, memory = decide(POLICY, goals, memory, sample=sample, view=view, now_seconds=at_seconds)
        assert decision is not None
    assert memory.state.estimates.cold_starts == 0


@pytest.mark.parametrize("confirmations", [1, 2, 3])
def test_what_is_not_confirmed_yet_was_never_asked_for_and_teaches_no_cold_start(confirmations: int) -> None:
    """As SQS comes: one reading may be wrong. The first that asked was taken for a replica that came a second later."""
    blind = Blind(approximate=True, cooldown_seconds=0.0, confirmations=confirmations)
    blind.feed([(0.0, 0.0)] * 300)
    assert blind.feed([(3.0, 0.0)] * 100).active
    assert blind.seen == 0


@pytest.mark.parametrize(("gap_seconds", "learned"), [(4, 0), (12, 0), (60, 1)])
def test_what_is_let_go_and_asked_for_again_before_the_hpa_looks_teaches_no_cold_start(
    gap_seconds: int, learned: int
) -> None:
    """Of no cooldown at all a second was learned, often: the HPA looks every 15 s, and what ends its work stays."""
    blind = Blind(cooldown_seconds=0.0)
    blind.feed([(0.0, 0.0)] * 5 + [(1.0, 0.0)] * 30 + [(0.0, 1.0)] * 3)
    before = blind.seen
    blind.let_go()
    blind.feed([(0.0, 0.0)] * gap_seconds + [(1.0, 0.0)] * 2 + [(0.0, 1.0)])
    assert blind.seen - before == learned
