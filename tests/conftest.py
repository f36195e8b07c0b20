"""Services shared by one test run. Each starts when the first test asks for it: a run of unit tests starts none.

They are shared: give queues, topics, groups and series names of your own (`tests.services.unique`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import HealthCheck, settings

from tests.services import compose, session
from tests.services.kafka import Kafka, KafkaCluster, start_kafka
from tests.services.prometheus import Prometheus, start_prometheus
from tests.services.rabbitmq import RabbitMQ, RabbitMQBroker, start_rabbitmq
from tests.services.sqs import SQS, start_sqs

if TYPE_CHECKING:
    from collections.abc import Iterator

Service = TypeVar("Service")

# How long an example takes says nothing on a machine that starts brokers meanwhile. A run of the tests draws the same
# examples each time, so that what fails is the change at hand; others are looked for by `make properties`.
settings.register_profile("pilotlight", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("properties", settings.get_profile("pilotlight"), derandomize=False, print_blob=True)
settings.load_profile("pilotlight")


def pytest_configure() -> None:
    """Keep pytest-asyncio 1.5 from making an event loop that it never closes.

    Before the first asynchronous test it asks for the current loop, to restore it later, and asyncio makes one, but not
    once a loop was set, be it None. The warning of the unclosed loop fails some test at random.
    """
    asyncio.set_event_loop(None)


@pytest.fixture(scope="session")
def kafka_cluster() -> Iterator[KafkaCluster]:
    """One native broker with every listener (TLS, SASL, access rules); shared, so don't stop it."""
    with start_kafka() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[Kafka]:
    """A Kafka broker's plaintext address."""
    yield from _shared(
        request, session.given_kafka(), composed=("kafka", session.COMPOSED_KAFKA), native=("kafka_cluster", Kafka)
    )


@pytest.fixture(scope="session")
def rabbitmq_broker() -> Iterator[RabbitMQBroker]:
    """One native broker with TLS and OAuth 2; shared, so don't stop it."""
    with start_rabbitmq(oauth=True) as broker:
        yield broker


@pytest.fixture(scope="session")
def rabbitmq(request: pytest.FixtureRequest) -> Iterator[RabbitMQ]:
    """A RabbitMQ broker's AMQP and management addresses."""
    given = session.given_rabbitmq()
    yield from _shared(
        request, given, composed=("rabbitmq", session.COMPOSED_RABBITMQ), native=("rabbitmq_broker", RabbitMQ)
    )


@pytest.fixture(scope="session")
def _native_prometheus() -> Iterator[Prometheus]:
    with start_prometheus() as server:
        yield server


@pytest.fixture(scope="session")
def prometheus(request: pytest.FixtureRequest) -> Iterator[Prometheus]:
    """A Prometheus server that takes pushed samples."""
    given = session.given_prometheus()
    yield from _shared(
        request, given, composed=("prometheus", session.COMPOSED_PROMETHEUS), native=("_native_prometheus", Prometheus)
    )


@pytest.fixture(scope="session")
def _native_sqs() -> Iterator[SQS]:
    with start_sqs() as server:
        yield server


@pytest.fixture(scope="session")
def sqs(request: pytest.FixtureRequest) -> Iterator[SQS]:
    """An SQS server."""
    yield from _shared(
        request, session.given_sqs(), composed=("localstack", session.COMPOSED_SQS), native=("_native_sqs", SQS)
    )


def _shared(
    request: pytest.FixtureRequest,
    given: Service | None,
    *,
    composed: tuple[str, Service],
    native: tuple[str, type[Service]],
) -> Iterator[Service]:
    """Yield what the environment names, else what docker compose runs, else the native server."""
    if given is not None:
        yield given
    elif compose.engine_answers():
        name, service = composed
        with session.composed(name):
            yield service
    else:
        fixture, kind = native
        server = request.getfixturevalue(fixture)
        assert isinstance(server, kind)
        yield server
