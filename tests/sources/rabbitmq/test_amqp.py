"""Queue lengths by AMQP, against a real broker."""

from __future__ import annotations

import asyncio
import time

import aiormq
import pytest

from scaler.errors import SourceDenied, SourceMissing, SourceTimeout, SourceUnavailable
from scaler.sources.rabbitmq import SOURCE
from scaler.sources.rabbitmq.reading import Reading
from tests.services.proxy import tcp_proxy
from tests.services.rabbitmq import RabbitMQ
from tests.sources.rabbitmq.conftest import Vhost, take, until
from tests.sources.rabbitmq.support import config_of, opened, outcome, outcomes, sampled

ODD_NAMES = ["plain", "with space", "per%cent", "sl/ash", "%2F", "ünï", "q?a=b#c", "quo\"te'", "a" * 255]


async def test_ready_messages_are_counted_at_once(vhost: Vhost) -> None:
    await vhost.declare("q", messages=3)
    config = config_of(vhost.trigger("q", by="amqp"))
    async with opened(config) as client:
        found = await sampled(client, config)
        assert (found.metric_value, found.active, found.waiting, found.in_flight) == (3, True, 3, None)
        await vhost.declare("q", messages=2)
        assert (await sampled(client, config)).metric_value == 5


async def test_unacknowledged_messages_are_invisible_and_come_back(vhost: Vhost) -> None:
    await vhost.declare("q", messages=5)
    config = config_of(vhost.trigger("q", by="amqp"))
    async with opened(config) as client:
        async with aiormq.connect(vhost.amqp) as worker:
            await take(worker, "q", 2)
            assert (await sampled(client, config)).waiting == 3
        await until(lambda: sampled(client, config), lambda sample: sample.waiting == 5)


async def test_quorum_queues_are_read_too(vhost: Vhost) -> None:
    await vhost.declare("q", messages=4, **{"x-queue-type": "quorum"})
    config = config_of(vhost.trigger("q", by="amqp"))
    async with opened(config) as client:
        await until(lambda: sampled(client, config), lambda sample: sample.waiting == 4)


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_odd_names_of_queues_are_read(vhost: Vhost, name: str) -> None:
    await vhost.declare(name, messages=1)
    config = config_of(vhost.trigger(name, by="amqp"))
    async with opened(config) as client:
        assert (await sampled(client, config)).waiting == 1


@pytest.mark.parametrize("name", ["with space", "per%cent", "sl/ash", "%2F", "ünï", "q?a=b#c"])
async def test_odd_names_of_virtual_hosts_are_read(rabbitmq: RabbitMQ, name: str) -> None:
    with rabbitmq.vhost(name) as unique_name:
        vhost = Vhost(rabbitmq, unique_name)
        async with aiormq.connect(rabbitmq.amqp_url("/")) as plain:
            # The library can't say every name in a URL either: connect as our client does.
            connection = aiormq.Connection(plain.url)
            connection.vhost = unique_name
            await connection.connect()
            channel = await connection.channel()
            await channel.queue_declare("q")
            await channel.basic_publish(b"x", routing_key="q")
            config = config_of(vhost.trigger("q", by="amqp"))
            named = config_of(
                vhost.trigger("q", by="amqp") | {"host": rabbitmq.amqp_url("/"), "vhostName": unique_name}
            )
            for one in (config, named):
                async with opened(one) as client:
                    assert (await sampled(client, one)).waiting == 1
            await connection.close()


async def test_many_queues_share_one_connection_and_few_channels(vhost: Vhost) -> None:
    names = [f"q{number}" for number in range(300)]
    await vhost.declare(*names)
    await vhost.declare("q7", messages=7)
    configs = [config_of(vhost.trigger(name, by="amqp")) for name in names]
    async with tcp_proxy(vhost.broker.host, vhost.broker.amqp_port) as proxy:
        configs = [config_of(vhost.trigger(name, by="amqp") | {"host": _through(vhost, proxy.port)}) for name in names]
        async with opened(configs[0]) as client:
            for _ in range(3):
                found = await outcomes(client, configs)
                counts = {
                    name: one.total.ready for name, one in zip(names, found, strict=True) if isinstance(one, Reading)
                }
                assert counts == {name: 7 if name == "q7" else 0 for name in names}
            assert proxy.accepted == 1
            channels = client._link.connection.channels  # type: ignore[attr-defined]  # not of the protocol
            assert len(channels) <= 4


