"""Our own RPCs, on a listener of their own: replica reports in, explanations out.

Whoever may reach it can read every workload's state and report replicas of any: it asks for a bearer token or
a client certificate, or else binds to loopback only.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import grpc

from scaler._generated import pilotlight_pb2 as pb
from scaler.core.cold_starts import P95_DEVIATIONS, PHASES
from scaler.core.estimate import Estimates
from scaler.core.model import Decision, Goals, ReplicaView
from scaler.errors import LimitReached, MetricUnknown, NamespaceDenied, Problem, SettingsInvalid, TriggerInvalid, quoted
from scaler.evaluator import Evaluator
from scaler.service import Context, Guard, add_methods, parsed
from scaler.settings import ServerSettings
from scaler.slices import Slices
from scaler.telemetry import Telemetry
from scaler.workload import Workload

REPLICAS: Final = "pilotlight.v1.Replicas"
EXPLAIN: Final = "pilotlight.v1.Explain"
WARM_POOL: Final = "pilotlight.v1.WarmPool"

# One report may name this many starting replicas; more are counted from the oldest.
_STARTING_KEPT = 10_000
_COLD_STARTS_KEPT = 1_000
_COLD_START_LIMIT_SECONDS = 86_400.0
# Open watches of hints: a person, a pool's controller, a dashboard.
_WATCHES = 256
# A watch looks this often whether its hint has changed.
_WATCH_SECONDS = 1.0

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]", "::1"})

Method = Callable[[bytes], Awaitable[bytes]]


class Hints:
    """The services `pilotlight.v1.Replicas` and `pilotlight.v1.Explain` over the evaluator."""

    def __init__(
        self,
        evaluator: Evaluator,
        telemetry: Telemetry,
        *,
        server: ServerSettings | None = None,
        token_file: str | None,
        slices: Slices | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._evaluator = evaluator
        self._telemetry = telemetry
        self._server = server or ServerSettings()
        self._watches = 0
        self._token_file = token_file
        self._slices = slices or Slices()
        self._clock = clock

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve every RPC, behind the token where there is one."""
        replicas, explain = Guard(self._telemetry, REPLICAS), Guard(self._telemetry, EXPLAIN)
        warm = Guard(self._telemetry, WARM_POOL)
        add_methods(server, REPLICAS, {"Report": replicas.unary("Report", self._let(self.report))})
        add_methods(
            server,
            EXPLAIN,
            {
                "Get": explain.unary("Explain", self._let(self.get)),
                "List": explain.unary("List", self._let(self.list)),
            },
        )
        add_methods(
            server,
            WARM_POOL,
            {
                "GetHint": warm.unary("GetHint", self._let(self.get_hint)),
                "WatchHint": warm.stream("WatchHint", self.watch_hint),
            },
        )

    def _let(self, method: Method) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handle(request: bytes, context: Context) -> bytes:
            self._authorise(context)
            return await method(request)

        return handle

    def _authorise(self, context: Context) -> None:
        """Raise NamespaceDenied unless the call carries the token. The file is read anew: tokens rotate."""
        if self._token_file is None:
            return
        try:
            wanted = Path(self._token_file).read_bytes().strip()
        except OSError as err:
            raise NamespaceDenied("the hints token's file can't be read; mount it (server.hintsTokenFile)") from err
        given = b""
        for key, value in context.invocation_metadata() or ():
            if key == "authorization":
                given = value.encode() if isinstance(value, str) else value
        if not wanted or not hmac.compare_digest(given.removeprefix(b"Bearer ").strip(), wanted):
            raise NamespaceDenied("this listener asks for metadata `authorization: Bearer <token>`")

    async def report(self, request: bytes) -> bytes:
        """Believe a report of replicas for a while."""
        message = parsed(pb.ReplicaReport, request)
        now = self._clock()
        ages = [starting.started_seconds_ago for starting in message.starting]
        cold_starts = list(message.finished_cold_starts_seconds)
        phases = [finished.seconds for finished in message.finished_phases]
        problems = [
            Problem(field=field, value=str(value), expected=f"expected 0 to {limit:g} seconds")
            for field, values, limit in (
                ("starting.started_seconds_ago", ages, math.inf),
                ("finished_cold_starts_seconds", cold_starts, _COLD_START_LIMIT_SECONDS),
                ("finished_phases.seconds", phases, _COLD_START_LIMIT_SECONDS),
            )
            for value in values
            if not (math.isfinite(value) and 0 <= value <= limit)
        ]
        if problems:
            raise TriggerInvalid(tuple(problems[:3]), subject="replica report")
        view = ReplicaView(
            at_seconds=now,
            ready=message.ready,
            starting_at_seconds=tuple(sorted([now - age for age in ages])[:_STARTING_KEPT]),
            terminating=message.terminating,
            status_replicas=message.status_replicas if message.HasField("status_replicas") else None,
            cold_starts_seconds=tuple(cold_starts[:_COLD_STARTS_KEPT]),
            phases_seconds=tuple(
                [
                    (finished.phase - 1, finished.seconds)
                    for finished in message.finished_phases[: len(PHASES) * _COLD_STARTS_KEPT]
                    if 1 <= finished.phase <= len(PHASES)  # what a newer version tells of is nothing known here
                ]
            ),
        )
        valid_seconds = self._evaluator.report(message.workload.namespace, message.workload.name, view)
        return pb.ReplicaReportAck(valid_seconds=valid_seconds).SerializeToString()

    async def get(self, request: bytes) -> bytes:
        """Why the workloads of one ScaledObject are answered as they are, step by step."""
        ref = parsed(pb.ExplainRequest, request).workload
        found = [
            workload
            for workload in self._evaluator.of(ref.namespace, ref.name)
            if ref.metric_name in ("", workload.trigger.metric_name)
        ]
        return pb.ExplainResponse(
            explanations=[self._explanation(workload, whole=True) for workload in found]
        ).SerializeToString()

    async def list(self, request: bytes) -> bytes:
        """Every workload, without steps and observations."""
        parsed(pb.ListRequest, request)
        response = pb.ExplainResponse()
        slice_ends = self._slices.first()
        for workload in self._evaluator:
            if not workload.superseded:
                response.explanations.append(self._explanation(workload, whole=False))
            if self._slices.clock() >= slice_ends:
                slice_ends = await self._slices.next()
        return response.SerializeToString()

    async def get_hint(self, request: bytes) -> bytes:
        """How many replicas to keep warm for one workload, and why."""
        return self._hint(parsed(pb.WarmPoolRequest, request).workload).SerializeToString()

    async def watch_hint(self, request: bytes, context: Context) -> None:
        """The hint at once, when the number of replicas changes, and again before it is no longer valid."""
        self._authorise(context)
        ref = parsed(pb.WarmPoolRequest, request).workload
        if self._watches >= _WATCHES:
            raise LimitReached(f"{_WATCHES} watches of hints are open, the limit; close some")
        self._watches += 1
        try:
            # As KEDA's streams: it ends, cleanly, before its connection does.
            ends_at = self._clock() + 0.7 * self._server.max_connection_age_seconds
            sent: int | None = None
            again_at = -math.inf
            while self._clock() < ends_at and not self._evaluator.draining:
                hint = self._hint(ref)
                if hint.replicas != sent or self._clock() >= again_at:
                    async with asyncio.timeout(self._server.stream_write_seconds):
                        await context.write(hint.SerializeToString())
                    sent, again_at = hint.replicas, self._clock() + 0.5 * hint.valid_seconds
                await asyncio.sleep(_WATCH_SECONDS)
        except TimeoutError:
            raise LimitReached(
                f"the watch's client did not take a message within {self._server.stream_write_seconds:g} s "
                "(server.streamWriteSeconds)"
            ) from None
        finally:
            self._watches -= 1

    def _hint(self, ref: pb.WorkloadRef) -> pb.WarmPoolHint:
        """Raises MetricUnknown where nobody learns about such a workload, SourceNoData where it can't be read."""
        name = quoted(f"{ref.namespace}/{ref.name}")
        found = self._evaluator.pool_hint(ref.namespace, ref.name, ref.metric_name, asked_as=name)
        if found is None:
            raise MetricUnknown(
                f"no trigger of {name} with policy slo (or dryRun) has been read yet; "
                "a warm pool is sized by what slo learns"
            )
        workload, hint = found
        return pb.WarmPoolHint(
            workload=pb.WorkloadRef(namespace=ref.namespace, name=ref.name, metric_name=workload.trigger.metric_name),
            replicas=hint.replicas,
            valid_seconds=hint.valid_seconds,
            lead_time_seconds=hint.lead_time_seconds,
            expected_demand=hint.expected_demand,
            demand_quantile=hint.demand_quantile,
            quantile=hint.quantile,
            reason=hint.reason,
        )

    def _explanation(self, workload: Workload, *, whole: bool) -> pb.Explanation:
        trigger, now = workload.trigger, self._clock()
        explanation = pb.Explanation(
            workload=pb.WorkloadRef(namespace=trigger.namespace, name=trigger.name, metric_name=trigger.metric_name),
            source=trigger.identity,
            policy=trigger.policy_name,
            target_value=workload.target_value,
            error="" if workload.error is None else str(workload.error),
        )
        decision: Decision | None = self._evaluator.held(workload) if whole else workload.memory.last
        if decision is not None:
            explanation.active = decision.active
            explanation.metric_value = decision.metric_value
            explanation.desired_replicas = decision.desired_replicas
            explanation.decided_seconds_ago = max(now - decision.at_seconds, 0.0)
            explanation.held = workload.error is not None
        view = self._evaluator.view(workload)
        if view is not None:
            explanation.ready, explanation.starting = view.ready, view.starting
            explanation.terminating = view.terminating
        if whole and decision is not None:
            sample = workload.memory.sample
            if sample is not None:
                explanation.observed.update(_observed(sample))
            known = workload.estimates
            if known is not None:
                explanation.observed.update(_learned(known, trigger.goals))
            watched = workload.watched
            if watched is not None:
                explanation.observed.update(
                    dry_run_desired_replicas=watched.desired_replicas,
                    dry_run_gpu_seconds=watched.gpu_seconds,
                    dry_run_answered_gpu_seconds=watched.answered_gpu_seconds,
                    dry_run_saved_gpu_seconds=watched.answered_gpu_seconds - watched.gpu_seconds,
                )
            for step in decision.steps:
                explanation.steps.append(
                    pb.DecisionStep(name=step.name, before=step.before, after=step.after, reason=step.text())
                )
        return explanation


