"""Where requests come from: trace files, recorded patterns and the generators that ship with the project.

A trace file is CSV, gzip or not, with a header and the columns `t_s` (seconds since the first request, rising) and
`service_s` (seconds one slot of a replica is busy with it).
"""

from __future__ import annotations

import csv
import gzip
import math
import random
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from scaler.errors import PilotlightError
from scaler.simulator.arrivals import Arrival, Service, generate, parse_pattern

SHARED_TRACES = Path("../shared/traces")
DAY_SECONDS = 86_400.0
SHORT_LOOKS = 20_000  # a run of so many decisions takes a second or two

# What stands in where no traces are at hand: seeded, of the same kinds. (pattern, mean service seconds, days)
SHIPPED: dict[str, tuple[str, float, float]] = {
    "poisson-busy": ("poisson:rate_per_second=2.5", 6.0, 0.1),
    "bursts": ("bursts:burst_rate_per_second=0.6,burst_seconds=300,every_seconds=3600,irregularity=1", 20.0, 3.0),
    "diurnal": ("diurnal:mean_rate_per_second=0.03", 25.0, 5.0),
    "documents": ("documents:documents_per_day=17", 45.0, 30.0),
    "flash": ("flash:base_rate_per_second=0.05,peak_rate_per_second=3", 8.0, 0.1),
}


class TraceInvalid(PilotlightError):
    """A trace that can't be read: which file, which line, what was expected."""


def read_trace(path: Path) -> list[Arrival]:
    """The requests of a trace file, in order of time. Raises TraceInvalid."""
    trace: list[Arrival] = []
    try:
        # utf-8-sig: a spreadsheet begins its CSV with a byte order mark.
        with (
            gzip.open(path, "rt", newline="", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(newline="", encoding="utf-8-sig")
        ) as file:
            rows = csv.DictReader(file)
            if not rows.fieldnames or not {"t_s", "service_s"} <= set(rows.fieldnames):
                raise TraceInvalid(f'trace {path}: expected a header with the columns "t_s" and "service_s"')
            before_seconds = -math.inf
            for number, row in enumerate(rows, start=2):
                try:
                    at_seconds, service_seconds = float(row["t_s"]), float(row["service_s"])
                except (TypeError, ValueError):
                    raise TraceInvalid(f"trace {path}, line {number}: expected two numbers") from None
                if not (at_seconds >= before_seconds and math.isfinite(at_seconds) and 0 <= service_seconds < math.inf):
                    raise TraceInvalid(
                        f"trace {path}, line {number}: expected t_s not below the line before and service_s from 0 up"
                    )
                before_seconds = at_seconds
                trace.append(Arrival(at_seconds, service_seconds))
    except EOFError as err:  # gzip's; a command line would take it for the end of what the user types
        raise TraceInvalid(f"trace {path} can't be read: the file is cut short") from err
    except (OSError, UnicodeDecodeError, csv.Error, zlib.error) as err:
        raise TraceInvalid(f"trace {path} can't be read: {err}") from err
    if not trace:
        raise TraceInvalid(f"trace {path} holds no request")
    return trace


def load_trace(name: str, *, service_seconds: float = 10.0, days: float = 1.0) -> list[Arrival]:
    """A file, a shipped trace or a pattern in text ("bursts:every_seconds=600"). Raises TraceInvalid."""
    if name in SHIPPED:
        text, service_seconds, days = SHIPPED[name]
        return _generated(text, service_seconds, days)
    path = _file(name)
    if path is not None:
        return read_trace(path)
    try:
        trace = _generated(name, service_seconds, days)
    except ValueError as err:
        raise TraceInvalid(f'trace "{name}" is no file, and no pattern either: {err}') from err
    if not trace:
        raise TraceInvalid(f'pattern "{name}" gave no request in {days} days')
    return trace


def is_pattern(name: str) -> bool:
    """Whether `load_trace` makes it up, as long and with such services as it is told."""
    return name not in SHIPPED and _file(name) is None


def _file(name: str) -> Path | None:
    for path in (Path(name), SHARED_TRACES / f"{name}.csv.gz"):
        if path.exists():
            return path
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
    return list(generate(parse_pattern(text), service, chance, days * DAY_SECONDS))
