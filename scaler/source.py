"""What a source is: the contract between the service and one kind of thing that can be read.

A source module in `scaler/sources/` ends with `SOURCE = MySource()`; its file name is the value of `source`
in the metadata. The module is imported at start, so it must not import its client library at module level:
`open` does that on first use, and `libraries` names it for whoever can afford to load it before.

How reading is shared. `endpoint(config)` names the client a workload needs (server, credentials, connection):
workloads with equal endpoints share one client. `query(config)` names the distinct thing read: workloads of
a client with equal queries share one read. `sample(config, reading, ...)` is pure and interprets the shared
reading by the thresholds and flags of one trigger.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from scaler.core.model import ReplicaView, Sample
from scaler.errors import SourceError
from scaler.parameters import Parameter, Values

ConfigT = TypeVar("ConfigT", bound=Hashable)
QueryT = TypeVar("QueryT", bound=Hashable)
ReadingT = TypeVar("ReadingT")


class Deliver(Protocol):
    """Hands over the outcome of one query, as soon as it is known. Cheap: it only queues."""

    def __call__(self, query: Hashable, outcome: object, /) -> None:
        """`outcome` is the source's reading type, or a SourceError."""


class Client(Protocol):
    """A client of one endpoint, open for as long as some workload needs it."""

    async def read(self, queries: Sequence[Any], deliver: Deliver) -> None:
        """Read `queries` (distinct, at least one), calling `deliver` once for each.

        The client bounds each wait that leaves the process and recovers its own connections. An exception
        that leaves `read` counts as the outcome of every query not yet delivered: a SourceError as itself,
        anything else as our bug. `read` may be called again while an earlier call still runs, never for a
        query that is still in flight.
        """


def _any_address(address: str) -> None:
    """Let every address pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceContext:
    """What the process gives a client it opens.

    `clock` is monotonic seconds, the same that `now_seconds` comes from. `read_timeout_seconds` bounds one
    read, `connect_timeout_seconds` one connection attempt. `check_address` resolves `host` and raises
    SourceDenied where it leads to an address that tenants may not reach (link-local, loopback, the API
    server), else returns the resolved IP addresses; connections of the operator's own are not checked.
    `judge_address` does the same for one IP address, for connectors that can ask just before they connect.
    `allow` is what the connection lets through: kind of resource to glob patterns; a kind that is absent is
    not restricted.
    """

    clock: Callable[[], float]
    read_timeout_seconds: float = 5.0
    connect_timeout_seconds: float = 5.0
    max_response_bytes: int = 16 * 1024 * 1024
    check_address: Callable[[str, int], Awaitable[tuple[str, ...]]]
    judge_address: Callable[[str], None] = _any_address
    allow: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Source(ABC, Generic[ConfigT, QueryT, ReadingT]):
    """One kind of thing that can be read. Stateless: state lives in its client.

    `keda_trigger` is the built-in KEDA trigger whose metadata it takes over, if any. `sample_seconds` is the
    pace of background reads unless the trigger says `sampleSeconds`. `batched`: one `read` call with many
    queries costs about one (Kafka); else queries are spread over the period.
    """

    name: str
    summary: str
    keda_trigger: str | None = None
    parameters: tuple[Parameter, ...]
    sample_seconds: float
    batched: bool = False
    needs_extra: str
    # Modules that `open` and the first reading import. `serve` loads them at its start, where nobody waits for it yet.
    libraries: tuple[str, ...] = ()
    # What a connection's `allow` may restrict: the keys of `resources`, and what the client applies by itself.
    allow_kinds: tuple[str, ...] = ()

    @abstractmethod
    def parse(self, values: Values) -> ConfigT:
        """A frozen, hashable configuration.

        Report rules across fields through `values.problem`. Whatever is returned after a problem was
        reported is thrown away, but `parse` must not raise because a value is absent or failed.
        """

    @abstractmethod
    def endpoint(self, config: ConfigT) -> Hashable:
        """What a client is shared by: server and credentials (Secret objects compare by value)."""

    @abstractmethod
    def query(self, config: ConfigT) -> QueryT:
        """The distinct thing read, without thresholds."""

    @abstractmethod
    def identity(self, config: ConfigT) -> str:
        """Server and object for people and for the key of what is learned: no credentials, stable."""

    @abstractmethod
    def object_name(self, config: ConfigT) -> str:
        """The object in the metric name: the queue, topic or query, in any characters."""

    @abstractmethod
    def resources(self, config: ConfigT) -> Mapping[str, tuple[str, ...]]:
        """What it reads, by kind, to check against a connection's `allow` ("queue": ("orders",))."""

    @abstractmethod
    def target(self, config: ConfigT) -> float:
        """The user's threshold: what `policy: target` reports as target size (AverageValue)."""

    @abstractmethod
    def open(self, config: ConfigT, context: SourceContext) -> AbstractAsyncContextManager[Client]:
        """A client for `endpoint(config)`. Opening must be quick: connect lazily, in `read`."""

    @abstractmethod
    def sample(self, config: ConfigT, reading: ReadingT, *, now_seconds: float, view: ReplicaView | None) -> Sample:
        """Interpret a shared reading by this trigger's own rules. Pure.

        Raises SourceNoData where the reading holds nothing usable (never a zero in its stead). `view` is
        there for the presets whose series vanish at zero replicas.
        """

    def vanishes_at_zero(self, config: ConfigT) -> bool:  # noqa: ARG002 - most sources outlive their consumers
        """Whether at zero replicas nothing is left to read, so that nothing would wake the workload.

        Such a trigger needs a minimum of one replica, or somebody who sees the replicas and another trigger
        that wakes.
        """
        return False

    def has_counters(self, config: ConfigT) -> bool:  # noqa: ARG002 - most sources tell what there is at a moment
        """Whether its samples count exactly what arrives or what is done, from which service times are learned."""
        return False

    def warnings(self, config: ConfigT) -> tuple[str, ...]:  # noqa: ARG002 - most sources have none
        """What a person should know about this configuration though it works."""
        return ()


AnySource = Source[Any, Any, Any]
Outcome = object | SourceError
