"""Trigger parameters: how one is declared, and KEDA's rules for turning its string into a value.

The rules are those of KEDA's typed configuration (pkg/scalers/scalersconfig/typed_config.go, read at
8b4f083c): values are trimmed, empty equals absent, booleans are Go's ParseBool, numbers are JSON numbers,
durations are Go durations or whole milliseconds, lists are comma separated. `<name>FromEnv` arrives with
its suffix and with the value already resolved; the plain key wins over it.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

from scaler.errors import Problem, SourceDenied, TriggerInvalid, quoted

FROM_ENV = "FromEnv"

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_JSON_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
# Digits are matched in one way only: "9" * 4000 must not cost minutes.
_GO_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION_CHARACTERS = 64
_GO_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_INT64_MAX = 2**63 - 1


class Belongs(Enum):
    """Who says it: a tenant in the trigger, or the operator in a connection.

    A connection fixes endpoint and credentials; a trigger that names one may then set neither.
    """

    TRIGGER = "trigger"
    ENDPOINT = "endpoint"
    CREDENTIAL = "credential"
    CONNECTION_ONLY = "connection"  # ambient identity: never reachable from metadata


Kind = Literal["text", "integer", "number", "flag", "duration", "list", "map", "query"]
Value = str | int | float | bool | tuple[str, ...] | tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One metadata key: its KEDA name, kind, default, what is allowed, and a sentence for the documents.

    Bounds are inclusive but for `above`. A `duration` is parsed to seconds. `refused` says why a KEDA
    parameter is not supported: setting it is an error. `retired` marks a key that is accepted, ignored and
    warned of. `allowed` are the members of an enum (each element, for a list). `activation` marks the source's
    threshold of activation, which has an effect with some policies only.
    """

    name: str
    kind: Kind = "text"
    help: str
    default: Value | None = None
    required: bool = False
    allowed: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    unit: str | None = None
    aliases: tuple[str, ...] = ()
    belongs: Belongs = Belongs.TRIGGER
    secret: bool = False
    activation: bool = False
    refused: str | None = None
    retired: str | None = None

    # Every key that may carry it, in order of precedence: made once, since parsing a trigger asks for it 150 times.
    keys: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = (self.name, *self.aliases)
        object.__setattr__(self, "keys", names + tuple(f"{name}{FROM_ENV}" for name in names))


