"""A virtual host of a test's own, and the means to fill queues in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiormq
import pytest
from aiormq.abc import AbstractChannel, AbstractConnection

from scaler.errors import SourceError
from tests.services.rabbitmq import RabbitMQ

DEADLINE_SECONDS = 60.0


@dataclass
class Vhost:
    """One virtual host of a broker."""

    broker: RabbitMQ
    name: str

    @property
    def amqp(self) -> str:
        return self.broker.amqp_url(self.name)

    @property
    def http(self) -> str:
        return self.broker.http_url(self.name)

    def trigger(self, queue: str, *, by: str = "http", **more: str) -> dict[str, str]:
        """The metadata of a trigger on one queue."""
        return {"queueName": queue, "host": self.http if by == "http" else self.amqp} | more

    async def declare(self, *queues: str, messages: int = 0, **arguments: str) -> None:
        """Declare durable queues and put messages into each."""
        async with aiormq.connect(self.amqp) as connection:
            channel = await connection.channel()
            for queue in queues:
                # By the management API: the AMQP library refuses names that RabbitMQ takes.
                await asyncio.to_thread(
                    self.broker.api, "PUT", f"/queues/{self._path(queue)}", {"durable": True, "arguments": arguments}
                )
                for _ in range(messages):
                    await channel.basic_publish(b"x", routing_key=queue)

    async def delete(self, queue: str) -> None:
        await asyncio.to_thread(self.broker.api, "DELETE", f"/queues/{self._path(queue)}")

    def _path(self, queue: str) -> str:
        return f"{quote(self.name, safe='')}/{quote(queue, safe='')}"

    def connections(self) -> int:
        """How many AMQP connections RabbitMQ counts on this virtual host."""
        return len(self.broker.api("GET", f"/vhosts/{quote(self.name, safe='')}/connections"))


@pytest.fixture
def vhost(rabbitmq: RabbitMQ) -> Iterator[Vhost]:
    with rabbitmq.vhost() as name:
        yield Vhost(rabbitmq, name)


async def take(connection: AbstractConnection, queue: str, count: int) -> AbstractChannel:
    """Take messages without acknowledging them."""
    channel = await connection.channel()
    for _ in range(count):
        assert (await channel.basic_get(queue)).delivery_tag
    return channel


async def until(
    find: Callable[[], Awaitable[Any]], good: Callable[[Any], bool], *, seconds: float = DEADLINE_SECONDS
) -> Any:
    """Poll until what is found is good, since RabbitMQ's statistics lag; the last finding, or error, fails the test."""
    give_up_at = time.monotonic() + seconds
    while True:
        try:
            found = await find()
        except SourceError as err:
            found = err
        else:
            if good(found):
                return found
        assert time.monotonic() < give_up_at, f"still {found!r}"
        await asyncio.sleep(0.2)