async def test_a_missing_queue_costs_neither_a_connection_nor_a_loop(vhost: Vhost) -> None:
    await vhost.declare("there", messages=1)
    now = [1000.0]
    async with tcp_proxy(vhost.broker.host, vhost.broker.amqp_port) as proxy:
        there, gone = (
            config_of(vhost.trigger(name, by="amqp") | {"host": _through(vhost, proxy.port)})
            for name in ("there", "gone")
        )
        async with opened(there, clock=lambda: now[0]) as client:
            asked = 0
            for _ in range(120):
                now[0] += 1
                before = client._link.answers if client._link else 0  # type: ignore[attr-defined]  # not of the protocol
                found = await outcomes(client, [there, gone])
                asked += client._link.answers - before - 1  # type: ignore[attr-defined]  # likewise
                assert isinstance(found[0], Reading)
                assert isinstance(found[1], SourceMissing)
                assert '"gone"' in str(found[1])
            assert proxy.accepted == 1, "the connection survives the channel that a missing queue closes"
            assert proxy.open_connections == 1
            assert asked <= 10, "asked for again after 1, 2, 4 … 30 s"
            await vhost.declare("gone", messages=2)
            now[0] += 30
            assert (await sampled(client, gone)).waiting == 2
            await vhost.delete("gone")
            assert isinstance(await outcome(client, gone), SourceMissing)
            assert proxy.accepted == 1


@pytest.mark.parametrize("name", ["\u00fc" * 120, "a" + "\u00fc" * 120])
async def test_a_missing_queue_whose_name_fills_the_servers_answer_costs_no_connection(vhost: Vhost, name: str) -> None:
    """RabbitMQ cuts its explanation at 255 bytes, in the middle of a character if need be."""
    await vhost.declare("there")
    async with tcp_proxy(vhost.broker.host, vhost.broker.amqp_port) as proxy:
        there, gone = (
            config_of(vhost.trigger(queue, by="amqp") | {"host": _through(vhost, proxy.port)})
            for queue in ("there", name)
        )
        async with opened(there) as client:
            assert isinstance(await outcome(client, gone), SourceMissing)
            assert isinstance(await outcome(client, there), Reading)
        assert proxy.accepted == 1


async def test_missing_queues_do_not_keep_others_from_being_read(vhost: Vhost) -> None:
    names = [f"{'gone' if number % 3 else 'there'}{number}" for number in range(90)]
    await vhost.declare(*[name for name in names if name.startswith("there")], messages=1)
    configs = [config_of(vhost.trigger(name, by="amqp")) for name in names]
    async with opened(configs[0]) as client:
        for _ in range(2):
            for name, found in zip(names, await outcomes(client, configs), strict=True):
                assert isinstance(found, Reading if name.startswith("there") else SourceMissing), name


async def test_a_queue_exclusive_to_another_connection_is_denied(vhost: Vhost) -> None:
    async with aiormq.connect(vhost.amqp) as other:
        channel = await other.channel()
        await channel.queue_declare("mine", exclusive=True)
        config = config_of(vhost.trigger("mine", by="amqp"))
        async with opened(config) as client:
            found = await outcome(client, config)
    assert isinstance(found, SourceDenied)
    assert "exclusive" in str(found)


async def test_a_wrong_password_is_denied_and_not_tried_at_each_read(vhost: Vhost) -> None:
    now = [1000.0]
    async with tcp_proxy(vhost.broker.host, vhost.broker.amqp_port) as proxy:
        config = config_of(
            vhost.trigger("q", by="amqp", username="nobody", password="hunter2") | {"host": f"amqp://{proxy.address}/"}
        )
        async with opened(config, clock=lambda: now[0]) as client:
            for _ in range(60):
                now[0] += 1
                found = await outcome(client, config)
                assert isinstance(found, SourceDenied)
                assert "credentials" in str(found)
                assert "hunter2" not in str(found)
        assert proxy.accepted <= 8


async def test_a_user_without_rights_on_the_virtual_host_is_denied(vhost: Vhost) -> None:
    with vhost.broker.account(password="secret") as user:
        url = vhost.broker.amqp_url(vhost.name, user=user, password="secret")
        config = config_of({"queueName": "q", "host": url})
        async with opened(config) as client:
            found = await outcome(client, config)
    assert isinstance(found, SourceDenied)
    assert "no rights on virtual host" in str(found)


async def test_a_missing_virtual_host_is_missing(rabbitmq: RabbitMQ) -> None:
    config = config_of({"queueName": "q", "host": rabbitmq.amqp_url("no-such-vhost")})
    async with opened(config) as client:
        found = await outcome(client, config)
    assert isinstance(found, SourceMissing)
    assert '"no-such-vhost"' in str(found)


async def test_nobody_listening_is_unavailable_and_recovers(vhost: Vhost) -> None:
    await vhost.declare("q", messages=1)
    async with tcp_proxy(vhost.broker.host, vhost.broker.amqp_port) as proxy:
        config = config_of(vhost.trigger("q", by="amqp") | {"host": _through(vhost, proxy.port)})
        await proxy.refuse()
        async with opened(config) as client:
            found = await outcome(client, config)
            assert isinstance(found, SourceUnavailable)
            assert "Connect" in str(found)
            await proxy.accept()
            await until(lambda: outcome(client, config), lambda found: isinstance(found, Reading))


