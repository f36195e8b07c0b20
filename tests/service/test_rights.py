"""What namespaces may say in metadata."""

from __future__ import annotations

import pytest

from scaler.errors import NamespaceDenied
from scaler.settings import FileSettings, Settings, resolve
from scaler.trigger import parse_trigger


def settings(*, endpoints: bool, credentials: bool) -> Settings:
    rule = {"namespaces": ["team-a"], "metadataEndpoints": endpoints, "metadataCredentials": credentials}
    return resolve(FileSettings.model_validate({"rights": [rule]}), {}, where="test")


@pytest.mark.parametrize(
    ("host", "endpoints", "credentials", "allowed"),
    [
        ("http://rabbit:15672/", True, False, True),
        ("http://user:secret@rabbit:15672/", True, False, False),
        ("http://user:secret@rabbit:15672/", True, True, True),
        ("http://rabbit:15672/", False, True, False),
    ],
)
def test_userinfo_in_an_endpoint_is_a_credential(host: str, endpoints: bool, credentials: bool, allowed: bool) -> None:
    metadata = {"source": "rabbitmq", "host": host, "queueName": "orders", "mode": "QueueLength", "value": "5"}
    trigger = parse_trigger("team-a", "llama", metadata, settings(endpoints=endpoints, credentials=credentials))
    assert (trigger.refusal is None) is allowed
    assert "secret" not in str(trigger.refusal)


def test_a_namespace_without_a_rule_may_say_nothing() -> None:
    metadata = {"source": "kafka", "bootstrapServers": "kafka:9092", "consumerGroup": "g", "topic": "t"}
    trigger = parse_trigger("team-b", "llama", metadata, settings(endpoints=True, credentials=True))
    assert isinstance(trigger.refusal, NamespaceDenied)
