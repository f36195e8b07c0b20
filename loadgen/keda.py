"""KEDA and the HPA controller as an external scaler sees them: the same RPCs in the same order, over real gRPC.

What KEDA calls and when: pkg/scaling/scale_handler.go, pkg/scaling/cache/scalers_cache.go and
pkg/scalers/external_scaler.go at 8b4f083c (2.21-dev). What it then does is `scaler.simulator.rules`.

- A poll asks each trigger GetMetricSpec, then GetMetrics and IsActive for every spec, all triggers in parallel.
- An HPA sync asks, for each of its metrics, GetMetricSpec of *every* trigger and GetMetrics and IsActive of the
  one that matches: k triggers cost k * k GetMetricSpec. At zero replicas the HPA asks nothing.
- A failed call is repeated once, at once (KEDA rebuilds its scaler and tries again).
- A push trigger keeps StreamIsActive and StreamMetricSpec open; after an end it comes back in 2 s, doubling to
  60 s, and only an end with OK resets that.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from loadgen.pace import Pace
from scaler._generated import externalscaler_pb2 as pb
from scaler._generated import externalscaler_pb2_grpc as pb_grpc
from scaler.simulator.rules import (
    HPA_SYNC_SECONDS,
    PUSH_RETRY_FIRST_SECONDS,
    PUSH_RETRY_MAX_SECONDS,
    HpaSpec,
    HpaState,
    KedaSpec,
    KedaState,
    Metric,
    MetricType,
    Scale,
    fallback_value,
    hpa_sync,
    keda_poll,
    keda_push,
    wire_number,
)

# Real seconds. KEDA sets no deadline of its own, but a load generator must not hang for ever.
RPC_TIMEOUT_SECONDS = 30.0
# Real seconds after which a failed first GetMetricSpec is repeated: controller-runtime's back-off, simplified.
_RECONCILE_RETRY_FIRST_SECONDS = 1.0
_RECONCILE_RETRY_MAX_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """One trigger: its metadata as KEDA sends it, and whether its type is `external-push`."""

    metadata: Mapping[str, str]
    push: bool = True
    metric_type: MetricType = MetricType.AVERAGE_VALUE


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledObject:
    """What a ScaledObject says, as far as an external scaler notices. Seconds are experiment seconds."""

    namespace: str
    name: str
    triggers: tuple[Trigger, ...]
    keda: KedaSpec = field(default_factory=KedaSpec)
    hpa: HpaSpec | None = None
    hpa_sync_seconds: float = HPA_SYNC_SECONDS


class ScaleTarget(Protocol):
    """What is scaled: a Deployment's /scale and its pods."""

    def scale(self) -> Scale:
        """The replicas as they are."""

    def set_replicas(self, replicas: int) -> None:
        """Write spec.replicas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something KEDA or the HPA did or met.

    `kind`: scaled, failed, reconciled, stream_opened, stream_ended, pushed. `by`: poll, push, hpa, reconcile.
    """

    at_seconds: float
    kind: str
    by: str
    text: str = ""
    replicas_before: int | None = None
    replicas_after: int | None = None


class NoMetric(Exception):
    """An answer came, but not with what was asked for."""


@dataclass(frozen=True, slots=True)
class _Spec:
    name: str
    target: float


@dataclass(slots=True)
class _TriggerState:
    index: int
    trigger: Trigger
    ref: pb.ScaledObjectRef
    streamed: tuple[_Spec, ...] | None = None
    failures: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _External:
    """One external metric of the HPA: its full name says which trigger, the target is fixed at reconcile."""

    index: int
    name: str
    target: float


