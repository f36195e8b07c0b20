"""Windows over time, as values: what they answer depends on the clock, never on how often they are fed.

All of them are bounded in memory and take irregular samples; a clock that stands still or steps back adds
nothing and breaks nothing.
"""

from __future__ import annotations

import math

from scaler.core.values import value_class


@value_class(frozen=True, slots=True)
class Smoothed:
    """A mean that forgets: what was seen `tau_seconds` ago weighs 1/e.

    `weight` runs from 0 (nothing seen) to 1 (seen for much longer than tau): how much the value is worth.
    """

    value: float = 0.0
    weight: float = 0.0
    at_seconds: float | None = None

    def fed(self, value: float, now_seconds: float, tau_seconds: float) -> Smoothed:
        """With `value` having held since the last feeding. The first value counts as it is."""
        if self.at_seconds is None:
            return Smoothed(value, 0.0, now_seconds)
        elapsed_seconds = now_seconds - self.at_seconds
        if elapsed_seconds <= 0:  # a clock that stepped back: as if no time had passed, and time goes on from here
            return self if elapsed_seconds == 0 else Smoothed(self.value, self.weight, now_seconds)
        share = -math.expm1(-elapsed_seconds / tau_seconds)
        weight = self.weight + share * (1.0 - self.weight)
        if weight <= 0.0:  # so little time that it counts as none
            return Smoothed(self.value, 0.0, now_seconds)
        # Until tau has passed once, all that was seen counts alike: no bias towards the first value.
        return Smoothed(self.value + (share / weight) * (value - self.value), weight, now_seconds)

    def shifted(self, seconds: float) -> Smoothed:
        """With its moment moved, where the clock was put."""
        return self if self.at_seconds is None else Smoothed(self.value, self.weight, self.at_seconds + seconds)


NOTHING = Smoothed()


@value_class(frozen=True, slots=True)
class Peak:
    """The largest value over the last `seconds`, from a short list of values that fall with time.

    Values closer than a sixteenth of the window share an entry (the larger value at the later time), so it
    holds at most 17 entries and forgets at most a sixteenth of the window late, never early.
    """

    entries: tuple[tuple[float, float], ...] = ()  # (at_seconds, value): older first, values falling

    def fed(self, value: float, now_seconds: float, seconds: float) -> Peak:
        """With `value` at `now_seconds`; what is older than `seconds` is forgotten."""
        entries = self.entries
        if entries and now_seconds < entries[-1][0]:
            now_seconds = entries[-1][0]  # a clock that stepped back: as if no time had passed
        oldest = now_seconds - seconds
        kept = [entry for entry in entries if entry[0] >= oldest and entry[1] > value]
        if len(kept) > 1 and kept[-1][0] - kept[-2][0] < seconds / 16:
            kept[-2:] = [(kept[-1][0], kept[-2][1])]
        return Peak((*kept, (now_seconds, value)))

    def over(self, now_seconds: float, seconds: float) -> float | None:
        """The largest value that is not older than `seconds`, or None."""
        oldest = now_seconds - seconds
        return max((value for at_seconds, value in self.entries if at_seconds >= oldest), default=None)
