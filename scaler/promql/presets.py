"""Presets: questions to Prometheus that are built from a namespace and a workload, and the sums made of the answers.

PromQL only selects: fresh samples of the workload's pods, each series once (`max by`: Prometheus servers that
scrape the same pod twice, and ranks that report the same number, count once). The arithmetic is done here.

Freshness: `last_over_time(x[staleSeconds]) and x` asks for both bounds, the trigger's and Prometheus's own: a pod
that ended cleanly is gone at once by its staleness marker, which last_over_time alone would look through.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scaler.core.model import ReplicaView, Sample
from scaler.errors import SourceNoData
from scaler.parameters import Belongs, Parameter, Values
from scaler.promql.base import (
    ON_NO_DATA,
    WAKE_QUERY,
    Common,
    HasCommon,
    PromQLSource,
    parse_common,
    without_series,
    woken_by,
)
from scaler.promql.endpoint import ENDPOINT_PARAMETERS
from scaler.promql.questions import Answer, Question
from scaler.promql.quoting import LABEL_NAME, duration, literal, string

_DNS_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
# A ReplicaSet's hash and a pod's suffix are drawn from these (k8s.io/apimachinery/pkg/util/rand); the hash of old
# clusters was a number. A StatefulSet's pods end in their ordinal.
_POD_SUFFIX = "-([0-9]+|[bcdfghjklmnpqrstvwxz0-9]{5,10}-[bcdfghjklmnpqrstvwxz2456789]{5})"
# Pods are named by at most 63 characters; beyond this Kubernetes cuts the Deployment's name.
_LONGEST_WORKLOAD = 46
_LONGEST_PATTERN = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetConfig(HasCommon):
    """Which pods, and what of them. `pods` is a regular expression for the pod label, anchored."""

    common: Common
    namespace: str
    pods: str
    pods_name: str
    namespace_label: str | None
    pod_label: str | None
    model: str | None
    scale_on: str
    stale_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two labels that say whose series it is; `without` must be empty for them to be the ones."""

    namespace: str
    pod: str
    without: str | None = None


