"""Reading lag from a real broker that is left in peace."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from scaler.core.model import Sample
from scaler.errors import SourceDenied, SourceMissing, SourceUnavailable
from scaler.sources.kafka import SOURCE
from scaler.sources.kafka.client import KafkaClient
from scaler.sources.kafka.config import KafkaQuery
from scaler.sources.kafka.lag import KafkaReading
from scaler.sources.kafka.protocol import FIND_COORDINATOR, OFFSET_FETCH
from tests.services.kafka import Kafka, KafkaCluster
from tests.services.process import unique
from tests.sources.kafka.helpers import Reader, commit, configured, context, produce, reader


def said(kafka: Kafka, group: str, topic: str | None = None, **more: str) -> Mapping[str, str]:
    named = {} if topic is None else {"topic": topic}
    return {"bootstrapServers": kafka.bootstrap, "consumerGroup": group, **named, **more}


async def test_lag_is_seen_right_after_produce_and_commit(kafka: Kafka) -> None:
    topic, group = unique("orders"), unique("group")
    await kafka.create_topic(topic, partitions=3)
    trigger = said(kafka, group, topic)
    async with reader(trigger) as source:
        await produce(kafka.bootstrap, topic, 5, partition=0)
        await produce(kafka.bootstrap, topic, 7, partition=2)
        await commit(kafka.bootstrap, group, {(topic, 0): 2, (topic, 1): 0, (topic, 2): 7})
        sample = await source.sample(trigger)
        assert (sample.metric_value, sample.in_system, sample.active) == (3.0, 3.0, True)
        assert (sample.waiting, sample.in_flight, sample.most_replicas) == (None, None, 3)
        assert (sample.arrived_total, sample.completed_total) == (12.0, 9.0)
        await produce(kafka.bootstrap, topic, 4, partition=1)
        sample = await source.sample(trigger)
        assert (sample.metric_value, sample.arrived_total) == (7.0, 16.0)
        await commit(kafka.bootstrap, group, {(topic, 0): 5, (topic, 1): 4})
        sample = await source.sample(trigger)
        assert (sample.metric_value, sample.active, sample.completed_total) == (0.0, False, 16.0)


@pytest.mark.parametrize(
    ("policy", "zero", "expected"),
    [
        pytest.param("latest", "false", 1.0, id="latest keeps one replica"),
        pytest.param("latest", "true", 0.0, id="latest, zero asked for"),
        pytest.param("earliest", "false", 6.0, id="earliest counts all that is there"),
        pytest.param("earliest", "true", 0.0, id="earliest, zero asked for"),
    ],
)
async def test_a_group_that_never_committed(kafka: Kafka, policy: str, zero: str, expected: float) -> None:
    topic = unique("orders")
    await kafka.create_topic(topic)
    await produce(kafka.bootstrap, topic, 6)
    trigger = said(
        kafka, unique("group"), topic, offsetResetPolicy=policy, scaleToZeroOnInvalidOffset=zero, lagThreshold="100"
    )
    async with reader(trigger) as source:
        # The first use of groups makes the topic of their offsets: for a moment nobody coordinates them.
        sample = await source.sample_soon(trigger, lambda _: True)
    assert sample.metric_value == expected
    assert sample.active is (expected > 0)
    assert sample.raw["partitions_without_commit"] == 1.0


async def test_messages_that_retention_deleted_are_no_lag(kafka: Kafka) -> None:
    topic, group, other = unique("orders"), unique("group"), unique("group")
    await kafka.create_topic(topic)
    await produce(kafka.bootstrap, topic, 10)
    await commit(kafka.bootstrap, group, {(topic, 0): 1})
    # Retention by time and size takes minutes; DeleteRecords moves the log's start in the same way at once.
    await delete_before(kafka, topic, 8)
    trigger = said(kafka, group, topic)
    earliest = said(kafka, other, topic, offsetResetPolicy="earliest")
    async with reader(trigger) as source:
        assert (await source.sample(trigger)).metric_value == 2.0
        assert (await source.sample(earliest)).metric_value == 2.0


async def delete_before(kafka: Kafka, topic: str, offset: int) -> None:
    from aiokafka import TopicPartition  # noqa: PLC0415
    from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete  # noqa: PLC0415

    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=offset)})
    finally:
        await admin.close()


async def test_several_topics_count_together(kafka: Kafka) -> None:
    first, second, group = unique("a"), unique("b"), unique("group")
    for topic in (first, second):
        await kafka.create_topic(topic)
        await produce(kafka.bootstrap, topic, 4)
    await commit(kafka.bootstrap, group, {(first, 0): 1, (second, 0): 2})
    trigger = said(kafka, group, f"{first},{second}")
    async with reader(trigger) as source:
        sample = await source.sample(trigger)
    assert sample.metric_value == 5.0
    assert sample.raw[f"lag_messages {first}"] == 3.0


async def test_without_a_topic_all_topics_of_the_group_count(kafka: Kafka) -> None:
    first, second, unrelated, group = unique("a"), unique("b"), unique("c"), unique("group")
    for topic in (first, second, unrelated):
        await kafka.create_topic(topic)
        await produce(kafka.bootstrap, topic, 4)
    trigger = said(kafka, group)
    async with reader(trigger) as source:
        before = await source.sample(trigger)
        assert (before.metric_value, before.active, before.raw["partitions"]) == (0.0, False, 0.0)
        await commit(kafka.bootstrap, group, {(first, 0): 1})
        assert (await source.sample(trigger)).metric_value == 3.0
        await commit(kafka.bootstrap, group, {(second, 0): 3})
        sample = await source.sample(trigger)
        assert sample.metric_value == 4.0
        # What was there before the topic was discovered has not just arrived.
        assert sample.arrived_total == 0.0
        await produce(kafka.bootstrap, second, 2)
        assert (await source.sample(trigger)).arrived_total == 2.0


async def test_discovered_topics_obey_the_connections_allow_list(kafka: Kafka) -> None:
    allowed, secret, group, other = unique("open"), unique("secret"), unique("group"), unique("group")
    for topic in (allowed, secret):
        await kafka.create_topic(topic)
        await produce(kafka.bootstrap, topic, 4)
    await commit(kafka.bootstrap, group, {(allowed, 0): 1, (secret, 0): 1})
    await commit(kafka.bootstrap, other, {(secret, 0): 1})
    async with reader(said(kafka, group), context(allow={"topic": ("open-*",)})) as source:
        assert (await source.sample(said(kafka, group))).metric_value == 3.0
        with pytest.raises(SourceDenied, match="allow list"):
            await source.sample(said(kafka, other))


async def test_a_missing_topic_is_missing_and_is_not_created(kafka: Kafka) -> None:
    topic = unique("absent")
    trigger = said(kafka, unique("group"), topic)
    async with reader(trigger) as source:
        with pytest.raises(SourceMissing, match=f'topic "{topic}" does not exist'):
            await source.sample(trigger)
        await asyncio.sleep(0.5)
        with pytest.raises(SourceMissing):
            await source.sample(trigger)
    assert topic not in await topics_of(kafka)


async def topics_of(kafka: Kafka) -> list[str]:
    from aiokafka.admin import AIOKafkaAdminClient  # noqa: PLC0415

    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        return list(await admin.list_topics())
    finally:
        await admin.close()


async def test_one_bad_query_does_not_spoil_the_others(kafka: Kafka) -> None:
    topic, group = unique("orders"), unique("group")
    await kafka.create_topic(topic)
    await produce(kafka.bootstrap, topic, 3)
    good = KafkaQuery(group, (topic,), earliest=True)
    bad = KafkaQuery(group, (unique("absent"),), earliest=True)
    async with reader(said(kafka, group)) as source:
        outcomes = await source.outcomes(good, bad)
    assert isinstance(outcomes[good], KafkaReading)
    assert isinstance(outcomes[bad], SourceMissing)


async def test_new_partitions_are_seen(kafka: Kafka) -> None:
    from aiokafka.admin import AIOKafkaAdminClient, NewPartitions  # noqa: PLC0415

    topic = unique("orders")
    await kafka.create_topic(topic)
    trigger = said(kafka, unique("group"), topic)
    now = FakeClock()
    async with reader(trigger, context(clock=now)) as source:
        assert (await source.sample(trigger)).raw["partitions"] == 1.0
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        await admin.start()
        await admin.create_partitions({topic: NewPartitions(total_count=4)})
        await admin.close()

        def all_four(sample: Sample) -> bool:
            # A broker may tell of them a moment after it has taken them: with a clock that stands still it would be
            # asked once only.
            now.seconds += 31
            return sample.raw["partitions"] == 4.0

        sample = await source.sample_soon(trigger, all_four)
        assert sample.metric_value == 4.0


class FakeClock:
    """Monotonic seconds that move only when told."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


