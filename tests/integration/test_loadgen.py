"""Senders and workers against the real brokers: every message is served once, and none is lost when pods go."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aio_pika
import pytest

from loadgen.consumers import open_pool
from loadgen.endpoints import Endpoint, KafkaEndpoint, RabbitEndpoint, SqsEndpoint
from loadgen.pace import Pace
from loadgen.results import Recorder
from loadgen.senders import open_sender, open_sqs_client, send_arrivals
from loadgen.workers import Fleet, cold_start
from scaler.simulator.arrivals import Poisson, Service, generate
from tests.services import SQS, Kafka, RabbitMQ, unique


@asynccontextmanager
async def sqs_queue(sqs: SQS) -> AsyncIterator[SqsEndpoint]:
    endpoint = SqsEndpoint(
        queue_url="",
        region=sqs.region,
        endpoint_url=sqs.endpoint_url,
        access_key_id=sqs.access_key_id,
        secret_access_key=sqs.secret_access_key,
    )
    async with open_sqs_client(endpoint) as client:
        url = (await client.create_queue(QueueName=unique("work")))["QueueUrl"]
        yield SqsEndpoint(
            queue_url=url,
            region=sqs.region,
            endpoint_url=sqs.endpoint_url,
            access_key_id=sqs.access_key_id,
            secret_access_key=sqs.secret_access_key,
        )
        left = await client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
        assert left["Attributes"]["ApproximateNumberOfMessages"] == "0"
        assert left["Attributes"]["ApproximateNumberOfMessagesNotVisible"] == "0"


@asynccontextmanager
async def kafka_topic(kafka: Kafka) -> AsyncIterator[KafkaEndpoint]:
    topic = unique("work")
    await kafka.create_topic(topic, partitions=4)
    yield KafkaEndpoint(bootstrap_servers=kafka.bootstrap, topic=topic, group=unique("workers"))


@asynccontextmanager
async def rabbit_queue(rabbitmq: RabbitMQ) -> AsyncIterator[RabbitEndpoint]:
    endpoint = RabbitEndpoint(url=rabbitmq.amqp_url(), queue=unique("work"))
    connection = await aio_pika.connect(endpoint.url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(endpoint.queue, durable=True)
        yield endpoint
        left = await queue.declare()
        assert left.message_count == 0
        await queue.delete()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for happens in another server
        await asyncio.sleep(0.05)


async def work_off(endpoint: Endpoint, *, scale_in: bool = True) -> Recorder:
    """Forty messages, two pods; one goes and comes back in the middle."""
    recorder, pace = Recorder(), Pace(speed=4)
    load = generate(Poisson(rate_per_second=10), Service(mean_seconds=0.3), random.Random(7), 4.0)
    async with open_sender(endpoint) as sender, open_pool(endpoint) as pool:
        fleet = Fleet(
            pool,
            pace,
            random.Random(7),
            phases=cold_start(0.5),
            concurrency=2,
            on_started=lambda delivery: recorder.on_started(delivery.message.identity),
            on_served=recorder.on_served,
        )
        async with fleet:
            fleet.set_replicas(2)
            async with asyncio.timeout(90):
                await send_arrivals(sender, load, pace, on_sent=recorder.on_sent)
                await until(lambda: len(recorder.served) >= len(recorder.sent) / 2)
                if scale_in:
                    fleet.set_replicas(1)
                await until(lambda: len(recorder.served) == len(recorder.sent))
                fleet.set_replicas(0)
                await until(lambda: not fleet.pods)
        assert fleet.errors == {}
    return recorder


def check(recorder: Recorder) -> None:
    assert len(recorder.sent) > 20
    assert sorted(round(served.service_seconds, 6) for served in recorder.served) == sorted(
        round(arrival.service_seconds, 6) for arrival in recorder.sent
    )
    assert all(served.wait_seconds > -0.2 for served in recorder.served)
    assert (recorder.waiting, recorder.in_flight) == (0, 0)


@pytest.mark.parametrize("scale_in", [False, True], ids=["steady fleet", "scale-in"])
async def test_sqs_workers_serve_every_message(sqs: SQS, scale_in: bool) -> None:
    async with sqs_queue(sqs) as endpoint:
        check(await work_off(endpoint, scale_in=scale_in))


@pytest.mark.parametrize("scale_in", [False, True], ids=["steady fleet", "scale-in"])
async def test_rabbitmq_workers_serve_every_message(rabbitmq: RabbitMQ, scale_in: bool) -> None:
    async with rabbit_queue(rabbitmq) as endpoint:
        check(await work_off(endpoint, scale_in=scale_in))


@pytest.mark.parametrize("scale_in", [False, True], ids=["steady fleet", "scale-in"])
async def test_kafka_workers_serve_every_message(kafka: Kafka, scale_in: bool) -> None:
    async with kafka_topic(kafka) as endpoint:
        check(await work_off(endpoint, scale_in=scale_in))
