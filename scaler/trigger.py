"""Metadata strings into one frozen Trigger, or TriggerInvalid with every problem at once.

Three things can be wrong with a trigger. Its metadata can't be parsed: TriggerInvalid. It parses, but may
not be read from here (a connection that is missing or not this namespace's, an endpoint in metadata where
that is switched off): the trigger carries a `refusal`, which GetMetrics raises; GetMetricSpec still answers,
since its failure would block KEDA's fallback (kedacore/keda#8056). It works, but looks odd: `warnings`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

from scaler.core.answers import JOBS, WARM
from scaler.core.decide import Policy
from scaler.core.model import Goals, ReplicaStep
from scaler.errors import (
    NamespaceDenied,
    PilotlightError,
    Problem,
    SourceDenied,
    SourceMissing,
    TriggerInvalid,
    quoted,
)
from scaler.parameters import FROM_ENV, Belongs, Parameter, ValueProblem, Values, read_values, unknown_keys
from scaler.plugins import policies, sources
from scaler.settings import Connection, Settings
from scaler.source import AnySource

# KEDA's connection to us; they come along in the metadata and never reach a source.
KEDA_KEYS = frozenset({"scalerAddress", "enableTLS", "unsafeSsl"})

OURS: tuple[Parameter, ...] = (
    Parameter(
        name="source", required=True, help="what is read: one of the sources, such as sqs, kafka, rabbitmq, prometheus"
    ),
    Parameter(name="policy", help="how the reading becomes replicas; slo when waitSeconds is given, else target"),
    Parameter(
        name="connection", help="a connection of the service's configuration, which fixes endpoint and credentials"
    ),
    Parameter(
        name="waitSeconds",
        kind="number",
        above=0,
        maximum=86_400,
        unit="seconds",
        help="the objective: a share `attainment` of requests starts within this time",
    ),
    Parameter(
        name="attainment",
        kind="number",
        above=0,
        maximum=0.9999,
        default=0.95,
        unit="share",
        help="the share of requests that must start within waitSeconds",
    ),
    Parameter(
        name="serviceSeconds",
        kind="number",
        above=0,
        maximum=86_400,
        unit="seconds",
        help="how long one request keeps a slot busy: a first guess, learned afterwards; believed where the source "
        "counts nothing (SQS, AMQP), so say it there; on several slo triggers of a ScaledObject the mean over all",
    ),
    Parameter(
        name="coldStartSeconds",
        kind="number",
        minimum=0.001,
        maximum=7_200,
        unit="seconds",
        help="first guess of creation to serving; learned afterwards",
    ),
    Parameter(
        name="concurrency",
        kind="integer",
        minimum=1,
        maximum=10_000,
        default=1,
        unit="requests",
        help="requests one replica works on at once",
    ),
    Parameter(name="gpuCostPerHour", kind="number", above=0, maximum=10_000, help="price of one replica for an hour"),
    Parameter(
        name="minReplicas",
        kind="integer",
        minimum=0,
        maximum=100_000,
        default=0,
        unit="replicas",
        help="the ScaledObject's minReplicaCount, and no more than that: to get down to ten or more, less is answered",
    ),
    Parameter(
        name="maxReplicas",
        kind="integer",
        minimum=1,
        maximum=100_000,
        default=100,
        unit="replicas",
        help="the ScaledObject's maxReplicaCount",
    ),
    Parameter(
        name="cooldownSeconds",
        kind="number",
        minimum=0,
        maximum=86_400,
        unit="seconds",
        help="the ScaledObject's cooldownPeriod, so that slo can subtract it from its own hold",
    ),
    Parameter(
        name="steps",
        help='for policy steps: "1:2,6:5,21:10" means from 1 request 2 replicas, from 6 five, from 21 ten',
    ),
    Parameter(
        name="confirmations",
        kind="integer",
        minimum=1,
        maximum=10,
        default=2,
        unit="reads",
        help="reads that must agree before waking from zero, where the source is approximate (SQS)",
    ),
    Parameter(name="warm", allowed=("off", "floor", "pool"), default="off", help="how replicas are kept warm"),
    Parameter(
        name="answer",
        allowed=("demand", "warm", "jobs"),
        default="demand",
        help="what this trigger answers: the demand, the warm pool's size, or jobs for a ScaledJob",
    ),
    Parameter(
        name="warmFor",
        help="with answer warm: the ScaledObject of the same namespace whose pool this one scales",
    ),
    Parameter(
        name="holdSeconds",
        kind="number",
        minimum=0,
        maximum=86_400,
        default=120.0,
        unit="seconds",
        help="how long the last decision stands without a fresh reading before GetMetrics answers UNAVAILABLE",
    ),
    Parameter(
        name="staleSeconds",
        kind="number",
        above=0,
        maximum=86_400,
        unit="seconds",
        help="samples older than this are no samples",
    ),
    Parameter(
        name="sampleSeconds",
        kind="number",
        minimum=0.2,
        maximum=3_600,
        unit="seconds",
        help="pace of background reads; each source has its default",
    ),
    Parameter(
        name="heartbeatSeconds",
        kind="number",
        minimum=1,
        maximum=3_600,
        default=20.0,
        unit="seconds",
        help="how often StreamIsActive repeats `true` where no replica can be seen",
    ),
    Parameter(
        name="onNoData",
        allowed=("hold", "zero"),
        default="hold",
        help="what an empty answer means: hold the last decision, or zero (must be asked for)",
    ),
    Parameter(
        name="hpaTolerance",
        kind="number",
        minimum=0,
        maximum=1,
        default=0.1,
        unit="share",
        help="the HPA's tolerance; 0.1 unless the ScaledObject says otherwise",
    ),
    Parameter(
        name="dryRun",
        kind="flag",
        default=False,
        help="answer by policy target and record what slo would have done",
    ),
    Parameter(name="metricName", help="retired by KEDA; ignored", retired="KEDA derives the name itself"),
)

_NAME_UNFIT = re.compile(r"[^a-z0-9]+")
_METRIC_NAME_LIMIT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """One trigger, parsed. Everything that follows works on this; no string of the metadata is read again.

    `identity` names what is read, without secrets: what is learned is kept under (namespace, name, identity).
    `terms` is a digest of what the metadata says, but for secrets: rotated, they leave it as it is.
    `dry_run` is the policy whose answers are recorded and not given, or None.
    `refusal` is why it may not be read, to be raised by GetMetrics; `config` is then not to be opened.
    """

    namespace: str
    name: str
    source_name: str
    source: AnySource
    config: Hashable
    connection: Connection | None
    identity: str
    terms: bytes
    policy_name: str
    policy: Policy[Any]
    goals: Goals
    metric_name: str
    sample_seconds: float
    heartbeat_seconds: float
    dry_run: Policy[Any] | None
    warm_for: str | None
    warnings: tuple[str, ...]
    refusal: PilotlightError | None


def parse_trigger(namespace: str, name: str, metadata: Mapping[str, str], settings: Settings) -> Trigger:
    """The trigger that `metadata` describes. No I/O but reading a connection's non-secret files.

    Raises TriggerInvalid with every problem found.
    """
    subject = f"trigger of {quoted(f'{namespace}/{name}')}"
    raw = {key: value for key, value in metadata.items() if key.removesuffix(FROM_ENV) not in KEDA_KEYS}
    source_name, source = _source(raw, subject)
    parameters = merged(source.parameters)
    connection, refusal = _connection(raw, namespace, source_name, settings)
    try:
        values = read_values(parameters, raw, fixed=connection.values if connection else None)
    except SourceDenied as err:
        refusal = err
        values = read_values(parameters, raw)
    by_name = {parameter.name: parameter for parameter in parameters}
    _check_belonging(by_name, raw, values, names_connection=bool(_said(raw, "connection")))
    values.problems.extend(unknown_keys(parameters, raw))
    goals = _goals(values)
    config = source.parse(values)
    if refusal is not None:  # the connection would have said these
        values.problems[:] = [problem for problem in values.problems if not _connections_own(problem, by_name, raw)]
    policy_name, policy = _policy(values)
    dry_run = policies().get("slo") if values.flag("dryRun") else None
    if goals.warm != "off" and policy is not None and policy_name != "slo" and dry_run is None:
        values.problem("warm", "only policy slo keeps replicas warm: give waitSeconds, or remove it", value=goals.warm)
    if goals.answer == "warm" and values.text("warmFor") == name:
        values.problem("warmFor", "expected another ScaledObject: a pool is not its own demand", value=name)
    if policy is not None:
        if not values.problems:
            goals = replace(goals, target_value=source.target(config))
        for field, expected in (*policy.problems(goals), *(() if dry_run is None else dry_run.problems(goals))):
            if not values.failed(field):  # what can't be read is not missing
                values.problem(field, expected)
    if values.problems or policy is None:
        raise TriggerInvalid(tuple(values.problems), subject=subject)
    if refusal is None:
        if connection is None:
            refusal = _metadata_refusal(parameters, raw, namespace, settings)
        else:
            refusal = _connection_refusal(source.resources(config), connection)
    warnings = (*_retired(parameters, raw), *source.warnings(config))
    if goals.wait_seconds is not None and policy_name != "slo" and dry_run is None:
        warnings += (f"waitSeconds is for policy slo; with policy {policy_name} it has no effect",)
    is_told = goals.service_seconds is not None or source.has_counters(config)
    if (policy_name == "slo" or dry_run is not None) and not is_told:
        warnings += (
            (
                f"serviceSeconds is not given, and {source_name} counts nothing from which it could be learned well: "
                "say how many seconds a request takes on average (docs/policies.md, Sources that count nothing)"
            ),
        )
    unused = [one.name for one in source.parameters if one.activation and values.number(one.name)]
    if unused and policy.decides_replicas and policy is not JOBS:  # a job is for each request, so it asks the source
        named = " and ".join(unused)
        warnings += (f"{named} is for policy target; policy {policy_name} is active as soon as there is work for it",)
    if source.vanishes_at_zero(config) and goals.min_replicas < 1:
        warnings += (
            (
                "minReplicas 0: at zero replicas nothing is left to read, so nothing here wakes the workload; add a "
                "wakeQuery or another trigger that wakes, or keep one replica and say minReplicas 1"
            ),
        )
    answer = "" if goals.answer in {"demand", policy_name} else f"{goals.answer}-"
    return Trigger(
        namespace=namespace,
        name=name,
        source_name=source_name,
        source=source,
        config=config,
        connection=connection,
        identity=f"{source_name}:{source.identity(config)}",
        terms=_terms(raw, by_name),
        policy_name=policy_name,
        policy=policy,
        goals=goals,
        metric_name=metric_name(f"{answer}{policy_name}-{source_name}", source.object_name(config)),
        sample_seconds=values.number("sampleSeconds") or source.sample_seconds,
        heartbeat_seconds=values.number("heartbeatSeconds") or 20.0,
        dry_run=dry_run,
        warm_for=values.text("warmFor"),
        warnings=warnings,
        refusal=refusal,
    )


def _terms(raw: Mapping[str, str], by_name: Mapping[str, Parameter]) -> bytes:
    """See Trigger.terms."""
    digest = hashlib.blake2b(digest_size=16)
    for key, value in sorted(raw.items()):
        parameter = by_name.get(key.removesuffix(FROM_ENV))
        if parameter is None or not parameter.secret:
            digest.update(f"{len(key)}:{key}{len(value)}:{value}".encode(errors="surrogatepass"))
    return digest.digest()


def merged(source_parameters: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
    """A source's parameters and ours; where both have a name, the source's counts."""
    own = {parameter.name for parameter in source_parameters}
    return source_parameters + tuple(parameter for parameter in OURS if parameter.name not in own)


def metric_name(prefix: str, object_name: str) -> str:
    """`<prefix>-<object>` in [a-z0-9-], at most 100 characters, stable.

    Where characters had to go or the name was cut, a digest of the original keeps different objects apart.
    """
    whole = f"{prefix}-{object_name}"
    fit = _NAME_UNFIT.sub("-", whole.lower()).strip("-")
    if fit == whole and len(fit) <= _METRIC_NAME_LIMIT:
        return fit
    mark = hashlib.blake2b(whole.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{fit[: _METRIC_NAME_LIMIT - 9].strip('-')}-{mark}"


def parse_steps(text: str) -> tuple[ReplicaStep, ...]:
    """The table of policy `steps`: "1:2,6:5,21:10". Both columns must rise."""
    expected = 'expected pairs such as "1:2,6:5,21:10": from 1 request 2 replicas, from 6 five, both rising'
    steps: list[ReplicaStep] = []
    for element in text.split(","):
        left, colon, right = element.strip().partition(":")
        if not colon or not left.isascii() or not left.isdigit() or not right.isascii() or not right.isdigit():
            raise ValueProblem(expected)
        if max(len(left), len(right)) > 9:
            raise ValueProblem("expected numbers below a billion")
        steps.append(ReplicaStep(waiting_from=float(left), replicas=int(right)))
    for earlier, later in pairwise(steps):
        if later.waiting_from <= earlier.waiting_from or later.replicas <= earlier.replicas:
            raise ValueProblem(expected)
    if steps[0].waiting_from < 1 or steps[0].replicas < 1:
        raise ValueProblem("expected at least 1 request and 1 replica in the first pair")
    return tuple(steps)


def _said(raw: Mapping[str, str], name: str) -> str:
    """The text of a key or of its FromEnv form, trimmed; empty where neither is set."""
    return raw.get(name, "").strip() or raw.get(f"{name}{FROM_ENV}", "").strip()


def _source(raw: Mapping[str, str], subject: str) -> tuple[str, AnySource]:
    known = sources()
    name = _said(raw, "source")
    if name in known:
        return name, known[name]
    expected = "expected one of " + ", ".join(sorted(known))
    problem = Problem(field="source", value=name or None, expected=expected if name else f"required: {expected}")
    raise TriggerInvalid((problem,), subject=subject)


def _policy(values: Values) -> tuple[str, Policy[Any] | None]:
    known = policies()
    wanted = values.text("policy") or ("slo" if values.number("waitSeconds") is not None else "target")
    if values.text("answer") == "jobs":
        return "jobs", JOBS
    if values.text("answer") == "warm":
        return "warm", WARM
    if values.flag("dryRun") and wanted == "slo":
        wanted = "target"
    if wanted not in known:
        values.problem("policy", "expected one of " + ", ".join(sorted(known)), value=wanted)
        return wanted, None
    return wanted, known[wanted]


def _connection(
    raw: Mapping[str, str], namespace: str, source_name: str, settings: Settings
) -> tuple[Connection | None, PilotlightError | None]:
    """The connection that the trigger names, or why it can't be used."""
    name = _said(raw, "connection")
    if not name:
        return None, None
    connection = settings.connections.get(name)
    # One message for both: whether a connection exists is not for a namespace that may not use it.
    if connection is None or not any(fnmatchcase(namespace, pattern) for pattern in connection.namespaces):
        return None, NamespaceDenied(
            f"connection {quoted(name)} does not exist or is not open to namespace {quoted(namespace)}; "
            "ask the operator of Pilotlight to add it or the namespace to it"
        )
    if connection.source != source_name and source_name not in connection.also:
        return None, SourceMissing(
            f"connection {quoted(name)} is for source {connection.source}, the trigger's source is {source_name}"
        )
    return connection, None


