"""`source: rabbitmq`: RabbitMQ by AMQP or its management API, with the metadata of KEDA's `rabbitmq`.

By AMQP a passive declaration tells how many messages wait, at once. The management API tells more (messages being
worked on, rates, totals; expressions over many queues) but lags by its statistics interval, 5 s by default.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Hashable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from scaler.core.model import ReplicaView, Sample
from scaler.parameters import Values
from scaler.source import Client, Source, SourceContext
from scaler.sources.rabbitmq.config import PARAMETERS, RabbitConfig, parse, path_segment
from scaler.sources.rabbitmq.listing import QueueQuery
from scaler.sources.rabbitmq.reading import Reading
from scaler.sources.rabbitmq.reading import sample as interpret


class RabbitMq(Source[RabbitConfig, QueueQuery, Reading]):
    """Queue lengths and rates; one client per server and credentials (by AMQP: and virtual host)."""

    name = "rabbitmq"
    summary = "RabbitMQ: messages waiting and in flight, rates; by AMQP or the management API"
    keda_trigger = "rabbitmq"
    needs_extra = "rabbitmq"
    libraries = (f"{__name__}.amqp", f"{__name__}.management")
    allow_kinds = ("vhost", "queue")
    sample_seconds = 1.0
    batched = True
    parameters = PARAMETERS

    def parse(self, values: Values) -> RabbitConfig:
        """KEDA's rules; see `config.parse`."""
        return parse(values)

    def endpoint(self, config: RabbitConfig) -> Hashable:
        """Server and credentials; an AMQP connection belongs to one virtual host."""
        return (config.server, config.vhost) if config.server.is_amqp else config.server

    def query(self, config: RabbitConfig) -> QueueQuery:
        """The queue, or the expression."""
        page_size = config.page_size if config.regex else None
        return QueueQuery(config.vhost, config.queue, page_size, config.timeout_seconds)

    def identity(self, config: RabbitConfig) -> str:
        """`host:port/base/vhost/queue`, the last two percent-encoded."""
        return f"{config.server.place}/{path_segment(config.vhost)}/{path_segment(config.queue)}"

    def object_name(self, config: RabbitConfig) -> str:
        """The queue's name, or the expression."""
        return config.queue

    def resources(self, config: RabbitConfig) -> Mapping[str, tuple[str, ...]]:
        """Virtual host and queue. What an expression matches is held against `allow` when it is read."""
        found = {"vhost": (config.vhost,)}
        return found if config.regex else found | {"queue": (config.queue,)}

    def target(self, config: RabbitConfig) -> float:
        """`value`, or `queueLength`."""
        return config.value

    def open(self, config: RabbitConfig, context: SourceContext) -> AbstractAsyncContextManager[Client]:
        """A client that connects when it first reads."""
        return _open(config, context)

    def sample(
        self,
        config: RabbitConfig,
        reading: Reading,
        *,
        now_seconds: float,  # noqa: ARG002 - the numbers are of the time of reading
        view: ReplicaView | None,
    ) -> Sample:
        """KEDA's mode over the reading; see `reading.measure` for where it differs."""
        return interpret(config, reading, view)

    def has_counters(self, config: RabbitConfig) -> bool:
        """The management API does; AMQP tells what waits."""
        return not config.server.is_amqp

    def warnings(self, config: RabbitConfig) -> tuple[str, ...]:
        """What works but looks odd."""
        return config.warnings


@asynccontextmanager
async def _open(config: RabbitConfig, context: SourceContext) -> AsyncIterator[Client]:
    """The client libraries load here, on first use, and in a thread: they take a fifth of a second."""
    name = "amqp" if config.server.is_amqp else "management"
    module = await asyncio.to_thread(importlib.import_module, f"{__name__}.{name}")
    opened: AbstractAsyncContextManager[Client] = (
        module.open_amqp(config.server, config.vhost, context)
        if config.server.is_amqp
        else module.open_management(config.server, context)
    )
    async with opened as client:
        yield client


SOURCE = RabbitMq()
