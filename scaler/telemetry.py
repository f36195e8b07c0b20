"""Logs and metrics: what the service says about itself.

Logs are structlog events, JSON unless on a terminal: one for each decision that changed, one when a source
starts failing and one when it has recovered, within a budget, and a counter for those above it. Metrics have
an HTTP listener of their own. The few process series go through the stock renderer; series per workload, of
which there can be many, are written in small portions between which RPCs have their turn.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, TextIO

import structlog
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from scaler.core.model import Decision
from scaler.core.warm_pool import WarmHint
from scaler.settings import TelemetrySettings
from scaler.slices import Slices

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Per-workload series are written unless asked for up to this many workloads.
_SERIES_UP_TO_WORKLOADS = 1_000
# Workloads written before others get their turn: under half a millisecond.
_PORTION = 100
# Log events of workloads: this many a second, and this many at once.
_EVENTS_PER_SECOND = 20.0
_EVENTS_AT_ONCE = 100.0

_RPC_BUCKETS = (0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 2.5)
_READ_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)


class DryRun(NamedTuple):
    """What `slo` would have done: its replicas now, its GPU-seconds since it was watched, and those answered."""

    desired_replicas: int
    gpu_seconds: float
    answered_gpu_seconds: float


class Learned(NamedTuple):
    """What `slo` has learned about one workload, as its series and Explain show it."""

    achieved: float | None  # share of requests that started in time, None before any was due
    service_seconds: float
    cold_start_seconds: float


class WorkloadFacts(NamedTuple):
    """One workload as its series show it."""

    namespace: str
    name: str
    metric_name: str
    source: str
    policy: str
    failing: bool
    last: Decision | None
    dry_run: DryRun | None = None
    warm: WarmHint | None = None
    warm_until_unix_seconds: float | None = None
    learned: Learned | None = None


class Histogram:
    """Counts of observations by upper bound, in seconds. One event loop writes it, so it needs no lock."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), as Prometheus wants them."""
        names = [*(str(bound) for bound in self.bounds), "+Inf"]
        return list(zip(names, (float(count) for count in accumulate(self.counts)), strict=True))


