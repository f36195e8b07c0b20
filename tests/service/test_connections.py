"""Connections: what their settings must say, and how a trigger names one."""

from __future__ import annotations

from typing import Any

import pytest

from scaler.errors import NamespaceDenied, SettingsInvalid, TriggerInvalid
from scaler.plugins import sources
from scaler.settings import FileSettings, Settings, resolve
from scaler.trigger import parse_trigger

RABBIT = {"source": "rabbitmq", "namespaces": ["team-a"], "set": {"host": "http://rabbit:15672/"}}
QUEUE = {"source": "rabbitmq", "queueName": "orders", "mode": "QueueLength", "value": "5"}


def settings(connection: dict[str, Any]) -> Settings:
    return resolve(FileSettings.model_validate({"connections": {"rab": connection}}), {}, where="test")


@pytest.mark.parametrize(
    ("source", "kind"),
    [("rabbitmq", "queues"), ("kafka", "topics"), ("sqs", "queueName"), ("prometheus", "queue"), ("vllm", "topic")],
)
def test_a_kind_that_the_source_does_not_know_never_passes_for_no_restriction(source: str, kind: str) -> None:
    connection = {"source": source, "namespaces": ["team-a"], "allow": {kind: ["orders"]}}
    with pytest.raises(SettingsInvalid, match=rf"connections\.rab\.allow\.{kind}"):
        settings(connection)


@pytest.mark.parametrize("source", sorted(sources()))
def test_every_source_says_what_can_be_restricted(source: str) -> None:
    assert sources()[source].allow_kinds


@pytest.mark.parametrize("key", ["connection", "connectionFromEnv"])
def test_a_connection_may_be_named_from_the_environment(key: str) -> None:
    trigger = parse_trigger("team-a", "llama", QUEUE | {key: "rab"}, settings(RABBIT))
    assert trigger.connection is not None
    assert trigger.refusal is None


@pytest.mark.parametrize("key", ["connection", "connectionFromEnv"])
def test_a_connection_that_is_not_there_is_never_ignored(key: str) -> None:
    metadata = QUEUE | {key: "elsewhere", "host": "http://rabbit:15672/"}
    with pytest.raises(TriggerInvalid, match="host"):  # it would fix the host
        parse_trigger("team-a", "llama", metadata, Settings())
    trigger = parse_trigger("team-a", "llama", QUEUE | {key: "elsewhere"}, Settings())
    assert isinstance(trigger.refusal, NamespaceDenied)


@pytest.mark.parametrize("name", [".", ".."])
def test_names_that_are_steps_of_a_path_are_refused(name: str) -> None:
    with pytest.raises(TriggerInvalid, match="queueName"):
        parse_trigger("team-a", "llama", QUEUE | {"queueName": name, "host": "http://rabbit:15672/"}, Settings())
