"""`serve` loads the sources' client libraries at its start, so that no first reading waits for an import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scaler.plugins import load_libraries, sources
from scaler.settings import Connection, RightsSettings, Settings
from tests.service.conftest import RunShell, ShellSettings
from tests.service.scripted import SOURCE

# Port 1 refuses: the reading fails where a server would have answered, after everything was imported.
TRIGGERS = {
    "sqs": {
        "queueURL": "http://127.0.0.1:1/000000000000/orders",
        "awsRegion": "eu-west-1",
        "awsEndpoint": "http://127.0.0.1:1",
        "awsAccessKeyID": "key",
        "awsSecretAccessKey": "secret",
    },
    "kafka": {"bootstrapServers": "127.0.0.1:1", "consumerGroup": "workers", "topic": "orders"},
    "rabbitmq": {"host": "amqp://guest:guest@127.0.0.1:1/", "queueName": "orders", "mode": "QueueLength", "value": "5"},
    "rabbitmq by management": {
        "source": "rabbitmq",
        "protocol": "http",
        "host": "http://guest:guest@127.0.0.1:1/",
        "queueName": "orders",
        "mode": "QueueLength",
        "value": "5",
    },
    "prometheus": {"serverAddress": "http://127.0.0.1:1", "query": "up", "threshold": "1"},
    "vllm": {"serverAddress": "http://127.0.0.1:1", "namespace": "team-a", "workload": "llama"},
}

# What the first reading imports after `load_libraries`: the names of the distributions' modules, ours left out.
FIRST_READING = """
import asyncio, json, sys, time
from scaler.addresses import AddressGuard
from scaler.errors import SourceError
from scaler.plugins import load_libraries
from scaler.settings import Settings
from scaler.source import SourceContext
from scaler.trigger import parse_trigger

trigger = parse_trigger("team-a", "llama", json.loads(sys.argv[1]), Settings())
if sys.argv[2] == "loaded":
    assert load_libraries([trigger.source_name]) == {}

async def read():
    guard = AddressGuard(private_allowed=True)
    context = SourceContext(clock=time.monotonic, check_address=guard.check)
    outcomes = []
    async with trigger.source.open(trigger.config, context) as client:
        try:
            await client.read([trigger.source.query(trigger.config)], lambda _, outcome: outcomes.append(outcome))
        except SourceError as err:
            outcomes.append(err)
    assert isinstance(outcomes[0], SourceError), outcomes

before = set(sys.modules)
asyncio.run(read())
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(new - set(sys.stdlib_module_names))))
"""


def first_reading_imports(metadata: dict[str, str], *, loaded: bool) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_READING, json.dumps(metadata), "loaded" if loaded else "bare"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout)
    return names


@pytest.mark.parametrize("name", TRIGGERS)
def test_first_reading_imports_no_library_once_they_are_loaded(name: str) -> None:
    metadata = {"source": name} | TRIGGERS[name]
    assert first_reading_imports(metadata, loaded=False), (
        "nothing left to load would be better, and make this pointless"
    )
    assert first_reading_imports(metadata, loaded=True) == []


def test_every_source_names_libraries() -> None:
    assert {name for name, source in sources().items() if not source.libraries} - {"scripted"} == set()


def connection(*names: str) -> Connection:
    source, *also = names
    return Connection(name="c", source=source, also=tuple(also), namespaces=("*",), allow={}, values={})


@pytest.mark.parametrize(
    ("rules", "connections", "expected"),
    [
        pytest.param((RightsSettings(),), {}, None, id="metadata may name any endpoint"),
        pytest.param((RightsSettings(metadata_endpoints=False),), {}, set(), id="nothing may be read"),
        pytest.param(
            (RightsSettings(metadata_endpoints=False),),
            {"orders": connection("kafka"), "gpus": connection("prometheus", "dcgm", "vllm")},
            {"kafka", "prometheus", "dcgm", "vllm"},
            id="connections alone",
        ),
        pytest.param(
            (RightsSettings(namespaces=("lab",)), RightsSettings(metadata_endpoints=False)),
            {"orders": connection("kafka")},
            None,
            id="endpoints in one namespace",
        ),
    ],
)
def test_sources_that_nobody_may_read_are_not_loaded(
    rules: tuple[RightsSettings, ...], connections: dict[str, Connection], expected: set[str] | None
) -> None:
    usable = Settings(rules=rules, connections=connections).usable_sources()
    assert usable == (frozenset(sources()) if expected is None else expected)


async def test_libraries_are_loaded_before_the_service_says_that_it_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: RunShell
) -> None:
    (tmp_path / "pilotlight_test_library.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(SOURCE, "libraries", ("pilotlight_test_library",), raising=False)
    whole = Settings(rules=(RightsSettings(metadata_endpoints=False),), connections={"w": connection("scripted")})
    async with shell(ShellSettings(whole=whole)):
        assert "pilotlight_test_library" in sys.modules
    del sys.modules["pilotlight_test_library"]


def test_library_that_can_not_be_loaded_does_not_keep_the_others_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pilotlight_test_broken.py").write_text("raise OSError('no shared object')")
    (tmp_path / "pilotlight_test_sound.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("pilotlight_test_absent", "pilotlight_test_broken", "pilotlight_test_sound")
    monkeypatch.setattr(SOURCE, "libraries", names, raising=False)
    failed = load_libraries(["scripted"])
    assert {name: type(err) for name, err in failed.items()} == {"pilotlight_test_broken": OSError}
    assert "pilotlight_test_sound" in sys.modules
    del sys.modules["pilotlight_test_sound"]
