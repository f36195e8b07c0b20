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
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from scaler.errors import SourceDenied, SourceError, SourceUnavailable, quoted
from scaler.source import Deliver, SourceContext
from scaler.sources.kafka import protocol
from scaler.sources.kafka.cluster import OLD_BROKER_PAUSE_SECONDS, Cluster
from scaler.sources.kafka.config import KafkaEndpoint, KafkaQuery
from scaler.sources.kafka.connection import Broker, quiet_aiokafka
from scaler.sources.kafka.history import Memory, Track, advance
from scaler.sources.kafka.lag import KafkaReading, PartitionReading, has_valid_offset
from scaler.sources.kafka.pacing import Breath, in_pieces, parts, waves
from scaler.sources.kafka.problems import (
    GROUP_NOT_FOUND,
    Moved,
    group_problem,
    malformed,
    partition_problem,
    plain,
    topic_problem,
)
from scaler.sources.kafka.protocol import Place, Wanted

# Log starts only grow, as retention deletes: an older one counts a little too much.
_START_SECONDS = 30.0
# A request of this many partitions is encoded in about 2 ms; answers are decoded in pieces.
_PARTITIONS_PER_REQUEST = 5_000
_GROUPS_PER_REQUEST = 1_000
# Brokers before 3.0 take one group a request; what has come of so many is handed over before the rest.
_OLD_BROKER_PART = 50
_FORGET_SECONDS = 600.0
# Whoever runs the cluster may be hostile: a bound on what its answers make us hold.
_DISCOVERED_MAX = 1_000


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
    """Reads one cluster with one set of credentials. `newest`: see Cluster."""

    def __init__(
        self, endpoint: KafkaEndpoint, context: SourceContext, *, newest: Mapping[int, int] | None = None
    ) -> None:
        self._context = context
        self._cluster = Cluster(endpoint, context, newest or {})
        self._old_nodes: set[int] = set()
        self._starts: dict[Place, tuple[int, float]] = {}
        self._memories: dict[KafkaQuery, Memory] = {}
        self._forgot_at_seconds = context.clock()

    @property
    def brokers(self) -> tuple[Broker, ...]:
        """Every broker known, with what it was asked so far."""
        return self._cluster.brokers

    async def close(self) -> None:
        """Close every connection."""
        await self._cluster.close()

    async def read(self, queries: Sequence[KafkaQuery], deliver: Deliver) -> None:
        """One reading for each query, or why there is none. Bounded by the timeouts of the requests."""
        self._forget()
        await self._cluster.look_up({topic for query in queries for topic in query.topics})
        by_group: dict[str, list[KafkaQuery]] = defaultdict(list)
        for query in queries:
            problem = self._cluster.problem(query.topics)
            if problem is None:
                by_group[query.group].append(query)
            else:
                self._start_over(query)
                deliver(query, problem)
        async with asyncio.TaskGroup() as tasks:
            located = await self._cluster.locate(by_group)
            by_node: dict[int, list[str]] = defaultdict(list)
            for group, place in located.items():
                if isinstance(place, SourceError):
                    _deliver_all(by_group[group], plain(place), deliver)
                else:
                    by_node[place].append(group)
            fetches = [
                tasks.create_task(self._fetch(node, {group: self._wanted(by_group[group]) for group in part}))
                for node, groups in by_node.items()
                for part in parts(groups, _OLD_BROKER_PART if node in self._old_nodes else len(groups))
            ]
            async for done in waves(fetches):
                works: list[_Work] = []
                for fetch in done:
                    for group, offsets in fetch.result().items():
                        if isinstance(offsets, SourceError):
                            _deliver_all(by_group[group], offsets, deliver)
                        else:
                            works.extend(_Work(query, offsets) for query in by_group[group])
                tasks.create_task(self._measure(works, deliver, tasks))

    def _start_over(self, query: KafkaQuery) -> None:
        """Forget a query whose topics are gone: when they come back they are others."""
        memory = self._memories.pop(query, None)
        for place in memory.tracks if memory is not None else ():
            self._starts.pop(place, None)

    # Committed offsets.

    def _wanted(self, queries: Sequence[KafkaQuery]) -> Wanted:
        """The partitions to ask a group's coordinator for; None: everything it has."""
        if any(not query.topics for query in queries):
            return None
        topics = sorted({topic for query in queries for topic in query.topics})
        return {topic: tuple(self._cluster.topics[topic].leaders) for topic in topics}

    async def _fetch(self, node: int, groups: Mapping[str, Wanted]) -> dict[str, Mapping[Place, int] | SourceError]:
        """Committed offsets of groups whose coordinator is `node`; those that moved are asked for once more."""
        fetched = await self._fetch_once(node, groups)
        moved = [group for group, outcome in fetched.items() if isinstance(outcome, Moved)]
        if not moved:
            return fetched
        self._cluster.forget_coordinators(moved)
        by_node: dict[int, list[str]] = defaultdict(list)
        for group, place in (await self._cluster.locate(moved)).items():
            if isinstance(place, int):  # else what it failed with first tells more
                by_node[place].append(group)
        for other, its in by_node.items():
            if other not in self._cluster.nodes or self._cluster.nodes[other].failing:
                continue  # what it failed with stands
            fetched.update(await self._fetch_once(other, {group: groups[group] for group in its}))
        for group, outcome in fetched.items():
            if isinstance(outcome, Moved):
                self._cluster.forget_coordinators([group])
                fetched[group] = plain(outcome)
        return fetched

    async def _fetch_once(
        self, node: int, groups: Mapping[str, Wanted]
    ) -> dict[str, Mapping[Place, int] | SourceError]:
        broker = self._cluster.nodes.get(node)
        if broker is None:
            return {group: Moved(f"group {quoted(group)}: its coordinator, broker {node}, is gone") for group in groups}
        fetched: dict[str, Mapping[Place, int] | SourceError] = {}
        try:
            if self._cluster.has(await broker.versions(), protocol.OFFSET_FETCH, 8):
                self._old_nodes.discard(node)
                for part in _by_size(groups):
                    answer = await broker.ask(protocol.offset_fetch((group, groups[group]) for group in part))
                    await _note_offsets(protocol.read_offset_fetch(answer), fetched)
            else:
                self._old_nodes.add(node)
                async with broker.one_by_one:
                    for group, wanted in groups.items():
                        answer = await broker.ask(protocol.offset_fetch_one(group, wanted))
                        await _note_offsets(protocol.read_offset_fetch_one(group, answer), fetched)
                        await asyncio.sleep(OLD_BROKER_PAUSE_SECONDS)
        except protocol.Malformed as err:
            broker.drop()
            problem: SourceError = malformed(err)
            fetched.update({group: problem for group in groups if group not in fetched})
        except SourceDenied as err:
            fetched.update({group: err for group in groups if group not in fetched})
        except SourceError as err:
            moved = Moved(str(err), err)
            fetched.update({group: moved for group in groups if group not in fetched})
        # Only what was asked for, whatever the broker says.
        left_out = SourceUnavailable(f"broker {broker} left some groups out of its answer")
        return {group: fetched.get(group, left_out) for group in groups}

    # Log ends and starts.

    async def _measure(self, works: list[_Work], deliver: Deliver, tasks: asyncio.TaskGroup) -> None:
        """Log ends for queries whose committed offsets are known."""
        works = _without_too_many(works, deliver)
        discovered = {topic for work in works if not work.query.topics for topic, _ in work.committed}
        if discovered:
            try:
                await self._cluster.look_up({topic for topic in discovered if self._allowed(topic)})
            except SourceError as err:
                for work in works:
                    if not work.query.topics:
                        deliver(work.query, err)
                works = [work for work in works if work.query.topics]
        wanted: dict[int, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        by_node: dict[int, list[_Work]] = defaultdict(list)
        breath = Breath()
        done: list[_Work] = []
        for work in works:
            problem = self._place(work)
            if problem is not None:
                deliver(work.query, problem)
                continue
            for topic, partition in work.places:
                node = self._cluster.topics[topic].leaders[partition]
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
        async for finished in waves(requests):
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
            topics = [topic for topic in topics if not self._cluster.is_deleted(topic)]
        problem = self._cluster.problem(topics)
        if problem is not None:
            return problem
        work.places = [(topic, partition) for topic in topics for partition in self._cluster.topics[topic].leaders]
        for topic, partition in work.places:
            if self._cluster.topics[topic].leaders[partition] not in self._cluster.nodes:
                self._cluster.suspect(topic)
                return SourceUnavailable(f"partition {partition} of topic {quoted(topic)} has no leader at present")
        return None

    async def _list(
        self, node: int, wanted: Mapping[str, Iterable[int]], timestamp: int
    ) -> dict[Place, int | SourceError]:
        """Log ends or starts of partitions that `node` leads; those that moved are asked for once more."""
        listed = await self._list_once(node, wanted, timestamp)
        moved = [place for place, outcome in listed.items() if isinstance(outcome, Moved)]
        if not moved:
            return listed
        topics = {topic for topic, _ in moved}
        for topic in topics:
            self._cluster.suspect(topic)
        try:
            await self._cluster.look_up(topics)
        except SourceError:  # what it failed with first tells more
            listed.update({place: plain(outcome) for place, outcome in listed.items() if isinstance(outcome, Moved)})
            return listed
        again: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for topic, partition in moved:
            known = self._cluster.topics.get(topic)
            leader = known.leaders.get(partition, -1) if known is not None else -1
            if known is not None and known.error:
                listed[topic, partition] = topic_problem(topic, known.error)
            elif leader in self._cluster.nodes and not self._cluster.nodes[leader].failing:
                again[leader][topic].append(partition)
        for leader, its in again.items():
            listed.update(await self._list_once(leader, its, timestamp))
        for place, outcome in listed.items():
            if isinstance(outcome, Moved):
                self._cluster.suspect(place[0])
                listed[place] = plain(outcome)
        return listed

    async def _list_once(
        self, node: int, wanted: Mapping[str, Iterable[int]], timestamp: int
    ) -> dict[Place, int | SourceError]:
        places = [(topic, partition) for topic, partitions in wanted.items() for partition in partitions]
        listed: dict[Place, int | SourceError] = {}
        broker = self._cluster.nodes.get(node)
        if broker is None:
            return dict.fromkeys(places, Moved(f"broker {node}, the leader of some partitions, is gone"))
        try:
            for part in parts(places, _PARTITIONS_PER_REQUEST):
                topics: dict[str, list[int]] = defaultdict(list)
                for topic, partition in part:
                    topics[topic].append(partition)
                answer = await broker.ask(protocol.list_offsets(topics, timestamp))
                async for piece in in_pieces(protocol.read_list_offsets(answer)):
                    for topic, partition, offset, error in piece:
                        if error == 0 and offset >= 0:
                            listed[topic, partition] = offset
                        elif error:
                            listed[topic, partition] = partition_problem(topic, partition, error)
        except protocol.Malformed as err:
            broker.drop()
            problem: SourceError = malformed(err)
            listed.update({place: problem for place in places if place not in listed})
        except SourceDenied as err:
            listed.update({place: err for place in places if place not in listed})
        except SourceError as err:
            moved = Moved(str(err), err)
            listed.update({place: moved for place in places if place not in listed})
        return listed

    async def _conclude(self, works: list[_Work], ends: Mapping[Place, int | SourceError], deliver: Deliver) -> None:
        """Log starts where they matter, then readings."""
        starts = await self._fetch_starts(works, ends)
        now_seconds = self._context.clock()
        breath = Breath()
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
        breath = Breath()
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
                    wanted[self._cluster.topics[place[0]].leaders.get(place[1], -1)][place[0]].append(place[1])
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
        memory = self._memories.setdefault(query, Memory(now_seconds))
        gap_seconds = now_seconds - memory.at_seconds
        readings = []
        for place in work.places:
            end = ends.get(place)
            end = end if isinstance(end, int) else None
            committed = work.committed.get(place)
            start = self._starts[place][0] if place in self._starts else None
            track = memory.tracks.get(place)
            if track is not None and end is not None and end < track.end:
                self._starts.pop(place, None)  # the topic was created anew: look again at the next read
            if track is not None and end is not None:
                advance(track, end, committed, start if query.earliest else None, gap_seconds)
            elif end is not None:
                # All that is in a named topic's new partition has just arrived; a discovered topic is old.
                counts = first or bool(query.topics)
                track = Track(end, committed, arrived=end if counts else 0, completed=(committed or 0) if counts else 0)
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
                    done_messages=track.lumps.done_messages if track else 0.0,
                    done_most=track.done_most if track else 0,
                )
            )
        memory.at_seconds = now_seconds
        return KafkaReading(now_seconds, tuple(readings))

    def _forget(self) -> None:
        """Drop what nobody has read for a while."""
        now_seconds = self._context.clock()
        if now_seconds - self._forgot_at_seconds < _FORGET_SECONDS / 10:
            return
        self._forgot_at_seconds = now_seconds
        oldest = now_seconds - _FORGET_SECONDS
        self._memories = {query: memory for query, memory in self._memories.items() if memory.at_seconds > oldest}
        self._cluster.forget_unused({query.group for query in self._memories}, oldest)
        self._starts = {place: start for place, start in self._starts.items() if place[0] in self._cluster.topics}


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
    async for piece in in_pieces(walk):
        for item in piece:
            if isinstance(item, protocol.OffsetFetched):
                if item.error:
                    problem = partition_problem(item.topic, item.partition, item.error)
                elif item.offset >= 0:
                    offsets[item.topic, item.partition] = item.offset
                continue
            if item.error and item.error != GROUP_NOT_FOUND:
                fetched[item.group] = group_problem(item.group, item.error)
            else:
                fetched[item.group] = problem or offsets
            offsets, problem = {}, None


def _without_too_many(works: Iterable[_Work], deliver: Deliver) -> list[_Work]:
    """What is left when groups with commits in too many topics have been told so."""
    left = []
    for work in works:
        if not work.query.topics and len(topics := {topic for topic, _ in work.committed}) > _DISCOVERED_MAX:
            problem = SourceUnavailable(
                f"group {quoted(work.query.group)} has offsets in {len(topics)} topics, more than the "
                f"{_DISCOVERED_MAX} that are followed without `topic`; name the topics"
            )
            deliver(work.query, problem)
        else:
            left.append(work)
    return left


def _deliver_all(queries: Iterable[KafkaQuery], problem: SourceError, deliver: Deliver) -> None:
    for query in queries:
        deliver(query, problem)
