"""What every source on a Prometheus server does alike: parameters, client, waking, absence of data."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeVar

from scaler.core.model import ReplicaView, Sample
from scaler.errors import SourceError, SourceNoData
from scaler.parameters import Parameter, Values
from scaler.promql.endpoint import Server, parse_server, server_warnings
from scaler.promql.questions import Answer, Question, Result, one_number
from scaler.source import Client, Source, SourceContext

# Longer queries are machine-made; proxies cut URLs at 8 KiB.
QUERY_LIMIT_CHARACTERS = 6000


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What every trigger on a Prometheus server says. `zero_on_no_data`: an empty result is no load."""

    server: Server
    threshold: float
    activation_threshold: float
    wake_query: str | None
    zero_on_no_data: bool
    parameters: tuple[tuple[str, str], ...]
    timeout_seconds: float | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HasCommon:
    """A source's configuration."""

    common: Common


WAKE_QUERY = Parameter(
    name="wakeQuery",
    help="PromQL for work that waits upstream of the pods, such as at a gateway; above 0 wakes the workload, and it "
    "decides while the workload's own series are gone",
)
ON_NO_DATA = Parameter(
    name="onNoData",
    allowed=("hold", "zero"),
    default="hold",
    help="what an empty result or NaN means: no data (hold the last decision), or zero",
)

ConfigT = TypeVar("ConfigT", bound=HasCommon)


class PromQLSource(Source[ConfigT, Question, Answer]):
    """A source that asks a Prometheus server."""

    sample_seconds = 5.0
    needs_extra = "prometheus"
    libraries = ("scaler.promql.client", "scaler.promql.transport", "scaler.promql.enforce")
    allow_kinds = ("matchers", "query", "namespace")

    def endpoint(self, config: ConfigT) -> Server:
        """Server and credentials."""
        return config.common.server

    def target(self, config: ConfigT) -> float:
        """`threshold`."""
        return config.common.threshold

    def open(self, config: ConfigT, context: SourceContext) -> AbstractAsyncContextManager[Client]:
        """A client that connects when it first reads."""
        from scaler.promql.client import open_client  # noqa: PLC0415 - its libraries load on first use

        return open_client(config.common.server, context)

    def warnings(self, config: ConfigT) -> tuple[str, ...]:
        """What is odd about the server or the trigger."""
        return (*server_warnings(config.common.server), *config.common.warnings)


def parse_common(values: Values, *, threshold: float = 1.0, warnings: tuple[str, ...] = ()) -> Common:
    """The common part of a trigger, with problems reported; `threshold` stands where it says none."""
    wake = query_text(values, "wakeQuery")
    return Common(
        server=parse_server(values),
        threshold=values.number("threshold") or threshold,
        activation_threshold=values.number("activationThreshold") or 0.0,
        wake_query=wake,
        zero_on_no_data=values.text("onNoData") == "zero",
        parameters=values.pairs("queryParameters") or (),
        timeout_seconds=values.number("timeout") or None,
        warnings=warnings,
    )


def query_text(values: Values, name: str) -> str | None:
    """A query from a user, its length checked."""
    text = values.text(name)
    if text is not None and len(text) > QUERY_LIMIT_CHARACTERS:
        values.problem(name, f"it has {len(text)} characters; expected at most {QUERY_LIMIT_CHARACTERS}: record a rule")
    return text


def woken_by(wake: Result | SourceError | None) -> float | None:
    """What the wake query counts, at least 0; None where there is no such query or it tells nothing.

    Raises the error that it ended in.
    """
    if wake is None:
        return None
    found = one_number(wake, what="wakeQuery")
    return None if found is None else max(found, 0.0)


def without_series(
    common: Common, answer: Answer, view: ReplicaView | None, *, one_replica: float | None, vanishes: bool, what: str
) -> Sample:
    """What it means that the query's own series are not there.

    More than 0 from the wake query wakes. Else it is zero only where that can be known: the wake query says 0 and
    no replica is seen to serve; or the series `vanishes` with the last replica, and none is seen; or the trigger
    asked for it. `one_replica` is the metric that stands for one replica; None: the wake query counts in the
    metric's own unit. Raises SourceNoData where nobody knows.
    """
    wake = woken_by(answer.wake)
    if wake is not None:
        gone = view is None or view.ready == 0
    else:
        gone = vanishes and view is not None and view.alive == 0 and view.terminating == 0
    if wake:
        return Sample(
            at_seconds=answer.at_seconds,
            metric_value=wake if one_replica is None else one_replica,
            active=True,
            waiting=wake,
            raw={"wake": wake},
        )
    if not gone and not common.zero_on_no_data:
        raise SourceNoData(
            f"{what}: the query yields no data, which is not zero; check that its series exist, or say onNoData zero"
        )
    return Sample(
        at_seconds=answer.at_seconds,
        metric_value=0.0,
        active=False,
        waiting=0.0,
        in_flight=0.0,
        utilization_sum=0.0,
        raw={} if wake is None else {"wake": wake},
    )
