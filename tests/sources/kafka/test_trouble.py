"""Reading lag while brokers stop, hang, move and forget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial

import pytest
import pytest_asyncio

from scaler.errors import SourceMissing, SourceTimeout, SourceUnavailable
from scaler.sources.kafka.config import KafkaQuery
from scaler.sources.kafka.lag import KafkaReading
from tests.services.kafka import Kafka, KafkaCluster, broker_count, start_kafka
from tests.services.process import LOOPBACK, free_port, unique, wait_until
from tests.services.proxy import TcpProxy, tcp_proxy
from tests.sources.kafka.helpers import Reader, commit, context, produce, reader

pytestmark = pytest.mark.timeout(300)  # a node takes 4 s to start, and a minute on a machine that is busy

# How long what hangs is waited for: longer than a busy machine stands still.
HUNG_SECONDS = 6.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    """Three nodes of our own, to break."""
    with start_kafka(nodes=3, heap_megabytes=256) as cluster:
        yield cluster


async def all_readable(source: Reader, queries: list[KafkaQuery]) -> None:
    for _ in range(60):
        if all(isinstance(outcome, KafkaReading) for outcome in (await source.outcomes(*queries)).values()):
            return
        await asyncio.sleep(0.5)
    raise AssertionError("not within 30 s")


async def test_a_hung_broker_holds_up_only_what_needs_it(cluster: KafkaCluster) -> None:
    """The first test of this cluster: once nodes have come and gone, one may coordinate no group at all."""
    hung = 2
    topics = {node: unique(f"on-{node}") for node in (1, 2, 3)}
    for node, topic in topics.items():
        await cluster.create_topic(topic, nodes=[node])
        await produce(cluster.bootstrap, topic, 3)
    trigger = {"bootstrapServers": cluster.bootstrap, "consumerGroup": "g"}
    async with reader(
        trigger, context(read_timeout_seconds=HUNG_SECONDS, connect_timeout_seconds=HUNG_SECONDS)
    ) as source:
        # The offsets topic is made on first use; its 5 partitions are spread over the three nodes.
        await all_readable(source, [KafkaQuery("g", (topics[1],), earliest=True)])
        coordinators = await cluster.coordinators(unique("group") for _ in range(200))
        at_hung = [group for group, node in coordinators.items() if node == hung][:2]
        elsewhere = [group for group, node in coordinators.items() if node != hung][:4]
        assert len(at_hung) == 2
        assert len(elsewhere) == 4
        by_leader = {
            node: [KafkaQuery(group, (topic,), earliest=True) for group in (*at_hung, *elsewhere)]
            for node, topic in topics.items()
        }
        queries = [query for some in by_leader.values() for query in some]
        untouched = {query for node in (1, 3) for query in by_leader[node] if query.group in elsewhere}
        await all_readable(source, queries)
        at_seconds: dict[object, float] = {}
        await asyncio.to_thread(cluster.pause, hung)
        try:
            # The system stops a process of many threads a moment later.
            _, _, port = cluster.listeners["PLAINTEXT"].split(",")[hung - 1].rpartition(":")
            silent = partial(wait_until, lambda: broker_count(LOOPBACK, int(port)) is None)
            await asyncio.to_thread(silent, what="silence", timeout_seconds=30.0)
            started = time.monotonic()
            found: dict[object, object] = {}

            def deliver(query: object, outcome: object) -> None:
                found[query] = outcome
                at_seconds[query] = time.monotonic() - started

            await source.client.read(queries, deliver)
            read = {query for query, outcome in found.items() if isinstance(outcome, KafkaReading)}
            assert read >= untouched
            # After 6 s the cluster takes the node for dead and another coordinates its groups: they may be read, late.
            assert not read & {*by_leader[hung]}
            assert all(at_seconds[query] >= HUNG_SECONDS for query in read - untouched), at_seconds
            assert all(at_seconds[query] < HUNG_SECONDS for query in untouched), at_seconds
            bad = [outcome for query, outcome in found.items() if query not in read]
            assert set(found) == set(queries)
            assert all(isinstance(outcome, SourceUnavailable) for outcome in bad)
            assert any(isinstance(outcome, SourceTimeout) for outcome in bad)
            assert max(at_seconds.values()) < 5 * HUNG_SECONDS
        finally:
            await asyncio.to_thread(cluster.resume, hung)
        await all_readable(source, queries)


async def test_a_broker_restarts(cluster: KafkaCluster) -> None:
    """Node by node: some hold coordinators, some hold leaders; what is read afterwards is right."""
    topic, groups = unique("orders"), [unique("group") for _ in range(6)]
    await asyncio.to_thread(cluster.wait_whole)
    await cluster.create_topic(topic, nodes=[1, 2, 3] * 2)  # a node that was away a moment ago would be left out
    for partition in range(6):
        await produce(cluster.bootstrap, topic, 2, partition=partition)
    for group in groups:
        await commit(cluster.bootstrap, group, {(topic, partition): 1 for partition in range(6)})
    triggers = [{"bootstrapServers": cluster.bootstrap, "consumerGroup": group, "topic": topic} for group in groups]
    async with reader(triggers[0], context(read_timeout_seconds=HUNG_SECONDS, connect_timeout_seconds=5.0)) as source:
        for trigger in triggers:  # coordinators have come and gone: the first may be on its way
            assert (await source.sample_soon(trigger, lambda _: True)).metric_value == 6.0
        await asyncio.to_thread(cluster.kill, 2)
        # Unreplicated partitions of the dead node have no leader: unknown, and never a smaller lag.
        error = await source.error_soon(triggers[0], SourceUnavailable)
        assert not isinstance(error, SourceMissing)
        await asyncio.to_thread(cluster.start, 2)
        for trigger in triggers:
            sample = await source.sample_soon(trigger, lambda _: True)
            assert sample.metric_value == 6.0
            assert (sample.arrived_total, sample.completed_total) == (12.0, 6.0)


async def test_leaders_and_coordinators_move(cluster: KafkaCluster) -> None:
    topic, groups = unique("orders"), [unique("group") for _ in range(6)]
    await cluster.create_topic(topic, partitions=6, replication=3)
    for partition in range(6):
        await produce(cluster.bootstrap, topic, 2, partition=partition)
    for group in groups:
        await commit(cluster.bootstrap, group, {(topic, partition): 1 for partition in range(6)})
    triggers = [{"bootstrapServers": cluster.bootstrap, "consumerGroup": group, "topic": topic} for group in groups]
    async with reader(triggers[0], context(read_timeout_seconds=HUNG_SECONDS, connect_timeout_seconds=5.0)) as source:
        for trigger in triggers:  # coordinators have come and gone: the first may be on its way
            assert (await source.sample_soon(trigger, lambda _: True)).metric_value == 6.0
        await asyncio.to_thread(cluster.stop, 3)
        try:
            # In order: leaders are handed over first, so that replicated partitions stay readable.
            for trigger in triggers:
                assert (await source.sample_soon(trigger, lambda _: True)).metric_value == 6.0
        finally:
            await asyncio.to_thread(cluster.start, 3)
        for trigger in triggers:
            assert (await source.sample_soon(trigger, lambda _: True)).metric_value == 6.0


async def test_three_brokers_cost_a_connection_each_and_few_requests(cluster: KafkaCluster) -> None:
    topic = unique("orders")
    await asyncio.to_thread(cluster.wait_whole)
    await cluster.create_topic(topic, nodes=[1, 2, 3] * 4)
    queries = [KafkaQuery(unique("group"), (topic,), earliest=False) for _ in range(300)]
    async with reader({"bootstrapServers": cluster.bootstrap, "consumerGroup": "g"}) as source:
        await all_readable(source, queries)
        before = {broker: broker.requests for broker in source.client.brokers}
        outcomes = await source.outcomes(*queries)
        assert all(isinstance(outcome, KafkaReading) for outcome in outcomes.values())
        assert len(source.client.brokers) == 3
        for broker in source.client.brokers:
            assert broker.connections == 1
            # Two by the design: offsets committed, log ends. The rest is room for a paced look-up of leaders,
            # coordinators or controllers that falls into this very read; a request a group would be 100.
            assert broker.requests - before[broker] <= 6


async def test_a_topic_is_deleted_and_created_anew(kafka: Kafka) -> None:
    topic, group = unique("orders"), unique("group")
    await kafka.create_topic(topic)
    await produce(kafka.bootstrap, topic, 9)
    await commit(kafka.bootstrap, group, {(topic, 0): 4})
    trigger = {
        "bootstrapServers": kafka.bootstrap,
        "consumerGroup": group,
        "topic": topic,
        "offsetResetPolicy": "earliest",
    }
    everything = {key: value for key, value in trigger.items() if key != "topic"}
    async with reader(trigger) as source:
        assert (await source.sample(trigger)).metric_value == 5.0
        assert (await source.sample(everything)).metric_value == 5.0
        await kafka.delete_topic(topic)
        await source.error_soon(trigger, SourceMissing)
        assert (await source.sample_soon(everything, lambda _: True)).metric_value == 0.0
        await kafka.create_topic(topic, partitions=2)
        await produce(kafka.bootstrap, topic, 3, partition=1)
        sample = await source.sample_soon(trigger, lambda _: True)
        assert sample.metric_value == 3.0
        assert sample.raw["partitions"] == 2.0


async def test_a_topic_recreated_between_two_reads_starts_over(kafka: Kafka) -> None:
    """Nothing is seen of the deletion but smaller offsets; the group's offset may be past the end."""
    topic, group = unique("orders"), unique("group")
    await kafka.create_topic(topic)
    await produce(kafka.bootstrap, topic, 9)
    trigger = {
        "bootstrapServers": kafka.bootstrap,
        "consumerGroup": group,
        "topic": topic,
        "offsetResetPolicy": "earliest",
    }
    async with reader(trigger) as source:
        before = await source.sample(trigger)
        await kafka.delete_topic(topic)
        await asyncio.sleep(1)
        await kafka.create_topic(topic)
        await produce(kafka.bootstrap, topic, 2)
        await commit(kafka.bootstrap, group, {(topic, 0): 7})
        after = await source.sample_soon(trigger, lambda sample: sample.metric_value != before.metric_value)
        assert after.metric_value == 2.0


