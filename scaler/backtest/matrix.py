"""The whole matrix: every trace, cold start, wait and attainment; ours against tuned KEDA, others and the bound.

Resumable: each run is one line of `runs.jsonl`, under a key that holds what was run, on which requests, and a digest of
the code that it depends on. What others do does not depend on the policies, so it stays when these change; comments
and layout are not part of a digest.

Breadth first: every phase goes over all cells before the next begins (a slice of KEDA's grid, one seed more), so that
whatever stops the work early leaves an even table. KEDA is tuned per trace and cold start in hindsight: the whole grid
with one seed, then the five cheapest that keep each promise with every seed (successive halving). Neither KEDA nor a
fixed number knows a promise: the same runs serve all nine promises of a trace and a cold start.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import scaler
from scaler.backtest.cases import BLOCKS, Case, Result, as_plain, cached_trace, from_plain, run_all, warm_up_seconds
from scaler.backtest.folders import written
from scaler.backtest.sensitivity import FACTORS, constants
from scaler.backtest.traces import looks
from scaler.simulator.baselines import KedaConfig, clairvoyant_bound, keda_grid

COLD_STARTS_SECONDS = (15.0, 60.0, 120.0)
WAIT_FACTORS = (0.5, 1.0, 2.0)
ATTAINMENTS = (0.95, 0.98, 0.99)
TOLERANCE = 0.005  # half a point, for everybody alike
FINALISTS = 5
ROUNDS = 3  # of finalists, where none of the first keeps the promise over all seeds
SLICES = 8  # of KEDA's grid
LONG_LOOKS = 50_000  # a run of so many decisions takes several seconds
OTHERS = ("keda", "keda-fast", "knative", "ray", "sagemaker")
FIXED = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 70, 80, 90, 100)
PARTS = ("baselines", "ours", "sensitivity")
# Ours otherwise than with a view of replicas, a source that counts, and no fastScale: name, fields of Case.
OTHERWISE: dict[str, dict[str, Any]] = {
    "unseen": {"sees_replicas": False},
    "fast": {"fast_scale": True},
    "uncounted": {"sees_counters": False},  # what SQS tells
    "queue_only": {"sees_counters": False, "sees_in_flight": False},  # what RabbitMQ tells over AMQP
}

Progress = Callable[[str, int, int], None]
Promise = tuple[float, float]  # wait in seconds, attainment
Pair = tuple[str, float]  # trace, cold start in seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What of the matrix is run. `unseen_seeds`, `fast_seeds`: seeds without a view of replicas, and with fastScale.

    `uncounted_seeds`: seeds with a source that has no counters, each with requests in flight told and not told.
    `varied_traces`: those whose cells show how much every constant matters, with one seed, one cold start.
    """

    traces: tuple[str, ...]
    cold_starts_seconds: tuple[float, ...] = COLD_STARTS_SECONDS
    wait_factors: tuple[float, ...] = WAIT_FACTORS
    attainments: tuple[float, ...] = ATTAINMENTS
    seeds: int = 5
    unseen_seeds: int = 5
    fast_seeds: int = 1
    uncounted_seeds: int = 1
    others: bool = True
    parts: tuple[str, ...] = PARTS
    varied_traces: tuple[str, ...] = ()
    varied_attainments: tuple[float, ...] = (0.95, 0.99)

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
            uncounted_seeds=1,
            others=False,
            parts=("baselines", "ours"),
        )

    def seeds_of(self, name: str) -> int:
        """How many seeds one of `OTHERWISE` has."""
        counts = {"unseen": self.unseen_seeds, "fast": self.fast_seeds}
        return counts.get(name, self.uncounted_seeds)

    def pairs(self) -> list[Pair]:
        """Every trace with every cold start."""
        return [(trace, seconds) for seconds in self.cold_starts_seconds for trace in self.traces]

    def promises(self, cold_start_seconds: float) -> list[Promise]:
        """Every promise for a cold start."""
        return [(factor * cold_start_seconds, share) for factor in self.wait_factors for share in self.attainments]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One promise on one trace, and every result for it; lists hold one result a seed, as far as they were run."""

    trace: str
    cold_start_seconds: float
    wait_seconds: float
    attainment: float
    ours: list[Result]
    unseen: list[Result]
    fast: list[Result]
    uncounted: list[Result]
    queue_only: list[Result]
    tuned: KedaConfig | None
    tuned_results: list[Result]
    grid_points: int
    fixed_replicas: int | None
    fixed: Result | None
    others: dict[str, list[Result]]
    bound_gpu_seconds: float
    busy_seconds: float
    block_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One constant times a factor, against the policy as it is.

    `cells`: of each (cost and starts over those of the policy as it is, share in time less the promise of the policy
    as it is, and of the variant). `failed`: in how many cells the policy can't decide with it.
    """

    constant: str
    factor: float
    cells: tuple[tuple[float, float, float, float], ...]
    failed: int = 0


