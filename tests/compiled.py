"""A copy of the package whose hot modules are machine code, for runs of hours: `python -m tests.compiled FOLDER`.

With FOLDER first on PYTHONPATH the same program runs several times as fast (deploy/compiled.py says how). The figures
are the same to the last bit, which is checked on one run each time something was compiled; `--check WHEEL` checks a
wheel that has machine code in it likewise. Needs a C compiler; whoever has none does without.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from deploy import compiled

ROOT = compiled.ROOT
PROBE = """
import json, pickle
import scaler.simulator.world as world
from scaler.backtest.cases import Case, run
from scaler.core.model import ReplicaStep
from scaler.simulator.baselines import keda_grid
for one in (next(keda_grid()), ReplicaStep(waiting_from=1.0, replicas=2)):
    assert pickle.loads(pickle.dumps(one)) == one and hash(one) == hash(pickle.loads(pickle.dumps(one)))
from scaler.core.decide import Memory, decide
from scaler.core.model import Goals, Sample
from scaler.plugins import policies
for policy in policies().values():  # learned is what a file gives back, where tuples are lists
    if not hasattr(policy, "load"):
        continue
    memory = Memory(state=policy.start())
    for look in range(200):
        waiting = float(look % 50)
        sample = Sample(at_seconds=5.0 * look, metric_value=waiting, active=waiting > 0, waiting=waiting, in_flight=2.0)
        goals = Goals(target_value=1.0, wait_seconds=30.0)
        _, memory = decide(policy, goals, memory, sample=sample, view=None, now_seconds=5.0 * look)
        if look % 7 == 0:
            known = json.loads(json.dumps(policy.dump(memory.state)))
            assert policy.load(known, shift_seconds=0.0) == memory.state
result = run(Case(trace="flash", cold_start_seconds=30.0, scaler="slo", wait_seconds=30.0))
print(world.__file__.endswith(".py"), repr((result.gpu_seconds, result.starts, result.shares)))
"""


def digest() -> str:
    """Of everything that what is compiled depends on."""
    value = hashlib.blake2b(sys.version.encode(), digest_size=16)
    for path in [Path(compiled.__file__), *[ROOT / "scaler" / one for one in compiled.sources()]]:
        value.update(path.read_bytes())
    return value.hexdigest()


def build(folder: Path) -> bool:
    """Fill `folder`; whether anything was compiled anew. Raises where that fails, and leaves nothing half done."""
    known = folder / "digest"
    is_fresh = known.exists() and known.read_text() == digest()
    try:
        if not is_fresh:
            shutil.rmtree(folder, ignore_errors=True)
            compiled.compile_into(folder)
        shutil.copytree(
            ROOT / "scaler", folder / "scaler", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
        )
        if not is_fresh:
            check(folder)
            known.write_text(digest())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return not is_fresh


def check(folder: Path) -> None:
    """That the same run comes out the same with what is compiled in `folder`. Raises RuntimeError where not."""
    said = []
    for path in (folder, ROOT):
        words = [sys.executable, "-c", PROBE]
        environment = {**os.environ, "PYTHONPATH": str(path)}
        done = subprocess.run(words, env=environment, cwd=path, check=True, capture_output=True, text=True)
        said.append(done.stdout.split(" ", 1))
    (is_plain, figures), (is_plain_here, expected) = said
    if (is_plain, is_plain_here) != ("False", "True") or figures != expected:
        raise RuntimeError(f"compiled: {figures}, as it is: {expected}: these must be the same")


def check_wheel(wheel: Path) -> None:
    """That a wheel's machine code gives the same figures as the sources here. Raises RuntimeError where not."""
    with TemporaryDirectory(prefix="pilotlight-") as folder:
        with ZipFile(wheel) as archive:
            archive.extractall(folder)
        check(Path(folder))


def main() -> None:
    """Build a folder, or check a wheel."""
    parser = argparse.ArgumentParser(prog="python -m tests.compiled", description=__doc__)
    parser.add_argument("path", type=Path, help="the folder to fill, or the wheel")
    parser.add_argument("--check", action="store_true", help="the path is a wheel: only check it")
    chosen = parser.parse_args()
    if chosen.check:
        check_wheel(chosen.path.resolve())
        print("the same figures to the last bit", file=sys.stderr)
    else:
        print("compiled" if build(chosen.path.resolve()) else "compiled before", file=sys.stderr)


if __name__ == "__main__":
    main()
