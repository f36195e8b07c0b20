"""A broker that crashes, hangs and comes back while it is read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest

from scaler.errors import SourceMissing, SourceTimeout, SourceUnavailable
from scaler.sources.rabbitmq.config import RabbitConfig
from scaler.sources.rabbitmq.reading import Reading
from tests.services.process import unique
from tests.services.rabbitmq import RabbitMQBroker, start_rabbitmq
from tests.sources.rabbitmq.conftest import Vhost, until
from tests.sources.rabbitmq.support import config_of, opened, outcome, sampled

pytestmark = pytest.mark.timeout(300)  # a broker takes 6 s to start, and a minute on a machine that is busy


# Erlang's disk log holds writes back for up to 2 s: a broker killed sooner forgets a durable queue.
FLUSH_SECONDS = 3.0


@pytest.fixture(scope="module")
def broker() -> Iterator[RabbitMQBroker]:
    """A broker of this module's own, to break."""
    with start_rabbitmq() as broker:
        yield broker


@pytest.fixture
async def configs(broker: RabbitMQBroker) -> dict[str, RabbitConfig]:
    """One queue with three messages that survive, by both protocols."""
    vhost, name = Vhost(broker, "/"), unique("restart")
    await vhost.declare(name)
    for _ in range(3):
        body = {
            "properties": {"delivery_mode": 2},
            "routing_key": name,
            "payload": "x",
            "payload_encoding": "string",
        }
        await asyncio.to_thread(broker.api, "POST", "/exchanges/%2F/amq.default/publish", body)
    return {by: config_of(vhost.trigger(name, by=by)) for by in ("amqp", "http")}


@pytest.mark.parametrize("by", ["amqp", "http"])
async def test_a_crash_is_unavailable_never_zero_and_the_return_is_found(
    broker: RabbitMQBroker, configs: dict[str, RabbitConfig], by: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = configs[by]
    async with opened(config) as client:
        await until(lambda: outcome(client, config), lambda found: isinstance(found, Reading))
        await until(lambda: sampled(client, config), lambda sample: sample.waiting == 3)
        await asyncio.sleep(FLUSH_SECONDS)
        await asyncio.to_thread(broker.kill)
        with caplog.at_level(logging.WARNING):
            for _ in range(5):
                assert isinstance(await outcome(client, config), SourceUnavailable)
                await asyncio.sleep(0.1)
        assert not caplog.records, "failures are raised, not logged at each retry"
        seen = []
        start = asyncio.create_task(asyncio.to_thread(broker.start))

        async def watch() -> object:
            found = await outcome(client, config)
            seen.append(found)
            return found

        try:
            await until(watch, lambda found: isinstance(found, Reading), seconds=150)
        finally:
            await start
        # The management API may know a queue before its counts; AMQP tells of none before the node holds it.
        wrong = [found for found in seen if isinstance(found, Reading) and found.total.ready != 3]
        assert not wrong, "a broker that starts is never taken for an empty one"
        assert not [found for found in seen if isinstance(found, SourceMissing)] or by == "http"


@pytest.mark.parametrize("by", ["amqp", "http"])
async def test_a_broker_that_hangs_times_out_and_is_found_again(
    broker: RabbitMQBroker, configs: dict[str, RabbitConfig], by: str
) -> None:
    config = configs[by]
    async with opened(config, read_timeout_seconds=1.0, connect_timeout_seconds=1.0) as client:
        await until(lambda: outcome(client, config), lambda found: isinstance(found, Reading))
        broker.pause()
        try:
            # The system stops a process of many threads a moment later.
            await until(lambda: outcome(client, config), lambda found: isinstance(found, SourceTimeout))
            for _ in range(4):
                found = await outcome(client, config)
                assert isinstance(found, SourceTimeout), found
        finally:
            broker.resume()
        await until(lambda: outcome(client, config), lambda found: isinstance(found, Reading))


@pytest.mark.parametrize("by", ["amqp", "http"])
async def test_a_client_closes_in_seconds_while_the_broker_hangs(
    broker: RabbitMQBroker, configs: dict[str, RabbitConfig], by: str
) -> None:
    config = configs[by]
    broker_hangs = False
    try:
        async with asyncio.timeout(None) as closing, opened(config) as client:
            await until(lambda: outcome(client, config), lambda found: isinstance(found, Reading))
            broker.pause()
            broker_hangs = True
            closing.reschedule(asyncio.get_running_loop().time() + 15)
    finally:
        if broker_hangs:
            broker.resume()


async def test_a_server_that_shuts_down_in_order_is_unavailable_and_found_again(
    broker: RabbitMQBroker, configs: dict[str, RabbitConfig]
) -> None:
    config = configs["amqp"]
    async with opened(config) as client:
        await until(lambda: outcome(client, config), lambda found: isinstance(found, Reading))
        await asyncio.to_thread(broker.stop)
        assert isinstance(await outcome(client, config), SourceUnavailable)
        await asyncio.to_thread(broker.start)
        await until(lambda: sampled(client, config), lambda sample: sample.waiting == 3)
