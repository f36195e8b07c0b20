"""What was never served is taken back: one absurd reading must not be what a policy knows for hours.

A sample in which far more arrive than was expected is believed at once, since a burst can't wait. What was known before
it is kept as a `Doubt` until a tenth of what came with it has been begun. Is it gone before that, faster than whatever
serves could have begun it, it was a mistake of the reading, or somebody purged the queue. Either way nobody had to be
ready for it, and what was learned from arrivals is what it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

from scaler.core.estimate import FAR_MORE_LEAST, Estimates, dumped, far_more, loaded
from scaler.core.model import Goals
from scaler.core.values import value_class
from scaler.core.window import Smoothed

StateT = TypeVar("StateT")
_SERVED_SHARE = 0.1  # of what came with a jump: once that was begun, it was there
_LEARNED = 10.0  # completions; of fewer a service time is a guess ...
_UNLEARNED_SECONDS = 0.5  # ... and may well be as short


@value_class(frozen=True, slots=True)
class Doubt(Generic[StateT]):
    """A jump of which next to nothing was begun yet: what was known before it, and how far it reached."""

    known: Estimates  # before it, with the counts from which it began
    rest: StateT  # what else the policy had learned from arrivals
    arrived: float  # requests, as counted with it

    def shifted(self, rest: StateT, seconds: float, *, turns_hours: bool) -> Doubt[StateT]:
        """With every moment moved, where the clock was put; `rest`: with its own moved."""
        return Doubt(self.known.shifted(seconds, turns_hours=turns_hours), rest, self.arrived)

    def dumped(self, rest: dict[str, Any]) -> dict[str, Any]:
        """As plain values, for a file; `rest`: as such."""
        return {"known": dumped(self.known), "rest": rest, "arrived": self.arrived}


def loaded_doubt(values: Mapping[str, Any] | None, rest: Callable[[Mapping[str, Any]], StateT]) -> Doubt[StateT] | None:
    """From `Doubt.dumped`; `rest` makes the rest of its values. None: there is none, or it is of an older version."""
    if values is None:
        return None
    return Doubt(loaded(values["known"]), rest(values["rest"]), float(values["arrived"]))


def doubted(doubt: Doubt[StateT] | None, before: Estimates, known: Estimates, rest: StateT) -> Doubt[StateT] | None:
    """The doubt after a sample, `known`, where there was `doubt` before it: none, a new one, or one that reaches on."""
    came = known.arrived - before.arrived
    if doubt is None and before.at_seconds is not None and came <= FAR_MORE_LEAST:
        return None
    likely = 0.0
    begun_anew = before.at_seconds is None or came < 0.0
    if begun_anew:
        came = known.arrived
    elif before.at_seconds is not None and known.at_seconds is not None:
        likely = before.short.value * (known.at_seconds - before.at_seconds)
    jumped = far_more(came, likely)
    if begun_anew:
        if not jumped:
            return None  # how much of an older one was begun by now can't be told
        base = before if doubt is None else doubt.known
        # Counts begin anew, and with them the arrivals from which the level of demand is told.
        base = replace(base, arrived=0.0, started=0.0, recent=())
        return Doubt(base, rest if doubt is None else doubt.rest, known.arrived)
    if doubt is None:
        doubt = Doubt(before, rest, known.arrived) if jumped else None
    elif jumped:
        doubt = Doubt(doubt.known, doubt.rest, known.arrived)
    return None if doubt is None or _begun_share(doubt, known) > _SERVED_SHARE else doubt


def never_served(
    doubt: Doubt[StateT],
    before: Estimates,
    known: Estimates,
    goals: Goals,
    *,
    ready: int,
    in_flight: float | None,
    starting: int = 0,
) -> bool:
    """Whether the sample that made `known` of `before` shows that what is in doubt went without being served.

    Far more is gone than what serves could have begun since the sample before: `ready` replicas, or as many slots as
    are seen to be busy (`in_flight`). Those that are `starting` may have come sooner than is believed.
    """
    before_seconds, now_seconds = before.at_seconds, known.at_seconds
    if before_seconds is None or now_seconds is None or now_seconds < before_seconds:
        return False
    # As seen: what is only thought to have come and gone unseen is thought so of a rate that is in doubt.
    waited = min(before.waiting, before.arrived - max(before.started, doubt.known.started))
    slots = float(ready * goals.concurrency)
    if in_flight is not None:
        slots = max(slots, in_flight, before.in_flight)
    service_seconds = before.service_seconds(goals)
    if before.completions < _LEARNED:
        service_seconds = min(service_seconds, _UNLEARNED_SECONDS)
    likely = slots * (now_seconds - before_seconds) / service_seconds
    if before.completed_total is not None and known.completed_total is not None:
        likely = max(likely, known.completed_total - before.completed_total)
    return far_more(waited - known.waiting - slots - starting * goals.concurrency, likely)


def undone(doubt: Doubt[StateT], before: Estimates, *, waiting: float, in_flight: float | None) -> Estimates:
    """`before` as if what is in doubt had never come, where `waiting` are left by now.

    What was learned from arrivals is what it was before the jump; so are service times where they were learned from
    what waits, since nobody tells what is `in_flight`. Cold starts, waits and counters stay.
    """
    then, at_seconds = doubt.known, before.at_seconds
    served = then if in_flight is None else before
    never = max(min(before.waiting - waiting, before.arrived - then.arrived), 0.0)
    waited = before.waiting - never
    arrived = max(before.arrived - never, then.arrived)
    batches = before.waits.batches
    kept = tuple([batch for batch in batches if batch[0] < arrived])
    if waited > 0.0 and len(kept) < len(batches):
        kept = (*kept, (arrived, batches[len(kept)][1]))
    moved = arrived - then.arrived
    return replace(
        before,
        waiting=waited,
        arrived=arrived,
        started=max(arrived - waited, 0.0),
        short=Smoothed(then.short.value, then.short.weight, at_seconds),
        long=Smoothed(then.long.value, then.long.weight, at_seconds),
        surprises=replace(then.surprises, at_seconds=at_seconds or 0.0, arrived=0.0, forecast=then.short.value),
        busy_slot_seconds=served.busy_slot_seconds,
        completions=served.completions,
        waits=replace(before.waits, batches=kept),
        recent=tuple([(count + moved, at) for count, at in then.recent]),
        flow=None,
        hours=then.hours if then.hours.hour == before.hours.hour else then.hours.unbegun(),
    )


def _begun_share(doubt: Doubt[StateT], known: Estimates) -> float:
    came = doubt.arrived - doubt.known.arrived
    return math.inf if came <= 0.0 else (known.started - doubt.known.arrived) / came
