"""The load of an experiment, from a trace file or a pattern in text; what makes no sense is refused in one line.

A trace file is CSV, gzip or not, with a header and the columns `t_s` (seconds since the first request, rising) and
`service_s` (seconds one slot of a replica is busy with it).
"""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TextIO

from scaler.errors import PilotlightError, quoted
from scaler.simulator.arrivals import (
    DAY_SECONDS,
    Arrival,
    Bursts,
    Chance,
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

# A request takes 200 bytes in each process that simulates, and some 10 microseconds for each policy (both measured):
# so many are 2 GB and two minutes.
MOST_REQUESTS = 10_000_000
# Some patterns draw at their highest rate and keep a share: a microsecond or two each.
MOST_DRAWS = 100_000_000
LONGEST_TRACE_SECONDS = 3_660 * DAY_SECONDS
LONGEST_SERVICE_SECONDS = 30 * DAY_SECONDS  # while a request runs, a policy decides every few seconds
LONGEST_LINE = 65_536
_GZIP: Final = b"\x1f\x8b"


class TraceInvalid(PilotlightError):
    """A trace that can't be read: which file, which line, what was expected."""


def read_trace(path: Path) -> list[Arrival]:
    """The requests of a trace file, in order of time. Raises TraceInvalid."""
    trace: list[Arrival] = []
    try:
        if not path.is_file():  # a pipe would be waited for, and each process that simulates reads the file again
            raise TraceInvalid(f"trace {_shown(path)} can't be read: expected a file")
        # utf-8-sig: a spreadsheet begins its CSV with a byte order mark.
        with path.open("rb") as file:
            compressed = file.read(len(_GZIP)) == _GZIP
        with (
            gzip.open(path, "rt", newline="", encoding="utf-8-sig")
            if compressed
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
            f"trace {_shown(path)} can't be read: {err}; expected CSV in UTF-8, compressed by gzip or not"
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


class Length(NamedTuple):
    """How long a load is: as the user says it, by which option, and in seconds of what unit."""

    value: float
    option: str = "--days"
    unit_seconds: float = DAY_SECONDS

    @property
    def seconds(self) -> float:
        """In seconds."""
        return self.value * self.unit_seconds


def pattern_load(text: str, service: Service, chance: Chance, length: Length) -> list[Arrival]:
    """The requests of a pattern in text, so many of them that they fit into memory.

    Raises ValueError for what is no pattern, TraceInvalid for one that makes no sense; both name what was expected.
    """
    pattern = parse_pattern(text)
    _check(text, pattern, service.mean_seconds, length)
    return list(generate(pattern, service, chance, length.seconds))


class _Size(NamedTuple):
    """About how much a pattern makes: requests, draws of chance for them, and the setting that makes the most."""

    requests: float
    draws: float
    setting: str


def _check(text: str, pattern: Pattern, service_seconds: float, length: Length) -> None:
    """Raises TraceInvalid for a pattern that would fill the memory, never end, or give no sensible times."""
    if not 0 < length.seconds <= LONGEST_TRACE_SECONDS:
        raise TraceInvalid(
            f"pattern {quoted(text)}: {length.option} is {length.value:g}; "
            f"expected above 0 and at most {LONGEST_TRACE_SECONDS / length.unit_seconds:.0f}"
        )
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
        if pattern.from_hour > pattern.to_hour:
            raise TraceInvalid(
                f"pattern {quoted(text)}: from_hour is {pattern.from_hour:g}; "
                f"expected at most to_hour, {pattern.to_hour:g}"
            )
    size = _size(pattern, length.seconds)
    for made, most, what in ((size.requests, MOST_REQUESTS, "requests"), (size.draws, MOST_DRAWS, "draws of chance")):
        if not made <= most:
            value = getattr(pattern, size.setting)
            raise TraceInvalid(
                f"pattern {quoted(text)}: {size.setting} is {value:g}, which makes about {made:.3g} {what} "
                f"with {length.option} {length.value:g}; expected at most {most:,}: change it, or {length.option}"
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
