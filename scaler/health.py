"""grpc.health.v1: whether the process serves, per service; watchers are told and let go when it drains."""

from __future__ import annotations

import asyncio
from typing import Final

import grpc
from grpc_health.v1 import health_pb2

from scaler.errors import LimitReached
from scaler.service import Context, Guard, add_methods, parsed
from scaler.telemetry import Telemetry

SERVICE: Final = "grpc.health.v1.Health"

_Status = health_pb2.HealthCheckResponse
_WATCHERS = 1_000


class Health:
    """The health of `services` and, under the empty name, of the process: all serve, or all drain."""

    def __init__(self, services: tuple[str, ...], telemetry: Telemetry) -> None:
        self._services = frozenset({"", *services})
        self._telemetry = telemetry
        self._draining = asyncio.Event()
        self._watchers = 0

    @property
    def serving(self) -> bool:
        """Whether the process takes calls."""
        return not self._draining.is_set()

    def drain(self) -> None:
        """NOT_SERVING from now on."""
        self._draining.set()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve Check and Watch."""
        guard = Guard(self._telemetry, SERVICE)
        add_methods(
            server,
            SERVICE,
            {"Check": guard.unary("HealthCheck", self.check), "Watch": guard.stream("HealthWatch", self.watch)},
        )

    def _status(self, service: str) -> bytes:
        if service not in self._services:
            return _Status(status=_Status.SERVICE_UNKNOWN).SerializeToString()
        status = _Status.SERVING if self.serving else _Status.NOT_SERVING
        return _Status(status=status).SerializeToString()

    async def check(self, request: bytes, context: Context) -> bytes:
        """The status now; NOT_FOUND for a service that is none of ours."""
        service = parsed(health_pb2.HealthCheckRequest, request).service
        if service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service here")
        return self._status(service)

    async def watch(self, request: bytes, context: Context) -> None:
        """The status now and when it changes."""
        service = parsed(health_pb2.HealthCheckRequest, request).service
        if self._watchers >= _WATCHERS:
            raise LimitReached(f"{_WATCHERS} watchers of the health are connected, the limit")
        self._watchers += 1
        try:
            await context.write(self._status(service))
            await self._draining.wait()
            await context.write(self._status(service))
        finally:
            self._watchers -= 1
