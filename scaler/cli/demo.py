"""`pilotlight demo`: the whole thing on one machine with nothing but Python.

An embedded SQS server and `pilotlight serve` run as processes of their own; KEDA's loops, the simulated GPU pods
and a bursty load run here and reach them over real gRPC and HTTP.
"""

from __future__ import annotations

import asyncio
import json as json_text
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaler.backtest.folders import prepared
from scaler.errors import PilotlightError

if TYPE_CHECKING:
    from loadgen.endpoints import SqsEndpoint
    from loadgen.experiment import Experiment, Plan
    from loadgen.reports import Why
    from loadgen.view import View

_NAMESPACE, _NAME = "demo", "document-processor"
_COLD_START_SECONDS = 4.0
_SERVICE_SECONDS = 1.5
_PROMISED_WAIT_SECONDS = 15.0
# KEDA's own are 30 s and 300 s, the HPA's sync 15 s: shorter, since a demo has a minute.
_POLL_SECONDS, _COOLDOWN_SECONDS, _HPA_SYNC_SECONDS = 3.0, 4.0, 3.0
_START_TIMEOUT_SECONDS = 60.0  # a busy machine takes half a minute to import what is needed
_STOP_TIMEOUT_SECONDS = 10.0
_SHORTEST_SECONDS = 30.0
_REGION, _KEY, _SECRET = "eu-central-1", "demo", "demo"  # moto takes any


class DemoFailed(PilotlightError):
    """A part of the demo did not start."""


def demo(
    *,
    duration: Annotated[
        float, typer.Option(envvar="DURATION", min=_SHORTEST_SECONDS, help="length of the demo in seconds")
    ] = 90.0,
    out: Annotated[Path, typer.Option(help="folder for the plot, the trace and the logs")] = Path("build/demo"),
    seed: Annotated[int, typer.Option(help="same seed, same load")] = 1,
    json: Annotated[bool, typer.Option("--json", help="the figures as JSON on standard output")] = False,
) -> None:
    """Watch a queue wake a workload from zero, burst, and go back to zero; ends with a table and a plot.

    Returns 0 only if the workload left zero, grew above one replica and came back to zero.
    """
    try:
        import aiobotocore  # noqa: F401, PLC0415 - only to see whether the extra is installed
        import moto  # noqa: F401, PLC0415
    except ImportError as err:
        typer.echo(f"pilotlight demo needs {err.name}: pip install 'pilotlight[demo]'", err=True)
        raise typer.Exit(2) from err
    prepared("--out", out)
    raise typer.Exit(asyncio.run(_demo(duration=duration, out=out, seed=seed, as_json=json)))


async def _demo(*, duration: float, out: Path, seed: int, as_json: bool) -> int:
    from rich.console import Console  # noqa: PLC0415

    from loadgen.experiment import Experiment  # noqa: PLC0415
    from loadgen.plot import plot_run  # noqa: PLC0415
    from loadgen.traces import write_trace  # noqa: PLC0415
    from loadgen.view import summary_table, view_for  # noqa: PLC0415

    console = Console(stderr=as_json)
    console.print("starting an SQS server and pilotlight serve …", style="dim")
    async with _sqs_server(out) as endpoint, _service(out) as (scaler_address, hints_address):
        plan = _plan(endpoint, scaler_address, hints_address, duration=duration, seed=seed)
        experiment = Experiment(plan)
        title = "Pilotlight demo"
        with view_for(console, title=title, duration_seconds=duration) as view:
            interrupted = await _watch(experiment, view, hints_address)
    summary = experiment.summary()
    picture, trace = out / "demo.png", out / "trace.csv.gz"
    plot_run(
        picture,
        experiment.recorder,
        title="Pilotlight demo: from zero, through a burst, back to zero",
        subtitle=f"{summary.requests} requests of {_SERVICE_SECONDS:g} s, cold start {_COLD_START_SECONDS:g} s, "
        f"KEDA polls every {_POLL_SECONDS:g} s, the HPA syncs every {_HPA_SYNC_SECONDS:g} s",
        events=experiment.events,
        within_seconds=plan.within_seconds,
    )
    write_trace(trace, experiment.recorder.sent)
    if as_json:
        typer.echo(json_text.dumps({**summary.as_dict(), "plot": str(picture), "trace": str(trace)}))
    else:
        console.print(summary_table(summary, title="Pilotlight demo", within_seconds=plan.within_seconds))
        console.print(f"plot: {picture}   trace: {trace}   logs: {out}", highlight=False, soft_wrap=True)
    if interrupted:
        return 130
    missing = [
        text
        for text, reached in (
            ("it did not leave zero", summary.left_zero),
            ("it did not grow above one replica", summary.most_replicas > 1),
            ("it did not come back to zero", summary.returned_to_zero),
        )
        if not reached
    ]
    for text in missing:
        console.print(f"not as it should be: {text}", style="red")
    return 1 if missing else 0


