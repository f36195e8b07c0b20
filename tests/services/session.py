"""Where the services shared by one test run come from: an address in the environment, else docker compose where an
engine answers, else a native server. The first that applies is used; if it fails, the tests that need it fail and say
why.

| service | environment variables (each `host:port` on a machine that the tests may fill with their queues) |
|---|---|
| Kafka | PILOTLIGHT_TEST_KAFKA |
| RabbitMQ | PILOTLIGHT_TEST_RABBITMQ_AMQP, PILOTLIGHT_TEST_RABBITMQ_HTTP, optionally _USER and _PASSWORD |
| Prometheus | PILOTLIGHT_TEST_PROMETHEUS (remote-write receiver on) |
| SQS | PILOTLIGHT_TEST_SQS |
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from tests.services import compose
from tests.services.kafka import Kafka
from tests.services.process import LOOPBACK, ServiceUnavailableError, accepts_connections
from tests.services.prometheus import Prometheus
from tests.services.rabbitmq import GUEST, RabbitMQ
from tests.services.sqs import SQS

if TYPE_CHECKING:
    from collections.abc import Iterator

KAFKA_VARIABLE = "PILOTLIGHT_TEST_KAFKA"
AMQP_VARIABLE = "PILOTLIGHT_TEST_RABBITMQ_AMQP"
RABBITMQ_HTTP_VARIABLE = "PILOTLIGHT_TEST_RABBITMQ_HTTP"
PROMETHEUS_VARIABLE = "PILOTLIGHT_TEST_PROMETHEUS"
SQS_VARIABLE = "PILOTLIGHT_TEST_SQS"


def given_kafka() -> Kafka | None:
    """Return the broker that the environment names, or None."""
    given = _given(KAFKA_VARIABLE)
    return None if given is None else Kafka(f"{given[0]}:{given[1]}")


def given_rabbitmq() -> RabbitMQ | None:
    """Return the broker that the environment names, or None."""
    amqp = _given(AMQP_VARIABLE)
    http = _given(RABBITMQ_HTTP_VARIABLE)
    if amqp is None and http is None:
        return None
    if amqp is None or http is None:
        raise ServiceUnavailableError(f"set both of {AMQP_VARIABLE} and {RABBITMQ_HTTP_VARIABLE}, or neither")
    if amqp[0] != http[0]:
        raise ServiceUnavailableError(f"{AMQP_VARIABLE} and {RABBITMQ_HTTP_VARIABLE} must name one host")
    return RabbitMQ(
        host=amqp[0],
        amqp_port=amqp[1],
        http_port=http[1],
        user=os.environ.get("PILOTLIGHT_TEST_RABBITMQ_USER", GUEST),
        password=os.environ.get("PILOTLIGHT_TEST_RABBITMQ_PASSWORD", GUEST),
    )


def given_prometheus() -> Prometheus | None:
    """Return the server that the environment names, or None."""
    given = _given(PROMETHEUS_VARIABLE)
    return None if given is None else Prometheus(host=given[0], port=given[1])


def given_sqs() -> SQS | None:
    """Return the server that the environment names, or None."""
    given = _given(SQS_VARIABLE)
    return None if given is None else SQS(host=given[0], port=given[1])


COMPOSED_KAFKA = Kafka(f"{LOOPBACK}:{compose.KAFKA_PORT}")
COMPOSED_RABBITMQ = RabbitMQ(host=LOOPBACK, amqp_port=compose.AMQP_PORT, http_port=compose.RABBITMQ_HTTP_PORT)
COMPOSED_PROMETHEUS = Prometheus(host=LOOPBACK, port=compose.PROMETHEUS_PORT)
COMPOSED_SQS = SQS(host=LOOPBACK, port=compose.SQS_PORT)


@contextlib.contextmanager
def composed(service: str) -> Iterator[None]:
    """Run a service of docker-compose.test.yml; stop it at the end, unless it was running before."""
    was_up = compose.is_up(service)
    compose.up(service)
    try:
        yield
    finally:
        if not was_up:
            compose.down(service)


def _given(variable: str) -> tuple[str, int] | None:
    text = os.environ.get(variable)
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise ServiceUnavailableError(f'{variable} is "{text}"; it must be host:port')
    if not accepts_connections(host, int(port)):
        raise ServiceUnavailableError(
            f"nothing accepts connections at {text}, which {variable} names: start it, or unset the variable"
            " (after `make services-up`, `make services-down` removes it)",
        )
    return host, int(port)
