"""Reads the lag of many groups of one cluster in few requests.

One read asks, for all workloads at once: the coordinators for committed offsets (one request per coordinator),
then the leaders for log ends (one per leader), and now and then for log starts. Committed offsets come before
log ends, so that a commit past the end is never an artefact of the order.

A broker that hangs holds up only the queries that need it: every step goes on with what has arrived after a
short grace, the rest follows when it comes. What moved (a group's coordinator, a partition's leader) is looked
up anew and asked once more; what still fails is told, and the next read starts from there.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from typing import TypeVar

from scaler.errors import SourceDenied, SourceError, SourceMissing, SourceUnavailable, quoted
from scaler.source import Deliver, SourceContext
from scaler.sources.kafka import protocol
from scaler.sources.kafka.config import KafkaEndpoint, KafkaQuery
from scaler.sources.kafka.connection import Broker, Security, quiet_aiokafka
from scaler.sources.kafka.lag import KafkaReading, PartitionReading, has_valid_offset
from scaler.sources.kafka.protocol import Wanted
from scaler.sources.kafka.tokens import token_provider

T = TypeVar("T")
Place = tuple[str, int]  # topic and partition
Judge = Callable[[Mapping[int, tuple[int, int]]], bool]  # of the versions that a broker has

# Leaders and partition counts are looked up this often without a reason; moves are told by errors at once.
_METADATA_SECONDS = 30.0
# A topic that is missing or leaderless is looked up this often, however many workloads want it.
_PROBLEM_SECONDS = 2.0
# Metadata asked for because of errors: at most this often.
_METADATA_PAUSE_SECONDS = 0.5
# Log starts only grow, as retention deletes: an older one counts a little too much.
_START_SECONDS = 30.0
# What a step waits for its slower brokers before it goes on with the others.
_GRACE_SECONDS = 0.2
# A request of this many partitions is encoded in about 2 ms; answers are decoded in pieces.
_PARTITIONS_PER_REQUEST = 5_000
_GROUPS_PER_REQUEST = 1_000
_TOPICS_PER_REQUEST = 2_000
# Partitions handled between two turns of the event loop: about 2 ms.
_PIECE = 500
# Brokers before 3.0 take one group a request: at most 100 requests a second to one of them.
_OLD_BROKER_PAUSE_SECONDS = 0.01
# Where a committed offset has not been seen for longer than this, nobody knows whether it stood still.
_LONGEST_GAP_SECONDS = 30.0
_FORGET_SECONDS = 600.0

# Kafka's error codes (https://kafka.apache.org/protocol#protocol_error_codes).
_UNKNOWN_TOPIC, _INVALID_TOPIC, _TOPIC_DENIED = 3, 17, 29
_GROUP_DENIED, _INVALID_GROUP, _GROUP_NOT_FOUND = 30, 24, 69
_CLUSTER_DENIED = 31
_COORDINATOR_LOADING, _COORDINATOR_NOT_AVAILABLE, _NOT_COORDINATOR = 14, 15, 16
_COORDINATOR_MOVES = frozenset({_COORDINATOR_LOADING, _COORDINATOR_NOT_AVAILABLE, _NOT_COORDINATOR})
# Unknown topic, leader not available, not leader, replica not available, storage error, fenced and unknown leader
# epoch, offset not available.
_LEADER_MOVES = frozenset({_UNKNOWN_TOPIC, 5, 6, 9, 56, 74, 75, 78})


class _Moved(SourceUnavailable):
    """Asked the wrong broker, or one that can't be reached: worth looking up and asking once more.

    `plain` is what to tell where that did not help.
    """

    def __init__(self, message: str, plain: SourceError | None = None) -> None:
        super().__init__(message)
        self.plain = plain or SourceUnavailable(message)


@dataclass(slots=True)
class _Topic:
    """What metadata says of a topic. `leaders` by partition; -1: none at present."""

    error: int
    leaders: dict[int, int]
    at_seconds: float


@dataclass(slots=True)
class _Track:
    """What is remembered of one partition between two reads."""

    end: int
    committed: int | None
    arrived: int
    completed: int
    still_seconds: float = 0.0


@dataclass(slots=True)
class _Memory:
    """What is remembered of one query."""

    at_seconds: float
    tracks: dict[Place, _Track] = field(default_factory=dict)


@dataclass(slots=True)
class _Work:
    """One query on its way through a read."""

    query: KafkaQuery
    committed: Mapping[Place, int]
    places: list[Place] = field(default_factory=list)
    waits_for: set[int] = field(default_factory=set)


@asynccontextmanager
async def open_client(endpoint: KafkaEndpoint, context: SourceContext) -> AsyncIterator[KafkaClient]:
    """A client of one cluster; it connects when it is first read from."""
    quiet_aiokafka()
    client = KafkaClient(endpoint, context)
    try:
        yield client
    finally:
        await client.close()


class KafkaClient:
    """One cluster, one set of credentials: one connection per broker.

    `newest` caps the versions that are used, by API key: for tests of brokers older than those at hand.
    """

    def __init__(
        self, endpoint: KafkaEndpoint, context: SourceContext, *, newest: Mapping[int, int] | None = None
    ) -> None:
        self._context = context
        self._security = Security(endpoint, token_provider(endpoint.sasl, context))
        self._newest = newest or {}
        self._seeds = [self._broker(host, port) for host, port in endpoint.servers]
        self._brokers: dict[int, Broker] = {}
        self._turn = 0
        self._topics: dict[str, _Topic] = {}
        self._used_at_seconds: dict[str, float] = {}
        self._suspect: set[str] = set()
        self._metadata_lock = asyncio.Lock()
        self._metadata_at_seconds = float("-inf")
        self._coordinators: dict[str, int] = {}
        self._starts: dict[Place, tuple[int, float]] = {}
        self._memories: dict[KafkaQuery, _Memory] = {}
        self._forgot_at_seconds = context.clock()

    @property
    def brokers(self) -> tuple[Broker, ...]:
        """Every broker known, bootstrap addresses that are none of the cluster's included."""
        known = list(self._brokers.values())
        return (*known, *(seed for seed in self._seeds if seed not in known))

    async def close(self) -> None:
        """Close every connection."""
        for broker in self.brokers:
            await broker.close()

    async def read(self, queries: Sequence[KafkaQuery], deliver: Deliver) -> None:
        """One reading for each query, or why there is none. Bounded by the timeouts of the requests."""
        self._forget()
        await self._look_up({topic for query in queries for topic in query.topics})
        by_group: dict[str, list[KafkaQuery]] = defaultdict(list)
        for query in queries:
            problem = self._first_problem(query.topics)
            if problem is None:
                by_group[query.group].append(query)
            else:
                self._memories.pop(query, None)
                deliver(query, problem)
        async with asyncio.TaskGroup() as tasks:
            located = await self._locate(by_group)
            by_node: dict[int, list[str]] = defaultdict(list)
            for group, place in located.items():
                if isinstance(place, SourceError):
                    _deliver_all(by_group[group], _plain(place), deliver)
                else:
                    by_node[place].append(group)
            fetches = [
                tasks.create_task(self._fetch(node, {group: self._wanted(by_group[group]) for group in groups}))
                for node, groups in by_node.items()
            ]
            async for done in _waves(fetches):
                works: list[_Work] = []
                for fetch in done:
                    for group, offsets in fetch.result().items():
                        if isinstance(offsets, SourceError):
                            _deliver_all(by_group[group], offsets, deliver)
                        else:
                            works.extend(_Work(query, offsets) for query in by_group[group])
                tasks.create_task(self._measure(works, deliver, tasks))

    # Committed offsets.

    def _wanted(self, queries: Sequence[KafkaQuery]) -> Wanted:
        """The partitions to ask a group's coordinator for; None: everything it has."""
        if any(not query.topics for query in queries):
            return None
        topics = sorted({topic for query in queries for topic in query.topics})
        return {topic: tuple(self._topics[topic].leaders) for topic in topics}

    async def _locate(self, groups: Iterable[str]) -> dict[str, int | SourceError]:
        """The coordinator of each group, or why there is none."""
        found: dict[str, int | SourceError] = {}
        unknown = []
        for group in groups:
            node = self._coordinators.get(group)
            if node is None or node not in self._brokers:
                unknown.append(group)
            else:
                found[group] = node
        if not unknown:
            return found
        try:
            broker, many = await self._any_broker(lambda versions: self._has(versions, protocol.FIND_COORDINATOR, 4))
            if many:
                for part in _parts(unknown, _GROUPS_PER_REQUEST):
                    walk = protocol.read_coordinators(await broker.ask(protocol.find_coordinators(part)))
                    await self._note_coordinators(walk, found)
            else:
                for group in unknown:
                    answer = await broker.ask(protocol.find_coordinator(group))
                    await self._note_coordinators(protocol.read_coordinator(group, answer), found)
                    await asyncio.sleep(_OLD_BROKER_PAUSE_SECONDS)
        except protocol.Malformed as err:
            problem: SourceError = _malformed(err)
            found.update({group: problem for group in unknown if group not in found})
        except SourceError as err:
            found.update({group: err for group in unknown if group not in found})
        if any(isinstance(node, int) and node not in self._brokers for node in found.values()):
            await self._refresh_brokers(found)
        for group in unknown:
            found.setdefault(
                group, SourceUnavailable(f"group {quoted(group)}: the cluster named no coordinator for it")
            )
        return found

    async def _note_coordinators(
        self, walk: Iterator[protocol.CoordinatorFound], found: dict[str, int | SourceError]
    ) -> None:
        async for part in _in_pieces(walk):
            for group, node, error in part:
                if error:
                    found[group] = _group_problem(group, error)
                else:
                    found[group] = self._coordinators[group] = node

    async def _refresh_brokers(self, found: dict[str, int | SourceError]) -> None:
        """A coordinator is a broker that metadata did not name yet."""
        with suppress(SourceError):
            await self._ask_for_metadata(())
        for group, node in list(found.items()):
            if isinstance(node, int) and node not in self._brokers:
                self._coordinators.pop(group, None)
                found[group] = SourceUnavailable(f"group {quoted(group)}: its coordinator, broker {node}, is not up")

    async def _fetch(self, node: int, groups: Mapping[str, Wanted]) -> dict[str, Mapping[Place, int] | SourceError]:
        """Committed offsets of groups whose coordinator is `node`; those that moved are asked for once more."""
        fetched = await self._fetch_once(node, groups)
        moved = [group for group, outcome in fetched.items() if isinstance(outcome, _Moved)]
        if not moved:
            return fetched
        for group in moved:
            self._coordinators.pop(group, None)
        by_node: dict[int, list[str]] = defaultdict(list)
        for group, place in (await self._locate(moved)).items():
            if isinstance(place, int):  # else what it failed with first tells more
                by_node[place].append(group)
        for other, its in by_node.items():
            if other not in self._brokers or self._brokers[other].failing:
                continue  # what it failed with stands
            fetched.update(await self._fetch_once(other, {group: groups[group] for group in its}))
        for group, outcome in fetched.items():
            if isinstance(outcome, _Moved):
                self._coordinators.pop(group, None)
                fetched[group] = _plain(outcome)
        return fetched

    async def _fetch_once(
        self, node: int, groups: Mapping[str, Wanted]
    ) -> dict[str, Mapping[Place, int] | SourceError]:
        broker = self._brokers.get(node)
        if broker is None:
            return {
                group: _Moved(f"group {quoted(group)}: its coordinator, broker {node}, is gone") for group in groups
            }
        fetched: dict[str, Mapping[Place, int] | SourceError] = {}
        try:
            if self._has(await broker.versions(), protocol.OFFSET_FETCH, 8):
                for part in _by_size(groups):
                    answer = await broker.ask(protocol.offset_fetch((group, groups[group]) for group in part))
                    await _note_offsets(protocol.read_offset_fetch(answer), fetched)
            else:
                for group, wanted in groups.items():
                    answer = await broker.ask(protocol.offset_fetch_one(group, wanted))
                    await _note_offsets(protocol.read_offset_fetch_one(group, answer), fetched)
                    await asyncio.sleep(_OLD_BROKER_PAUSE_SECONDS)
        except protocol.Malformed as err:
            broker.drop()
            problem: SourceError = _malformed(err)
            fetched.update({group: problem for group in groups if group not in fetched})
        except SourceDenied as err:
            fetched.update({group: err for group in groups if group not in fetched})
        except SourceError as err:
            moved = _Moved(str(err), err)
            fetched.update({group: moved for group in groups if group not in fetched})
        for group in groups:
            if group not in fetched:
                fetched[group] = SourceUnavailable(f"group {quoted(group)}: broker {broker} left it out of its answer")
        return fetched

    # Log ends and starts.

    async def _measure(self, works: list[_Work], deliver: Deliver, tasks: asyncio.TaskGroup) -> None:
        """Log ends for queries whose committed offsets are known."""
        discovered = {topic for work in works if not work.query.topics for topic, _ in work.committed}
        if discovered:
            try:
                await self._look_up({topic for topic in discovered if self._allowed(topic)})
            except SourceError as err:
                for work in works:
                    if not work.query.topics:
                        deliver(work.query, err)
                works = [work for work in works if work.query.topics]
        wanted: dict[int, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        by_node: dict[int, list[_Work]] = defaultdict(list)
        breath = _Breath()
        done: list[_Work] = []
        for work in works:
            problem = self._place(work)
            if problem is not None:
                deliver(work.query, problem)
                continue
            for topic, partition in work.places:
                node = self._topics[topic].leaders[partition]
                wanted[node][topic].add(partition)
                work.waits_for.add(node)
            for node in work.waits_for:
                by_node[node].append(work)
            if not work.waits_for:
                done.append(work)
            await breath.take(len(work.places))
        ends: dict[Place, int | SourceError] = {}
        if done:
            await self._conclude(done, ends, deliver)
        requests = {
            tasks.create_task(self._list(node, topics, protocol.LATEST)): node for node, topics in wanted.items()
        }
        async for finished in _waves(requests):
            ready = []
            for request in finished:
                ends.update(request.result())
                node = requests[request]
                for work in by_node[node]:
                    work.waits_for.discard(node)
                    if not work.waits_for:
                        ready.append(work)
            if ready:
                tasks.create_task(self._conclude(ready, ends, deliver))

    def _allowed(self, topic: str) -> bool:
        patterns = self._context.allow.get("topic")
        return patterns is None or any(fnmatchcase(topic, pattern) for pattern in patterns)

    def _is_deleted(self, topic: str) -> bool:
        known = self._topics.get(topic)
        return known is not None and known.error == _UNKNOWN_TOPIC

    def _place(self, work: _Work) -> SourceError | None:
        """Settle which partitions a query is about, or why that can't be done."""
        query = work.query
        topics: Iterable[str] = query.topics
        if not query.topics:
            committed = {topic for topic, _ in work.committed}
            topics = sorted(topic for topic in committed if self._allowed(topic))
            if committed and not topics:
                return SourceDenied(
                    f"group {quoted(query.group)}: the connection lets none of its topics be read; ask the operator of "
                    "Pilotlight to add them to the connection's allow list"
                )
            # A topic that was deleted is no lag; its offsets expire.
            topics = [topic for topic in topics if not self._is_deleted(topic)]
        problem = self._first_problem(topics)
        if problem is not None:
            return problem
        work.places = [(topic, partition) for topic in topics for partition in self._topics[topic].leaders]
        for topic, partition in work.places:
            if self._topics[topic].leaders[partition] not in self._brokers:
                self._suspect.add(topic)
                return SourceUnavailable(f"partition {partition} of topic {quoted(topic)} has no leader at present")
        return None

    async def _list(
        self, node: int, wanted: Mapping[str, Iterable[int]], timestamp: int
    ) -> dict[Place, int | SourceError]:
        """Log ends or starts of partitions that `node` leads; those that moved are asked for once more."""
        listed = await self._list_once(node, wanted, timestamp)
        moved = [place for place, outcome in listed.items() if isinstance(outcome, _Moved)]
        if not moved:
            return listed
        topics = {topic for topic, _ in moved}
        self._suspect |= topics
        try:
            await self._look_up(topics)
        except SourceError:  # what it failed with first tells more
            listed.update({place: _plain(outcome) for place, outcome in listed.items() if isinstance(outcome, _Moved)})
            return listed
        again: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for topic, partition in moved:
            known = self._topics.get(topic)
            leader = known.leaders.get(partition, -1) if known is not None else -1
            if known is not None and known.error:
                listed[topic, partition] = _topic_problem(topic, known.error)
            elif leader in self._brokers and not self._brokers[leader].failing:
                again[leader][topic].append(partition)
        for leader, its in again.items():
            listed.update(await self._list_once(leader, its, timestamp))
        for place, outcome in listed.items():
            if isinstance(outcome, _Moved):
                self._suspect.add(place[0])
                listed[place] = _plain(outcome)
        return listed

    async def _list_once(
        self, node: int, wanted: Mapping[str, Iterable[int]], timestamp: int
    ) -> dict[Place, int | SourceError]:
        places = [(topic, partition) for topic, partitions in wanted.items() for partition in partitions]
        listed: dict[Place, int | SourceError] = {}
        broker = self._brokers.get(node)
        if broker is None:
            return dict.fromkeys(places, _Moved(f"broker {node}, the leader of some partitions, is gone"))
        try:
            for part in _parts(places, _PARTITIONS_PER_REQUEST):
                topics: dict[str, list[int]] = defaultdict(list)
                for topic, partition in part:
                    topics[topic].append(partition)
                answer = await broker.ask(protocol.list_offsets(topics, timestamp))
                async for piece in _in_pieces(protocol.read_list_offsets(answer)):
                    for topic, partition, offset, error in piece:
                        if error == 0 and offset >= 0:
                            listed[topic, partition] = offset
                        elif error:
                            listed[topic, partition] = _partition_problem(topic, partition, error)
        except protocol.Malformed as err:
            broker.drop()
            problem: SourceError = _malformed(err)
            listed.update({place: problem for place in places if place not in listed})
        except SourceDenied as err:
            listed.update({place: err for place in places if place not in listed})
        except SourceError as err:
            moved = _Moved(str(err), err)
            listed.update({place: moved for place in places if place not in listed})
        return listed

    async def _conclude(self, works: list[_Work], ends: Mapping[Place, int | SourceError], deliver: Deliver) -> None:
        """Log starts where they matter, then readings."""
        starts = await self._fetch_starts(works, ends)
        now_seconds = self._context.clock()
        breath = _Breath()
        for work in works:
            deliver(work.query, self._outcome(work, ends, starts, now_seconds))
            await breath.take(len(work.places))

    async def _fetch_starts(
        self, works: list[_Work], ends: Mapping[Place, int | SourceError]
    ) -> Mapping[Place, SourceError]:
        """Bring log starts up to date, of partitions with lag or without a valid offset; what failed comes back.

        They are asked for in batches and kept for a while, so that this costs a request per leader now and then.
        """
        now_seconds = self._context.clock()
        wanted: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        seen = set()
        breath = _Breath()
        for work in works:
            for place in work.places:
                end = ends.get(place)
                if not isinstance(end, int) or place in seen:
                    continue
                committed = work.committed.get(place)
                if has_valid_offset(end=end, committed=committed):
                    if committed == end:
                        continue
                elif not work.query.earliest:
                    continue
                start, at_seconds = self._starts.get(place, (end + 1, 0.0))
                # A start past the end is one of a topic that has been created anew since.
                if start > end or now_seconds - at_seconds > _START_SECONDS:
                    seen.add(place)
                    wanted[self._topics[place[0]].leaders.get(place[1], -1)][place[0]].append(place[1])
            await breath.take(len(work.places))
        failed: dict[Place, SourceError] = {}
        async with asyncio.TaskGroup() as tasks:
            requests = [
                tasks.create_task(self._list(node, topics, protocol.EARLIEST)) for node, topics in wanted.items()
            ]
        for request in requests:
            for place, outcome in request.result().items():
                if isinstance(outcome, SourceError):
                    failed[place] = outcome
                    self._starts.pop(place, None)
                else:
                    self._starts[place] = (outcome, now_seconds)
        return failed

    def _outcome(
        self,
        work: _Work,
        ends: Mapping[Place, int | SourceError],
        failed_starts: Mapping[Place, SourceError],
        now_seconds: float,
    ) -> KafkaReading | SourceError:
        query = work.query
        for place in work.places:
            end = ends.get(place)
            if isinstance(end, SourceError):
                return end
            if (
                place in failed_starts
                and query.earliest
                and not has_valid_offset(end=end, committed=work.committed.get(place))
            ):
                return failed_starts[place]
        first = query not in self._memories
        memory = self._memories.setdefault(query, _Memory(now_seconds))
        gap_seconds = now_seconds - memory.at_seconds
        readings = []
        for place in work.places:
            end = ends.get(place)
            end = end if isinstance(end, int) else None
            committed = work.committed.get(place)
            start = self._starts[place][0] if place in self._starts else None
            track = memory.tracks.get(place)
            if track is not None and end is not None:
                _advance(track, end, committed, start if query.earliest else None, gap_seconds)
            elif end is not None:
                # All that is in a named topic's new partition has just arrived; a discovered topic is old.
                counts = first or bool(query.topics)
                track = _Track(
                    end, committed, arrived=end if counts else 0, completed=(committed or 0) if counts else 0
                )
                memory.tracks[place] = track
            readings.append(
                PartitionReading(
                    topic=place[0],
                    partition=place[1],
                    end=end,
                    start=start,
                    committed=committed,
                    arrived=track.arrived if track else 0,
                    completed=track.completed if track else 0,
                    still_seconds=track.still_seconds if track else 0.0,
                )
            )
        memory.at_seconds = now_seconds
        return KafkaReading(now_seconds, tuple(readings))

    # The cluster.

    def _broker(self, host: str, port: int) -> Broker:
        return Broker(host, port, security=self._security, context=self._context)

    def _has(self, versions: Mapping[int, tuple[int, int]], api_key: int, version: int) -> bool:
        return version <= self._newest.get(api_key, version) and protocol.has_version(versions, api_key, version)

    def _first_problem(self, topics: Iterable[str]) -> SourceError | None:
        for topic in topics:
            known = self._topics.get(topic)
            if known is None:
                return SourceUnavailable(f"topic {quoted(topic)}: the cluster left it out of its answer")
            if known.error:
                return _topic_problem(topic, known.error)
        return None

    async def _look_up(self, topics: set[str]) -> None:
        """Bring metadata of `topics` up to date. Raises SourceError where there is none at all."""
        self._used_at_seconds.update(dict.fromkeys(topics, self._context.clock()))
        if self._brokers and not self._outdated(topics):
            return
        async with self._metadata_lock:
            wanted = self._outdated(topics)
            if self._brokers and not wanted:
                return
            try:
                for part in _parts(wanted, _TOPICS_PER_REQUEST) or [[]]:
                    await self._ask_for_metadata(part)
            except SourceError:
                if not self._brokers or any(topic not in self._topics for topic in topics):
                    raise

    def _outdated(self, topics: Iterable[str]) -> list[str]:
        now_seconds = self._context.clock()
        urgent = now_seconds - self._metadata_at_seconds >= _METADATA_PAUSE_SECONDS
        found = []
        for topic in topics:
            known = self._topics.get(topic)
            if known is None:
                found.append(topic)
                continue
            age_seconds = now_seconds - known.at_seconds
            if (
                age_seconds > _METADATA_SECONDS
                or (known.error and age_seconds > _PROBLEM_SECONDS)
                or (topic in self._suspect and urgent)
            ):
                found.append(topic)
        if found and len(found) < _TOPICS_PER_REQUEST:
            # Ask along for what is about to be due, so that all topics stay on one beat.
            soon, asked = now_seconds - _METADATA_SECONDS / 2, set(found)
            extra = (topic for topic, known in self._topics.items() if known.at_seconds < soon and topic not in asked)
            found.extend(islice(extra, _TOPICS_PER_REQUEST - len(found)))
        return found

    async def _ask_for_metadata(self, topics: Sequence[str]) -> None:
        """Ask any broker for the brokers, and for `topics`. Raises SourceError."""
        self._metadata_at_seconds = self._context.clock()
        broker, _ = await self._any_broker(lambda _: True)
        brokers: dict[int, tuple[str, int]] = {}
        found: dict[str, _Topic] = {}
        try:
            async for piece in _in_pieces(protocol.read_metadata(await broker.ask(protocol.metadata(topics)))):
                for item in piece:
                    if isinstance(item, protocol.LeaderFound):
                        found[item.topic].leaders[item.partition] = item.leader
                    elif isinstance(item, protocol.TopicFound):
                        found[item.topic] = _Topic(item.error, {}, self._metadata_at_seconds)
                    else:
                        brokers[item.node] = (item.host, item.port)
        except protocol.Malformed as err:
            broker.drop()
            raise _malformed(err) from err
        if brokers:
            self._settle(brokers)
        for topic, known in found.items():
            if not known.error and not known.leaders:
                known.error = _UNKNOWN_TOPIC
            if known.error:
                for place in [place for place in self._starts if place[0] == topic]:
                    del self._starts[place]
            known.leaders = dict(sorted(known.leaders.items()))
        self._topics.update(found)
        self._suspect -= found.keys()

    def _settle(self, found: Mapping[int, tuple[str, int]]) -> None:
        """Take over what metadata says of brokers; connections to the same addresses go on."""
        by_address = {(broker.host, broker.port): broker for broker in self.brokers}
        settled = {node: by_address.get(address) or self._broker(*address) for node, address in found.items()}
        kept = set(settled.values())
        for broker in self.brokers:
            if broker not in kept:
                broker.drop()
        self._brokers = settled

    async def _any_broker(self, judge: Judge) -> tuple[Broker, bool]:
        """A broker that answers, and what `judge` says of its versions. Raises the most telling SourceError."""
        brokers = self.brokers
        self._turn += 1
        start = self._turn % len(brokers)
        turned = [*brokers[start:], *brokers[:start]]
        turned.sort(key=lambda broker: (not broker.connected, broker.failing, broker in self._seeds))
        problems: list[SourceError] = []
        for broker in turned:
            try:
                return broker, judge(await broker.versions())
            except SourceError as err:
                problems.append(err)
        problems.sort(key=lambda problem: not isinstance(problem, SourceDenied))
        raise problems[0]

    def _forget(self) -> None:
        """Drop what nobody has read for a while."""
        now_seconds = self._context.clock()
        if now_seconds - self._forgot_at_seconds < _FORGET_SECONDS / 10:
            return
        self._forgot_at_seconds = now_seconds
        oldest = now_seconds - _FORGET_SECONDS
        self._memories = {query: memory for query, memory in self._memories.items() if memory.at_seconds > oldest}
        groups = {query.group for query in self._memories}
        self._coordinators = {group: node for group, node in self._coordinators.items() if group in groups}
        self._used_at_seconds = {topic: used for topic, used in self._used_at_seconds.items() if used > oldest}
        topics = self._used_at_seconds.keys()
        self._topics = {topic: known for topic, known in self._topics.items() if topic in topics}
        self._starts = {place: start for place, start in self._starts.items() if place[0] in topics}
        self._suspect &= topics


def _advance(track: _Track, end: int, committed: int | None, start: int | None, gap_seconds: float) -> None:
    """Count what has happened in one partition since it was last read.

    An end that falls back (topic created anew, messages lost) and an offset that is set back count as nothing:
    the counters only grow. `start` is given where a group without offsets begins at the log's start.
    """
    track.arrived += max(end - track.end, 0)
    track.end = end
    stands = committed is not None and committed == track.committed and committed < end
    track.still_seconds = track.still_seconds + min(gap_seconds, _LONGEST_GAP_SECONDS) if stands else 0.0
    if committed is None:
        return
    before = start if track.committed is None else track.committed
    if before is not None:
        track.completed += max(committed - before, 0)
    track.committed = committed


class _Breath:
    """Lets the event loop go on after each `_PIECE` of work."""

    def __init__(self) -> None:
        self._taken = 0

    async def take(self, count: int) -> None:
        self._taken += count
        if self._taken >= _PIECE:
            self._taken = 0
            await asyncio.sleep(0)


async def _in_pieces(walk: Iterator[T]) -> AsyncIterator[list[T]]:
    """The items of `walk`, decoded `_PIECE` at a time between turns of the event loop."""
    while piece := list(islice(walk, _PIECE)):
        yield piece
        await asyncio.sleep(0)


async def _waves(tasks: Iterable[asyncio.Task[T]]) -> AsyncIterator[set[asyncio.Task[T]]]:
    """What is done: all that comes within the grace together, the rest as it comes."""
    pending = set(tasks)
    if pending:
        done, pending = await asyncio.wait(pending, timeout=_GRACE_SECONDS)
        if done:
            yield done
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        yield done


def _parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _by_size(groups: Mapping[str, Wanted]) -> Iterator[list[str]]:
    """Groups in requests of bounded size. A group that wants all it has counts as a hundred partitions."""
    part: list[str] = []
    size = 0
    for group, wanted in groups.items():
        its = 100 if wanted is None else sum(map(len, wanted.values()))
        if part and (size + its > _PARTITIONS_PER_REQUEST or len(part) >= _GROUPS_PER_REQUEST):
            yield part
            part, size = [], 0
        part.append(group)
        size += its
    if part:
        yield part


async def _note_offsets(
    walk: Iterator[protocol.OffsetFetched | protocol.GroupFetched],
    fetched: dict[str, Mapping[Place, int] | SourceError],
) -> None:
    offsets: dict[Place, int] = {}
    problem: SourceError | None = None
    async for piece in _in_pieces(walk):
        for item in piece:
            if isinstance(item, protocol.OffsetFetched):
                if item.error:
                    problem = _partition_problem(item.topic, item.partition, item.error)
                elif item.offset >= 0:
                    offsets[item.topic, item.partition] = item.offset
                continue
            if item.error and item.error != _GROUP_NOT_FOUND:
                fetched[item.group] = _group_problem(item.group, item.error)
            else:
                fetched[item.group] = problem or offsets
            offsets, problem = {}, None


def _plain(problem: SourceError) -> SourceError:
    return problem.plain if isinstance(problem, _Moved) else problem


def _deliver_all(queries: Iterable[KafkaQuery], problem: SourceError, deliver: Deliver) -> None:
    for query in queries:
        deliver(query, problem)


def _malformed(err: protocol.Malformed) -> SourceUnavailable:
    return SourceUnavailable(f"a broker sent an answer that is not Kafka's ({err}); check what listens there")


def _topic_problem(topic: str, error: int) -> SourceError:
    what = f"topic {quoted(topic)}"
    if error == _TOPIC_DENIED:
        return SourceDenied(f"{what}: the user may not describe it; grant DESCRIBE on the topic")
    if error == _UNKNOWN_TOPIC:
        return SourceMissing(f"{what} does not exist; create it or mend the name")
    if error == _INVALID_TOPIC:
        return SourceMissing(f"{what}: the cluster takes no such name; mend it")
    return SourceUnavailable(f"{what} can't be read at present (Kafka's error {error})")


def _partition_problem(topic: str, partition: int, error: int) -> SourceError:
    if error == _TOPIC_DENIED:
        return _topic_problem(topic, error)
    what = f"partition {partition} of topic {quoted(topic)}"
    if error in _LEADER_MOVES:
        return _Moved(f"{what}: its leader is moving (Kafka's error {error})")
    return SourceUnavailable(f"{what} can't be read at present (Kafka's error {error})")


def _group_problem(group: str, error: int) -> SourceError:
    what = f"group {quoted(group)}"
    if error == _GROUP_DENIED:
        return SourceDenied(f"{what}: the user may not describe it; grant DESCRIBE on the group")
    if error == _CLUSTER_DENIED:
        return SourceDenied(f"{what}: the cluster lets this user ask for nothing; check its rights")
    if error == _INVALID_GROUP:
        return SourceMissing(f"{what}: the cluster takes no such name; mend it")
    if error in _COORDINATOR_MOVES:
        return _Moved(f"{what}: its coordinator is moving or loading (Kafka's error {error})")
    return SourceUnavailable(f"{what} can't be read at present (Kafka's error {error})")
