"""Speed and size against the goals of the design, as JSON.

`python -m tests.bench [PART ...]` runs all parts or those named; all take about six minutes. Server and client are
pinned to a core each where there are two, and what other programs took of the server's core stands beside what that may
have spoilt. A figure says what it is in its name; `goal` and `met` stand beside those that have one, and `missed` names
those that were not met. A part that can't be measured says why, and the exit status is 1. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from scaler._generated import externalscaler_pb2 as pb
from tests import compiled
from tests.bench import brokers
from tests.bench import decision as decisions
from tests.bench.goals import goal
from tests.bench.wire import Call, Connection, Outcome, pace, percentile, prepare, saturate

SERVER_CORE, CLIENT_CORE = 0, 1
SERVICE = "/externalscaler.ExternalScaler/"
# No part takes half as long on a machine that does little else.
PART_SECONDS = 240
WINDOW_SECONDS = 5.0


def say(text: str) -> None:
    """Progress."""
    sys.stderr.write(f"bench: {text}\n")


def go_first() -> bool:
    """Let this process and its children run before others where we may say so (root on Linux).

    On a machine that others use too, their time slices would show up as our latency. The scheduler weighs sessions
    before processes (autogroup), so we take one of our own. (A real-time class would keep gRPC's own thread from
    running beside the event loop.)
    """
    try:
        if os.getpid() != os.getsid(0):
            os.setsid()
        Path("/proc/self/autogroup").write_text("-20")
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    process: psutil.Process
    grpc: str
    metrics: str | None

    def cpu_seconds(self) -> float:
        """Time its threads have spent on a core."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def rss_bytes(self) -> int:
        """Its memory."""
        return int(self.process.memory_info().rss)

    def scraped(self, name: str) -> float:
        """A series without labels of its own metrics."""
        for line in _scrape(self).splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise LookupError(name)


class CoreShares:
    """Who had the server's core from now on: itself, others (their shares of the time), or nobody."""

    def __init__(self, chosen: Server) -> None:
        self._server = chosen
        self._before = self._look()

    def _look(self) -> tuple[float, float, float]:
        times = psutil.cpu_times(percpu=True)[SERVER_CORE]
        idle = times.idle + getattr(times, "iowait", 0.0)
        return time.monotonic(), float(idle), self._server.cpu_seconds()

    def so_far(self) -> dict[str, float]:
        """The shares since then."""
        now, idle, own = (after - before for after, before in zip(self._look(), self._before, strict=True))
        return {
            "server_share_of_a_core": round(own / now, 2),
            "others_share_of_its_core": round(max(1 - (idle + own) / now, 0.0), 2),
        }


@contextlib.contextmanager
def server(kind: str, settings: Mapping[str, Any] | None = None) -> Iterator[Server]:
    """Run a server of `tests.bench.server` on its core."""
    with tempfile.TemporaryDirectory(prefix="pilotlight-bench-") as folder:
        home = Path(folder)
        config, ready = home / "config.yaml", home / "ready.json"
        listeners = {"listen": "127.0.0.1:0", "hintsListen": None, "metricsListen": "127.0.0.1:0"}
        whole = {"server": listeners, "telemetry": {"logFormat": "json"}}
        for section, values in (settings or {}).items():
            whole[section] = whole.get(section, {}) | values
        config.write_text(yaml.safe_dump(whole))
        with (home / "log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.server", kind, ready, config], stdout=log, stderr=log
            )
        try:
            if (os.cpu_count() or 1) > 1:
                psutil.Process(child.pid).cpu_affinity([SERVER_CORE])
            deadline = time.monotonic() + 60
            while not ready.exists():
                if child.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((home / "log").read_text())
                time.sleep(0.05)
            said = json.loads(ready.read_text())
            yield Server(psutil.Process(child.pid), said["grpc"], said["metrics"])
        finally:
            child.terminate()
            try:
                child.wait(40)
            except subprocess.TimeoutExpired:
                child.kill()


def metadata(kind: str, number: int) -> dict[str, str]:
    """Twelve keys, as long as those of a real trigger."""
    return {
        "scalerAddress": "pilotlight.pilotlight.svc.cluster.local:6000",
        "source": "bench",
        "kind": kind,
        "number": str(number),
        **{f"filler{index}": f"value-{index}-of-a-usual-length" for index in range(8)},
    }