async def test_an_http_server_in_place_of_amqp_is_told(vhost: Vhost) -> None:
    config = config_of({"queueName": "q", "host": f"amqp://{vhost.broker.host}:{vhost.broker.http_port}/"})
    async with opened(config) as client:
        found = await outcome(client, config)
    assert isinstance(found, SourceUnavailable)
    assert "check scheme, host and port" in str(found)


async def test_a_connection_that_is_cut_is_opened_again(vhost: Vhost) -> None:
    await vhost.declare("q", messages=1)
    async with tcp_proxy(vhost.broker.host, vhost.broker.amqp_port) as proxy:
        config = config_of(vhost.trigger("q", by="amqp") | {"host": _through(vhost, proxy.port)})
        async with opened(config) as client:
            assert (await sampled(client, config)).waiting == 1
            for times in (2, 3, 4):
                proxy.cut()
                await until(lambda: outcome(client, config), lambda found: isinstance(found, Reading))
                assert proxy.accepted == times
            assert proxy.open_connections == 1


async def test_a_half_open_connection_times_out_once_and_is_replaced(vhost: Vhost) -> None:
    await vhost.declare("q", messages=1)
    async with tcp_proxy(vhost.broker.host, vhost.broker.amqp_port) as proxy:
        config = config_of(vhost.trigger("q", by="amqp") | {"host": _through(vhost, proxy.port)})
        # Longer than a busy machine stands still: what is read while all is well is read in time.
        async with opened(config, read_timeout_seconds=5.0, connect_timeout_seconds=5.0) as client:
            assert (await sampled(client, config)).waiting == 1
            proxy.pause()
            started = time.monotonic()
            found = await outcome(client, config)
            assert isinstance(found, SourceTimeout)
            assert time.monotonic() - started < 15
            found = await until(lambda: outcome(client, config), lambda found: "no AMQP connection" in str(found))
            assert isinstance(found, SourceTimeout), "a server that accepts and says nothing times out too"
            proxy.resume()
            await until(lambda: outcome(client, config), lambda found: isinstance(found, Reading))


async def test_a_read_that_is_cancelled_leaves_the_client_usable(vhost: Vhost) -> None:
    await vhost.declare("q", messages=1)
    async with tcp_proxy(vhost.broker.host, vhost.broker.amqp_port) as proxy:
        config = config_of(vhost.trigger("q", by="amqp") | {"host": _through(vhost, proxy.port)})
        async with opened(config) as client:
            proxy.delay_seconds = 0.02
            for milliseconds in range(0, 200, 10):
                task = asyncio.create_task(outcome(client, config))
                await asyncio.sleep(milliseconds / 1000)
                task.cancel()
                await asyncio.wait({task})
            proxy.delay_seconds = 0
            await until(lambda: outcome(client, config), lambda found: isinstance(found, Reading))


async def test_concurrent_reads_share_the_connection(vhost: Vhost) -> None:
    names = [f"q{number}" for number in range(20)]
    await vhost.declare(*names, messages=1)
    async with tcp_proxy(vhost.broker.host, vhost.broker.amqp_port) as proxy:
        configs = [config_of(vhost.trigger(name, by="amqp") | {"host": _through(vhost, proxy.port)}) for name in names]
        async with opened(configs[0]) as client:
            found = await asyncio.gather(*(sampled(client, config) for config in configs))
            assert {one.waiting for one in found} == {1}
            assert proxy.accepted == 1


async def test_a_loopback_address_from_metadata_is_refused_before_connecting(vhost: Vhost) -> None:
    async with tcp_proxy(vhost.broker.host, vhost.broker.amqp_port) as proxy:
        for host in ("127.0.0.1", "localhost"):
            config = config_of({"queueName": "q", "host": f"amqp://{host}:{proxy.port}/"})
            async with opened(config, private_allowed=False) as client:
                found = await outcome(client, config)
            assert isinstance(found, SourceDenied)
            assert "loopback" in str(found)
        assert proxy.accepted == 0


async def test_closing_the_client_closes_the_connection(vhost: Vhost) -> None:
    await vhost.declare("q")
    async with tcp_proxy(vhost.broker.host, vhost.broker.amqp_port) as proxy:
        config = config_of(vhost.trigger("q", by="amqp") | {"host": _through(vhost, proxy.port)})
        async with opened(config) as client:
            await sampled(client, config)
            assert proxy.open_connections == 1

        async def open_connections() -> int:
            return proxy.open_connections

        await until(open_connections, lambda count: count == 0)


def _through(vhost: Vhost, port: int) -> str:
    return vhost.amqp.replace(f":{vhost.broker.amqp_port}/", f":{port}/")


def test_the_amqp_client_belongs_to_one_virtual_host(rabbitmq: RabbitMQ) -> None:
    one, other = (
        SOURCE.endpoint(config_of({"queueName": "q", "host": rabbitmq.amqp_url(name)})) for name in ("a", "b")
    )
    assert one != other
