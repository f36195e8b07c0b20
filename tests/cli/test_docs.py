"""The generated page and the code agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from scaler.cli import build_app
from scaler.plugins import sources
from scaler.reference import sources_page

PAGE = Path(__file__).parents[2] / "docs" / "sources.md"


def test_the_page_of_sources_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == sources_page(), "run `make docs`"


@pytest.mark.parametrize("options", [[], ["--check"], ["--check", "--json"]])
def test_outside_a_source_tree_docs_says_that_it_belongs_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(build_app(), ["docs", *options])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "`pilotlight docs` is for Pilotlight's source tree: run it there, or name a --file"
    ]
    assert not list(tmp_path.iterdir())
    (tmp_path / "docs").mkdir()
    assert CliRunner().invoke(build_app(), ["docs", "--check"]).exit_code == 1
    assert CliRunner().invoke(build_app(), ["docs"]).exit_code == 0
    assert CliRunner().invoke(build_app(), ["docs", "--check"]).exit_code == 0


def test_every_parameter_of_every_source_is_on_the_page() -> None:
    page = sources_page()
    for source in sources().values():
        for parameter in source.parameters:
            assert f"`{parameter.name}`" in page
            assert len(parameter.help) > 5, parameter.name
