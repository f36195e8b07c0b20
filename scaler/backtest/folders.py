"""Folders that results are written to: what is wrong with one is told in one line, and before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from scaler.errors import PilotlightError, quoted


def prepared(option: str, folder: Path, *, draws: bool = True) -> None:
    """Make `folder`, named by the command's `option`, where it is missing.

    `draws`: pictures are written to it. Raises PilotlightError where it can't be written, or nothing can be drawn.
    """
    with written(option, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder):
            pass  # it can be written
    if draws:
        try:
            import matplotlib  # noqa: ICN001, F401, PLC0415 - only to see whether the extra is installed
        except ImportError as err:
            raise PilotlightError(f"{option} needs {err.name}: pip install 'pilotlight[demo]'") from err


@contextmanager
def written(option: str, path: Path) -> Iterator[None]:
    """Raise PilotlightError where a file or folder below `path`, named by `option`, can't be read or written."""
    try:
        yield
    except OSError as err:
        why = err.strerror or type(err).__name__
        if isinstance(err, FileExistsError | NotADirectoryError):
            why = "a file is where a folder should be"
        what = "" if err.filename in (None, str(path)) else f" ({quoted(err.filename)})"
        raise PilotlightError(
            f"{option} {quoted(path)} can't be written: {why}{what}; name a folder that you may write to"
        ) from err
