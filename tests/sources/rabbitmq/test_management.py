"""Queues by the management API, against a real broker, and against servers that are none."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import aiormq
import pytest
from aiohttp import web

from scaler.errors import SourceDenied, SourceError, SourceMissing, SourceNoData, SourceTimeout, SourceUnavailable
from scaler.sources.rabbitmq.reading import Reading
from tests.services.process import free_port
from tests.services.proxy import tcp_proxy
from tests.services.rabbitmq import RabbitMQ
from tests.sources.rabbitmq.conftest import Vhost, take, until
from tests.sources.rabbitmq.support import config_of, opened, outcome, outcomes, sampled

ODD_NAMES = ["plain", "with space", "per%cent", "sl/ash", "%2F", "ünï", "q?a=b#c", "a+b", "quo\"te'", "a" * 255]


async def settled(client: object, config: object, expected: float) -> object:
    """Statistics lag: wait until the trigger's metric is as expected."""

    async def find() -> object:
        found = await outcome(client, config)  # type: ignore[arg-type]  # said once, above
        return found.total.messages if isinstance(found, Reading) else found

    return await until(find, lambda messages: messages == expected)


# --- a real broker -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_messages_being_worked_on_count_unless_excluded(vhost: Vhost, kind: str) -> None:
    await vhost.declare("q", messages=5, **{"x-queue-type": kind})
    with_them = config_of(vhost.trigger("q"))
    without = config_of(vhost.trigger("q", excludeUnacknowledged="true"))
    async with opened(with_them) as client, aiormq.connect(vhost.amqp) as worker:
        await settled(client, with_them, 5)
        await take(worker, "q", 2)
        found = await until(lambda: sampled(client, with_them), lambda sample: sample.in_flight == 2)
        assert (found.metric_value, found.waiting, found.active) == (5, 3, True)
        assert (await sampled(client, without)).metric_value == 3


async def test_totals_and_rates_follow_the_traffic(vhost: Vhost) -> None:
    await vhost.declare("q")
    modes = {
        mode: config_of(vhost.trigger("q", mode=mode, value="10"))
        for mode in ("MessageRate", "DeliverGetRate", "PublishedToDeliveredRatio", "ExpectedQueueConsumptionTime")
    }
    async with opened(modes["MessageRate"]) as client, aiormq.connect(vhost.amqp) as connection:
        channel = await connection.channel()
        published = 0

        async def work() -> dict[str, float]:
            nonlocal published
            for _ in range(4):
                await channel.basic_publish(b"x", routing_key="q")
                published += 1
            message = await channel.basic_get("q")
            await channel.basic_ack(message.delivery_tag or 0)
            await channel.basic_get("q", no_ack=True)
            found = await outcomes(client, [modes["MessageRate"]])
            if not isinstance(found[0], Reading):
                return {}
            return {mode: (await sampled(client, config)).metric_value for mode, config in modes.items()}

        # four published and two delivered each time: the ratio is 2, and the queue grows
        await until(
            work,
            lambda found: (
                found.get("MessageRate", 0) > 0
                and found["DeliverGetRate"] > 0
                and 1.5 < found["PublishedToDeliveredRatio"] < 2.5
                and found["ExpectedQueueConsumptionTime"] > 0
            ),
        )
        # half are completed: acknowledged, or delivered without need to acknowledge; each count lags by itself
        await until(
            lambda: sampled(client, modes["MessageRate"]),
            lambda sample: (sample.arrived_total, sample.completed_total) == (published, published / 2),
        )
        idle = await until(lambda: sampled(client, modes["MessageRate"]), lambda sample: sample.metric_value == 0)
        assert idle.active, "MessageRate is active while messages wait, as KEDA has it"
        stuck = await until(  # what is published and what is delivered fade each for itself
            lambda: sampled(client, modes["ExpectedQueueConsumptionTime"]),
            lambda sample: sample.raw["deliver_per_second"] == 0,
        )
        assert stuck.active
        assert stuck.metric_value == 10, "nobody is connected: one replica's worth"


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_odd_names_of_queues_are_read(vhost: Vhost, name: str) -> None:
    await vhost.declare(name, messages=0)
    config = config_of(vhost.trigger(name))
    async with opened(config) as client:
        await settled(client, config, 0)


