"""From a message produced to `true` on StreamIsActive, over real brokers; what 1,000 groups cost a Kafka cluster.

Broker, service and client share the machine's cores; nobody is pinned.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aio_pika
import grpc
import psutil
from aiokafka import AIOKafkaProducer

from scaler import garbage
from scaler._generated import externalscaler_pb2 as pb
from scaler._generated import externalscaler_pb2_grpc as pb_grpc
from scaler.addresses import AddressGuard
from scaler.settings import Settings
from scaler.source import SourceContext
from scaler.trigger import parse_trigger
from tests.bench.goals import goal
from tests.bench.wire import percentile
from tests.services import KafkaCluster, RabbitMQBroker, start_kafka, start_rabbitmq

WORKLOADS = 1_000
OBJECTS = 50  # topics or queues; each wakes 20 workloads with one message
# Reads of the 1,000 groups, one a second.
ROUNDS = 10
# The bound on what is measured, once the broker runs: it may have to be installed first.
LIMIT_SECONDS = 200


@dataclass(frozen=True)
class Service:
    """A `pilotlight serve` that runs."""

    address: str
    pid: int

    def connections_to(self, ports: Sequence[int]) -> int:
        """How many connections it has to a broker's ports."""
        return sum(
            bool(one.raddr) and one.raddr.port in ports and one.status == psutil.CONN_ESTABLISHED
            for one in psutil.Process(self.pid).net_connections("tcp")
        )


