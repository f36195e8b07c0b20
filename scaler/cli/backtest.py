"""`pilotlight backtest`: policies against a trace in the simulator; `backtest matrix`: the whole comparison."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from shutil import get_terminal_size
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from scaler.errors import PilotlightError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress

    from scaler.backtest.cases import Case, Result
    from scaler.core.model import ReplicaStep

backtest = typer.Typer(invoke_without_command=True, no_args_is_help=False, help="Policies against traces, simulated.")

# The names by hand, since what knows them is imported only where the verb runs; a test compares.
_TRACE_HELP = (
    "a trace file (CSV with t_s and service_s), a shipped trace (bursts, diurnal, documents, flash, poisson-busy) or a "
    "pattern (bursts, diurnal, documents, flash, poisson, steady), with a colon where a trace has the same name: "
    '"documents:" or "bursts:every_seconds=600"'
)

# Each slot of a replica that is there from the start takes memory.
_MOST_SLOTS = 1_000_000
_BY_THRESHOLD = frozenset({"keda", "keda-fast", "target", "utilization"})
_MAX_REPLICAS = 100  # KEDA's maxReplicaCount unless it is said
# A run decides every few seconds while a replica starts.
_LONGEST_COLD_START_SECONDS = 7 * 86_400.0


@backtest.callback()
def one(
    context: typer.Context,
    trace: Annotated[str | None, typer.Option(help=_TRACE_HELP)] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="slo, target, keda, keda-fast, knative, ray, sagemaker, fixed ...; several times"),
    ] = None,
    *,
    recorded: Annotated[
        Path | None, typer.Option(help="instead of a trace: the service's state folder, or a copy of its file")
    ] = None,
    workload: Annotated[str | None, typer.Option(help="with --recorded: namespace/name")] = None,
    source: Annotated[str | None, typer.Option(help="with --recorded: which of several sources")] = None,
    cold_start: Annotated[float, typer.Option(help="mean cold start in seconds")] = 60.0,
    slo: Annotated[str, typer.Option(help='the promise: "WAIT_SECONDS:SHARE"')] = "60:0.95",
    seeds: Annotated[int, typer.Option(min=1, max=100, help="runs per policy")] = 1,
    concurrency: Annotated[int, typer.Option(min=1, max=10_000, help="requests a replica works on at once")] = 1,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="metric per replica: requests for target, keda and keda-fast (5), percent in use for utilization (80)"
        ),
    ] = None,
    replicas: Annotated[int | None, typer.Option(min=1, max=10_000, help="how many, for policy fixed")] = None,
    max_replicas: Annotated[
        int, typer.Option(min=1, max=10_000, help="the most that any policy but fixed may have")
    ] = _MAX_REPLICAS,
    steps: Annotated[str | None, typer.Option(help='the table of policy steps: "1:2,6:5,21:10"')] = None,
    service: Annotated[float | None, typer.Option(help="mean service seconds, for a pattern; else 10")] = None,
    days: Annotated[float | None, typer.Option(help="length, for a pattern; else 1")] = None,
    job_strategy: Annotated[
        str | None,
        typer.Option(help="run it as a ScaledJob: default, custom, accurate or eager; policies are jobs and keda"),
    ] = None,
    requests_per_job: Annotated[
        int | None,
        typer.Option(min=0, help="with --job-strategy: requests after which a job ends (1); 0: when nothing waits"),
    ] = None,
    score_from: Annotated[
        float | None,
        typer.Option(help="seconds from which requests and GPU-seconds count; else 600, or five cold starts"),
    ] = None,
    gpu_cost: Annotated[float | None, typer.Option(help="what a GPU costs an hour, to show money")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for runs.csv, runs.json and plots")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output instead of a table")] = False,
) -> None:
    """Run policies against a trace and compare share in time, waits, GPU-seconds and starts."""
    if context.invoked_subcommand is not None:
        return
    for name, value, lowest in (
        ("--cold-start", cold_start, 0.0),
        ("--gpu-cost", gpu_cost, 0.0),
        ("--score-from", score_from, 0.0),
        ("--threshold", threshold, None),
        ("--service", service, None),
        ("--days", days, None),
    ):
        _number(name, value, lowest=lowest)
    if cold_start > _LONGEST_COLD_START_SECONDS:
        raise PilotlightError(
            f"--cold-start is {cold_start:g}; it must be at most {_LONGEST_COLD_START_SECONDS:g} seconds"
        )
    for name, count in (("--replicas", replicas or 1), ("--max-replicas", max_replicas)):
        if count * concurrency > _MOST_SLOTS:
            raise PilotlightError(
                f"{name} is {count} and --concurrency {concurrency}; their product must be at most {_MOST_SLOTS:,}"
            )
    if recorded is None and (workload is not None or source is not None):
        raise PilotlightError("--workload and --source go with --recorded")
    if recorded is not None and (trace is not None or workload is None):
        raise PilotlightError("--recorded goes with --workload namespace/name, and without --trace")
    if recorded is None and trace is None:
        raise PilotlightError(f"--trace is required, or --recorded: {_TRACE_HELP}")
    table, (wait_seconds, attainment) = _steps(steps), _promise(slo)
    from scaler.backtest.folders import prepared, written  # noqa: PLC0415 - heavy imports only where the verb runs

    if out is not None:
        prepared("--out", out)
    if recorded is not None and workload is not None:
        from scaler.backtest.recorded import recorded_trace, write_trace  # noqa: PLC0415 - heavy imports only where used

        replayed = recorded_trace(
            recorded,
            workload,
            source=source,
            concurrency=concurrency,
            tell=lambda line: typer.echo(f"note: {line}", err=True),
        )
        if replayed.most_replicas is not None:
            max_replicas = min(max_replicas, replayed.most_replicas)
            if (replicas or 0) > max_replicas:
                raise PilotlightError(
                    f"--replicas is {replicas}; of {workload} at most {max_replicas} can have work at once, "
                    "as its source says: name no more"
                )
        # The processes that simulate read it by its name.
        folder = out or Path(context.with_resource(TemporaryDirectory(prefix="pilotlight-")))
        trace = str(folder / "recorded.csv")
        with written("--out", folder):
            write_trace(replayed.requests, Path(trace))
    from scaler.backtest import report  # noqa: PLC0415 - heavy imports only where the verb runs
    from scaler.backtest.cases import Case, by_use, cached_trace, scaler_of, scored_from_seconds  # noqa: PLC0415 - as above
    from scaler.backtest.traces import is_pattern, pattern_of  # noqa: PLC0415 - as above

    cases = [
        Case(
            trace=trace or "",
            cold_start_seconds=cold_start,
            scaler=name,
            seed=seed,
            wait_seconds=wait_seconds,
            attainment=attainment,
            concurrency=concurrency,
            target_value=threshold or (80.0 if by_use(name) else 5.0),
            replicas=replicas or 0,
            steps=table,
            max_replicas=max_replicas,
            score_from_seconds=score_from,
            service_seconds=10.0 if service is None else service,
            days=1.0 if days is None else days,
            keep_timeline=out is not None and seed == 1,
            job_strategy=job_strategy,
            requests_per_job=1 if requests_per_job is None else requests_per_job or None,
        )
        for name in policy or (["slo", "keda"] if job_strategy is None else ["jobs", "keda"])
        for seed in range(1, seeds + 1)
    ]
    for case in cases if job_strategy is None else ():
        scaler_of(case)  # what is wrong with a policy is said before any of them runs
    times = [arrival.at_seconds for arrival in cached_trace(cases[0].trace, cases[0].service_seconds, cases[0].days)]
    unused = [name for name, value in (("--service", service), ("--days", days)) if value is not None]
    if unused and not is_pattern(cases[0].trace):
        instead = pattern_of(cases[0].trace)
        typer.echo(
            f"warning: {' and '.join(unused)} {'has' if len(unused) == 1 else 'have'} no effect: "
            f'"{workload or cases[0].trace}" is a trace, not a pattern' + (f"; {instead}" if instead else ""),
            err=True,
        )
    bases = {case.scaler.partition("+")[0] for case in cases}
    for name, is_given, has_effect, is_for in (
        ("--threshold", threshold is not None, bases & _BY_THRESHOLD, "policies " + ", ".join(sorted(_BY_THRESHOLD))),
        ("--replicas", replicas is not None, "fixed" in bases, "policy fixed"),
        ("--steps", steps is not None, "steps" in bases, "policy steps"),
        ("--requests-per-job", requests_per_job is not None, job_strategy is not None, "--job-strategy"),
    ):
        if is_given and not has_effect:
            typer.echo(f"warning: {name} has no effect: it is for {is_for}", err=True)
    runs = list(_with_progress(cases))
    order = {case: index for index, case in enumerate(cases)}
    runs.sort(key=lambda pair: order[pair[0]])
    rows = report.rows_of_runs(runs)
    if workload is not None:  # the file that it was written to is ours, and may be gone
        for row in rows:
            row["trace"] = workload
    if gpu_cost is not None:
        for row in rows:
            row["cost"] = round(row["gpu_seconds"] / 3600 * gpu_cost, 2)
    if out is not None:
        with written("--out", out):
            (out / "runs.csv").write_text(report.csv_text(rows))
            (out / "runs.json").write_text(json.dumps(rows, indent=1) + "\n")
            report.plots_of_runs(runs, out)
    # A pipe takes lines of any length.
    width = get_terminal_size().columns if sys.stdout.isatty() else None
    typer.echo(json.dumps(rows, indent=1) if as_json else report.text_table(rows, width=width))
    from_seconds = scored_from_seconds(cases[0])
    scored = sum(at >= from_seconds for at in times)
    if scored < len(times):
        said = "warning: no request is scored" if not scored else "note"
        typer.echo(
            f"{said}: the first {from_seconds:g} s are run to settle and not scored, with {len(times) - scored} of "
            f"{len(times)} requests" + ("; use a longer trace, or --score-from 0" if not scored else ""),
            err=True,
        )


@backtest.command()
def matrix(
    *,
    out: Annotated[Path, typer.Option(help="folder that keeps finished runs, so that it can be resumed")] = Path(
        "build/backtest"
    ),
    docs: Annotated[Path, typer.Option(help="folder that results.md is written to")] = Path("docs"),
    small: Annotated[bool, typer.Option(help="a part of about ten minutes")] = False,
    part: Annotated[
        list[str] | None, typer.Option(help="only baselines, ours or sensitivity; several times; results are of all")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(min=0.0, help="no run begins later than so long after the start")
    ] = None,
    trace: Annotated[list[str] | None, typer.Option(help="only these traces; several times")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="seeds per cell")] = 5,
    unseen_seeds: Annotated[int, typer.Option(min=0, help="seeds without a view of replicas")] = 5,
    fast_seeds: Annotated[int, typer.Option(min=0, help="seeds with fastScale")] = 1,
    uncounted_seeds: Annotated[
        int, typer.Option(min=0, help="seeds with a source without counters, and with one that tells the queue alone")
    ] = 1,
    processes: Annotated[int, typer.Option(min=0, help="0: every core")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="the summary as JSON")] = False,
) -> None:
    """Run every trace, cold start and promise against tuned KEDA and others; write results.md with tables and plots."""
    from scaler.backtest import page, report  # noqa: PLC0415 - heavy imports only where the verb runs
    from scaler.backtest.cases import Case, cached_trace, scored_from_seconds  # noqa: PLC0415 - as above
    from scaler.backtest.folders import prepared, written  # noqa: PLC0415 - as above
    from scaler.backtest.matrix import PARTS, Matrix, Plan, Runs  # noqa: PLC0415 - as above
    from scaler.backtest.traces import known_traces, short_traces  # noqa: PLC0415 - as above

    unknown = set(part or ()) - set(PARTS)
    if unknown:
        raise PilotlightError(f'--part is "{unknown.pop()}"; it must be one of {", ".join(PARTS)}')
    prepared("--out", out, draws=False)
    prepared("--docs", docs)
    traces = tuple(trace or known_traces())
    plan = Plan(
        traces=traces,
        seeds=seeds,
        unseen_seeds=unseen_seeds,
        fast_seeds=fast_seeds,
        uncounted_seeds=uncounted_seeds,
        parts=tuple(part or PARTS),
        varied_traces=short_traces(traces),
    )
    if small:
        plan = plan.small()
    for name in trace or ():
        case = Case(trace=name, cold_start_seconds=max(plan.cold_starts_seconds), scaler="slo")
        requests = cached_trace(case.trace, case.service_seconds, case.days)
        settles_seconds = scored_from_seconds(case)
        if not any(one.at_seconds >= settles_seconds and one.service_seconds > 0 for one in requests):
            raise PilotlightError(
                f'--trace "{name}": no request of it is scored: the first {settles_seconds:g} s are run to settle; '
                "use a longer trace, of requests that take some time"
            )
    began_at = time.monotonic()
    with _bar() as progress:
        task = progress.add_task("matrix", total=None)

        def told(label: str, done: int, total: int) -> None:
            progress.update(task, description=label, completed=done, total=total)
            if not progress.console.is_terminal and (done == total or label != progress.tasks[0].fields.get("told")):
                progress.update(task, told=label)
                minutes = (time.monotonic() - began_at) / 60
                typer.echo(f"{minutes:6.1f} min  {label}: {done} of {total}", err=True)

        runs = Runs(
            out / "runs.jsonl",
            processes or os.cpu_count() or 1,
            told,
            is_over=lambda: hours is not None and time.monotonic() - began_at >= hours * 3600,
        )
        matrix = Matrix(plan, runs)
        matrix.run()
        cells, variants = matrix.cells(), matrix.variants()
    with written("--docs", docs):
        page.write_results(cells, docs, plan, variants)
    summary = report.summary_of([report.row_of_cell(cell) for cell in cells])
    if as_json:
        typer.echo(
            json.dumps([{"goal": goal, "aim": aim, "measured": found} for goal, aim, found in summary], indent=1)
        )
    else:
        for goal, aim, found in summary:
            typer.echo(f"{goal}: {found}" + (f" (aim {aim})" if aim else ""))


def _number(name: str, value: float | None, *, lowest: float | None) -> None:
    """`lowest` None: above zero."""
    if value is None or (math.isfinite(value) and (value > 0 if lowest is None else value >= lowest)):
        return
    expected = "above 0" if lowest is None else f"from {lowest:g} up"
    raise PilotlightError(f"{name} is {value:g}; it must be a number {expected}")


def _steps(text: str | None) -> tuple[ReplicaStep, ...]:
    from scaler.trigger import parse_steps  # noqa: PLC0415 - heavy imports only where the verb runs

    try:
        return () if text is None else parse_steps(text)
    except ValueError as err:
        raise PilotlightError(f'--steps is "{text}": {err}') from err


def _promise(text: str) -> tuple[float, float]:
    wait, _, share = text.partition(":")
    try:
        wait_seconds, attainment = float(wait), float(share or 0.95)
    except ValueError:
        wait_seconds = attainment = 0.0
    if not (0 < wait_seconds < 1e6 and 0 < attainment < 1):
        raise PilotlightError(f'--slo is "{text}"; it must be WAIT_SECONDS:SHARE, as in 60:0.95')
    return wait_seconds, attainment


def _with_progress(cases: list[Case]) -> Iterator[tuple[Case, Result]]:
    from scaler.backtest.cases import run_all  # noqa: PLC0415 - heavy imports only where the verb runs

    with _bar() as progress:
        task = progress.add_task("backtest", total=len(cases))
        for pair in run_all(cases, processes=min(len(cases), os.cpu_count() or 1)):
            progress.advance(task)
            yield pair


def _bar() -> Progress:
    from rich.console import Console  # noqa: PLC0415 - heavy imports only where the verb runs
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415 - as above

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # an empty line is all that it would leave there
    )
