"""`python -m loadgen`: load, workers and a pretended KEDA, for experiments with any external scaler.

run     a load, simulated GPU pods and KEDA's loops against a scaler; ends with a table
send    a load only
work    simulated GPU pods only, a fixed number of them
trace   write the load of a pattern as a trace file, without sending it
export  DCGM and vLLM series of simulated pods, for a Prometheus to scrape
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from loadgen.consumers import open_pool
from loadgen.endpoints import BrokerFailed, Endpoint, parse_endpoint
from loadgen.experiment import Experiment, Plan
from loadgen.exporter import ExporterShape, PodSeries, exported
from loadgen.keda import ScaledObject, Trigger
from loadgen.pace import Pace
from loadgen.results import Point
from loadgen.senders import open_sender, send_arrivals
from loadgen.traces import write_trace
from loadgen.view import summary_table
from loadgen.workers import Fleet, cold_start
from scaler.console import fail, run_app
from scaler.errors import quoted
from scaler.loads import Length, TraceInvalid, pattern_load, read_trace
from scaler.simulator.arrivals import Arrival, Service, replay
from scaler.simulator.keda import OUR_BEHAVIOR
from scaler.simulator.rules import KedaSpec

app = typer.Typer(
    name="loadgen", no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False
)


def _finite(value: float | None) -> float | None:
    """NaN is neither below a minimum nor above it."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"Input should be a finite number; it is {value:g}")
    return value


def _number(help: str, *, least: float = 0.0, most: float | None = None) -> Any:  # noqa: A002 - typer's own word
    return typer.Option(min=least, max=most, callback=_finite, help=help)


Queue = Annotated[str, typer.Option(help="sqs+http(s)://…/account/name, kafka://…/topic or amqp://…/vhost?queue=…")]
Load = Annotated[str, typer.Option(help='a pattern, such as "bursts:every_seconds=60"')]
TraceFile = Annotated[Path | None, typer.Option(help="replay this trace file (CSV t_s,service_s, gzip or not) instead")]
Duration = Annotated[float, _number("length of the load, seconds")]
ServiceSeconds = Annotated[float, _number("mean service time, seconds")]
Variation = Annotated[float, _number("coefficient of variation of the service time", most=100)]
Seed = Annotated[int, typer.Option(help="same seed, same load")]
Speed = Annotated[float, _number("experiment seconds to one real second", least=0.001)]
ColdStart = Annotated[float, _number("mean cold start, seconds")]
Concurrency = Annotated[int, typer.Option(min=1, help="requests one pod works on at once")]
AsJson = Annotated[bool, typer.Option("--json", help="figures as JSON on standard output")]
WriteTrace = Annotated[Path | None, typer.Option(help="write what was sent as a trace file")]


@app.command()
def run(
    *,
    queue: Queue,
    metadata: Annotated[list[str], typer.Option(help="trigger metadata, key=value; repeat")],
    scaler: Annotated[str, typer.Option(help="address of the external scaler")] = "127.0.0.1:6000",
    hints: Annotated[str | None, typer.Option(help="address for replica reports; without: no view")] = None,
    namespace: Annotated[str, typer.Option(help="namespace of the ScaledObject")] = "default",
    name: Annotated[str, typer.Option(help="name of the ScaledObject")] = "loadgen",
    load: Load = "poisson",
    trace: TraceFile = None,
    duration: Duration = 300.0,
    service: ServiceSeconds = 1.0,
    variation: Variation = 0.5,
    seed: Seed = 1,
    speed: Speed = 1.0,
    cold: ColdStart = 30.0,
    concurrency: Concurrency = 1,
    poll: Annotated[float, _number("pollingInterval, seconds", least=0.1)] = 30.0,
    cooldown: Annotated[float, _number("cooldownPeriod, seconds")] = 300.0,
    sync: Annotated[float, _number("the HPA's sync period, seconds", least=0.1)] = 15.0,
    minimum: Annotated[int, typer.Option(min=0, help="minReplicaCount")] = 0,
    maximum: Annotated[int, typer.Option(min=1, help="maxReplicaCount")] = 100,
    fast_behavior: Annotated[
        bool,
        typer.Option("--fast-behavior", help="the HPA's behavior of deploy/examples/llama-slo.yaml, not KEDA's none"),
    ] = False,
    push: Annotated[bool, typer.Option(help="type external-push")] = True,
    within: Annotated[float | None, _number("the promised wait, seconds")] = None,
    settle: Annotated[float, _number("longest wait for zero after the load, seconds")] = 600.0,
    write_trace: WriteTrace = None,
    as_json: AsJson = False,
) -> None:
    """Run a load, simulated GPU pods and KEDA's loops against an external scaler."""
    arrivals = _arrivals(load, trace=trace, duration=duration, service=service, variation=variation, seed=seed)
    keda = KedaSpec(min_replicas=minimum, max_replicas=maximum, polling_seconds=poll, cooldown_seconds=cooldown)
    plan = Plan(
        endpoint=_endpoint(queue),
        arrivals=arrivals,
        scaled_object=ScaledObject(
            namespace=namespace,
            name=name,
            triggers=(Trigger(metadata=dict(_pair(item) for item in metadata), push=push),),
            keda=keda,
            hpa=keda.hpa(behavior=OUR_BEHAVIOR if fast_behavior else None),
            hpa_sync_seconds=sync,
        ),
        scaler_address=scaler,
        hints_address=hints,
        phases=cold_start(cold),
        concurrency=concurrency,
        speed=speed,
        seed=seed,
        within_seconds=within,
        settle_seconds=settle,
    )
    _finish(plan, arrivals, write_trace=write_trace, as_json=as_json)


