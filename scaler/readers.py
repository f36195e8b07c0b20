"""One read serves every workload that may ask the same thing.

A client belongs to (source, connection, rights on addresses, endpoint): workloads that differ in any of these
never share one. Each client runs in a task of its own, which paces its distinct queries; what a client does,
hang or crash included, reaches its own workloads only. Outcomes go through one queue and are handed to the
workloads in short slices, so that a read of ten thousand queries doesn't stall the RPCs.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Protocol, Self

import structlog

from scaler.addresses import AddressGuard, api_server_addresses
from scaler.errors import (
    LimitReached,
    SourceError,
    SourceNotInstalled,
    SourceTimeout,
    SourceUnavailable,
    bare,
    quoted,
)
from scaler.settings import LimitSettings, ReadingSettings
from scaler.slices import Slices
from scaler.source import AnySource, Client, SourceContext
from scaler.trigger import Trigger

_log = structlog.get_logger()

# New queries are read together after this, so that a thousand new workloads make a few reads.
_GATHER_SECONDS = 0.01
# Reads of one client start at least this far apart: bounds the number of reads that a hung client holds.
_TICK_SECONDS = 0.02
# More reads than this at once of one client wait for a slot, with all that is due by then in one of them.
_READS_AT_ONCE = 64
# A failing query skips one period, then three, but never waits for longer than this.
_BACKOFF_SECONDS = 10.0
_RESTART_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
# A client that ran for this long before it died starts anew with the shortest wait.
_SOUND_SECONDS = 60.0


class Subscriber(Protocol):
    """Whoever wants the outcomes of a query: a workload."""

    @property
    def sample_seconds(self) -> float:
        """How often it wants one."""


class ReadMetrics(Protocol):
    """What the readers count."""

    def read(self, source_name: str, seconds: float, queries: int) -> None:
        """One call of a client's `read`."""

    def read_failed(self, source_name: str, kind: str) -> None:
        """One query without a reading."""

    def bug(self, event: str, err: BaseException, **facts: object) -> None:
        """Something that should not happen."""


Dispatch = Callable[[Subscriber, object, float], None]


class Query:
    """A distinct thing that a client reads, and who wants it. Handed out by `Readers.subscribe`."""

    __slots__ = ("failures", "in_flight", "key", "not_before", "reader", "turn", "wanted")

    def __init__(self, reader: _Reader, key: Hashable, turn: _Turn) -> None:
        self.reader = reader
        self.key = key
        self.turn = turn
        self.not_before = -math.inf
        self.in_flight = False
        self.failures = 0
        self.wanted: list[Subscriber] = []


class _Turn:
    """Queries that are read at the same moments: `offset_seconds` after each multiple of the period."""

    __slots__ = ("offset_seconds", "period_seconds", "queries")

    def __init__(self, period_seconds: float, offset_seconds: float) -> None:
        self.period_seconds = period_seconds
        self.offset_seconds = offset_seconds
        self.queries: dict[Query, None] = {}

    def next_due(self, now: float) -> float:
        """The next moment after `now`."""
        period, offset = self.period_seconds, self.offset_seconds
        due = offset + (math.floor((now - offset) / period) + 1) * period
        return due if due > now else due + period  # rounding


