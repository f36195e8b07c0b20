"""The generated protobuf code is what the protocol files say."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from tests.services import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

GENERATED = "scaler/_generated"


def test_the_generated_code_is_current(tmp_path: Path) -> None:
    names = sorted(path.name for path in (REPOSITORY / "protos").glob("*.proto"))
    assert names == ["externalscaler.proto", "pilotlight.proto"]
    subprocess.run(  # as `make protos` does
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{GENERATED}=protos",
            f"--python_out={tmp_path}",
            f"--pyi_out={tmp_path}",
            f"--grpc_python_out={tmp_path}",
            *(f"{GENERATED}/{name}" for name in names),
        ],
        cwd=REPOSITORY,
        check=True,
        timeout=60,
    )
    written = {path.name: path.read_text() for path in (tmp_path / GENERATED).iterdir()}
    kept = {
        path.name: path.read_text()
        for path in (REPOSITORY / GENERATED).iterdir()
        if path.suffix in {".py", ".pyi"} and path.name != "__init__.py"
    }
    assert kept.keys() == written.keys()
    for name, text in written.items():
        assert kept[name] == text, f"{GENERATED}/{name} is not what protos/ says: run `make protos` and commit it"