PODS: tuple[Pair, ...] = (Pair(namespace="namespace", pod="pod"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One series of the answer: which metric, of which pod, its further labels, its value."""

    metric: str
    pod: str
    labels: Mapping[str, str]
    value: float


class Preset(PromQLSource[PresetConfig]):
    """A source whose queries are built here.

    `roles` names what is read and the metrics that carry it, the preferred first (servers renamed theirs).
    `identities` are the labels besides the pod that tell apart what must be summed. `thresholds` holds what may
    be scaled on, the default first, with its default threshold.
    """

    roles: Mapping[str, tuple[str, ...]]
    identities: tuple[str, ...] = ()
    model_label: str | None = None
    pairs: tuple[Pair, ...] = PODS
    thresholds: Mapping[str, float]
    default_stale_seconds = 120.0

    def parse(self, values: Values) -> PresetConfig:
        """Check names and patterns, which become part of PromQL."""
        namespace = values.text("namespace") or ""
        if namespace and not _DNS_NAME.fullmatch(namespace):
            values.problem("namespace", "expected the name of a namespace", value=namespace)
        pods, pods_name = _pods(values)
        for name in ("namespaceLabel", "podLabel"):
            label = values.text(name)
            if label is not None and not LABEL_NAME.fullmatch(label):
                values.problem(name, "expected the name of a label", value=label)
        model = values.text("model")
        if model is not None and not _quotable(model):
            values.problem("model", "it has characters that no label has", value=model)
        scale_on = values.text("scaleOn") or next(iter(self.thresholds))
        common = parse_common(values, threshold=self.thresholds.get(scale_on, 1.0))
        return PresetConfig(
            common=common,
            namespace=namespace,
            pods=pods,
            pods_name=pods_name,
            namespace_label=values.text("namespaceLabel"),
            pod_label=values.text("podLabel"),
            model=model,
            scale_on=scale_on,
            stale_seconds=values.number("staleSeconds") or self.default_stale_seconds,
        )

    def query(self, config: PresetConfig) -> Question:
        """One query for all that is read; triggers that scale on different parts of it share it."""
        return Question(
            text=self.text(config),
            ours=True,
            wake=config.common.wake_query,
            parameters=config.common.parameters,
            timeout_seconds=config.common.timeout_seconds,
        )

    def text(self, config: PresetConfig) -> str:
        """The PromQL: what is fresh of each metric, pod and identity, under each pair of labels."""
        metrics = "|".join(literal(name) for names in self.roles.values() for name in names)
        bound = duration(config.stale_seconds)
        terms = []
        for pair in self._pairs(config):
            matchers = [
                f"__name__=~{string(metrics)}",
                f"{pair.namespace}={string(config.namespace)}",
                f"{pair.pod}=~{string(config.pods)}",
            ]
            if pair.without is not None:
                matchers.append(f'{pair.without}=""')
            if self.model_label is not None and config.model is not None:
                matchers.append(f"{self.model_label}={string(config.model)}")
            selector = "{" + ",".join(matchers) + "}"
            labels = ",".join(("__name__", pair.pod, *self.identities))
            terms.append(f"max by ({labels}) (last_over_time({selector}[{bound}]) and {selector})")
        return " or ".join(terms)

    def _pairs(self, config: PresetConfig) -> tuple[Pair, ...]:
        if config.namespace_label is None and config.pod_label is None:
            return self.pairs
        return (Pair(namespace=config.namespace_label or "namespace", pod=config.pod_label or "pod"),)

    def points(self, config: PresetConfig, answer: Answer) -> tuple[Point, ...]:
        """The finite points of the answer."""
        pairs = self._pairs(config)
        found = []
        for series in answer.result.series:
            pod = next((series.labels[pair.pod] for pair in pairs if series.labels.get(pair.pod)), None)
            if pod is not None and math.isfinite(series.value):
                metric = series.labels.get("__name__", "")
                found.append(Point(metric=metric, pod=pod, labels=series.labels, value=series.value))
        return tuple(found)

    def identity(self, config: PresetConfig) -> str:
        """Server, namespace, pods, and what is scaled on."""
        model = "" if config.model is None else f"/{config.model}"
        return f"{config.common.server.name}/{config.namespace}/{config.pods_name}{model}/{config.scale_on}"

    def object_name(self, config: PresetConfig) -> str:
        """The workload and what is scaled on."""
        model = "" if config.model is None else f"-{config.model}"
        return f"{config.pods_name}{model}-{config.scale_on}"

    def resources(self, config: PresetConfig) -> Mapping[str, tuple[str, ...]]:
        """The namespace, and what users wrote themselves."""
        found: dict[str, tuple[str, ...]] = {"namespace": (config.namespace,)}
        return found if config.common.wake_query is None else found | {"query": (config.common.wake_query,)}

    def vanishes_at_zero(self, config: PresetConfig) -> bool:
        """Pods take their series along."""
        return config.common.wake_query is None

    def sample(
        self,
        config: PresetConfig,
        reading: Answer,
        *,
        now_seconds: float,  # noqa: ARG002 - the query bounds the age
        view: ReplicaView | None,
    ) -> Sample:
        """The sums over the pods; what to do where there are none is `without_series`."""
        what = f"{self.name} of {config.namespace}/{config.pods_name}"
        points = self.points(config, reading)
        if not points:
            one_replica = None if self.counts_requests(config) else config.common.threshold
            return without_series(config.common, reading, view, one_replica=one_replica, vanishes=True, what=what)
        pods = {point.pod for point in points}
        # Pods that were ready a moment ago are not scraped yet, and a sum without them only lags. Where most are
        # missing it says nothing of the whole, and scaling down by it would be wrong.
        if view is not None and 2 * len(pods) < view.ready:
            raise SourceNoData(
                f"{what}: {view.ready} replicas are ready and only {len(pods)} have series; check the scrape, and "
                "that workload or pod names all of them"
            )
        found = self.interpret(config, reading, points, what=what)
        if not found.active and (wake := woken_by(reading.wake)):
            return _woken(found, wake)
        return found

    def counts_requests(self, config: PresetConfig) -> bool:
        """Whether the metric counts requests, as the wake query does."""
        return config.scale_on in {"waiting", "load"}

    @abstractmethod
    def interpret(self, config: PresetConfig, answer: Answer, points: tuple[Point, ...], *, what: str) -> Sample:
        """The sample made of at least one point. Raises SourceNoData where what is needed is missing."""

    def warnings(self, config: PresetConfig) -> tuple[str, ...]:
        """That waking from zero needs something else, where it does."""
        own = super().warnings(config)
        if config.common.zero_on_no_data:
            own += (
                "onNoData zero: a monitoring outage reads as no load here; a wakeQuery tells zero replicas from that",
            )
        return own


def _woken(sample: Sample, wake: float) -> Sample:
    return Sample(
        at_seconds=sample.at_seconds,
        metric_value=sample.metric_value,
        active=True,
        waiting=max(sample.waiting or 0.0, wake),
        in_flight=sample.in_flight,
        utilization_sum=sample.utilization_sum,
        raw={**sample.raw, "wake": wake},
    )


class ModelServer(Preset):
    """A server with a queue: roles `waiting` and, where it tells, `running` and a share in use (0 to 1).

    `share` is the name of that role, and of what is scaled on by it.
    """

    share = "cache"

    def interpret(self, config: PresetConfig, answer: Answer, points: tuple[Point, ...], *, what: str) -> Sample:
        """Requests that wait and run, summed; the cache's use, a mean per pod, summed in percent."""
        waiting = self.total("waiting", points)
        running = self.total("running", points)
        share = self.percent(self.share, points)
        parts = {"waiting": waiting, "running": running, f"{self.share}_percent": share}
        metric = {
            "waiting": waiting,
            "load": None if waiting is None or running is None else waiting + running,
            self.share: share,
        }[config.scale_on]
        if metric is None or waiting is None:
            missing = "waiting" if waiting is None else ("running" if config.scale_on == "load" else self.share)
            raise SourceNoData(
                f"{what}: no series {' or '.join(self.roles[missing])}; check that the server exports it "
                "and that it is scraped"
            )
        busy = waiting + (running or 0.0)
        active = busy > config.common.activation_threshold
        if running is None and share:  # the only sign of requests at work
            active = True
        return Sample(
            at_seconds=answer.at_seconds,
            metric_value=metric,
            active=active,
            waiting=waiting,
            in_flight=running,
            utilization_sum=metric if config.scale_on == self.share else None,
            raw={name: value for name, value in parts.items() if value is not None}
            | {"pods": float(len({point.pod for point in points}))},
        )

    def chosen(self, role: str, points: Iterable[Point]) -> tuple[Point, ...]:
        """The points of a role: of each pod by the first of the role's metrics that it exports."""
        names = self.roles.get(role, ())
        best: dict[str, int] = {}
        for point in points:
            if point.metric in names:
                best[point.pod] = min(names.index(point.metric), best.get(point.pod, len(names)))
        return tuple(point for point in points if point.pod in best and point.metric == names[best[point.pod]])

    def total(self, role: str, points: Iterable[Point]) -> float | None:
        """The sum of a role, or None without any point."""
        found = self.chosen(role, points)
        return sum(max(point.value, 0.0) for point in found) if found else None

    def percent(self, role: str, points: Iterable[Point]) -> float | None:
        """The mean share per pod, summed over pods, in percent; None without any point."""
        shares: dict[str, list[float]] = {}
        for point in self.chosen(role, points):
            shares.setdefault(point.pod, []).append(min(max(point.value, 0.0), 1.0))
        return sum(100.0 * sum(values) / len(values) for values in shares.values()) if shares else None


def spellings(name: str) -> tuple[str, ...]:
    """A metric's name as the server writes it, and as it may arrive.

    Python's prometheus_client writes "_" for ":" where the scrape asks for OpenMetrics, as Prometheus does
    (seen with prometheus_client 0.26 and Prometheus 2.42).
    """
    return (name, name.replace(":", "_"))


def preset_parameters(
    thresholds: Mapping[str, float], *, unit: str, model: bool, stale_seconds: float = 120.0
) -> tuple[Parameter, ...]:
    """The parameters of a preset."""
    defaults = ", ".join(f"{value:g} for {name}" for name, value in thresholds.items())
    found = [
        Parameter(name="namespace", required=True, help="namespace of the workload's pods"),
        Parameter(name="workload", help="the Deployment or StatefulSet whose pods are read; or give pod"),
        Parameter(name="pod", help="regular expression for the names of the pods (RE2, anchored), instead of workload"),
        Parameter(
            name="threshold",
            kind="number",
            minimum=0.001,
            unit=unit,
            help=f"the metric per replica: the HPA's target with policy target; {defaults} unless set",
        ),
        Parameter(
            name="activationThreshold",
            activation=True,
            kind="number",
            default=0.0,
            help="active when the load is above this",
        ),
        Parameter(
            name="staleSeconds",
            kind="number",
            minimum=5,
            maximum=86_400,
            default=stale_seconds,
            unit="seconds",
            help="samples older than this are no samples; must span the scrape interval",
        ),
        Parameter(
            name="namespaceLabel",
            belongs=Belongs.ENDPOINT,
            help="label that holds the namespace, where it is not the usual one",
        ),
        Parameter(
            name="podLabel", belongs=Belongs.ENDPOINT, help="label that holds the pod, where it is not the usual one"
        ),
        WAKE_QUERY,
        ON_NO_DATA,
        *ENDPOINT_PARAMETERS,
    ]
    if len(thresholds) > 1:
        names = tuple(thresholds)
        found.insert(3, Parameter(name="scaleOn", allowed=names, default=names[0], help="what the metric is"))
    if model:
        found.insert(3, Parameter(name="model", help="only requests to this model"))
    return tuple(found)


def _pods(values: Values) -> tuple[str, str]:
    """The regular expression for the pods, and what to call them."""
    workload, pod = values.text("workload"), values.text("pod")
    if workload is not None and pod is not None:
        values.problem("pod", "workload and pod exclude each other: keep one")
        return "", ""
    if workload is None and pod is None:
        values.problem("workload", "expected the name of a Deployment or StatefulSet, or else a pattern as pod")
        return "", ""
    if workload is not None:
        if not _DNS_NAME.fullmatch(workload):
            values.problem("workload", "expected the name of a Deployment or StatefulSet", value=workload)
            return "", ""
        if len(workload) > _LONGEST_WORKLOAD:
            values.problem(
                "workload", "Kubernetes shortens such a long name in its pods; give a pattern as pod", value=workload
            )
        return f"{literal(workload)}{_POD_SUFFIX}", workload
    assert pod is not None
    if len(pod) > _LONGEST_PATTERN or not _quotable(pod) or not _is_re2(pod):
        values.problem("pod", "expected a regular expression (RE2) such as llama-.+", value=pod)
        return "", ""
    return pod, pod


def _quotable(text: str) -> bool:
    try:
        string(text)
    except ValueError:
        return False
    return True


def _is_re2(pattern: str) -> bool:
    import re2  # noqa: PLC0415 - loads a native library

    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except re2.error:
        return False
    return True