async def test_a_committed_offset_that_stands_still_is_persistent_lag_by_time(kafka: Kafka) -> None:
    topic, group = unique("orders"), unique("group")
    await kafka.create_topic(topic)
    await produce(kafka.bootstrap, topic, 5)
    await commit(kafka.bootstrap, group, {(topic, 0): 1})
    trigger = said(kafka, group, topic, excludePersistentLag="true", persistentLagSeconds="60")
    now = FakeClock()
    async with reader(trigger, context(clock=now)) as source:
        for _ in range(20):  # however often it is read
            assert (await source.sample(trigger)).metric_value == 4.0
        for _ in range(6):
            now.seconds += 10
            sample = await source.sample(trigger)
        assert (sample.metric_value, sample.active, sample.raw["partitions_stuck"]) == (0.0, True, 1.0)
        await commit(kafka.bootstrap, group, {(topic, 0): 2})
        now.seconds += 1
        assert (await source.sample(trigger)).metric_value == 3.0


async def test_a_thousand_groups_cost_a_connection_and_few_requests(kafka: Kafka) -> None:
    topics = [unique("topic") for _ in range(10)]
    for topic in topics:
        await kafka.create_topic(topic, partitions=3)
        await produce(kafka.bootstrap, topic, 2, partition=1)
    prefix = unique("group")
    queries = [KafkaQuery(f"{prefix}-{number}", (topics[number % 10],), earliest=True) for number in range(1_000)]
    await commit(kafka.bootstrap, queries[17].group, {(queries[17].topics[0], 1): 1})
    async with reader(said(kafka, prefix)) as source:
        outcomes = await source.outcomes(*queries)
        before = sum(broker.requests for broker in source.client.brokers)
        outcomes = await source.outcomes(*queries)
        requests = sum(broker.requests for broker in source.client.brokers) - before
        connections = sum(broker.connections for broker in source.client.brokers)
    lags = [
        SOURCE.sample(
            configured(said(kafka, query.group, query.topics[0], offsetResetPolicy="earliest")),
            reading,
            now_seconds=0.0,
            view=None,
        ).metric_value
        for query, reading in outcomes.items()
        if isinstance(reading, KafkaReading)
    ]
    assert len(lags) == 1_000
    assert sum(lags) == 999 * 2 + 1
    assert requests <= 3
    assert connections == 1