def ref(kind: str, number: int) -> pb.ScaledObjectRef:
    """The workload `number`."""
    return pb.ScaledObjectRef(
        namespace=f"team-{number % 50}", name=f"model-{number}", scalerMetadata=metadata(kind, number)
    )


def get_metrics(kind: str, number: int) -> Call:
    """GetMetrics of a workload."""
    request = pb.GetMetricsRequest(scaledObjectRef=ref(kind, number), metricName=f"target-bench-orders-{number}")
    return prepare(SERVICE + "GetMetrics", request.SerializeToString())


def is_active(kind: str, number: int) -> Call:
    """IsActive of a workload."""
    return prepare(SERVICE + "IsActive", ref(kind, number).SerializeToString())


def kind_of(number: int) -> str:
    """A tenth of the workloads hangs, a tenth fails, the others churn: an eighth of these changes each second."""
    return {8: "hang", 9: "fail"}.get(number % 10, "churn")


def admit(connection: Connection, kinds: list[str]) -> None:
    """Let the server meet every workload, as KEDA's first reconcile does."""
    specs = (
        prepare(SERVICE + "GetMetricSpec", ref(kind, number).SerializeToString()) for number, kind in enumerate(kinds)
    )
    pending = 0

    def ended(_stream: int, succeeded: bool) -> None:
        nonlocal pending
        pending -= 1
        assert succeeded

    connection.on_end = ended
    for batch in iter(lambda: list(itertools.islice(specs, 20)), []):
        connection.send(batch)
        pending += len(batch)
        while pending:
            connection.receive(5.0)


def until_failing(service: Server, wanted: int) -> None:
    """Wait until every workload that can't be read is known to: time-outs of what hangs take their time."""
    deadline = time.monotonic() + 120
    while f"scaler_workloads_failing {wanted}.0" not in _scrape(service):
        if time.monotonic() > deadline:
            raise TimeoutError("the workloads that hang were not found out")
        time.sleep(1)


def ms(values: Iterable[float], share: float) -> float | None:
    """A percentile of lengths in seconds, in milliseconds."""
    found = percentile(list(values), share)
    return None if found is None else round(found * 1e3, 2)


def missed(result: Any, path: str = "") -> Iterator[str]:
    """Where in `result` a goal was not met."""
    if isinstance(result, dict):
        if result.get("met") is False:
            yield f"{path}: {result['value']} (goal {result['goal']})"
        for name, value in result.items():
            yield from missed(value, f"{path}.{name}" if path else name)


# --- parts ---


def throughput(*, seconds: float = 5.0, runs: int = 3) -> dict[str, Any]:
    """GetMetrics and IsActive in turn, as fast as one pinned core answers: bare grpc.aio against the service.

    And at a pace that leaves both idle for most of the time.
    """
    with server("bare") as bare, server("service") as service:
        servers = {"bare": bare, "service": service}
        rates: dict[str, list[float]] = {"bare": [], "service": []}
        costs: dict[str, list[float]] = {"bare": [], "service": []}
        busy: dict[str, list[float]] = {"bare": [], "service": []}
        calm: dict[str, list[float]] = {"bare": [], "service": []}
        shares: dict[str, dict[str, float]] = {}
        workloads = 200
        connections = {name: Connection(chosen.grpc) for name, chosen in servers.items()}
        admit(connections["service"], ["steady"] * workloads)
        time.sleep(2.5)
        calls = [
            call for number in range(workloads) for call in (get_metrics("steady", number), is_active("steady", number))
        ]
        for connection in connections.values():
            saturate(connection, itertools.cycle(calls), in_flight=32, seconds=1.0)  # warm
        for run in range(runs):
            for name, chosen in servers.items():
                core, before = CoreShares(chosen), chosen.cpu_seconds()
                outcome = saturate(connections[name], itertools.cycle(calls), in_flight=32, seconds=seconds)
                cpu = chosen.cpu_seconds() - before
                shares[name] = core.so_far()
                assert outcome.failed == 0, f"{outcome.failed} calls failed"
                rates[name].append(outcome.succeeded / outcome.seconds)
                costs[name].append(cpu / outcome.succeeded * 1e6)
                busy[name].extend(took for _, took in outcome.latencies)
                say(f"throughput {run + 1}/{runs} {name}: {rates[name][-1]:.0f} RPC/s, {costs[name][-1]:.0f} us each")
        for _ in range(runs):
            for name, connection in connections.items():
                outcome = pace(connection, itertools.cycle(calls), per_second=300, seconds=seconds / 2)
                calm[name].extend(took for _, took in outcome.latencies)
    rate = {name: statistics.median(values) for name, values in rates.items()}
    cost = {name: statistics.median(values) for name, values in costs.items()}
    return {
        "rpc_per_second": {name: round(value) for name, value in rate.items()},
        "ratio": goal(round(rate["service"] / rate["bare"], 3), 0.85, at_least=True),
        "cpu_us_per_rpc": {name: round(value, 1) for name, value in cost.items()},
        "cpu_ratio": round(cost["bare"] / cost["service"], 3),
        "latency_with_32_in_flight": _both(busy),
        "latency_at_300_per_second": _both(calm),
        "core_in_the_last_run": shares,
    }


