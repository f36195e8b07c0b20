"""The servers that are measured, each a process of its own: `python -m tests.bench.server bare|service`.

`bare` is grpc.aio as one writes it first: a generated servicer that returns constants. `service` is Pilotlight with
one more source, `bench`, whose server is arithmetic: what is measured is the service, not a broker.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import uvloop

from scaler.__main__ import run
from scaler._generated import externalscaler_pb2 as pb
from scaler._generated import externalscaler_pb2_grpc as pb_grpc
from scaler.core.model import ReplicaView, Sample
from scaler.errors import SourceUnavailable
from scaler.parameters import Belongs, Parameter, Values
from scaler.plugins import sources
from scaler.settings import Settings, load_settings
from scaler.source import Client, Deliver, Source, SourceContext

# As from a broker: so many things are asked for at once, and the answer comes after a while.
_A_REQUEST = 500
_ROUND_TRIP_SECONDS = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    kind: str
    number: int
    threshold: float


class BenchClient:
    """`churn`: an eighth of the objects changes each second. `steady` never does. `hang` and `fail` do so."""

    def __init__(self, kind: str, context: SourceContext) -> None:
        self._kind = kind
        self._context = context

    async def read(self, queries: Sequence[int], deliver: Deliver) -> None:
        if self._kind == "hang":
            await asyncio.Event().wait()
        if self._kind == "fail":
            await asyncio.sleep(0.05)
            raise SourceUnavailable("the broker is gone")
        second = math.floor(self._context.clock()) if self._kind == "churn" else 0
        for start in range(0, len(queries), _A_REQUEST):
            await asyncio.sleep(_ROUND_TRIP_SECONDS)
            for query in queries[start : start + _A_REQUEST]:
                deliver(query, float((second + query) // 8 % 50))


class Bench(Source[BenchConfig, int, float]):
    name = "bench"
    summary = "arithmetic"
    parameters = (
        Parameter(name="kind", required=True, belongs=Belongs.ENDPOINT, help="how it behaves"),
        Parameter(name="number", kind="integer", required=True, help="which object"),
        Parameter(name="threshold", kind="number", default=5.0, help="target"),
        *(Parameter(name=f"filler{index}", help="metadata as long as a real trigger's") for index in range(8)),
    )
    sample_seconds = 1.0
    batched = True
    needs_extra = "test"

    def parse(self, values: Values) -> BenchConfig:
        return BenchConfig(
            kind=values.text("kind") or "",
            number=values.integer("number") or 0,
            threshold=values.number("threshold") or 5.0,
        )

    def endpoint(self, config: BenchConfig) -> Hashable:
        return config.kind

    def query(self, config: BenchConfig) -> int:
        return config.number

    def identity(self, config: BenchConfig) -> str:
        return f"{config.kind}/{config.number}"

    def object_name(self, config: BenchConfig) -> str:
        return f"orders-{config.number}"

    def resources(self, config: BenchConfig) -> Mapping[str, tuple[str, ...]]:
        return {"object": (str(config.number),)}

    def target(self, config: BenchConfig) -> float:
        return config.threshold

    def open(self, config: BenchConfig, context: SourceContext) -> AbstractAsyncContextManager[Client]:
        return _open(config, context)

    def sample(
        self,
        config: BenchConfig,  # noqa: ARG002 - the reading is all there is
        reading: float,
        *,
        now_seconds: float,
        view: ReplicaView | None,  # noqa: ARG002 - as above
    ) -> Sample:
        return Sample(
            at_seconds=now_seconds,
            metric_value=reading,
            active=reading > 0,
            waiting=reading,
            raw={"lag": reading, "partitions": 12.0},
        )


@asynccontextmanager
async def _open(config: BenchConfig, context: SourceContext) -> AsyncIterator[Client]:
    yield BenchClient(config.kind, context)


class Bare(pb_grpc.ExternalScalerServicer):
    """Constants."""

    def __init__(self) -> None:
        self._metrics = pb.GetMetricsResponse(
            metricValues=[pb.MetricValue(metricName="target-bench-orders-1", metricValue=7, metricValueFloat=7.0)]
        )
        self._active = pb.IsActiveResponse(result=True)

    async def GetMetrics(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 - generated names
        return self._metrics

    async def IsActive(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 - generated names
        return self._active


async def _bare(ready_file: Path) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_ExternalScalerServicer_to_server(Bare(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready_file.write_text(  # noqa: ASYNC240 - once
        json.dumps({"pid": os.getpid(), "grpc": f"127.0.0.1:{port}", "metrics": None})
    )
    await server.wait_for_termination()


def main(kind: str, ready_file: str, config: str) -> None:
    """Serve until killed."""
    if kind == "bare":
        uvloop.run(_bare(Path(ready_file)))
        return
    sources()["bench"] = Bench()
    settings: Settings = load_settings(config)
    run(settings, ready_file=Path(ready_file))


if __name__ == "__main__":
    main(*sys.argv[1:])