@pytest.mark.parametrize("name", ["with space", "per%cent", "sl/ash", "%2F", "ünï", "q?a=b#c", "a+b"])
async def test_odd_names_of_virtual_hosts_are_read(rabbitmq: RabbitMQ, name: str) -> None:
    with rabbitmq.vhost(name) as unique_name:
        vhost = Vhost(rabbitmq, unique_name)
        path = vhost._path("q")
        await asyncio.to_thread(rabbitmq.api, "PUT", f"/queues/{path}", {"durable": True})
        in_path = config_of(vhost.trigger("q"))
        named = config_of({"queueName": "q", "host": rabbitmq.http_url("/"), "vhostName": unique_name})
        assert in_path.vhost == named.vhost
        for config in (in_path, named):
            async with opened(config) as client:
                await settled(client, config, 0)


async def test_a_new_queue_is_unknown_until_rabbitmq_has_counted_it(vhost: Vhost) -> None:
    config = config_of(vhost.trigger("q"))
    async with opened(config) as client:
        assert isinstance(await outcome(client, config), SourceMissing)
        await vhost.declare("q")
        found = await outcome(client, config)
        assert isinstance(found, SourceNoData | Reading)
        await settled(client, config, 0)


async def test_many_queues_are_read_by_one_listing_where_that_is_cheaper(vhost: Vhost) -> None:
    names = [f"q{number}" for number in range(40)]
    await vhost.declare(*names)
    await vhost.declare("q7", messages=7)
    async with counting_proxy(vhost) as proxy:
        configs = [config_of({"queueName": name, "host": proxy.url}) for name in [*names, "gone"]]
        async with opened(configs[0]) as client:
            for number, config in enumerate(configs[:-1]):  # each queue is counted at a time of its own
                await settled(client, config, 7 if number == 7 else 0)
            proxy.paths.clear()
            for _ in range(3):
                found = await outcomes(client, configs)
                counts = [one.total.ready for one in found if isinstance(one, Reading)]
                assert counts == [7 if number == 7 else 0 for number in range(40)], found
                assert isinstance(found[-1], SourceMissing)
    assert len(proxy.paths) == 1 + 3, "how many queues there are, and then one listing each time"


async def test_few_queues_of_many_are_read_one_by_one(vhost: Vhost) -> None:
    await vhost.declare(*(f"q{number}" for number in range(40)))
    async with counting_proxy(vhost) as proxy:
        configs = [config_of({"queueName": f"q{number}", "host": proxy.url}) for number in range(3)]
        async with opened(configs[0]) as client:
            await settled(client, configs[0], 0)
            proxy.paths.clear()
            await outcomes(client, configs)
    assert sorted(path.split("?")[0].rsplit("/", 1)[1] for path in proxy.paths) == ["q0", "q1", "q2"]


@pytest.mark.parametrize(("operation", "metric"), [("sum", 1 + 2 + 3 + 4 + 5 + 6), ("avg", 3), ("max", 6)])
async def test_pages_of_an_expression_are_followed(vhost: Vhost, operation: str, metric: float) -> None:
    for number in range(1, 7):
        await vhost.declare(f"Orders-{number}", messages=number)
    await vhost.declare("bills", messages=50)
    more = {"useRegex": "true", "pageSize": "2", "operation": operation}
    config = config_of(vhost.trigger("^orders-[0-9]$", **more))
    async with opened(config) as client:
        await settled(client, config, 21)
        found = await sampled(client, config)
        assert found.metric_value == metric
        assert found.raw["queues"] == 6


async def test_an_expression_without_plain_text_reads_all_pages_and_a_listing_serves_several(vhost: Vhost) -> None:
    for number in range(1, 7):
        await vhost.declare(f"orders-{number}", messages=number)
    patterns = {".*-[12]$": 3, "(orders|bills)-6": 6, "nothing.*|at-all": 0, r"-\d": 21}
    patterns |= {f".*-{number}": number for number in range(1, 7)}
    configs = [config_of(vhost.trigger(text, useRegex="true", pageSize="2")) for text in patterns]
    async with opened(configs[0]) as client:
        for config, messages in zip(configs, patterns.values(), strict=True):
            await settled(client, config, messages)
        for _ in range(2):
            found = await outcomes(client, configs)
            assert [one.total.messages for one in found if isinstance(one, Reading)] == list(patterns.values())


