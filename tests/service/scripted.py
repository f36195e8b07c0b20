"""`source: scripted`: a real source whose server is a dictionary in this process, for tests of the service around it.

`world` in the metadata names the server, `object` the thing read. A test scripts what a world answers.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from scaler.core.model import ReplicaView, Sample
from scaler.errors import SourceNoData
from scaler.parameters import Belongs, Parameter, Secret, Values
from scaler.source import Client, Deliver, Source, SourceContext


@dataclass
class World:
    """One scripted server.

    `answers` maps an object to its value, or to the exception that reading it raises; `default` stands for all
    others. `hang` holds reads until it is set; `dies` ends the client.
    """

    answers: dict[str, float | Exception] = field(default_factory=dict)
    default: float | Exception = 0.0
    hanging: asyncio.Event | None = None
    open_error: Exception | None = None
    dies: asyncio.Event | None = None
    opened: int = 0
    closed: int = 0
    reads: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    silent: set[str] = field(default_factory=set)
    passwords: list[str] = field(default_factory=list)

    def hang(self) -> None:
        """Answer nothing until `resume`."""
        self.hanging = asyncio.Event()

    def resume(self) -> None:
        """Answer again."""
        if self.hanging is not None:
            self.hanging.set()
            self.hanging = None


worlds: dict[str, World] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedConfig:
    world: str
    thing: str
    threshold: float
    activation: float
    password: Secret | None


class ScriptedClient:
    def __init__(self, world: World, context: SourceContext) -> None:
        self._world = world
        self._context = context

    async def read(self, queries: Sequence[str], deliver: Deliver) -> None:
        world = self._world
        world.reads.append((self._context.clock(), tuple(queries)))
        world.asked.update(queries)
        if world.hanging is not None:
            await world.hanging.wait()
        for query in queries:
            answer = world.answers.get(query, world.default)
            if query in world.silent:
                continue
            if isinstance(answer, Exception):
                if len(queries) == 1:
                    raise answer
                deliver(query, answer)
            else:
                deliver(query, answer)


class Scripted(Source[ScriptedConfig, str, float]):
    name = "scripted"
    summary = "what a test says"
    parameters = (
        Parameter(name="world", required=True, belongs=Belongs.ENDPOINT, help="the scripted server"),
        Parameter(name="object", required=True, help="the thing read"),
        Parameter(name="threshold", kind="number", above=0, default=5.0, help="target"),
        Parameter(name="activation", kind="number", default=0.0, help="active above it"),
        Parameter(name="password", secret=True, belongs=Belongs.CREDENTIAL, help="a credential"),
    )
    sample_seconds = 1.0
    batched = True
    needs_extra = "test"

    def parse(self, values: Values) -> ScriptedConfig:
        return ScriptedConfig(
            world=values.text("world") or "",
            thing=values.text("object") or "",
            threshold=values.number("threshold") or 5.0,
            activation=values.number("activation") or 0.0,
            password=values.secret("password"),
        )

    def endpoint(self, config: ScriptedConfig) -> Hashable:
        return config.world, config.password

    def query(self, config: ScriptedConfig) -> str:
        return config.thing

    def identity(self, config: ScriptedConfig) -> str:
        return f"{config.world}/{config.thing}"

    def object_name(self, config: ScriptedConfig) -> str:
        return config.thing

    def resources(self, config: ScriptedConfig) -> Mapping[str, tuple[str, ...]]:
        return {"object": (config.thing,)}

    def target(self, config: ScriptedConfig) -> float:
        return config.threshold

    def open(self, config: ScriptedConfig, context: SourceContext) -> AbstractAsyncContextManager[Client]:
        return _open(config, context)

    def sample(self, config: ScriptedConfig, reading: float, *, now_seconds: float, view: ReplicaView | None) -> Sample:
        if reading < 0:
            raise SourceNoData(f'object "{config.thing}" has no series')
        return Sample(
            at_seconds=now_seconds,
            metric_value=reading,
            active=reading > config.activation,
            waiting=reading,
            raw={"value": reading, "replicas_seen": -1.0 if view is None else float(view.alive)},
        )


@asynccontextmanager
async def _open(config: ScriptedConfig, context: SourceContext) -> AsyncIterator[Client]:
    world = worlds.setdefault(config.world, World())
    world.opened += 1
    if config.password is not None:
        world.passwords.append(config.password.reveal())
    if world.open_error is not None:
        raise world.open_error
    try:
        async with asyncio.TaskGroup() as group:
            watcher = None
            if world.dies is not None:
                watcher = group.create_task(_die(world.dies))
            yield ScriptedClient(world, context)
            if watcher is not None:
                watcher.cancel()
    finally:
        world.closed += 1


async def _die(when: asyncio.Event) -> None:
    await when.wait()
    raise ConnectionResetError("the scripted client died")


SOURCE = Scripted()
