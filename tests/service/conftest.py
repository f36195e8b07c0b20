"""The service in this process, over real channels, with a scripted source and a clock that a test can put forward."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest

from scaler.__main__ import Serving, serve
from scaler.plugins import sources
from scaler.settings import LimitSettings, ReadingSettings, ServerSettings, Settings, TelemetrySettings
from tests.service.scripted import SOURCE, World, worlds
from tests.services.process import PATIENT_SECONDS


@dataclass
class ForwardClock:
    """Real monotonic time plus what a test adds: readers keep their pace, and hours pass at once."""

    added: float = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.added

    def forward(self, seconds: float) -> None:
        self.added += seconds


@dataclass
class Shell:
    """A running service."""

    serving: Serving
    clock: ForwardClock
    stop: asyncio.Event
    task: asyncio.Task[None]
    keda: grpc.aio.Channel
    hints: grpc.aio.Channel


@dataclass(frozen=True)
class ShellSettings:
    """What a test changes of the settings."""

    server: dict[str, object] = field(default_factory=dict)
    reading: dict[str, object] = field(default_factory=dict)
    limits: dict[str, object] = field(default_factory=dict)
    telemetry: dict[str, object] = field(default_factory=dict)
    whole: Settings = field(default_factory=Settings)

    def settings(self) -> Settings:
        any_port = {
            "listen": "127.0.0.1:0",
            "hints_listen": "127.0.0.1:0",
            "metrics_listen": "127.0.0.1:0",
            "drain_seconds": 5.0,
        }
        return Settings(
            server=ServerSettings.model_validate(any_port | self.server),
            # The first answer is waited for longer than a busy machine stands still.
            reading=ReadingSettings.model_validate({"first_answer_seconds": PATIENT_SECONDS} | self.reading),
            limits=LimitSettings.model_validate(self.limits),
            telemetry=TelemetrySettings.model_validate(self.telemetry),
            rules=self.whole.rules,
            connections=self.whole.connections,
            state_folder=self.whole.state_folder,
            state=self.whole.state,
        )


async def until(condition: Callable[[], bool | Awaitable[bool]], *, seconds: float = 30.0) -> None:
    """Ask `condition` again and again; TimeoutError where it does not come true."""
    async with asyncio.timeout(seconds):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(0.05)


RunShell = Callable[..., AbstractAsyncContextManager[Shell]]


@asynccontextmanager
async def running(settings: ShellSettings | None = None) -> AsyncIterator[Shell]:
    """The whole service, started by its composition root."""
    clock, stop = ForwardClock(), asyncio.Event()
    is_ready: asyncio.Future[Serving] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve((settings or ShellSettings()).settings(), ready=is_ready.set_result, stop=stop, clock=clock)
    )

    def ended(done: asyncio.Task[None]) -> None:
        if not is_ready.done():
            is_ready.set_exception(done.exception() or EOFError("it ended before it was ready"))

    task.add_done_callback(ended)
    serving = await is_ready
    assert serving.hints is not None
    try:
        async with grpc.aio.insecure_channel(serving.grpc) as keda, grpc.aio.insecure_channel(serving.hints) as hints:
            yield Shell(serving, clock, stop, task, keda, hints)
    finally:
        stop.set()
        async with asyncio.timeout(60):
            await task


@pytest.fixture(autouse=True)
def _scripted() -> Iterator[None]:
    sources()["scripted"] = SOURCE
    worlds.clear()
    yield
    del sources()["scripted"]
    worlds.clear()


@pytest.fixture
def world() -> World:
    """The scripted server `w`."""
    return worlds.setdefault("w", World())


@pytest.fixture
def shell() -> RunShell:
    """`async with shell() as running: ...`"""
    return running