def _learned(known: Estimates, goals: Goals) -> dict[str, float]:
    """What `slo` has learned: service times, the share in time, cold starts whole and by phase."""
    mean_seconds, deviation_seconds = known.cold_start(goals)
    told = {
        "learned_service_seconds": known.service_seconds(goals),
        "learned_cold_start_seconds": mean_seconds,
        "learned_cold_start_p95_seconds": mean_seconds + P95_DEVIATIONS * deviation_seconds,
        "learned_cold_starts": known.cold_starts,
    }
    if known.waits.achieved is not None:
        told["achieved_ratio"] = known.waits.achieved
    for phase, lasting in zip(PHASES, known.cold.phases, strict=False):  # none before any was told
        if lasting.count:
            told[f"learned_{phase}_seconds"] = lasting.mean_seconds
            told[f"learned_{phase}_p95_seconds"] = lasting.p95_seconds
    return told


def _observed(sample: Any) -> dict[str, float]:
    """The reading's parts, and the words of the model where the source can tell them."""
    named = {
        name: getattr(sample, name)
        for name in (
            "metric_value",
            "waiting",
            "in_flight",
            "in_system",
            "arrived_total",
            "completed_total",
            "oldest_age_seconds",
            "utilization_sum",
            "most_replicas",
        )
    }
    return {**sample.raw, **{name: float(value) for name, value in named.items() if value is not None}}


def check_hints_listener(server: ServerSettings) -> None:
    """Raise SettingsInvalid where the listener would be open to the network without authorisation."""
    if server.hints_listen is None or server.hints_token_file is not None:
        return
    if server.hints_tls is not None and server.hints_tls.client_ca_file is not None:
        return
    host = server.hints_listen.rpartition(":")[0]
    if host not in _LOOPBACK:
        raise SettingsInvalid(
            f"server.hintsListen {quoted(server.hints_listen)}: a listener beyond loopback needs "
            "server.hintsTokenFile, or server.hintsTls with clientCaFile"
        )