@app.command()
def work(
    *,
    queue: Queue,
    pods: Annotated[int, typer.Option(min=1, help="number of pods")] = 1,
    cold: ColdStart = 0.0,
    concurrency: Concurrency = 1,
    seed: Seed = 1,
    speed: Speed = 1.0,
    as_json: AsJson = False,
) -> None:
    """Run a fixed number of simulated GPU pods until interrupted."""

    async def main() -> None:
        served = 0

        def on_served(_served: object) -> None:
            nonlocal served
            served += 1

        async with open_pool(_endpoint(queue)) as pool:
            fleet = Fleet(
                pool,
                Pace(speed),
                random.Random(seed),  # noqa: S311 - a seeded experiment, no secret
                phases=cold_start(cold),
                concurrency=concurrency,
                on_served=on_served,
            )
            async with fleet:
                fleet.set_replicas(pods)
                await _until_interrupted()
                figures = {"served": served, "gpu_seconds": fleet.gpu_seconds(), "errors": dict(fleet.errors)}
        typer.echo(json.dumps(figures) if as_json else f"served {served}, {figures['gpu_seconds']:.0f} GPU-seconds")

    asyncio.run(main())


@app.command()
def send(
    *,
    queue: Queue,
    load: Load = "poisson",
    trace: TraceFile = None,
    duration: Duration = 300.0,
    service: ServiceSeconds = 1.0,
    variation: Variation = 0.5,
    seed: Seed = 1,
    speed: Speed = 1.0,
    write_trace: WriteTrace = None,
    as_json: AsJson = False,
) -> None:
    """Send a load to a broker."""
    arrivals = _arrivals(load, trace=trace, duration=duration, service=service, variation=variation, seed=seed)

    async def main() -> None:
        async with open_sender(_endpoint(queue)) as sender:
            with _progress(as_json) as progress:
                task = progress.add_task("sent", total=len(arrivals))
                await send_arrivals(
                    sender, arrivals, Pace(speed), on_sent=lambda sent: progress.advance(task, len(sent))
                )

    asyncio.run(main())
    if write_trace is not None:
        write_trace_file(write_trace, arrivals)
    typer.echo(json.dumps({"requests": len(arrivals)}) if as_json else f"sent {len(arrivals)} requests")


@app.command("trace")
def trace_command(
    *,
    file: Annotated[Path, typer.Argument(help="the trace file to write")],
    load: Load = "poisson",
    duration: Duration = 3600.0,
    service: ServiceSeconds = 1.0,
    variation: Variation = 0.5,
    seed: Seed = 1,
    as_json: AsJson = False,
) -> None:
    """Write the load of a pattern as a trace file."""
    arrivals = _arrivals(load, trace=None, duration=duration, service=service, variation=variation, seed=seed)
    write_trace_file(file, arrivals)
    typer.echo(json.dumps({"requests": len(arrivals), "file": str(file)}) if as_json else f"{len(arrivals)} requests")


