"""How demand rises within one cold start, learned from each state that a workload can be in.

Demand is counted in replicas. A state is a level of demand (1, 2, 3-4, 5-8, ..., rising or not), or how long there
has been none. For each state it is counted how far demand rose within the next cold start. From these counts
follow the chance that one more replica will be needed in time to matter, and from the chance how many are worth
keeping or starting ahead (a newsvendor's quantile). Idle replicas, the last one, a warm floor and a second replica
started at a burst's first request are all answers of this one table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

LEVELS = 8  # groups of demand: 1, 2, 3-4, 5-8, 9-16, 17-32, 33-64, more
IDLES = 14  # groups of idle time, doubling from 5 s
STATES = 2 * LEVELS + IDLES
BINS = 8  # groups of rises: 0, 1, 2, 3-4, 5-8, 9-16, 17-32, more
IDLE_FIRST_SECONDS = 5.0
KEPT_RISES = 40.0  # rises remembered of one state; what is older fades as new ones come
KEPT = 1e5  # observations without a rise
PRIOR = 1.0  # what is believed before counts as so many observations
PARTS = 3  # observations a horizon
_LOW = (0, 1, 2, 3, 5, 9, 17, 33)
_HIGH = (0, 1, 2, 4, 8, 16, 32, 64)
_EMPTY = (0.0,) * BINS


@dataclass(frozen=True, slots=True)
class Rises:
    """Counts per state, and the observations that are not over yet: (closes at, state, level, highest, weight, arrived before)."""

    rows: tuple[tuple[float, ...], ...] = (_EMPTY,) * STATES
    open: tuple[tuple[float, int, int, int, float, float], ...] = ()
    level: int = 0
    rose_at_seconds: float = -math.inf
    idle_since_seconds: float | None = None
    next_at_seconds: float = -math.inf
    lead_seconds: float = 60.0
    arrivals_per_level: float = 1.0  # requests that came with a rise, for each level of it

    def next_bin_at(self, now_seconds: float) -> float:
        """When the idle time moves to its next group."""
        if self.idle_since_seconds is None:
            return now_seconds
        idle = idle_group(now_seconds - self.idle_since_seconds)
        if idle >= IDLES - 1:
            return math.inf
        return self.idle_since_seconds + IDLE_FIRST_SECONDS * 2.0**idle


NOTHING_SEEN = Rises()


def level_group(level: int) -> int:
    """The group of a demand of at least 1."""
    return min((level - 1).bit_length(), LEVELS - 1)


def idle_group(idle_seconds: float) -> int:
    """The group of an idle time."""
    if idle_seconds < IDLE_FIRST_SECONDS:
        return 0
    return min(int(math.log2(idle_seconds / IDLE_FIRST_SECONDS)) + 1, IDLES - 1)


def rise_bin(rise: int) -> int:
    """The group of a rise."""
    return 0 if rise <= 0 else min((rise - 1).bit_length() + 1, BINS - 1)


def watched(known: Rises, level: int, *, arrived: float, now_seconds: float, horizon_seconds: float) -> Rises:
    """With the demand at `now_seconds`; `horizon_seconds` is one cold start."""
    rows, opened = known.rows, known.open
    idle_since, rose_at, next_at = known.idle_since_seconds, known.rose_at_seconds, known.next_at_seconds
    per_level = known.arrivals_per_level
    if level > known.level:
        rose_at = now_seconds
    if opened:
        still = []
        for closes_at, state, base, highest, weight, arrived_before in opened:
            if now_seconds > closes_at:
                rise = highest - base
                rows = _counted(rows, state, rise, weight)
                if rise > 0:
                    ratio = max(arrived - arrived_before, 0.0) / rise
                    per_level += 0.05 * min(weight * PARTS, 1.0) * (ratio - per_level)
            else:
                still.append((closes_at, state, base, level if level > highest else highest, weight, arrived_before))
        opened = tuple(still)
    if level == 0:
        if idle_since is None:
            idle_since = now_seconds
            rows, opened = rows, opened
    else:
        if idle_since is not None:
            idle_seconds = now_seconds - idle_since
            rows = _idle_counted(rows, idle_seconds, horizon_seconds)
            state = 2 * LEVELS + idle_group(max(idle_seconds - 0.5 * horizon_seconds, 0.0))
            weight = min(idle_seconds / horizon_seconds, 1.0)
            opened = (*opened, (now_seconds + 0.5 * horizon_seconds, state, 0, level, weight, arrived - level))
            idle_since = None
            next_at = now_seconds
        if now_seconds >= next_at:
            rising = now_seconds - rose_at <= horizon_seconds
            state = 2 * level_group(level) + rising
            opened = (*opened, (now_seconds + horizon_seconds, state, level, level, 1.0 / PARTS, arrived))
            next_at = now_seconds + horizon_seconds / PARTS
    return Rises(rows, opened[-4 * PARTS :], level, rose_at, idle_since, next_at, horizon_seconds, per_level)


def headroom(
    known: Rises, level: int, *, now_seconds: float, keep_chance: float, start_chance: float
) -> tuple[int, int]:
    """(replicas above `level` worth keeping, worth starting): each is needed with at least that chance.

    A higher level never gets a lower sum of level and headroom than a lower one had.
    """
    if level == 0:
        idle_since = now_seconds if known.idle_since_seconds is None else known.idle_since_seconds
        idle_seconds = now_seconds - idle_since
        row = known.rows[2 * LEVELS + idle_group(idle_seconds)]
        # Before it was seen: gaps are as likely long as short, on a logarithmic scale.
        believed = (0.25 * known.lead_seconds / (idle_seconds + known.lead_seconds), 1.0)
        return _largest(row, believed, keep_chance), _largest(row, believed, start_chance)
    rising = now_seconds - known.rose_at_seconds <= known.lead_seconds
    keep = start = 0
    for group in range(level_group(level) + 1):
        top = min(level, _HIGH[group + 1] if group < LEVELS - 1 else level)
        believed = (0.5, math.sqrt(top))
        for fresh in (0, 1) if rising else (0,):
            row = known.rows[2 * group + fresh]
            keep = max(keep, top + _largest(row, believed, keep_chance) - level)
            start = max(start, top + _largest(row, believed, start_chance) - level)
    return keep, start


def _largest(row: tuple[float, ...], believed: tuple[float, float], chance: float) -> int:
    """The largest rise that has at least this chance.

    `believed`: (chance of any rise, its scale): what counts as PRIOR observations, with a normal tail.
    """
    if chance >= 1.0:
        return 0
    total = sum(row) + PRIOR
    any_chance, scale = believed
    needed = chance * total
    tail = 0.0
    for index in range(BINS - 1, 0, -1):
        low, high = _LOW[index], _HIGH[index]
        inside = row[index]
        prior_low = PRIOR * any_chance * math.exp(-0.5 * ((low - 1) / scale) ** 2)
        if tail + inside + prior_low >= needed:
            if inside <= 0:
                return low
            # within the group the rises are spread evenly
            share = min(max((tail + inside + prior_low - needed) / inside, 0.0), 1.0)
            return low + int(share * (high - low))
        tail += inside
    return 0


def _counted(
    rows: tuple[tuple[float, ...], ...], state: int, rise: int, weight: float
) -> tuple[tuple[float, ...], ...]:
    row = list(rows[state])
    row[rise_bin(rise)] += weight
    if sum(row) - row[0] > KEPT_RISES or row[0] > KEPT:
        row = [value * 0.5 for value in row]
    return (*rows[:state], tuple(row), *rows[state + 1 :])


def _idle_counted(
    rows: tuple[tuple[float, ...], ...], idle_seconds: float, horizon_seconds: float
) -> tuple[tuple[float, ...], ...]:
    """Each horizon of an idle stretch but the last was one without a rise."""
    changed = list(rows)
    quiet_seconds = idle_seconds - horizon_seconds
    low = 0.0
    for idle in range(IDLES):
        if quiet_seconds <= low:
            break
        high = IDLE_FIRST_SECONDS * 2.0**idle if idle < IDLES - 1 else math.inf
        row = list(changed[2 * LEVELS + idle])
        row[0] += min((min(high, quiet_seconds) - low) / horizon_seconds, KEPT)
        changed[2 * LEVELS + idle] = tuple(row)
        low = high
    return tuple(changed)


def shifted(known: Rises, shift_seconds: float) -> Rises:
    """With every moment moved, where the clock started anew; open observations are dropped."""
    idle_since = known.idle_since_seconds
    return replace(
        known,
        open=(),
        rose_at_seconds=-math.inf,
        next_at_seconds=-math.inf,
        idle_since_seconds=None if idle_since is None else idle_since + shift_seconds,
    )
