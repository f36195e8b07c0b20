"""Service times where completions are told in lumps: what is done and not told yet looks as if it were worked on.

How many slots work is then known between two bounds: those that would if all that may be done were, and those that
would if nothing were. Over a time in which several lumps were told, a service can't have been shorter than the one
allows nor longer than the other. What is known is moved to the nearer bound where it lies outside, and left alone where
it lies within: the middle of the bounds would say that services are the longer the more replicas there are, which asks
for more of them, and so on.
"""

from __future__ import annotations

from scaler.core.values import value_class

# As many completions as may be done and not told: the ends of the time matter by a half at most then, and by a tenth if
# a dozen partitions of ten each hold, independently, something between none and all of it.
_LUMPS = 2.0


@value_class(frozen=True, slots=True)
class Lumps:
    """What was told since service times were last learned: slot-seconds of work at least and at most, completions."""

    least_seconds: float = 0.0
    most_seconds: float = 0.0
    completions: float = 0.0

    def fed(
        self, *, least_seconds: float, most_seconds: float, completions: float, untold: float, service_seconds: float
    ) -> tuple[Lumps, float, float]:
        """(what is told then, slot-seconds, completions that are learned from), after one more look.

        `untold`: how many may be done and not told. Nothing is learned (0, 0) before twice as many were.
        """
        least = self.least_seconds + least_seconds
        most = self.most_seconds + most_seconds
        done = self.completions + completions
        if done <= 0.0 or done < _LUMPS * untold:
            return Lumps(least, most, done), 0.0, 0.0
        return NO_LUMPS, max(least, min(service_seconds * done, most)), done


NO_LUMPS = Lumps()