class Keda:
    """One ScaledObject's controller loops. `run` until cancelled.

    `integers_only` reads what KEDA before 2.17 reads. `counts` has the number of each RPC sent.
    """

    def __init__(
        self,
        scaled_object: ScaledObject,
        target: ScaleTarget,
        channel: grpc.aio.Channel,
        pace: Pace,
        *,
        on_event: Callable[[Event], None] | None = None,
        integers_only: bool = False,
        rpc_timeout_seconds: float = RPC_TIMEOUT_SECONDS,
    ) -> None:
        self._object = scaled_object
        self._hpa_spec = scaled_object.hpa or scaled_object.keda.hpa()
        self._target = target
        self._stub: Any = pb_grpc.ExternalScalerStub(channel)
        self._pace = pace
        self._on_event = on_event or (lambda _event: None)
        self._integers_only = integers_only
        self._rpc_timeout_seconds = rpc_timeout_seconds
        self._lock = asyncio.Lock()  # KEDA's scaling mutex of the object
        self._keda_state = KedaState(created_at_seconds=pace.now())
        self._hpa_state = HpaState()
        self._externals: tuple[_External, ...] = ()
        self._reconciled = asyncio.Event()
        self._reconcile_again = asyncio.Event()
        self._triggers = [
            _TriggerState(
                index,
                trigger,
                pb.ScaledObjectRef(
                    name=scaled_object.name, namespace=scaled_object.namespace, scalerMetadata=dict(trigger.metadata)
                ),
            )
            for index, trigger in enumerate(scaled_object.triggers)
        ]
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Everything KEDA and the HPA do for the object, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reconcile_loop())
            tasks.create_task(self._poll_loop())
            tasks.create_task(self._hpa_loop())
            for state in self._triggers:
                if state.trigger.push:
                    tasks.create_task(self._active_stream_loop(state))
                    tasks.create_task(self._spec_stream_loop(state))

    # --- reconcile: the HPA is built from GetMetricSpec ---------------------------------------------------------

    async def _reconcile_loop(self) -> None:
        while True:
            self._reconcile_again.clear()
            await self._reconcile_once()
            await self._reconcile_again.wait()

    async def _reconcile_once(self) -> None:
        retry_seconds = _RECONCILE_RETRY_FIRST_SECONDS
        while True:
            externals: list[_External] = []
            for state in self._triggers:
                try:
                    specs = await self._specs(state)
                except (grpc.RpcError, NoMetric) as err:
                    self._failed("reconcile", err)
                    continue
                externals += [_External(state.index, spec.name, spec.target) for spec in specs]
            if externals:
                self._externals = tuple(externals)
                self._reconciled.set()
                names = ", ".join(f"s{external.index}-{external.name}" for external in externals)
                self._event("reconciled", "reconcile", names)
                return
            await self._pace.sleep(retry_seconds)
            retry_seconds = min(2 * retry_seconds, _RECONCILE_RETRY_MAX_SECONDS)

    # --- poll ---------------------------------------------------------------------------------------------------

    async def _poll_loop(self) -> None:
        while True:
            next_at_seconds = self._pace.now() + self._object.keda.polling_seconds
            await self.poll()
            await self._pace.sleep_until(next_at_seconds)

    async def poll(self) -> None:
        """One evaluation of all triggers, and what the executor makes of it."""
        async with self._lock:
            outcomes = await asyncio.gather(*(self._poll_trigger(state) for state in self._triggers))
            before = self._target.scale().spec_replicas
            after, self._keda_state = keda_poll(
                self._object.keda,
                self._keda_state,
                active=any(active for active, _ in outcomes),
                failed=any(failed for _, failed in outcomes),
                replicas=before,
                now_seconds=self._pace.now(),
            )
            self._write(before, after, "poll")

    async def _poll_trigger(self, state: _TriggerState) -> tuple[bool, bool]:
        """(active, failed) of one trigger."""
        try:
            specs = await self._specs(state)
        except (grpc.RpcError, NoMetric) as err:
            self._failed("poll", err)
            return False, True  # the fallback is not consulted: kedacore/keda#8056
        active = failed = False
        for spec in specs:
            try:
                _, spec_active = await self._read(state, spec)
            except (grpc.RpcError, NoMetric) as err:
                self._failed("poll", err)
                if self._fallback(state, spec.name, spec.target) is None:
                    failed = True
                else:
                    active = True
            else:
                active = active or spec_active
        return active, failed

    # --- HPA ----------------------------------------------------------------------------------------------------

    async def _hpa_loop(self) -> None:
        await self._reconciled.wait()
        while True:
            next_at_seconds = self._pace.now() + self._object.hpa_sync_seconds
            await self.sync()
            await self._pace.sleep_until(next_at_seconds)

    async def sync(self) -> None:
        """One sync of the HPA."""
        scale = self._target.scale()
        metrics: list[Metric] = []
        if scale.spec_replicas:  # at zero it is disabled and asks nothing
            metrics = [await self._hpa_metric(external) for external in self._externals]
        after, self._hpa_state = hpa_sync(self._hpa_spec, self._hpa_state, metrics, scale, self._pace.now())
        # A write against a changed object would be a conflict, and the HPA would try again at its next sync.
        if self._target.scale().spec_replicas == scale.spec_replicas:
            self._write(scale.spec_replicas, after, "hpa")

    async def _hpa_metric(self, external: _External) -> Metric:
        value: float | None = None
        metric_type = self._triggers[external.index].trigger.metric_type
        for state in self._triggers:
            try:
                specs = await self._specs(state)
            except (grpc.RpcError, NoMetric) as err:
                self._failed("hpa", err)
                continue
            if state.index != external.index or all(spec.name != external.name for spec in specs):
                continue
            spec = next(spec for spec in specs if spec.name == external.name)
            try:
                value, _ = await self._read(state, spec)
            except (grpc.RpcError, NoMetric) as err:
                self._failed("hpa", err)
                value = self._fallback(state, spec.name, spec.target)
        return Metric(value, external.target, metric_type)

    # --- push streams -------------------------------------------------------------------------------------------

    async def _active_stream_loop(self, state: _TriggerState) -> None:
        retry_seconds = PUSH_RETRY_FIRST_SECONDS
        while True:
            self.counts["StreamIsActive"] += 1
            try:
                self._event("stream_opened", "push")
                async for response in self._stub.StreamIsActive(state.ref):
                    if response.result:
                        await self._pushed()
            except grpc.RpcError as err:
                self._event("stream_ended", "push", _told(err))
            else:
                self._event("stream_ended", "push", "OK")
                retry_seconds = PUSH_RETRY_FIRST_SECONDS
            await self._pace.sleep(retry_seconds)
            retry_seconds = min(2 * retry_seconds, PUSH_RETRY_MAX_SECONDS)

    async def _pushed(self) -> None:
        if not self._reconciled.is_set():
            return  # status.externalMetricNames is not there yet: KEDA drops it silently
        async with self._lock:
            before = self._target.scale().spec_replicas
            after, self._keda_state = keda_push(
                self._object.keda, self._keda_state, replicas=before, now_seconds=self._pace.now()
            )
            self.counts["pushed"] += 1
            self._event("pushed", "push")
            self._write(before, after, "push")

    async def _spec_stream_loop(self, state: _TriggerState) -> None:
        retry_seconds = PUSH_RETRY_FIRST_SECONDS
        while True:
            self.counts["StreamMetricSpec"] += 1
            delivered = False
            try:
                async for response in self._stub.StreamMetricSpec(state.ref):
                    delivered = True
                    state.streamed = self._parsed(response)
                    self._reconcile_again.set()
            except grpc.RpcError as err:
                if _code(err) is grpc.StatusCode.UNIMPLEMENTED:
                    return
            else:
                delivered = True
            if delivered:
                retry_seconds = PUSH_RETRY_FIRST_SECONDS
            await self._pace.sleep(retry_seconds)
            retry_seconds = min(2 * retry_seconds, PUSH_RETRY_MAX_SECONDS)

    # --- RPCs ---------------------------------------------------------------------------------------------------

    async def _specs(self, state: _TriggerState) -> tuple[_Spec, ...]:
        """The trigger's metric specs: streamed ones, else asked for, twice where the first answer is no use."""
        if state.streamed:
            return state.streamed
        try:
            specs = self._parsed(await self._call("GetMetricSpec", state.ref))
            if specs:
                return specs
        except grpc.RpcError as err:
            self._failed("rebuild", err)
        specs = self._parsed(await self._call("GetMetricSpec", state.ref))
        if not specs:
            raise NoMetric("got empty metric spec")
        return specs

    def _parsed(self, response: pb.GetMetricSpecResponse) -> tuple[_Spec, ...]:
        return tuple(
            _Spec(spec.metricName, self._number(spec.targetSizeFloat, spec.targetSize)) for spec in response.metricSpecs
        )

    async def _read(self, state: _TriggerState, spec: _Spec) -> tuple[float, bool]:
        """GetMetrics, then IsActive; both once more at once where one fails."""
        try:
            answer = await self._read_once(state, spec)
        except (grpc.RpcError, NoMetric) as err:
            self._failed("rebuild", err)
            state.streamed = None  # streamed specs are lost with KEDA's scaler cache
            answer = await self._read_once(state, spec)
        state.failures.pop(spec.name, None)
        return answer

    async def _read_once(self, state: _TriggerState, spec: _Spec) -> tuple[float, bool]:
        request = pb.GetMetricsRequest(scaledObjectRef=state.ref, metricName=spec.name)
        metrics = await self._call("GetMetrics", request)
        activity = await self._call("IsActive", state.ref)
        if not metrics.metricValues:
            raise NoMetric(f'no matching metrics found for "{spec.name}"')
        # The names in the answer are ignored, and the HPA sums the values.
        value = sum(self._number(item.metricValueFloat, item.metricValue) for item in metrics.metricValues)
        return value, activity.result

    async def _call(self, method: str, request: Any) -> Any:
        self.counts[method] += 1
        return await getattr(self._stub, method)(request, timeout=self._rpc_timeout_seconds)

    def _number(self, as_float: float, as_integer: int) -> float:
        return float(as_integer) if self._integers_only else wire_number(as_float, as_integer)

    # --- helpers ------------------------------------------------------------------------------------------------

    def _fallback(self, state: _TriggerState, name: str, target: float) -> float | None:
        state.failures[name] += 1
        return fallback_value(
            self._object.keda.fallback,
            failures=state.failures[name],
            target=target,
            metric_type=state.trigger.metric_type,
            scale=self._target.scale(),
        )

    def _write(self, before: int, after: int, by: str) -> None:
        if after != before:
            self._target.set_replicas(after)
            self._event("scaled", by, before=before, after=after)

    def _failed(self, by: str, err: Exception) -> None:
        self._event("failed", by, _told(err))

    def _event(
        self, kind: str, by: str, text: str = "", *, before: int | None = None, after: int | None = None
    ) -> None:
        self._on_event(
            Event(
                at_seconds=self._pace.now(), kind=kind, by=by, text=text, replicas_before=before, replicas_after=after
            )
        )


def scaled(events: Sequence[Event]) -> list[tuple[str, int, int]]:
    """(by, replicas before, replicas after) of each change, in order."""
    return [
        (event.by, event.replicas_before, event.replicas_after)
        for event in events
        if event.kind == "scaled" and event.replicas_before is not None and event.replicas_after is not None
    ]


def _code(err: grpc.RpcError) -> grpc.StatusCode | None:
    return err.code() if isinstance(err, grpc.aio.AioRpcError) else None


def _told(err: Exception) -> str:
    if isinstance(err, grpc.aio.AioRpcError):
        return f"{err.code().name}: {err.details()}"
    return str(err)
