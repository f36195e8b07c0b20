"""Real brokers, the real service as a process, KEDA's calls over real gRPC: from zero to many and back.

The flows are those of KEDA's own end-to-end tests (tests/scalers/…): activation, scale-out, scale-in.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import aio_pika
import grpc
import pytest

from loadgen.endpoints import Endpoint, KafkaEndpoint, RabbitEndpoint, SqsEndpoint
from loadgen.experiment import Experiment, Plan
from loadgen.exporter import PodCollector, PodSeries
from loadgen.keda import Keda, ScaledObject, Trigger, scaled
from loadgen.messages import Message
from loadgen.pace import Pace
from loadgen.senders import open_sender, open_sqs_client
from loadgen.workers import Fleet, cold_start
from scaler.simulator.arrivals import Poisson, Service, generate
from scaler.simulator.rules import KedaSpec
from tests.e2e.conftest import Service as Pilotlight
from tests.services import SQS, Kafka, Prometheus, RabbitMQ, unique

pytestmark = pytest.mark.timeout(180)


@asynccontextmanager
async def sqs_queue(sqs: SQS) -> AsyncIterator[tuple[SqsEndpoint, dict[str, str]]]:
    def endpoint(url: str) -> SqsEndpoint:
        return SqsEndpoint(
            queue_url=url,
            region=sqs.region,
            endpoint_url=sqs.endpoint_url,
            access_key_id=sqs.access_key_id,
            secret_access_key=sqs.secret_access_key,
        )

    async with open_sqs_client(endpoint("")) as client:
        url = (await client.create_queue(QueueName=unique("e2e")))["QueueUrl"]
        yield (
            endpoint(url),
            {
                "source": "sqs",
                "queueURL": url,
                "awsRegion": sqs.region,
                "awsEndpoint": sqs.endpoint_url,
                "awsAccessKeyID": sqs.access_key_id,
                "awsSecretAccessKey": sqs.secret_access_key,
                "sampleSeconds": "0.3",
            },
        )


@asynccontextmanager
async def kafka_topic(kafka: Kafka) -> AsyncIterator[tuple[KafkaEndpoint, dict[str, str]]]:
    topic, group = unique("e2e"), unique("e2e")
    await kafka.create_topic(topic, partitions=6)
    yield (
        KafkaEndpoint(bootstrap_servers=kafka.bootstrap, topic=topic, group=group),
        {
            "source": "kafka",
            "bootstrapServers": kafka.bootstrap,
            "topic": topic,
            "consumerGroup": group,
            "lagThreshold": "3",
            "offsetResetPolicy": "earliest",
            "sampleSeconds": "0.3",
        },
    )


@asynccontextmanager
async def rabbit_queue(rabbitmq: RabbitMQ, protocol: str) -> AsyncIterator[tuple[RabbitEndpoint, dict[str, str]]]:
    endpoint = RabbitEndpoint(url=rabbitmq.amqp_url(), queue=unique("e2e"))
    connection = await aio_pika.connect(endpoint.url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(endpoint.queue, durable=True)
        yield (
            endpoint,
            {
                "source": "rabbitmq",
                "host": rabbitmq.amqp_url() if protocol == "amqp" else rabbitmq.http_url("/"),
                "queueName": endpoint.queue,
                "mode": "QueueLength",
                "value": "3",
                "sampleSeconds": "0.3",
            },
        )
        await queue.delete(if_unused=False, if_empty=False)


async def work_off(service: Pilotlight, endpoint: Endpoint, metadata: Mapping[str, str]) -> Experiment:
    """Fifty requests within ten seconds to pods that take two seconds each; five times as fast as real time."""
    load = list(generate(Poisson(rate_per_second=5), Service(mean_seconds=2), random.Random(5), 10.0))
    keda = KedaSpec(max_replicas=6, polling_seconds=5, cooldown_seconds=10)
    plan = Plan(
        endpoint=endpoint,
        arrivals=load,
        scaled_object=ScaledObject(
            namespace="e2e", name=unique("llama"), triggers=(Trigger(metadata=dict(metadata)),), keda=keda
        ),
        scaler_address=service.grpc,
        hints_address=service.hints,
        phases=cold_start(5.0),
        speed=5,
        settle_seconds=400,
    )
    experiment = Experiment(plan)
    async with asyncio.timeout(150):
        await experiment.run()
    return experiment


def check(experiment: Experiment) -> None:
    summary = experiment.summary()
    assert summary.served == summary.requests > 30
    assert summary.returned_to_zero
    assert 1 < summary.most_replicas <= 6
    changes = scaled(experiment.events)
    assert changes[0][1:] == (0, 1)
    assert changes[-1][2] == 0
    assert {by for by, _, _ in changes} >= {"hpa", "poll"}
    # Before the first reading there may be none: a client loads, a group or queue is new to its broker.
    woken_at_seconds = next(event.at_seconds for event in experiment.events if event.kind == "scaled")
    late = [event for event in experiment.events if event.kind == "failed" and event.at_seconds > woken_at_seconds]
    assert late == []


async def test_sqs_wakes_bursts_and_sleeps(service: Pilotlight, sqs: SQS) -> None:
    async with sqs_queue(sqs) as (endpoint, metadata):
        check(await work_off(service, endpoint, metadata))


async def test_kafka_wakes_bursts_and_sleeps(service: Pilotlight, kafka: Kafka) -> None:
    async with kafka_topic(kafka) as (endpoint, metadata):
        check(await work_off(service, endpoint, metadata))


@pytest.mark.parametrize("protocol", ["amqp", "http"])
async def test_rabbitmq_wakes_bursts_and_sleeps(service: Pilotlight, rabbitmq: RabbitMQ, protocol: str) -> None:
    async with rabbit_queue(rabbitmq, protocol) as (endpoint, metadata):
        if protocol == "amqp":  # which does not see what is being worked on: the last replica goes early
            metadata["value"] = "1"
        check(await work_off(service, endpoint, metadata))


@asynccontextmanager
async def controlled(
    service: Pilotlight, metadata: Mapping[str, str], **settings: float
) -> AsyncIterator[tuple[Keda, Fleet]]:
    """KEDA's loops over pods that do nothing, ten times as fast as real time."""
    pace = Pace(speed=10)
    spec = KedaSpec(polling_seconds=5, cooldown_seconds=5, **settings)  # type: ignore[arg-type]  # a table's numbers
    triggers = (Trigger(metadata=dict(metadata)),)
    scaled_object = ScaledObject(namespace="e2e", name=unique("drill"), triggers=triggers, keda=spec)
    async with (
        Fleet(None, pace, random.Random(1)) as fleet,
        grpc.aio.insecure_channel(service.grpc) as channel,
    ):
        keda = Keda(scaled_object, fleet, channel, pace)
        task = asyncio.create_task(keda.run())
        try:
            async with asyncio.timeout(150):
                yield keda, fleet
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for happens in other servers
        await asyncio.sleep(0.05)


