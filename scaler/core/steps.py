"""How many requests come and go unseen, where nobody counts them: from how much their number fluctuates.

What is in the system changes by what arrives less what is completed. The mean of that says nothing of either: any rate
of completions explains it, together with as many more arrivals. Its variance does: where they happen one by one and by
chance, each of the two adds one for each request, whichever way it goes (realised variance). It is taken from how each
change differs from the one before, halved (von Neumann, 1941), since rates that change slowly drop out of it, and it
counts little more than is expected (Huber's proposal 2, 1964): a batch that is completed at once, ten that arrive
together, replicas that begin at the same moment are one large step, not its square in requests. Whatever is seen to
fall was completed, which bounds a service from above.
"""

from __future__ import annotations

import math

from scaler.core.values import value_class

_BOUND = 1.0  # times what is expected, of a squared step ...
_WHOLE = 1.0  # ... and so much more: steps are whole, and of few requests mostly none
_RECENT = 0.2  # of the newest look, in the rate at which the number changes
_KEPT = 300.0  # looks, or requests where there are fewer
_FIRST = 1.0  # completions more, while few are seen
_ENOUGH = 10.0  # that fell: how long services can be at most
_RESTS = 1.3  # when a queue has ended what is seen of services are rests: they take as much longer at most
_LEAST = 1e-3  # requests
_FAR = 50.0  # bounds beyond which nothing is cut


@value_class(frozen=True, slots=True)
class Steps:
    """What was seen: `slot_seconds` over `completions` is a service. Looks count alike, however much went on."""

    change: float = 0.0  # at the last look ...
    seconds: float = 0.0  # ... over so long; 0: none was seen
    drift: float = 0.0  # a second, lately
    slot_seconds: float = 0.0
    completions: float = 0.0
    fallen: float = 0.0  # of these at least

    def bounded(self, service_seconds: float, interval_seconds: float) -> float:
        """`service_seconds` as far as it agrees with what was seen, with looks so far apart.

        What comes and goes between two looks is not seen to do so. Of services that end by chance, each change is
        followed by its opposite the more, the longer looks are apart: as if (1 - r)(3 - r) / 2 of those in work were
        completed, r being the share of them that still is, one look later. Much shorter ones it can't tell apart.
        """
        completions = max(self.completions, self.fallen)
        if completions <= 0.0:
            return service_seconds
        left = 2.0 - math.sqrt(1.0 + 2.0 * interval_seconds * (completions + _FIRST) / self.slot_seconds)
        if left > 0.0:
            service_seconds = max(service_seconds, -interval_seconds / math.log(left))
        if self.fallen >= _ENOUGH:
            service_seconds = min(service_seconds, _RESTS * self.slot_seconds / self.fallen)
        return service_seconds

    def rested(self, change: float, elapsed_seconds: float) -> Steps:
        """After a look while nothing was worked on: it tells the next one what to expect."""
        return Steps(
            change, elapsed_seconds, change / elapsed_seconds, self.slot_seconds, self.completions, self.fallen
        )

    def broken(self) -> Steps:
        """After one that tells nothing."""
        return Steps(0.0, 0.0, 0.0, self.slot_seconds, self.completions, self.fallen)

    def fed(self, change: float, *, slot_seconds: float, service_seconds: float, elapsed_seconds: float) -> Steps:
        """After a look: so many more are in the system, and slots worked for so long; `service_seconds` as known."""
        if self.seconds <= 0.0 or slot_seconds == 0.0:
            return self.rested(change, elapsed_seconds)
        times = elapsed_seconds / self.seconds
        off = change - times * self.change
        square = off * off / (1.0 + times)
        likely = slot_seconds / service_seconds
        expected = max(2.0 * likely + self.drift * elapsed_seconds, likely, _LEAST)
        bound = _BOUND + _WHOLE / expected
        if bound < _FAR:
            square = min(square, bound * expected) / _cut(bound)
        weight = 1.0 / max(expected, 1.0)
        slots = self.slot_seconds + weight * slot_seconds
        completions = self.completions + 0.5 * weight * (square - change)
        fallen = self.fallen + weight * max(-change, 0.0)
        most = max(completions, fallen)
        fade = _KEPT / most if most > _KEPT else 1.0
        drift = self.drift + _RECENT * (change / elapsed_seconds - self.drift)
        return Steps(change, elapsed_seconds, drift, slots * fade, completions * fade, fallen * fade)


def _cut(bound: float) -> float:
    """The mean of the square of a standard normal deviate, where what is beyond `bound` counts as it."""
    root = math.sqrt(bound)
    within = math.erf(root / math.sqrt(2.0))
    return within - root * math.sqrt(2.0 / math.pi) * math.exp(-0.5 * bound) + bound * (1.0 - within)


NO_STEPS = Steps()