def _both(took: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float | None]]:
    return {name: {"p50_ms": ms(values, 0.5), "p99_ms": ms(values, 0.99)} for name, values in took.items()}


def latency(*, seconds: float = 25.0) -> dict[str, Any]:
    """1,000 RPC/s: a tenth of the workloads changes each second, sources hang and fail, metrics are scraped.

    `bare` is what a handler that does nothing answers at that pace on this machine, before, between and after: nobody
    can be quicker here. p99 is the median over windows of WINDOW_SECONDS, so that a burst of other programs spoils one
    of them and not the figure; each window's and that of all calls stand beside it.
    """
    result: dict[str, Any] = {"bare": {"before": _bare_latency()}}
    for workloads, limit_ms in ((1_000, 10.0), (10_000, 20.0)):
        result[f"at_{workloads}_workloads"] = _latency(workloads, limit_ms, seconds)
        result["bare"]["between" if workloads == 1_000 else "after"] = _bare_latency()
    return result


def _bare_latency() -> dict[str, Any]:
    with server("bare") as bare:
        connection = Connection(bare.grpc)
        calls = itertools.cycle([get_metrics("steady", 1), is_active("steady", 1)])
        pace(connection, calls, per_second=1_000, seconds=1.0)  # warm
        core = CoreShares(bare)
        outcome = pace(connection, calls, per_second=1_000, seconds=2 * WINDOW_SECONDS)
        took = [took for _, took in outcome.latencies]
        result = {
            "p50_ms": ms(took, 0.5),
            "p99_ms": ms(took, 0.99),
            "p999_ms": ms(took, 0.999),
            **core.so_far(),
            "client_late_p99_ms": ms(outcome.lateness, 0.99),
        }
    say(f"latency, bare: {json.dumps(result)}")
    return result


def _p99(latencies: Sequence[tuple[float, float]], limit_ms: float | None = None) -> dict[str, Any]:
    """The median over windows, beside its goal where there is one."""
    if not latencies:
        return {"p99_ms": None if limit_ms is None else goal(None, limit_ms)}
    began = min(due for due, _ in latencies)
    windows: dict[int, list[float]] = {}
    for due, took in latencies:
        windows.setdefault(int((due - began) / WINDOW_SECONDS), []).append(took)
    each = [ms(windows[window], 0.99) or 0.0 for window in sorted(windows)]
    median = statistics.median(each)
    return {
        "p99_ms": median if limit_ms is None else goal(median, limit_ms),
        "p99_of_each_window_ms": each,
        "p99_of_all_ms": ms((took for _, took in latencies), 0.99),
    }


# perf_counter is one clock for all processes on Linux. The body is not looked at: that would only cost time.
_SCRAPER = """
import os, socket, sys, time
os.setpriority(os.PRIO_PROCESS, 0, 0)  # it shares the client's core, and the client measures
host, _, port = sys.argv[1].rpartition(":")
while True:
    time.sleep(2)
    began, size = time.perf_counter(), 0
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\\r\\n\\r\\n")
        while data := connection.recv(1 << 20):
            size += len(data)
    print(began, time.perf_counter(), size, flush=True)
"""


