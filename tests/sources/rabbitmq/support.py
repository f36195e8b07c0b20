"""Triggers as users write them, and reading them once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from scaler.addresses import AddressGuard
from scaler.core.model import ReplicaView, Sample
from scaler.errors import SourceError
from scaler.parameters import Secret, raise_problems, read_values, unknown_keys
from scaler.source import Client, SourceContext
from scaler.sources.rabbitmq import SOURCE
from scaler.sources.rabbitmq.config import RabbitConfig
from scaler.sources.rabbitmq.reading import Reading
from tests.services.process import PATIENT_SECONDS


def config_of(metadata: Mapping[str, str], fixed: Mapping[str, str | Secret] | None = None) -> RabbitConfig:
    """The configuration of `metadata`. Raises TriggerInvalid with every problem."""
    values = read_values(SOURCE.parameters, metadata, fixed=fixed)
    values.problems.extend(unknown_keys(SOURCE.parameters, metadata))
    config = SOURCE.parse(values)
    raise_problems(values, subject="trigger")
    return config


def context_of(**options: Any) -> SourceContext:
    """A context that lets tests reach loopback, and that is patient: a busy machine stands still for seconds."""
    guard = AddressGuard(private_allowed=options.pop("private_allowed", True))
    return SourceContext(
        clock=options.pop("clock", time.monotonic),
        check_address=guard.check,
        judge_address=guard.judge,
        read_timeout_seconds=options.pop("read_timeout_seconds", PATIENT_SECONDS),
        connect_timeout_seconds=options.pop("connect_timeout_seconds", PATIENT_SECONDS),
        **options,
    )


@dataclass
class Delivered:
    """What one read handed over."""

    outcomes: dict[Hashable, object] = field(default_factory=dict)

    def __call__(self, query: Hashable, outcome: object) -> None:
        assert query not in self.outcomes, "delivered twice"
        self.outcomes[query] = outcome


@asynccontextmanager
async def opened(config: RabbitConfig, **options: Any) -> AsyncIterator[Client]:
    """The client of one trigger."""
    async with SOURCE.open(config, context_of(**options)) as client:
        yield client


async def outcomes(client: Client, configs: Sequence[RabbitConfig]) -> list[object]:
    """One read of all triggers: a Reading or a SourceError each."""
    queries = [SOURCE.query(config) for config in configs]
    delivered = Delivered()
    await client.read(list(dict.fromkeys(queries)), delivered)
    assert set(delivered.outcomes) == set(queries)
    return [delivered.outcomes[query] for query in queries]


async def outcome(client: Client, config: RabbitConfig) -> object:
    """One read of one trigger."""
    return (await outcomes(client, [config]))[0]


async def sampled(client: Client, config: RabbitConfig, view: ReplicaView | None = None) -> Sample:
    """One read of one trigger, interpreted. Raises what was delivered as an error."""
    found = await outcome(client, config)
    if isinstance(found, SourceError):
        raise found
    assert isinstance(found, Reading)
    return SOURCE.sample(config, found, now_seconds=found.at_seconds, view=view)