class Telemetry(Collector):
    """The process's counters, its log budget, and the text of `/metrics`.

    `facts` and `gauges` are set by whoever owns the workloads.
    """

    def __init__(self, settings: TelemetrySettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._log = structlog.get_logger()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(self)
        self.facts: Callable[[], Iterable[WorkloadFacts]] = tuple
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self.rpc_seconds: dict[str, Histogram] = {}
        self.rpc_codes: dict[tuple[str, str], int] = {}
        self.read_seconds: dict[str, Histogram] = {}
        self.reads: dict[str, int] = {}
        self.read_errors: dict[tuple[str, str], int] = {}
        self.loop_lag_seconds = Histogram(_LAG_BUCKETS)
        self.evaluations = 0
        self.decisions_changed = 0
        self.announced = 0
        self.repeated = 0
        self.refused = 0
        self.bugs = 0
        self.events_dropped = 0
        self._tokens = _EVENTS_AT_ONCE
        self._tokens_at = clock()
        self._bug_at: dict[tuple[str, str], float] = {}

    # --- what happens ---

    def rpc_histogram(self, method: str) -> Histogram:
        """The durations of one RPC; the caller observes."""
        return self.rpc_seconds.setdefault(method, Histogram(_RPC_BUCKETS))

    def rpc_ended(self, method: str, code: str) -> None:
        """Count an RPC that ended with something other than OK."""
        key = (method, code)
        self.rpc_codes[key] = self.rpc_codes.get(key, 0) + 1

    def read(self, source_name: str, seconds: float, queries: int) -> None:
        """One call of a client's `read`."""
        histogram = self.read_seconds.get(source_name)
        if histogram is None:
            histogram = self.read_seconds[source_name] = Histogram(_READ_BUCKETS)
        histogram.observe(seconds)
        self.reads[source_name] = self.reads.get(source_name, 0) + queries

    def read_failed(self, source_name: str, kind: str) -> None:
        """One query without a reading."""
        key = (source_name, kind)
        self.read_errors[key] = self.read_errors.get(key, 0) + 1

    def decided(self, facts: WorkloadFacts, before: Decision | None, after: Decision) -> None:
        """A decision that differs from the one before; logged where replicas or activity change."""
        self.decisions_changed += 1
        if before is not None and before.active == after.active and before.desired_replicas == after.desired_replicas:
            return
        if self._may_log():
            self._log.info(
                "decision",
                workload=f"{facts.namespace}/{facts.name}",
                metric=facts.metric_name,
                policy=facts.policy,
                active=after.active,
                desired_replicas=after.desired_replicas,
                metric_value=round(after.metric_value, 3),
                target_value=round(after.target_value, 3),
                steps="; ".join(f"{step.name}: {step.text()}" for step in after.steps),
            )

    def dry_run(self, facts: WorkloadFacts, dry_run: DryRun) -> None:
        """What slo would have cost so far, against what was answered."""
        if self._may_log():
            self._log.info(
                "dry_run",
                workload=f"{facts.namespace}/{facts.name}",
                metric=facts.metric_name,
                slo_gpu_seconds=round(dry_run.gpu_seconds),
                answered_gpu_seconds=round(dry_run.answered_gpu_seconds),
            )

    def failing(self, facts: WorkloadFacts, err: BaseException) -> None:
        """A workload's source starts failing."""
        if self._may_log():
            self._log.warning(
                "source_failing",
                workload=f"{facts.namespace}/{facts.name}",
                metric=facts.metric_name,
                error=type(err).__name__,
                detail=str(err),
                last_active=facts.last.active if facts.last is not None else None,
            )

    def recovered(self, facts: WorkloadFacts, failed_seconds: float) -> None:
        """A workload's source answers again."""
        if self._may_log():
            self._log.info(
                "source_recovered",
                workload=f"{facts.namespace}/{facts.name}",
                metric=facts.metric_name,
                failed_seconds=round(failed_seconds, 1),
            )

    def workload_started(self, facts: WorkloadFacts, warnings: Sequence[str]) -> None:
        """A trigger seen for the first time."""
        if self._may_log():
            self._log.info(
                "workload_started",
                workload=f"{facts.namespace}/{facts.name}",
                metric=facts.metric_name,
                source=facts.source,
                policy=facts.policy,
                warnings=list(warnings),
            )

    def workload_expired(self, facts: WorkloadFacts) -> None:
        """A workload that nobody asks about any more."""
        if self._may_log():
            self._log.info("workload_expired", workload=f"{facts.namespace}/{facts.name}", metric=facts.metric_name)

    def trigger_refused(self, detail: str) -> None:
        """Metadata that can't be used. `detail` is safe to print."""
        self.refused += 1
        if self._may_log():
            self._log.warning("trigger_refused", detail=detail)

    def bug(self, event: str, err: BaseException, **facts: object) -> None:
        """Something that should not happen: its traceback, at most once a minute for each kind."""
        self.bugs += 1
        kind = (event, type(err).__name__)
        now = self._clock()
        if now - self._bug_at.get(kind, -math.inf) < 60:
            return
        self._bug_at[kind] = now
        self._log.error(event, error=type(err).__name__, exc_info=err, **facts)

    def _may_log(self) -> bool:
        now = self._clock()
        self._tokens = min(self._tokens + (now - self._tokens_at) * _EVENTS_PER_SECOND, _EVENTS_AT_ONCE)
        self._tokens_at = now
        if self._tokens < 1:
            self.events_dropped += 1
            return False
        self._tokens -= 1
        return True

    # --- what is shown ---

    def collect(self) -> Iterator[Metric]:
        """The process's own series."""
        yield _histogram("scaler_rpc_seconds", "Duration of an RPC in the handler.", "method", self.rpc_seconds)
        errors = CounterMetricFamily(
            "scaler_rpc_errors", "RPCs that ended with a code other than OK.", labels=["method", "code"]
        )
        for (method, code), count in self.rpc_codes.items():
            errors.add_metric([method, code], count)
        yield errors
        yield _histogram("scaler_read_seconds", "Duration of one read of a client.", "source", self.read_seconds)
        reads = CounterMetricFamily("scaler_reads", "Queries read from sources.", labels=["source"])
        for source, count in self.reads.items():
            reads.add_metric([source], count)
        yield reads
        failed = CounterMetricFamily("scaler_errors", "Queries that gave no reading.", labels=["source", "kind"])
        for (source, kind), count in self.read_errors.items():
            failed.add_metric([source, kind], count)
        yield failed
        yield _histogram(
            "scaler_loop_lag_seconds", "How late the event loop woke a timer.", None, {"": self.loop_lag_seconds}
        )
        counters = (
            ("scaler_evaluations", "Readings turned into a decision.", self.evaluations),
            ("scaler_decisions_changed", "Decisions that differ from the one before.", self.decisions_changed),
            ("scaler_stream_activations", "Changes from inactive to active put on streams.", self.announced),
            ("scaler_stream_repeats", "Slow repeats of `true` put on streams.", self.repeated),
            ("scaler_triggers_refused", "Metadata that could not be used.", self.refused),
            ("scaler_internal_errors", "Failures that are bugs of Pilotlight.", self.bugs),
            ("scaler_log_events_dropped", "Log events above the budget.", self.events_dropped),
        )
        for name, text, count in counters:
            yield CounterMetricFamily(name, text, value=count)
        for name, (text, value) in self.gauges.items():
            yield GaugeMetricFamily(name, text, value=value())

    def text(self) -> Iterator[bytes]:
        """The text of `/metrics` in portions, each of which takes under a few milliseconds to make."""
        yield generate_latest(self.registry)
        wanted = self._settings.workload_series
        if wanted is False:
            return
        facts: list[WorkloadFacts] = []
        labels: list[str] = []
        for fact in self.facts():
            facts.append(fact)
            labels.append(_labels(fact))
            if len(facts) % _PORTION == 0:
                yield b""
                if wanted is None and len(facts) > _SERIES_UP_TO_WORKLOADS:
                    return
        for name, text, value in _SERIES:
            yield f"# HELP {name} {text}\n# TYPE {name} gauge\n".encode()
            for start in range(0, len(facts), _PORTION):
                lines = []
                for index in range(start, min(start + _PORTION, len(facts))):
                    number = value(facts[index])
                    if number is not None:
                        lines.append(f"{name}{{{labels[index]}}} {number}\n")
                yield "".join(lines).encode()


_SERIES: tuple[tuple[str, str, Callable[[WorkloadFacts], float | None]], ...] = (
    ("scaler_active", "1 where the workload is active.", lambda facts: int(facts.last.active) if facts.last else None),
    (
        "scaler_desired_replicas",
        "Replicas that the decision asks for.",
        lambda facts: facts.last.desired_replicas if facts.last else None,
    ),
    (
        "scaler_metric_value",
        "The metric as GetMetrics answers it.",
        lambda facts: facts.last.metric_value if facts.last else None,
    ),
    (
        "scaler_target_value",
        "The target as GetMetricSpec answers it.",
        lambda facts: facts.last.target_value if facts.last else None,
    ),
    (
        "scaler_dry_run_replicas",
        "Replicas that slo would ask for, where the trigger says dryRun.",
        lambda facts: facts.dry_run.desired_replicas if facts.dry_run else None,
    ),
    (
        "scaler_dry_run_gpu_seconds",
        "GPU-seconds that slo would have asked for since the dry run began.",
        lambda facts: facts.dry_run.gpu_seconds if facts.dry_run else None,
    ),
    (
        "scaler_dry_run_answered_gpu_seconds",
        "GPU-seconds of replicas since the dry run began: of those reported, else of those asked for.",
        lambda facts: facts.dry_run.answered_gpu_seconds if facts.dry_run else None,
    ),
    (
        "scaler_achieved_ratio",
        "Share of requests that started within waitSeconds, 0 to 1, as far as slo can tell.",
        lambda facts: facts.learned.achieved if facts.learned else None,
    ),
    (
        "scaler_service_seconds",
        "How long one request keeps a slot busy, as told or learned by slo.",
        lambda facts: facts.learned.service_seconds if facts.learned else None,
    ),
    (
        "scaler_cold_start_seconds",
        "How long a replica takes to serve, in the mean, as told or learned by slo.",
        lambda facts: facts.learned.cold_start_seconds if facts.learned else None,
    ),
    (
        "scaler_warm_pool_replicas",
        "Replicas to keep warm beyond the demand's.",
        lambda facts: facts.warm.replicas if facts.warm else None,
    ),
    (
        "scaler_warm_pool_expected_demand",
        "Requests expected within the lead time of a warm pool.",
        lambda facts: facts.warm.expected_demand if facts.warm else None,
    ),
    (
        "scaler_warm_pool_demand_quantile",
        "Requests within the lead time that a warm pool is sized for: that quantile of the demand.",
        lambda facts: facts.warm.demand_quantile if facts.warm else None,
    ),
    (
        "scaler_warm_pool_quantile_ratio",
        "The quantile of the demand that a warm pool is sized for, 0 to 1.",
        lambda facts: facts.warm.quantile if facts.warm else None,
    ),
    (
        "scaler_warm_pool_lead_time_seconds",
        "The cold start that a warm pool bridges.",
        lambda facts: facts.warm.lead_time_seconds if facts.warm else None,
    ),
    (
        "scaler_warm_pool_valid_until_timestamp_seconds",
        "Unix time until which a warm pool's size holds unless what is known changes.",
        lambda facts: facts.warm_until_unix_seconds,
    ),
    ("scaler_failing", "1 where the source can't be read at present.", lambda facts: int(facts.failing)),
)


def _labels(facts: WorkloadFacts) -> str:
    # Namespace and name are Kubernetes names, the metric name is [a-z0-9-]: nothing to escape.
    return (
        f'namespace="{facts.namespace}",name="{facts.name}",metric="{facts.metric_name}",'
        f'source="{facts.source}",policy="{facts.policy}"'
    )


def _histogram(name: str, text: str, label: str | None, histograms: dict[str, Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=[label] if label else [])
    for value, histogram in histograms.items():
        family.add_metric([value] if label else [], buckets=histogram.buckets(), sum_value=histogram.total)
    return family


# --- logs ---


def configure_logs(settings: TelemetrySettings, stream: TextIO | None = None) -> None:
    """Send the process's log to `stream` (stderr), one line an event, libraries' own warnings included."""
    stream = stream or sys.stderr
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not stream.isatty())
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.typing.Processor] = (
        [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    )
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Clients' libraries log each retry; their failures come to us as errors, logged once.
    root.setLevel(max(level, logging.WARNING))


# --- the listener ---

_REQUEST_SECONDS = 5.0
_REQUEST_BYTES = 8 * 1024
_SCRAPES_AT_ONCE = 2


class MetricsListener:
    """`GET /metrics` and `GET /healthz` over HTTP/1.1, one request a connection."""

    def __init__(self, telemetry: Telemetry, *, healthy: Callable[[], bool], slices: Slices | None = None) -> None:
        self._telemetry = telemetry
        self._healthy = healthy
        self._slices = slices or Slices()
        self._scrapes = 0
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port that was taken."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=_REQUEST_BYTES)
        taken: int = self._server.sockets[0].getsockname()[1]
        return taken

    async def close(self) -> None:
        """Listen no more. A scrape under way ends with its connection."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            parts = head.split(b"\r\n", 1)[0].split(b" ")
            path = parts[1].split(b"?", 1)[0] if len(parts) == 3 else b""
            if len(parts) != 3 or parts[0] not in (b"GET", b"HEAD"):
                await _answer(writer, "405 Method Not Allowed", b"only GET is served\n")
            elif path == b"/metrics" and parts[0] == b"GET":
                await self._metrics(writer)
            elif path in (b"/healthz", b"/metrics"):
                healthy = self._healthy()
                await _answer(
                    writer, "200 OK" if healthy else "503 Service Unavailable", b"ok\n" if healthy else b"draining\n"
                )
            else:
                await _answer(writer, "404 Not Found", b"see /metrics and /healthz\n")
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that doesn't speak HTTP, or left
        finally:
            writer.close()

    async def _metrics(self, writer: asyncio.StreamWriter) -> None:
        if self._scrapes >= _SCRAPES_AT_ONCE:
            await _answer(writer, "503 Service Unavailable", b"other scrapes are being answered\n")
            return
        self._scrapes += 1
        try:
            # Chunked, since the length is not known before all is rendered.
            writer.write(
                f"HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\nTransfer-Encoding: chunked\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            slice_ends = self._slices.first()
            for portion in self._telemetry.text():
                if portion:
                    writer.write(b"%x\r\n%b\r\n" % (len(portion), portion))
                    async with asyncio.timeout(_REQUEST_SECONDS):
                        await writer.drain()
                if self._slices.clock() >= slice_ends:
                    slice_ends = await self._slices.next()
            writer.write(b"0\r\n\r\n")
            async with asyncio.timeout(_REQUEST_SECONDS):
                await writer.drain()
        finally:
            self._scrapes -= 1


async def _answer(writer: asyncio.StreamWriter, status: str, body: bytes) -> None:
    writer.write(
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n".encode()
        + body
    )
    async with asyncio.timeout(_REQUEST_SECONDS):
        await writer.drain()


async def watch_lag(telemetry: Telemetry) -> None:
    """Measure how late the loop wakes a timer, twice a second, until cancelled."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(0.5)
        telemetry.loop_lag_seconds.observe(max(time.perf_counter() - before - 0.5, 0.0))