async def test_an_expression_sees_only_what_the_connection_allows(vhost: Vhost) -> None:
    await vhost.declare("team-a-1", "team-a-2", "team-b-1", messages=1)
    config = config_of(vhost.trigger("team-.*", useRegex="true"))
    async with opened(config, allow={"queue": ("team-a-*",)}) as client:
        await settled(client, config, 2)
        assert (await sampled(client, config)).raw["queues"] == 2


async def test_a_queue_that_an_expression_finds_and_that_is_new_does_not_hide_the_others(vhost: Vhost) -> None:
    await vhost.declare("q1", messages=1)
    config = config_of(vhost.trigger("q.*", useRegex="true"))
    async with opened(config) as client:
        await settled(client, config, 1)
        await vhost.declare("q2", messages=1)
        found = await outcome(client, config)
        assert isinstance(found, Reading)
        await settled(client, config, 2)


@pytest.mark.parametrize("regex", ["false", "true"])
async def test_a_missing_virtual_host_is_missing(rabbitmq: RabbitMQ, regex: str) -> None:
    config = config_of({"queueName": "q", "host": rabbitmq.http_url("no-such-vhost"), "useRegex": regex})
    async with opened(config) as client:
        assert isinstance(await outcome(client, config), SourceMissing)


async def test_a_wrong_password_is_denied_and_not_shown(vhost: Vhost) -> None:
    config = config_of(vhost.trigger("q", username="nobody", password="hunter2"))
    async with opened(config) as client:
        found = await outcome(client, config)
    assert isinstance(found, SourceDenied)
    assert "hunter2" not in str(found)


async def test_a_user_without_rights_is_denied_and_a_tag_with_rights_suffices(vhost: Vhost) -> None:
    await vhost.declare("q", messages=1)
    with vhost.broker.account(password="secret", tags="management") as user:
        config = config_of(vhost.trigger("q", username=user, password="secret"))
        async with opened(config) as client:
            assert isinstance(await outcome(client, config), SourceDenied)
            vhost.broker.allow(user, vhost.name, configure="", write="", read="")
            await settled(client, config, 1)


async def test_half_open_connections_time_out_together_and_recover(vhost: Vhost) -> None:
    await vhost.declare("q0", messages=1)
    async with tcp_proxy(vhost.broker.host, vhost.broker.http_port) as proxy:
        url = vhost.http.replace(f":{vhost.broker.http_port}/", f":{proxy.port}/")
        configs = [config_of({"queueName": f"q{number}", "host": url, "timeout": "300ms"}) for number in range(60)]
        async with opened(configs[0]) as client:
            await settled(client, configs[0], 1)
            proxy.pause()
            started = time.monotonic()
            found = await outcomes(client, configs)
            assert all(isinstance(one, SourceTimeout) for one in found)
            assert time.monotonic() - started < 9, "60 questions wait once, not one after the other"
            proxy.resume()
            await settled(client, configs[0], 1)


async def test_connections_are_kept_and_cut_ones_replaced(vhost: Vhost) -> None:
    await vhost.declare("q", messages=1)
    async with tcp_proxy(vhost.broker.host, vhost.broker.http_port) as proxy:
        config = config_of(
            {"queueName": "q", "host": vhost.http.replace(f":{vhost.broker.http_port}/", f":{proxy.port}/")}
        )
        async with opened(config) as client:
            await settled(client, config, 1)
            for _ in range(10):
                await outcome(client, config)
            assert proxy.accepted == 1
            proxy.cut()
            await until(lambda: outcome(client, config), lambda found: isinstance(found, Reading))
            assert proxy.accepted == 2


async def test_nobody_listening_is_unavailable() -> None:
    config = config_of({"queueName": "q", "host": f"http://user:hunter2@127.0.0.1:{free_port()}/"})
    async with opened(config) as client:
        found = await outcome(client, config)
    assert type(found) is SourceUnavailable
    assert "check scheme, host and port" in str(found)
    assert "hunter2" not in str(found)


