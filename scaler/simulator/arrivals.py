"""When requests arrive and how long each keeps a replica busy: seeded patterns, and traces replayed.

Times are seconds since the start of the load. Chance is an argument: hand in a `random.Random(seed)`; the same
seed gives the same load. A trace file (gzip CSV, `t_s,service_s`) is read elsewhere, this module does no I/O.

A pattern in text, for command lines: `bursts`, or `bursts:burst_rate_per_second=8,every_seconds=600`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import ClassVar, NamedTuple, Protocol

DAY_SECONDS = 86_400.0
HOUR_SECONDS = 3_600.0


class Chance(Protocol):
    """The part of `random.Random` that is used here."""

    def random(self) -> float:
        """Uniform in [0, 1)."""

    def expovariate(self, lambd: float, /) -> float:
        """Exponential with rate `lambd`."""

    def lognormvariate(self, mu: float, sigma: float) -> float:
        """Lognormal."""


class Arrival(NamedTuple):
    """One request: when it arrives, and how long it keeps one slot of a replica busy."""

    at_seconds: float
    service_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Service times: lognormal with this mean and coefficient of variation; 0: all the same."""

    mean_seconds: float = 1.0
    variation: float = 0.5

    def draw(self, chance: Chance) -> float:
        """One service time in seconds."""
        return lognormal(chance, self.mean_seconds, self.variation)


