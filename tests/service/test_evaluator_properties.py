"""Whatever polls, failures, rotations and waits come in whatever order: the rules of a workload's life hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from scaler.core.model import Decision, ReplicaView
from scaler.errors import PilotlightError, SourceDenied, SourceError, SourceTimeout, SourceUnavailable
from scaler.evaluator import Evaluator, published
from scaler.plugins import sources
from scaler.settings import ReadingSettings, Settings, TelemetrySettings
from scaler.telemetry import Telemetry
from scaler.trigger import Trigger
from scaler.workload import Stream, Workload
from tests.service.scripted import SOURCE

HOLD_SECONDS = 60.0
EXPIRY_SECONDS = 600.0
FAILING_ACTIVE_SECONDS = 600.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Desk:
    """Who reads: notes who wants what, and delivers when a rule says so."""

    def __init__(self) -> None:
        self.wanted: dict[Workload, Trigger] = {}

    def subscribe(self, trigger: Trigger, subscriber: Workload, *, private_addresses: bool) -> object:
        assert not private_addresses
        assert subscriber not in self.wanted
        self.wanted[subscriber] = trigger
        return self

    def unsubscribe(self, query: object, subscriber: Workload) -> None:
        assert query is self
        del self.wanted[subscriber]


def taken(stream: Stream) -> object | None:
    """What `take` returns at once, without a loop: there is a message."""
    try:
        stream.take().send(None)
    except StopIteration as done:
        message: object | None = done.value
        return message
    raise AssertionError("take waits though there is a message")


class WorkloadLife(RuleBasedStateMachine):
    """Two triggers of one ScaledObject, each with two secrets, and one of another object."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.desk = Desk()
        self.evaluator = Evaluator(
            settings=Settings(
                reading=ReadingSettings(expiry_seconds=EXPIRY_SECONDS, failing_active_seconds=FAILING_ACTIVE_SECONDS)
            ),
            telemetry=Telemetry(TelemetrySettings(), clock=self.clock),
            clock=self.clock,
            chance=Random(7),
        )
        self.evaluator.attach(self.desk)
        self.streams: dict[Stream, list[object]] = {}
        self.last_good: dict[bytes, tuple[float, float]] = {}  # digest: (when, value)
        self.called: dict[bytes, float] = {}

    things = st.sampled_from(["orders", "mails", "files"])
    secrets = st.sampled_from(["first", "second"])

    def workload(self, thing: str, secret: str, *, called: bool) -> tuple[bytes, Workload]:
        digest = f"{thing}/{secret}".encode()
        found = self.evaluator.known(digest, called=called)
        if found is None:
            name = "other" if thing == "files" else "llama"
            metadata = {
                "source": "scripted",
                "world": "w",
                "object": thing,
                "password": secret,
                "holdSeconds": f"{HOLD_SECONDS:g}",
                "threshold": "2",
            }
            found = self.evaluator.admit(digest, "team-a", name, metadata, called=called)
            self.last_good.pop(digest, None)
        if called:
            self.called[digest] = self.clock.now
        return digest, found

    @initialize()
    def start(self) -> None:
        self.workload("orders", "first", called=True)

    @rule(thing=things, secret=secrets)
    def poll(self, thing: str, secret: str) -> None:
        digest, workload = self.workload(thing, secret, called=True)
        assert not workload.superseded  # whom KEDA calls is whom we serve
        assert workload in self.desk.wanted
        self.check_answer(digest, workload)

    def check_answer(self, digest: bytes, workload: Workload) -> None:
        answer = self.evaluator.metrics(workload)
        active = self.evaluator.is_active(workload)
        last = workload.memory.last
        if last is None:
            assert isinstance(answer, PilotlightError)
            assert isinstance(active, PilotlightError)
            return
        assert active is last.active
        if isinstance(answer, Decision):
            assert answer.metric_value == last.metric_value
            assert self.clock.now - last.at_seconds <= HOLD_SECONDS + 4 + 15
        else:
            assert self.clock.now - last.at_seconds > HOLD_SECONDS
        if workload.error is None and self.clock.now - last.at_seconds <= HOLD_SECONDS:
            assert isinstance(answer, Decision)
        if digest in self.last_good:  # or what was read later under the digest that KEDA called meanwhile
            since, thing = self.last_good[digest][0], digest.split(b"/")[0]
            read = [good for one, good in self.last_good.items() if one.split(b"/")[0] == thing and good[0] >= since]
            assert last.metric_value in [value for _, value in read]

    @rule(value=st.sampled_from([0.0, 0.4, 1.0, 7.0, 1e12]), thing=things, secret=secrets)
    def reading(self, value: float, thing: str, secret: str) -> None:
        self.outcome(value, thing, secret)

    @rule(
        error=st.sampled_from(
            [SourceUnavailable("gone"), SourceDenied("refused"), SourceTimeout("slow"), -1.0, math.nan]
        ),
        thing=things,
        secret=secrets,
    )
    def failure(self, error: SourceError | float, thing: str, secret: str) -> None:
        self.outcome(error, thing, secret)

    def outcome(self, outcome: object, thing: str, secret: str) -> None:
        digest = f"{thing}/{secret}".encode()
        workload = self.evaluator.known(digest, called=False)
        if workload is None or workload not in self.desk.wanted:
            return
        before = workload.memory.last
        announced = self.evaluator.is_active(workload)
        self.evaluator.on_outcome(workload, outcome, self.clock.now)
        last = workload.memory.last
        if isinstance(outcome, float) and outcome >= 0:
            assert last is not None
            assert last.active is (outcome > 0)
            assert workload.error is None
            self.last_good[digest] = (self.clock.now, outcome)
            if last.active and announced is not True:
                for stream in workload.streams or ():
                    assert stream._message in (True, Stream.END)
        else:
            assert last is before  # an error changes no number
            assert workload.error is not None

    @rule(seconds=st.sampled_from([0.3, 1.0, 5.0, 15.0, 31.0, 61.0, 200.0, 640.0, 4000.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        for _ in self.evaluator.tick(self.clock.now):
            pass

    @rule(thing=things, secret=secrets)
    def open_stream(self, thing: str, secret: str) -> None:
        _, workload = self.workload(thing, secret, called=False)
        stream = self.evaluator.open_stream(workload)
        self.streams[stream] = []
        carrier = next(other for other in self.evaluator if stream in (other.streams or ()))
        if carrier.memory.last is not None:
            assert stream._message is carrier.memory.last.active

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def take(self, data: Any) -> None:
        stream = data.draw(st.sampled_from(list(self.streams)))
        if stream._message is None:
            return
        message = taken(stream)
        if message is None:
            self.close(stream)
        else:
            assert message in (True, False)
            self.streams[stream].append(message)

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def drop_stream(self, data: Any) -> None:
        self.close(data.draw(st.sampled_from(list(self.streams))))

    def close(self, stream: Stream) -> None:
        del self.streams[stream]
        self.evaluator.close_stream(stream)

    @rule(ready=st.integers(0, 3), starting=st.integers(0, 2))
    def report(self, ready: int, starting: int) -> None:
        now = self.clock.now
        view = ReplicaView(
            at_seconds=now, ready=ready, starting_at_seconds=(now - 3.0,) * starting, cold_starts_seconds=(4.0,)
        )
        self.evaluator.report("team-a", "llama", view)

    @invariant()
    def whoever_is_read_counts(self) -> None:
        workloads = list(self.evaluator)
        assert set(self.desk.wanted) == {workload for workload in workloads if not workload.superseded}
        assert all(self.desk.wanted[workload] is workload.trigger for workload in self.desk.wanted)

    @invariant()
    def every_open_stream_is_carried_by_one_workload_that_counts(self) -> None:
        carriers: dict[Stream, Workload] = {}
        for workload in self.evaluator:
            for stream in workload.streams or ():
                assert stream not in carriers
                carriers[stream] = workload
                assert not workload.superseded
                assert workload.trigger.identity == stream.home.trigger.identity
        assert set(carriers) == set(self.streams)

    @invariant()
    def no_stream_holds_a_true_that_is_over(self) -> None:
        for workload in self.evaluator:
            last = workload.memory.last
            if last is None or not last.active:
                assert all(stream._message is not True for stream in workload.streams or ())

    @invariant()
    def no_workload_is_superseded_but_by_one_called_later(self) -> None:
        for workload in self.evaluator:
            if workload.superseded:
                assert any(
                    other.called_at > workload.called_at and other.trigger.identity == workload.trigger.identity
                    for other in self.evaluator
                )

    @invariant()
    def nobody_lives_longer_than_somebody_asks(self) -> None:
        for workload in self.evaluator:
            asked = max(self.called.get(workload.digest, 0.0), workload.touched_at)
            assert self.clock.now - asked <= max(EXPIRY_SECONDS, 3 * 7200.0) + 4000.0

    @invariant()
    def cold_starts_are_bounded(self) -> None:
        assert all(len(workload.cold_starts) <= 64 for workload in self.evaluator)


@pytest.fixture(autouse=True, scope="module")
def _source() -> Iterator[None]:
    sources()["scripted"] = SOURCE
    with structlog.testing.capture_logs():
        yield


@pytest.mark.hypothesis  # as it marks its own itself
def test_the_rules_of_a_workloads_life_hold_in_any_order() -> None:
    run_state_machine_as_test(
        WorkloadLife,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),  # explaining traces every line: minutes
        ),
    )


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        pytest.param(0.0, (0.0, 0), id="zero is zero"),
        pytest.param(0.0001, (0.001, 1), id="what is above zero stays above zero"),
        pytest.param(2.0004, (2.0, 2), id="noise below the third decimal raises nothing"),
        pytest.param(2.001, (2.001, 3), id="integers are rounded up"),
        pytest.param(-3.0, (0.0, 0), id="never negative"),
        pytest.param(1e30, (9e15, 9_000_000_000_000_000), id="bounded where quantities would overflow"),
    ],
)
def test_numbers_on_the_wire(value: float, wire: tuple[float, int]) -> None:
    assert published(value) == wire