@pytest.mark.parametrize("policy", ["latest", "earliest"])
async def test_brokers_before_3_0_are_asked_group_by_group(kafka: Kafka, policy: str) -> None:
    topic, committed, fresh = unique("orders"), unique("group"), unique("group")
    await kafka.create_topic(topic, partitions=2)
    await produce(kafka.bootstrap, topic, 4, partition=1)
    await commit(kafka.bootstrap, committed, {(topic, 0): 0, (topic, 1): 1})
    trigger = said(kafka, committed, topic, offsetResetPolicy=policy)
    client = KafkaClient(configured(trigger).endpoint, context(), newest={FIND_COORDINATOR: 1, OFFSET_FETCH: 2})
    source = Reader(client)
    try:
        assert (await source.sample(trigger)).metric_value == 3.0
        assert (await source.sample(said(kafka, committed))).metric_value == 3.0
        untouched = await source.sample(said(kafka, fresh, topic, offsetResetPolicy=policy))
        assert untouched.metric_value == (2.0 if policy == "latest" else 4.0)
    finally:
        await client.close()


async def test_tenants_do_not_reach_loopback_through_metadata(kafka: Kafka) -> None:
    from scaler.addresses import AddressGuard  # noqa: PLC0415

    trigger = said(kafka, unique("group"), unique("t"))
    async with reader(trigger, context(guard=AddressGuard(private_allowed=False))) as source:
        with pytest.raises(SourceDenied, match="loopback"):
            await source.sample(trigger)


