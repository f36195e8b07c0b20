"""The composition root of the service: every part is made here, handed to the others, started and ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog

from scaler import garbage
from scaler.errors import SettingsInvalid, quoted
from scaler.evaluator import Evaluator
from scaler.health import Health
from scaler.hints import EXPLAIN, REPLICAS, WARM_POOL, Hints, check_hints_listener
from scaler.plugins import load_libraries
from scaler.readers import Readers
from scaler.service import SERVICE, ExternalScaler, server_credentials, server_options
from scaler.settings import Settings, TlsSettings, load_settings
from scaler.slices import Slices
from scaler.state import StateFile
from scaler.telemetry import MetricsListener, Telemetry, configure_logs, watch_lag

if TYPE_CHECKING:
    from scaler.readers import Subscriber

# After a drain the sources' clients get this long to close before the process ends without them.
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Where the process listens, as `host:port`; None for a listener that is switched off."""

    pid: int
    grpc: str
    hints: str | None
    metrics: str | None


async def serve(
    settings: Settings,
    *,
    ready: Callable[[Serving], None],
    stop: asyncio.Event,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Serve until `stop` is set, then drain: no new calls, streams end with OK, calls in flight finish.

    `ready` is told once everything listens. Raises SettingsInvalid where it can't start.
    """
    server_settings = settings.server
    check_hints_listener(server_settings)
    if server_settings.clients and (server_settings.tls is None or server_settings.tls.client_ca_file is None):
        raise SettingsInvalid("server.clients binds certificates to namespaces; it needs server.tls with clientCaFile")
    telemetry = Telemetry(settings.telemetry, clock=clock)
    state = None
    if settings.state_folder is not None:
        state = StateFile(Path(settings.state_folder), settings.state, clock=clock)
    evaluator = Evaluator(settings=settings, telemetry=telemetry, keeper=state, clock=clock)

    def dispatch(workload: Subscriber, outcome: object, now: float) -> None:
        evaluator.on_outcome(workload, outcome, now)  # type: ignore[arg-type]  # only workloads subscribe

    slices = Slices(garbage.Garbage().portion_done)
    health = Health((SERVICE,), telemetry)
    options = server_options(server_settings, settings.limits)
    kedas = grpc.aio.server(options=options)
    ExternalScaler(evaluator, settings, telemetry).add_to(kedas)
    health.add_to(kedas)
    grpc_address = _bind(kedas, server_settings.listen, server_settings.tls, "server.listen", "server.tls")
    servers = [kedas]
    hints_address = None
    if server_settings.hints_listen is not None:
        ours = grpc.aio.server(options=options)
        hints = Hints(
            evaluator,
            telemetry,
            server=server_settings,
            token_file=server_settings.hints_token_file,
            slices=slices,
            clock=clock,
        )
        hints.add_to(ours)
        health.add_to(ours)
        hints_address = _bind(
            ours, server_settings.hints_listen, server_settings.hints_tls, "server.hintsListen", "server.hintsTls"
        )
        servers.append(ours)
    if server_settings.reflection:
        _reflect(kedas, SERVICE)
        if len(servers) > 1:
            _reflect(servers[1], REPLICAS, EXPLAIN, WARM_POOL)
    metrics = MetricsListener(telemetry, healthy=lambda: health.serving, slices=slices)

    await _load_libraries(settings)
    async with contextlib.AsyncExitStack() as stack:
        if state is not None:
            await asyncio.to_thread(state.start)
            stack.push_async_callback(asyncio.to_thread, state.close)
            telemetry.gauges.update(
                scaler_state_observations_waiting=("Observations not yet in the state file.", lambda: state.waiting),
                scaler_state_observations_dropped=("Observations that were not written.", lambda: state.dropped),
                scaler_state_failed_commits=("Writes of the state file that failed.", lambda: state.failed_commits),
            )
        readers = Readers(
            reading=settings.reading,
            limits=settings.limits,
            metrics=telemetry,
            dispatch=dispatch,
            slices=slices,
            clock=clock,
        )
        await stack.enter_async_context(readers)
        telemetry.gauges.update(
            scaler_clients=("Open clients of sources.", readers.__len__),
            scaler_queries=("Distinct things read.", lambda: readers.queries),
            scaler_outcomes_waiting=("Outcomes not yet handed to workloads.", lambda: readers.waiting),
        )
        evaluator.attach(readers)
        metrics_address = None
        if server_settings.metrics_listen is not None:
            metrics_address = await _listen(metrics, server_settings.metrics_listen)
            stack.push_async_callback(metrics.close)
        async with asyncio.TaskGroup() as group:
            upkeep = [
                group.create_task(evaluator.run(slices)),
                group.create_task(watch_lag(telemetry)),
                group.create_task(_collect_garbage()),
            ]
            for server in servers:
                await server.start()
            ready(Serving(pid=os.getpid(), grpc=grpc_address, hints=hints_address, metrics=metrics_address))
            await stop.wait()
            health.drain()
            evaluator.drain()
            await asyncio.gather(*(server.stop(server_settings.drain_seconds) for server in servers))
            for task in upkeep:
                task.cancel()


async def _load_libraries(settings: Settings) -> None:
    """Before anything says that we serve: else the first reading, and who asked for it, would wait for the imports."""
    failed = await asyncio.to_thread(load_libraries, settings.usable_sources())
    for library, err in failed.items():
        structlog.get_logger().warning("library_not_loaded", library=library, error=type(err).__name__, exc_info=err)


async def _collect_garbage() -> None:
    while True:
        await asyncio.sleep(garbage.FULL_EVERY_SECONDS)
        garbage.look_at_everything()


def _host_and_port(address: str, setting: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    # gRPC would take 65536 and more modulo 65536.
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65_535:
        raise SettingsInvalid(f"{setting} {quoted(address)}: expected host:port, the port from 0 (a free one) to 65535")
    return host, int(port)


def _bind(server: grpc.aio.Server, address: str, tls: TlsSettings | None, setting: str, tls_setting: str) -> str:
    """Take the port; `host:port` as it came out. Raises SettingsInvalid."""
    host, _ = _host_and_port(address, setting)
    try:
        if tls is None:
            taken = server.add_insecure_port(address)
        else:
            taken = server.add_secure_port(address, server_credentials(tls, setting=tls_setting))
    except RuntimeError as err:
        raise SettingsInvalid(f"{setting} {quoted(address)}: can't listen there; is the port taken?") from err
    return f"{host}:{taken}"


async def _listen(metrics: MetricsListener, address: str) -> str:
    host, port = _host_and_port(address, "server.metricsListen")
    try:
        taken = await metrics.start(host.strip("[]"), port)
    except OSError as err:
        raise SettingsInvalid(f"server.metricsListen {quoted(address)}: can't listen there ({err.strerror})") from err
    return f"{host}:{taken}"


def _reflect(server: grpc.aio.Server, *services: str) -> None:
    from grpc_reflection.v1alpha import reflection  # noqa: PLC0415 - only where it is switched on

    reflection.enable_server_reflection((*services, "grpc.health.v1.Health", reflection.SERVICE_NAME), server)


async def _until_signal(settings: Settings, ready_file: Path | None) -> None:
    log = structlog.get_logger()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        if stop.is_set():
            return
        stop.set()
        # Threads that hang in a client's library must not keep the process.
        last_resort = threading.Timer(settings.server.drain_seconds + _CLOSE_SECONDS, os._exit, args=(0,))
        last_resort.daemon = True
        last_resort.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)

    failures: list[SettingsInvalid] = []

    def ready(serving: Serving) -> None:
        garbage.settle()
        try:
            if ready_file is not None:
                _tell_ready(ready_file, serving)
        except SettingsInvalid as err:  # told once everything is closed again, and not as one of a group
            failures.append(err)
            stop.set()
            return
        if settings.server.tls is None and not serving.grpc.startswith(("127.0.0.1:", "localhost:", "[::1]:")):
            log.warning("plaintext", listen=serving.grpc, hint="set server.tls; metadata may hold credentials")
        log.info("serving", grpc=serving.grpc, hints=serving.hints, metrics=serving.metrics, pid=serving.pid)

    # Monotonic, but counted from where Unix time stood at the start: so what was learned before a restart, hours of
    # the day included, needs no translation.
    started_at = time.time() - time.monotonic()
    await serve(settings, ready=ready, stop=stop, clock=lambda: time.monotonic() + started_at)
    if failures:
        raise failures[0]
    log.info("stopped")


def _tell_ready(file: Path, serving: Serving) -> None:
    """Raises SettingsInvalid where the file can't be written."""
    # Whole or not at all: whoever waits for the file reads it at once.
    part = file.with_name(f".{file.name}.{serving.pid}")
    try:
        part.write_text(json.dumps(asdict(serving)) + "\n", encoding="utf-8")
        part.replace(file)
    except OSError as err:
        with contextlib.suppress(OSError):
            part.unlink()
        raise SettingsInvalid(
            f"--ready-file {quoted(file)} can't be written: {err.strerror}; name one in a folder that you may write to"
        ) from err


def run(settings: Settings, *, ready_file: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT. `ready_file` gets the addresses as JSON once everything listens.

    Raises SettingsInvalid where it can't start.
    """
    configure_logs(settings.telemetry)
    if sys.platform == "win32":
        asyncio.run(_until_signal(settings, ready_file))
        return
    import uvloop  # noqa: PLC0415 - not made for every platform

    uvloop.run(_until_signal(settings, ready_file))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(f"python -m scaler serves and takes no arguments; run: pilotlight {' '.join(sys.argv[1:])}")
    run(load_settings())
