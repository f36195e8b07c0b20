"""Burst: takes a rise at face value and holds it until it is over. `policy: steps+burst`, `target+burst`, ...

It wraps another policy and watches what arrives: a short window against a long one, as Knative's panic mode does with
requests in the system (knative.dev, `pkg/autoscaler/scaling/autoscaler.go`). A queue would not do: the replicas that a
burst brought drain it in the middle of the burst, which then looks over. From the moment at which the short window is
at least twice the long one until it is back at the long one, the answer does not fall. Afterwards it falls with what
arrives and is worked on, and by half in a minute and a half at the latest: the queue is drained, and by that alone the
wrapped policy would drop what still works. It never raises the answer above what the wrapped policy said at some moment
of the burst.

Arrivals are counted as `slo` counts them (core/estimate.py): from counters, or completions and growth, or growth alone.
Where a source tells nothing of a queue (a utilisation, some query), the wrapped policy's metric is what is watched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Generic

from scaler.core.decide import Policy, Proposal, Situation, StateT
from scaler.core.doubts import Doubt, doubted, loaded_doubt, never_served, undone
from scaler.core.estimate import (
    NOTHING_KNOWN,
    Estimates,
    dumped,
    loaded,
    rested,
    stepped_seconds,
    updated,
)
from scaler.core.model import Goals, ReplicaView, Sample, Step
from scaler.core.values import value_class
from scaler.core.window import NOTHING, Smoothed

SHORT_SECONDS = 15.0  # one sync of the HPA: what it would react to
LONG_SECONDS = 600.0  # a burst that lasts longer is the new normal
RATIO = 2.0  # Knative's panic threshold, 200 %
BACK_RATIO = 1.1  # the short window is back at the long one: even traffic would come no closer for hours
LET_GO_SECONDS = 120.0  # after a burst its answer fades with this time constant, whatever still arrives


@value_class(frozen=True, slots=True)
class Rise:
    """What is learned of a burst from arrivals."""

    short: Smoothed = NOTHING
    long: Smoothed = NOTHING
    held_value: float = 0.0
    is_on: bool = False
    ready: int = 0  # replicas at that time, as far as anyone knows


@value_class(frozen=True, slots=True, kw_only=True)
class BurstState(Generic[StateT]):
    """What the wrapped policy remembers, what is known of arrivals, and a burst: its answer, and whether it is on."""

    inner: StateT
    known: Estimates = NOTHING_KNOWN
    short: Smoothed = NOTHING
    long: Smoothed = NOTHING
    held_value: float = 0.0
    is_on: bool = False
    interval_seconds: float = 5.0  # between the last two looks
    doubt: Doubt[Rise] | None = None  # what was known before far more arrived than was expected, until some is served


class Burst(Generic[StateT]):
    """The wrapped policy, but while a burst lasts its answer does not fall."""

    def __init__(self, inner: Policy[StateT]) -> None:
        self._inner = inner
        self.decides_replicas = inner.decides_replicas

    def problems(self, goals: Goals) -> tuple[tuple[str, str], ...]:
        """Those of the wrapped policy."""
        return self._inner.problems(goals)

    def start(self) -> BurstState[StateT]:
        """No burst."""
        return BurstState(inner=self._inner.start())

    def dump(self, state: BurstState[StateT]) -> dict[str, Any]:
        """As plain values, for a file; of a wrapped policy that can't do so, nothing is kept."""
        dump = getattr(self._inner, "dump", None)
        return {
            "inner": None if dump is None else dump(state.inner),
            "known": dumped(state.known),
            "short": asdict(state.short),
            "long": asdict(state.long),
            "held_value": state.held_value,
            "is_on": state.is_on,
            "interval_seconds": state.interval_seconds,
            "doubt": None if state.doubt is None else state.doubt.dumped(asdict(state.doubt.rest)),
        }

    def load(self, values: Mapping[str, Any], *, shift_seconds: float) -> BurstState[StateT]:
        """From `dump`; `shift_seconds` is added to every moment, where the clock started anew."""
        load = getattr(self._inner, "load", None)
        inner = self._inner.start()
        if load is not None and values["inner"] is not None:
            inner = load(values["inner"], shift_seconds=shift_seconds)
        doubt = loaded_doubt(values.get("doubt"), _rise)
        return BurstState(
            inner=inner,
            known=loaded(values["known"]).shifted(shift_seconds, turns_hours=True),
            short=Smoothed(**values["short"]).shifted(shift_seconds),
            long=Smoothed(**values["long"]).shifted(shift_seconds),
            held_value=float(values["held_value"]),
            is_on=bool(values["is_on"]),
            interval_seconds=float(values.get("interval_seconds", 5.0)),
            doubt=_shifted(doubt, shift_seconds, turns_hours=True),
        )

    def propose(self, situation: Situation, state: BurstState[StateT]) -> Proposal[BurstState[StateT]]:
        """The wrapped proposal, or the highest of the burst."""
        now_seconds = situation.now_seconds
        proposal = self._inner.propose(situation, state.inner)
        value = proposal.metric_value
        state = _stepped(situation, state)
        elapsed_seconds = 0.0 if state.short.at_seconds is None else now_seconds - state.short.at_seconds
        state, known, short, long = _watched(situation, state, value)
        begins, lasts = 0 < short.value >= RATIO * long.value, short.value > BACK_RATIO * long.value
        is_on = begins or (state.is_on and lasts)
        arrivals = _tells_arrivals(situation.sample)
        held_value = state.held_value
        # Below an activation threshold there is a metric, and no answer to hold.
        asked = value if proposal.active else 0.0
        if is_on:
            held_value = floor = max(held_value, asked)
        elif not arrivals:
            held_value = floor = 0.0
        else:
            held_value *= math.exp(-max(elapsed_seconds, 0.0) / LET_GO_SECONDS)
            held_value = 0.0 if held_value <= max(asked, proposal.target_value) else held_value
            goals = situation.goals
            # Slow quantities are from before this sample, as in slo: more waiting must never look like less to do.
            load = max(known.in_flight, known.short.value * state.known.service_seconds(goals))
            floor = min(held_value, math.floor(load / goals.concurrency) * proposal.target_value)
        after = BurstState(
            inner=proposal.state,
            known=known,
            short=short,
            long=long,
            held_value=held_value,
            is_on=is_on,
            interval_seconds=elapsed_seconds if elapsed_seconds > 0 else state.interval_seconds,
            doubt=state.doubt,
        )
        if floor <= asked:
            # What a window is fed next counts for all the time since: only of an idle queue is it known what that was.
            is_quiet = arrivals and held_value == known.waiting + known.in_flight == 0.0
            return _with_state(proposal, after, proposal.review_at_seconds if is_quiet else None)
        higher = max(floor, value)
        until = "held until these meet" if is_on else "it is over, and what works is let go slowly"
        step = Step(
            name="burst",
            before=value,
            after=higher,
            reason="{} of {:.3g} lately against {:.3g} over a longer time: " + until,
            numbers=("arrivals a second" if arrivals else "a metric", short.value, long.value),
        )
        held = replace(proposal, active=True, metric_value=higher, steps=(*proposal.steps, step))
        return _with_state(held, after, None)


