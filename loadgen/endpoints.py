"""Where messages go: one frozen description per kind of broker, shared by senders and consumers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

# Real seconds for one call to a broker: loadgen must fail rather than hang.
BROKER_TIMEOUT_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SqsEndpoint:
    """A queue by URL. `endpoint_url` None: AWS itself; without keys the environment's credentials count.

    `visibility_seconds` must outlast the longest service time, in real seconds.
    """

    queue_url: str
    region: str = "us-east-1"
    endpoint_url: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    visibility_seconds: int = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaEndpoint:
    """A topic and the group that consumes it."""

    bootstrap_servers: str
    topic: str
    group: str = "workers"


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitEndpoint:
    """A queue of a vhost; the URL may hold a password."""

    url: str = field(repr=False)
    queue: str


class BrokerFailed(Exception):
    """A broker could not be reached or refused; the message names it, never a password."""


Endpoint = SqsEndpoint | KafkaEndpoint | RabbitEndpoint


def described(endpoint: Endpoint) -> str:
    """The endpoint for people, without credentials."""
    match endpoint:
        case SqsEndpoint():
            return f"SQS queue {endpoint.queue_url}"
        case KafkaEndpoint():
            return f"Kafka topic {endpoint.topic} at {endpoint.bootstrap_servers}"
        case RabbitEndpoint():
            parts = urlsplit(endpoint.url)
            return f"RabbitMQ queue {endpoint.queue} at {parts.hostname}:{parts.port or 5672}"


@contextmanager
def told(endpoint: Endpoint) -> Iterator[None]:
    """Whatever a client library raises becomes BrokerFailed with its kind; its text may hold credentials."""
    try:
        yield
    except BrokerFailed:
        raise
    except Exception as err:
        raise BrokerFailed(f"{described(endpoint)}: {type(err).__name__}; is it there, and may we use it?") from err


def parse_endpoint(url: str) -> Endpoint:
    """The endpoint that a URL names.

    `sqs+https://sqs.eu-west-1.amazonaws.com/123456789012/orders?region=eu-west-1` (keys from the environment),
    `kafka://broker:9092/orders?group=workers`, `amqp://user:password@broker:5672/vhost?queue=orders`.
    Raises ValueError that says what is missing, never with the password.
    """
    parts = urlsplit(url)
    options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    path = parts.path.strip("/")
    match parts.scheme:
        case "sqs+http" | "sqs+https":
            server = f"{parts.scheme.removeprefix('sqs+')}://{parts.netloc}"
            if not path:
                raise ValueError("queue URL: expected sqs+https://server/account/name")
            return SqsEndpoint(
                queue_url=f"{server}/{path}", region=options.get("region", "us-east-1"), endpoint_url=server
            )
        case "kafka":
            if not path or not parts.netloc:
                raise ValueError("queue URL: expected kafka://server:port/topic?group=name")
            return KafkaEndpoint(
                bootstrap_servers=parts.netloc, topic=unquote(path), group=options.get("group", "workers")
            )
        case "amqp" | "amqps":
            if "queue" not in options:
                raise ValueError("queue URL: expected amqp://user:password@server:port/vhost?queue=name")
            return RabbitEndpoint(url=parts._replace(query="").geturl(), queue=options["queue"])
        case _:
            raise ValueError("queue URL: must begin with sqs+http://, sqs+https://, kafka://, amqp:// or amqps://")