class Pattern(Protocol):
    """A law of arrival times."""

    def times(self, chance: Chance, duration_seconds: float) -> Iterator[float]:
        """Arrival times in [0, duration_seconds), in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """Evenly spaced."""

    rate_per_second: float = 1.0

    name: ClassVar[str] = "steady"

    def times(self, chance: Chance, duration_seconds: float) -> Iterator[float]:  # noqa: ARG002 - nothing is drawn
        """Every 1 / rate seconds, from 0."""
        for index in range(math.ceil(duration_seconds * self.rate_per_second)):
            at_seconds = index / self.rate_per_second
            if at_seconds < duration_seconds:
                yield at_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisson:
    """Independent arrivals at a constant rate."""

    rate_per_second: float = 1.0

    name: ClassVar[str] = "poisson"

    def times(self, chance: Chance, duration_seconds: float) -> Iterator[float]:
        """Exponential gaps."""
        return _poisson(chance, self.rate_per_second, 0.0, duration_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diurnal:
    """A daily wave: most at `peak_hour`, `swing` of the mean (0 to 1) more than then and less twelve hours off.

    Weekends have `weekend_share` of a weekday; the load starts on a Monday at midnight.
    """

    mean_rate_per_second: float = 0.05
    swing: float = 0.8
    peak_hour: float = 14.0
    weekend_share: float = 1.0

    name: ClassVar[str] = "diurnal"

    def rate_per_second(self, at_seconds: float) -> float:
        """The rate at one moment."""
        angle = 2 * math.pi * (at_seconds / HOUR_SECONDS - self.peak_hour) / 24
        weekday = int(at_seconds // DAY_SECONDS) % 7
        share = self.weekend_share if weekday >= 5 else 1.0
        return self.mean_rate_per_second * share * (1 + self.swing * math.cos(angle))

    def times(self, chance: Chance, duration_seconds: float) -> Iterator[float]:
        """A Poisson process with this rate."""
        highest = self.mean_rate_per_second * (1 + abs(self.swing)) * max(self.weekend_share, 1.0)
        return _thinned(chance, self.rate_per_second, highest, duration_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bursts:
    """Quiet, with bursts: each `burst_seconds` long, one every `every_seconds` from `first_seconds` on.

    `irregularity` 0: exactly that often; 1: exponential gaps of that mean.
    """

    quiet_rate_per_second: float = 0.0
    burst_rate_per_second: float = 4.0
    burst_seconds: float = 30.0
    every_seconds: float = 600.0
    first_seconds: float = 30.0
    irregularity: float = 0.0

    name: ClassVar[str] = "bursts"

    def times(self, chance: Chance, duration_seconds: float) -> Iterator[float]:
        """Poisson at the burst's rate inside a burst, at the quiet rate outside."""
        at_seconds, burst_at_seconds = 0.0, self.first_seconds
        while at_seconds < duration_seconds:
            quiet_until_seconds = min(burst_at_seconds, duration_seconds)
            yield from _poisson(chance, self.quiet_rate_per_second, at_seconds, quiet_until_seconds)
            burst_until_seconds = min(burst_at_seconds + self.burst_seconds, duration_seconds)
            yield from _poisson(chance, self.burst_rate_per_second, quiet_until_seconds, burst_until_seconds)
            at_seconds = burst_until_seconds
            gap_seconds = self.every_seconds
            if self.irregularity:
                gap_seconds *= 1 - self.irregularity + self.irregularity * chance.expovariate(1.0)
            burst_at_seconds = max(burst_at_seconds + gap_seconds, at_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashCrowd:
    """A base rate; at one moment it climbs to a peak within `ramp_seconds` and dies away exponentially."""

    base_rate_per_second: float = 0.05
    peak_rate_per_second: float = 5.0
    crowd_at_seconds: float = 600.0
    ramp_seconds: float = 30.0
    decay_seconds: float = 300.0

    name: ClassVar[str] = "flash"

    def rate_per_second(self, at_seconds: float) -> float:
        """The rate at one moment."""
        since_seconds = at_seconds - self.crowd_at_seconds
        extra = self.peak_rate_per_second - self.base_rate_per_second
        if since_seconds < 0:
            return self.base_rate_per_second
        if since_seconds < self.ramp_seconds:
            return self.base_rate_per_second + extra * since_seconds / self.ramp_seconds
        return self.base_rate_per_second + extra * math.exp((self.ramp_seconds - since_seconds) / self.decay_seconds)

    def times(self, chance: Chance, duration_seconds: float) -> Iterator[float]:
        """A Poisson process with this rate."""
        highest = max(self.peak_rate_per_second, self.base_rate_per_second)
        return _thinned(chance, self.rate_per_second, highest, duration_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseDocuments:
    """So many documents each day, at random moments of the working hours: the classic case for scale to zero."""

    documents_per_day: float = 17.0
    from_hour: float = 8.0
    to_hour: float = 18.0

    name: ClassVar[str] = "documents"

    def times(self, chance: Chance, duration_seconds: float) -> Iterator[float]:
        """Exactly that many a day, each moment uniform."""
        for day in range(math.ceil(duration_seconds / DAY_SECONDS)):
            hours = sorted(
                self.from_hour + (self.to_hour - self.from_hour) * chance.random()
                for _ in range(round(self.documents_per_day))
            )
            for hour in hours:
                at_seconds = day * DAY_SECONDS + hour * HOUR_SECONDS
                if at_seconds < duration_seconds:
                    yield at_seconds


PATTERNS: dict[str, Callable[..., Pattern]] = {
    kind.name: kind for kind in (Steady, Poisson, Diurnal, Bursts, FlashCrowd, SparseDocuments)
}


def parse_pattern(text: str) -> Pattern:
    """The pattern that `text` names, with its settings.

    Raises ValueError that names the pattern or setting, what was given and what is allowed.

    >>> parse_pattern("poisson:rate_per_second=3")
    Poisson(rate_per_second=3.0)
    """
    name, _, rest = text.partition(":")
    kind = PATTERNS.get(name.strip())
    if kind is None:
        raise ValueError(f'pattern "{name.strip()}" is unknown; there are: {", ".join(sorted(PATTERNS))}')
    allowed = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # each kind is a dataclass
    settings: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in allowed:
            raise ValueError(f'pattern {name}: setting "{key}" is unknown; there are: {", ".join(allowed)}')
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf:
            raise ValueError(f'pattern {name}: {key} is "{value}"; it must be a number from 0 up')
        settings[key] = number
    return kind(**settings)


def generate(pattern: Pattern, service: Service, chance: Chance, duration_seconds: float) -> Iterator[Arrival]:
    """The requests of a pattern, each with a service time."""
    for at_seconds in pattern.times(chance, duration_seconds):
        yield Arrival(at_seconds, service.draw(chance))


def replay(
    trace: Sequence[Arrival],
    *,
    speed: float = 1.0,
    service_too: bool = False,
    from_seconds: float = 0.0,
    duration_seconds: float | None = None,
) -> Iterator[Arrival]:
    """A trace (in order of time), or a part of it, `speed` times as fast.

    `from_seconds` and `duration_seconds` are in the trace's own time; what comes out starts at 0.
    `service_too` shortens the service times alike, as time compression needs: else the load is denser.
    """
    until_seconds = math.inf if duration_seconds is None else from_seconds + duration_seconds
    for index in range(bisect_left(trace, (from_seconds, -math.inf)), len(trace)):
        at_seconds, service_seconds = trace[index]
        if at_seconds >= until_seconds:
            return
        yield Arrival((at_seconds - from_seconds) / speed, service_seconds / speed if service_too else service_seconds)


def in_order(trace: Sequence[Arrival]) -> bool:
    """Whether a trace is sorted by time, as everything here expects."""
    return all(before.at_seconds <= after.at_seconds for before, after in pairwise(trace))


def lognormal(chance: Chance, mean_seconds: float, variation: float) -> float:
    """One draw with this mean and coefficient of variation (standard deviation over mean)."""
    if variation <= 0 or mean_seconds <= 0:
        return mean_seconds
    sigma_squared = math.log1p(variation * variation)
    return chance.lognormvariate(math.log(mean_seconds) - sigma_squared / 2, math.sqrt(sigma_squared))


def _poisson(chance: Chance, rate_per_second: float, from_seconds: float, until_seconds: float) -> Iterator[float]:
    if rate_per_second <= 0:
        return
    at_seconds = from_seconds + chance.expovariate(rate_per_second)
    while at_seconds < until_seconds:
        yield at_seconds
        at_seconds += chance.expovariate(rate_per_second)


def _thinned(
    chance: Chance, rate_per_second: Callable[[float], float], highest: float, duration_seconds: float
) -> Iterator[float]:
    """A Poisson process whose rate varies (Lewis and Shedler 1979): draw at the highest rate, keep a share."""
    for at_seconds in _poisson(chance, highest, 0.0, duration_seconds):
        if chance.random() * highest < rate_per_second(at_seconds):
            yield at_seconds