@app.command()
def export(
    *,
    pods: Annotated[int, typer.Option(min=0, help="number of pods")] = 1,
    gpu_percent: Annotated[float, typer.Option(min=0, max=100, help="GPU utilisation of each")] = 50.0,
    running: Annotated[int, typer.Option(min=0, help="requests each is working on")] = 1,
    waiting: Annotated[int, typer.Option(min=0, help="requests waiting at each")] = 0,
    namespace: Annotated[str, typer.Option(help="namespace of the pods")] = "default",
    port: Annotated[int, typer.Option(help="port of /metrics; 0: a free one")] = 9400,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    exported_labels: Annotated[bool, typer.Option(help="exported_pod and so on, as without honor_labels")] = False,
) -> None:
    """Publish DCGM and vLLM series until interrupted."""
    series = [
        PodSeries(
            namespace=namespace,
            pod=f"pod-{index + 1}",
            gpu_share=gpu_percent / 100,
            running=running,
            waiting=waiting,
            kv_cache_share=gpu_percent / 100,
            gpu=index % 8,
        )
        for index in range(pods)
    ]
    with exported(lambda: series, shape=ExporterShape(exported_labels=exported_labels), host=host, port=port) as url:
        typer.echo(url)
        asyncio.run(_until_interrupted())


def write_trace_file(path: Path, arrivals: list[Arrival]) -> None:
    """Write a trace; a path that can't be written becomes a clear error."""
    try:
        write_trace(path, arrivals)
    except OSError as err:
        raise typer.BadParameter(f"{path}: {err.strerror}") from err


def _finish(plan: Plan, arrivals: list[Arrival], *, write_trace: Path | None, as_json: bool) -> None:
    with _progress(as_json) as progress:
        task = progress.add_task("", total=len(arrivals))

        def on_point(point: Point) -> None:
            text = f"waiting {point.waiting}  ready {point.ready}  starting {point.starting}"
            progress.update(task, completed=len(experiment.recorder.served), description=text)

        experiment = Experiment(plan, on_point=on_point)
        asyncio.run(_interruptible(experiment.run()))
    summary = experiment.summary()
    if write_trace is not None:
        write_trace_file(write_trace, experiment.recorder.sent)
    if as_json:
        typer.echo(json.dumps(summary.as_dict()))
    else:
        Console().print(summary_table(summary, title="loadgen", within_seconds=plan.within_seconds))


async def _interruptible(work: Coroutine[Any, Any, object]) -> None:
    """Run until done or interrupted; what was recorded stays."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return


async def _until_interrupted() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


def _progress(as_json: bool) -> Progress:
    """A bar on standard error; none where the output is for machines."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=as_json,
    )


def _arrivals(
    load: str, *, trace: Path | None, duration: float, service: float, variation: float, seed: int
) -> list[Arrival]:
    if trace is not None:
        return list(replay(read_trace(trace), duration_seconds=duration))
    chance = random.Random(seed)  # noqa: S311 - a seeded experiment, no secret
    length = Length(duration, "--duration", 1.0)
    try:
        return pattern_load(load, Service(mean_seconds=service, variation=variation), chance, length)
    except ValueError as err:
        raise TraceInvalid(f"--load {quoted(load)}: {quoted(err, limit=400)[1:-1]}") from err


def _endpoint(queue: str) -> Endpoint:
    try:
        return parse_endpoint(queue)
    except ValueError as err:
        raise typer.BadParameter(str(err)) from err


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise typer.BadParameter(f'metadata "{text}": expected key=value')
    return key, value


def main() -> None:
    """Run the command; what is wrong becomes one line, with exit code 2, or 1 where it is a broker that fails."""
    # What a broker's client logs of a failure comes as an error, too, and is told once.
    for client in ("aiokafka", "aio_pika", "aiormq", "aiobotocore", "botocore"):
        logging.getLogger(client).addHandler(logging.NullHandler())
    try:
        run_app(app, "loadgen")
    except BrokerFailed as err:
        fail("loadgen", str(err), code=1)


if __name__ == "__main__":
    main()
