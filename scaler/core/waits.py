"""Who waits since when, and how many of those that began had waited longer than was promised."""

from __future__ import annotations

import math
from bisect import bisect_left
from operator import itemgetter

from scaler.core.model import Goals
from scaler.core.values import value_class

_arrival = itemgetter(1)  # of a batch
_DAY_SECONDS = 86_400.0
_MOST_BATCHES = 96  # arrivals that still wait, by sample; older neighbours are merged above this
_NEAR_KEPT = 200.0  # waits near the promise
DEBT_FIRST = 4.0  # misses that a beginner takes as already made: careful first, lazy once it has seen enough


@value_class(frozen=True, slots=True)
class Waits:
    """First in, first out: what begins is the oldest. Counts are of requests."""

    batches: tuple[tuple[float, float], ...] = ()  # (arrived so far, at): those that still wait
    counted: float = 0.0  # requests whose wait is known, about the last day
    missed: float = 0.0
    just_in_time: float = 0.0  # requests whose wait ended about one interval before the promise did, and ...
    just_late: float = 0.0  # ... after it
    debt: float = DEBT_FIRST  # misses beyond what was promised; negative: credit

    @property
    def achieved(self) -> float | None:
        """The share of requests that started in time, about the last day; None: no request yet."""
        return None if self.counted <= 0 else 1.0 - self.missed / self.counted

    def overdue(self, started: float, now_seconds: float, wait_seconds: float) -> float:
        """Requests that wait and have already waited longer than promised; `started`: how many ever began."""
        late = bisect_left(self.batches, now_seconds - wait_seconds, key=_arrival)
        return self.batches[late - 1][0] - started if late else 0.0

    def shifted(self, seconds: float) -> Waits:
        """With every moment moved, where the clock was put."""
        batches = tuple([(until, at + seconds) for until, at in self.batches])
        return Waits(batches, self.counted, self.missed, self.just_in_time, self.just_late, self.debt)

    def faded(self, elapsed_seconds: float) -> Waits:
        """After so long in which nothing began."""
        fade = math.exp(-elapsed_seconds / _DAY_SECONDS)
        counted, missed = self.counted * fade, self.missed * fade
        return Waits(self.batches, counted, missed, self.just_in_time, self.just_late, self.debt)

    def begun_anew(self, waiting: float, now_seconds: float) -> Waits:
        """With counts from zero, of whom so many wait, since now as far as anyone knows."""
        batches = ((waiting, now_seconds),) if waiting else ()
        return Waits(batches, self.counted, self.missed, self.just_in_time, self.just_late, self.debt)

    def fed(
        self,
        arrived: tuple[float, float],
        started: tuple[float, float],
        *,
        goals: Goals,
        now_seconds: float,
        elapsed_seconds: float,
        purged: bool,
        least_debt: float,
    ) -> Waits:
        """With what `arrived` and what `started`, each (ever before, ever by now), since it was fed last.

        Both ends of a wait are known to one sampling interval only. How likely a wait within one interval of the
        promise is beyond it, is told by how many end an interval sooner and later: whoever starts replicas just in
        time has most waits end just before.
        """
        fade = math.exp(-elapsed_seconds / _DAY_SECONDS)
        counted, missed = self.counted * fade, self.missed * fade
        just_in_time, just_late, batches = self.just_in_time, self.just_late, self.batches
        before, begun = started
        if arrived[1] > arrived[0]:
            batches = (*batches, (arrived[1], now_seconds - 0.5 * elapsed_seconds))
        if purged:  # what is left came last; to take it for new would ask for more than a longer queue that is as old
            batches = tuple([batch for batch in batches if batch[0] > begun])
        if purged or not batches:
            return Waits(batches, counted, missed, just_in_time, just_late, max(self.debt, least_debt))
        done = 0
        limit_seconds = math.inf if goals.wait_seconds is None else goals.wait_seconds
        new_counted = new_missed = 0.0
        for until, at_seconds in batches:
            if begun <= before:
                break
            part = min(until, begun) - before
            if part > 0:
                new_counted += part
                waited_seconds = now_seconds - 0.5 * elapsed_seconds - at_seconds
                off = (waited_seconds - limit_seconds) / elapsed_seconds
                if off >= 1.0:
                    new_missed += part
                elif off > -1.0:
                    new_missed += part * _late_share(off, just_in_time, just_late)
                # What came and began between two looks is no wait that nearly was too long.
                if 0.5 <= abs(off) <= 1.5 and waited_seconds > 0.5 * elapsed_seconds:
                    if off < 0:
                        just_in_time += part
                    else:
                        just_late += part
                    if just_in_time + just_late > _NEAR_KEPT:
                        just_in_time, just_late = 0.5 * just_in_time, 0.5 * just_late
            before = max(before, min(until, begun))
            if until <= begun:
                done += 1
        batches = batches[done:]
        if len(batches) > _MOST_BATCHES:
            batches = batches[1::2] if len(batches) % 2 == 0 else (batches[0], *batches[2::2])
        debt = max(self.debt + new_missed - (1.0 - goals.attainment) * new_counted, least_debt)
        return Waits(batches, counted + new_counted, missed + new_missed, just_in_time, just_late, debt)


NO_WAITS = Waits()


def _late_share(off: float, just_in_time: float, just_late: float) -> float:
    """How likely a wait is beyond the promise that is seen `off` sampling intervals (-1 to 1) beyond it.

    Both its ends are uniform within an interval, so it is off by a triangular error; and waits thin out by e to the
    `slope` each interval, as their numbers one interval before and after the promise say.
    """
    slope = min(max(0.5 * math.log((just_in_time + 1.0) / (just_late + 1.0)), -2.0), 4.0)
    if abs(slope) < 0.01:
        return 0.5 * (1.0 + off) ** 2 if off < 0 else 1.0 - 0.5 * (1.0 - off) ** 2
    square = slope * slope
    above = 1.0 / slope - (1.0 - math.exp(-slope)) / square  # of e^(-slope u) (1 - |u|), u from 0 to 1
    below = (math.exp(slope) - 1.0) / square - 1.0 / slope  # ... from -1 to 0
    thin = math.exp(slope * off)
    if off < 0:
        beyond = math.exp(-slope) / square + thin * (1.0 + off) / slope - thin / square
    else:
        beyond = above - 1.0 / slope - 1.0 / square + thin * (1.0 - off) / slope + thin / square
    return beyond / (above + below)
