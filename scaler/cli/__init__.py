"""The `pilotlight` command. One file = one verb: `scaler/cli/serve.py` holds `serve`, a typer command function.

A verb's module is imported to list it, so it imports what is heavy inside its function. A verb with verbs of
its own exposes a `typer.Typer` under its name instead of a function.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def build_app() -> typer.Typer:
    """The command with every verb found in this folder."""
    import typer  # noqa: PLC0415 - takes a part of a second, in which `main` answers Ctrl-C

    from scaler.cli._top import top  # noqa: PLC0415 - as above

    app = typer.Typer(
        name="pilotlight",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.callback()(top)  # keeps verbs as verbs even where there is only one
    for info in pkgutil.iter_modules(__path__):
        if info.name.startswith("_"):
            continue
        verb = getattr(importlib.import_module(f"{__name__}.{info.name}"), info.name)
        if isinstance(verb, typer.Typer):
            app.add_typer(verb, name=info.name)
        else:
            app.command(name=info.name)(verb)
    return app


def main() -> None:
    """Run the command; what is wrong becomes one line and exit code 2."""
    try:
        from scaler.console import run_app  # noqa: PLC0415 - as above

        run_app(build_app(), "pilotlight")
    except KeyboardInterrupt:  # while all that is imported; from then on `run_app` answers it
        sys.exit(130)