def _latency(workloads: int, limit_ms: float, seconds: float) -> dict[str, Any]:
    with server("service", {"telemetry": {"workloadSeries": True}}) as service:
        connection = Connection(service.grpc)
        kinds = [kind_of(number) for number in range(workloads)]
        started = time.monotonic()
        admit(connection, kinds)
        admitted_seconds = time.monotonic() - started
        say(f"latency: {workloads} workloads admitted in {admitted_seconds:.1f} s")
        until_failing(service, kinds.count("hang") + kinds.count("fail"))
        chance = random.Random(11)
        # KEDA polls what hangs and fails as well; those calls end in an error, at once.
        calls = [
            call
            for number in range(workloads)
            for call in (get_metrics(kinds[number], number), is_active(kinds[number], number))
        ]
        chance.shuffle(calls)
        # In a process of its own: the client that measures must not wait for its own interpreter's lock.
        evaluations, core = service.scraped("scaler_evaluations_total"), CoreShares(service)
        with subprocess.Popen(
            [sys.executable, "-c", _SCRAPER, str(service.metrics)], stdout=subprocess.PIPE, text=True
        ) as scraper:
            try:
                outcome: Outcome = pace(connection, itertools.cycle(calls), per_second=1_000, seconds=seconds)
                shares = core.so_far()
            finally:
                scraper.terminate()
            said, _ = scraper.communicate(timeout=30)
        scrapes = [tuple(map(float, line.split())) for line in said.splitlines()]
        took = [took for _, took in outcome.latencies]
        during = [
            (due, took)
            for due, took in outcome.latencies
            if any(began - 0.005 <= due <= ended for began, ended, _ in scrapes)
        ]
        evaluations = service.scraped("scaler_evaluations_total") - evaluations
        result = {
            "p50_ms": ms(took, 0.5),
            **_p99(outcome.latencies, limit_ms),
            "p999_ms": ms(took, 0.999),
            "max_ms": ms(took, 1.0),
            "during_scrapes": {
                "p50_ms": ms((took for _, took in during), 0.5),
                **_p99(during, limit_ms),
                "rpcs": len(during),
                "scrapes": len(scrapes),
                "median_seconds": round(statistics.median(ended - began for began, ended, _ in scrapes), 2),
                "bytes": int(max(size for _, _, size in scrapes)),
            },
            **shares,
            "client_late_p99_ms": ms(outcome.lateness, 0.99),
            "client_late_max_ms": ms(outcome.lateness, 1.0),
            "evaluations_per_second": round(evaluations / outcome.seconds),
            "answered": outcome.succeeded,
            "errors_of_hung_and_failing": outcome.failed,
            "admitted_per_second": round(workloads / admitted_seconds),
        }
        connection.close()
    say(f"latency at {workloads}: {json.dumps(result)}")
    return result


def memory(*, workloads: int = 10_000) -> dict[str, Any]:
    """Resident memory per workload, polled, and with StreamIsActive open."""
    with server("service", {"telemetry": {"workloadSeries": True}}) as service:
        connection = Connection(service.grpc)
        admit(connection, ["steady"] * 100)
        calls = (get_metrics("steady", number) for number in itertools.cycle(range(100)))
        saturate(connection, calls, in_flight=8, seconds=1.0)
        _scrape(service)
        time.sleep(2)
        before = service.rss_bytes()
        admit(connection, ["steady"] * workloads)
        everything = itertools.cycle(
            call for number in range(workloads) for call in (get_metrics("steady", number), is_active("steady", number))
        )
        time.sleep(3)
        answered = 0
        while answered < 2 * workloads:  # every workload's answers are made once
            outcome = saturate(connection, everything, in_flight=8, seconds=2.0)
            assert outcome.failed == 0
            answered += outcome.succeeded
        _scrape(service)
        time.sleep(3)
        assert service.scraped("scaler_workloads") == workloads, "some workloads are not there"
        polled = (service.rss_bytes() - before) / (workloads - 100)
        say(f"memory: {polled / 1024:.1f} KiB per workload polled")
        streams = _open_streams(service, workloads)
        _scrape(service)
        time.sleep(3)
        assert service.scraped("scaler_streams") == workloads, "some streams ended"
        streaming = (service.rss_bytes() - before) / (workloads - 100)
        say(f"memory: {streaming / 1024:.1f} KiB per workload streaming")
        for each in (connection, *streams):
            each.close()
    return {
        "polled_kib_per_workload": goal(round(polled / 1024, 1), 15.0),
        "streaming_kib_per_workload": goal(round(streaming / 1024, 1), 45.0),
        "process_mib_before": round(before / 2**20, 1),
    }


