"""The command without a verb."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer


def _tell_version(asked: bool) -> None:
    if not asked:
        return
    try:
        typer.echo(f"pilotlight {version('pilotlight')}")
    except PackageNotFoundError:
        typer.echo("pilotlight, not installed: run from its sources")
    raise typer.Exit


def top(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="which one this is, and exit")
    ] = False,
) -> None:
    """A KEDA external scaler for GPU inference: a service-level objective instead of a threshold."""
