"""`pilotlight backtest`: policies against a trace in the simulator; `backtest matrix`: the whole comparison."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from scaler.errors import PilotlightError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress

    from scaler.backtest.cases import Case, Result

backtest = typer.Typer(invoke_without_command=True, no_args_is_help=False, help="Policies against traces, simulated.")

_PATTERN_HELP = 'a trace file (CSV with t_s and service_s), a shipped trace, or a pattern: "bursts:every_seconds=600"'


@backtest.callback()
def one(
    context: typer.Context,
    trace: Annotated[str | None, typer.Option(help=_PATTERN_HELP)] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="slo, target, keda, keda-fast, knative, ray, sagemaker; several times")
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
    concurrency: Annotated[int, typer.Option(min=1, help="requests a replica works on at once")] = 1,
    threshold: Annotated[float, typer.Option(help="metric per replica, for policy target")] = 5.0,
    steps: Annotated[str | None, typer.Option(help='the table of policy steps: "1:2,6:5,21:10"')] = None,
    service: Annotated[float, typer.Option(help="mean service seconds, for a pattern")] = 10.0,
    days: Annotated[float, typer.Option(help="length, for a pattern")] = 1.0,
    job_strategy: Annotated[
        str | None,
        typer.Option(help="run it as a ScaledJob: default, custom, accurate or eager; policies are jobs and keda"),
    ] = None,
    requests_per_job: Annotated[
        int, typer.Option(min=0, help="with --job-strategy: requests after which a job ends; 0: when nothing waits")
    ] = 1,
    gpu_cost: Annotated[float | None, typer.Option(help="what a GPU costs an hour, to show money")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for runs.csv, runs.json and a plot")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output instead of a table")] = False,
) -> None:
    """Run policies against a trace and compare share in time, waits, GPU-seconds and starts."""
    if context.invoked_subcommand is not None:
        return
    if recorded is not None:
        if trace is not None or workload is None:
            raise PilotlightError("--recorded goes with --workload namespace/name, and without --trace")
        from scaler.backtest.recorded import recorded_trace, write_trace  # noqa: PLC0415 - heavy imports only where used

        requests = recorded_trace(recorded, workload, source=source, concurrency=concurrency)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        # The processes that simulate read it by its name.
        folder = out or Path(context.with_resource(TemporaryDirectory(prefix="pilotlight-")))
        trace = str(folder / "recorded.csv")
        write_trace(requests, Path(trace))
    if trace is None:
        raise PilotlightError(f"--trace is required, or --recorded: {_PATTERN_HELP}")
    from scaler.backtest import report  # noqa: PLC0415 - heavy imports only where the verb runs
    from scaler.backtest.cases import Case  # noqa: PLC0415 - as above
    from scaler.trigger import parse_steps  # noqa: PLC0415 - as above

    wait_seconds, attainment = _promise(slo)
    cases = [
        Case(
            trace=trace,
            cold_start_seconds=cold_start,
            scaler=name,
            seed=seed,
            wait_seconds=wait_seconds,
            attainment=attainment,
            concurrency=concurrency,
            target_value=threshold,
            steps=parse_steps(steps) if steps else (),
            service_seconds=service,
            days=days,
            keep_timeline=out is not None and seed == 1,
            job_strategy=job_strategy,
            requests_per_job=requests_per_job or None,
        )
        for name in policy or (["slo", "keda"] if job_strategy is None else ["jobs", "keda"])
        for seed in range(1, seeds + 1)
    ]
    runs = list(_with_progress(cases))
    order = {case: index for index, case in enumerate(cases)}
    runs.sort(key=lambda pair: order[pair[0]])
    rows = report.rows_of_runs(runs)
    if gpu_cost is not None:
        for row in rows:
            row["cost"] = round(row["gpu_seconds"] / 3600 * gpu_cost, 2)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "runs.csv").write_text(report.csv_text(rows))
        (out / "runs.json").write_text(json.dumps(rows, indent=1) + "\n")
        report.plot_runs([(case, result) for case, result in runs if result.timeline], out / "replicas.png")
    typer.echo(json.dumps(rows, indent=1) if as_json else report.text_table(rows))


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
    processes: Annotated[int, typer.Option(min=0, help="0: every core")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="the summary as JSON")] = False,
) -> None:
    """Run every trace, cold start and promise against tuned KEDA and others; write results.md with tables and plots."""
    from scaler.backtest import page, report  # noqa: PLC0415 - heavy imports only where the verb runs
    from scaler.backtest.matrix import PARTS, Matrix, Plan, Runs  # noqa: PLC0415 - as above
    from scaler.backtest.traces import known_traces, short_traces  # noqa: PLC0415 - as above

    unknown = set(part or ()) - set(PARTS)
    if unknown:
        raise PilotlightError(f'--part is "{unknown.pop()}"; it must be one of {", ".join(PARTS)}')
    traces = tuple(trace or known_traces())
    plan = Plan(
        traces=traces,
        seeds=seeds,
        unseen_seeds=unseen_seeds,
        fast_seeds=fast_seeds,
        parts=tuple(part or PARTS),
        varied_traces=short_traces(traces),
    )
    if small:
        plan = plan.small()
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
    page.write_results(cells, docs, plan, variants)
    summary = report.summary_of([report.row_of_cell(cell) for cell in cells])
    if as_json:
        typer.echo(
            json.dumps([{"goal": goal, "aim": aim, "measured": found} for goal, aim, found in summary], indent=1)
        )
    else:
        for goal, aim, found in summary:
            typer.echo(f"{goal}: {found}" + (f" (aim {aim})" if aim else ""))


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

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