def _plan(endpoint: SqsEndpoint, scaler_address: str, hints_address: str, *, duration: float, seed: int) -> Plan:
    from loadgen.experiment import Plan  # noqa: PLC0415
    from loadgen.keda import ScaledObject, Trigger  # noqa: PLC0415
    from loadgen.workers import cold_start  # noqa: PLC0415
    from scaler.simulator.arrivals import Arrival, Poisson, Service, generate  # noqa: PLC0415
    from scaler.simulator.rules import HpaBehavior, KedaSpec, ScalingPolicy, ScalingRules, Unit  # noqa: PLC0415

    # (start, length, rate) of a large burst, then a small one, early enough that its work, the policy's hold, the
    # cooldown and a poll end in time.
    bursts = [(3.0, min(0.1 * duration, 8.0), 6.0)]
    if duration >= 60:
        bursts.append((min(0.5 * duration, duration - 33.0), 3.0, 3.0))
    chance = random.Random(seed)  # noqa: S311 - a seeded load, no secret
    service = Service(mean_seconds=_SERVICE_SECONDS, variation=0.3)
    arrivals = [
        Arrival(from_seconds + arrival.at_seconds, arrival.service_seconds)
        for from_seconds, seconds, rate_per_second in bursts
        for arrival in generate(Poisson(rate_per_second=rate_per_second), service, chance, seconds)
    ]
    keda = KedaSpec(max_replicas=10, polling_seconds=_POLL_SECONDS, cooldown_seconds=_COOLDOWN_SECONDS)
    behavior = HpaBehavior(
        scale_up=ScalingRules((ScalingPolicy(Unit.PERCENT, 900, 15.0),), stabilization_seconds=0.0),
        scale_down=ScalingRules((ScalingPolicy(Unit.PERCENT, 100, 15.0),), stabilization_seconds=0.0),
    )
    return Plan(
        endpoint=endpoint,
        arrivals=arrivals,
        scaled_object=ScaledObject(
            namespace=_NAMESPACE,
            name=_NAME,
            triggers=(Trigger(metadata=_metadata(endpoint, scaler_address)),),
            keda=keda,
            hpa=keda.hpa(behavior=behavior),
            hpa_sync_seconds=_HPA_SYNC_SECONDS,
        ),
        scaler_address=scaler_address,
        hints_address=hints_address,
        phases=cold_start(_COLD_START_SECONDS),
        seed=seed,
        within_seconds=_PROMISED_WAIT_SECONDS,
        settle_seconds=duration,
        linger_seconds=3.0,
        stop_at_seconds=duration,
    )


def _metadata(endpoint: SqsEndpoint, scaler_address: str) -> dict[str, str]:
    """What the ScaledObject's trigger would say."""
    return {
        "scalerAddress": scaler_address,
        "source": "sqs",
        "queueURL": endpoint.queue_url,
        "awsRegion": endpoint.region,
        "awsEndpoint": endpoint.endpoint_url or "",
        "awsAccessKeyID": _KEY,
        "awsSecretAccessKey": _SECRET,
        "waitSeconds": f"{_PROMISED_WAIT_SECONDS:g}",
        "serviceSeconds": f"{_SERVICE_SECONDS:g}",
        "cooldownSeconds": f"{_COOLDOWN_SECONDS:g}",
        "maxReplicas": "10",
        "sampleSeconds": "1",
    }


