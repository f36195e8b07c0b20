"""Every example in deploy/ parses, against the example settings, and says what it means."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from scaler.settings import FileSettings, StateSettings, load_settings, resolve
from scaler.trigger import parse_trigger

EXAMPLES = Path(__file__).parents[1] / "deploy" / "examples"
SETTINGS = EXAMPLES / "settings.yaml"
SCALED_OBJECTS = sorted(path for path in EXAMPLES.glob("*.yaml") if path != SETTINGS)


@pytest.mark.parametrize("path", SCALED_OBJECTS, ids=lambda path: path.stem)
def test_example_scaled_object_is_accepted(path: Path) -> None:
    settings = load_settings(str(SETTINGS))
    document = yaml.safe_load(path.read_text())
    metadata = document["metadata"]
    for trigger in document["spec"]["triggers"]:
        assert trigger["type"] == "external-push"
        assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes strings only"
        parsed = parse_trigger(metadata["namespace"], metadata["name"], trigger["metadata"], settings)
        assert parsed.refusal is None
        assert parsed.warnings == ()


@pytest.mark.parametrize("path", SCALED_OBJECTS, ids=lambda path: path.stem)
def test_example_fallback_never_lowers_the_count(path: Path) -> None:
    fallback = yaml.safe_load(path.read_text())["spec"]["fallback"]
    assert fallback["behavior"] == "currentReplicasIfHigher"


def test_the_example_settings_leave_no_endpoint_to_tenants() -> None:
    parsed = FileSettings.model_validate(yaml.safe_load(SETTINGS.read_text()))
    settings = resolve(parsed, {}, where="example")
    rights = settings.rights("team-a")
    assert not rights.metadata_endpoints
    assert not rights.metadata_credentials


def test_the_example_settings_show_every_section() -> None:
    document = yaml.safe_load(SETTINGS.read_text())
    left_to_defaults = {"reading", "limits", "telemetry"}
    names = {field.alias for field in FileSettings.model_fields.values()}
    assert names == set(document) | left_to_defaults


def test_the_example_settings_show_the_state_section_as_it_is_without_one() -> None:
    section = yaml.safe_load(SETTINGS.read_text())["state"]
    assert set(section) == {field.alias for field in StateSettings.model_fields.values()}
    assert StateSettings.model_validate(section) == StateSettings()