async def polls(keda: Keda, number: int) -> None:
    """Wait until KEDA has asked so many times more."""
    asked = keda.counts["IsActive"]
    await until(lambda: keda.counts["IsActive"] >= asked + number)


async def test_kedas_sqs_flow(service: Pilotlight, sqs: SQS) -> None:
    """queueLength 1, activation 5, max 2: four messages leave it at zero, ten bring two, a purge none."""
    async with sqs_queue(sqs) as (endpoint, metadata), open_sender(endpoint) as sender:
        metadata |= {"queueLength": "1", "activationQueueLength": "5"}
        async with controlled(service, metadata, max_replicas=2) as (keda, fleet):
            await sender.send([Message(str(index), 0.0, 1.0) for index in range(4)])
            await polls(keda, 8)
            assert fleet.scale().spec_replicas == 0
            await sender.send([Message(str(index), 0.0, 1.0) for index in range(6)])
            await until(lambda: fleet.scale().spec_replicas == 2)
            async with open_sqs_client(endpoint) as client:
                await client.purge_queue(QueueUrl=endpoint.queue_url)
            await until(lambda: fleet.scale().spec_replicas == 0)


async def test_kedas_prometheus_flow(service: Pilotlight, prometheus: Prometheus) -> None:
    """Activation 5, threshold 10: a value of 4 leaves it at zero, 40 brings four, 0 none."""
    name = unique("requests").replace("-", "_")
    metadata = {
        "source": "prometheus",
        "serverAddress": prometheus.url,
        "query": f"sum({name})",
        "threshold": "10",
        "activationThreshold": "5",
        "sampleSeconds": "0.3",
    }
    await asyncio.to_thread(prometheus.push, name, 4.0)
    async with controlled(service, metadata, max_replicas=6) as (keda, fleet):
        await polls(keda, 8)
        assert fleet.scale().spec_replicas == 0
        await asyncio.to_thread(prometheus.push, name, 40.0)
        await until(lambda: fleet.scale().spec_replicas == 4)
        await asyncio.to_thread(prometheus.push, name, 0.0)
        await until(lambda: fleet.scale().spec_replicas == 0)


def exported_samples(pods: list[PodSeries]) -> list[tuple[str, Mapping[str, str], float]]:
    """What a scrape of the exporter would give."""
    return [
        (sample.name, {key: value for key, value in sample.labels.items() if value}, sample.value)
        for family in PodCollector(lambda: pods).collect()
        for sample in family.samples
    ]


async def test_busy_gpus_of_the_exporter_scale_out(service: Pilotlight, prometheus: Prometheus) -> None:
    """The DCGM preset on the exporter's own series: two GPUs at 95 % against a target of 60 % want four pods."""
    namespace = unique("ns")
    metadata = {
        "source": "dcgm",
        "serverAddress": prometheus.url,
        "namespace": namespace,
        "pod": "pod-.*",
        "threshold": "60",
        "minReplicas": "1",
        "sampleSeconds": "0.3",
    }
    pods = [PodSeries(namespace=namespace, pod=f"pod-{index}", gpu_share=0.95, gpu=index) for index in range(2)]
    await asyncio.to_thread(prometheus.push_many, exported_samples(pods))
    async with controlled(service, metadata, min_replicas=2, max_replicas=6) as (_, fleet):
        await until(lambda: fleet.scale().spec_replicas == 4)
