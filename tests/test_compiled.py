"""What is handed to mypyc, run without it: same figures, pickled and subscripted as the sources. Needs no compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import compiled
from tests.compiled import PROBE

BY_USERS = """
import pickle
from typing import Any
from scaler.core.decide import Memory, Policy, Proposal
from scaler.core.model import Decision, Sample
said = (Memory[int], Policy[Any], Proposal[str])
for one in (Sample(at_seconds=1.0, metric_value=2.0, active=True), Memory(state=3)):
    assert pickle.loads(pickle.dumps(one)) == one
a, b = (Decision(at_seconds=1.0, active=True, metric_value=2.0, target_value=1.0, desired_replicas=2) for _ in "ab")
assert a == b and hash(a) == hash(b) and "desired_replicas=2" in repr(a)
"""


def said_with(package: Path, words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", words],
        env={"PYTHONPATH": str(package)},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def test_what_is_compiled_behaves_as_its_source(tmp_path: Path) -> None:
    shutil.copytree(compiled.ROOT / "scaler", tmp_path / "scaler", ignore=shutil.ignore_patterns("__pycache__"))
    for one in compiled.sources():
        path = tmp_path / "scaler" / one
        path.write_text(compiled.compilable(path.read_text()))
    assert said_with(tmp_path, PROBE) == said_with(compiled.ROOT, PROBE)
    said_with(tmp_path, BY_USERS)


def test_the_hot_modules_are_among_what_is_compiled() -> None:
    found = {str(path) for path in compiled.sources()}
    assert {"core/decide.py", "core/estimate.py", "core/holds.py", "policies/slo.py", "simulator/world.py"} <= found


@pytest.mark.parametrize("line", ["slots=True", "frozen=True", "Generic", "value_class"])
def test_nothing_is_left_of_what_mypyc_can_not_do(line: str) -> None:
    for one in compiled.sources():
        text = compiled.compilable((compiled.ROOT / "scaler" / one).read_text())
        used = [kept for kept in text.splitlines() if line in kept and not kept.startswith("from typing")]
        assert not used, f"{one}: {used}"
