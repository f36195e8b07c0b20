"""What the tests against real brokers share: producing, committing, and reading through the source."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from scaler.addresses import AddressGuard
from scaler.core.model import Sample
from scaler.errors import SourceError
from scaler.parameters import read_values
from scaler.source import SourceContext
from scaler.sources.kafka import SOURCE
from scaler.sources.kafka.client import KafkaClient
from scaler.sources.kafka.config import KafkaConfig, KafkaQuery
from scaler.sources.kafka.lag import KafkaReading
from tests.services.process import PATIENT_SECONDS

LOOPBACK_ALLOWED = AddressGuard(private_allowed=True)


def configured(metadata: Mapping[str, str]) -> KafkaConfig:
    values = read_values(SOURCE.parameters, metadata)
    config = SOURCE.parse(values)
    assert not values.problems, [str(problem) for problem in values.problems]
    return config


def context(
    *,
    clock: Callable[[], float] = time.monotonic,
    guard: AddressGuard = LOOPBACK_ALLOWED,
    read_timeout_seconds: float = PATIENT_SECONDS,
    connect_timeout_seconds: float = PATIENT_SECONDS,
    allow: Mapping[str, tuple[str, ...]] | None = None,
) -> SourceContext:
    return SourceContext(
        clock=clock,
        read_timeout_seconds=read_timeout_seconds,
        connect_timeout_seconds=connect_timeout_seconds,
        check_address=guard.check,
        allow=allow or {},
    )


@dataclass
class Reader:
    """One client, read as the service would: every query gets exactly one outcome."""

    client: KafkaClient

    async def outcomes(self, *queries: KafkaQuery) -> dict[KafkaQuery, KafkaReading | SourceError]:
        found: dict[KafkaQuery, KafkaReading | SourceError] = {}
        asked = set(queries)

        def deliver(query: object, outcome: object) -> None:
            assert isinstance(query, KafkaQuery)
            assert query in asked
            assert query not in found, "delivered twice"
            assert isinstance(outcome, KafkaReading | SourceError)
            found[query] = outcome

        try:
            await self.client.read(queries, deliver)
        except SourceError as err:
            return {query: found.get(query, err) for query in queries}
        assert set(found) == asked
        return found

    async def sample(self, metadata: Mapping[str, str]) -> Sample:
        """The sample that this trigger gets. Raises SourceError."""
        config = configured(metadata)
        query = SOURCE.query(config)
        outcome = (await self.outcomes(query))[query]
        if isinstance(outcome, SourceError):
            raise outcome
        return SOURCE.sample(config, outcome, now_seconds=outcome.at_seconds, view=None)

    async def sample_soon(
        self, metadata: Mapping[str, str], accept: Callable[[Sample], bool], timeout_seconds: float = 60.0
    ) -> Sample:
        """The first sample that is accepted, reading twice a second; for what takes a broker a moment."""
        last: object = None
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    try:
                        last = await self.sample(metadata)
                    except SourceError as err:
                        last = err
                    else:
                        if accept(last):
                            return last
                    await asyncio.sleep(0.5)
        except TimeoutError:
            raise AssertionError(f"not within {timeout_seconds} s; last seen: {last!r}") from None

    async def error_soon(
        self, metadata: Mapping[str, str], kind: type[SourceError], timeout_seconds: float = 60.0
    ) -> SourceError:
        """The first error of this kind."""
        last: object = None
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    try:
                        last = await self.sample(metadata)
                    except SourceError as err:
                        last = err
                        if isinstance(err, kind):
                            return err
                    await asyncio.sleep(0.5)
        except TimeoutError:
            raise AssertionError(f"not within {timeout_seconds} s; last seen: {last!r}") from None


@asynccontextmanager
async def reader(metadata: Mapping[str, str], source_context: SourceContext | None = None) -> AsyncIterator[Reader]:
    """A reader over the client that this trigger opens."""
    async with SOURCE.open(configured(metadata), source_context or context()) as client:
        assert isinstance(client, KafkaClient)
        yield Reader(client)


async def produce(bootstrap: str, topic: str, count: int, *, partition: int = 0) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=5)
    await producer.start()
    try:
        sent = [await producer.send(topic, b"x", partition=partition) for _ in range(count)]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


async def commit(bootstrap: str, group: str, offsets: Mapping[tuple[str, int], int]) -> None:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        places = {TopicPartition(topic, partition): offset for (topic, partition), offset in offsets.items()}
        consumer.assign(list(places))
        await consumer.commit(places)
    finally:
        await consumer.stop()
