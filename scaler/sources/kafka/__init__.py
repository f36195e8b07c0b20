"""`source: kafka`: the lag of a consumer group, with the metadata of KEDA's `kafka` trigger.

lag.py holds the rules (pure), config.py the metadata, client.py the reading: one client per cluster and
credentials, committed offsets of many groups in one request per coordinator, log ends of all partitions in
one request per leader.
"""

from __future__ import annotations

import asyncio
import importlib
from collections import defaultdict
from collections.abc import AsyncIterator, Hashable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from scaler.core.model import ReplicaView, Sample
from scaler.errors import SourceMissing, SourceNoData, quoted
from scaler.parameters import Values
from scaler.source import Client, Source, SourceContext
from scaler.sources.kafka.config import PARAMETERS, KafkaConfig, KafkaQuery, MskConfig, OAuthConfig, parse_config
from scaler.sources.kafka.lag import (
    KafkaReading,
    PartitionReading,
    is_active,
    lag_messages,
    metric_value,
    most_replicas,
    totals,
)

# What people are shown of a group with very many topics.
_TOPICS_SHOWN = 20


class Kafka(Source[KafkaConfig, KafkaQuery, KafkaReading]):
    """Consumer group lag through aiokafka's connections."""

    name = "kafka"
    summary = "Apache Kafka: the lag of a consumer group"
    keda_trigger = "kafka"
    needs_extra = "kafka"
    libraries = (f"{__name__}.client",)  # aiobotocore and aiohttp load where a connection's tokens need them
    allow_kinds = ("topic", "group")
    sample_seconds = 1.0
    batched = True
    parameters = PARAMETERS

    def parse(self, values: Values) -> KafkaConfig:
        """KEDA's rules, and the form of addresses and names."""
        return parse_config(values)

    def endpoint(self, config: KafkaConfig) -> Hashable:
        """Brokers, TLS and SASL."""
        return config.endpoint

    def query(self, config: KafkaConfig) -> KafkaQuery:
        """Group and topics; partition limits and thresholds are applied to the shared reading."""
        return KafkaQuery(config.group, config.topics, config.rules.earliest)

    def identity(self, config: KafkaConfig) -> str:
        """Brokers, group, topics and partitions."""
        servers = ",".join(f"{host}:{port}" for host, port in config.endpoint.servers)
        parts = [servers, config.group, ",".join(config.topics) or "*"]
        if config.partitions:
            parts.append(",".join(f"{first}-{last}" for first, last in config.partitions))
        return "/".join(parts)

    def object_name(self, config: KafkaConfig) -> str:
        """The topics, or as in KEDA `<group>-topics`."""
        return ",".join(config.topics) or f"{config.group}-topics"

    def resources(self, config: KafkaConfig) -> Mapping[str, tuple[str, ...]]:
        """The group and the topics named; topics that are discovered are checked by the client."""
        return {"group": (config.group,), "topic": config.topics}

    def target(self, config: KafkaConfig) -> float:
        """`lagThreshold`."""
        return float(config.rules.lag_threshold)

    def open(self, config: KafkaConfig, context: SourceContext) -> AbstractAsyncContextManager[Client]:
        """The client of one cluster and one set of credentials."""
        return _open(config, context)

    def sample(
        self,
        config: KafkaConfig,
        reading: KafkaReading,
        *,
        now_seconds: float,  # noqa: ARG002 - the reading knows how long offsets stood still
        view: ReplicaView | None,  # noqa: ARG002 - lag needs no replicas to exist
    ) -> Sample:
        """Lag by this trigger's rules.

        `in_system` is what is not committed, less what is likely done all the same: Kafka can't tell what a consumer
        holds in its hands. The metric and activation are those of all that is not committed.

        Raises SourceNoData where a partition's end is not known, SourceMissing where no partition is left to count.
        """
        rules = config.rules
        partitions = tuple(_selected(reading.partitions, config.partitions))
        if config.topics and not partitions:
            raise SourceMissing(
                f"topic {quoted(','.join(config.topics))} has none of the partitions of partitionLimitation"
            )
        sums = totals(partitions, rules)
        if sums is None:
            raise SourceNoData(
                f"group {quoted(config.group)}: the brokers left the end of some partitions of "
                f"{quoted(','.join(config.topics) or 'its topics')} out of their answer"
            )
        return Sample(
            at_seconds=reading.at_seconds,
            metric_value=float(metric_value(sums, rules)),
            active=is_active(sums, rules),
            in_system=sums.lag - sums.done_messages,
            arrived_total=float(sums.arrived),
            completed_total=sums.completed + sums.done_messages,
            in_system_least=float(sums.lag - sums.done_most),
            in_system_most=float(sums.lag),
            most_replicas=most_replicas(sums, rules),
            raw={
                "lag_messages": float(sums.full_lag),
                "partitions": float(sums.partitions),
                "partitions_with_lag": float(sums.with_lag),
                "partitions_stuck": float(sums.stuck),
                "partitions_without_commit": float(sums.without_commit),
                "done_uncommitted_messages": sums.done_messages,
                **_lag_by_topic(partitions, config),
            },
        )

    def has_counters(self, config: KafkaConfig) -> bool:  # noqa: ARG002 - offsets count, whatever is configured
        """Log ends count what arrives, commits what is done."""
        return True

    def warnings(self, config: KafkaConfig) -> tuple[str, ...]:
        """What works but looks odd."""
        return config.warnings


@asynccontextmanager
async def _open(config: KafkaConfig, context: SourceContext) -> AsyncIterator[Client]:
    """The client libraries load here, on first use, and in a thread: aiokafka alone takes up to a second."""
    module = await asyncio.to_thread(importlib.import_module, f"{__name__}.client")
    sasl = config.endpoint.sasl
    if sasl is not None and isinstance(sasl.tokens, OAuthConfig):
        await asyncio.to_thread(importlib.import_module, "aiohttp")
    elif sasl is not None and isinstance(sasl.tokens, MskConfig):
        await asyncio.to_thread(importlib.import_module, "aiobotocore.session")
    opened: AbstractAsyncContextManager[Client] = module.open_client(config.endpoint, context)
    async with opened as client:
        yield client


def _selected(
    partitions: Iterable[PartitionReading], ranges: tuple[tuple[int, int], ...]
) -> Iterable[PartitionReading]:
    if not ranges:
        return partitions
    return (reading for reading in partitions if any(first <= reading.partition <= last for first, last in ranges))


def _lag_by_topic(partitions: tuple[PartitionReading, ...], config: KafkaConfig) -> dict[str, float]:
    """For people: the topics with the most lag, where there are several."""
    if len(config.topics) == 1:
        return {}
    lags: dict[str, float] = defaultdict(float)
    for reading in partitions:
        lags[reading.topic] += (
            lag_messages(
                end=reading.end,
                committed=reading.committed,
                start=reading.start,
                earliest=config.rules.earliest,
                zero_on_invalid_offset=config.rules.zero_on_invalid_offset,
            )
            or 0
        )
    largest = sorted(lags.items(), key=lambda item: (-item[1], item[0]))[:_TOPICS_SHOWN]
    return {f"lag_messages {topic}": lag for topic, lag in largest}


SOURCE = Kafka()