def _tells_arrivals(sample: Sample) -> bool:
    return sample.waiting is not None or sample.in_system is not None or sample.arrived_total is not None


def _stepped(situation: Situation, state: BurstState[Any]) -> BurstState[Any]:
    """With its moments moved where the clock was put, as in core/estimate.py; the wrapped policy does so itself."""
    known, goals, now_seconds = state.known, situation.goals, situation.now_seconds
    stepped = (
        known.stepped_seconds(goals, now_seconds)
        if _tells_arrivals(situation.sample)
        else stepped_seconds(
            state.short.at_seconds, goals, now_seconds, usual_seconds=state.interval_seconds, is_watched=True
        )
    )
    if stepped == 0.0:
        return state
    known = known.shifted(stepped, turns_hours=stepped < 0.0)
    if stepped > 0.0:  # in how much time, nobody knows: counts tell nothing this once
        known = replace(known, at_seconds=None)
    return replace(
        state,
        known=known,
        short=state.short.shifted(stepped),
        long=state.long.shifted(stepped),
        doubt=_shifted(state.doubt, stepped, turns_hours=stepped < 0.0),
    )


def _rise(values: Mapping[str, Any]) -> Rise:
    """From the values of a file."""
    return Rise(
        Smoothed(**values["short"]),
        Smoothed(**values["long"]),
        float(values["held_value"]),
        bool(values["is_on"]),
        int(values["ready"]),
    )


