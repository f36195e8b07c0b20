"""Where requests come from: trace files, recorded patterns and the generators that ship with the project."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from scaler.errors import quoted
from scaler.loads import Length, TraceInvalid, pattern_load, read_trace
from scaler.simulator.arrivals import PATTERNS, Arrival, Service

SHARED_TRACES = Path("../shared/traces")
SHORT_LOOKS = 20_000  # a run of so many decisions takes a second or two

# What stands in where no traces are at hand: seeded, of the same kinds. (pattern, mean service seconds, days)
SHIPPED: dict[str, tuple[str, float, float]] = {
    "poisson-busy": ("poisson:rate_per_second=2.5", 6.0, 0.1),
    "bursts": ("bursts:burst_rate_per_second=0.6,burst_seconds=300,every_seconds=3600,irregularity=1", 20.0, 3.0),
    "diurnal": ("diurnal:mean_rate_per_second=0.03", 25.0, 5.0),
    "documents": ("documents:documents_per_day=17", 45.0, 30.0),
    "flash": ("flash:base_rate_per_second=0.05,peak_rate_per_second=3", 8.0, 0.1),
}


def load_trace(name: str, *, service_seconds: float = 10.0, days: float = 1.0) -> list[Arrival]:
    """A file, a shipped trace or a pattern in text ("bursts:every_seconds=600"). Raises TraceInvalid.

    A name that both have is the trace's; with a colon ("bursts:") it is the pattern's.
    """
    if name in SHIPPED:
        text, service_seconds, days = SHIPPED[name]
        return _generated(text, service_seconds, days)
    path = _file(name)
    if path is not None:
        return read_trace(path)
    if name.partition(":")[0].strip() not in PATTERNS:
        both = sorted(SHIPPED.keys() & PATTERNS.keys())
        raise TraceInvalid(
            f"trace {quoted(name)} is no file, no shipped trace and no pattern; "
            f"shipped traces: {', '.join(sorted(SHIPPED))}; patterns: {', '.join(sorted(PATTERNS))}; "
            f"of {', '.join(both)} the name alone is the trace: {pattern_of(both[0])}"
        )
    try:
        trace = _generated(name, service_seconds, days)
    except ValueError as err:
        raise TraceInvalid(
            f"trace {quoted(name)} is no file, and no pattern either: {quoted(err, limit=400)[1:-1]}"
        ) from err
    if not trace:
        raise TraceInvalid(f"pattern {quoted(name)} gave no request in {days:g} days")
    return trace


def is_pattern(name: str) -> bool:
    """Whether `load_trace` makes it up, as long and with such services as it is told."""
    return name not in SHIPPED and _file(name) is None


def pattern_of(name: str) -> str | None:
    """How the pattern is said whose name is a shipped trace's, too; None: there is none."""
    if name not in SHIPPED or name not in PATTERNS:
        return None
    with_number, _, _ = SHIPPED[name][0].partition(",")
    return f'the pattern is "{name}:", or with any of its numbers, as in "{with_number}"'


def _file(name: str) -> Path | None:
    for path in (Path(name), SHARED_TRACES / f"{name}.csv.gz"):
        try:
            if path.exists():
                return path
        except OSError as err:
            if err.errno != errno.ENAMETOOLONG:  # then it is no file, but may be a pattern
                raise TraceInvalid(f"trace {quoted(name)} can't be read: {err.strerror}") from err
    return None


def known_traces() -> list[str]:
    """The names the matrix runs: the shared traces where they are, the shipped ones where not."""
    shared = sorted(path.name.removesuffix(".csv.gz") for path in SHARED_TRACES.glob("*.csv.gz"))
    return shared or sorted(SHIPPED)


def short_traces(names: Iterable[str]) -> tuple[str, ...]:
    """Those whose runs take few decisions: many variants of a policy can be run on them."""
    return tuple(name for name in names if looks(load_trace(name)) <= SHORT_LOOKS)


def looks(trace: Sequence[Arrival]) -> float:
    """About how many decisions a run takes: one each few seconds while something is in the system."""
    busy_seconds = 0.0
    until_seconds = 0.0
    for at_seconds, service_seconds in trace:
        end_seconds = max(at_seconds + service_seconds, until_seconds)
        busy_seconds += end_seconds - max(at_seconds, until_seconds)
        until_seconds = end_seconds
    return busy_seconds / 5.0


def _generated(text: str, service_seconds: float, days: float) -> list[Arrival]:
    service = Service(mean_seconds=service_seconds, variation=0.75)
    chance = random.Random(20_240_517)  # noqa: S311 - simulation: the same requests for everybody, always
    return pattern_load(text, service, chance, Length(days))
