"""How clients are shared, paced, bounded and restarted. Time is the event loop's and passes at once (looptime)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from scaler.errors import (
    LimitReached,
    SourceDenied,
    SourceError,
    SourceNotInstalled,
    SourceTimeout,
    SourceUnavailable,
)
from scaler.readers import Query, Readers
from scaler.settings import (
    FileSettings,
    LimitSettings,
    ReadingSettings,
    Settings,
    TelemetrySettings,
    resolve,
)
from scaler.telemetry import Telemetry
from scaler.trigger import Trigger, parse_trigger
from tests.service.conftest import until
from tests.service.scripted import SOURCE, World, worlds

pytestmark = pytest.mark.looptime


@dataclass(eq=False)
class Subscriber:
    """A workload that notes what it is told."""

    trigger: Trigger
    told: list[tuple[float, object]] = field(default_factory=list)

    @property
    def sample_seconds(self) -> float:
        return self.trigger.sample_seconds

    def last(self) -> object:
        return self.told[-1][1]


SETTINGS = resolve(
    FileSettings.model_validate({"connections": {}}),
    {},
    where="test",
)


def trigger(thing: str = "orders", world: str = "w", settings: Settings = SETTINGS, **more: str) -> Trigger:
    metadata = {"source": "scripted", "object": thing, **more}
    if "connection" not in more:
        metadata["world"] = world
    return parse_trigger("team-a", "llama", metadata, settings)


@asynccontextmanager
async def pool(limits: LimitSettings | None = None, **reading: float) -> AsyncIterator[tuple[Readers, Telemetry]]:
    loop = asyncio.get_running_loop()
    telemetry = Telemetry(TelemetrySettings(), clock=loop.time)

    def dispatch(subscriber: Subscriber, outcome: object, now: float) -> None:
        if outcome == 666.0:
            raise ZeroDivisionError
        subscriber.told.append((now, outcome))

    readers = Readers(
        reading=ReadingSettings.model_validate(reading),
        limits=limits or LimitSettings(),
        metrics=telemetry,
        dispatch=dispatch,  # type: ignore[arg-type]  # this pool has our subscribers only
        clock=loop.time,
        chance=random.Random(7),
    )
    async with readers:
        yield readers, telemetry


def subscribe(readers: Readers, wanted: Trigger) -> Subscriber:
    subscriber = Subscriber(wanted)
    readers.subscribe(wanted, subscriber, private_addresses=True)
    return subscriber


async def test_a_new_query_is_read_at_once_and_then_at_its_pace(world: World) -> None:
    world.default = 3.0
    async with pool() as (readers, _):
        subscriber = subscribe(readers, trigger(sampleSeconds="2"))
        await asyncio.sleep(0.1)
        assert subscriber.last() == 3.0
        await asyncio.sleep(20)
    times = [at for at, _ in subscriber.told]
    assert len(times) in (10, 11, 12)
    assert all(1.9 < later - earlier < 2.1 for earlier, later in pairwise(times[1:]))


async def test_a_thousand_workloads_of_one_endpoint_share_a_client_and_a_read(world: World) -> None:
    async with pool() as (readers, _):
        subscribers = [subscribe(readers, trigger(f"queue-{number}")) for number in range(1000)]
        await asyncio.sleep(0.2)
        assert all(subscriber.told for subscriber in subscribers)
        await asyncio.sleep(10)
        assert len(readers) == 1
    assert world.opened == 1
    assert len(world.reads) <= 13  # one at the start, one a second


async def test_equal_queries_are_read_once_for_all_at_the_fastest_pace(world: World) -> None:
    async with pool() as (readers, _):
        fast = subscribe(readers, trigger(sampleSeconds="1"))
        slow = subscribe(readers, trigger(sampleSeconds="10", threshold="9"))
        await asyncio.sleep(20.5)
        assert world.asked["orders"] == len(world.reads)
        assert 20 <= len(world.reads) <= 24
        assert len(slow.told) >= len(fast.told) - 1
        readers.unsubscribe(_query(readers, fast), fast)
        before = len(world.reads)
        await asyncio.sleep(40)
        assert len(world.reads) - before <= 6


def _query(readers: Readers, subscriber: Subscriber) -> Query:
    for reader in readers._readers.values():
        for query in reader.queries.values():
            if subscriber in query.wanted:
                return query
    raise AssertionError("nobody reads for it")


async def test_sources_that_are_not_batched_spread_their_queries_over_the_period(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SOURCE, "batched", False, raising=False)
    async with pool() as (readers, _):
        for number in range(500):
            subscribe(readers, trigger(f"queue-{number}", sampleSeconds="5"))
        await asyncio.sleep(0.5)
        world.reads.clear()
        await asyncio.sleep(20)
    largest = max(len(queries) for _, queries in world.reads)
    assert largest < 25  # of 500, in steps of 20 ms over 5 s: 2 on average
    assert sum(len(queries) for _, queries in world.reads) in range(1990, 2011)


async def test_a_hanging_client_gets_no_second_question_and_a_timeout_and_holds_up_nobody_else(world: World) -> None:
    other = worlds.setdefault("other", World(default=1.0))
    world.hang()
    async with pool(read_deadline_seconds=15.0) as (readers, _):
        hung, fine = subscribe(readers, trigger()), subscribe(readers, trigger(world="other"))
        await asyncio.sleep(14)
        assert (len(world.reads), hung.told) == (1, [])
        assert len(fine.told) in (14, 15, 16)
        await asyncio.sleep(2)
        assert isinstance(hung.last(), SourceTimeout)
        assert "15 s" in str(hung.last())
        world.default = 4.0
        world.resume()
        await asyncio.sleep(20)
        assert hung.last() == 4.0
    assert other.opened == 1


async def test_failures_back_off_a_little_and_recovery_is_quick(world: World) -> None:
    world.default = SourceDenied("refused")
    async with pool() as (readers, telemetry):
        subscriber = subscribe(readers, trigger())
        await asyncio.sleep(60)
        assert 10 <= len(world.reads) <= 25  # every one to three periods and a bit
        assert telemetry.read_errors["scripted", "SourceDenied"] == len(world.reads)
        world.default = 2.0
        await asyncio.sleep(4.5)
        assert subscriber.last() == 2.0
        before = len(world.reads)
        await asyncio.sleep(10)
        assert len(world.reads) - before in (9, 10, 11)


async def test_a_slow_pace_skips_one_period_at_most(world: World) -> None:
    world.default = SourceUnavailable("gone")
    async with pool() as (readers, _):
        subscriber = subscribe(readers, trigger(sampleSeconds="60"))
        await asyncio.sleep(600)
    times = [at for at, _ in subscriber.told]
    assert all(later - earlier < 121 for earlier, later in pairwise(times))


async def test_a_client_that_answers_nothing_for_a_query_is_an_error(world: World) -> None:
    world.silent.add("orders")
    async with pool() as (readers, _):
        quiet, fine = subscribe(readers, trigger()), subscribe(readers, trigger("mails"))
        await asyncio.sleep(1)
    assert isinstance(quiet.last(), SourceUnavailable)
    assert fine.last() == 0.0


async def test_a_bug_in_a_source_is_told_without_detail_and_logged_once(world: World) -> None:
    world.default = ZeroDivisionError("password=hunter2")
    async with pool() as (readers, telemetry):
        subscriber = subscribe(readers, trigger())
        await asyncio.sleep(30)
    assert isinstance(subscriber.last(), SourceUnavailable)
    assert "hunter2" not in str(subscriber.last())
    assert telemetry.bugs == len(world.reads) > 3


async def test_a_client_that_dies_is_opened_again_after_a_wait(world: World) -> None:
    world.default = 5.0
    world.dies = asyncio.Event()
    async with pool() as (readers, _):
        subscriber = subscribe(readers, trigger())
        await asyncio.sleep(3)
        assert subscriber.last() == 5.0
        dies, world.dies = world.dies, None
        dies.set()
        await asyncio.sleep(0.1)
        assert isinstance(subscriber.last(), SourceError)
        assert world.closed == 1
        late = subscribe(readers, trigger("mails"))  # in the meantime: told at once why
        await asyncio.sleep(0.1)
        assert isinstance(late.last(), SourceError)
        await asyncio.sleep(2)
        assert (subscriber.last(), late.last()) == (5.0, 5.0)
        assert (world.opened, len(readers)) == (2, 1)


async def test_a_client_that_can_not_open_is_tried_less_and_less_often(world: World) -> None:
    world.open_error = ImportError("no module named aiobroker")
    async with pool() as (readers, _):
        subscriber = subscribe(readers, trigger())
        await asyncio.sleep(120)
        assert 5 <= world.opened <= 9
        assert isinstance(subscriber.last(), SourceUnavailable)
        world.open_error = None
        await asyncio.sleep(37)
        assert subscriber.last() == 0.0


@pytest.mark.parametrize(
    ("missing", "kind", "bugs"),
    [
        pytest.param(ModuleNotFoundError(name="aiobroker.client"), SourceNotInstalled, 0, id="a library of others"),
        pytest.param(
            ExceptionGroup("tasks", [ExceptionGroup("more", [ModuleNotFoundError(name="aiobroker")])]),
            SourceNotInstalled,
            0,
            id="within task groups",
        ),
        pytest.param(ModuleNotFoundError(name="scaler.sources.gone"), SourceUnavailable, 1, id="a module of ours"),
    ],
)
async def test_a_missing_client_library_is_no_bug_but_an_extra_to_install(
    world: World, missing: Exception, kind: type[SourceError], bugs: int
) -> None:
    world.open_error = missing
    async with pool() as (readers, telemetry):
        subscriber = subscribe(readers, trigger())
        await asyncio.sleep(0.5)
        outcome = subscriber.last()
        assert type(outcome) is kind
        assert telemetry.bugs == bugs
        assert ("source scripted needs its extra: pip install 'pilotlight[test]'" in str(outcome)) is (bugs == 0)


async def test_a_client_nobody_needs_closes_after_a_while_and_opens_anew_when_needed(world: World) -> None:
    async with pool(client_linger_seconds=30.0) as (readers, _):
        subscriber = subscribe(readers, trigger())
        await asyncio.sleep(5)
        readers.unsubscribe(_query(readers, subscriber), subscriber)
        reads = len(world.reads)
        await asyncio.sleep(25)
        assert (len(readers), world.closed, len(world.reads)) == (1, 0, reads)
        await asyncio.sleep(10)
        assert (len(readers), world.closed) == (0, 1)
        again = subscribe(readers, trigger())
        await asyncio.sleep(0.5)
        assert (again.last(), world.opened) == (0.0, 2)


async def test_rights_are_never_shared(world: World) -> None:
    parsed = FileSettings.model_validate(
        {
            "connections": {
                name: {"source": "scripted", "namespaces": ["*"], "set": {"world": "w"}} for name in ("ours", "theirs")
            }
        }
    )
    settings = resolve(parsed, {}, where="test")
    async with pool() as (readers, _):
        subscribe(readers, trigger())
        subscribe(readers, trigger(password="one"))
        subscribe(readers, trigger(password="two"))
        subscribe(readers, trigger(settings=settings, connection="ours"))
        subscribe(readers, trigger(settings=settings, connection="theirs"))
        guarded = trigger()
        readers.subscribe(guarded, Subscriber(guarded), private_addresses=False)
        await asyncio.sleep(1)
        assert len(readers) == 6
    assert world.opened == 6


async def test_the_number_of_clients_is_limited_with_a_clear_error(world: World) -> None:
    async with pool(LimitSettings(clients=2)) as (readers, _):
        subscribe(readers, trigger(password="one"))
        subscribe(readers, trigger(password="two"))
        with pytest.raises(LimitReached, match=r"limits\.clients"):
            subscribe(readers, trigger(password="three"))
        subscribe(readers, trigger("mails", password="two"))
    assert world.opened <= 2


async def test_one_workload_whose_evaluation_fails_does_not_stop_the_others(world: World) -> None:
    world.answers["poison"] = 666.0
    async with pool() as (readers, telemetry):
        subscribe(readers, trigger("poison"))
        fine = subscribe(readers, trigger())
        await asyncio.sleep(3)
    assert len(fine.told) >= 3
    assert telemetry.bugs >= 1


async def test_leaving_the_pool_closes_clients_and_cancels_reads_under_way(world: World) -> None:
    world.hang()
    async with pool() as (readers, _):
        subscribe(readers, trigger())
        await asyncio.sleep(1)
    assert world.closed == 1


@pytest.mark.looptime(False)
async def test_outcomes_are_handed_out_in_slices_between_which_others_run(world: World) -> None:
    turns: list[float] = []

    async def others() -> None:
        while True:
            turns.append(time.perf_counter())
            await asyncio.sleep(0)

    async with pool() as (readers, _):
        for number in range(300):
            subscribe(readers, trigger(f"queue-{number}"))
        busy: list[float] = []

        def dispatch(*_told: object) -> None:
            started = time.perf_counter()
            while time.perf_counter() - started < 0.0005:
                pass
            busy.append(started)

        readers._dispatch = dispatch
        task = asyncio.create_task(others())
        await until(lambda: len(busy) >= 300)
        task.cancel()
    between = [turn for turn in turns if busy[0] < turn < busy[-1]]
    assert len(between) > 50  # 300 half-milliseconds in slices of one
    assert world.opened == 1
