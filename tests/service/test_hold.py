"""Hold and expiry against a real broker that is stopped, frozen and started again without its queues."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import boto3
import grpc
import pytest

from scaler._generated import externalscaler_pb2 as pb
from scaler.settings import RightsSettings, Settings
from tests.service.conftest import RunShell, ShellSettings, until
from tests.service.test_keda_calls import Keda, code_of, settled
from tests.services import start_sqs, unique
from tests.services.sqs import SQSServer

LOCAL = Settings(rules=(RightsSettings(private_addresses=True),))
# Quick failures, so that the test is about the hold and not about time-outs.
QUICK: dict[str, object] = {"read_timeout_seconds": 1.0, "connect_timeout_seconds": 1.0, "read_deadline_seconds": 4.0}


@pytest.fixture
def broker() -> Iterator[SQSServer]:
    """A server of this test's own: it is killed."""
    with start_sqs() as server:
        yield server


def boto(broker: SQSServer) -> Any:
    return boto3.client(
        "sqs",
        endpoint_url=broker.endpoint_url,
        region_name=broker.region,
        aws_access_key_id=broker.access_key_id,
        aws_secret_access_key=broker.secret_access_key,
    )


def fill(broker: SQSServer, queue: str, messages: int) -> None:
    client = boto(broker)
    url = client.create_queue(QueueName=queue)["QueueUrl"]
    for _ in range(messages):
        client.send_message(QueueUrl=url, MessageBody="work")


def metadata(broker: SQSServer, queue: str) -> dict[str, str]:
    return {
        "source": "sqs",
        "queueURL": queue,
        "awsRegion": broker.region,
        "awsEndpoint": broker.endpoint_url,
        "awsAccessKeyID": broker.access_key_id,
        "awsSecretAccessKey": broker.secret_access_key,
        "heartbeatSeconds": "1",
        "sampleSeconds": "0.5",
        "confirmations": "1",
    }


async def failing(keda: Keda, code: grpc.StatusCode) -> str:
    """Wait until GetMetrics fails with `code`; its detail."""
    name = (await keda.spec()).metricName
    details: list[str] = []

    async def so() -> bool:
        try:
            await keda.metrics(name)
        except grpc.aio.AioRpcError as err:
            details.append(err.details() or "")
            return err.code() == code
        return False

    await until(so, seconds=30)
    return details[-1]


async def test_a_broker_that_dies_and_returns_empty_handed_never_scales_anything_down(
    shell: RunShell, broker: SQSServer
) -> None:
    queue = unique("hold")
    await asyncio.to_thread(fill, broker, queue, 7)
    async with shell(ShellSettings(whole=LOCAL, reading=QUICK)) as running:
        keda = Keda(running, pb, metadata(broker, queue))
        await settled(keda, (7.0, 5.0, True))  # the first call may give up: the client library takes seconds to load
        stream = keda.stream()
        assert (await stream.read()).result is True

        broker.kill()
        await asyncio.sleep(3)
        assert await keda.poll() == (7.0, 5.0, True)  # held
        running.clock.forward(125)  # holdSeconds is 120
        detail = await failing(keda, grpc.StatusCode.UNAVAILABLE)
        assert queue in detail or broker.endpoint_url in detail or str(broker.port) in detail
        assert await keda.active()
        async with asyncio.timeout(30):
            assert (await stream.read()).result is True  # KEDA asks no IsActive after a failed GetMetrics

        await asyncio.to_thread(broker.start)  # the queue is gone with its memory
        detail = await failing(keda, grpc.StatusCode.FAILED_PRECONDITION)
        assert queue in detail
        assert await keda.active()

        await asyncio.to_thread(fill, broker, queue, 2)

        await settled(keda, (2.0, 5.0, True))


async def test_a_broker_that_is_there_but_answers_nothing_is_a_timeout(shell: RunShell, broker: SQSServer) -> None:
    queue = unique("frozen")
    await asyncio.to_thread(fill, broker, queue, 3)
    async with shell(ShellSettings(whole=LOCAL, reading=QUICK)) as running:
        keda = Keda(running, pb, metadata(broker, queue))
        await settled(keda, (3.0, 5.0, True))
        broker.pause()
        try:
            started = asyncio.get_running_loop().time()
            for _ in range(20):
                assert await keda.poll() == (3.0, 5.0, True)
            assert asyncio.get_running_loop().time() - started < 10  # no call waits for the broker
            running.clock.forward(125)
            await failing(keda, grpc.StatusCode.UNAVAILABLE)
            assert await keda.active()
        finally:
            broker.resume()

        await settled(keda, (3.0, 5.0, True))


async def test_a_workload_that_first_meets_a_dead_broker_has_a_spec_and_no_number(
    shell: RunShell, broker: SQSServer
) -> None:
    broker.kill()
    async with shell(ShellSettings(whole=LOCAL, reading=QUICK)) as running:
        keda = Keda(running, pb, metadata(broker, "orders"))
        spec = await keda.spec()
        code, _ = await code_of(keda.metrics(spec.metricName))
        assert code == grpc.StatusCode.UNAVAILABLE
        code, _ = await code_of(keda.active())
        assert code == grpc.StatusCode.UNAVAILABLE


async def test_expiry_closes_the_connection_to_the_broker(shell: RunShell, broker: SQSServer) -> None:
    queue = unique("expiry")
    await asyncio.to_thread(fill, broker, queue, 1)
    async with shell(ShellSettings(whole=LOCAL, reading=QUICK | {"client_linger_seconds": 0.5})) as running:
        await settled(Keda(running, pb, metadata(broker, queue)), (1.0, 5.0, True))
        metrics = running.serving.metrics
        assert metrics is not None

        async def clients() -> bytes:
            reader, writer = await asyncio.open_connection(*metrics.split(":"))
            writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
            body = await reader.read()
            writer.close()
            return body

        assert b"scaler_clients 1.0" in await clients()
        running.clock.forward(601)

        async def none() -> bool:
            return b"scaler_clients 0.0" in await clients()

        await until(none)
