"""How long replicas take to serve: whole cold starts, which decisions go by, and their phases, which people ask for.

A cold start has phases: a node is found (or bought), images are pulled, containers started, a model loaded. Whoever
sees pods may tell how long each took. Decisions go by the whole: nothing can be done about a pod but wait for the rest,
and knowing which phase each pod is in made them no better (docs/decisions.md, 30).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scaler.core.values import value_class

PHASES = ("scheduling", "pulling", "starting", "loading")  # in this order; the first begins with the creation
KEPT = 20.0  # cold starts remembered, about
FIRST_VARIATION = 0.25  # coefficient of variation before any was seen; it counts as two
LEAST_SECONDS = 1e-3  # nothing starts sooner: what is reported below is a mistake
P95_DEVIATIONS = 1.65  # of a normal distribution


@value_class(frozen=True, slots=True)
class Lasting:
    """Mean and spread of a length of time, of about the last `KEPT` of them."""

    count: float = 0.0
    mean_seconds: float = 0.0
    squares: float = 0.0  # of what each was off the mean, summed

    def fed(self, seconds: float) -> Lasting:
        """With one more; what can't be is left out."""
        if seconds < LEAST_SECONDS or not math.isfinite(seconds):
            return self
        count = min(self.count + 1.0, KEPT)
        off = seconds - self.mean_seconds
        mean_seconds = self.mean_seconds + off / count
        squares = (self.squares + off * (seconds - mean_seconds)) * min(1.0, (KEPT - 1) / count)
        return Lasting(count, mean_seconds, squares)

    @property
    def deviation_seconds(self) -> float:
        """Standard deviation; that of a first guess counts as two."""
        first_variance = (FIRST_VARIATION * self.mean_seconds) ** 2
        return math.sqrt((self.squares + 2.0 * first_variance) / (self.count + 2.0))

    @property
    def p95_seconds(self) -> float:
        """As of a normal distribution."""
        return self.mean_seconds + P95_DEVIATIONS * self.deviation_seconds


UNSEEN = Lasting()


@value_class(frozen=True, slots=True)
class ColdStarts:
    """What is known of whole cold starts, and of each of `PHASES`; () before any of these was told."""

    whole: Lasting = UNSEEN
    phases: tuple[Lasting, ...] = ()

    def fed(self, seconds: Sequence[float], phases_seconds: Sequence[tuple[int, float]]) -> ColdStarts:
        """With more of them: whole ones, and (phase as an index into `PHASES`, how long it took)."""
        whole, phases = self.whole, self.phases
        for one in seconds:
            whole = whole.fed(one)
        if phases_seconds:
            changed = list(phases or (UNSEEN,) * len(PHASES))
            for phase, one in phases_seconds:
                if 0 <= phase < len(changed):
                    changed[phase] = changed[phase].fed(one)
            phases = tuple(changed)
        return ColdStarts(whole, phases)

    def dumped(self) -> dict[str, Any]:
        """As plain values, for a file."""
        return {
            "whole": _plain(self.whole),
            "phases": [_plain(phase) for phase in self.phases],
        }


NO_COLD_STARTS = ColdStarts()


def loaded_cold_starts(values: Mapping[str, Any]) -> ColdStarts:
    """From `ColdStarts.dumped`. Phases of another version are learned anew."""
    phases = tuple([Lasting(*[float(value) for value in phase]) for phase in values.get("phases", ())])
    return ColdStarts(
        Lasting(*[float(value) for value in values["whole"]]), phases if len(phases) == len(PHASES) else ()
    )


def _plain(lasting: Lasting) -> tuple[float, float, float]:
    return lasting.count, lasting.mean_seconds, lasting.squares