def _shifted(doubt: Doubt[Rise] | None, seconds: float, *, turns_hours: bool) -> Doubt[Rise] | None:
    if doubt is None:
        return None
    rest = doubt.rest
    rest = Rise(rest.short.shifted(seconds), rest.long.shifted(seconds), rest.held_value, rest.is_on, rest.ready)
    return doubt.shifted(rest, seconds, turns_hours=turns_hours)


def _watched(
    situation: Situation, state: BurstState[StateT], value: float
) -> tuple[BurstState[StateT], Estimates, Smoothed, Smoothed]:
    """(the state before this sample, what is known of arrivals, short window, long window), with this sample.

    What was never served is no more in that state, and what is in doubt from now on is.
    """
    now_seconds, sample, known, goals = situation.now_seconds, situation.sample, state.known, situation.goals
    short, long = state.short, state.long
    if not _tells_arrivals(sample):
        short = short.fed(value, now_seconds, SHORT_SECONDS)
        return state, known, short, long.fed(value, now_seconds, LONG_SECONDS)
    before = rested(known, goals, now_seconds)
    view, last = situation.view, situation.last
    ready = view.ready if view is not None else 0 if last is None else last.desired_replicas
    known = updated(before, sample, goals, ready=ready, cold_starts_seconds=(), waking=False, now_seconds=now_seconds)
    doubt = state.doubt
    if doubt is not None and never_served(
        doubt, before, known, goals, ready=_served_by(doubt, before, goals, ready, view), in_flight=sample.in_flight
    ):
        then = doubt.rest
        undoubted = replace(
            state,
            known=undone(doubt, before, waiting=known.waiting, in_flight=sample.in_flight),
            short=Smoothed(then.short.value, then.short.weight, short.at_seconds),
            long=Smoothed(then.long.value, then.long.weight, long.at_seconds),
            held_value=then.held_value,
            is_on=then.is_on,
            doubt=None,
        )
        return _watched(situation, undoubted, value)
    doubt = doubted(doubt, before, known, Rise(short, long, state.held_value, state.is_on, ready))
    if doubt is not state.doubt:
        state = replace(state, doubt=doubt)
    if before.at_seconds is None or now_seconds <= before.at_seconds:
        return state, known, short, long
    if before.at_seconds != state.known.at_seconds:
        short = short.fed(0.0, before.at_seconds, SHORT_SECONDS)
        long = long.fed(0.0, before.at_seconds, LONG_SECONDS)
    rate = max(known.arrived - before.arrived, 0.0) / (now_seconds - before.at_seconds)
    return state, known, short.fed(rate, now_seconds, SHORT_SECONDS), long.fed(rate, now_seconds, LONG_SECONDS)


def _served_by(doubt: Doubt[Rise], before: Estimates, goals: Goals, ready: int, view: ReplicaView | None) -> int:
    """Replicas that may serve: what was asked for since the jump, and nobody sees, does not for one cold start.

    Of a jump at the very first sample nobody knows what was there before it.
    """
    jumped_at_seconds, before_seconds = doubt.known.at_seconds, before.at_seconds
    if view is not None or jumped_at_seconds is None or before_seconds is None:
        return ready
    if before_seconds - jumped_at_seconds < before.lead_seconds(goals):
        return min(ready, doubt.rest.ready)
    return ready


def _with_state(
    proposal: Proposal[Any], state: BurstState[StateT], review_at_seconds: float | None
) -> Proposal[BurstState[StateT]]:
    return Proposal(
        state=state,
        active=proposal.active,
        metric_value=proposal.metric_value,
        target_value=proposal.target_value,
        review_at_seconds=review_at_seconds,
        steps=proposal.steps,
    )


WRAP = Burst