@pytest_asyncio.fixture
async def proxied() -> AsyncIterator[tuple[TcpProxy, KafkaCluster]]:
    """A broker that can only be reached through a proxy: that is the address which it advertises."""
    port = free_port()
    async with tcp_proxy(LOOPBACK, port) as proxy:
        properties = {"advertised.listeners": f"PLAINTEXT://{proxy.address}"}
        start = start_kafka(plaintext_port=port, heap_megabytes=256, properties=properties)
        broker = await asyncio.to_thread(start.__enter__)
        try:
            yield proxy, broker
        finally:
            await asyncio.to_thread(start.__exit__, None, None, None)


async def test_half_open_reset_and_refused_connections(proxied: tuple[TcpProxy, KafkaCluster]) -> None:
    proxy, broker = proxied
    topic, group = unique("orders"), unique("group")
    await broker.create_topic(topic)
    await produce(proxy.address, topic, 3)
    await commit(proxy.address, group, {(topic, 0): 1})
    trigger = {"bootstrapServers": proxy.address, "consumerGroup": group, "topic": topic}
    hung = context(read_timeout_seconds=HUNG_SECONDS, connect_timeout_seconds=HUNG_SECONDS)
    async with reader(trigger, hung) as source:
        assert (await source.sample(trigger)).metric_value == 2.0
        proxy.pause()
        started = time.monotonic()
        with pytest.raises(SourceTimeout, match=f"did not answer within {HUNG_SECONDS:g} s"):
            await source.sample(trigger)
        assert time.monotonic() - started < 5 * HUNG_SECONDS
        proxy.resume()
        assert (await source.sample_soon(trigger, lambda _: True)).metric_value == 2.0
        # A connection that was reset while idle costs a new one, and not a reading.
        proxy.cut()
        await asyncio.sleep(0.1)
        assert (await source.sample(trigger)).metric_value == 2.0
        await proxy.refuse()
        with pytest.raises(SourceUnavailable, match="refused the connection"):
            await source.sample(trigger)
        accepted = proxy.accepted
        for _ in range(20):  # however often it is read, connection attempts are spaced
            with pytest.raises(SourceUnavailable):
                await source.sample(trigger)
        await proxy.accept()
        assert (await source.sample_soon(trigger, lambda _: True)).metric_value == 2.0
        assert proxy.accepted - accepted <= 2


