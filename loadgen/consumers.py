"""Takes messages from real brokers as a worker does: a few at a time, acknowledged when the work is done.

A `Pool` is what the workers of one process share (a client, a connection); each worker opens a `Consumer`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, assert_never

from loadgen.endpoints import BROKER_TIMEOUT_SECONDS, Endpoint, KafkaEndpoint, RabbitEndpoint, SqsEndpoint, told
from loadgen.messages import Message, decode
from loadgen.senders import open_sqs_client

_SQS_RECEIVE_MAX = 10  # ReceiveMessage gives no more at once
# A rebalance waits for the revoked partitions' work at most this long (real seconds): then it is done twice.
_KAFKA_REBALANCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message in somebody's hands, and what the broker knows it by."""

    message: Message
    handle: Any


class Consumer(Protocol):
    """One worker's hold on the broker."""

    async def receive(self, limit: int, wait_seconds: float) -> Sequence[Delivery]:
        """Up to `limit` messages, waiting about `wait_seconds` (real) for the first."""

    async def done(self, delivery: Delivery) -> None:
        """Acknowledge: it is never delivered again."""

    async def release(self, delivery: Delivery) -> None:
        """Give it back unworked: somebody else gets it. For a worker that takes nothing more."""


class Pool(Protocol):
    """What the workers of one process share."""

    def consumer(self, concurrency: int) -> AbstractAsyncContextManager[Consumer]:
        """A consumer for one worker that works on `concurrency` messages at once."""


@asynccontextmanager
async def open_pool(endpoint: Endpoint) -> AsyncIterator[Pool]:
    """What the workers of one process share, for this endpoint."""
    match endpoint:
        case SqsEndpoint():
            async with open_sqs_client(endpoint) as client:
                yield _SqsPool(client, endpoint)
        case KafkaEndpoint():
            yield _KafkaPool(endpoint)
        case RabbitEndpoint():
            import aio_pika  # noqa: PLC0415 - loads only where RabbitMQ is used

            with told(endpoint):
                connection = await aio_pika.connect(endpoint.url, timeout=BROKER_TIMEOUT_SECONDS)
            async with connection:
                yield _RabbitPool(connection, endpoint)
        case _:
            assert_never(endpoint)


# --- SQS --------------------------------------------------------------------------------------------------------


class _SqsPool:
    def __init__(self, client: Any, endpoint: SqsEndpoint) -> None:
        self._client = client
        self._endpoint = endpoint

    @asynccontextmanager
    async def consumer(self, concurrency: int) -> AsyncIterator[Consumer]:  # noqa: ARG002 - receive has its limit
        yield _SqsConsumer(self._client, self._endpoint)


class _SqsConsumer:
    def __init__(self, client: Any, endpoint: SqsEndpoint) -> None:
        self._client = client
        self._endpoint = endpoint

    async def receive(self, limit: int, wait_seconds: float) -> Sequence[Delivery]:
        answer = await self._client.receive_message(
            QueueUrl=self._endpoint.queue_url,
            MaxNumberOfMessages=min(limit, _SQS_RECEIVE_MAX),
            WaitTimeSeconds=max(1, round(wait_seconds)),
            VisibilityTimeout=self._endpoint.visibility_seconds,
        )
        deliveries = []
        for item in answer.get("Messages", ()):
            message = decode(item["Body"])
            if message is None:
                await self._delete(item["ReceiptHandle"])
            else:
                deliveries.append(Delivery(message, item["ReceiptHandle"]))
        return deliveries

    async def done(self, delivery: Delivery) -> None:
        await self._delete(delivery.handle)

    async def release(self, delivery: Delivery) -> None:
        await self._client.change_message_visibility(
            QueueUrl=self._endpoint.queue_url, ReceiptHandle=delivery.handle, VisibilityTimeout=0
        )

    async def _delete(self, handle: str) -> None:
        await self._client.delete_message(QueueUrl=self._endpoint.queue_url, ReceiptHandle=handle)


# --- Kafka ------------------------------------------------------------------------------------------------------


