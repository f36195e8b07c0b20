"""docs/operations.md names every setting and every metric, and nothing that is not there; so do the alerts."""

from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from scaler.__main__ import Serving, serve
from scaler.cli.serve import serve as serve_command
from scaler.settings import FileSettings, ServerSettings, Settings
from tests.services import install

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
ALERTS = ROOT / "deploy" / "alerts.yaml"
_SUFFIXES = ("_bucket", "_count", "_sum")


def sections(kind: Any) -> Iterator[type[BaseModel]]:
    """The settings classes in a field's type, however deep."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from sections(part)


def fields(kind: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every field of the settings file as a path of camelCase names."""
    for field in kind.model_fields.values():
        name = (*path, field.alias or "")
        yield name
        for section in sections(field.annotation):
            yield from fields(section, name)


FIELDS = sorted(set(fields(FileSettings)))


def test_the_walk_over_the_settings_finds_what_is_nested() -> None:
    assert {("server", "tls", "certFile"), ("rights", "privateAddresses"), ("connections", "set")} <= set(FIELDS)


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_every_setting_is_named(path: tuple[str, ...]) -> None:
    # Leaves of tls, clients and secrets' values stand in the row of what holds them.
    whole = f"`{'.'.join(path)}`"
    leaf = path[-1]
    assert whole in PAGE or f"**{leaf}**" in PAGE or (len(path) > 2 and re.search(rf"[`{{]{leaf}[`:]", PAGE))


def test_every_setting_that_is_named_exists_with_its_default() -> None:
    rows = re.findall(r"^\| `([a-z]+\.\w+|stateFolder)` \| `?([^|`]*)`? \|", PAGE, re.MULTILINE)
    assert len(rows) > 40
    known = {".".join(path) for path in FIELDS}
    file = FileSettings()
    for name, default in rows:
        assert name in known
        section, _, leaf = name.rpartition(".")
        if not re.fullmatch(r"[\d.:]+|true|false", default) or section in {"rights", "connections"}:
            continue
        values = getattr(file, section).model_dump(by_alias=True)
        value = values[leaf]
        shown = str(value).lower() if isinstance(value, bool) else f"{value:.10g}" if type(value) is float else value
        assert str(shown) == default, name


def test_every_option_of_serve_is_named() -> None:
    parameters = inspect.signature(serve_command).parameters
    options = {f"--{name.replace('_', '-')}" for name in parameters}
    assert len(options) > 5
    for option in options:
        assert f"`{option}" in PAGE


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all series of a running service."""
    return asyncio.run(_scraped(str(tmp_path_factory.mktemp("state"))))


async def _scraped(folder: str) -> set[str]:
    here = "127.0.0.1:0"
    server = ServerSettings(listen=here, hints_listen=here, metrics_listen=here)
    stop, where = asyncio.Event(), asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group, asyncio.timeout(30):
        group.create_task(serve(Settings(server=server, state_folder=folder), ready=where.set_result, stop=stop))
        serving: Serving = await where
        assert serving.metrics is not None
        reader, writer = await asyncio.open_connection(*serving.metrics.split(":"))
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        stop.set()
    return set(re.findall(r"^# TYPE (scaler_\w+) ", text, re.MULTILINE))


def test_every_metric_is_named_and_every_metric_that_is_named_exists(metrics: set[str]) -> None:
    assert "scaler_failing" in metrics
    assert "scaler_state_failed_commits" in metrics
    assert set(re.findall(r"`(scaler_\w+)`", PAGE)) == metrics


def test_the_alerts_ask_for_metrics_that_exist(metrics: set[str]) -> None:
    asked = set(re.findall(r"scaler_\w+", ALERTS.read_text(encoding="utf-8")))
    assert len(asked) > 5
    for name in asked:
        base = next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)
        assert name in metrics or base in metrics


def test_the_alerts_fire_when_they_should_and_stay_quiet_else() -> None:
    promtool = Path(install.prometheus()).with_name("promtool")
    for command in (["check", "rules", str(ALERTS)], ["test", "rules", str(ALERTS.with_name("alerts_test.yaml"))]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
