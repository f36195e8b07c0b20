"""Where requests come from: trace files, recorded patterns and the generators that ship with the project.

A trace file is CSV, gzip or not, with a header and the columns `t_s` (seconds since the first request, rising) and
`service_s` (seconds one slot of a replica is busy with it).
"""

from __future__ import annotations

import csv
import errno
import gzip
import math
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TextIO

from scaler.errors import PilotlightError, quoted
from scaler.simulator.arrivals import (
    Arrival,
    Bursts,
    Diurnal,
    FlashCrowd,
    Pattern,
    Poisson,
    Service,
    SparseDocuments,
    Steady,
    generate,
    parse_pattern,
)

SHARED_TRACES = Path("../shared/traces")
DAY_SECONDS = 86_400.0
SHORT_LOOKS = 20_000  # a run of so many decisions takes a second or two
# A request takes 200 bytes in each process that simulates, and some 10 microseconds for each policy (both measured):
# so many are 2 GB and two minutes.
MOST_REQUESTS = 10_000_000
# Some patterns draw at their highest rate and keep a share: a microsecond or two each.
MOST_DRAWS = 100_000_000
LONGEST_TRACE_SECONDS = 3_660 * DAY_SECONDS
LONGEST_SERVICE_SECONDS = 30 * DAY_SECONDS  # while a request runs, a policy decides every few seconds
LONGEST_LINE = 65_536

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
        if not path.is_file():  # a pipe would be waited for, and each process that simulates reads the file again
            raise TraceInvalid(f"trace {_shown(path)} can't be read: expected a file")
        # utf-8-sig: a spreadsheet begins its CSV with a byte order mark.
        with (
            gzip.open(path, "rt", newline="", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(newline="", encoding="utf-8-sig")
        ) as file:
            rows = csv.DictReader(_lines(file, path))
            if not rows.fieldnames or not {"t_s", "service_s"} <= set(rows.fieldnames):
                raise TraceInvalid(
                    f"trace {_shown(path)}, line 1 is {quoted(','.join(rows.fieldnames or ()))}: "
                    'expected a header with the columns "t_s" and "service_s"'
                )
            before_seconds = 0.0
            for row in rows:
                number = rows.line_num
                at_seconds = _number(path, number, "t_s", row["t_s"], LONGEST_TRACE_SECONDS)
                service_seconds = _number(path, number, "service_s", row["service_s"], LONGEST_SERVICE_SECONDS)
                if at_seconds < before_seconds:
                    raise TraceInvalid(
                        f"trace {_shown(path)}, line {number}: t_s is {quoted(row['t_s'])}; expected it not below "
                        f"{before_seconds:g}, that of the line before: sort the file by t_s"
                    )
                before_seconds = at_seconds
                trace.append(Arrival(at_seconds, service_seconds))
                if len(trace) > MOST_REQUESTS:
                    raise TraceInvalid(
                        f"trace {_shown(path)}, line {number}: expected at most {MOST_REQUESTS:,} requests; "
                        "cut the file"
                    )
    except EOFError as err:  # gzip's; a command line would take it for the end of what the user types
        raise TraceInvalid(f"trace {_shown(path)} can't be read: the file is cut short") from err
    except (UnicodeDecodeError, csv.Error, zlib.error) as err:
        raise TraceInvalid(
            f"trace {_shown(path)} can't be read: {err}; expected CSV in UTF-8, compressed if its name ends in .gz"
        ) from err
    except OSError as err:
        raise TraceInvalid(f"trace {_shown(path)} can't be read: {err.strerror or err}") from err
    if not trace:
        raise TraceInvalid(f"trace {_shown(path)} holds no request")
    return trace


def _shown(path: Path) -> str:
    return quoted(path, limit=400)


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    """The lines of `file`, of which none may fill the memory. Raises TraceInvalid."""
    for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), ""), start=1):
        if len(line) >= LONGEST_LINE:
            raise TraceInvalid(
                f"trace {_shown(path)}, line {number} is {quoted(line, limit=20)}: "
                f"expected lines below {LONGEST_LINE:,} characters"
            )
        yield line


def _number(path: Path, line: int, field: str, value: str | None, most: float) -> float:
    """`value` as seconds. Raises TraceInvalid."""
    try:
        seconds = float(value or "")
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= most:
        raise TraceInvalid(
            f"trace {_shown(path)}, line {line}: {field} is {quoted(value or '')}; "
            f"expected seconds, a number from 0 to {most:.0f}"
        )
    return seconds


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
        raise TraceInvalid(
            f"trace {quoted(name)} is no file, and no pattern either: {quoted(err, limit=400)[1:-1]}"
        ) from err
    if not trace:
        raise TraceInvalid(f"pattern {quoted(name)} gave no request in {days:g} days")
    return trace


