"""Where things are in a cluster: brokers, leaders of partitions, coordinators of groups."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from scaler.errors import SourceDenied, SourceError, SourceUnavailable, quoted
from scaler.source import SourceContext
from scaler.sources.kafka import protocol
from scaler.sources.kafka.config import KafkaEndpoint
from scaler.sources.kafka.connection import Broker, Security
from scaler.sources.kafka.pacing import in_pieces, parts
from scaler.sources.kafka.problems import UNKNOWN_TOPIC, group_problem, malformed, topic_problem
from scaler.sources.kafka.tokens import token_provider

Judge = Callable[[Mapping[int, tuple[int, int]]], bool]  # of the versions that a broker has

# Leaders and partition counts are looked up this often without a reason; moves are told by errors at once.
_METADATA_SECONDS = 30.0
# A topic that is missing or leaderless is looked up this often, however many workloads want it.
_PROBLEM_SECONDS = 2.0
# Metadata asked for because of errors: at most this often.
_METADATA_PAUSE_SECONDS = 0.5
_GROUPS_PER_REQUEST = 1_000
_TOPICS_PER_REQUEST = 2_000
# Brokers before 3.0 take one group a request: at most 100 requests a second to one of them.
OLD_BROKER_PAUSE_SECONDS = 0.01


@dataclass(slots=True)
class Topic:
    """What metadata says of a topic. `leaders` by partition; -1: none at present."""

    error: int
    leaders: dict[int, int]
    at_seconds: float


class Cluster:
    """One cluster, one set of credentials: one connection per broker.

    `newest` caps the versions that are used, by API key: for tests of brokers older than those at hand.
    """

    def __init__(self, endpoint: KafkaEndpoint, context: SourceContext, newest: Mapping[int, int]) -> None:
        self.nodes: dict[int, Broker] = {}
        self.topics: dict[str, Topic] = {}
        self._context = context
        self._newest = newest
        self._security = Security(endpoint, token_provider(endpoint.sasl, context))
        self._seeds = [self._broker(host, port) for host, port in endpoint.servers]
        self._turn = 0
        self._used_at_seconds: dict[str, float] = {}
        self._suspect: set[str] = set()
        self._metadata_lock = asyncio.Lock()
        self._metadata_at_seconds = float("-inf")
        self._coordinators: dict[str, int] = {}

    @property
    def brokers(self) -> tuple[Broker, ...]:
        """Every broker known, bootstrap addresses that are none of the cluster's included."""
        known = list(self.nodes.values())
        return (*known, *(seed for seed in self._seeds if seed not in known))

    async def close(self) -> None:
        """Close every connection."""
        for broker in self.brokers:
            await broker.close()

    def suspect(self, topic: str) -> None:
        """Look the topic up before its time: a leader has moved."""
        self._suspect.add(topic)

    def forget_coordinators(self, groups: Iterable[str]) -> None:
        """Look them up anew: they have moved."""
        for group in groups:
            self._coordinators.pop(group, None)

    def forget_unused(self, groups: set[str], oldest_seconds: float) -> None:
        """Drop coordinators of other groups, and topics that nobody has asked for since."""
        self._coordinators = {group: node for group, node in self._coordinators.items() if group in groups}
        self._used_at_seconds = {topic: used for topic, used in self._used_at_seconds.items() if used > oldest_seconds}
        self.topics = {topic: known for topic, known in self.topics.items() if topic in self._used_at_seconds}
        self._suspect &= self.topics.keys()

    def is_deleted(self, topic: str) -> bool:
        """Whether the cluster says that it has no such topic."""
        known = self.topics.get(topic)
        return known is not None and known.error == UNKNOWN_TOPIC

    async def locate(self, groups: Iterable[str]) -> dict[str, int | SourceError]:
        """The coordinator of each group, or why there is none."""
        found: dict[str, int | SourceError] = {}
        unknown = []
        for group in groups:
            node = self._coordinators.get(group)
            if node is None or node not in self.nodes:
                unknown.append(group)
            else:
                found[group] = node
        if not unknown:
            return found
        try:
            broker, many = await self._any_broker(lambda versions: self.has(versions, protocol.FIND_COORDINATOR, 4))
            if many:
                for part in parts(unknown, _GROUPS_PER_REQUEST):
                    walk = protocol.read_coordinators(await broker.ask(protocol.find_coordinators(part)))
                    await self._note_coordinators(walk, found)
            else:
                for group in unknown:
                    answer = await broker.ask(protocol.find_coordinator(group))
                    await self._note_coordinators(protocol.read_coordinator(group, answer), found)
                    await asyncio.sleep(OLD_BROKER_PAUSE_SECONDS)
        except protocol.Malformed as err:
            problem: SourceError = malformed(err)
            found.update({group: problem for group in unknown if group not in found})
        except SourceError as err:
            found.update({group: err for group in unknown if group not in found})
        if any(isinstance(node, int) and node not in self.nodes for node in found.values()):
            await self._refresh_brokers(found)
        for group in unknown:
            found.setdefault(
                group, SourceUnavailable(f"group {quoted(group)}: the cluster named no coordinator for it")
            )
        return found

    async def _note_coordinators(
        self, walk: Iterator[protocol.CoordinatorFound], found: dict[str, int | SourceError]
    ) -> None:
        async for part in in_pieces(walk):
            for group, node, error in part:
                if error:
                    found[group] = group_problem(group, error)
                else:
                    found[group] = self._coordinators[group] = node

    async def _refresh_brokers(self, found: dict[str, int | SourceError]) -> None:
        """A coordinator is a broker that metadata did not name yet."""
        with suppress(SourceError):
            await self._ask_for_metadata(())
        for group, node in list(found.items()):
            if isinstance(node, int) and node not in self.nodes:
                self._coordinators.pop(group, None)
                found[group] = SourceUnavailable(f"group {quoted(group)}: its coordinator, broker {node}, is not up")

    def _broker(self, host: str, port: int) -> Broker:
        return Broker(host, port, security=self._security, context=self._context)

    def has(self, versions: Mapping[int, tuple[int, int]], api_key: int, version: int) -> bool:
        """Whether a version may be used with a broker that offers `versions`."""
        return version <= self._newest.get(api_key, version) and protocol.has_version(versions, api_key, version)

    def problem(self, topics: Iterable[str]) -> SourceError | None:
        """What is wrong with the first of `topics` that can't be read, or None."""
        for topic in topics:
            known = self.topics.get(topic)
            if known is None:
                return SourceUnavailable(f"topic {quoted(topic)}: the cluster left it out of its answer")
            if known.error:
                return topic_problem(topic, known.error)
        return None

    async def look_up(self, topics: set[str]) -> None:
        """Bring metadata of `topics` up to date. Raises SourceError where there is none at all."""
        self._used_at_seconds.update(dict.fromkeys(topics, self._context.clock()))
        if self.nodes and not self._outdated(topics):
            return
        async with self._metadata_lock:
            wanted = self._outdated(topics)
            if self.nodes and not wanted:
                return
            try:
                for part in parts(wanted, _TOPICS_PER_REQUEST) or [[]]:
                    await self._ask_for_metadata(part)
            except SourceError:
                if not self.nodes or any(topic not in self.topics for topic in topics):
                    raise

    def _outdated(self, topics: Iterable[str]) -> list[str]:
        now_seconds = self._context.clock()
        urgent = now_seconds - self._metadata_at_seconds >= _METADATA_PAUSE_SECONDS
        found = []
        for topic in topics:
            known = self.topics.get(topic)
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
            extra = (topic for topic, known in self.topics.items() if known.at_seconds < soon and topic not in asked)
            found.extend(islice(extra, _TOPICS_PER_REQUEST - len(found)))
        return found

    async def _ask_for_metadata(self, topics: Sequence[str]) -> None:
        """Ask any broker for the brokers, and for `topics`. Raises SourceError."""
        self._metadata_at_seconds = self._context.clock()
        broker, _ = await self._any_broker(lambda _: True)
        brokers: dict[int, tuple[str, int]] = {}
        found: dict[str, Topic] = {}
        try:
            async for piece in in_pieces(protocol.read_metadata(await broker.ask(protocol.metadata(topics)))):
                for item in piece:
                    if isinstance(item, protocol.LeaderFound):
                        found[item.topic].leaders[item.partition] = item.leader
                    elif isinstance(item, protocol.TopicFound):
                        found[item.topic] = Topic(item.error, {}, self._metadata_at_seconds)
                    else:
                        brokers[item.node] = (item.host, item.port)
        except protocol.Malformed as err:
            broker.drop()
            raise malformed(err) from err
        if brokers:
            self._settle(brokers)
        for known in found.values():
            if not known.error and not known.leaders:
                known.error = UNKNOWN_TOPIC
            known.leaders = dict(sorted(known.leaders.items()))
        self.topics.update((topic, found[topic]) for topic in topics if topic in found)
        self._suspect -= found.keys()

    def _settle(self, found: Mapping[int, tuple[str, int]]) -> None:
        """Take over what metadata says of brokers; connections to the same addresses go on."""
        by_address = {(broker.host, broker.port): broker for broker in self.brokers}
        settled = {node: by_address.get(address) or self._broker(*address) for node, address in found.items()}
        kept = set(settled.values())
        for broker in self.brokers:
            if broker not in kept:
                broker.drop()
        self.nodes = settled

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