async def test_advertised_addresses_are_judged_too(kafka: Kafka) -> None:
    """A cluster of a tenant's own could advertise any address: not only the bootstrap servers are checked."""
    checked: list[str] = []

    async def check(host: str, port: int) -> tuple[str, ...]:
        checked.append(f"{host}:{port}")
        if len(checked) > 1:
            raise SourceDenied("not there")
        return ("127.0.0.1",)

    from dataclasses import replace  # noqa: PLC0415

    trigger = said(kafka, unique("group"), unique("t"))
    seed = trigger["bootstrapServers"].replace("127.0.0.1", "localhost")
    trigger = {**trigger, "bootstrapServers": seed}
    async with reader(trigger, replace(context(), check_address=check)) as source:
        with pytest.raises(SourceDenied, match="not there"):
            await source.sample({**trigger, "topic": ""})
    assert checked[:2] == [seed, kafka.bootstrap]


async def test_nothing_listens(kafka: Kafka) -> None:  # noqa: ARG001 - a broker runs, elsewhere
    trigger = {"bootstrapServers": "127.0.0.1:9", "consumerGroup": "g", "topic": "t"}
    async with reader(trigger) as source:
        with pytest.raises(SourceUnavailable, match="refused the connection"):
            await source.sample(trigger)


async def test_a_name_that_does_not_resolve() -> None:
    trigger = {"bootstrapServers": "nowhere.invalid:9092", "consumerGroup": "g", "topic": "t"}
    async with reader(trigger) as source:
        with pytest.raises(SourceUnavailable, match=r"nowhere\.invalid"):
            await source.sample(trigger)


async def test_group_and_topic_rights(kafka_cluster: KafkaCluster) -> None:
    topic, hidden, group, closed = unique("topic"), unique("hidden"), unique("group"), unique("closed")
    for name in (topic, hidden):
        await kafka_cluster.create_topic(name)
    await asyncio.to_thread(kafka_cluster.allow, "User:bob", "--operation", "All", "--topic", hidden)
    await asyncio.to_thread(kafka_cluster.allow, "User:bob", "--operation", "All", "--group", closed)
    base = {
        "bootstrapServers": kafka_cluster.listeners["SASL_PLAINTEXT"],
        "sasl": "plaintext",
        "username": "alice",
        "password": "alice-secret",
    }
    async with reader({**base, "consumerGroup": group}) as source:
        assert (await source.sample({**base, "consumerGroup": group, "topic": topic})).active
        with pytest.raises(SourceDenied, match="grant DESCRIBE on the topic"):
            await source.sample({**base, "consumerGroup": group, "topic": hidden})
        # The controller has taken this rule a moment ago; the broker may hear of it later.
        error = await source.error_soon({**base, "consumerGroup": closed, "topic": topic}, SourceDenied)
        assert "grant DESCRIBE on the group" in str(error)
