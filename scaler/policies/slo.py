"""`policy: slo`: the fewest GPU-seconds with which a share of requests starts in time.

Everything follows from one price: what one late request costs, in GPU-seconds. A replica is started when the
misses that it averts cost more than it does, and kept for as long as letting it go would cost more than keeping
it. The price starts from the promise (an attainment of 0.95 says that a miss weighs 19 requests in time) and a
closed loop moves it until the promise is just kept: the error budget that is left, or overspent, is all it sees.

1. Need. The deadlines of what waits and of what arrives within one cold start, against what the replicas that
   serve, that start, and that could be started now will have begun by then; uncertainty is bought by the price
   (a newsvendor's quantile). Where the wait is shorter than a cold start, nothing started now helps what waits:
   then the steady load and its fluctuation are staffed for.
2. Hold. Every level (the k-th replica) remembers when it was last in use and how long its idle gaps were. A gap
   costs its length if the replica is kept, and one cold start plus the misses it causes if not: each level is
   kept as long as its own history says (ski rental; at first the break-even itself). Zero is level one.

It sees only the goals' wait, attainment and concurrency; service times, cold starts, rates and gaps are learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist

from scaler.core.decide import Proposal, Situation
from scaler.core.estimate import Estimates, updated
from scaler.core.model import Goals, ReplicaView, Step
from scaler.core.replicas import remaining_seconds
from scaler.core.rises import NOTHING_SEEN, Rises, headroom, watched

HPA_WAIT_SECONDS = 7.5  # half a sync: how long the HPA takes to see an answer, on average
HPA_SPREAD_SECONDS = 4.3  # ... and its standard deviation
PRICE_SPREAD = (-6.0, 4.0)  # natural logarithms of how far the loop may move the price
BUDGET_FIRST = 6.0  # misses over the budget that move the price by e
BUDGET_SHARE = 0.25  # ... or this share of what a day's requests may miss, where that is more

_NORMAL = NormalDist()
_ROOT_HALF = math.sqrt(0.5)
_NORMAL_TOP = 1.0 / math.sqrt(2.0 * math.pi)


@dataclass(frozen=True, slots=True)
class SloState:
    """What is learned, and when replicas were asked for that may not serve yet, where nobody sees them."""

    estimates: Estimates = field(default_factory=Estimates)
    rises: Rises = NOTHING_SEEN
    asked_at_seconds: tuple[float, ...] = ()


class Slo:
    """See the module."""

    decides_replicas = True

    def problems(self, goals: Goals) -> tuple[tuple[str, str], ...]:
        """It needs the wait."""
        found = []
        if goals.wait_seconds is None:
            found.append(("waitSeconds", "required with policy slo: the seconds within which requests should start"))
        if not 0.0 < goals.attainment < 1.0:
            found.append(("attainment", "expected a share above 0 and below 1"))
        return tuple(found)

    def start(self) -> SloState:
        """Nothing is known."""
        return SloState()

    def propose(self, situation: Situation, state: SloState) -> Proposal[SloState]:
        """What deadlines need, and the headroom that pays for itself."""
        now_seconds, goals, sample = situation.now_seconds, situation.goals, situation.sample
        last = situation.last
        asked = 0 if last is None else last.desired_replicas if last.active else goals.min_replicas
        before = state.estimates
        seen = situation.view
        view = _believed(state, asked, before, goals, now_seconds) if seen is None else seen
        known = updated(
            before,
            sample,
            goals,
            ready=view.ready,
            cold_starts_seconds=view.cold_starts_seconds,
            waking=seen is None and view.ready == 0 and asked > 0,
            now_seconds=now_seconds,
        )
        wait_seconds = goals.wait_seconds or 0.0
        service_seconds = before.service_seconds(goals)
        lead_seconds, deviation_seconds = before.cold_start(goals)
        price = _price(before, goals, service_seconds, wait_seconds, now_seconds)
        slots = goals.concurrency
        waiting, in_flight = known.waiting, known.in_flight
        gain = slots * (1.0 + wait_seconds / service_seconds)  # requests that one replica starts in time
        busy = math.ceil(in_flight / slots - 1e-9)
        demand = in_flight / slots + waiting / gain
        level = min(math.ceil(demand - 1e-9), goals.max_replicas)
        rises = watched(
            state.rises, level, arrived=known.arrived, now_seconds=now_seconds, horizon_seconds=lead_seconds
        )
        start = _Start(lead_seconds, math.hypot(deviation_seconds, HPA_SPREAD_SECONDS), slots, slots / service_seconds)
        # A rise that no replica is ready for: its requests are late, or many replicas at once avert that on demand.
        on_demand = start.begun(wait_seconds, lead_seconds + HPA_WAIT_SECONDS)
        missing = min(gain, max(rises.arrivals_per_level, 1.0)) * min(price, lead_seconds / max(on_demand, 1e-9))
        keep, ahead = headroom(
            rises, level, now_seconds=now_seconds,
            keep_chance=lead_seconds / (1.5 * lead_seconds + missing),
            start_chance=2.0 * lead_seconds / max(missing, 1e-9),
        )
        need, why, numbers = _need(
            known, goals, view, start, now_seconds=now_seconds, service_seconds=service_seconds, price=price,
        )
        using = max(need, busy)
        there = view.alive
        desired = max(using, level + ahead if ahead else 0, min(there, max(level, using) + keep))
        if view.starting and desired < there:
            desired = min(there, max(desired, there))  # what is loading is not killed
        desired = min(desired, goals.max_replicas)
        steps = (
            Step(name="need", before=there, after=need, reason=why, numbers=numbers),
            Step(
                name="headroom",
                before=need,
                after=desired,
                reason="demand for {}: {} more are kept and {} started ahead, at {:.0f} GPU-seconds a miss",
                numbers=(level, keep, ahead, price),
            ),
        )
        idle = waiting + in_flight == 0
        return Proposal(
            state=SloState(
                known, rises,
                _asked(state, asked, desired, lead_seconds, now_seconds) if seen is None else (),
            ),
            active=desired > 0,
            metric_value=float(desired),
            target_value=1.0,
            review_at_seconds=_review(rises, now_seconds, desired) if idle else None,
            steps=steps,
        )


def _review(rises: Rises, now_seconds: float, desired: int) -> float:
    if desired == 0:
        return math.inf
    return rises.next_bin_at(now_seconds)


@dataclass(frozen=True, slots=True)
class _Start:
    """What one replica does that is not there yet: when it serves is normally distributed."""

    lead_seconds: float
    deviation_seconds: float
    slots: int
    speed: float  # requests that it begins a second, once all slots are taken

    def begun(self, at: float, ready_in: float) -> float:
        """Requests that it will have begun by `at`, expected, if it is expected to serve in `ready_in` seconds."""
        if at <= 0:
            return 0.0
        deviation = min(self.deviation_seconds, ready_in) + 0.01
        score = (at - ready_in) / deviation
        if score > 4.0:
            return self.slots + self.speed * (at - ready_in)
        if score < -4.0:
            return 0.0
        chance = 0.5 * (1.0 + math.erf(score * _ROOT_HALF))
        return self.slots * chance + self.speed * deviation * (
            score * chance + _NORMAL_TOP * math.exp(-0.5 * score * score)
        )


def _price(known: Estimates, goals: Goals, service_seconds: float, wait_seconds: float, now_seconds: float) -> float:
    """What one late request costs, in GPU-seconds."""
    share = goals.attainment
    debt = known.debt + known.overdue(now_seconds, wait_seconds)
    unit = max(BUDGET_FIRST, BUDGET_SHARE * (1.0 - share) * known.counted)
    push = min(max(debt / unit, PRICE_SPREAD[0]), PRICE_SPREAD[1])
    return service_seconds * share / (1.0 - share) * math.exp(push)


def _need(
    known: Estimates,
    goals: Goals,
    view: ReplicaView,
    start: _Start,
    *,
    now_seconds: float,
    service_seconds: float,
    price: float,
) -> tuple[int, str, tuple[float, ...]]:
    """The replicas that deadlines ask for now."""
    slots = goals.concurrency
    wait_seconds = goals.wait_seconds or 0.0
    waiting, in_flight = known.waiting, known.in_flight
    busy = math.ceil(in_flight / slots - 1e-9)
    if waiting + in_flight == 0:
        return 0, "nothing waits", ()
    speed = slots / service_seconds
    rate = max(known.short.value, 0.5 * (known.short.value + known.long.value))
    ready = view.ready
    free = max(ready * slots - in_flight, 0.0)
    starts = [
        remaining_seconds(now_seconds - at, start.lead_seconds, start.lead_seconds + 1.65 * start.deviation_seconds)
        for at in view.starting_at_seconds
    ]

    def begun(at: float) -> float:
        """Requests that what is there will have begun `at` seconds from now, expected."""
        total = free + ready * speed * at
        for ready_in in starts:
            total += start.begun(at, ready_in)
        return total

    # What the price pays for being wrong: a newsvendor's quantile.
    quantile = 1.0 - min(max(start.lead_seconds / (price * slots * (1.0 + wait_seconds / service_seconds)), 1e-4), 0.9)
    safety = _NORMAL.inv_cdf(quantile)
    new_seconds = start.lead_seconds + HPA_WAIT_SECONDS
    extra = 0
    most_lacking = 0.0
    before = known.started
    for until, at_seconds in known.batches:
        due_seconds = at_seconds + wait_seconds - now_seconds
        gain = start.begun(due_seconds, new_seconds)
        if gain * price < start.lead_seconds:
            continue
        done = begun(due_seconds)
        lacking = until - before - done + safety * math.sqrt(0.5 * done)
        if lacking > 0:
            most_lacking = max(most_lacking, lacking)
            extra = max(extra, _worth(lacking, gain, start.lead_seconds, price))
    # What arrives before a replica that is started later could help it; and what is late, by another wait.
    for share in (0.5, 1.0):
        blind_seconds = share * min(2.0 * max(new_seconds + start.deviation_seconds - wait_seconds, 0.0), new_seconds)
        due_seconds = max(blind_seconds, new_seconds) + wait_seconds if share == 1.0 else blind_seconds + wait_seconds
        lacking = waiting + rate * blind_seconds - begun(due_seconds)
        if lacking > 0:
            most_lacking = max(most_lacking, lacking)
            extra = max(extra, _worth(lacking, start.begun(due_seconds, new_seconds), start.lead_seconds, price))
    reason = "{:.0f} wait and {:.2f} a second arrive; {:.1f} more can't begin in time"
    numbers = (waiting, rate, most_lacking)
    if extra > 0:
        return view.alive + extra, reason, numbers
    return max(busy, 1), reason, numbers


def _worth(lacking: float, gain: float, lead_seconds: float, price: float) -> int:
    """How many replicas, each of which starts `gain` of the `lacking` requests in time, avert more than they cost."""
    whole = int(lacking / gain)
    if gain * price < lead_seconds:
        return 0
    return whole + ((lacking - whole * gain) * price >= lead_seconds)


def _believed(state: SloState, asked: int, known: Estimates, goals: Goals, now_seconds: float) -> ReplicaView:
    """Replicas as they should be by now, where nobody sees them: what was asked for, a cold start ago."""
    mean_seconds, deviation_seconds = known.cold_start(goals)
    ready_after = mean_seconds + 0.5 * deviation_seconds
    starting = tuple([at for at in state.asked_at_seconds if now_seconds - at < ready_after][-asked:] if asked else ())
    return ReplicaView(at_seconds=now_seconds, ready=max(asked - len(starting), 0), starting_at_seconds=starting)


def _asked(
    state: SloState, asked: int, desired: int, lead_seconds: float, now_seconds: float
) -> tuple[float, ...]:
    kept = [at for at in state.asked_at_seconds if now_seconds - at < 3 * lead_seconds]
    if desired > asked:
        kept.extend([now_seconds] * (desired - asked))
    elif desired < asked:
        kept = kept[: max(len(kept) - (asked - desired), 0)]
    return tuple(kept)


POLICY = Slo()