class _Reader:
    """One client and the task that runs it."""

    def __init__(self, pool: Readers, key: Hashable, trigger: Trigger, context: SourceContext) -> None:
        self.pool = pool
        self.key = key
        self.source: AnySource = trigger.source
        self.source_name = trigger.source_name
        self.config = trigger.config
        self.label = trigger.identity
        self.context = context
        self.queries: dict[Hashable, Query] = {}
        self._turns: dict[tuple[float, float], _Turn] = {}
        self._heap: list[tuple[float, int, _Turn]] = []
        self._new: dict[Query, None] = {}  # to be read at once, whenever their turn is
        self._wake = asyncio.Event()
        self._slots = _READS_AT_ONCE
        self._phase = pool.chance.random()
        self._idle_since = pool.clock()
        self._failure: SourceError | None = None  # why there is no client at present

    def join(self, key: Hashable, subscriber: Subscriber) -> Query:
        """Add `subscriber` to the query `key`; a reading follows at once."""
        query = self.queries.get(key)
        if query is None:
            turn = self._turn(subscriber.sample_seconds)
            query = self.queries[key] = Query(self, key, turn)
            turn.queries[query] = None
        query.wanted.append(subscriber)
        self._keep_pace(query)
        query.not_before = -math.inf
        self._new[query] = None
        self._wake.set()
        if self._failure is not None:
            self._deliver(query, self._failure)
        return query

    def _turn(self, period_seconds: float) -> _Turn:
        """A turn at this pace: the client's one where reading together is cheap, else any of those it has time for."""
        share = self._phase if self.source.batched else self.pool.chance.random()
        steps = max(math.floor(period_seconds / _TICK_SECONDS), 1)
        offset_seconds = math.floor(share * steps) * period_seconds / steps
        turn = self._turns.get((period_seconds, offset_seconds))
        if turn is None:
            turn = self._turns[period_seconds, offset_seconds] = _Turn(period_seconds, offset_seconds)
            self._push(turn, self.pool.clock())
        return turn

    def _push(self, turn: _Turn, now: float) -> None:
        heapq.heappush(self._heap, (turn.next_due(now), next(self.pool.ticket), turn))

    def _keep_pace(self, query: Query) -> None:
        """Read as often as the most impatient subscriber wants."""
        period_seconds = min(subscriber.sample_seconds for subscriber in query.wanted)
        if period_seconds != query.turn.period_seconds:
            del query.turn.queries[query]
            query.turn = self._turn(period_seconds)
            query.turn.queries[query] = None

    def leave(self, query: Query, subscriber: Subscriber) -> None:
        """Take `subscriber` off; a query that nobody wants is forgotten."""
        if subscriber not in query.wanted:
            return
        query.wanted.remove(subscriber)
        if query.wanted:
            self._keep_pace(query)
            return
        self.queries.pop(query.key, None)
        query.turn.queries.pop(query, None)
        self._new.pop(query, None)
        self._idle_since = self.pool.clock()
        self._wake.set()

    async def run(self) -> None:
        """Open the client, read until nobody wants anything, open it again where it dies."""
        waits = iter(_RESTART_SECONDS)
        wait_seconds = _RESTART_SECONDS[-1]
        while True:
            opened_at = self.pool.clock()
            try:
                if await self._live():
                    return
                failure: SourceError = SourceUnavailable(f"the client of {quoted(self.label)} closed by itself")
            except SourceError as err:
                failure = err
            except Exception as err:  # noqa: BLE001 - whatever a client does, only its own workloads feel it
                failure = self._translated(err, "client_died")
            if not self.queries:
                return
            self._failure = failure
            slices = self.pool.slices
            slice_ends = slices.first()
            for query in list(self.queries.values()):
                self._deliver(query, failure)
                if slices.clock() >= slice_ends:
                    slice_ends = await slices.next()
            if self.pool.clock() - opened_at > _SOUND_SECONDS:
                waits = iter(_RESTART_SECONDS)
            wait_seconds = next(waits, wait_seconds)
            await asyncio.sleep(wait_seconds * self.pool.chance.uniform(0.8, 1.2))

    async def _live(self) -> bool:
        """One life of the client. True where it ended because nobody wants anything any more."""
        stack = AsyncExitStack()
        opening = self.context.connect_timeout_seconds
        try:
            async with asyncio.timeout(opening):
                client: Client = await stack.enter_async_context(self.source.open(self.config, self.context))
        except TimeoutError as err:
            raise SourceTimeout(f"the client of {quoted(self.label)} did not open within {opening:g} s") from err
        self._failure = None
        try:
            async with asyncio.TaskGroup() as reads:
                await self._pace(client, reads)
        finally:
            # Whatever the client holds must not keep the process: its connections die with it at the latest.
            try:
                async with asyncio.timeout(opening):
                    await stack.aclose()
            except TimeoutError:
                _log.warning("client_close_timed_out", client=self.label)
        return True

    async def _pace(self, client: Client, reads: asyncio.TaskGroup) -> None:
        pool = self.pool
        while True:
            self._wake.clear()
            now = pool.clock()
            if self._slots > 0:
                batch = self._due(now)
                if batch:
                    self._slots -= 1
                    reads.create_task(self._read(client, batch))
            if not self.queries and now - self._idle_since >= pool.reading.client_linger_seconds:
                pool.forget(self)  # from here on a new workload gets a new reader
                return
            if self._new:
                delay = _GATHER_SECONDS
            else:
                delay = self._heap[0][0] - now if self._heap else pool.reading.client_linger_seconds
            delay = max(delay, _TICK_SECONDS)
            if delay <= 2 * _TICK_SECONDS:
                await asyncio.sleep(delay)
                continue
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(_GATHER_SECONDS)

    def _due(self, now: float) -> list[Query]:
        """The queries to read now: the new ones, and those whose turn it is and that are not still under way."""
        batch: list[Query] = []
        for query in self._new:
            if not query.in_flight:
                query.in_flight = True
                batch.append(query)
        self._new.clear()
        heap = self._heap
        while heap and heap[0][0] <= now:
            turn = heapq.heappop(heap)[2]
            if not turn.queries:
                del self._turns[turn.period_seconds, turn.offset_seconds]
                continue
            self._push(turn, now)
            for query in turn.queries:
                if not query.in_flight and now >= query.not_before:
                    query.in_flight = True
                    batch.append(query)
        return batch

    async def _read(self, client: Client, batch: Sequence[Query]) -> None:
        pending = {query.key: query for query in batch}
        keys = tuple(pending)
        deadline = self.pool.reading.read_deadline_seconds
        started = time.perf_counter()

        def deliver(query: Hashable, outcome: object) -> None:
            asked = pending.pop(query, None)
            if asked is not None:  # else delivered twice, or after the deadline
                self._deliver(asked, outcome)

        failure: SourceError = SourceUnavailable(f"{quoted(self.label)} gave no answer to this query")
        scope = asyncio.timeout(deadline)
        try:
            async with scope:
                await client.read(keys, deliver)
        except SourceError as err:
            failure = err
        except TimeoutError as err:
            failure = SourceTimeout(f"{quoted(self.label)} did not answer within {deadline:g} s")
            if not scope.expired():
                failure.__cause__ = err
        except Exception as err:  # noqa: BLE001 - as above
            failure = self._translated(err, "read_failed")
        finally:
            self._slots += 1
            for query in pending.values():
                query.in_flight = False
        self.pool.metrics.read(self.source_name, time.perf_counter() - started, len(keys))
        slices = self.pool.slices
        slice_ends = slices.first()
        while pending:
            _, query = pending.popitem()
            self._deliver(query, failure)
            if slices.clock() >= slice_ends:
                slice_ends = await slices.next()

    def _deliver(self, query: Query, outcome: object) -> None:
        if isinstance(outcome, SourceError):
            bare(outcome)
            query.failures += 1
            periods = 1.0 if query.failures == 1 else 3.0
            now = self.pool.clock()
            period_seconds = query.turn.period_seconds
            query.not_before = now + min(periods * period_seconds, max(_BACKOFF_SECONDS, period_seconds))
            self.pool.metrics.read_failed(self.source_name, type(outcome).__name__)
        else:
            query.failures = 0
            query.not_before = -math.inf
        self.pool.hand_over(query, outcome)

    def _translated(self, err: Exception, event: str) -> SourceError:
        """What callers learn of a failure that is no SourceError: a client library that is missing, or our bug.

        A bug is logged; callers learn only that there was one.
        """
        for missing in _missing_modules(err):
            return SourceNotInstalled(
                f"source {self.source_name} needs its extra: pip install 'pilotlight[{self.source.needs_extra}]' "
                f"(module {quoted(missing)} is not installed)"
            )
        self.pool.metrics.bug(event, err, client=self.label)
        return SourceUnavailable(f"reading {quoted(self.label)} failed for a reason that only Pilotlight's log tells")


