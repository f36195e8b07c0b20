"""Burst: takes a rise at face value and holds it until it is over. `policy: steps+burst`, `target+burst`, ...

It wraps another policy and looks at nothing but its metric: a short mean against a long one, as Knative's panic
mode does (knative.dev, `pkg/autoscaler/scaling/autoscaler.go`). While the short mean is at least twice the
long one, and for one long window after that, the answer does not fall. It never raises the answer above what
the wrapped policy said at some moment of the burst.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic

from scaler.core.decide import Policy, Proposal, Situation, StateT
from scaler.core.model import Goals, Step
from scaler.core.window import NOTHING, Smoothed

SHORT_SECONDS = 15.0  # one sync of the HPA: what it would react to
LONG_SECONDS = 120.0  # a burst that lasts longer is the new normal
RATIO = 2.0  # Knative's panic threshold, 200 %


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstState(Generic[StateT]):
    """What the wrapped policy remembers, the two means, and the burst that is on, if one is."""

    inner: StateT
    short: Smoothed = NOTHING
    long: Smoothed = NOTHING
    held_value: float = 0.0
    until_seconds: float | None = None


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
            "short": asdict(state.short),
            "long": asdict(state.long),
            "held_value": state.held_value,
            "until_seconds": state.until_seconds,
        }

    def load(self, values: Mapping[str, Any], *, shift_seconds: float) -> BurstState[StateT]:
        """From `dump`; `shift_seconds` is added to every moment, where the clock started anew."""
        load = getattr(self._inner, "load", None)
        inner = self._inner.start()
        if load is not None and values["inner"] is not None:
            inner = load(values["inner"], shift_seconds=shift_seconds)
        until_seconds = values["until_seconds"]
        return BurstState(
            inner=inner,
            short=_moved(values["short"], shift_seconds),
            long=_moved(values["long"], shift_seconds),
            held_value=float(values["held_value"]),
            until_seconds=None if until_seconds is None else until_seconds + shift_seconds,
        )

    def propose(self, situation: Situation, state: BurstState[StateT]) -> Proposal[BurstState[StateT]]:
        """The wrapped proposal, or the highest of the burst."""
        now_seconds = situation.now_seconds
        proposal = self._inner.propose(situation, state.inner)
        value = proposal.metric_value
        short = state.short.fed(value, now_seconds, SHORT_SECONDS)
        long = state.long.fed(value, now_seconds, LONG_SECONDS)
        held_value, until_seconds = state.held_value, state.until_seconds
        if until_seconds is not None and now_seconds >= until_seconds:
            held_value, until_seconds = 0.0, None
        if value > 0 and (value >= RATIO * long.value or short.value >= RATIO * long.value):
            until_seconds = now_seconds + LONG_SECONDS
        if until_seconds is not None:
            held_value = max(held_value, value)
        after = BurstState(
            inner=proposal.state, short=short, long=long, held_value=held_value, until_seconds=until_seconds
        )
        if until_seconds is None or held_value <= value:
            return _with_state(proposal, after)
        step = Step(
            name="burst",
            before=value,
            after=held_value,
            reason="short mean {:.2f} against long {:.2f}: held for {:.0f} s more",
            numbers=(short.value, long.value, until_seconds - now_seconds),
        )
        held = replace(proposal, active=True, metric_value=held_value, steps=(*proposal.steps, step))
        return replace(_with_state(held, after), review_at_seconds=until_seconds)


def _moved(values: Mapping[str, Any], shift_seconds: float) -> Smoothed:
    at_seconds = values["at_seconds"]
    return Smoothed(
        float(values["value"]), float(values["weight"]), None if at_seconds is None else at_seconds + shift_seconds
    )


def _with_state(proposal: Proposal[Any], state: BurstState[StateT]) -> Proposal[BurstState[StateT]]:
    return Proposal(
        state=state,
        active=proposal.active,
        metric_value=proposal.metric_value,
        target_value=proposal.target_value,
        review_at_seconds=proposal.review_at_seconds,
        steps=proposal.steps,
    )


WRAP = Burst
