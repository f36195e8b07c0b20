"""The test services themselves: each is real, answers, and can be broken and mended."""

from __future__ import annotations

import asyncio
from typing import Any

import aio_pika
import pytest
import requests
from aiobotocore.session import get_session
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.abc import AbstractTokenProvider
from aiokafka.helpers import create_ssl_context

from tests.services import (
    SQS,
    Kafka,
    KafkaCluster,
    Prometheus,
    RabbitMQ,
    RabbitMQBroker,
    TokenIssuer,
    serve_tokens,
    tcp_proxy,
    unique,
)


async def test_kafka_takes_and_gives_a_record(kafka: Kafka) -> None:
    topic = unique("orders")
    await kafka.create_topic(topic, partitions=2)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
        await producer.send_and_wait(topic, b"one")
    async with AIOKafkaConsumer(topic, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest") as consumer:
        record = await consumer.getone()
    assert record.value == b"one"


class _Token(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    def __init__(self, value: str) -> None:
        self._value = value

    async def token(self) -> str:
        return self._value


@pytest.mark.parametrize(
    ("listener", "mechanism"),
    [
        ("SSL", None),
        ("MTLS", None),
        ("SASL_PLAINTEXT", "PLAIN"),
        ("SASL_PLAINTEXT", "SCRAM-SHA-256"),
        ("SASL_SSL", "SCRAM-SHA-512"),
        ("SASL_SSL", "OAUTHBEARER"),
    ],
)
async def test_each_kafka_listener_lets_the_right_client_in(
    kafka_cluster: KafkaCluster,
    listener: str,
    mechanism: str | None,
) -> None:
    options: dict[str, Any] = {"security_protocol": "SSL" if listener == "MTLS" else listener}
    if listener == "MTLS":
        client = kafka_cluster.authority.client("svc")
        options["ssl_context"] = create_ssl_context(
            cafile=str(kafka_cluster.authority.certificate_path),
            certfile=str(client.certificate_path),
            keyfile=str(client.key_path),
        )
    elif listener in {"SSL", "SASL_SSL"}:
        options["ssl_context"] = create_ssl_context(cafile=str(kafka_cluster.authority.certificate_path))
    if mechanism == "OAUTHBEARER":
        options |= {"sasl_mechanism": mechanism, "sasl_oauth_token_provider": _Token(kafka_cluster.tokens.token("svc"))}
    elif mechanism is not None:
        options |= {
            "sasl_mechanism": mechanism,
            "sasl_plain_username": "alice",
            "sasl_plain_password": "alice-secret",
        }
    topic = unique("secured")
    await kafka_cluster.create_topic(topic)
    async with AIOKafkaConsumer(bootstrap_servers=kafka_cluster.listeners[listener], **options) as consumer:
        assert topic in await consumer.topics()


async def test_rabbitmq_counts_messages_over_amqp_and_over_http(rabbitmq: RabbitMQ) -> None:
    with rabbitmq.vhost() as vhost:
        connection = await aio_pika.connect(rabbitmq.amqp_url(vhost))
        async with connection:
            channel = await connection.channel()
            await channel.declare_queue("orders", durable=True)
            await channel.default_exchange.publish(aio_pika.Message(b"one"), routing_key="orders")
            seen = await channel.declare_queue("orders", passive=True)
        assert seen.declaration_result.message_count == 1
        deadline = asyncio.get_running_loop().time() + 60
        while (rabbitmq.api("GET", f"/queues/{vhost}/orders")).get("messages") != 1:
            assert asyncio.get_running_loop().time() < deadline, "the management API never counted the message"
            await asyncio.sleep(0.1)


async def test_rabbitmq_speaks_tls_on_both_ports_and_takes_tokens(rabbitmq_broker: RabbitMQBroker) -> None:
    token = rabbitmq_broker.tokens.token("svc", scopes=["rabbitmq.read:*/*", "rabbitmq.tag:monitoring"])
    answer = await asyncio.to_thread(
        requests.get,
        f"https://localhost:{rabbitmq_broker.https_port}/api/overview",
        headers={"Authorization": f"Bearer {token}"},
        verify=str(rabbitmq_broker.authority.certificate_path),
        timeout=10,
    )
    assert answer.status_code == 200, answer.text
    connection = await aio_pika.connect(
        f"amqps://guest:guest@localhost:{rabbitmq_broker.amqps_port}/",
        ssl_context=rabbitmq_broker.authority.client_context(),
    )
    await connection.close()


def test_prometheus_answers_with_pushed_samples(prometheus: Prometheus) -> None:
    name = unique("requests").replace("-", "_")
    prometheus.push_many([(name, {"pod": f"pod-{number}"}, number) for number in range(1000)])
    answer = requests.get(f"{prometheus.url}/api/v1/query", params={"query": f"sum({name})"}, timeout=10)
    assert answer.json()["data"]["result"][0]["value"][1] == "499500"


async def test_sqs_counts_messages(sqs: SQS) -> None:
    async with get_session().create_client(
        "sqs",
        endpoint_url=sqs.endpoint_url,
        region_name=sqs.region,
        aws_access_key_id=sqs.access_key_id,
        aws_secret_access_key=sqs.secret_access_key,
    ) as client:
        url = (await client.create_queue(QueueName=unique("orders")))["QueueUrl"]
        await client.send_message(QueueUrl=url, MessageBody="one")
        answer = await client.get_queue_attributes(QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"])
    assert answer["Attributes"]["ApproximateNumberOfMessages"] == "1"


async def test_the_proxy_hangs_goes_on_cuts_and_refuses(prometheus: Prometheus) -> None:
    async with tcp_proxy(prometheus.host, prometheus.port) as proxy:

        async def ask() -> bytes:
            async with asyncio.timeout(30):
                reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
                try:
                    writer.write(b"GET /-/ready HTTP/1.0\r\n\r\n")
                    return await reader.read()
                finally:
                    writer.close()

        assert b"200 OK" in await ask()
        proxy.pause()
        held = asyncio.create_task(ask())
        _, pending = await asyncio.wait([held], timeout=0.3)
        assert pending, "a paused proxy must not answer"
        proxy.resume()
        assert b"200 OK" in await held
        proxy.pause()
        held = asyncio.create_task(ask())
        _, pending = await asyncio.wait([held], timeout=0.3)
        assert pending, "a paused proxy must not answer a new connection"
        proxy.cut()
        with pytest.raises(ConnectionError):
            await held
        proxy.resume()
        assert b"200 OK" in await ask()
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await ask()
        await proxy.accept()
        assert b"200 OK" in await ask()


async def test_a_proxy_that_holds_pieces_ends_at_once(
    prometheus: Prometheus,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = asyncio.all_tasks()
    async with tcp_proxy(prometheus.host, prometheus.port) as proxy:
        proxy.delay_seconds = 60.0
        _, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"GET /-/ready HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(30):
            while not proxy.open_connections:  # noqa: ASYNC110 -- the proxy has no event for it
                await asyncio.sleep(0.01)
            await proxy.refuse()
        writer.close()
    assert asyncio.all_tasks() == before
    assert not caplog.records


def test_the_token_server_knows_its_clients() -> None:
    issuer = TokenIssuer(audience="kafka")
    with serve_tokens(issuer, clients={"svc": "right"}) as server:
        form = {"grant_type": "client_credentials", "client_id": "svc", "client_secret": "right"}
        granted = requests.post(server.url, data=form, timeout=30)
        assert granted.json()["access_token"].count(".") == 2
        refused = requests.post(server.url, data={**form, "client_secret": "wrong"}, timeout=30)
        assert refused.status_code == 401
    assert server.requests[0]["client_id"] == "svc"
