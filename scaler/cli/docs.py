"""`pilotlight docs`: write docs/sources.md from the code, or check that it is current."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaler.errors import PilotlightError, quoted

_PAGE = Path("docs/sources.md")


def docs(
    file: Annotated[Path, typer.Option(help="the page to write")] = _PAGE,
    *,
    check: Annotated[bool, typer.Option(help="only compare; exit 1 where the page is not current")] = False,
    json: Annotated[bool, typer.Option("--json", help="print the outcome as JSON")] = False,
) -> None:
    """Write the page of sources and metadata, in a checkout of Pilotlight's source."""
    import json as jsonlib  # noqa: PLC0415

    if file == _PAGE and not Path("pyproject.toml").exists() and not _PAGE.parent.is_dir():
        typer.echo("`pilotlight docs` is for Pilotlight's source tree: run it there, or name a --file", err=True)
        raise typer.Exit(2)

    from scaler.reference import sources_page  # noqa: PLC0415 - loads every source

    page = sources_page()
    current = file.is_file() and file.read_text(encoding="utf-8") == page
    if not check and not current:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(page, encoding="utf-8")
        except OSError as err:
            raise PilotlightError(f"--file {quoted(file)} can't be written: {err.strerror}") from err
    if json:
        typer.echo(jsonlib.dumps({"file": str(file), "current": current, "written": not check and not current}))
    elif check and not current:
        typer.echo(f"{file} is not current: run `make docs`", err=True)
    if check and not current:
        raise typer.Exit(1)