def _check_belonging(
    parameters: Mapping[str, Parameter], raw: Mapping[str, str], values: Values, *, names_connection: bool
) -> None:
    """A connection fixes endpoint and credentials; ambient identity is reachable through one only."""
    for parameter in parameters.values():
        said = next((key for key in parameter.keys if raw.get(key, "").strip()), None)
        if said is None:
            continue
        if parameter.belongs is Belongs.CONNECTION_ONLY:
            values.problem(said, "only a connection of the service's configuration may say this; name a connection")
        elif names_connection and parameter.belongs is not Belongs.TRIGGER:
            values.problem(said, "the connection fixes endpoint and credentials; remove this key or the connection")


def _connections_own(problem: Problem, parameters: Mapping[str, Parameter], raw: Mapping[str, str]) -> bool:
    """Whether the connection that can't be used would have said this field."""
    parameter = parameters.get(problem.field)
    return (
        parameter is not None
        and parameter.belongs is not Belongs.TRIGGER
        and not any(raw.get(key, "").strip() for key in parameter.keys)
    )


def _goals(values: Values) -> Goals:
    steps: tuple[ReplicaStep, ...] = ()
    text = values.text("steps")
    if text is not None:
        try:
            steps = parse_steps(text)
        except ValueProblem as err:
            values.problem("steps", str(err), value=text)
    minimum, maximum = values.integer("minReplicas") or 0, values.integer("maxReplicas") or 100
    if minimum > maximum:
        values.problem("minReplicas", f"it must not be above maxReplicas ({maximum})", value=str(minimum))
    hold, tolerance, attainment = (
        values.number("holdSeconds"),
        values.number("hpaTolerance"),
        values.number("attainment"),
    )
    if steps and not (values.text("policy") or "").startswith("steps"):
        values.problem("steps", "only for policy steps: add policy: steps, or remove the table", value=text)
    if values.text("answer") == "warm" and values.text("warmFor") is None:
        values.problem("warmFor", "required with answer warm: the ScaledObject whose pool this one scales")
    if values.text("answer") != "warm" and values.text("warmFor") is not None:
        values.problem("warmFor", "it means something with answer warm only: add that, or remove it")
    return Goals(
        target_value=1.0,
        wait_seconds=values.number("waitSeconds"),
        attainment=0.95 if attainment is None else attainment,
        service_seconds=values.number("serviceSeconds"),
        cold_start_seconds=values.number("coldStartSeconds"),
        concurrency=values.integer("concurrency") or 1,
        gpu_cost_per_hour=values.number("gpuCostPerHour"),
        min_replicas=minimum,
        max_replicas=maximum,
        cooldown_seconds=values.number("cooldownSeconds"),
        steps=steps,
        confirmations=values.integer("confirmations") or 2,
        warm=values.text("warm") or "off",
        answer=values.text("answer") or "demand",
        hold_seconds=120.0 if hold is None else hold,
        stale_seconds=values.number("staleSeconds"),
        hpa_tolerance=0.1 if tolerance is None else tolerance,
        sample_seconds=values.number("sampleSeconds"),
    )