def _open_streams(service: Server, workloads: int) -> list[Connection]:
    """A StreamIsActive for each workload, over four connections, with never more than 100 unanswered on each.

    Opened all at once they would wait in gRPC's queues, on a busy machine for longer than one would wait for them.
    """
    connections = [Connection(service.grpc) for _ in range(4)]
    opened = [0] * len(connections)
    answered: list[set[int]] = [set() for _ in connections]
    for connection, got in zip(connections, answered, strict=True):
        connection.on_message = lambda stream, _message, got=got: got.add(stream)
    waiting = [
        prepare(SERVICE + "StreamIsActive", ref("steady", number).SerializeToString()) for number in range(workloads)
    ]
    heard_at, heard = time.monotonic(), 0
    while heard < workloads:
        for index, connection in enumerate(connections):
            room = 100 - (opened[index] - len(answered[index]))
            while room > 0 and waiting and connection.can_send(waiting[-1]):
                connection.send([waiting.pop()])
                opened[index] += 1
                room -= 1
            connection.receive(0.02)
        if (now_heard := sum(map(len, answered))) > heard:
            heard_at, heard = time.monotonic(), now_heard
        if time.monotonic() - heard_at > 30:
            raise TimeoutError(f"{heard} of {workloads} streams were answered, and no more for 30 s")
    return connections


def _scrape(service: Server) -> str:
    with urllib.request.urlopen(f"http://{service.metrics}/metrics", timeout=60) as answer:
        return str(answer.read(), "utf-8")


def decision() -> dict[str, Any]:
    """One decision of `slo`, estimator update included: 50 ready, 10 starting, 10,000 waiting; the median of runs.

    The goal is for the compiled package (docs/operations.md) where the source counts and replicas are seen; how long
    the sources take, and other cases, stand beside it.
    """
    main = "counted, seen"

    def medians(runs: list[dict[str, float]]) -> dict[str, float]:
        return {name: round(statistics.median(run[name] for run in runs), 1) for name in runs[0]}

    each = {"interpreted": decisions.measured(decisions.ROOT, compiled=False)}
    figure: dict[str, Any] = {"interpreted_median_microseconds": medians(each["interpreted"])[main]}
    folder = decisions.ROOT / "build" / "compiled"
    try:
        say("decision: compiling, about a minute unless it was compiled before")
        compiled.build(folder)
    except (OSError, subprocess.CalledProcessError) as err:
        say("decision: could not be compiled")
        figure["compiled_median_microseconds"] = goal(None, 30.0)
        figure["why"] = f"nothing was compiled, which needs a C compiler, mypy and setuptools: {err!r}"
    else:
        each["compiled"] = decisions.measured(folder, compiled=True)
        of_cases = medians(each["compiled"])
        figure["compiled_median_microseconds"] = goal(of_cases[main], 30.0)
        figure["compiled_median_microseconds_by_case"] = of_cases
    return figure | {"of_each_run": each}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "throughput": throughput,
    "latency": latency,
    "memory": memory,
    "decision": decision,
    "kafka": brokers.kafka,
    "rabbitmq": brokers.rabbitmq,
}


def measured(name: str) -> dict[str, Any]:
    """The part's figures, or why there are none. It ends within PART_SECONDS."""

    def too_long(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"it took longer than {PART_SECONDS} s")

    say(name)
    if (os.cpu_count() or 1) > 1:
        psutil.Process().cpu_affinity([CLIENT_CORE])
    began = time.monotonic()
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(0 if PARTS[name] in brokers.BOUNDED else PART_SECONDS)
    try:
        result = PARTS[name]()
    except Exception as err:  # noqa: BLE001 - the other parts' figures are worth having
        say(f"{name}: {err!r}")
        result = {"failed": f"{type(err).__name__}: {err}"}
    finally:
        signal.alarm(0)
    return result | {"took_seconds": round(time.monotonic() - began), "load": round(os.getloadavg()[0], 1)}


def main() -> None:
    """Run the parts and print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="which parts; all where none is named")
    chosen = parser.parse_args().parts or list(PARTS)
    result: dict[str, Any] = {
        "machine": {
            "python": platform.python_version(),
            "grpcio": importlib.metadata.version("grpcio"),
            "cores": os.cpu_count(),
            "load_before": round(os.getloadavg()[0], 1),
            "scheduled_first": go_first(),
        },
    }
    for name in chosen:
        result[name] = measured(name)
    result["missed"] = list(missed(result))
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    sys.exit(any("failed" in result[name] for name in chosen))


if __name__ == "__main__":
    main()