@contextlib.asynccontextmanager
async def _service() -> AsyncIterator[Service]:
    """A `pilotlight serve` of its own."""
    with tempfile.TemporaryDirectory(prefix="pilotlight-bench-") as folder:
        ready = Path(folder) / "ready.json"
        listeners = ["--listen", "127.0.0.1:0", "--hints-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
        command = [sys.executable, "-m", "scaler.cli", "serve", "--local", *listeners, "--ready-file", str(ready)]
        with (Path(folder) / "log").open("wb") as log:
            child = await asyncio.to_thread(subprocess.Popen, command, stdout=log, stderr=log)
        try:
            for _ in range(600):
                if ready.exists() and ready.stat().st_size:
                    break
                await asyncio.sleep(0.1)
            said = json.loads(ready.read_text())
            yield Service(said["grpc"], said["pid"])
        finally:
            child.send_signal(signal.SIGTERM)
            await asyncio.to_thread(child.wait, 40)


async def _true_after(
    metadata: Callable[[int], dict[str, str]], produce: Callable[[int], Awaitable[None]], *, ports: Sequence[int]
) -> dict[str, Any]:
    """Seconds from `produce(i)` to `true` on each stream of the workloads that read object i."""
    async with (
        _service() as service,
        grpc.aio.insecure_channel(service.address) as channel,
        asyncio.TaskGroup() as group,
    ):
        stub = pb_grpc.ExternalScalerStub(channel)
        produced: dict[int, float] = {}
        waits: list[float] = []
        idle = 0
        all_idle = asyncio.Event()

        async def watch(number: int) -> None:
            nonlocal idle
            reference = pb.ScaledObjectRef(name=f"bench-{number}", namespace="bench", scalerMetadata=metadata(number))
            async for message in stub.StreamIsActive(reference):
                if message.result:
                    waits.append(time.perf_counter() - produced[number % OBJECTS])
                    return
                idle += 1
                if idle == WORKLOADS:
                    all_idle.set()

        watching = [group.create_task(watch(number)) for number in range(WORKLOADS)]
        async with asyncio.timeout(120):
            await all_idle.wait()
        await asyncio.sleep(5)
        connections = service.connections_to(ports)
        for index in range(OBJECTS):
            produced[index] = time.perf_counter()
            await produce(index)
            await asyncio.sleep(0.23)  # no multiple of the pace of the reads
        async with asyncio.timeout(60):
            await asyncio.gather(*watching)
    p99 = percentile(waits, 0.99)
    return {
        "samples": len(waits),
        "median_seconds": goal(round(statistics.median(waits), 3), 0.7),
        "p99_seconds": goal(None if p99 is None else round(p99, 3), 1.5),
        "max_seconds": round(max(waits), 3),
        "connections_of_the_service": goal(connections, 1),
    }


async def _kafka() -> dict[str, Any]:
    with start_kafka() as cluster:
        async with asyncio.timeout(LIMIT_SECONDS):
            return await _on_kafka(cluster)


async def _on_kafka(cluster: KafkaCluster) -> dict[str, Any]:
    topics = [f"bench-{index}" for index in range(OBJECTS)]
    for topic in topics:
        await cluster.create_topic(topic, partitions=1, replication=1)
    base = {"source": "kafka", "bootstrapServers": cluster.bootstrap, "offsetResetPolicy": "earliest"}

    def metadata(number: int) -> dict[str, str]:
        return base | {"topic": topics[number % OBJECTS], "consumerGroup": f"group-{number}"}

    ports = [int(server.rpartition(":")[2]) for server in cluster.bootstrap.split(",")]
    cost = await _kafka_cost([metadata(number) for number in range(WORKLOADS)])
    producer = AIOKafkaProducer(bootstrap_servers=cluster.bootstrap, acks="all")
    await producer.start()
    try:

        async def produce(index: int) -> None:
            await producer.send_and_wait(topics[index], b"work")

        waits = await _true_after(metadata, produce, ports=ports)
    finally:
        await producer.stop()
    return {"message_to_true": waits, "thousand_groups": cost}


async def _kafka_cost(metadata: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """What one client costs its cluster that reads 1,000 groups each second, and for how long it holds the loop."""
    triggers = [parse_trigger("bench", f"bench-{n}", each, Settings()) for n, each in enumerate(metadata)]
    guard = AddressGuard(private_allowed=True)
    context = SourceContext(clock=time.monotonic, check_address=guard.check, read_timeout_seconds=30.0)
    queries = [trigger.source.query(trigger.config) for trigger in triggers]
    async with triggers[0].source.open(triggers[0].config, context) as client:
        got: dict[Any, object] = {}
        for _ in range(30):  # coordinators and leaders are found
            await client.read(queries, got.__setitem__)
            if not any(isinstance(outcome, Exception) for outcome in got.values()):
                break
            await asyncio.sleep(1)
        else:
            raise TimeoutError("some of the groups could not be read")
        brokers = client.brokers  # type: ignore[attr-defined]  # Kafka's client counts them
        garbage.settle()  # as the service does once it serves
        before = sum(broker.requests for broker in brokers)
        held: list[float] = []
        longest: list[float] = []
        seen = 0

        async def watch() -> None:
            while True:
                began = time.thread_time()  # not the wall clock: broker and bench share the cores
                await asyncio.sleep(0.001)
                held.append(time.thread_time() - began)

        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            started = time.perf_counter()
            for turn in range(ROUNDS):
                await asyncio.sleep(max(started + turn - time.perf_counter(), 0.0))
                await client.read(queries, got.__setitem__)
                longest.append(round(max(held[seen:]) * 1e3, 1))
                seen = len(held)
            await asyncio.sleep(max(started + ROUNDS - time.perf_counter(), 0.0))
            seconds = time.perf_counter() - started
            watching.cancel()
        requests = sum(broker.requests for broker in brokers) - before
        return {
            "groups": len(queries),
            "brokers": len(brokers),
            "requests_per_broker_and_second": goal(round(requests / seconds / max(len(brokers), 1), 2), 10),
            "connections_per_broker": goal(max(broker.connections for broker in brokers), 1),
            "loop_held_longest_ms": goal(round(max(held) * 1e3, 1), 20),
            "loop_held_longest_in_each_second_ms": longest,
        }


async def _rabbitmq() -> dict[str, Any]:
    with start_rabbitmq() as broker:
        async with asyncio.timeout(LIMIT_SECONDS):
            return await _on_rabbitmq(broker)


async def _on_rabbitmq(broker: RabbitMQBroker) -> dict[str, Any]:
    connection = await aio_pika.connect(broker.amqp_url())
    async with connection, await connection.channel() as channel:
        names = [f"bench-{index}" for index in range(OBJECTS)]
        for name in names:
            await channel.declare_queue(name)

        async def produce(index: int) -> None:
            await channel.default_exchange.publish(aio_pika.Message(b"work"), routing_key=names[index])

        base = {"source": "rabbitmq", "host": broker.amqp_url(), "mode": "QueueLength", "value": "5"}
        waits = await _true_after(
            lambda number: base | {"queueName": names[number % OBJECTS]}, produce, ports=[broker.amqp_port]
        )
    return {"message_to_true_by_amqp": waits}


def kafka() -> dict[str, Any]:
    """1,000 workloads with 1,000 groups on one Kafka broker."""
    return _anywhere(_kafka())


def rabbitmq() -> dict[str, Any]:
    """1,000 workloads on 50 queues of one RabbitMQ broker, by AMQP."""
    return _anywhere(_rabbitmq())


BOUNDED = (kafka, rabbitmq)  # they end by themselves


def _anywhere(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Run on every core: broker, service and client share them here."""
    gc.enable()
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    return asyncio.run(work)
