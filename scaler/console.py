"""A command line whose mistakes are told in one line: what `pilotlight` and `python -m loadgen` share."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, Final, NoReturn, cast

import typer
from pydantic import ValidationError

from scaler.errors import PilotlightError, quoted

# The base of all that typer says of a wrong command line: click's class, or that of a typer with its own copy of click.
_CLICK_ERROR: Final = cast("type[Exception]", typer.BadParameter.__mro__[2])
# A results' reader that can take no more; a pipe that nobody reads is typer's own case.
_FULL: Final = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO})
_INTERRUPTED = 130


def run_app(app: typer.Typer, name: str) -> NoReturn:
    """Run the command and exit.

    What is wrong with the command line, and what Pilotlight raises on purpose, becomes one line and exit code 2.
    """
    try:
        code = app(prog_name=name, standalone_mode=False)
    except PilotlightError as err:
        fail(name, str(err))
    except _CLICK_ERROR as err:
        _explain(name, err)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)
    except OSError as err:
        if err.errno not in _FULL or err.filename is not None:
            raise
        # What is left in the buffer can't be written either; Python would try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        fail(name, f"standard output can't be written: {err.strerror}", code=1)
    sys.exit(code if isinstance(code, int) else 0)


def fail(name: str, text: str, *, code: int = 2) -> NoReturn:
    """Say in one line what is wrong, and exit."""
    typer.echo(f"{name}: {text}", err=True)
    sys.exit(code)


def _explain(name: str, err: Any) -> NoReturn:
    """Tell a mistake of the command line, with the value where typer leaves it out, and exit."""
    if type(err).__name__ == "NoArgsIsHelpError":
        err.show()
        sys.exit(2)
    told = " ".join(err.format_message().rstrip(".").split())
    if isinstance(err.__cause__, ValidationError):
        told += f"; it is {quoted(err.__cause__.errors()[0]['input'])}"
    context = getattr(err, "ctx", None)
    fail(name, f"{told}; see `{name if context is None else context.command_path} --help`")