def _metadata_refusal(
    parameters: tuple[Parameter, ...], raw: Mapping[str, str], namespace: str, settings: Settings
) -> PilotlightError | None:
    """Why this namespace may not say in metadata what it said, or None."""
    rights = settings.rights(namespace)
    denied = []
    for parameter in parameters:
        said = next((raw[key] for key in parameter.keys if raw.get(key, "").strip()), None)
        if said is None or parameter.belongs is Belongs.TRIGGER:
            continue
        allowed = rights.metadata_endpoints
        # A URL may carry user and password (RabbitMQ's host): then it is a credential, too.
        if parameter.belongs is not Belongs.ENDPOINT:
            allowed = rights.metadata_credentials
        elif "@" in said:
            allowed = allowed and rights.metadata_credentials
        if not allowed:
            denied.append(parameter.name)
    if not denied:
        return None
    return NamespaceDenied(
        f"namespace {quoted(namespace)} may not set {', '.join(denied)} in metadata; name a `connection`, or "
        "let the operator of Pilotlight allow metadataEndpoints and metadataCredentials for it"
    )


def _connection_refusal(resources: Mapping[str, tuple[str, ...]], connection: Connection) -> PilotlightError | None:
    """Why the connection does not let these resources be read, or None."""
    for kind, names in resources.items():
        patterns = connection.allow.get(kind)
        if patterns is None:
            continue
        for name in names:
            if not any(fnmatchcase(name, pattern) for pattern in patterns):
                return SourceDenied(
                    f"connection {quoted(connection.name)} does not let {kind} {quoted(name)} be read; "
                    "ask the operator of Pilotlight to add it to the connection's allow list"
                )
    return None


def _retired(parameters: tuple[Parameter, ...], raw: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        f"{parameter.name} is ignored: {parameter.retired}"
        for parameter in parameters
        if parameter.retired is not None and any(raw.get(key, "").strip() for key in parameter.keys)
    )
