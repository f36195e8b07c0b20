"""`source: prometheus` against a real Prometheus server."""

from __future__ import annotations

import asyncio
import time

import pytest

from scaler.core.model import Sample
from scaler.errors import SourceDenied, SourceError, SourceMissing, SourceNoData, SourceUnavailable
from scaler.promql.client import THREADS, open_client
from scaler.promql.questions import Answer, Question
from tests.services.certificates import CertificateAuthority
from tests.services.process import scratch_folder, unique
from tests.services.prometheus import Prometheus, start_prometheus
from tests.services.proxy import tcp_proxy
from tests.sources.prometheus.server import context, local, outcomes, parse


async def read(server: Prometheus, query: str, **metadata: str) -> Sample:
    """One reading of a trigger; raises what the read or the interpretation raises."""
    trigger = parse({"serverAddress": server.url, "query": query, "threshold": "5", **metadata})
    async with trigger.source.open(trigger.config, context()) as client:
        found: list[object] = []
        await client.read([trigger.source.query(trigger.config)], lambda _, outcome: found.append(outcome))
    if isinstance(found[0], SourceError):
        raise found[0]
    return trigger.source.sample(trigger.config, found[0], now_seconds=1000.0, view=None)


def metric() -> str:
    return unique("queue").replace("-", "_")


async def test_a_query_is_answered_with_the_pushed_value(prometheus: Prometheus) -> None:
    name = metric()
    prometheus.push_many([(name, {"pod": "a"}, 3.0), (name, {"pod": "b"}, 4.5)])
    found = await read(prometheus, f"sum({name})")
    assert (found.metric_value, found.active, found.waiting) == (7.5, True, 7.5)
    assert found.at_seconds == 1000.0


@pytest.mark.parametrize(
    ("query", "value"),
    [("scalar(vector(2))", 2.0), ("vector(-1)", -1.0), ("1 + 1", 2.0), ('"12"', 12.0), ("vector(1e20)", 1e20)],
)
async def test_every_kind_of_number_is_read(prometheus: Prometheus, query: str, value: float) -> None:
    assert (await read(prometheus, query)).metric_value == value


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("nothing_of_this_name", SourceNoData),
        ("vector(0) / 0", SourceNoData),
        ("vector(1) / 0", SourceNoData),
        ("-vector(1) / 0", SourceNoData),
        ("up{job=", SourceMissing),
        ("vector(1)[5m:1m]", SourceUnavailable),
        ('"text"', SourceUnavailable),
        ('label_replace(vector(1), "a", "b", "", "") or vector(2)', SourceUnavailable),
        ("vector(1) + on() group_left() (vector(1) or label_replace(vector(1), 'a', 'b', '', ''))", SourceUnavailable),
    ],
    ids=["empty", "NaN", "+Inf", "-Inf", "syntax", "range", "string", "two series", "many to many"],
)
async def test_what_is_no_number_is_the_right_error(
    prometheus: Prometheus, query: str, error: type[SourceError]
) -> None:
    with pytest.raises(error) as found:
        await read(prometheus, query)
    assert type(found.value) is error


@pytest.mark.parametrize("form", ["time() - max(timestamp({}))", "max(timestamp({}))"], ids=["age", "time"])
async def test_the_freshness_query_sees_what_the_result_hides(prometheus: Prometheus, form: str) -> None:
    name = metric()
    prometheus.push(name, 7.0, at_seconds=time.time() - 100)
    freshness = form.format(name)
    assert (await read(prometheus, name)).metric_value == 7.0  # no sign of age
    found = await read(prometheus, name, freshnessQuery=freshness, staleSeconds="200")
    assert 99 <= found.raw["age_seconds"] <= 200
    with pytest.raises(SourceNoData, match=r"1\d\d s old"):
        await read(prometheus, name, freshnessQuery=freshness, staleSeconds="60")
    with pytest.raises(SourceNoData):
        await read(prometheus, name, freshnessQuery="max(timestamp(nothing_of_this_name))")


async def test_a_wake_query_wakes_while_the_own_series_are_gone(prometheus: Prometheus) -> None:
    gateway = metric()
    prometheus.push(gateway, 4.0)
    found = await read(prometheus, "nothing_of_this_name", wakeQuery=f"sum({gateway})")
    assert (found.metric_value, found.active, found.waiting) == (5.0, True, 4.0)
    prometheus.push(gateway, 0.0)
    found = await read(prometheus, "nothing_of_this_name", wakeQuery=f"sum({gateway})")
    assert (found.metric_value, found.active) == (0.0, False)


async def test_a_thousand_questions_share_few_connections(prometheus: Prometheus) -> None:
    async with (
        tcp_proxy(prometheus.host, prometheus.port) as proxy,
        open_client(local(proxy.port), context(read_timeout_seconds=30.0)) as client,
    ):
        found = await outcomes(client, *(Question(text=f"vector({number})") for number in range(1000)))
    assert [answer for answer in found if not isinstance(answer, Answer)] == []
    assert [answer.result.series[0].value for answer in found if isinstance(answer, Answer)] == list(range(1000))
    assert proxy.accepted <= THREADS


async def test_a_server_that_stops_and_comes_back_is_read_again() -> None:
    async with tcp_proxy("127.0.0.1", 1) as proxy:
        with start_prometheus() as server:
            proxy._target = (server.host, server.port)
            async with open_client(local(proxy.port), context()) as client:

                async def once(timeout_seconds: float | None = None) -> object:
                    return (await outcomes(client, Question(text="vector(1)", timeout_seconds=timeout_seconds)))[0]

                assert isinstance(await once(), Answer)
                await proxy.refuse()
                assert isinstance(await once(), SourceUnavailable)
                await proxy.accept()
                assert isinstance(await once(), Answer)
                proxy.pause()  # half-open: the connection stands, nothing comes back
                assert isinstance(await once(timeout_seconds=1.0), SourceUnavailable)
                proxy.resume()
                assert isinstance(await once(), Answer)
                proxy.cut()
                assert isinstance(await once(), Answer)


async def test_prometheuss_own_basic_authentication_and_tls() -> None:
    hashed = "$2b$04$.O8STnWKcz/sP7sCv3hOnecqVJYZhDUqxYWX5tSK6jYCFGlHs840y"  # bcrypt of "hidden"
    with scratch_folder("tls") as folder:
        authority = CertificateAuthority(folder)
        mine, client = authority.server("prometheus"), authority.client("me")
        configuration = (
            f"tls_server_config:\n  cert_file: {mine.certificate_path}\n  key_file: {mine.key_path}\n"
            f"  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: {authority.certificate_path}\n"
            f"basic_auth_users:\n  me: {hashed}\n"
        )
        with start_prometheus(web_configuration=configuration) as server:
            metadata = {
                "serverAddress": f"https://localhost:{server.port}",
                "query": "vector(3)",
                "threshold": "5",
                "authModes": "tls,basic",
                "ca": authority.certificate_pem,
                "cert": client.certificate_pem,
                "key": client.key_pem,
                "username": "me",
            }

            async def once(password: str) -> object:
                trigger = parse(metadata | {"password": password})
                found: list[object] = []
                async with trigger.source.open(trigger.config, context()) as opened:
                    await opened.read([trigger.source.query(trigger.config)], lambda _, outcome: found.append(outcome))
                return found[0]

            for _ in range(200):
                if "503" not in str(await once("hidden")):
                    break
                await asyncio.sleep(0.1)  # its port is open before it is ready
            assert isinstance(await once("hidden"), Answer)
            refused = await once("mistaken")
            assert isinstance(refused, SourceDenied)
            assert "mistaken" not in str(refused)
