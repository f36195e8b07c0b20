"""Every error Pilotlight raises on purpose, and the gRPC code each becomes.

    PilotlightError
    ├── TriggerInvalid       the user's metadata is wrong              INVALID_ARGUMENT
    ├── MetricUnknown        GetMetrics asks for a name never given    NOT_FOUND
    ├── NamespaceDenied      this caller or namespace may not          PERMISSION_DENIED
    ├── LimitReached         one of our own limits                     RESOURCE_EXHAUSTED
    ├── SettingsInvalid      the process's own configuration           (the process does not start)
    ├── RecordingUnreadable  a recording of observations               (a command ends)
    └── SourceError          a source could not be read
        ├── SourceMissing    queue, topic or server name does not exist  FAILED_PRECONDITION
        ├── SourceDenied     credentials or rights refused               FAILED_PRECONDITION
        ├── SourceNotInstalled  its client library is not installed      FAILED_PRECONDITION
        └── SourceUnavailable  cannot be read now, worth a retry         UNAVAILABLE
            ├── SourceTimeout
            └── SourceNoData   it answered, but with no usable sample

Anything else that reaches the RPC border is our bug: INTERNAL, with the detail in the log only.

A message says what, which object, which value, what was expected and what to do. It never holds a secret
and never the body of a broker's response.
"""

from __future__ import annotations

from dataclasses import dataclass


class PilotlightError(Exception):
    """The root: catch this to catch whatever Pilotlight raises on purpose."""

    grpc_code = "INTERNAL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with one field.

    `value` is what the user wrote, shortened and None where it is secret; `expected` says what is allowed
    and what to do.
    """

    field: str
    expected: str
    value: str | None = None

    def __str__(self) -> str:
        """`field "value": expected`, or `field: expected`."""
        if self.value is None:
            return f"{self.field}: {self.expected}"
        return f"{self.field} {quoted(self.value)}: {self.expected}"


class TriggerInvalid(PilotlightError):
    """The metadata of a trigger can't be accepted; `problems` holds every reason at once."""

    grpc_code = "INVALID_ARGUMENT"

    def __init__(self, problems: tuple[Problem, ...], *, subject: str = "trigger") -> None:
        self.problems = problems
        super().__init__(f"{subject}: " + "; ".join(str(problem) for problem in problems))


class MetricUnknown(PilotlightError):
    """GetMetrics asked for a metric name that GetMetricSpec never announced."""

    grpc_code = "NOT_FOUND"


class NamespaceDenied(PilotlightError):
    """The caller, or the namespace it speaks for, may not do this."""

    grpc_code = "PERMISSION_DENIED"


class LimitReached(PilotlightError):
    """One of our own limits is reached; the message names the setting that raises it."""

    grpc_code = "RESOURCE_EXHAUSTED"


class SettingsInvalid(PilotlightError):
    """The process's own configuration can't be used."""


class RecordingUnreadable(PilotlightError):
    """A recording does not exist, can't be read, or does not hold what was asked for."""


class SourceError(PilotlightError):
    """A source could not be read. The last decision holds; nothing scales down because of it."""

    grpc_code = "UNAVAILABLE"


class SourceMissing(SourceError):
    """What should be read does not exist; a person must create it or mend the name."""

    grpc_code = "FAILED_PRECONDITION"


class SourceDenied(SourceError):
    """Credentials or rights were refused; a person must act."""

    grpc_code = "FAILED_PRECONDITION"


class SourceNotInstalled(SourceError):
    """The source's client library is not installed; the message names the extra that brings it."""

    grpc_code = "FAILED_PRECONDITION"


class SourceUnavailable(SourceError):
    """It can't be read at present; worth a retry."""


class SourceTimeout(SourceUnavailable):
    """No answer within the time allowed."""


class SourceNoData(SourceUnavailable):
    """It answered, but with nothing that counts as a sample. Never the same as zero."""


def bare(err: PilotlightError) -> PilotlightError:
    """`err` without its traceback, cause and context: what is kept for later must not keep frames alive."""
    err.__traceback__ = err.__cause__ = err.__context__ = None
    return err


def quoted(value: object, *, limit: int = 80) -> str:
    """`value` in double quotes, printable, at most `limit` characters: safe for logs and gRPC details."""
    text = str(value)
    text = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text[: limit + 1]
    )
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return f'"{text}"'