class Runs:
    """Results by key, kept in a file. `is_over` tells when no further run may begin."""

    def __init__(
        self, path: Path, processes: int, progress: Progress, is_over: Callable[[], bool] = lambda: False
    ) -> None:
        self._path, self._processes, self._progress, self._is_over = path, processes, progress, is_over
        self._known: dict[str, Result] = {}
        if path.exists():
            with written("the file of runs", path), path.open() as file:
                for line in file:
                    try:
                        entry = json.loads(line)
                    except ValueError:  # cut short by a crash: it is run again
                        continue
                    self._known[entry["key"]] = from_plain(entry["result"])

    def known(self, case: Case) -> Result | None:
        """The result of a case, where it was run."""
        return self._known.get(key_of(case))

    def ensure(self, label: str, cases: Iterable[Case], *, most: Callable[[Case], float] | None = None) -> None:
        """Run every case that isn't known, while there is time. `most`: GPU-seconds above which a case is hopeless."""
        wanted = list(dict.fromkeys(cases))
        missing = [case for case in wanted if self.known(case) is None]
        done = len(wanted) - len(missing)
        self._progress(label, done, len(wanted))
        if not missing:
            return

        def in_time() -> Iterator[Case]:
            for case in missing:
                if self._is_over():
                    return
                yield case if most is None else _limited(case, most(case))

        with written("the file of runs", self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("a")
        with file:
            if file.tell() and not _ends_a_line(self._path):
                file.write("\n")  # what a crash cut short stays a line of its own
            for case, result in run_all(in_time(), processes=self._processes):
                self._known[key_of(case)] = result
                with written("the file of runs", self._path):
                    file.write(json.dumps({"key": key_of(case), "result": as_plain(result)}) + "\n")
                    file.flush()
                done += 1
                self._progress(label, done, len(wanted))


class Matrix:
    """A plan, and the runs that it needs."""

    def __init__(self, plan: Plan, runs: Runs) -> None:
        self.plan, self.runs = plan, runs

    def run(self) -> None:
        """Whatever of the plan isn't known yet, as far as time allows."""
        parts = self.plan.parts
        if "baselines" in parts:
            self._run_baselines()
        ours = "ours" in parts
        # From what is most missed on the page to what is least: one seed everywhere, what each constant does, and more
        # seeds, first where these are cheap.
        long = [trace for trace in self.plan.traces if looks(cached_trace(trace, 10.0, 1.0)) > LONG_LOOKS]
        short = [trace for trace in self.plan.traces if trace not in long]
        if ours:
            self._run_ours(1, self.plan.traces)
        if "sensitivity" in parts:
            self.runs.ensure("sensitivity", self._varied_cases())
        for traces in (short, long) if ours else ():
            for seed in range(2, max(self.plan.seeds, *map(self.plan.seeds_of, OTHERWISE)) + 1):
                self._run_ours(seed, traces)

    def cells(self) -> list[Cell]:
        """Every cell, from what is known."""
        found = [cell for trace in self.plan.traces for cell in self._cells_of_trace(trace)]
        return [cell for cell in found if cell.ours or cell.tuned_results or cell.fixed]

    def variants(self) -> list[Variant]:
        """What every constant does, as far as it was run."""
        found = []
        for constant in constants() if self.plan.varied_traces else ():
            for factor in FACTORS:
                cells, failed = [], 0
                for case in self._varied_base():
                    base, other = self.runs.known(case), self.runs.known(_varied(case, constant, factor))
                    if base is not None and other is not None and other.stopped:
                        failed += 1
                    elif base is not None and other is not None:
                        wait = f"{case.wait_seconds:g}"
                        cells.append(
                            (
                                other.gpu_seconds / base.gpu_seconds,
                                other.starts / max(base.starts, 1),
                                base.shares[wait] - case.attainment,
                                other.shares[wait] - case.attainment,
                            )
                        )
                if cells or failed:
                    found.append(Variant(constant=constant, factor=factor, cells=tuple(cells), failed=failed))
        return found

    # --- what is run ---

    def _run_baselines(self) -> None:
        plan, runs, pairs = self.plan, self.runs, self.plan.pairs()
        others = OTHERS if plan.others else ()
        quick = [_case(pair, scaler="fixed", replicas=count) for pair in pairs for count in FIXED]
        quick += [_case(pair, scaler=name) for pair in pairs for name in others]
        runs.ensure("fixed and others", quick)
        for index, part in enumerate(grid_slices(), start=1):
            runs.ensure(
                f"KEDA's grid, slice {index} of {SLICES}",
                [_keda(pair, config) for pair in pairs for config in part],
                most=self._most,
            )
        for turn in range(1, ROUNDS + 1):
            for seed in range(2, plan.seeds + 1):
                runs.ensure(
                    f"KEDA's best, seed {seed} of {plan.seeds}",
                    [_keda(pair, config, seed) for pair in pairs for config in self._candidates(pair, turn)],
                )
        for seed in range(2, plan.seeds + 1):
            runs.ensure(
                f"others, seed {seed} of {plan.seeds}",
                [_case(pair, scaler=name, seed=seed) for pair in pairs for name in others],
            )

    def _run_ours(self, seed: int, traces: Sequence[str]) -> None:
        plan = self.plan
        kinds: dict[str, dict[str, Any]] = {"seen": {}} | OTHERWISE
        for name, extra in kinds.items():
            count = plan.seeds_of(name) if extra else plan.seeds
            if seed <= count and traces:
                cases = [
                    _ours(pair, promise, seed, **extra)
                    for pair in plan.pairs()
                    if pair[0] in traces
                    for promise in plan.promises(pair[1])
                ]
                # The longest last would leave all cores but one idle.
                cases.sort(key=lambda case: -len(cached_trace(case.trace, 10.0, 1.0)))
                self.runs.ensure(f"slo, {name}, seed {seed} of {count}, {len(traces)} traces", cases)

    def _varied_base(self) -> list[Case]:
        plan = self.plan
        seconds = plan.cold_starts_seconds[len(plan.cold_starts_seconds) // 2]
        return [
            _ours((trace, seconds), (factor * seconds, share), 1)
            for trace in plan.varied_traces
            for factor in plan.wait_factors
            for share in plan.varied_attainments
        ]

    def _varied_cases(self) -> list[Case]:
        base = self._varied_base()
        return base + [
            _varied(case, constant, factor) for case in base for constant in constants() for factor in FACTORS
        ]

    # --- tuning KEDA ---

    def _grid(self, pair: Pair) -> list[tuple[KedaConfig, Result]]:
        """What is known of the grid, with one seed, the cheapest first."""
        found = [(config, self.runs.known(_keda(pair, config))) for config in keda_grid()]
        known = [(config, result) for config, result in found if result is not None]
        return sorted(known, key=lambda one: one[1].gpu_seconds)

    def _most(self, case: Case) -> float:
        """The cost above which a point of the grid can't be a finalist: enough others keep every promise for less."""
        seconds = case.cold_start_seconds
        promises = self.plan.promises(seconds)
        keeping = [
            result.gpu_seconds
            for _, result in self._grid((case.trace, seconds))
            if not result.stopped and all(_keeps(result, promise) for promise in promises)
        ]
        enough = FINALISTS * ROUNDS
        return keeping[enough - 1] if len(keeping) >= enough else math.inf

    def _finalists(self, grid: list[tuple[KedaConfig, Result]], promise: Promise, turn: int) -> list[KedaConfig]:
        keeping = [config for config, result in grid if not result.stopped and _keeps(result, promise)]
        return keeping[: FINALISTS * turn]

    def _candidates(self, pair: Pair, turn: int) -> list[KedaConfig]:
        """The finalists of every promise that those of the turn before don't keep over all seeds."""
        grid = self._grid(pair)
        found: dict[KedaConfig, None] = {}
        for promise in self.plan.promises(pair[1]):
            if turn > 1 and self._tuned(pair, grid, promise, turn - 1)[0] is not None:
                continue
            found |= dict.fromkeys(self._finalists(grid, promise, turn))
        return list(found)

    def _tuned(
        self, pair: Pair, grid: list[tuple[KedaConfig, Result]], promise: Promise, turns: int = ROUNDS
    ) -> tuple[KedaConfig | None, list[Result]]:
        """The cheapest over all seeds among those that keep the promise over all seeds, as far as these are known."""
        for turn in range(1, turns + 1):
            best: tuple[float, KedaConfig, list[Result]] | None = None
            for config in self._finalists(grid, promise, turn):
                cases = [_keda(pair, config, seed) for seed in range(1, self.plan.seeds + 1)]
                results = [result for case in cases if (result := self.runs.known(case)) is not None]
                gpu_seconds = sum(result.gpu_seconds for result in results) / len(results)
                kept = _keep(results, promise)
                if kept and (best is None or gpu_seconds < best[0]):
                    best = (gpu_seconds, config, results)
            if best is not None:
                return best[1], best[2]
        return None, []

    # --- the table ---

    def _cells_of_trace(self, trace: str) -> Iterator[Cell]:
        plan, runs = self.plan, self.runs
        requests = cached_trace(trace, 10.0, 1.0)
        for seconds in plan.cold_starts_seconds:
            pair = (trace, seconds)
            from_seconds = warm_up_seconds(seconds)
            grid = self._grid(pair)
            fixed = [(count, runs.known(_case(pair, scaler="fixed", replicas=count))) for count in FIXED]
            others = {
                name: self._seeds(_case(pair, scaler=name, seed=seed) for seed in range(1, plan.seeds + 1))
                for name in (OTHERS if plan.others else ())
            }
            for promise in plan.promises(seconds):
                wait_seconds, attainment = promise

                def ours(count: int, promise: Promise = promise, pair: Pair = pair, **extra: Any) -> list[Result]:
                    return self._seeds(_ours(pair, promise, seed, **extra) for seed in range(1, count + 1))

                tuned, tuned_results = self._tuned(pair, grid, promise)
                least = next(((n, one) for n, one in fixed if one is not None and _keeps(one, promise)), None)
                yield Cell(
                    trace=trace,
                    cold_start_seconds=seconds,
                    wait_seconds=wait_seconds,
                    attainment=attainment,
                    ours=ours(plan.seeds),
                    **{name: ours(plan.seeds_of(name), **extra) for name, extra in OTHERWISE.items()},
                    tuned=tuned,
                    tuned_results=tuned_results,
                    grid_points=len(grid),
                    fixed_replicas=None if least is None else least[0],
                    fixed=None if least is None else least[1],
                    others=others,
                    bound_gpu_seconds=clairvoyant_bound(
                        requests,
                        cold_start_seconds=seconds,
                        concurrency=1,
                        wait_seconds=wait_seconds,
                        attainment=attainment,
                        from_seconds=from_seconds,
                    ),
                    busy_seconds=sum(one.service_seconds for one in requests if one.at_seconds >= from_seconds),
                    block_seconds=max(requests[-1].at_seconds - from_seconds, 1.0) / BLOCKS,
                )

    def _seeds(self, cases: Iterable[Case]) -> list[Result]:
        return [result for case in cases if (result := self.runs.known(case)) is not None]


def run_matrix(plan: Plan, runs: Runs) -> list[Cell]:
    """Every cell of the plan, after running what isn't known."""
    matrix = Matrix(plan, runs)
    matrix.run()
    return matrix.cells()


def grid_slices() -> list[list[KedaConfig]]:
    """KEDA's grid in slices that each cover it evenly."""
    grid = list(keda_grid())
    random.Random(1).shuffle(grid)  # noqa: S311 - an order, the same each time
    return [grid[start::SLICES] for start in range(SLICES)]


@lru_cache(maxsize=65_536)
def key_of(case: Case) -> str:
    """What was run on which requests, and a digest of the code that it depends on; defaults are left out."""
    ours = case.scaler == "slo"
    what = {
        name: value
        for name, value in asdict(case).items()
        if value != _DEFAULTS[name] and name not in {"trace", "most_gpu_seconds"}
    }
    what["trace"] = _trace_digest(case.trace, case.service_seconds, case.days)
    text = json.dumps(what, sort_keys=True)
    return hashlib.blake2b(f"{text}|{code_digest(ours=ours)}".encode(), digest_size=12).hexdigest()


@lru_cache(maxsize=2)
def code_digest(*, ours: bool) -> str:
    """Of the code that such a run depends on, without its comments, docstrings and layout."""
    root = Path(scaler.__file__).parent
    names = [f"simulator/{name}.py" for name in ("arrivals", "world", "rules", "keda", "baselines")]
    if ours:
        names += ["simulator/controllers.py", "policies/slo.py"]
        names += sorted(f"core/{path.name}" for path in (root / "core").glob("*.py"))
    digest = hashlib.blake2b(digest_size=8)
    for name in names:
        digest.update(_shape(ast.parse((root / name).read_text(encoding="utf-8"))).encode())
    of_run = ast.parse((root / "backtest/cases.py").read_text(encoding="utf-8"))
    wanted = {"BLOCKS", "run", "warm_up_seconds", "first_replicas", "scored_from_seconds", "_scored", "_result"}
    of_run.body = [line for line in of_run.body if _name(line) in wanted]
    digest.update(_shape(of_run).encode())
    return digest.hexdigest()


def _shape(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def _name(line: ast.stmt) -> str | None:
    if isinstance(line, ast.FunctionDef | ast.ClassDef):
        return line.name
    if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
        return line.targets[0].id
    return None


@lru_cache(maxsize=32)
def _trace_digest(name: str, service_seconds: float, days: float) -> str:
    trace = cached_trace(name, service_seconds, days)
    values = array("d", [value for arrival in trace for value in arrival])
    return hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest()


def _case(pair: Pair, **fields: Any) -> Case:
    return Case(trace=pair[0], cold_start_seconds=pair[1], **fields)


def _keda(pair: Pair, config: KedaConfig, seed: int = 1) -> Case:
    return _case(pair, scaler="keda-tuned", keda=config, seed=seed)


def _ours(pair: Pair, promise: Promise, seed: int, **extra: Any) -> Case:
    return _case(pair, scaler="slo", wait_seconds=promise[0], attainment=promise[1], seed=seed, **extra)


def _with(case: Case, **changes: Any) -> Case:
    return Case(**{field.name: getattr(case, field.name) for field in fields(case)} | changes)


def _varied(case: Case, constant: str, factor: float) -> Case:
    return _with(case, varied=(constant, factor))


def _limited(case: Case, most_gpu_seconds: float) -> Case:
    return case if most_gpu_seconds == math.inf else _with(case, most_gpu_seconds=most_gpu_seconds)


def _keeps(result: Result, promise: Promise) -> bool:
    return result.shares[f"{promise[0]:g}"] >= promise[1] - TOLERANCE


def _keep(results: list[Result], promise: Promise) -> bool:
    share = sum(result.shares[f"{promise[0]:g}"] for result in results) / len(results)
    return share >= promise[1] - TOLERANCE


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"


_DEFAULTS = {field.name: field.default for field in fields(Case)}