async def test_a_slow_broker_is_waited_for(proxied: tuple[TcpProxy, KafkaCluster]) -> None:
    proxy, broker = proxied
    topic = unique("orders")
    await broker.create_topic(topic)
    await produce(proxy.address, topic, 3)
    trigger = {
        "bootstrapServers": proxy.address,
        "consumerGroup": unique("group"),
        "topic": topic,
        "offsetResetPolicy": "earliest",
    }
    async with reader(trigger) as source:
        await source.sample_soon(trigger, lambda _: True)
        proxy.delay_seconds = 0.3
        assert (await source.sample(trigger)).metric_value == 3.0


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", "a Kafka broker listens", id="a web server"),
        pytest.param(b"\x15\x03\x03\x00\x02\x02\x28", "set tls: enable", id="a TLS alert"),
        pytest.param(b"\x00\x00\x00\x04\x00\x00\x00\x63", "closed by the other side", id="another request's answer"),
        pytest.param(b"\x00\x00\x00\x08\x00\x00\x00\x01\xff\xff\xff\xff", "closed by the other side", id="nonsense"),
        pytest.param(b"", "closed by the other side", id="nothing"),
    ],
)
async def test_what_listens_is_no_broker(said: bytes, expected: str) -> None:
    async def serve(incoming: asyncio.StreamReader, outgoing: asyncio.StreamWriter) -> None:
        await incoming.read(10)
        outgoing.write(said)
        await outgoing.drain()
        outgoing.close()
        with suppress(ConnectionError):
            await outgoing.wait_closed()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    port = server.sockets[0].getsockname()[1]
    trigger = {"bootstrapServers": f"{LOOPBACK}:{port}", "consumerGroup": "g", "topic": "t"}
    async with server, reader(trigger, context()) as source:
        with pytest.raises(SourceUnavailable, match=expected):
            await source.sample(trigger)
