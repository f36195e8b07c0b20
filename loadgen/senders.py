"""Sends messages to real brokers at the moments a pattern says: SQS, Kafka, RabbitMQ.

Each client library loads when its broker is used. The load is open: a slow broker delays the sending, not the
moment that a message says it was due.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol, assert_never
from uuid import uuid4

from loadgen.endpoints import (
    BROKER_TIMEOUT_SECONDS,
    BrokerFailed,
    Endpoint,
    KafkaEndpoint,
    RabbitEndpoint,
    SqsEndpoint,
    told,
)
from loadgen.messages import Message
from loadgen.pace import Pace
from scaler.simulator.arrivals import Arrival

_SQS_BATCH = 10  # SendMessageBatch takes no more
# Messages due within this many real seconds of one another travel together.
_GATHER_SECONDS = 0.01


class Sender(Protocol):
    """Sends; returns once the broker has the messages."""

    async def send(self, messages: Sequence[Message]) -> None:
        """All of them, in order."""


@asynccontextmanager
async def open_sender(endpoint: Endpoint) -> AsyncIterator[Sender]:
    """A sender to the endpoint."""
    match endpoint:
        case SqsEndpoint():
            opened = _sqs(endpoint)
        case KafkaEndpoint():
            opened = _kafka(endpoint)
        case RabbitEndpoint():
            opened = _rabbit(endpoint)
        case _:
            assert_never(endpoint)
    async with AsyncExitStack() as stack:
        with told(endpoint):
            sender = await stack.enter_async_context(opened)
        yield _Told(sender, endpoint)


class _Told:
    """Says which broker failed."""

    def __init__(self, sender: Sender, endpoint: Endpoint) -> None:
        self._sender = sender
        self._endpoint = endpoint

    async def send(self, messages: Sequence[Message]) -> None:
        with told(self._endpoint):
            await self._sender.send(messages)


async def send_arrivals(
    sender: Sender,
    arrivals: Iterable[Arrival],
    pace: Pace,
    *,
    from_seconds: float = 0.0,
    on_sent: Callable[[Sequence[Arrival]], None] | None = None,
) -> None:
    """Send each arrival when it is due, counted from `from_seconds` of the experiment.

    `on_sent` hears of messages as they are handed over, with times in experiment seconds.
    """
    run = uuid4().hex[:8]
    due: list[Arrival] = []
    for index, arrival in enumerate(arrivals):
        at_seconds = from_seconds + arrival.at_seconds
        if due and at_seconds > pace.now() + pace.speed * _GATHER_SECONDS:
            await _hand_over(sender, due, pace, f"{run}-{index}", on_sent)
            due = []
        await pace.sleep_until(at_seconds)
        due.append(Arrival(at_seconds, arrival.service_seconds))
    if due:
        await _hand_over(sender, due, pace, f"{run}-end", on_sent)


async def _hand_over(
    sender: Sender,
    due: Sequence[Arrival],
    pace: Pace,
    batch: str,
    on_sent: Callable[[Sequence[Arrival]], None] | None,
) -> None:
    messages = [
        Message(f"{batch}-{index}", pace.unix_seconds(arrival.at_seconds), arrival.service_seconds)
        for index, arrival in enumerate(due)
    ]
    if on_sent is not None:
        on_sent(due)  # before: a consumer may have it before the broker's answer is here
    await sender.send(messages)


@asynccontextmanager
async def open_sqs_client(endpoint: SqsEndpoint) -> AsyncIterator[Any]:
    """An SQS client with bounded waits."""
    from aiobotocore.config import AioConfig  # noqa: PLC0415 - loads only where SQS is used
    from aiobotocore.session import get_session  # noqa: PLC0415

    config = AioConfig(
        connect_timeout=BROKER_TIMEOUT_SECONDS,
        read_timeout=BROKER_TIMEOUT_SECONDS,
        max_pool_connections=200,
        retries={"mode": "standard", "total_max_attempts": 4},
    )
    async with get_session().create_client(
        "sqs",
        region_name=endpoint.region,
        endpoint_url=endpoint.endpoint_url,
        aws_access_key_id=endpoint.access_key_id,
        aws_secret_access_key=endpoint.secret_access_key,
        config=config,
    ) as client:
        yield client


class _SqsSender:
    def __init__(self, client: Any, endpoint: SqsEndpoint) -> None:
        self._client = client
        self._queue_url = endpoint.queue_url

    async def send(self, messages: Sequence[Message]) -> None:
        batches = (messages[start : start + _SQS_BATCH] for start in range(0, len(messages), _SQS_BATCH))
        await asyncio.gather(*(self._send_batch(batch) for batch in batches))

    async def _send_batch(self, messages: Sequence[Message]) -> None:
        entries = [
            {"Id": str(index), "MessageBody": message.encode().decode()} for index, message in enumerate(messages)
        ]
        answer = await self._client.send_message_batch(QueueUrl=self._queue_url, Entries=entries)
        failed = answer.get("Failed", [])
        if failed:
            raise BrokerFailed(f"SQS refused {len(failed)} of {len(messages)} messages: {failed[0].get('Code')}")


@asynccontextmanager
async def _sqs(endpoint: SqsEndpoint) -> AsyncIterator[Sender]:
    async with open_sqs_client(endpoint) as client:
        yield _SqsSender(client, endpoint)


class _KafkaSender:
    def __init__(self, producer: Any, endpoint: KafkaEndpoint) -> None:
        self._producer = producer
        self._topic = endpoint.topic

    async def send(self, messages: Sequence[Message]) -> None:
        async with asyncio.timeout(BROKER_TIMEOUT_SECONDS):
            acknowledgements = [
                await self._producer.send(self._topic, message.encode(), key=message.identity.encode())
                for message in messages
            ]
            await asyncio.gather(*acknowledgements)


@asynccontextmanager
async def _kafka(endpoint: KafkaEndpoint) -> AsyncIterator[Sender]:
    from aiokafka import AIOKafkaProducer  # noqa: PLC0415 - loads only where Kafka is used

    producer = AIOKafkaProducer(
        bootstrap_servers=endpoint.bootstrap_servers, request_timeout_ms=int(BROKER_TIMEOUT_SECONDS * 1000)
    )
    try:
        async with asyncio.timeout(BROKER_TIMEOUT_SECONDS):
            await producer.start()
        yield _KafkaSender(producer, endpoint)
    finally:
        await producer.stop()


class _RabbitSender:
    def __init__(self, exchange: Any, endpoint: RabbitEndpoint) -> None:
        self._exchange = exchange
        self._queue = endpoint.queue

    async def send(self, messages: Sequence[Message]) -> None:
        from aio_pika import Message as RabbitMessage  # noqa: PLC0415 - loads only where RabbitMQ is used

        async with asyncio.timeout(BROKER_TIMEOUT_SECONDS):
            await asyncio.gather(
                *(
                    self._exchange.publish(RabbitMessage(message.encode()), routing_key=self._queue)
                    for message in messages
                )
            )


@asynccontextmanager
async def _rabbit(endpoint: RabbitEndpoint) -> AsyncIterator[Sender]:
    import aio_pika  # noqa: PLC0415 - loads only where RabbitMQ is used

    connection = await aio_pika.connect(endpoint.url, timeout=BROKER_TIMEOUT_SECONDS)
    async with connection:
        channel = await connection.channel()
        yield _RabbitSender(channel.default_exchange, endpoint)