def _missing_modules(err: BaseException) -> Iterator[str]:
    """Names of modules of others that `err` says are not installed; one of our own is a bug, not an extra."""
    if isinstance(err, BaseExceptionGroup):
        for inner in err.exceptions:
            yield from _missing_modules(inner)
    elif isinstance(err, ModuleNotFoundError) and err.name and err.name.partition(".")[0] != "scaler":
        yield err.name


class Readers:
    """The pool of clients, and the queue of what they read.

    Use as an async context manager: leaving it closes every client. `dispatch` is called for each workload
    that wanted an outcome, in `slices`.
    """

    def __init__(
        self,
        *,
        reading: ReadingSettings,
        limits: LimitSettings,
        metrics: ReadMetrics,
        dispatch: Dispatch,
        slices: Slices | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        self.reading = reading
        self.metrics = metrics
        self.clock = clock
        self.chance = chance or random.Random()  # noqa: S311 - spreads load, guards nothing
        self.ticket = itertools.count()
        self._limits = limits
        self._dispatch = dispatch
        self.slices = slices or Slices()
        self._readers: dict[Hashable, _Reader] = {}
        self._outcomes: deque[tuple[Query, object]] = deque()
        self._arrived = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._owned: list[asyncio.Task[None]] = []
        self._forbidden = api_server_addresses()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._owned.append(self._group.create_task(self._hand_out()))
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._owned:
            task.cancel()
        await self._group.__aexit__(None, None, None)

    def __len__(self) -> int:
        return len(self._readers)

    @property
    def queries(self) -> int:
        """How many distinct things are read."""
        return sum(len(reader.queries) for reader in self._readers.values())

    @property
    def waiting(self) -> int:
        """Outcomes not yet handed to their workloads."""
        return len(self._outcomes)

    def subscribe(self, trigger: Trigger, subscriber: Subscriber, *, private_addresses: bool) -> Query:
        """Read for `subscriber` from now on, at once first.

        `private_addresses`: whether the namespace's own endpoints may lead to loopback and the like. Raises
        LimitReached where this needs one more client than allowed.
        """
        source, config, connection = trigger.source, trigger.config, trigger.connection
        private = connection is not None or private_addresses
        key = (trigger.source_name, connection.name if connection else None, private, source.endpoint(config))
        reader = self._readers.get(key)
        if reader is None:
            if len(self._readers) >= self._limits.clients:
                raise LimitReached(
                    f"{len(self._readers)} source clients are open, the limit; share endpoints and credentials through "
                    "connections, or raise limits.clients"
                )
            guard = AddressGuard(
                private_allowed=private,
                forbidden=self._forbidden,
                resolve_timeout_seconds=self.reading.connect_timeout_seconds,
            )
            context = SourceContext(
                clock=self.clock,
                read_timeout_seconds=self.reading.read_timeout_seconds,
                connect_timeout_seconds=self.reading.connect_timeout_seconds,
                max_response_bytes=self.reading.max_response_bytes,
                check_address=guard.check,
                judge_address=guard.judge,
                allow=connection.allow if connection else {},
            )
            reader = self._readers[key] = _Reader(self, key, trigger, context)
            task = self._group.create_task(self._run(reader))
            self._owned.append(task)
            task.add_done_callback(self._owned.remove)
        return reader.join(source.query(config), subscriber)

    def unsubscribe(self, query: Query, subscriber: Subscriber) -> None:
        """Read no more for `subscriber`."""
        query.reader.leave(query, subscriber)

    async def _run(self, reader: _Reader) -> None:
        try:
            await reader.run()
        finally:
            self.forget(reader)

    def forget(self, reader: _Reader) -> None:
        """Drop a reader that ends."""
        if self._readers.get(reader.key) is reader:
            del self._readers[reader.key]

    def hand_over(self, query: Query, outcome: object) -> None:
        """Queue an outcome for whoever wants it. Until they have it, the query is not read again."""
        query.in_flight = True
        self._outcomes.append((query, outcome))
        self._arrived.set()

    async def _hand_out(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            slice_ends = self.slices.first()
            while self._outcomes:
                query, outcome = self._outcomes.popleft()
                query.in_flight = False
                for subscriber in tuple(query.wanted):
                    try:
                        self._dispatch(subscriber, outcome, self.clock())
                    except Exception as err:  # noqa: BLE001 - one workload's failure must not stop the others
                        self.metrics.bug("dispatch_failed", err)
                    if self.slices.clock() >= slice_ends:
                        slice_ends = await self.slices.next()
