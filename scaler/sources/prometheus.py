"""`source: prometheus`: any instant query, with the metadata of KEDA's `prometheus` trigger.

The value is what the policy takes it for: `target` divides it by `threshold`; `slo` and `steps` take it for
requests that wait; `utilization` takes it for the sum over replicas.

Differences from KEDA made on purpose: an empty result and NaN are no data instead of 0, whatever
`ignoreNullValues` says (a monitoring outage must not look like no load: kedacore/keda#3065); `onNoData: zero`
asks for the old reading. Infinities are never a value. Scalars are read too. `threshold` must be at least
0.001, since KEDA rounds smaller ones to a target of 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scaler.core.model import ReplicaView, Sample
from scaler.errors import SourceNoData
from scaler.parameters import Parameter, Values
from scaler.promql.base import (
    ON_NO_DATA,
    WAKE_QUERY,
    Common,
    HasCommon,
    PromQLSource,
    parse_common,
    query_text,
    without_series,
    woken_by,
)
from scaler.promql.endpoint import ENDPOINT_PARAMETERS
from scaler.promql.questions import Answer, Question, age_seconds, one_number

_STALE_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusConfig(HasCommon):
    """One trigger's view of a query."""

    common: Common
    query: str
    namespace: str | None
    freshness_query: str | None
    stale_seconds: float


class Prometheus(PromQLSource[PrometheusConfig]):
    """One number by an instant query."""

    name = "prometheus"
    summary = "Prometheus and what speaks its API: the number that an instant query yields"
    keda_trigger = "prometheus"
    parameters = (
        Parameter(name="query", required=True, help="PromQL that yields one series or a scalar"),
        Parameter(
            name="threshold",
            kind="number",
            minimum=0.001,
            required=True,
            help="the metric per replica: the HPA's target with policy target",
        ),
        Parameter(
            name="activationThreshold",
            activation=True,
            kind="number",
            default=0.0,
            help="active when the value is above this",
        ),
        Parameter(
            name="namespace",
            help="sent as the URL parameter namespace, for multi-tenant Thanos and OpenShift",
        ),
        Parameter(
            name="ignoreNullValues",
            kind="flag",
            help="KEDA's switch, without effect: an empty result is no data; say onNoData zero to make it 0",
        ),
        Parameter(
            name="freshnessQuery",
            help="PromQL for the age of the newest sample in seconds, or for its Unix time; older than staleSeconds "
            "is no data",
        ),
        Parameter(
            name="staleSeconds",
            kind="number",
            above=0,
            maximum=86_400,
            default=_STALE_SECONDS,
            unit="seconds",
            help="with freshnessQuery: samples older than this are no samples",
        ),
        WAKE_QUERY,
        ON_NO_DATA,
        *ENDPOINT_PARAMETERS,
    )

    def parse(self, values: Values) -> PrometheusConfig:
        """Check the server and that the query is there."""
        warnings = []
        if values.flag("ignoreNullValues") and values.text("onNoData") != "zero":
            warnings.append(
                "ignoreNullValues has no effect: an empty result is no data, so that an outage of monitoring does not "
                "scale down; say onNoData zero if it means no load"
            )
        if values.given("staleSeconds") and not values.given("freshnessQuery"):
            warnings.append("staleSeconds has no effect without freshnessQuery: a result does not tell its age")
        return PrometheusConfig(
            common=parse_common(values, warnings=tuple(warnings)),
            query=query_text(values, "query") or "",
            namespace=values.text("namespace"),
            freshness_query=query_text(values, "freshnessQuery"),
            stale_seconds=values.number("staleSeconds") or _STALE_SECONDS,
        )

    def query(self, config: PrometheusConfig) -> Question:
        """The queries and the parameters of their URL."""
        namespace = () if config.namespace is None else (("namespace", config.namespace),)
        return Question(
            text=config.query,
            freshness=config.freshness_query,
            wake=config.common.wake_query,
            parameters=(*namespace, *config.common.parameters),
            timeout_seconds=config.common.timeout_seconds,
        )

    def identity(self, config: PrometheusConfig) -> str:
        """Server, namespace and query."""
        namespace = "" if config.namespace is None else f"{config.namespace}/"
        return f"{config.common.server.name}/{namespace}{config.query}"

    def object_name(self, config: PrometheusConfig) -> str:
        """The query."""
        return config.query

    def resources(self, config: PrometheusConfig) -> Mapping[str, tuple[str, ...]]:
        """The queries and, where given, the namespace.

        A connection's `matchers` are not compared with these: they are added to every query.
        """
        found = {"query": self.query(config).by_users}
        return found if config.namespace is None else found | {"namespace": (config.namespace,)}

    def sample(
        self,
        config: PrometheusConfig,
        reading: Answer,
        *,
        now_seconds: float,  # noqa: ARG002 - ages are counted on the server's clock
        view: ReplicaView | None,
    ) -> Sample:
        """The number, its freshness checked; strictly above the activation threshold is active."""
        common, what = config.common, f"query of {config.common.server.name}"
        value = one_number(reading.result, what=what)
        if value is None:
            return without_series(common, reading, view, one_replica=common.threshold, vanishes=False, what=what)
        raw = {"value": value}
        if reading.freshness is not None:
            age = age_seconds(reading.freshness, what="freshnessQuery")
            if age is None:
                raise SourceNoData("freshnessQuery: it yields no data, so the age of the sample is not known")
            if age > config.stale_seconds:
                raise SourceNoData(
                    f"{what}: its newest sample is {age:.0f} s old; expected at most staleSeconds "
                    f"{config.stale_seconds:g}: check the scrape"
                )
            raw["age_seconds"] = age
        active = value > common.activation_threshold
        if not active and (wake := woken_by(reading.wake)):
            raw["wake"] = wake
            active = True
        load = max(value, raw.get("wake", 0.0), 0.0)
        return Sample(
            at_seconds=reading.at_seconds,
            metric_value=value,
            active=active,
            waiting=load,
            utilization_sum=max(value, 0.0),
            raw=raw,
        )


SOURCE = Prometheus()
