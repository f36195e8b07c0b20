"""Tells Pilotlight what replicas there are (pilotlight.v1 Replicas) and asks it why it decided (Explain)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from loadgen.pace import Pace
from loadgen.workers import Fleet, PodState
from scaler._generated import pilotlight_pb2 as pb
from scaler._generated import pilotlight_pb2_grpc as pb_grpc

# Real seconds.
REPORT_EVERY_SECONDS = 1.0
CALL_TIMEOUT_SECONDS = 5.0
_PHASES = {
    "schedule": pb.COLD_START_PHASE_SCHEDULING,
    "pull": pb.COLD_START_PHASE_PULLING,
    "start": pb.COLD_START_PHASE_STARTING,
    "load": pb.COLD_START_PHASE_LOADING,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """The last decision on one trigger, in Pilotlight's own words."""

    active: bool
    desired_replicas: int | None
    metric_value: float
    target_value: float
    held: bool
    error: str
    reasons: tuple[str, ...]


class Reporter:
    """Reports a fleet's replicas to Pilotlight, each second and at once after a change, until cancelled."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        namespace: str,
        name: str,
        fleet: Fleet,
        pace: Pace,
        *,
        scaler_speed: float = 1.0,
    ) -> None:
        self._scaler_speed = scaler_speed
        self._stub: Any = pb_grpc.ReplicasStub(channel)
        self._workload = pb.WorkloadRef(namespace=namespace, name=name)
        self._fleet = fleet
        self._pace = pace
        self._cold_starts_told = self._phases_told = 0
        self.failures = 0

    async def run(self) -> None:
        """Until cancelled. A report that fails is counted; the next one says it all again."""
        while True:
            self._fleet.changed.clear()
            try:
                await self.report()
            except grpc.RpcError:
                self.failures += 1
            try:
                async with asyncio.timeout(REPORT_EVERY_SECONDS):
                    await self._fleet.changed.wait()
            except TimeoutError:
                continue

    async def report(self) -> None:
        """One report. Lengths are seconds of Pilotlight's clock, which is not the experiment's."""
        pods, now_seconds = self._fleet.pods, self._pace.now()
        cold_starts = self._fleet.cold_starts_seconds
        told = len(cold_starts)
        phases = self._fleet.phases_seconds
        phases_told = len(phases)
        counts = self._fleet.counts()
        await self._stub.Report(
            pb.ReplicaReport(
                workload=self._workload,
                ready=counts.ready,
                starting=[
                    pb.StartingReplica(started_seconds_ago=self._scaler_seconds(now_seconds - pod.created_at_seconds))
                    for pod in pods
                    if pod.state is PodState.STARTING
                ],
                terminating=counts.terminating,
                status_replicas=counts.ready + counts.starting,
                finished_cold_starts_seconds=[
                    self._scaler_seconds(seconds) for seconds in cold_starts[self._cold_starts_told : told]
                ],
                finished_phases=[
                    pb.FinishedPhase(phase=_PHASES[name], seconds=self._scaler_seconds(seconds))
                    for name, seconds in phases[self._phases_told : phases_told]
                    if name in _PHASES
                ],
            ),
            timeout=CALL_TIMEOUT_SECONDS,
        )
        self._cold_starts_told, self._phases_told = told, phases_told

    def _scaler_seconds(self, seconds: float) -> float:
        return self._pace.real_seconds(seconds) * self._scaler_speed


async def explain(channel: grpc.aio.Channel, namespace: str, name: str) -> Sequence[Why]:
    """The last decisions on a ScaledObject's triggers; none where Pilotlight doesn't know it (yet)."""
    stub: Any = pb_grpc.ExplainStub(channel)
    request = pb.ExplainRequest(workload=pb.WorkloadRef(namespace=namespace, name=name))
    try:
        answer = await stub.Get(request, timeout=CALL_TIMEOUT_SECONDS)
    except grpc.RpcError:
        return ()
    return tuple(
        Why(
            active=item.active,
            desired_replicas=item.desired_replicas if item.HasField("desired_replicas") else None,
            metric_value=item.metric_value,
            target_value=item.target_value,
            held=item.held,
            error=item.error,
            reasons=tuple(f"{step.name}: {step.reason}" if step.reason else step.name for step in item.steps),
        )
        for item in answer.explanations
    )
