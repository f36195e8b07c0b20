"""The process's own settings: one YAML file, a few environment variables, every field with unit and reason.

Field names in the file are camelCase. Unknown fields are errors. `PILOTLIGHT_CONFIG` names the file where
the command line does not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from scaler.errors import SettingsInvalid, quoted
from scaler.parameters import Belongs, Parameter, Secret
from scaler.plugins import sources

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class TlsSettings(_Section):
    """Certificates of a listener, read anew when the files change. `client_ca_file` makes it mTLS."""

    cert_file: str
    key_file: str
    client_ca_file: str | None = None


class ClientRule(_Section):
    """A client certificate's name (SAN or CN) and the namespaces it may speak for, as glob patterns."""

    name: str
    namespaces: tuple[str, ...]


class ServerSettings(_Section):
    """The listeners. Addresses are `host:port`; port 0 takes a free one."""

    listen: str = "127.0.0.1:6000"
    hints_listen: str | None = "127.0.0.1:6001"
    metrics_listen: str | None = "127.0.0.1:9090"
    tls: TlsSettings | None = None
    hints_tls: TlsSettings | None = None
    # Bearer token for the hints listener; without it and without client certificates only loopback may bind.
    hints_token_file: str | None = None
    clients: tuple[ClientRule, ...] = ()
    # Clients are asked to open a new connection after this, so that they rebalance over replicas. A stream ends by
    # itself after 0.7 to 0.8 of it, and calls in flight have that time and the grace before the old one closes.
    max_connection_age_seconds: Seconds = 1800.0
    max_connection_age_grace_seconds: Seconds = 30.0
    # How long a drain waits for calls in flight: below Kubernetes' default terminationGracePeriod of 30 s.
    drain_seconds: Seconds = 20.0
    # KEDA 2.21's optional stream: nothing needs it while targets are constant, and an idle one costs 22 KiB.
    stream_metric_spec: bool = False
    # A message to a stream that its client doesn't take within this ends the stream.
    stream_write_seconds: Seconds = 10.0
    reflection: bool = True


class ReadingSettings(_Section):
    """How sources are read."""

    read_timeout_seconds: Seconds = 5.0
    connect_timeout_seconds: Seconds = 5.0
    # The bound on one call of a client's `read`, whatever the client does inside; above its own timeouts.
    read_deadline_seconds: Seconds = 15.0
    max_response_bytes: Count = 16 * 1024 * 1024
    # How long RPCs of a new workload wait for its first reading; KEDA sets no deadline of its own.
    first_answer_seconds: Seconds = 2.0
    # A client that nobody needs any more is kept for this long.
    client_linger_seconds: Seconds = 30.0
    # A workload that no call and no stream touched for this long (or for three of its polling intervals) is gone.
    expiry_seconds: Seconds = 600.0
    # A failing workload that was last active keeps sending `true` for holdSeconds and this much longer.
    failing_active_seconds: Seconds = 600.0
    # A replica report is believed for this long.
    report_valid_seconds: Seconds = 30.0


class LimitSettings(_Section):
    """Bounds on what callers can make us hold."""

    workloads: Count = 20_000
    # Different triggers of one ScaledObject, digests that only an old push stream still holds included.
    workloads_per_object: Count = 64
    streams: Count = 20_000
    clients: Count = 1_000
    metadata_bytes: Count = 64 * 1024
    metadata_keys: Count = 128
    message_bytes: Count = 256 * 1024


class RightsSettings(_Section):
    """What metadata written in these namespaces may do; the first rule that matches a namespace counts."""

    namespaces: tuple[str, ...] = ("*",)
    metadata_endpoints: bool = True
    metadata_credentials: bool = True
    # Whether endpoints from metadata may lead to loopback or link-local addresses or the API server.
    private_addresses: bool = False


class FileValue(_Section):
    """A value read from a file, anew at each use."""

    file: str


class EnvValue(_Section):
    """A value read from an environment variable, at start."""

    env: str


