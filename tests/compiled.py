"""The simulator and the policy as machine code, for runs of hours: `python -m tests.compiled FOLDER`.

FOLDER gets a copy of the package in which mypyc has compiled the pure modules that a backtest spends its time in; with
FOLDER first on PYTHONPATH the same program runs about four times as fast. The figures are the same to the last bit,
which is checked on one run each time something was compiled. The modules are the ones the service runs, with three
changes: `slots=True` and type parameters of dataclasses are left out, which mypyc can't compile (its classes have slots
anyway), and dataclasses aren't frozen, since a frozen one is slow to make. simulator/arrivals.py stays as it is. Needs
a C compiler; whoever has none does without.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATTERNS = ("core/*.py", "simulator/*.py", "policies/slo.py")
AS_THEY_ARE = frozenset({"__init__.py", "arrivals.py", "answers.py", "warm_pool.py"})
SETUP = """
from setuptools import setup
from mypyc.build import mypycify
setup(name="compiled", packages=[], ext_modules=mypycify({modules!r}, opt_level="2"))
"""
PROBE = """
import scaler.simulator.world as world
from scaler.backtest.cases import Case, run
result = run(Case(trace="flash", cold_start_seconds=30.0, scaler="slo", wait_seconds=30.0))
print(world.__file__.endswith(".py"), repr((result.gpu_seconds, result.starts, result.shares)))
"""


def sources() -> list[Path]:
    """What is compiled, relative to the package."""
    package = ROOT / "scaler"
    found = [path for pattern in PATTERNS for path in sorted(package.glob(pattern)) if path.name not in AS_THEY_ARE]
    return [path.relative_to(package) for path in found]


def digest() -> str:
    """Of everything that what is compiled depends on."""
    value = hashlib.blake2b(sys.version.encode(), digest_size=16)
    for path in [Path(__file__), *[ROOT / "scaler" / one for one in sources()]]:
        value.update(path.read_bytes())
    return value.hexdigest()


def build(folder: Path) -> bool:
    """Fill `folder`; whether anything was compiled anew. Raises CalledProcessError where that fails."""
    known, work = folder / "digest", folder / "work"
    fresh = known.exists() and known.read_text() == digest()
    package = folder / "scaler"
    if not fresh:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ROOT / "scaler", work / "scaler", ignore=shutil.ignore_patterns("__pycache__"))
        modules = [str(Path("scaler") / one) for one in sources()]
        for module in modules:
            path = work / module
            text = re.sub(r"(, )?slots=True(, )?", _without_slots, path.read_text())
            # That nobody sets a field later, mypy has seen.
            text = text.replace("frozen=True", "unsafe_hash=True")
            # Type parameters: classes without them, and whoever names them.
            text = re.sub(
                r"\((Generic|Protocol)\[StateT\]\)", lambda one: "" if one[1] == "Generic" else "(Protocol)", text
            )
            text = re.sub(r"\b(Proposal|Memory|Policy)\[\w+\]", r"\1", text)
            text = re.sub(r"(: |-> )StateT\b", r"\1Any", text)
            path.write_text(text.replace("import Generic, Protocol, TypeVar", "import Any, Protocol, TypeVar"))
        (work / "setup.py").write_text(SETUP.format(modules=modules))
        words = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(words, cwd=work, check=True, stdout=sys.stderr)
    shutil.copytree(ROOT / "scaler", package, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    if not fresh:
        for library in [*work.glob("*.so"), *(work / "scaler").rglob("*.so")]:
            shutil.copy(library, folder / library.relative_to(work))
        shutil.rmtree(work)
        check(folder)
        known.write_text(digest())
    return not fresh


def check(folder: Path) -> None:
    """That the same run comes out the same. Raises RuntimeError where not."""
    said = []
    for path in (folder, ROOT):
        words = [sys.executable, "-c", PROBE]
        environment = {**os.environ, "PYTHONPATH": str(path)}
        done = subprocess.run(words, env=environment, cwd=path, check=True, capture_output=True, text=True)
        said.append(done.stdout.split(" ", 1))
    (compiled, figures), (plain, expected) = said
    if (compiled, plain) != ("False", "True") or figures != expected:
        raise RuntimeError(f"compiled: {figures}, as it is: {expected}: these must be the same")


def _without_slots(found: re.Match[str]) -> str:
    return ", " if found[1] and found[2] else ""


if __name__ == "__main__":
    made = build(Path(sys.argv[1]).resolve())
    print("compiled" if made else "compiled before", file=sys.stderr)
