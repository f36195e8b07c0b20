"""The generated page and the code agree."""

from __future__ import annotations

from pathlib import Path

from scaler.plugins import sources
from scaler.reference import sources_page

PAGE = Path(__file__).parents[2] / "docs" / "sources.md"


def test_the_page_of_sources_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == sources_page(), "run `make docs`"


def test_every_parameter_of_every_source_is_on_the_page() -> None:
    page = sources_page()
    for source in sources().values():
        for parameter in source.parameters:
            assert f"`{parameter.name}`" in page
            assert len(parameter.help) > 5, parameter.name