class _KafkaPool:
    def __init__(self, endpoint: KafkaEndpoint) -> None:
        self._endpoint = endpoint

    @asynccontextmanager
    async def consumer(self, concurrency: int) -> AsyncIterator[Consumer]:  # noqa: ARG002 - receive has its limit
        from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener  # noqa: PLC0415 - loads only where used

        client = AIOKafkaConsumer(
            bootstrap_servers=self._endpoint.bootstrap_servers,
            group_id=self._endpoint.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            # Work may take long between two polls; liveness is the heartbeat's business.
            max_poll_interval_ms=3_600_000,
            rebalance_timeout_ms=int(_KAFKA_REBALANCE_SECONDS * 1000),
            request_timeout_ms=int(BROKER_TIMEOUT_SECONDS * 1000),
        )
        opened = _KafkaConsumer(client)

        class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
            async def on_partitions_revoked(self, revoked: Any) -> None:
                await opened.finish(revoked)

            async def on_partitions_assigned(self, assigned: Any) -> None:  # noqa: ARG002 - nothing to prepare
                return

        client.subscribe([self._endpoint.topic], listener=_Listener())
        try:
            async with asyncio.timeout(BROKER_TIMEOUT_SECONDS):
                await client.start()
            yield opened
        finally:
            await client.stop()


class _KafkaConsumer:
    """Commits, for each partition, the lowest offset that is not done: work finishes out of order."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._working: dict[Any, set[int]] = {}
        self._next: dict[Any, int] = {}
        self._changed = asyncio.Condition()

    async def receive(self, limit: int, wait_seconds: float) -> Sequence[Delivery]:
        batches = await self._client.getmany(timeout_ms=int(wait_seconds * 1000), max_records=limit)
        deliveries = []
        for partition, records in batches.items():
            for record in records:
                self._working.setdefault(partition, set()).add(record.offset)
                self._next[partition] = record.offset + 1
                message = decode(record.value or b"")
                handle = (partition, record.offset)
                if message is None:
                    await self.done(Delivery(Message("", 0.0, 0.0), handle))
                else:
                    deliveries.append(Delivery(message, handle))
        return deliveries

    async def done(self, delivery: Delivery) -> None:
        from aiokafka.errors import CommitFailedError, IllegalStateError  # noqa: PLC0415 - loads only where used

        partition, offset = delivery.handle
        async with self._changed:
            self._working[partition].discard(offset)
            self._changed.notify_all()
            lowest = min(self._working[partition], default=self._next[partition])
        try:
            await self._client.commit({partition: lowest})
        except (CommitFailedError, IllegalStateError):
            return  # the partition went to another worker meanwhile, which gets the message again

    async def release(self, delivery: Delivery) -> None:
        partition, offset = delivery.handle
        async with self._changed:
            # Not committed and not worked on: it comes again to whoever gets the partition.
            self._next[partition] = min(self._next[partition], offset)
            self._working[partition].discard(offset)
            self._changed.notify_all()

    async def finish(self, partitions: Any) -> None:
        """Wait until the work of these partitions is done, so that it is not done twice."""
        try:
            async with asyncio.timeout(_KAFKA_REBALANCE_SECONDS / 2), self._changed:
                await self._changed.wait_for(lambda: not any(self._working.get(item) for item in partitions))
        except TimeoutError:
            return


# --- RabbitMQ ---------------------------------------------------------------------------------------------------


class _RabbitPool:
    def __init__(self, connection: Any, endpoint: RabbitEndpoint) -> None:
        self._connection = connection
        self._endpoint = endpoint

    @asynccontextmanager
    async def consumer(self, concurrency: int) -> AsyncIterator[Consumer]:
        channel = await self._connection.channel()
        async with channel:
            await channel.set_qos(prefetch_count=concurrency, timeout=BROKER_TIMEOUT_SECONDS)
            queue = await channel.get_queue(self._endpoint.queue, ensure=False)
            opened = _RabbitConsumer()
            tag = await queue.consume(opened.accept, timeout=BROKER_TIMEOUT_SECONDS)
            try:
                yield opened
            finally:
                await queue.cancel(tag, timeout=BROKER_TIMEOUT_SECONDS)
                await opened.release_rest()


class _RabbitConsumer:
    def __init__(self) -> None:
        self._arrived: asyncio.Queue[Delivery] = asyncio.Queue()

    async def accept(self, incoming: Any) -> None:
        message = decode(incoming.body)
        if message is None:
            await incoming.ack()
        else:
            self._arrived.put_nowait(Delivery(message, incoming))

    async def receive(self, limit: int, wait_seconds: float) -> Sequence[Delivery]:
        try:
            async with asyncio.timeout(wait_seconds):
                deliveries = [await self._arrived.get()]
        except TimeoutError:
            return ()
        while len(deliveries) < limit and not self._arrived.empty():
            deliveries.append(self._arrived.get_nowait())
        return deliveries

    async def done(self, delivery: Delivery) -> None:
        await delivery.handle.ack()

    async def release(self, delivery: Delivery) -> None:
        await delivery.handle.nack(requeue=True)

    async def release_rest(self) -> None:
        while not self._arrived.empty():
            await self.release(self._arrived.get_nowait())