async def _watch(experiment: Experiment, view: View, hints_address: str) -> bool:
    """Run the experiment and show it; True where it was interrupted."""
    import grpc  # noqa: PLC0415

    from loadgen.endpoints import BrokerFailed  # noqa: PLC0415
    from loadgen.reports import explain  # noqa: PLC0415

    running = asyncio.create_task(experiment.run())
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        running.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    whys: Sequence[Why] = ()
    async with grpc.aio.insecure_channel(hints_address) as channel:
        while not running.done():
            whys = await explain(channel, _NAMESPACE, _NAME) or whys
            view.update(experiment, whys)
            await asyncio.wait({running}, timeout=0.25)
    try:
        running.result()
    except asyncio.CancelledError:
        if not interrupted:
            raise
    except BrokerFailed as err:
        raise DemoFailed(str(err)) from err
    view.update(experiment, whys)
    return interrupted


@asynccontextmanager
async def _sqs_server(out: Path) -> AsyncIterator[SqsEndpoint]:
    """Moto's SQS server with one queue."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    from loadgen.endpoints import SqsEndpoint  # noqa: PLC0415
    from loadgen.senders import open_sqs_client  # noqa: PLC0415

    port = _free_port()
    endpoint = SqsEndpoint(
        queue_url="",
        region=_REGION,
        endpoint_url=f"http://127.0.0.1:{port}",
        access_key_id=_KEY,
        secret_access_key=_SECRET,
        visibility_seconds=120,
    )
    arguments = ("-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
    async with _child("the SQS server", arguments, out / "sqs.log") as process, open_sqs_client(endpoint) as client:
        async with _starting("the SQS server", process, out / "sqs.log"):
            while True:
                try:
                    answer = await client.create_queue(QueueName="documents")
                    break
                except (BotoCoreError, ClientError):
                    await asyncio.sleep(0.1)
        yield replace(endpoint, queue_url=answer["QueueUrl"])


@asynccontextmanager
async def _service(out: Path) -> AsyncIterator[tuple[str, str]]:
    """`pilotlight serve`; yields the addresses for KEDA and for reports."""
    ready_file = out / "serve.json"
    ready_file.unlink(missing_ok=True)
    arguments = (
        "-m", "scaler.cli", "serve", "--local", "--json", "--listen", "127.0.0.1:0", "--hints-listen", "127.0.0.1:0",
        "--metrics-listen", "off", "--ready-file", str(ready_file),
    )  # fmt: skip
    async with _child("pilotlight serve", arguments, out / "serve.log") as process:
        async with _starting("pilotlight serve", process, out / "serve.log"):
            while not ready_file.exists():  # noqa: ASYNC110 - written by another process
                await asyncio.sleep(0.05)
        addresses = json_text.loads(ready_file.read_text(encoding="utf-8"))
        yield addresses["grpc"], addresses["hints"]


@asynccontextmanager
async def _child(what: str, arguments: Sequence[str], log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run Python with these arguments until the block ends; its output goes to `log`."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for us alone: we end it in order
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(_STOP_TIMEOUT_SECONDS):
                    await process.wait()
            except TimeoutError:
                typer.echo(f"{what} did not end within {_STOP_TIMEOUT_SECONDS:g} s and was killed", err=True)
                process.kill()
                await process.wait()


@asynccontextmanager
async def _starting(what: str, process: asyncio.subprocess.Process, log: Path) -> AsyncIterator[None]:
    """Bound the wait for a child's start; one that ends meanwhile, or takes too long, is told with its log."""
    start = asyncio.timeout(_START_TIMEOUT_SECONDS)
    ended = asyncio.create_task(process.wait())

    def give_up(_task: object) -> None:
        start.reschedule(0.0)

    ended.add_done_callback(give_up)
    try:
        async with start:
            yield
    except TimeoutError as err:
        how = f"ended with status {process.returncode}" if ended.done() else "did not start in time"
        raise DemoFailed(f"{what} {how}; {log} says:\n{_tail(log)}") from err
    finally:
        ended.remove_done_callback(give_up)
        ended.cancel()


def _tail(log: Path, lines: int = 15) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def _free_port() -> int:
    """A free port of the loopback interface; another process could take it before its server does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