class ConnectionSettings(_Section):
    """An endpoint with credentials, the namespaces that may use it and what they may read through it.

    `set` holds the source's own endpoint and credential parameters by their metadata names. `also` names
    further sources it serves (presets on a Prometheus server). `allow`: kind of resource to glob patterns.
    """

    source: str
    also: tuple[str, ...] = ()
    namespaces: tuple[str, ...]
    allow: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    set: dict[str, str | int | float | bool | FileValue | EnvValue] = Field(default_factory=dict)


class TelemetrySettings(_Section):
    """Logs and metrics."""

    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    log_format: str = Field(default="auto", pattern="^(auto|json|console)$")
    # Series per workload; None: on up to 1,000 workloads, since 150,000 series take seconds to render.
    workload_series: bool | None = None


class StateSettings(_Section):
    """What the state folder may hold, and how fast it is written."""

    # What a crash may lose: the file is written this often.
    commit_seconds: Seconds = 1.0
    # What policies learned takes longer to write down, so each workload's is written this often.
    learned_seconds: Seconds = 5.0
    # The oldest observations go first. 256 MiB hold about three million: a month of 60 busy workloads, idle ones free.
    max_megabytes: Count = 256
    # By how long the service has run, not by the wall's clock, which may step.
    max_age_days: Seconds = 30.0
    # Observations that may wait for the disk; those above are dropped and counted.
    queue_observations: Count = 50_000


class FileSettings(_Section):
    """The whole file."""

    server: ServerSettings = ServerSettings()
    reading: ReadingSettings = ReadingSettings()
    limits: LimitSettings = LimitSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    rights: tuple[RightsSettings, ...] = (RightsSettings(),)
    connections: dict[str, ConnectionSettings] = Field(default_factory=dict)
    # Folder for what survives a restart; None: nothing is kept.
    state_folder: str | None = None
    state: StateSettings = StateSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A connection, resolved: `values` by parameter name, secrets as Secret."""

    name: str
    source: str
    also: tuple[str, ...]
    namespaces: tuple[str, ...]
    allow: Mapping[str, tuple[str, ...]] = field(hash=False)
    values: Mapping[str, str | Secret] = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that was configured, with connections resolved."""

    server: ServerSettings = field(default_factory=ServerSettings)
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    rules: tuple[RightsSettings, ...] = (RightsSettings(),)
    connections: Mapping[str, Connection] = field(default_factory=dict)
    state_folder: str | None = None
    state: StateSettings = field(default_factory=StateSettings)

    def usable_sources(self) -> frozenset[str]:
        """Sources that some workload may read: every one where metadata may name endpoints, else those connected to."""
        if any(rule.metadata_endpoints for rule in self.rules):
            return frozenset(sources())
        return frozenset(
            name for connection in self.connections.values() for name in (connection.source, *connection.also)
        )

    def rights(self, namespace: str) -> RightsSettings:
        """What metadata of `namespace` may do; nothing where no rule matches."""
        for rule in self.rules:
            if any(fnmatchcase(namespace, pattern) for pattern in rule.namespaces):
                return rule
        return RightsSettings(metadata_endpoints=False, metadata_credentials=False)


