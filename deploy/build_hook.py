"""The build with machine code in it: `HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 pip wheel .` (pyproject.toml names this file).

Without that variable the wheel is pure Python and this file is not looked at. With it the wheel is one for this
platform and this Python: it has every source of the pure one, and beside those that deploy/compiled.py compiles the
extension modules, which Python prefers.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledBuildHook(BuildHookInterface[Any]):
    """Adds the extension modules to a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, before the wheel is put together; an editable install stays pure."""
        if version == "editable":
            return
        self._made = TemporaryDirectory(prefix="pilotlight-")
        folder = Path(self._made.name)
        # The build runs this file from somewhere else, so its neighbour can't be imported.
        subprocess.run([sys.executable, Path(self.root) / "deploy" / "compiled.py", folder], check=True)  # noqa: S603 - our own words
        for path in folder.rglob("*"):
            if path.is_file():
                build_data["force_include"][str(path)] = str(path.relative_to(folder))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - its shape
        """The wheel has its copies."""
        if version != "editable":
            self._made.cleanup()
