"""How long an idle replica is worth keeping, from the idle gaps of its level.

A level is the k-th replica. It remembers when it was last in use, and levels share histories of how long they were
idle before they were used again: 1, 2, 3-4, 5-8, ... A gap costs its length if the replica is kept through it, and
what a replica costs to miss if it is not: each group of levels is kept for as long as would have been cheapest
over its own gaps. Before there are gaps it is the break-even itself, which never costs more than twice the best
(ski rental: Karlin et al. 1988).

Who keeps the 33rd replica keeps the 32 below it, too. So where a group would be kept for longer than the one below it,
the cheapest is one time for both, over the gaps of all their replicas (pool adjacent violators: Ayer et al. 1955). The
last replica is apart: whether to go to zero is asked when nothing else is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from scaler.core.values import value_class

GROUPS = 8
BINS = 15  # of gaps: up to 5 s, 10 s, 20 s, ... 11 hours, longer
FIRST_SECONDS = 5.0
KEPT = 200.0  # gaps remembered by each group, about
_FREE_SECONDS = 0.1  # what is worth keeping for less is free to be without, but for a distribution's tail
TRUSTED = 2.0  # gaps that weigh as much as the break-even that is used before any
MIDDLES = (1.0, 2.0, 3.5, 6.5, 12.5, 24.5, 48.5, 96.5)  # the middle level of each group
_EDGES = tuple(FIRST_SECONDS * 2.0**index for index in range(BINS - 1))
_MIDDLES = (FIRST_SECONDS / 2, *(0.75 * edge for edge in _EDGES[1:]), 1.5 * _EDGES[-1])


@value_class(frozen=True, slots=True)
class Holds:
    """When levels were last in use, their gaps, and how long each group is kept.

    `used`: (level, last in use at), levels falling and times rising: a level is in use when a higher one is.
    `timeouts_seconds` were worked out for `timeouts_for`, what letting go costs in GPU-seconds.
    """

    used: tuple[tuple[int, float], ...] = ()
    gaps: tuple[tuple[float, ...], ...] = ((0.0,) * BINS,) * GROUPS
    timeouts_seconds: tuple[float, ...] = ()
    timeouts_for: tuple[float, ...] = ()

    def shifted(self, seconds: float) -> Holds:
        """With every moment moved, where the clock was put."""
        used = tuple([(level, at_seconds + seconds) for level, at_seconds in self.used])
        return Holds(used, self.gaps, self.timeouts_seconds, self.timeouts_for)


NOTHING_HELD = Holds()


def group_of(level: int) -> int:
    """The group of a level, which is at least 1."""
    return min((level - 1).bit_length(), GROUPS - 1)


def highest_of(used: tuple[tuple[int, float], ...]) -> int:
    """The highest level that was ever in use; 0: none was."""
    return used[0][0] if used else 0


def in_use(
    known: Holds, using: int, *, letting_go: tuple[float, ...], shortest_seconds: float, now_seconds: float
) -> Holds:
    """With levels up to `using` in use now. Gaps up to `shortest_seconds` are between two looks: not gaps."""
    used, gaps = known.used, known.gaps
    learned = False
    if using > 0:
        floor, higher = 0, len(used)
        for level, at_seconds in reversed(used):
            gap_seconds = now_seconds - at_seconds
            top = min(level, using)
            if top > floor and gap_seconds > shortest_seconds:
                learned = True
                gaps = _counted(gaps, group_of(floor + 1), group_of(top), gap_seconds)
            floor = max(floor, level)
            if level > using:
                break
            higher -= 1
        used = (*used[:higher], (using, now_seconds))
    timeouts, timeouts_for = known.timeouts_seconds, known.timeouts_for
    if learned or not timeouts or highest_of(used) > highest_of(known.used) or moved(timeouts_for, letting_go):
        timeouts, timeouts_for = timeouts_of(gaps, letting_go, highest=highest_of(used)), letting_go
    return Holds(used, gaps, timeouts, timeouts_for)


def moved(before: tuple[float, ...], now: tuple[float, ...]) -> bool:
    """Whether any cost moved by more than a twentieth: below that the timeouts are near enough."""
    for old, new in zip(before, now, strict=True):
        near = 0.05 * old + 0.1
        if not -near <= new - old <= near:
            return True
    return False


def held(
    used: tuple[tuple[int, float], ...],
    timeouts_seconds: tuple[float, ...],
    now_seconds: float,
    *,
    kept_after_last_seconds: float = 0.0,
) -> tuple[int, float]:
    """(the highest level that is still worth keeping, when it stops being so).

    A level in use that is worth keeping for no time at all is not kept either: being without it costs nothing.
    `timeouts_seconds` as they were before the last use: were they learned from it, more of it could let more go.
    `kept_after_last_seconds`: how long somebody else (KEDA's cooldown) keeps the last replica once it is let go.
    """
    for index, (level, at_seconds) in enumerate(used):
        idle_seconds = now_seconds - at_seconds
        floor = used[index + 1][0] if index + 1 < len(used) else 0
        top = level
        while top > floor:
            group = min((top - 1).bit_length(), GROUPS - 1)  # group_of, without the call
            timeout_seconds = timeouts_seconds[group] if group else timeouts_seconds[0] - kept_after_last_seconds
            if idle_seconds < timeout_seconds:
                return top, at_seconds + timeout_seconds
            top = 1 << (group - 1) if group else 0
    return 0, math.inf


@value_class(frozen=True, slots=True)
class _Pool:
    """Groups that are kept for the same time: the gaps of all their replicas, and what letting go costs after each.

    `first_weight` and `first_cost` are of the break-even that is used before any gap, as if that were gaps.
    """

    groups: int
    counts: tuple[float, ...]
    costs: tuple[float, ...]
    first_weight: float
    first_cost: float

    def joined(self, other: _Pool) -> _Pool:
        """Both, kept for the same time."""
        return _Pool(
            self.groups + other.groups,
            tuple([one + more for one, more in zip(self.counts, other.counts, strict=True)]),
            tuple([one + more for one, more in zip(self.costs, other.costs, strict=True)]),
            self.first_weight + other.first_weight,
            self.first_cost + other.first_cost,
        )

    def cheapest_seconds(self) -> float:
        """The cheapest time over these gaps, near the break-even while they are few."""
        total = sum(self.counts)
        if total == 0.0:
            return self.first_cost / self.first_weight
        best_cost = left_cost = sum(self.costs)
        best_seconds, kept_cost, left = 0.0, 0.0, total
        for count, cost, middle_seconds, edge_seconds in zip(
            self.counts, self.costs, _MIDDLES, _EDGES, strict=False
        ):  # but the longest
            kept_cost += count * middle_seconds
            left -= count
            left_cost -= cost
            now_cost = kept_cost + left * edge_seconds + left_cost
            if now_cost < best_cost:
                best_cost, best_seconds = now_cost, edge_seconds
            if left <= 1e-9 * total:
                break  # no gap was longer
        return (self.first_cost + total * best_seconds) / (self.first_weight + total)


def timeouts_of(
    gaps: tuple[tuple[float, ...], ...], letting_go: tuple[float, ...], *, highest: int
) -> tuple[float, ...]:
    """How long each group is kept idle. `highest`: the highest level that was ever in use, 0 where none was.

    From the second group on none is kept for longer than the one below it.
    """
    first_seconds = _pool(gaps[0], letting_go[0], 1).cheapest_seconds()
    pools: list[_Pool] = []
    times: list[float] = []  # falling
    for group in range(1, GROUPS):
        below = 1 << (group - 1)
        levels = highest - below if group == GROUPS - 1 else min(highest - below, below)
        if levels <= 0:  # nobody knows how long its gaps are
            break
        pool = _pool(gaps[group], letting_go[group], levels)
        seconds = pool.cheapest_seconds()
        while times and seconds > times[-1]:
            pool = pools.pop().joined(pool)
            times.pop()
            seconds = pool.cheapest_seconds()
        pools.append(pool)
        times.append(seconds)
    timeouts = [first_seconds]
    for pool, seconds in zip(pools, times, strict=True):
        timeouts += [seconds] * pool.groups
    for group in range(len(timeouts), GROUPS):
        seconds = _pool(gaps[group], letting_go[group], 1).cheapest_seconds()
        timeouts.append(seconds if group == 1 else min(seconds, timeouts[-1]))
    return tuple([_worth_keeping(seconds) for seconds in timeouts])


def _pool(row: tuple[float, ...], cost_of_one: float, levels: int) -> _Pool:
    """One group, of which so many levels were ever in use."""
    counts = tuple([count * levels for count in row])
    return _Pool(
        1, counts, tuple([count * cost_of_one for count in counts]), TRUSTED * levels, TRUSTED * levels * cost_of_one
    )


def _worth_keeping(timeout_seconds: float) -> float:
    return timeout_seconds if timeout_seconds >= _FREE_SECONDS else 0.0


def reloaded(values: Mapping[str, Any]) -> Holds:
    """From the values of a file."""
    gaps = tuple(tuple(float(count) for count in row) for row in values["gaps"])
    if [len(row) for row in gaps] != [BINS] * GROUPS:  # of another version: gaps are learned anew
        gaps = NOTHING_HELD.gaps
    timeouts, timeouts_for = (
        tuple(float(seconds) for seconds in values.get(name, ())) for name in ("timeouts_seconds", "timeouts_for")
    )
    if not len(timeouts) == len(timeouts_for) == GROUPS:
        timeouts = timeouts_for = ()  # worked out anew
    return Holds(
        used=tuple((int(level), float(at_seconds)) for level, at_seconds in values["used"]),
        gaps=gaps,
        timeouts_seconds=timeouts,
        timeouts_for=timeouts_for,
    )


def _counted(
    gaps: tuple[tuple[float, ...], ...], first_group: int, last_group: int, gap_seconds: float
) -> tuple[tuple[float, ...], ...]:
    index = min(max(math.ceil(math.log2(gap_seconds / FIRST_SECONDS)), 0), BINS - 1)
    changed = list(gaps)
    for group in range(first_group, last_group + 1):
        row = list(changed[group])
        row[index] += 1.0
        total = sum(row)
        if total > KEPT:
            row = [value * 0.5 for value in row]
        changed[group] = tuple(row)
    return tuple(changed)
