"""How long one decision of `slo` takes: as JSON, with the package that Python finds first.

`python -m tests.bench decision` runs it twice, on the sources and on a compiled copy of them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import scaler.core.decide
from scaler.core.decide import Memory, decide
from scaler.core.model import Goals, ReplicaView, Sample
from scaler.policies.slo import POLICY, SloState

ROOT = Path(__file__).parents[2]


def measure(*, rounds: int = 5_000, counted: bool = True, seen: bool = True) -> float:
    """The median in microseconds, estimator update included: 50 ready, 10 starting, 10,000 waiting.

    `counted`: the source counts what arrives and is completed. `seen`: somebody reports replicas.
    """
    goals = Goals(target_value=1.0, wait_seconds=30.0, max_replicas=500)
    memory: Memory[SloState] = Memory(state=POLICY.start())
    took = []
    for count in range(rounds):
        now_seconds = 1_000.0 + 2.0 * count
        view = ReplicaView(
            at_seconds=now_seconds,
            ready=50,
            starting_at_seconds=tuple(now_seconds - 3.0 * index for index in range(10, 0, -1)),
            status_replicas=60,
        )
        sample = Sample(
            at_seconds=now_seconds,
            metric_value=10_050.0,
            active=True,
            waiting=10_000.0 + count % 7,
            in_flight=50.0,
            arrived_total=10.0 * count if counted else None,
            completed_total=10.0 * count if counted else None,
        )
        began = time.perf_counter()
        _, memory = decide(POLICY, goals, memory, sample=sample, view=view if seen else None, now_seconds=now_seconds)
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


def measured(package: Path, *, compiled: bool, runs: int = 5) -> list[dict[str, float]]:
    """The same in processes of its own, of the package in this folder. Raises RuntimeError where that is another.

    By case: "counted, seen" is the one that has a goal.
    """
    return [_measured(package, compiled=compiled) for _ in range(runs)]


def _measured(package: Path, *, compiled: bool) -> dict[str, float]:
    words = [sys.executable, "-P", "-m", "tests.bench.decision"]
    environment = {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{ROOT}"}
    done = subprocess.run(words, env=environment, cwd=ROOT, check=True, capture_output=True, text=True)
    said: dict[str, Any] = json.loads(done.stdout)
    if said["compiled"] is not compiled:
        raise RuntimeError(f"{package}: compiled is {said['compiled']}, expected {compiled}")
    return {name: float(microseconds) for name, microseconds in said["median_microseconds"].items()}


if __name__ == "__main__":
    is_compiled = not str(scaler.core.decide.__file__).endswith(".py")
    medians = {
        f"{'counted' if counted else 'not counted'}, {'seen' if seen else 'unseen'}": round(
            measure(counted=counted, seen=seen), 1
        )
        for counted in (True, False)
        for seen in (True, False)
    }
    print(json.dumps({"compiled": is_compiled, "median_microseconds": medians}))
