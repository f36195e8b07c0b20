"""The whole matrix: every trace, cold start, wait and attainment; ours against tuned KEDA, others and the bound.

Resumable: each run is one line of `runs.jsonl`, under a key that holds what was run and a digest of the code that
ran it, so that what is unchanged is not run again. KEDA is tuned per trace and cold start in hindsight: the whole
grid with one seed, then the five cheapest that keep each promise with every seed (successive halving).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import scaler
from scaler.backtest.cases import Case, Result, as_plain, cached_trace, from_plain, run_all, warm_up_seconds
from scaler.simulator.baselines import KedaConfig, clairvoyant_bound, keda_grid

COLD_STARTS_SECONDS = (15.0, 60.0, 120.0)
WAIT_FACTORS = (0.5, 1.0, 2.0)
ATTAINMENTS = (0.95, 0.98, 0.99)
TOLERANCE = 0.005  # half a point, for everybody alike
FINALISTS = 5
OTHERS = ("keda", "keda-fast", "knative", "ray", "sagemaker")
FIXED = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 70, 80, 90, 100)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What of the matrix is run. `unseen_seeds`, `fast_seeds`: seeds without a view of replicas, and with fastScale."""

    traces: tuple[str, ...]
    cold_starts_seconds: tuple[float, ...] = COLD_STARTS_SECONDS
    wait_factors: tuple[float, ...] = WAIT_FACTORS
    attainments: tuple[float, ...] = ATTAINMENTS
    seeds: int = 5
    unseen_seeds: int = 5
    fast_seeds: int = 1
    others: bool = True

    def small(self) -> Plan:
        """About ten minutes of it, for CI."""
        return Plan(
            traces=self.traces,
            cold_starts_seconds=self.cold_starts_seconds[1:2],
            wait_factors=self.wait_factors,
            attainments=self.attainments[:1],
            seeds=1,
            unseen_seeds=1,
            fast_seeds=0,
            others=False,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One promise on one trace, and every result for it; lists hold one result a seed."""

    trace: str
    cold_start_seconds: float
    wait_seconds: float
    attainment: float
    ours: list[Result]
    unseen: list[Result]
    fast: list[Result]
    tuned: KedaConfig | None
    tuned_results: list[Result]
    fixed_replicas: int | None
    fixed: Result | None
    others: dict[str, list[Result]]
    bound_gpu_seconds: float


class Runs:
    """Results by key, kept in a file."""

    def __init__(self, path: Path, processes: int, progress: Progress) -> None:
        self._path, self._processes, self._progress = path, processes, progress
        self._known: dict[str, dict[str, Any]] = {}
        if path.exists():
            with path.open() as file:
                for line in file:
                    if line.endswith("\n"):  # a line that a crash cut short is run again
                        entry = json.loads(line)
                        self._known[entry["key"]] = entry["result"]

    def results(self, label: str, cases: Iterable[Case], *, blocks: bool) -> dict[Case, Result]:
        """The result of every case, run where it isn't known. `blocks` False: they are not kept."""
        wanted = list(dict.fromkeys(cases))
        keys = {case: _key(case, blocks=blocks) for case in wanted}
        missing = [case for case in wanted if keys[case] not in self._known]
        self._progress(label, len(wanted) - len(missing), len(wanted))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            for done, (case, result) in enumerate(run_all(missing, processes=self._processes), start=1):
                plain = as_plain(result)
                if not blocks:
                    plain["blocks"] = ()
                self._known[keys[case]] = plain
                file.write(json.dumps({"key": keys[case], "result": plain}) + "\n")
                file.flush()
                self._progress(label, len(wanted) - len(missing) + done, len(wanted))
        return {case: from_plain(self._known[keys[case]]) for case in wanted}


def run_matrix(plan: Plan, runs: Runs) -> list[Cell]:
    """Every cell of the plan."""
    cells = []
    for trace in plan.traces:
        for cold_start_seconds in plan.cold_starts_seconds:
            cells.extend(_of_one(plan, runs, trace, cold_start_seconds))
    return cells


def _of_one(plan: Plan, runs: Runs, trace: str, cold_start_seconds: float) -> list[Cell]:
    label = f"{trace}, cold start {cold_start_seconds:g} s"
    seeds = range(1, plan.seeds + 1)

    def case(**fields: Any) -> Case:
        return Case(trace=trace, cold_start_seconds=cold_start_seconds, **fields)

    grid = runs.results(
        f"{label}: KEDA's grid",
        [case(scaler="keda-tuned", keda=config) for config in keda_grid()],
        blocks=False,
    )
    fixed = runs.results(f"{label}: fixed", [case(scaler="fixed", replicas=count) for count in FIXED], blocks=False)
    others = {
        name: list(
            runs.results(f"{label}: {name}", [case(scaler=name, seed=seed) for seed in seeds], blocks=False).values()
        )
        for name in (OTHERS if plan.others else ())
    }
    promises = [
        (factor * cold_start_seconds, attainment) for factor in plan.wait_factors for attainment in plan.attainments
    ]
    finalists: dict[tuple[float, float], list[KedaConfig]] = {}
    for wait_seconds, attainment in promises:
        keeping = [
            (result.gpu_seconds, one.keda)
            for one, result in grid.items()
            if one.keda is not None and result.shares[f"{wait_seconds:g}"] >= attainment - TOLERANCE
        ]
        keeping.sort(key=lambda pair: pair[0])
        finalists[wait_seconds, attainment] = [config for _, config in keeping[:FINALISTS]]
    final_cases = {
        (config, seed): case(scaler="keda-tuned", keda=config, seed=seed)
        for configs in finalists.values()
        for config in configs
        for seed in seeds
    }
    final = runs.results(f"{label}: KEDA's best", final_cases.values(), blocks=True)
    cells = []
    trace_values = cached_trace(trace, 10.0, 1.0)
    for wait_seconds, attainment in promises:

        def ours(count: int, promise: tuple[float, float] = (wait_seconds, attainment), **fields: Any) -> list[Result]:
            cases = [
                case(scaler="slo", wait_seconds=promise[0], attainment=promise[1], seed=seed, **fields)
                for seed in range(1, count + 1)
            ]
            return list(runs.results(f"{label}: slo {promise[0]:g} s {promise[1]:g}", cases, blocks=True).values())

        tuned, tuned_results = _cheapest(
            finalists[wait_seconds, attainment],
            lambda config: [final[final_cases[config, seed]] for seed in seeds],
            wait_seconds,
            attainment,
        )
        least = next(
            (
                (one.replicas, result)
                for one, result in fixed.items()
                if result.shares[f"{wait_seconds:g}"] >= attainment - TOLERANCE
            ),
            None,
        )
        cells.append(
            Cell(
                trace=trace,
                cold_start_seconds=cold_start_seconds,
                wait_seconds=wait_seconds,
                attainment=attainment,
                ours=ours(plan.seeds),
                unseen=ours(plan.unseen_seeds, sees_replicas=False),
                fast=ours(plan.fast_seeds, fast_scale=True),
                tuned=tuned,
                tuned_results=tuned_results,
                fixed_replicas=None if least is None else least[0],
                fixed=None if least is None else least[1],
                others=others,
                bound_gpu_seconds=clairvoyant_bound(
                    trace_values,
                    cold_start_seconds=cold_start_seconds,
                    concurrency=1,
                    wait_seconds=wait_seconds,
                    attainment=attainment,
                    from_seconds=warm_up_seconds(cold_start_seconds),
                ),
            )
        )
    return cells


def _cheapest(
    configs: list[KedaConfig],
    results_of: Callable[[KedaConfig], list[Result]],
    wait_seconds: float,
    attainment: float,
) -> tuple[KedaConfig | None, list[Result]]:
    """The cheapest over all seeds among those that keep the promise over all seeds."""
    best: tuple[float, KedaConfig, list[Result]] | None = None
    for config in configs:
        results = results_of(config)
        share = sum(result.shares[f"{wait_seconds:g}"] for result in results) / len(results)
        gpu_seconds = sum(result.gpu_seconds for result in results) / len(results)
        if share >= attainment - TOLERANCE and (best is None or gpu_seconds < best[0]):
            best = (gpu_seconds, config, results)
    return (None, []) if best is None else (best[1], best[2])


def _key(case: Case, *, blocks: bool) -> str:
    what = json.dumps(asdict(case), sort_keys=True)
    ours = case.scaler == "slo"
    return hashlib.blake2b(f"{what}|{blocks}|{_code(ours=ours)}".encode(), digest_size=12).hexdigest()


def _code(*, ours: bool) -> str:
    """A digest of the code that such a run depends on."""
    if ours not in _CODE:
        folders = ("simulator", "core", "policies") if ours else ("simulator",)
        root = Path(scaler.__file__).parent
        digest = hashlib.blake2b(digest_size=8)
        for folder in folders:
            for path in sorted((root / folder).glob("*.py")):
                digest.update(path.read_bytes())
        _CODE[ours] = digest.hexdigest()
    return _CODE[ours]


_CODE: dict[bool, str] = {}