def load_settings(path: str | None = None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the YAML file at `path` (or `PILOTLIGHT_CONFIG`), defaults where there is none.

    Raises SettingsInvalid that names file, field, value and what was expected.
    """
    path = path or environment.get("PILOTLIGHT_CONFIG")
    if path is None:
        return resolve(FileSettings(), environment, where="defaults")
    try:
        text = Path(path).read_text(encoding="utf-8")
        document = yaml.safe_load(text) or {}
    except (OSError, UnicodeDecodeError) as err:
        why = (err.strerror or type(err).__name__) if isinstance(err, OSError) else "it is not UTF-8"
        raise SettingsInvalid(f"settings file {quoted(path)} can't be read: {why}; mend the path or the file") from err
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark is not None else ""
        raise SettingsInvalid(f"settings file {quoted(path)} is not YAML{line}") from err
    if not isinstance(document, dict):
        raise SettingsInvalid(f"settings file {quoted(path)}: expected a mapping at the top")
    try:
        parsed = FileSettings.model_validate(document)
    except ValidationError as err:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in err.errors(include_input=False, include_url=False)
        )
        raise SettingsInvalid(f"settings file {quoted(path)}: {problems}") from err
    return resolve(parsed, environment, where=f"settings file {quoted(path)}")


def overridden(
    settings: Settings,
    *,
    listen: str | None = None,
    hints_listen: str | None = None,
    metrics_listen: str | None = None,
    local: bool = False,
    log_format: str | None = None,
) -> Settings:
    """`settings` with what the command line says instead; None leaves a value, "off" switches a listener off.

    `local`: metadata may lead to loopback and private addresses, for everyone.
    """
    server: dict[str, str | None] = {}
    if listen is not None:
        server["listen"] = listen
    for name, value in (("hints_listen", hints_listen), ("metrics_listen", metrics_listen)):
        if value is not None:
            server[name] = None if value == "off" else value
    changed = replace(settings, server=settings.server.model_copy(update=server))
    if log_format is not None:
        changed = replace(changed, telemetry=settings.telemetry.model_copy(update={"log_format": log_format}))
    if local:
        changed = replace(changed, rules=(RightsSettings(private_addresses=True), *settings.rules))
    return changed


def resolve(parsed: FileSettings, environment: Mapping[str, str], *, where: str) -> Settings:
    """Settings with every connection checked against its source's parameters.

    Raises SettingsInvalid.
    """
    connections = {
        name: _connection(name, connection, environment, where) for name, connection in parsed.connections.items()
    }
    return Settings(
        server=parsed.server,
        reading=parsed.reading,
        limits=parsed.limits,
        telemetry=parsed.telemetry,
        rules=parsed.rights,
        connections=connections,
        state_folder=parsed.state_folder,
        state=parsed.state,
    )


def _connection(name: str, parsed: ConnectionSettings, environment: Mapping[str, str], where: str) -> Connection:
    place = f"{where}: connections.{name}"
    known = sources()
    for source_name in (parsed.source, *parsed.also):
        if source_name not in known:
            raise SettingsInvalid(
                f"{place}: source {quoted(source_name)} is not known; expected one of {', '.join(sorted(known))}"
            )
    for source_name in (parsed.source, *parsed.also):
        unknown = sorted(set(parsed.allow) - set(known[source_name].allow_kinds))
        if unknown:  # a restriction that is not understood must not pass for none
            raise SettingsInvalid(
                f"{place}.allow.{unknown[0]}: source {source_name} knows no such kind; "
                f"expected one of {', '.join(known[source_name].allow_kinds)}"
            )
    parameters = {
        parameter.name: parameter
        for parameter in known[parsed.source].parameters
        if parameter.belongs is not Belongs.TRIGGER
    }
    values: dict[str, str | Secret] = {}
    for key, value in parsed.set.items():
        parameter = parameters.get(key)
        if parameter is None:
            raise SettingsInvalid(
                f"{place}.set.{key}: not an endpoint or credential of source {parsed.source}; "
                f"expected one of {', '.join(sorted(parameters))}"
            )
        values[key] = _value(parameter, value, environment, f"{place}.set.{key}")
    return Connection(
        name=name,
        source=parsed.source,
        also=parsed.also,
        namespaces=parsed.namespaces,
        allow=parsed.allow,
        values=values,
    )


def _value(
    parameter: Parameter,
    value: str | float | bool | FileValue | EnvValue,
    environment: Mapping[str, str],
    place: str,
) -> str | Secret:
    if isinstance(value, FileValue):
        return Secret(path=value.file, what=parameter.name)
    if isinstance(value, EnvValue):
        text = environment.get(value.env)
        if not text:
            raise SettingsInvalid(f"{place}: environment variable {quoted(value.env)} is not set")
    elif isinstance(value, bool):
        text = "true" if value else "false"
    else:
        text = str(value)
    return Secret(text.strip(), what=parameter.name) if parameter.secret else text
