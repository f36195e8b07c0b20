"""`policy: slo`: the fewest GPU-seconds with which a share of requests starts in time.

Everything follows from one price: what one late request costs, in GPU-seconds. A replica is started when the
misses that it averts cost more than it does, and kept for as long as being without it would cost more than keeping
it. A closed loop moves the price until the promise is just kept: all it sees is the error budget, left or overspent.

1. Need. What waits, batch by batch, each by its deadline, and what arrives before a replica started later could
   help it, against what the replicas that serve and that start will have begun by then. When a replica will serve
   is a distribution, so more are started where deadlines are near a cold start away, and none where nothing
   started now can help. What is in time anyway starts nothing: where the wait is longer than a cold start, being
   lazy is free.
2. Hold. Every level (the k-th replica) remembers when it was last in use and how long its idle gaps were. A gap
   costs its length if the replica is kept, and a cold start with the misses it causes if not: each level is kept
   as long as its own history says (core/holds.py). With many replicas the others take over what one would have
   done, so the misses of being without one fall with the level. Zero is the same rule for level one.

It uses only the goals' wait, attainment and concurrency; service times, cold starts, rates and gaps are learned.
The price is in GPU-seconds, so what a GPU-second costs cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from scaler.core.decide import Proposal, Situation
from scaler.core.estimate import NOTHING_KNOWN, Estimates, dumped, loaded, updated
from scaler.core.holds import MIDDLES, NOTHING_HELD, Holds, held, in_use, reloaded
from scaler.core.model import Goals, ReplicaView, Sample, Step
from scaler.core.replicas import remaining_seconds
from scaler.core.warm_pool import warm_hint

HPA_WAIT_SECONDS = 7.5  # half a sync of 15 s: how long the HPA takes to see an answer, on average
HPA_SPREAD_SECONDS = 4.3  # ... and its standard deviation
BUDGET_FIRST = 6.0  # misses over the budget that double the base of the power
BUDGET_SHARE = 0.25  # ... or this share of what a day's requests may miss, where that is more
CROWD_SHARE = 0.5  # ... or this share of the requests that one surprise makes late, where that is more
PRICE_FIRST = 1.0
FLOOR = 1.2  # a replica that works through one whole wait always pays for itself, with this margin
BATCHES_LOOKED_AT = 8
LEAST_GAIN = 0.1  # at most ten replicas are started to have one of them early, whatever the price
SERVICE_VARIATION = 0.5  # squared coefficient of variation of service times, for how far capacity may be off

_NORMAL = NormalDist()
ROOT_THREE_OVER_PI = math.sqrt(3.0) / math.pi  # a logistic distribution's scale over its standard deviation


@dataclass(frozen=True, slots=True)
class SloState:
    """What is learned, and when replicas were asked for that may not serve yet, where nobody sees them."""

    estimates: Estimates = NOTHING_KNOWN
    holds: Holds = NOTHING_HELD
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

    def dump(self, state: SloState) -> dict[str, Any]:
        """As plain values, for a file."""
        return {
            "estimates": dumped(state.estimates),
            "holds": asdict(state.holds),
            "asked_at_seconds": state.asked_at_seconds,
        }

    def load(self, values: Mapping[str, Any], *, shift_seconds: float) -> SloState:
        """From `dump`; `shift_seconds` is added to every moment, where the clock started anew."""
        return SloState(
            loaded(values["estimates"], shift_seconds=shift_seconds),
            reloaded(values["holds"], shift_seconds),
            tuple(at_seconds + shift_seconds for at_seconds in values["asked_at_seconds"]),
        )

    def propose(self, situation: Situation, state: SloState) -> Proposal[SloState]:
        """What deadlines need, and what is worth keeping."""
        now_seconds, goals = situation.now_seconds, situation.goals
        last, seen = situation.last, situation.view
        asked = 0 if last is None else last.desired_replicas
        before = state.estimates
        start = _starting(before, goals)
        wait_seconds = goals.wait_seconds or 0.0
        asked_at_seconds = state.asked_at_seconds
        if seen is None:
            view, asked_at_seconds = _believed(
                asked_at_seconds, asked, before, situation.sample, start=start, now_seconds=now_seconds
            )
        else:
            view = seen
        # Slow quantities are taken from before this sample: more waiting must never look like less to do.
        in_time = start.slots + start.speed * wait_seconds  # requests that one replica begins in time
        price, least_debt = _price(before, goals, start, FLOOR * start.lead_seconds / in_time, now_seconds)
        known = updated(
            before,
            situation.sample,
            goals,
            ready=view.ready,
            cold_starts_seconds=view.cold_starts_seconds,
            waking=seen is None and asked > 0 and (view.ready == 0 or before.waking_since_seconds is not None),
            least_debt=least_debt,
            now_seconds=now_seconds,
        )
        # What the price pays for being wrong: a newsvendor's quantile.
        wrong = start.lead_seconds / (price * in_time)
        margin = _NORMAL.inv_cdf(1.0 - min(max(wrong, 1e-4), 0.9)) * math.sqrt(SERVICE_VARIATION)
        need, why, numbers = _need(known, view, start, price, margin=margin, wait_seconds=wait_seconds, now_seconds=now_seconds)
        there = view.alive
        using = 0 if known.arrived == before.arrived else min(_asked_for(known, start, wait_seconds, margin), goals.max_replicas)
        on_demand = start.begun(wait_seconds, start.lead_seconds + HPA_WAIT_SECONDS)
        # Many at once may avert on demand what one that is kept would; with what each miss costs, less relied upon.
        averted = min(price, start.lead_seconds / max(on_demand, 1e-9))
        missing = in_time * math.sqrt(price * averted)
        holds = in_use(
            state.holds,
            using,
            letting_go=_letting_go(before.long.value / start.speed, start, wait_seconds, missing),
            shortest_seconds=2.0 * before.interval_seconds,
            now_seconds=now_seconds,
        )
        kept, release_at_seconds = held(holds, now_seconds, kept_after_last_seconds=goals.cooldown_seconds or 0.0)
        desired = max(need, kept, there if view.starting else 0)  # what is loading is not killed
        warm_steps: tuple[Step, ...] = ()
        if goals.warm == "floor":
            hint = warm_hint(known, goals, ready=need, now_seconds=now_seconds)
            desired = max(desired, need + hint.replicas)
            release_at_seconds = min(release_at_seconds, now_seconds + hint.valid_seconds)
            warm_steps = (hint.step,)
        desired = min(desired, goals.max_replicas)
        steps = (
            Step(name="need", before=there, after=need, reason=why, numbers=numbers),
            Step(
                name="hold",
                before=kept,
                after=desired,
                reason="a late request is worth {:.0f} GPU-seconds; {} kept; {:.3f} in time of {:.0f} requests; "
                "service {:.1f} s, cold start {:.0f} s from {:.0f} seen",
                numbers=(
                    price,
                    kept,
                    1.0 - before.missed / before.counted if before.counted else 1.0,
                    before.counted,
                    1.0 / start.speed * start.slots,
                    start.lead_seconds,
                    before.cold_starts,
                ),
            ),
        )
        idle = known.waiting + known.in_flight == 0.0
        return Proposal(
            state=SloState(
                known,
                holds,
                _asked(asked_at_seconds, asked, desired, start, now_seconds) if seen is None else (),
            ),
            active=desired > 0,
            metric_value=float(desired),
            target_value=1.0,
            review_at_seconds=release_at_seconds if idle and not view.starting else None,
            steps=steps + warm_steps,
        )


@dataclass(frozen=True, slots=True)
class _Start:
    """What one replica does that is not there yet; when it serves is normally distributed."""

    lead_seconds: float
    deviation_seconds: float
    scale_seconds: float
    slots: int
    speed: float  # requests that it begins a second, once all its slots are taken

    def begun(self, at: float, ready_in: float) -> float:
        """Requests that it will have begun by `at`, expected, if it is expected to serve in `ready_in` seconds."""
        if at <= 0:
            return 0.0
        scale = min(self.scale_seconds, ROOT_THREE_OVER_PI * ready_in) + 0.01
        score = (at - ready_in) / scale
        if score > 20.0:
            return self.slots + self.speed * (at - ready_in)
        if score < -20.0:
            return 0.0
        odds = math.exp(score)
        return self.slots * odds / (1.0 + odds) + self.speed * scale * math.log1p(odds)


def _starting(known: Estimates, goals: Goals) -> _Start:
    lead_seconds, deviation_seconds = known.cold_start(goals)
    return _Start(
        lead_seconds,
        math.hypot(deviation_seconds, HPA_SPREAD_SECONDS),
        ROOT_THREE_OVER_PI * math.hypot(deviation_seconds, HPA_SPREAD_SECONDS),
        goals.concurrency,
        goals.concurrency / known.service_seconds(goals),
    )


def _price(known: Estimates, goals: Goals, start: _Start, floor: float, now_seconds: float) -> tuple[float, float]:
    """(what one late request costs in GPU-seconds, the debt below which that is at its floor)."""
    share = goals.attainment
    debt = known.debt + known.overdue(now_seconds, goals.wait_seconds or 0.0)
    unit = max(BUDGET_FIRST, CROWD_SHARE * known.crowd, BUDGET_SHARE * (1.0 - share) * known.counted)
    first = PRICE_FIRST * start.slots / start.speed * share / (1.0 - share)
    return max(first * math.exp(min(debt / unit, 20.0)), floor), unit * min(math.log(floor / first), 0.0)


def _asked_for(known: Estimates, start: _Start, wait_seconds: float, margin: float) -> int:
    """The replicas that would have been enough for what arrived, had they always been there.

    Of every span of time that ends now: what arrived in it must begin within it and the wait.
    """
    most, arrived = 0.0, known.arrived
    last_at_seconds = known.recent[-1][1] if known.recent else 0.0
    for before, at_seconds in known.recent:
        requests = arrived - before
        requests += margin * math.sqrt(requests)
        begun = start.slots + start.speed * (last_at_seconds - at_seconds + wait_seconds)
        most = max(most, requests / begun)
    return math.ceil(most - 1e-9)


def _letting_go(load: float, start: _Start, wait_seconds: float, missing: float) -> tuple[float, ...]:
    """What it costs, for each group of levels, to be without a replica when its level is used again.

    A cold start, less what is not paid for while nothing needs to start yet (of a level that is in use most of the
    time only its idle share is saved), and what it makes late.
    """
    costs = []
    lead_seconds = start.lead_seconds + HPA_WAIT_SECONDS
    late = 1.0 / (1.0 + math.exp(min((wait_seconds - lead_seconds) / start.scale_seconds, 50.0)))
    slack_seconds = max(wait_seconds - lead_seconds, 0.0)
    for level in MIDDLES:
        idle = 1.0 - min(max(load - level + 1.0, 0.0), 1.0)
        costs.append(max(start.lead_seconds - idle * slack_seconds, 0.0) + late * missing)
    return tuple(costs)


def _need(
    known: Estimates,
    view: ReplicaView,
    start: _Start,
    price: float,
    *,
    margin: float,
    wait_seconds: float,
    now_seconds: float,
) -> tuple[int, str, tuple[float, ...]]:
    """The replicas that deadlines ask for now."""
    waiting, in_flight = known.waiting, known.in_flight
    if waiting + in_flight == 0:
        return 0, "nothing waits", ()
    slots, speed, lead_seconds = start.slots, start.speed, start.lead_seconds
    busy = max(math.ceil(in_flight / slots - 1e-9), 1)
    rate = max(known.short.value, 0.5 * (known.short.value + known.long.value))
    pace = view.ready * speed
    free = max(view.ready * slots - in_flight, 0.0)
    readiness = [
        remaining_seconds(now_seconds - at, lead_seconds, lead_seconds + 1.65 * start.deviation_seconds)
        for at in view.starting_at_seconds
    ]

    def lacking(requests: float, due_seconds: float, margin: float) -> float:
        """How many of the first `requests` won't have begun in `due_seconds`, with what is there."""
        begun = free + pace * due_seconds
        if begun < requests:
            for ready_in in readiness:
                begun += start.begun(due_seconds, ready_in)
        return requests - begun + (margin * math.sqrt(begun) if margin else 0.0)

    new_seconds = lead_seconds + HPA_WAIT_SECONDS
    extra, most = 0, 0.0
    started = known.started
    # The newest batch and about seven older ones: deadlines change little from one sample to the next.
    for until, at_seconds in known.batches[:: -(len(known.batches) // BATCHES_LOOKED_AT + 1)]:
        due_seconds = at_seconds + wait_seconds - now_seconds
        gain = start.begun(due_seconds, new_seconds)
        if gain * price < lead_seconds:
            continue
        late = lacking(until - started, due_seconds, margin)
        if late > 0:
            most = max(most, late)
            extra = max(extra, _worth(late, gain, lead_seconds, price))
    # What arrives before a replica that is started later could help it.
    blind_seconds = min(2.0 * max(new_seconds + start.deviation_seconds - wait_seconds, 0.0), new_seconds)
    for ahead_seconds, due_seconds in (
        (0.5 * blind_seconds, 0.5 * blind_seconds + wait_seconds),
        (blind_seconds, max(blind_seconds, new_seconds) + wait_seconds),  # and what is late, by as long again
    ):
        late = lacking(waiting + rate * ahead_seconds, due_seconds, 0.0)
        if late > 0:
            most = max(most, late)
            extra = max(extra, _worth(late, start.begun(due_seconds, new_seconds), lead_seconds, price))
    reason = (
        "{:.0f} wait, {:.0f} in flight, {:.2f} a second arrive; "
        "{:.1f} can't begin in time with {} ready and {} starting"
    )
    numbers = (waiting, in_flight, rate, most, view.ready, view.starting)
    return (view.alive + extra if extra else busy), reason, numbers


def _worth(late: float, gain: float, lead_seconds: float, price: float) -> int:
    """How many replicas, each of which starts `gain` of the `late` requests in time, avert more than they cost."""
    if gain < LEAST_GAIN or gain * price < lead_seconds:
        return 0
    whole = int(late / gain)
    return whole + ((late - whole * gain) * price >= lead_seconds)


def _believed(
    asked_at_seconds: tuple[float, ...],
    asked: int,
    before: Estimates,
    sample: Sample,
    *,
    start: _Start,
    now_seconds: float,
) -> tuple[ReplicaView, tuple[float, ...]]:
    """(replicas as they should be, when those were asked for that don't serve yet), where nobody sees them.

    What was asked for a cold start ago serves by now. While something waits every replica that serves is busy:
    then they are seen in what is in flight, and one more that is busy tells how long its cold start took.
    """
    cold_starts: tuple[float, ...] = ()
    if sample.waiting and sample.in_flight is not None:
        ready = min(math.ceil(sample.in_flight / start.slots - 1e-9), asked)
        if before.waiting > 0:
            more = max(ready - math.ceil(before.in_flight / start.slots - 1e-9), 0)
            came, asked_at_seconds = asked_at_seconds[:more], asked_at_seconds[more:]
            cold_starts = tuple([max(now_seconds - at - 0.5 * before.interval_seconds, 1.0) for at in came])
        starting = asked_at_seconds[max(len(asked_at_seconds) - (asked - ready), 0) :]
        unaccounted = asked - ready - len(starting)
        if unaccounted > 0:
            starting = (*[now_seconds - start.lead_seconds] * unaccounted, *starting)
    else:
        serving_after_seconds = start.lead_seconds + HPA_WAIT_SECONDS + 0.5 * start.deviation_seconds
        starting = tuple([at for at in asked_at_seconds if now_seconds - at < serving_after_seconds])
        starting = starting[max(len(starting) - asked, 0) :]
        ready = asked - len(starting)
    view = ReplicaView(
        at_seconds=now_seconds, ready=ready, starting_at_seconds=starting, cold_starts_seconds=cold_starts
    )
    return view, asked_at_seconds


def _asked(
    asked_at_seconds: tuple[float, ...], asked: int, desired: int, start: _Start, now_seconds: float
) -> tuple[float, ...]:
    kept = [at for at in asked_at_seconds if now_seconds - at < 5 * start.lead_seconds]
    if desired > asked:
        kept.extend([now_seconds] * (desired - asked))
    elif desired < asked:
        del kept[max(len(kept) - (asked - desired), 0) :]  # the newest go first, as the ReplicaSet takes them
    return tuple(kept)


POLICY = Slo()