async def test_a_loopback_address_from_metadata_is_refused_before_connecting(vhost: Vhost) -> None:
    async with tcp_proxy(vhost.broker.host, vhost.broker.http_port) as proxy:
        for host in ("127.0.0.1", "localhost", "[::1]"):
            config = config_of({"queueName": "q", "host": f"http://{host}:{proxy.port}/"})
            async with opened(config, private_allowed=False) as client:
                found = await outcome(client, config)
            assert isinstance(found, SourceDenied), found
            assert "loopback" in str(found)
        assert proxy.accepted == 0


# --- servers that are no RabbitMQ ----------------------------------------------------------------------------------

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """A web server on loopback; yields its URL."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def answered(handler: Handler, *, regex: bool = False, **options: object) -> object:
    """What one read of a server with this answer delivers."""
    async with serving(handler) as url:
        config = config_of({"queueName": "q", "host": f"{url}/v", "useRegex": str(regex).lower()})
        async with opened(config, **options) as client:
            return await outcome(client, config)


SECRET = "body-of-the-broker"
BODIES = [
    ("no JSON", 200, SECRET.encode(), SourceUnavailable, "not JSON"),
    ("no UTF-8", 200, b"\xff\xfe" + SECRET.encode(), SourceUnavailable, "not UTF-8"),
    ("empty", 200, b"", SourceUnavailable, "not JSON"),
    ("deep", 200, b"[" * 200_000, SourceUnavailable, "not JSON"),
    ("another form", 200, json.dumps([SECRET]).encode(), SourceUnavailable, "management API"),
    ("bad request", 400, SECRET.encode(), SourceUnavailable, "status 400"),
    ("unauthorised", 401, SECRET.encode(), SourceDenied, "credentials"),
    ("forbidden", 403, SECRET.encode(), SourceDenied, "credentials"),
    ("not found", 404, SECRET.encode(), SourceMissing, "no such queue"),
    ("too many", 429, SECRET.encode(), SourceUnavailable, "status 429"),
    ("broken", 500, SECRET.encode(), SourceUnavailable, "status 500"),
    ("large error", 500, SECRET.encode() * 100_000, SourceUnavailable, ""),
    ("odd status", 299, SECRET.encode(), SourceUnavailable, "status 299"),
]


@pytest.mark.parametrize("regex", [False, True])
@pytest.mark.parametrize(("status", "body", "kind", "part"), [case[1:] for case in BODIES], ids=[c[0] for c in BODIES])
async def test_an_odd_answer_is_told_in_our_words(
    status: int, body: bytes, kind: type[SourceError], part: str, regex: bool
) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, content_type="application/json")

    found = await answered(answer, regex=regex)
    assert type(found) is kind
    assert part in str(found)
    assert SECRET not in str(found)


async def test_a_body_without_end_is_not_read_to_it() -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65_536)
            sent += 65_536

    found = await answered(endless, max_response_bytes=1_000_000)
    assert isinstance(found, SourceUnavailable)
    assert "larger than 1000000 bytes" in str(found)
    assert sent < 20_000_000


async def test_a_body_that_trickles_times_out() -> None:
    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.02)

    assert isinstance(await answered(trickle, read_timeout_seconds=0.3), SourceTimeout)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    asked = []

    async def redirect(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.Response(status=status, headers={"Location": "http://169.254.169.254/latest/meta-data"})

    found = await answered(redirect)
    assert isinstance(found, SourceUnavailable)
    assert "redirect" in str(found)
    assert len(asked) == 1


async def test_a_compressed_body_that_nobody_asked_for_is_not_unpacked() -> None:
    async def bomb(request: web.Request) -> web.StreamResponse:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})

    found = await answered(bomb)
    assert isinstance(found, SourceUnavailable)
    assert "compressed" in str(found)


async def test_a_path_is_sent_as_written_and_credentials_in_the_header() -> None:
    seen = {}

    async def note(request: web.Request) -> web.StreamResponse:
        seen["path"] = request.raw_path.split("?")[0]
        seen["authorization"] = request.headers.get("Authorization", "")
        row = {"name": "q/1", "messages_ready": 1, "messages_unacknowledged": 0, "message_stats": {}}
        return web.json_response(row)

    async with serving(note) as url:
        host = url.replace("http://", "http://me:p%C3%BC%3A@")
        config = config_of({"queueName": "q/1", "host": f"{host}/base/sub%20path/my%2Fvhost"})
        async with opened(config) as client:
            assert (await sampled(client, config)).waiting == 1
    assert seen["path"] == "/base/sub%20path/api/queues/my%2Fvhost/q%2F1"
    assert seen["authorization"] == "Basic " + __import__("base64").b64encode("me:pü:".encode()).decode()


async def test_queues_that_had_statistics_and_have_none_any_more_are_unknown() -> None:
    rows = [
        {"name": "q1", "messages_ready": 1, "messages_unacknowledged": 0},
        {"name": "q2", "messages_ready": 2, "messages_unacknowledged": 0},
    ]

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(
            {"items": rows, "page_count": 1, "filtered_count": len(rows), "total_count": len(rows)}
        )

    async with serving(answer) as url:
        config = config_of({"queueName": "q", "host": f"{url}/v", "useRegex": "true"})
        async with opened(config) as client:
            assert (await sampled(client, config)).waiting == 3
            rows[1] = {"name": "q2", "state": "down"}
            found = await outcome(client, config)
            assert isinstance(found, SourceNoData)
            assert '"q2"' in str(found)
            del rows[1]  # deleted: known to be gone
            assert (await sampled(client, config)).waiting == 1


@pytest.mark.parametrize("regex", ["false", "true"])
@pytest.mark.parametrize(("rates_mode", "known"), [("none", False), ("basic", True), (None, True)])
async def test_rates_that_rabbitmq_does_not_measure_are_unknown(
    rates_mode: str | None, known: bool, regex: str
) -> None:
    """Without traffic so far a row has no rates either: the overview tells the difference."""
    asked = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        if request.path == "/api/overview":
            return web.Response(status=500) if rates_mode is None else web.json_response({"rates_mode": rates_mode})
        row = {"name": "q", "messages_ready": 4, "messages_unacknowledged": 0}
        page = {"items": [row], "page_count": 1, "filtered_count": 1, "total_count": 1}
        return web.json_response(page if regex == "true" else row)

    async with serving(answer) as url:
        metadata = {"queueName": "q", "host": f"{url}/v", "useRegex": regex}
        length = config_of(metadata)
        rate = config_of(metadata | {"mode": "MessageRate", "value": "3"})
        async with opened(length) as client:
            for _ in range(3):
                assert (await sampled(client, length)).metric_value == 4
                if known:
                    assert (await sampled(client, rate)).metric_value == 0
                else:
                    with pytest.raises(SourceNoData, match="rates_mode"):
                        await sampled(client, rate)
    assert asked.count("/api/overview") == 1


async def test_a_listing_that_changes_between_its_pages_is_read_again() -> None:
    """A queue that goes away moves the others forward: one would slip between two pages."""
    names = [f"q{number}" for number in range(6)]
    asked: list[int] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/api/overview":
            return web.json_response({"rates_mode": "basic"})
        number, size = int(request.query["page"]), int(request.query["page_size"])
        asked.append(number)
        if len(asked) == 2:
            del names[0]
        pages = -(-len(names) // size)
        if number > pages:
            return web.json_response({"error": "page_out_of_range", "reason": "x"}, status=400)
        rows = [
            {"name": name, "messages_ready": 1, "messages_unacknowledged": 0}
            for name in names[(number - 1) * size : number * size]
        ]
        return web.json_response(
            {"items": rows, "page_count": pages, "filtered_count": len(names), "total_count": len(names)}
        )

    async with serving(answer) as url:
        config = config_of({"queueName": "q", "host": f"{url}/v", "useRegex": "true", "pageSize": "2"})
        async with opened(config) as client:
            assert (await sampled(client, config)).waiting == 5
    assert asked == [1, 2, 3, 1, 2, 3]


async def test_queues_that_come_and_go_all_the_time_are_read_all_the_same() -> None:
    asked: list[int] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/api/overview":
            return web.json_response({"rates_mode": "basic"})
        number = int(request.query["page"])
        asked.append(number)
        count = 4 + len(asked) % 2
        rows = [
            {"name": f"q{index}", "messages_ready": 1, "messages_unacknowledged": 0}
            for index in range((number - 1) * 2, min(number * 2, count))
        ]
        return web.json_response(
            {"items": rows, "page_count": -(-count // 2), "filtered_count": count, "total_count": count}
        )

    async with serving(answer) as url:
        config = config_of({"queueName": "q", "host": f"{url}/v", "useRegex": "true", "pageSize": "2"})
        async with opened(config) as client:
            assert (await sampled(client, config)).waiting in (4, 5)
    assert asked.count(1) == 3, "three attempts, each to the end"


async def test_queues_that_come_and_go_between_readings_are_found_and_lost() -> None:
    names: set[str] = set()

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/api/overview":
            return web.json_response({"rates_mode": "basic"})
        rows = [{"name": name, "messages_ready": 1, "messages_unacknowledged": 0} for name in sorted(names)]
        count = len(rows)
        return web.json_response(
            {"items": rows, "page_count": min(count, 1), "filtered_count": count, "total_count": count}
        )

    dice = random.Random(7)
    every = [f"{kind}-{number}" for kind in ("orders", "bills") for number in range(10)]
    patterns = ["orders-", "bills-[0-4]", "^.*-9$", "nothing", "-[13579]$", "s-", "o|b", "1", "2", "3"]
    async with serving(answer) as url:
        configs = [config_of({"queueName": text, "host": f"{url}/v", "useRegex": "true"}) for text in patterns]
        async with opened(configs[0]) as client:
            for _ in range(20):
                names ^= set(dice.sample(every, dice.choice([0, 1, 5])))
                found = await outcomes(client, configs)
                expected = [sum(bool(re.search(text, name)) for name in names) for text in patterns]
                assert [one.queues for one in found if isinstance(one, Reading)] == expected


async def test_a_tiny_page_size_does_not_multiply_requests() -> None:
    asked = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/api/overview":
            return web.json_response({"rates_mode": "basic"})
        number, size = int(request.query["page"]), int(request.query["page_size"])
        asked.append((number, size))
        rows = [
            {"name": f"q{index}", "messages_ready": 1, "messages_unacknowledged": 0}
            for index in range((number - 1) * size, min(number * size, 900))
        ]
        return web.json_response(
            {"items": rows, "page_count": -(-900 // size), "filtered_count": 900, "total_count": 900}
        )

    async with serving(answer) as url:
        config = config_of({"queueName": "q", "host": f"{url}/v", "useRegex": "true", "pageSize": "1"})
        async with opened(config) as client:
            assert (await sampled(client, config)).waiting == 900
    assert asked == [(1, 1), (1, 500), (2, 500)]


async def test_more_queues_than_can_be_read_are_refused_with_a_reason() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({"items": [], "page_count": 10**6, "filtered_count": 10**8, "total_count": 10**8})

    found = await answered(answer, regex=True)
    assert isinstance(found, SourceUnavailable)
    assert "narrow queueName" in str(found)


async def test_one_slow_queue_does_not_fail_the_others() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        name = request.path.rsplit("/", 1)[1]
        if name == "slow":
            await asyncio.sleep(1)
        return web.json_response({"name": name, "messages_ready": 1, "messages_unacknowledged": 0})

    async with serving(answer) as url:
        first = config_of({"queueName": "slow", "host": f"{url}/v", "timeout": "200ms"})
        configs = [first] + [replace(first, queue=f"q{number}", timeout_seconds=None) for number in range(5)]
        async with opened(first) as client:
            found = await outcomes(client, configs)
    assert isinstance(found[0], SourceTimeout)
    assert all(isinstance(one, Reading) for one in found[1:])


class CountingProxy:
    """Passes requests on to the management API and notes their paths."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.url = ""


@asynccontextmanager
async def counting_proxy(vhost: Vhost) -> AsyncIterator[CountingProxy]:
    import aiohttp  # noqa: PLC0415 - used here only
    from yarl import URL  # noqa: PLC0415 - likewise

    proxy = CountingProxy()
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def forward(request: web.Request) -> web.StreamResponse:
            proxy.paths.append(request.raw_path)
            passed = {name: request.headers[name] for name in ("Authorization", "Accept-Encoding")}
            url = URL(f"http://{vhost.broker.host}:{vhost.broker.http_port}{request.raw_path}", encoded=True)
            async with session.get(url, headers=passed) as response:
                return web.Response(
                    status=response.status, body=await response.read(), content_type=response.content_type
                )

        async with serving(forward) as url:
            proxy.url = vhost.http.replace(f"{vhost.broker.host}:{vhost.broker.http_port}", url.removeprefix("http://"))
            yield proxy