def is_pattern(name: str) -> bool:
    """Whether `load_trace` makes it up, as long and with such services as it is told."""
    return name not in SHIPPED and _file(name) is None


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
    pattern = parse_pattern(text)
    _check(text, pattern, service_seconds, days)
    service = Service(mean_seconds=service_seconds, variation=0.75)
    chance = random.Random(20_240_517)  # noqa: S311 - simulation: the same requests for everybody, always
    return list(generate(pattern, service, chance, days * DAY_SECONDS))


class _Size(NamedTuple):
    """About how much a pattern makes: requests, draws of chance for them, and the setting that makes the most."""

    requests: float
    draws: float
    setting: str


def _check(text: str, pattern: Pattern, service_seconds: float, days: float) -> None:
    """Raises TraceInvalid for a pattern that would fill the memory, never end, or give no sensible times."""
    if not 0 < days * DAY_SECONDS <= LONGEST_TRACE_SECONDS:
        most_days = LONGEST_TRACE_SECONDS / DAY_SECONDS
        raise TraceInvalid(f"pattern {quoted(text)}: days is {days:g}; expected above 0 and at most {most_days:.0f}")
    if not 0 <= service_seconds <= LONGEST_SERVICE_SECONDS:
        raise TraceInvalid(
            f"pattern {quoted(text)}: the mean service is {service_seconds:g} seconds; "
            f"expected at most {LONGEST_SERVICE_SECONDS:.0f}"
        )
    if isinstance(pattern, FlashCrowd) and pattern.decay_seconds <= 0:
        raise TraceInvalid(f"pattern {quoted(text)}: decay_seconds is {pattern.decay_seconds:g}; expected above 0")
    if isinstance(pattern, SparseDocuments):
        for setting, hour in (("from_hour", pattern.from_hour), ("to_hour", pattern.to_hour)):
            if hour > 24:
                raise TraceInvalid(f"pattern {quoted(text)}: {setting} is {hour:g}; expected an hour from 0 to 24")
    size = _size(pattern, days * DAY_SECONDS)
    for made, most, what in ((size.requests, MOST_REQUESTS, "requests"), (size.draws, MOST_DRAWS, "draws of chance")):
        if not made <= most:
            value = getattr(pattern, size.setting)
            raise TraceInvalid(
                f"pattern {quoted(text)}: {size.setting} is {value:g}, which makes about {made:.3g} {what} "
                f"in a trace of {days:g} d; expected at most {most:,}: change it, or the days"
            )


def _size(pattern: Pattern, seconds: float) -> _Size:
    """An estimate from above, for `seconds` of it."""
    match pattern:
        case Steady() | Poisson():
            made = pattern.rate_per_second * seconds
            return _Size(made, made, "rate_per_second")
        case Diurnal():
            # A swing above 1 asks for less than nothing at night, where none come.
            mean = pattern.mean_rate_per_second * max(pattern.weekend_share, 1.0)
            swing = 1 + pattern.swing
            setting = "mean_rate_per_second"
            if max(pattern.swing, pattern.weekend_share) > 10:
                setting = "swing" if pattern.swing > pattern.weekend_share else "weekend_share"
            return _Size(mean * max(1.0, swing / 2) * seconds, mean * swing * seconds, setting)
        case Bursts():
            apart = max(pattern.every_seconds, pattern.burst_seconds)
            bursts = seconds / apart + 1 if apart > 0 else math.inf
            quiet = pattern.quiet_rate_per_second * seconds
            bursting_seconds = min(bursts * pattern.burst_seconds, seconds) if pattern.burst_seconds > 0 else 0.0
            burst = pattern.burst_rate_per_second * bursting_seconds
            made = quiet + burst
            if bursts > made:
                return _Size(made, bursts, "every_seconds")
            return _Size(made, made + bursts, "quiet_rate_per_second" if quiet > burst else "burst_rate_per_second")
        case FlashCrowd():
            base, peak = pattern.base_rate_per_second, pattern.peak_rate_per_second
            crowd = max(peak - base, 0.0) * min(pattern.ramp_seconds / 2 + pattern.decay_seconds, seconds)
            setting = "peak_rate_per_second" if peak > base else "base_rate_per_second"
            return _Size(base * seconds + crowd, max(base, peak) * seconds, setting)
        case SparseDocuments():
            made = pattern.documents_per_day * math.ceil(seconds / DAY_SECONDS)
            return _Size(made, made, "documents_per_day")
        case _:
            raise TypeError(f"{type(pattern).__name__}: how many requests it makes must be told here")
