"""`policy: slo`: the fewest GPU-seconds with which a share of requests starts in time.

Everything follows from one price: what one late request costs, in GPU-seconds. A replica is started when the
misses that it averts cost more than it does, and kept for as long as being without it would cost more than keeping
it. A closed loop moves the price until the promise is just kept: all it sees is the error budget, left or overspent.

1. Price. At first that at which a replica held, or where there is time for it started, for a request makes the promise
   just worth keeping (the newsvendor's critical ratio); e times as much for each few misses, or each crowd of them,
   over the budget. It starts as if a few had been made: careful first, lazy once it has seen enough.
2. Need. What waits, batch by batch, each by its deadline, and what arrives before a replica started later could
   help it, against what the replicas that serve and that start will have begun by then. When a replica will serve
   is a distribution, so more are started where deadlines are near a cold start away, up to one for each request
   and a crowd more, and none where nothing started now can help. What is in time anyway starts nothing: where the
   wait is longer than a cold start, being lazy is free.
3. Hold. The level of demand is how many replicas would have been enough for what arrived, had they always been there
   (not how many there are requests: late replicas make queues that no early one would have). Every level remembers
   when it was last asked for and how long the gaps in between were. A gap costs its length if the replica is kept,
   and a cold start with the misses it causes if not: each level is kept as long as its own history says
   (core/holds.py). Zero is the same rule for level one.

It uses only the goals' wait, attainment and concurrency; service times, cold starts, rates and gaps are learned.
The price is in GPU-seconds, so what a GPU-second costs cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from statistics import NormalDist
from typing import Any

from scaler.core.cold_starts import P95_DEVIATIONS
from scaler.core.decide import Proposal, Situation
from scaler.core.doubts import Doubt, doubted, loaded_doubt, never_served, undone
from scaler.core.estimate import NOTHING_KNOWN, Estimates, dumped, loaded, rested, updated
from scaler.core.holds import MIDDLES, NOTHING_HELD, Holds, held, highest_of, in_use, reloaded, timeouts_of
from scaler.core.model import Decision, Goals, ReplicaView, Sample, Step
from scaler.core.replicas import most_useful, remaining_seconds
from scaler.core.surprises import Surprises
from scaler.core.values import value_class
from scaler.core.warm_pool import warm_hint

HPA_WAIT_SECONDS = 7.5  # half a sync of 15 s: how long the HPA takes to see an answer, on average
KEDA_COOLDOWN_SECONDS = 300.0  # what is let go may stay for so long unless cooldownSeconds tells (the HPA's 300, too)
HPA_SPREAD_SECONDS = 4.3  # ... and its standard deviation
BUDGET_FIRST = 3.0  # misses over the budget that make the price e times as high
BUDGET_SHARE = 0.2  # ... or this share of what a day's requests may miss, where that is more
BUDGET_CROWD = 0.3  # ... or this share of a crowd: one that comes as a surprise is late as a whole, and one surprise
MOST_OVER = 100.0  # times what a kept slot is first worth: a surprise must not make the price astronomic
FLOOR = 1.2  # a replica that works through one whole wait always pays for itself, with this margin
BATCHES_LOOKED_AT = (1, 2, 4, 8, 16, 32, 64)  # how far back from the newest
JUST_CAME = 0.5  # requests: a rate that forgets gradually shows so many more, just after one, than a window has
LEAST_GAIN = 0.1  # requests a replica must be expected to begin in time to be started at all, whatever the price
SERVICE_VARIATION = 0.5  # squared coefficient of variation of service times, for how far capacity may be off

_WHY = "{:.0f} wait, {:.0f} in flight, {:.2f} a second arrive; {:.1f} can't begin in time with {} ready and {} starting"
_NORMAL = NormalDist()
_SCALE = math.sqrt(3.0) / math.pi  # a logistic distribution's scale over its standard deviation
_SERVICE_DEVIATION = math.sqrt(SERVICE_VARIATION)


@value_class(frozen=True, slots=True)
class SloState:
    """What is learned, and when replicas were asked for that may not serve yet, where nobody sees them."""

    estimates: Estimates = NOTHING_KNOWN
    holds: Holds = NOTHING_HELD
    asked_at_seconds: tuple[float, ...] = ()
    unsure_until_seconds: float | None = None  # what is asked for before may be there still: no cold start is learned
    woken: bool = False  # from zero, none was there, and nothing is picked up yet
    doubt: Doubt[Holds] | None = None  # what was known before far more arrived than was expected, until some is served
    floors: tuple[tuple[int, float], ...] = ()  # (replicas, until when) of a warm floor; the most end first


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
            "unsure_until_seconds": state.unsure_until_seconds,
            "woken": state.woken,
            "doubt": None if state.doubt is None else state.doubt.dumped(asdict(state.doubt.rest)),
            "floors": state.floors,
        }

    def load(self, values: Mapping[str, Any], *, shift_seconds: float) -> SloState:
        """From `dump`; `shift_seconds` is added to every moment, where the clock started anew."""
        state = SloState(
            loaded(values["estimates"]),
            reloaded(values["holds"]),
            tuple(values["asked_at_seconds"]),
            values.get("unsure_until_seconds"),
            bool(values.get("woken")),
            loaded_doubt(values.get("doubt"), reloaded),
            tuple([(int(replicas), float(until)) for replicas, until in values.get("floors", ())]),
        )
        return _shifted(state, shift_seconds, turns_hours=True)

    def rebased(self, state: SloState) -> SloState:
        """For samples of other queues than before: what these hold did not arrive just now. What is learned stays."""
        return replace(state, estimates=replace(state.estimates, at_seconds=None))

    def believed(
        self, state: SloState, last: Decision, sample: Sample, goals: Goals, *, now_seconds: float
    ) -> ReplicaView:
        """What the last decision has led to by now, where nobody sees replicas."""
        known = state.estimates
        whole = replace(  # of all triggers that are sized together
            sample,
            waiting=None if sample.waiting is None else known.waiting,
            in_flight=None if sample.in_flight is None else known.in_flight,
            in_system=None if sample.in_system is None else known.waiting + known.in_flight,
        )
        start = _starting(known, goals)
        return _believed(state, last.desired_replicas, whole, start=start, now_seconds=now_seconds)[0]

    def propose(self, situation: Situation, state: SloState) -> Proposal[SloState]:
        """What deadlines need, and what is worth keeping."""
        now_seconds, goals, sample = situation.now_seconds, situation.goals, situation.sample
        last, view = situation.last, situation.view
        stepped = state.estimates.stepped_seconds(goals, now_seconds)
        if stepped != 0.0:
            state = _shifted(state, stepped, turns_hours=stepped < 0.0)
            if stepped > 0.0:  # in how much time, nobody knows: counts and cold starts tell nothing this once
                state = replace(self.rebased(state), unsure_until_seconds=now_seconds)
        before = rested(state.estimates, goals, now_seconds)
        asked = _there_at_first(sample, goals) if last is None else last.desired_replicas
        # Slow quantities are taken from before this sample: more waiting must never look like less to do.
        start = _starting(before, goals)
        price = _price(before, goals, start, now_seconds)
        asked_at_seconds = state.asked_at_seconds
        blind = view is None
        if view is None:
            view, asked_at_seconds = _believed(state, asked, sample, start=start, now_seconds=now_seconds)
        known = updated(
            before,
            sample,
            goals,
            ready=view.ready,
            cold_starts_seconds=view.cold_starts_seconds,
            phases_seconds=view.phases_seconds,
            waking=blind and asked > 0 and state.woken and (view.ready == 0 or before.waking_since_seconds is not None),
            blind=blind,
            least_debt=price.least_debt,
            now_seconds=now_seconds,
        )
        doubt = state.doubt
        if doubt is not None and never_served(
            doubt,
            before,
            known,
            goals,
            ready=view.ready,
            in_flight=sample.in_flight,
            starting=len(view.starting_at_seconds),
        ):
            before = undone(doubt, before, waiting=known.waiting, in_flight=sample.in_flight)
            return self.propose(situation, replace(state, estimates=before, holds=doubt.rest, doubt=None, floors=()))
        doubt = doubted(doubt, before, known, state.holds)
        before_seconds = now_seconds if before.at_seconds is None else before.at_seconds
        need, why, numbers = _need(
            known,
            view,
            start,
            price,
            surprises=before.surprises,
            asked=asked,
            blind=blind,
            before_seconds=before_seconds,
            now_seconds=now_seconds,
        )
        level = 0 if known.recent is before.recent else _level(known, start, price)  # asked for by arrivals only
        idle = known.waiting + known.in_flight == 0.0 and not view.starting_at_seconds
        holds = state.holds
        timeouts_seconds = holds.timeouts_seconds
        if not idle or level > 0 or not timeouts_seconds:  # how long each is kept is settled when it was used
            letting_go = _letting_go(before.long.value / start.speed, start, price)
            timeouts_seconds = timeouts_seconds or timeouts_of(holds.gaps, letting_go, highest=highest_of(holds.used))
            holds = in_use(
                holds,
                min(level, goals.max_replicas),
                letting_go=letting_go,
                shortest_seconds=2.5 * before.interval_seconds,  # halves: looks are whole intervals apart, give or take
                now_seconds=now_seconds,
            )
        kept, release_at_seconds = held(
            holds.used, timeouts_seconds, now_seconds, kept_after_last_seconds=goals.cooldown_seconds or 0.0
        )
        # What is loading is not killed, and while something waits nothing that is there can be idle.
        there = view.ready + len(view.starting_at_seconds)
        desired = max(need, kept, there if view.starting_at_seconds or known.waiting > 0 else 0)
        if stepped > 0.0:  # nor is anything let go for what nobody saw
            desired = max(desired, asked)
        warm_steps: tuple[Step, ...] = ()
        floors = state.floors
        if goals.warm == "floor":
            hint = warm_hint(known, goals, ready=need, now_seconds=now_seconds, learned=before)
            floors = _floors(floors, need + hint.replicas, now_seconds + hint.lead_time_seconds, now_seconds)
            desired = max(desired, floors[0][0])
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
                    price.seconds,
                    kept,
                    1.0 if before.waits.achieved is None else before.waits.achieved,
                    before.waits.counted,
                    start.slots / start.speed,
                    start.lead_seconds,
                    before.cold_starts,
                ),
            ),
        )
        most = most_useful(sample, goals)  # the answer will be no more
        answered = desired if most is None else min(desired, most)
        unsure_until_seconds, woken = state.unsure_until_seconds, False
        if last is None or answered < asked or (asked == 0 and known.in_flight > 0):
            kept_seconds = KEDA_COOLDOWN_SECONDS if goals.cooldown_seconds is None else goals.cooldown_seconds
            if last is not None:  # the HPA hears of it at its next look, and then each ends what it works on
                kept_seconds = max(kept_seconds, 2.0 * HPA_WAIT_SECONDS + start.slots / start.speed)
            unsure_until_seconds = now_seconds + kept_seconds
        elif blind and sample.in_flight is None and sample.completed_total is not None:
            # Only what is completed shows that one serves; of many it shows the fastest, of one when that began to.
            if answered == 1 and sample.completed_total == before.completed_total:
                woken = state.woken if asked > 0 else now_seconds > (unsure_until_seconds or -math.inf)
        elif blind and desired > 0 and known.in_flight == 0:
            woken = state.woken if asked > 0 else now_seconds > (unsure_until_seconds or -math.inf)
        return Proposal(
            state=SloState(
                known,
                holds,
                _asked(asked_at_seconds, asked, answered, start, now_seconds) if blind else (),
                unsure_until_seconds,
                woken,
                doubt,
                floors,
            ),
            active=desired > 0,
            metric_value=float(desired),
            target_value=1.0,
            review_at_seconds=release_at_seconds if idle and level == 0 and goals.warm != "floor" else None,
            steps=steps + warm_steps,
        )


def _floors(
    floors: tuple[tuple[int, float], ...], replicas: int, until_seconds: float, now_seconds: float
) -> tuple[tuple[int, float], ...]:
    """With one more. What was wanted within a cold start would take as long to have again, and costs no more to keep.

    The demand at one moment comes and goes with each request: a floor that followed it turned ten times as often.
    """
    left = [floor for floor in floors if floor[0] > replicas and floor[1] > now_seconds]
    return (*left, (replicas, until_seconds))


def _shifted(state: SloState, seconds: float, *, turns_hours: bool) -> SloState:
    """With every moment moved, where the clock was put."""
    unsure_until_seconds, doubt = state.unsure_until_seconds, state.doubt
    return SloState(
        state.estimates.shifted(seconds, turns_hours=turns_hours),
        state.holds.shifted(seconds),
        tuple([at_seconds + seconds for at_seconds in state.asked_at_seconds]),
        None if unsure_until_seconds is None else unsure_until_seconds + seconds,
        state.woken,
        None if doubt is None else doubt.shifted(doubt.rest.shifted(seconds), seconds, turns_hours=turns_hours),
        tuple([(replicas, until_seconds + seconds) for replicas, until_seconds in state.floors]),
    )


@value_class(frozen=True, slots=True)
class _Start:
    """What one replica does that is not there yet; when it serves follows a logistic distribution."""

    lead_seconds: float  # from its creation
    new_seconds: float  # from now, if it is asked for now
    deviation_seconds: float
    scale_seconds: float  # of the logistic distribution
    slots: int
    speed: float  # requests that it begins a second, once all its slots are taken
    wait_seconds: float
    in_time: float  # requests that a replica which is there begins within the wait
    on_demand: float  # ... and one that is asked for now
    late: float  # how likely that one is too late for a request that comes now


def _begun(spare_seconds: float, scale_seconds: float, slots: float, speed: float) -> float:
    """Requests that a replica has begun, expected, `spare_seconds` after it is expected to serve."""
    score = spare_seconds / scale_seconds
    if score > 20.0:
        return slots + speed * spare_seconds
    if score < -20.0:
        return 0.0
    odds = math.exp(score)
    return slots * odds / (1.0 + odds) + speed * scale_seconds * math.log1p(odds)


def _starting(known: Estimates, goals: Goals) -> _Start:
    lead_seconds, deviation_seconds = known.cold_start(goals)
    deviation_seconds = math.hypot(deviation_seconds, HPA_SPREAD_SECONDS)
    new_seconds, scale_seconds = lead_seconds + HPA_WAIT_SECONDS, _SCALE * deviation_seconds
    slots, wait_seconds = goals.concurrency, goals.wait_seconds or 0.0
    speed = slots / known.service_seconds(goals)
    spare_seconds = wait_seconds - new_seconds
    return _Start(
        lead_seconds,
        new_seconds,
        deviation_seconds,
        scale_seconds,
        slots,
        speed,
        wait_seconds,
        slots + speed * wait_seconds,
        _begun(spare_seconds, scale_seconds, slots, speed),
        1.0 / (1.0 + math.exp(min(spare_seconds / scale_seconds, 50.0))),
    )


@value_class(frozen=True, slots=True)
class _Price:
    """What one late request costs, and what follows from it."""

    seconds: float  # GPU-seconds
    least_debt: float  # below this debt the price is at its floor: more credit would only be forgotten later
    quantile: float  # standard deviations to be safe against: a newsvendor's quantile
    margin: float  # ... times that of what is begun, over its root


def _price(known: Estimates, goals: Goals, start: _Start, now_seconds: float) -> _Price:
    """The price that a controller on the error budget sets: e times as high for each few misses over it.

    It begins between two others, the nearer to the first the likelier a replica started on demand is too late. Where
    it surely is, only replicas that are kept help: a slot held through one service is worth it for a share
    `attainment` of the requests (the newsvendor's critical ratio). Where it never is, the price at which a start
    averts what it costs lies between that at which all it begins would else be late and that at which as few would be
    as may; the geometric mean of the two.
    """
    miss = 1.0 - goals.attainment
    debt = known.waits.debt + known.waits.overdue(known.started, now_seconds, start.wait_seconds)
    unit = max(BUDGET_FIRST, BUDGET_SHARE * miss * known.waits.counted, BUDGET_CROWD * known.crowd)
    floor = FLOOR * start.lead_seconds / start.in_time
    late = start.late
    to_keep = max(start.slots / start.speed * goals.attainment / miss, floor)
    first = to_keep**late * (floor / math.sqrt(miss)) ** (1.0 - late)
    seconds = max(min(first * math.exp(min(debt / unit, 20.0)), MOST_OVER * to_keep), floor)
    wrong = start.lead_seconds / (seconds * start.in_time)
    quantile = _NORMAL.inv_cdf(1.0 - min(max(wrong, 1e-4), 0.5))  # none below the median
    return _Price(seconds, unit * math.log(floor / first), quantile, quantile * _SERVICE_DEVIATION)


def _level(known: Estimates, start: _Start, price: _Price) -> int:
    """How many replicas would have been enough for what arrived, had they always been there.

    Of every span of time that ends now: what arrived in it must begin within it and the wait.
    """
    most, arrived, margin = 0.0, known.arrived, price.margin
    slots, speed, in_time = start.slots, start.speed, start.in_time
    now_seconds = known.recent[-1][1] if known.recent else 0.0
    for before, at_seconds in known.recent:
        requests = arrived - before
        if requests > slots:  # what begins at once does not depend on how long others take
            requests += margin * math.sqrt(requests - slots)
        most = max(most, requests / (in_time + speed * (now_seconds - at_seconds)))
    return math.ceil(most - 1e-9)


def _letting_go(load: float, start: _Start, price: _Price) -> tuple[float, ...]:
    """What it costs, for each group of levels, to be without a replica from its last use to the next, but the gap.

    A cold start and what it makes late, less what is not paid for while nothing needs to start yet (of a level that is
    in use most of the time only its idle share is saved). The first replica starts as soon as anything waits, so the
    share of the time that it works is paid for; and from its last use on it works for one service anyway.
    """
    lead_seconds, slack_seconds = start.lead_seconds, max(start.wait_seconds - start.new_seconds, 0.0)
    service_seconds = start.slots / start.speed
    # Many at once may avert on demand what one that is kept would; with what each miss costs, less relied upon.
    averted = min(price.seconds, lead_seconds / max(start.on_demand, 1e-9))
    missing = start.late * start.in_time * math.sqrt(price.seconds * averted)
    busy = min(load * start.slots, 1.0)  # the share of the time that anything is in work
    first_seconds = max(lead_seconds - slack_seconds * (1.0 - busy), lead_seconds * busy)
    costs = [first_seconds + service_seconds + missing]
    for level in MIDDLES[1:]:
        used = min(max(load - level + 1.0, 0.0), 1.0)  # the share of the time that it is in use
        costs.append(max(lead_seconds - slack_seconds * (1.0 - used), 0.0) + missing)
    return tuple(costs)


def _need(
    known: Estimates,
    view: ReplicaView,
    start: _Start,
    price: _Price,
    *,
    surprises: Surprises,
    asked: int,
    blind: bool,
    before_seconds: float,
    now_seconds: float,
) -> tuple[int, str, tuple[float, ...]]:
    """The replicas that deadlines ask for now; `surprises`: those before this sample."""
    waiting, in_flight = known.waiting, known.in_flight
    if waiting + in_flight == 0:
        return 0, "nothing waits", ()
    slots, speed, wait_seconds = start.slots, start.speed, start.wait_seconds
    busy = max(math.ceil(in_flight / slots - 1e-9), 1)
    if not blind:  # what is in flight beyond these is worked on by those that end: no new one would get it
        busy = max(min(busy, max(asked, view.ready + len(view.starting_at_seconds))), 1)  # a view may be of before
    # What was seen for much less than a cold start tells as much: before it, as far as anyone knows, nothing came.
    short, long = known.short.value * known.short.weight, known.long.value * known.long.weight
    rate = max(short, 0.5 * (short + long))
    # What came is not what is to come: of no more than usually come together, as many others as those had.
    if short * start.lead_seconds <= surprises.crowd + JUST_CAME:
        rate = min(rate, surprises.others(long * start.lead_seconds) / start.lead_seconds)
    pace = view.ready * speed
    free = max(view.ready * slots - in_flight, 0.0)
    starting = len(view.starting_at_seconds)
    # What arrives before a replica that is started later could help it; arrivals come as unevenly as they did, so as
    # many of them as the price makes worth being ready for (a newsvendor's quantile).
    surely = price.quantile * math.sqrt(surprises.dispersion)
    blind_seconds = min(2.0 * max(start.new_seconds + start.deviation_seconds - wait_seconds, 0.0), start.new_seconds)
    blindly = rate * blind_seconds
    blindly += surely * math.sqrt(blindly)
    if waiting == 0 and blindly <= free + pace * wait_seconds:  # the most common case: all is in time
        return busy, _WHY, (waiting, in_flight, rate, 0.0, view.ready, starting)
    groups = _serving_in(view, start, now_seconds)

    def lacking(requests: float, due_seconds: float, margin: float) -> float:
        """How many of the first `requests` won't have begun in `due_seconds`, with what is there."""
        begun = free + pace * max(due_seconds, 0.0)
        if begun - margin * math.sqrt(begun) < requests:
            for ready_in, scale, count in groups:
                begun += count * _begun(due_seconds - ready_in, scale, slots, speed)
        return min(requests - begun + margin * math.sqrt(begun), requests) if margin else requests - begun

    def pays(gain: float) -> bool:
        """Whether a replica is worth starting that would begin so many late requests in time."""
        return gain >= LEAST_GAIN and gain * price.seconds >= start.lead_seconds

    def worth(requests: float, late: float, gain: float) -> int:
        """How many replicas, each of which starts `gain` of the `late` requests in time, avert more than they cost.

        With those that start already never more than all of these requests, and a crowd such as usually comes, could
        keep busy: for a single one that makes two, of which the sooner serves it.
        """
        whole = int(late / gain)
        wanted = whole + ((late - whole * gain) * price.seconds >= start.lead_seconds)
        return max(min(wanted, math.ceil((requests + surprises.crowd) / slots - 1e-9) - starting), 0)

    extra, most = 0, 0.0
    started = known.started
    # What just came and a few older batches: deadlines change little from one sample to the next. Neither whether
    # something just came nor how many old ones are left changes which others are looked at.
    batches = known.waits.batches
    older = len(batches) - (1 if batches and batches[-1][1] > before_seconds else 0)
    looked_at = batches[older:] + tuple([batches[older - back] for back in BATCHES_LOOKED_AT if back <= older])
    for until, at_seconds in looked_at:
        due_seconds = at_seconds + wait_seconds - now_seconds
        gain = _begun(due_seconds - start.new_seconds, start.scale_seconds, slots, speed)
        if not pays(gain):
            break  # older ones are due even sooner
        late = lacking(until - started, due_seconds, price.margin)
        if late > 0:
            most = max(most, late)
            extra = max(extra, worth(until - started, late, gain))
    half = 0.5 * rate * blind_seconds
    half += surely * math.sqrt(half)
    for more, due_seconds in (
        (half, 0.5 * blind_seconds + wait_seconds),
        (blindly, max(blind_seconds, start.new_seconds) + wait_seconds),  # and what is late, by as long again
    ):
        requests = waiting + more
        late = lacking(requests, due_seconds, 0.0)
        if late > 0:
            most = max(most, late)
            gain = _begun(due_seconds - start.new_seconds, start.scale_seconds, slots, speed)
            if pays(gain):
                extra = max(extra, worth(requests, late, gain))
    return (
        max(view.ready + starting + extra, busy) if extra else busy,  # believed to serve may be fewer than are busy
        _WHY,
        (waiting, in_flight, rate, most, view.ready, starting),
    )


def _serving_in(view: ReplicaView, start: _Start, now_seconds: float) -> list[tuple[float, float, int]]:
    """(seconds until they serve, the spread of that, how many) of those that start, those asked for together as one."""
    groups = []
    starting, index = view.starting_at_seconds, 0
    late_seconds = start.lead_seconds + P95_DEVIATIONS * start.deviation_seconds
    while index < len(starting):
        first_seconds, first = starting[index], index
        while index < len(starting) and starting[index] - first_seconds <= HPA_SPREAD_SECONDS:
            index += 1
        age_seconds = now_seconds - 0.5 * (first_seconds + starting[index - 1])
        ready_in = remaining_seconds(age_seconds, start.lead_seconds, late_seconds)
        groups.append((ready_in, min(start.scale_seconds, _SCALE * ready_in) + 0.01, index - first))
    return groups


def _believed(
    state: SloState, asked: int, sample: Sample, *, start: _Start, now_seconds: float
) -> tuple[ReplicaView, tuple[float, ...]]:
    """(replicas as they should be, when those were asked for that don't serve yet), where nobody sees them.

    What was asked for a cold start ago serves by now. While something waits every replica that serves is busy:
    then they are seen in what is in flight, and one more that is busy than were thought to serve tells how long its
    cold start took, unless it may have been there when it was asked for.
    """
    # What the policy asked for and no answer said, since it was not confirmed yet, was never asked for.
    before, asked_at_seconds = state.estimates, state.asked_at_seconds[:asked]
    unsure_until_seconds = state.unsure_until_seconds or -math.inf
    cold_starts: tuple[float, ...] = ()
    busy = 0 if sample.in_flight is None else min(math.ceil(sample.in_flight / start.slots - 1e-9), asked)
    more = max(busy - (asked - len(asked_at_seconds)), 0)
    came, asked_at_seconds = asked_at_seconds[:more], asked_at_seconds[more:]
    if sample.waiting and sample.in_flight is not None:
        ready = busy
        past_seconds = 0.0 if before.at_seconds is None else now_seconds - before.at_seconds
        if before.waiting > 0 and before.is_usual(past_seconds):
            late_seconds = 0.5 * past_seconds
            cold_starts = tuple([max(now_seconds - at - late_seconds, 1.0) for at in came if at > unsure_until_seconds])
        starting = asked_at_seconds
        unaccounted = asked - ready - len(starting)
        if unaccounted > 0:
            starting = (*[now_seconds - start.lead_seconds] * unaccounted, *starting)
    else:
        serving_after_seconds = start.lead_seconds + HPA_WAIT_SECONDS + 0.5 * start.deviation_seconds
        starting = tuple([at for at in asked_at_seconds if now_seconds - at < serving_after_seconds])
        ready = asked - len(starting)
    view = ReplicaView(
        at_seconds=now_seconds, ready=ready, starting_at_seconds=starting, cold_starts_seconds=cold_starts
    )
    return view, asked_at_seconds


def _asked(
    asked_at_seconds: tuple[float, ...], asked: int, desired: int, start: _Start, now_seconds: float
) -> tuple[float, ...]:
    kept = [at for at in asked_at_seconds if now_seconds - at < 5 * start.lead_seconds]
    del kept[asked:]  # asked for by the policy, but not by the answer: it was not confirmed, or bounded
    if desired > asked:
        kept.extend([now_seconds] * (desired - asked))
    elif desired < asked:
        del kept[max(len(kept) - (asked - desired), 0) :]  # the newest go first, as the ReplicaSet takes them
    return tuple(kept)


def _there_at_first(sample: Sample, goals: Goals) -> int:
    """The replicas that the very first reading shows at work: somebody else asked for them, and nobody knows when."""
    return min(math.ceil((sample.in_flight or 0.0) / goals.concurrency - 1e-9), goals.max_replicas)


POLICY = Slo()