@dataclass(frozen=True, slots=True)
class Secret:
    """A credential whose text is fetched when used and never printed.

    From a file it is read anew at each use, so that a rotated Kubernetes Secret takes effect.
    """

    text: str | None = field(default=None, repr=False)
    path: str | None = None
    what: str = "secret"

    def reveal(self) -> str:
        """The text, trimmed. Raises SourceDenied where its file can't be read."""
        if self.path is None:
            return self.text or ""
        try:
            return Path(self.path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as err:
            raise SourceDenied(
                f"{self.what}: its file {quoted(self.path)} can't be read ({type(err).__name__}); "
                "mount it or mend the path"
            ) from err

    def __str__(self) -> str:
        return "<secret>"


class ValueProblem(ValueError):
    """One string does not have the form its kind asks for; the text says what was expected."""


def parse_flag(text: str) -> bool:
    """Go's strconv.ParseBool."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueProblem('expected "true" or "false"')


def parse_integer(text: str) -> int:
    """A JSON integer within int64."""
    if not _JSON_INTEGER.fullmatch(text) or len(text) > 20 or abs(int(text)) > _INT64_MAX:
        raise ValueProblem("expected a whole number such as 5")
    return int(text)


def parse_number(text: str) -> float:
    """A finite JSON number."""
    if len(text) > 64 or not _JSON_NUMBER.fullmatch(text):
        raise ValueProblem("expected a number such as 2.5")
    number = float(json.loads(text))
    if not math.isfinite(number):
        raise ValueProblem("expected a finite number")
    return number


def parse_duration(text: str) -> float:
    """Seconds from a Go duration ("500ms", "1m30s") or from whole milliseconds ("500"). Never negative."""
    expected = 'expected a duration such as "500ms" or "2s", or whole milliseconds, not negative'
    if len(text) > _DURATION_CHARACTERS:
        raise ValueProblem(expected)
    if _JSON_INTEGER.fullmatch(text) and len(text) < 20:
        seconds = int(text) / 1000
    else:
        unsigned = text.removeprefix("+")
        parts = list(_GO_DURATION_PART.finditer(unsigned))
        if not parts or "".join(part.group(0) for part in parts) != unsigned:
            raise ValueProblem(expected)
        seconds = sum(float(part.group(1)) * _GO_UNITS[part.group(2)] for part in parts)
    if seconds < 0 or not math.isfinite(seconds):
        raise ValueProblem(expected)
    return seconds


def parse_list(text: str) -> tuple[str, ...]:
    """Comma separated, each element trimmed."""
    return tuple(element.strip() for element in text.split(","))


def parse_map(text: str) -> tuple[tuple[str, str], ...]:
    """Comma separated `key=value`, exactly one `=` each."""
    pairs = []
    for element in text.split(","):
        parts = element.split("=")
        if len(parts) != 2:
            raise ValueProblem('expected comma separated pairs such as "key=value,other=value"')
        pairs.append((parts[0].strip(), parts[1].strip()))
    return tuple(pairs)


def parse_query(text: str) -> tuple[tuple[str, str], ...]:
    """URL query syntax: `a=1&b=2`."""
    try:
        return tuple(parse_qsl(text, keep_blank_values=True, strict_parsing=True, max_num_fields=64))
    except ValueError as err:
        raise ValueProblem('expected URL query syntax such as "a=1&b=2"') from err


_PARSERS: Mapping[Kind, Callable[[str], Value]] = {
    "text": str,
    "integer": parse_integer,
    "number": parse_number,
    "flag": parse_flag,
    "duration": parse_duration,
    "list": parse_list,
    "map": parse_map,
    "query": parse_query,
}


class Values:
    """The parsed values of one trigger, read by name and by type.

    `problems` collects what is wrong across fields too: a source calls `problem(...)` and goes on, so that
    the user sees everything at once. A field that failed to parse reads as absent and counts as `failed`.
    """

    def __init__(self, values: Mapping[str, Value | Secret], problems: list[Problem], given: frozenset[str]) -> None:
        self._values = values
        self._given = given
        self.problems = problems

    def problem(self, name: str, expected: str, *, value: str | None = None) -> None:
        """Report that `name` is wrong. `value` must not be a secret's."""
        self.problems.append(Problem(field=name, expected=expected, value=value))

    def failed(self, name: str) -> bool:
        """Whether a problem with `name` has been reported already."""
        return any(problem.field == name for problem in self.problems)

    def given(self, name: str) -> bool:
        """Whether the user set `name` (or an alias, or its FromEnv form) to something not empty."""
        return name in self._given

    def text(self, name: str) -> str | None:
        """A text, or None."""
        value = self._values.get(name)
        return value if isinstance(value, str) else None

    def secret(self, name: str) -> Secret | None:
        """A secret, or None."""
        value = self._values.get(name)
        return value if isinstance(value, Secret) else None

    def integer(self, name: str) -> int | None:
        """A whole number, or None."""
        value = self._values.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def number(self, name: str) -> float | None:
        """A finite number (a duration in seconds), or None."""
        value = self._values.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def flag(self, name: str) -> bool:
        """A boolean; False where absent."""
        return self._values.get(name) is True

    def items(self, name: str) -> tuple[str, ...] | None:
        """The elements of a list, or None."""
        value = self._values.get(name)
        return tuple(element for element in value if isinstance(element, str)) if isinstance(value, tuple) else None

    def pairs(self, name: str) -> tuple[tuple[str, str], ...] | None:
        """The pairs of a map or query, or None."""
        value = self._values.get(name)
        return tuple(pair for pair in value if isinstance(pair, tuple)) if isinstance(value, tuple) else None


def read_values(
    parameters: Iterable[Parameter],
    raw: Mapping[str, str],
    *,
    fixed: Mapping[str, str | Secret] | None = None,
) -> Values:
    """Parse `raw` metadata, overlaid by what a connection has `fixed`, by `parameters`.

    Unknown keys in `raw` are not looked at here (see `unknown_keys`). Problems are collected in the result,
    not raised. Values of `fixed` follow the same rules as metadata.
    """
    problems: list[Problem] = []
    values: dict[str, Value | Secret] = {}
    given: set[str] = set()
    fixed = fixed or {}
    for parameter in parameters:
        found: str | Secret | None = fixed.get(parameter.name)
        key = parameter.name
        if found is None:
            for candidate in parameter.keys:
                text = raw.get(candidate, "").strip()
                if text:
                    found, key = text, candidate
                    break
        elif isinstance(found, str):
            found = found.strip() or None
        if parameter.retired is not None:
            continue
        if found is None:
            if parameter.required and parameter.refused is None:
                problems.append(Problem(field=parameter.name, expected=f"required: {parameter.help}"))
            if parameter.default is not None:
                values[parameter.name] = parameter.default
            continue
        given.add(parameter.name)
        if parameter.refused is not None:
            problems.append(Problem(field=key, expected=f"not supported: {parameter.refused}"))
            continue
        if parameter.secret:
            values[parameter.name] = found if isinstance(found, Secret) else Secret(found, what=parameter.name)
            continue
        if isinstance(found, Secret):
            found = found.reveal()
        try:
            values[parameter.name] = _checked(parameter, found)
        except ValueProblem as err:
            problems.append(Problem(field=key, value=found, expected=str(err)))
    return Values(values, problems, frozenset(given))


def _checked(parameter: Parameter, text: str) -> Value:
    value: Value = _PARSERS[parameter.kind](text)
    if parameter.allowed:
        elements = value if isinstance(value, tuple) else (value,)
        if any(element not in parameter.allowed for element in elements):
            raise ValueProblem("expected one of " + ", ".join(parameter.allowed))
    if isinstance(value, int | float) and not isinstance(value, bool):
        unit = f" {parameter.unit}" if parameter.unit else ""
        if parameter.above is not None and not value > parameter.above:
            raise ValueProblem(f"it must be above {parameter.above:g}{unit}")
        if parameter.minimum is not None and value < parameter.minimum:
            raise ValueProblem(f"it must be at least {parameter.minimum:g}{unit}")
        if parameter.maximum is not None and value > parameter.maximum:
            raise ValueProblem(f"it must be at most {parameter.maximum:g}{unit}")
    return value


def unknown_keys(parameters: Iterable[Parameter], raw: Mapping[str, str]) -> list[Problem]:
    """A problem for each key of `raw` that no parameter has, naming the nearest that one has."""
    known = {key for parameter in parameters for key in parameter.keys}
    names = sorted(key for key in known if not key.endswith(FROM_ENV))
    problems = []
    for key in sorted(raw):
        if key in known:
            continue
        near = difflib.get_close_matches(key[:64], names, n=1, cutoff=0.6)
        hint = f'did you mean "{near[0]}"?' if near else "remove it, or see docs/sources.md for the known keys"
        problems.append(Problem(field=quoted(key, limit=60).strip('"'), expected=f"unknown key; {hint}"))
    return problems


def raise_problems(values: Values, *, subject: str) -> None:
    """Raise TriggerInvalid with everything collected so far, if anything was."""
    if values.problems:
        raise TriggerInvalid(tuple(values.problems), subject=subject)
