"""What is learned about one workload from its samples, online and from nothing.

Arrival rate (short and long), how much more uneven than Poisson it is, service seconds, cold start, the hour of
the day, and the waits that were really achieved. Each estimate says how much it is worth (`weight`, or a count).
Exact counters of the source are used where there are some; else differences of what is in the system.

All of it is one frozen value of bounded size. Counter restarts, purged queues, offset resets and clocks that step
change what is counted for one sample, never what was learned before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from scaler.core.cold_starts import (
    FIRST_VARIATION,
    LEAST_SECONDS,
    NO_COLD_STARTS,
    ColdStarts,
    loaded_cold_starts,
)
from scaler.core.flows import Flow, unseen
from scaler.core.hours import NO_HOURS, Hours
from scaler.core.lumps import NO_LUMPS, Lumps
from scaler.core.model import Goals, Sample
from scaler.core.steps import NO_STEPS, Steps
from scaler.core.surprises import NO_SURPRISES, Surprises
from scaler.core.values import value_class
from scaler.core.waits import NO_WAITS, Waits
from scaler.core.window import NOTHING, Smoothed

_MOST_RECENT = 24  # arrivals, by sample, from which the level of demand is told
_COMPLETIONS_KEPT = 300.0  # service seconds are the mean of about so many completions
_GUESSED_KEPT = 3_000.0  # ... where nobody counts them: what is inferred from even traffic is off, ever the same way
_IN_WORK_SERVICES = 3.0  # after a queue has ended: by then nothing is in work any more that was when it did
_TOLD_COUNTS_AS = 4.0  # completions: a service time that somebody told, which may be a mistake
_LONGEST_SECONDS = 60.0  # between two samples from which service times are learned ...
_SPREAD_SECONDS = 30.0  # of a longer time, what came in each of so many seconds is taken to have come together
_LONGEST_INTERVALS = 10.0  # ... or so many usual intervals
_STEP_SECONDS = 600.0  # a gap in the readings that nobody explains ...
_LEAST_IN_FLIGHT = 0.05  # nothing waits and nobody tells what is in flight: likely fewer than that is none
_LAST_BELIEVED_SECONDS = 300.0  # ... and one is believed for so long, as KEDA's cooldown and the HPA keep a replica
_UNSEEN_BELIEVED = 0.9  # while nothing waits and nobody tells what is in flight: arrivals of that share of the rate
COLD_START_FIRST_SECONDS = 60.0  # before any was seen; peers.md: 15 to 300 s
_SHORT_QUEUE = 0.3  # of the slots: one that the next completions end ...
_LONG_QUEUE = 2.0  # ... one that stands for a few services
SERVICE_FIRST_SECONDS = 5.0
FAR_MORE_LEAST = 20.0  # requests
NEVER_QUIET = Smoothed(0.0, 0.0, 0.0)


@value_class(frozen=True, slots=True)
class Estimates:
    """What is known so far; `updated` makes the next one. Counts are of requests, times in seconds."""

    at_seconds: float | None = None
    samples: int = 0
    interval_seconds: float = 5.0  # between samples while there is work
    waiting: float = 0.0
    in_flight: float = 0.0
    arrived_total: float | None = None  # the source's counter
    completed_total: float | None = None
    arrived: float = 0.0  # our own counts, since we look
    started: float = 0.0
    short: Smoothed = NOTHING  # arrivals a second, over about one cold start
    long: Smoothed = NOTHING  # ... over about ten
    surprises: Surprises = NO_SURPRISES
    busy_slot_seconds: float = 0.0
    completions: float = 0.0
    cold: ColdStarts = NO_COLD_STARTS
    waking_since_seconds: float | None = None
    waits: Waits = NO_WAITS
    recent: tuple[tuple[float, float], ...] = ()  # (arrived before, at) of arrivals, newest last, older ones thinned
    hours: Hours = NO_HOURS
    queued_at_seconds: float | None = None  # when something was last seen to wait
    flow: Flow | None = None  # while something waits and nobody counts
    lumps: Lumps = NO_LUMPS  # where completions are told in lumps
    quiet: Smoothed = NEVER_QUIET  # arrivals a second while nothing waits and nobody counts; its clock runs only then
    steps: Steps = NO_STEPS  # of what is in the system, where nobody counts

    # --- what others ask for ---

    def service_seconds(self, goals: Goals) -> float:
        """Seconds one request keeps a slot busy; a first guess counts as one completion, what is told as a few.

        Where nobody counts what is told is believed: it is likelier right than all that could be inferred.
        """
        if goals.service_seconds is not None and not _counts(self):
            return max(goals.service_seconds, 1e-3)
        first_seconds, count = service_first(goals)
        seconds = (self.busy_slot_seconds + count * first_seconds) / (self.completions + count)
        return max(self.steps.bounded(seconds, self.interval_seconds), 1e-3)

    @property
    def cold_starts(self) -> float:
        """How many cold starts were seen, as far as they are remembered."""
        return self.cold.whole.count

    def lead_seconds(self, goals: Goals) -> float:
        """Seconds a cold start takes in the mean, or as far as anyone says before any was seen."""
        whole = self.cold.whole
        return whole.mean_seconds if whole.count else cold_start_first(goals)

    def cold_start(self, goals: Goals) -> tuple[float, float]:
        """(mean, standard deviation) of a cold start in seconds."""
        whole = self.cold.whole
        if whole.count == 0:
            mean_seconds = cold_start_first(goals)
            return mean_seconds, FIRST_VARIATION * mean_seconds
        return whole.mean_seconds, whole.deviation_seconds

    @property
    def dispersion(self) -> float:
        """Variance of arrivals around their forecast, over what a Poisson process of that rate would have."""
        return self.surprises.dispersion

    @property
    def crowd(self) -> float:
        """How many requests a request finds within one cold start, itself included; 0: none was seen yet."""
        return self.surprises.crowd

    def is_usual(self, past_seconds: float) -> bool:
        """Whether a look so long after the one before can tell when between the two something happened."""
        return past_seconds <= _LONGEST_INTERVALS * self.interval_seconds

    def stepped_seconds(self, goals: Goals, now_seconds: float) -> float:
        """`stepped_seconds` of these; nobody looks often at what is idle."""
        return stepped_seconds(
            self.at_seconds,
            goals,
            now_seconds,
            usual_seconds=self.interval_seconds,
            is_watched=self.waiting + self.in_flight > 0,
        )

    def shifted(self, seconds: float, *, turns_hours: bool) -> Estimates:
        """With every moment moved, where the clock was put; `turns_hours`: the hours of the day, too."""
        at_seconds, waking_since_seconds = self.at_seconds, self.waking_since_seconds
        queued_at_seconds = self.queued_at_seconds
        return replace(
            self,
            at_seconds=None if at_seconds is None else at_seconds + seconds,
            short=self.short.shifted(seconds),
            long=self.long.shifted(seconds),
            surprises=replace(self.surprises, at_seconds=self.surprises.at_seconds + seconds),
            waking_since_seconds=None if waking_since_seconds is None else waking_since_seconds + seconds,
            queued_at_seconds=None if queued_at_seconds is None else queued_at_seconds + seconds,
            waits=self.waits.shifted(seconds),
            recent=tuple([(before, at + seconds) for before, at in self.recent]),
            hours=self.hours.turned(seconds) if turns_hours else self.hours,
        )


NOTHING_KNOWN = Estimates()
_FIELDS = tuple(field.name for field in fields(Estimates))
_PARTS = {
    "short": Smoothed,
    "long": Smoothed,
    "surprises": Surprises,
    "waits": Waits,
    "hours": Hours,
    "flow": Flow,
    "lumps": Lumps,
    "quiet": Smoothed,
    "steps": Steps,
}
_PAIRS = ("batches", "profile")  # of those


def rested(known: Estimates, goals: Goals, now_seconds: float) -> Estimates:
    """As looking at an idle queue every usual interval would have left it, up to the last of these looks before now.

    Nobody looks often at what is idle. What arrived is seen by a look, and so did after the last that was left out.
    """
    at_seconds, interval_seconds = known.at_seconds, known.interval_seconds
    if at_seconds is None or known.samples < 2 or known.waiting + known.in_flight > 0:
        return known
    looks = math.ceil((now_seconds - at_seconds) / interval_seconds - 1e-6) - 1
    if looks < 1:
        return known
    until_seconds = now_seconds - interval_seconds
    elapsed_seconds = until_seconds - at_seconds
    lead_seconds, short_seconds, long_seconds = _windows(known, goals)
    return replace(
        known,
        at_seconds=until_seconds,
        samples=known.samples + looks,
        short=known.short.fed(0.0, until_seconds, short_seconds),
        long=known.long.fed(0.0, until_seconds, long_seconds),
        surprises=known.surprises.rested(
            known.short,
            tau_seconds=short_seconds,
            lead_seconds=lead_seconds,
            interval_seconds=interval_seconds,
            until_seconds=until_seconds,
        ),
        waits=known.waits.faded(elapsed_seconds),
        hours=known.hours.rested(at_seconds, interval_seconds=interval_seconds, until_seconds=until_seconds),
        quiet=known.quiet if _counts(known) else _quieter(known.quiet, 0.0, elapsed_seconds, long_seconds),
        steps=known.steps if _counts(known) else known.steps.rested(0.0, interval_seconds),
    )


def updated(
    known: Estimates,
    sample: Sample,
    goals: Goals,
    *,
    ready: int,
    cold_starts_seconds: Sequence[float],
    phases_seconds: Sequence[tuple[int, float]] = (),
    waking: bool,
    blind: bool = False,
    now_seconds: float,
    least_debt: float = -math.inf,
) -> Estimates:
    """With one more sample.

    `ready`: replicas that serve, seen or believed. `phases_seconds`: of cold starts that are over, (phase as an index
    into cold_starts.PHASES, how long it took). `waking`: none serves and one was asked for, so that the first request
    picked up tells a cold start where nobody sees replicas. `blind`: nobody does.
    """
    before_seconds = known.at_seconds
    waiting, in_flight = _split(known, sample, goals, ready, blind=blind)
    if before_seconds is None or now_seconds < before_seconds:
        return _first(known, sample, waiting, in_flight, now_seconds)
    elapsed_seconds = max(now_seconds - before_seconds, 1e-3)  # two looks at once tell no rate
    interval_seconds = known.interval_seconds
    # What is idle is not looked at often, but for the first two times: only more often than usual is news.
    if known.samples == 1:
        interval_seconds = min(elapsed_seconds, 60.0)
    elif elapsed_seconds < interval_seconds or known.waiting + known.in_flight > 0:
        interval_seconds += 0.05 * (min(elapsed_seconds, 60.0) - interval_seconds)
    busy = 0.5 * (known.in_flight + in_flight) * elapsed_seconds
    change = waiting - known.waiting
    more_in_flight = in_flight - known.in_flight
    if blind and sample.in_flight is None and sample.waiting is not None and known.waiting > 0:
        # While something waits, what is in flight is as many slots as there are thought to be. Where those are only
        # believed in, one more that is believed in tells nothing of what arrived; only once nothing waits, fewer do.
        more_in_flight = min(more_in_flight, 0.0) if waiting == 0 else 0.0
    change += more_in_flight
    lead_seconds, short_seconds, long_seconds = _windows(known, goals)
    uncounted = not _counts(sample)
    # How busy they were while nobody looked for long, both ends of it don't tell.
    tells = elapsed_seconds <= max(_LONGEST_SECONDS, _LONGEST_INTERVALS * interval_seconds)
    queued = tells and uncounted and _tells_of_queue(known, sample, change, blind=blind)
    flow: Flow | None = None
    busy_sum, done_sum, quiet = known.busy_slot_seconds, known.completions, known.quiet
    if queued and not (change < 0 and far_more(-change, busy / known.service_seconds(goals))):
        of_queue = _queued(
            known,
            goals,
            change,
            busy_slot_seconds=busy,
            elapsed_seconds=elapsed_seconds,
            short_seconds=short_seconds,
            long_seconds=long_seconds,
            in_work_told=sample.in_flight is not None,
        )
        arrivals, purged = of_queue[1], False
        completions = arrivals - change
        if waiting > 0:  # else it ended on the way, and nobody knows when
            flow, _, busy_sum, done_sum = of_queue
    else:
        arrivals, completions, purged = _flows(
            known,
            sample,
            goals,
            change,
            busy_slot_seconds=busy,
            elapsed_seconds=elapsed_seconds,
        )
        tells = tells and not purged
        if uncounted and known.waiting <= 0 and sample.in_flight is not None:
            quiet = _quieter(quiet, arrivals / elapsed_seconds, elapsed_seconds, long_seconds)
    rate = arrivals / elapsed_seconds
    short, long = known.short.fed(rate, now_seconds, short_seconds), known.long.fed(rate, now_seconds, long_seconds)

    arrived = known.arrived + arrivals
    started = max(arrived - waiting, 0.0)
    waits = known.waits.fed(
        (known.arrived, arrived),
        (known.started, started),
        goals=goals,
        now_seconds=now_seconds,
        elapsed_seconds=elapsed_seconds,
        purged=purged,
        least_debt=least_debt,
    )
    recent = known.recent
    if arrivals > 0:
        if elapsed_seconds <= _LONGEST_SECONDS:
            recent = (*recent, (known.arrived, now_seconds - 0.5 * elapsed_seconds))
        else:
            recent = (*recent, *_spread(known.arrived, arrivals, elapsed_seconds, now_seconds))
        while len(recent) > _MOST_RECENT:
            half = _MOST_RECENT // 2
            recent = (*recent[:half:2], *recent[half:])
    surprises = known.surprises.fed(arrivals, short.value, lead_seconds=lead_seconds, now_seconds=now_seconds)

    believed = uncounted and goals.service_seconds is not None
    steps = NO_STEPS
    if uncounted and not believed:
        # While a queue stands all slots work: a long one, or where nobody sees replicas any that is not about to end.
        stands = waiting > 0 and not _is_short(known) if blind else flow is not None and _is_long(known)
        steps = known.steps.broken()
        if tells and (sample.in_flight is not None or stands):
            steps = known.steps.fed(
                change,
                slot_seconds=busy,
                service_seconds=known.service_seconds(goals),
                elapsed_seconds=elapsed_seconds,
            )
    lumps = NO_LUMPS
    maybe_done = sample.maybe_done
    if tells and flow is None and not (uncounted and _was_in_work(known, sample, goals, now_seconds)):
        if sample.in_flight is None and sample.completed_total is None and sample.waiting is not None:
            busy, completions = _served(known, goals, waiting, ready=None if blind else ready, seconds=elapsed_seconds)
        if busy == 0.0 and sample.completed_total is None:  # nothing was seen at work: what is gone may be purged
            completions = max(completions + min(change, 0.0), 0.0)
        of_completions = completions
        if maybe_done > 0.0 or known.lumps.completions > 0.0:
            slots = _slots(sample, goals, ready)
            lumps, busy, of_completions = known.lumps.fed(
                least_seconds=min(sample.in_system_least or 0.0, slots) * elapsed_seconds,
                most_seconds=min(sample.in_system_most or 0.0, slots) * elapsed_seconds,
                completions=completions,
                untold=maybe_done,
                service_seconds=known.service_seconds(goals),
            )
        if not believed:
            busy_sum, done_sum = busy_sum + busy, done_sum + of_completions
        most = _GUESSED_KEPT if uncounted else _COMPLETIONS_KEPT
        if done_sum > most:
            busy_sum, done_sum = busy_sum * most / done_sum, most

    waking_since, woke_seconds = _woken(
        known,
        sample,
        goals,
        in_flight,
        completions,
        waking=waking,
        elapsed_seconds=elapsed_seconds,
        now_seconds=now_seconds,
    )
    if woke_seconds is not None:
        cold_starts_seconds = (woke_seconds,)
    cold = known.cold
    if cold_starts_seconds or phases_seconds:
        cold = cold.fed(cold_starts_seconds, phases_seconds)

    return Estimates(
        now_seconds,
        known.samples + 1,
        interval_seconds,
        waiting,
        in_flight,
        sample.arrived_total,
        sample.completed_total,
        arrived,
        started,
        short,
        long,
        surprises,
        busy_sum,
        done_sum,
        cold,
        waking_since,
        waits,
        recent,
        known.hours.fed(arrivals, elapsed_seconds, now_seconds),
        now_seconds if waiting > 0 else known.queued_at_seconds,
        flow,
        lumps,
        quiet,
        steps,
    )


def service_first(goals: Goals) -> tuple[float, float]:
    """(seconds that a slot is busy with one request as far as anyone says, how many completions that counts as)."""
    told_seconds = goals.service_seconds
    return (SERVICE_FIRST_SECONDS, 1.0) if told_seconds is None else (told_seconds, _TOLD_COUNTS_AS)


def cold_start_first(goals: Goals) -> float:
    """Seconds that a cold start takes as far as anyone says, before any was seen."""
    first_seconds = goals.cold_start_seconds
    return COLD_START_FIRST_SECONDS if first_seconds is None else max(first_seconds, LEAST_SECONDS)


def dumped(known: Estimates) -> dict[str, Any]:
    """As plain values, for a file."""
    plain: dict[str, Any] = {name: getattr(known, name) for name in _FIELDS}
    plain["cold"] = known.cold.dumped()
    for name in _PARTS:
        part = plain[name]
        plain[name] = None if part is None else {field.name: getattr(part, field.name) for field in fields(part)}
    return plain


def loaded(values: Mapping[str, Any]) -> Estimates:
    """From `dumped`.

    What is unknown or of another version is left at its first value: nothing learned is better than a wrong field.
    """
    known = {name: values[name] for name in _FIELDS if name in values}
    for name, kind in _PARTS.items():
        part = known.pop(name, None)
        if isinstance(part, Mapping):
            known[name] = kind(
                **{
                    field.name: _pairs(part[field.name]) if field.name in _PAIRS else part[field.name]
                    for field in fields(kind)
                    if field.name in part
                }
            )
    known["recent"] = _pairs(known.get("recent", ()))
    if "cold" in known:
        known["cold"] = loaded_cold_starts(known["cold"])
    return Estimates(**known)


def _pairs(values: Iterable[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    return tuple((float(pair[0]), float(pair[1])) for pair in values)  # lists, where they come from a file


def stepped_seconds(
    at_seconds: float | None, goals: Goals, now_seconds: float, *, usual_seconds: float, is_watched: bool
) -> float:
    """By how much the moments of a state must be moved, since the clock was put after its last look; mostly 0.

    A step back is sure: as much time passed as `usual_seconds`. A long gap while there was work (`is_watched`), when
    somebody should have looked all the time, is a step forward or readings that failed: above 0, and how much time
    passed is not known.
    """
    if at_seconds is None:
        return 0.0
    past_seconds = now_seconds - at_seconds
    if 0.0 <= past_seconds <= _STEP_SECONDS:
        return 0.0
    if past_seconds > 0.0:
        longest_seconds = _LONGEST_INTERVALS * max(usual_seconds, goals.sample_seconds or 0.0)
        if not is_watched or past_seconds <= longest_seconds:
            return 0.0
    return past_seconds - usual_seconds


def _split(known: Estimates, sample: Sample, goals: Goals, ready: int, *, blind: bool) -> tuple[float, float]:
    """(waiting, in flight), estimated where the source does not tell them apart."""
    waiting, in_flight = sample.waiting, sample.in_flight
    slots = _slots(sample, goals, ready)
    if waiting is None:
        system = max(sample.requests, 0.0)
        busy = min(system, slots) if in_flight is None else min(in_flight, system)
        return system - busy, busy
    if in_flight is None:
        if waiting > 0:
            return waiting, slots
        service_seconds = known.service_seconds(goals)
        likely = known.short.value * service_seconds
        if known.in_flight > likely and known.at_seconds is not None:  # what was begun ends within its service
            gone_seconds = max(sample.at_seconds - known.at_seconds, 0.0)
            likely = max(likely, known.in_flight * math.exp(-gone_seconds / service_seconds))
        likely = min(slots, likely) if likely >= _LEAST_IN_FLIGHT else 0.0
        queued_at_seconds = -math.inf if known.queued_at_seconds is None else known.queued_at_seconds
        if sample.at_seconds - queued_at_seconds < _LAST_BELIEVED_SECONDS:  # one may take longer than anyone knows
            one = min(max(known.in_flight, known.waiting), 1.0)
            likely = max(likely, one if blind else min(slots, one))  # what took it serves, whatever is believed
        return 0.0, likely
    return max(waiting, 0.0), max(in_flight, 0.0)


def _slots(sample: Sample, goals: Goals, ready: int) -> float:
    """How many requests can be worked on at once."""
    most = sample.most_replicas
    return float((ready if most is None else min(ready, most)) * goals.concurrency)


def _first(known: Estimates, sample: Sample, waiting: float, in_flight: float, now_seconds: float) -> Estimates:
    """The first sample, or one after the clock stepped back: counts and clocks begin anew, what was learned stays."""
    return replace(
        known,
        at_seconds=now_seconds,
        samples=known.samples + 1,
        waiting=waiting,
        in_flight=in_flight,
        arrived_total=sample.arrived_total,
        completed_total=sample.completed_total,
        arrived=waiting,
        started=0.0,
        short=Smoothed(known.short.value, known.short.weight, now_seconds),
        long=Smoothed(known.long.value, known.long.weight, now_seconds),
        surprises=replace(known.surprises, at_seconds=now_seconds, arrived=0.0, forecast=known.short.value),
        waking_since_seconds=None,
        waits=known.waits.begun_anew(waiting, now_seconds),
        flow=None,
        lumps=NO_LUMPS,
        steps=known.steps.broken(),
        recent=((-in_flight, now_seconds),) if waiting + in_flight else (),
        hours=known.hours.unbegun(),
    )


def _flows(
    known: Estimates, sample: Sample, goals: Goals, change: float, *, busy_slot_seconds: float, elapsed_seconds: float
) -> tuple[float, float, bool]:
    """(arrivals, completions, purged) since the last sample, while the requests in the system changed by `change`.

    A counter that fell was restarted: it is not used this once. More completions than slots could have done
    many times over are no completions: the queue was purged or its offsets were moved.
    """
    arrivals: float | None = None
    completions: float | None = None
    if sample.arrived_total is not None and known.arrived_total is not None:
        arrivals = sample.arrived_total - known.arrived_total
        arrivals = arrivals if arrivals >= 0 else None
    if sample.completed_total is not None and known.completed_total is not None:
        completions = sample.completed_total - known.completed_total
        completions = completions if completions >= 0 else None
    likely = busy_slot_seconds / known.service_seconds(goals)
    if arrivals is None and completions is None:
        came = known.short.value * elapsed_seconds
        hidden = unseen(came, likely, abs(change))
        if sample.in_flight is None and sample.waiting == 0 == known.waiting:
            hidden = min(hidden, _UNSEEN_BELIEVED * came)  # else a rate that nobody sees would stay for hours
        arrivals, completions = hidden + max(change, 0.0), hidden + max(-change, 0.0)
    elif arrivals is None:
        arrivals = max(change + (completions or 0.0), 0.0)
    elif completions is None:
        completions = max(arrivals - change, 0.0)
    likely += sample.maybe_done  # before, and told only now
    purged = bool(change < 0 and far_more(completions or 0.0, likely))
    if sample.in_flight is not None and sample.arrived_total is not None and sample.completed_total is not None:
        # Counters that don't count what is purged: it is gone without having been completed.
        lost = arrivals - (completions or 0.0) - change
        purged = purged or lost > max(20.0, 0.5 * known.waiting)
    return arrivals, completions or 0.0, purged


def _is_long(known: Estimates) -> bool:
    """Whether what waited would have stood for a few services."""
    return known.waiting > _LONG_QUEUE * known.in_flight


def _is_short(known: Estimates) -> bool:
    """Whether the next completions would have ended what waited."""
    return known.waiting <= _SHORT_QUEUE * known.in_flight


def _tells_of_queue(known: Estimates, sample: Sample, change: float, *, blind: bool) -> bool:
    """Whether how a queue moved tells how long services take, where nobody counts."""
    if known.waiting <= 0:
        return False
    if sample.in_flight is not None:
        return True
    if not blind:  # one that the next completion ends is seen where it lasts: services would look longer
        return not _is_short(known)
    # What is believed to work on it may not be there, and what never moves be stuck.
    return _is_long(known) and (known.flow is not None or change != 0.0)


def _queued(
    known: Estimates,
    goals: Goals,
    change: float,
    *,
    busy_slot_seconds: float,
    elapsed_seconds: float,
    short_seconds: float,
    long_seconds: float,
    in_work_told: bool,
) -> tuple[Flow, float, float, float]:
    """(what the queue tells by then, arrivals, slot-seconds, completions): it waited all along, and nobody counts.

    The last two are the known service time with its weight, put as what is kept of exact ones.
    """
    first_seconds, count = service_first(goals)
    long, quiet, flow = known.long, known.quiet, known.flow
    service_seconds = known.service_seconds(goals)
    usual_rate = long.value
    if in_work_told:  # else of what came while nothing waited next to nothing was seen
        # Where all comes in bursts they alone make the long mean: after one comes as little as before.
        usual_rate += quiet.weight * min(quiet.value - usual_rate, 0.0)
    if flow is None:  # as far as nobody looked for long, as many may arrive as are completed
        unseen_rate = (1.0 - known.short.weight) * busy_slot_seconds / elapsed_seconds / service_seconds
        seen_seconds = max(long_seconds * long.weight, 1.0)
        flow = Flow(long.value, known.dispersion * long.value / seen_seconds + unseen_rate * unseen_rate)
    flow, arrivals, pace, weight = flow.fed(
        change,
        busy=busy_slot_seconds / elapsed_seconds,
        pace=1.0 / service_seconds,
        weight=count + known.completions if goals.service_seconds is None else math.inf,
        usual_rate=usual_rate,
        dispersion=known.dispersion,
        elapsed_seconds=elapsed_seconds,
        tau_seconds=short_seconds,
        in_work_told=in_work_told,
    )
    completions = min(max(weight - count, 0.0), _COMPLETIONS_KEPT)
    return flow, arrivals, (completions + count) / pace - count * first_seconds, completions


def _quieter(quiet: Smoothed, rate: float, elapsed_seconds: float, tau_seconds: float) -> Smoothed:
    """With one more look that began with nothing waiting; the rest of the time its clock stands still."""
    return quiet.fed(rate, (quiet.at_seconds or 0.0) + elapsed_seconds, tau_seconds)


def _counts(told: Estimates | Sample) -> bool:
    """Whether somebody counts what arrives, or what is completed."""
    return told.arrived_total is not None or told.completed_total is not None


def _was_in_work(known: Estimates, sample: Sample, goals: Goals, now_seconds: float) -> bool:
    """Whether what ends now was in work already when a queue ended: how long that took, what is seen of it can't tell.

    Of n that are served when nothing waits any more each has half of its service behind it, on average: its rest
    would be taken for a service.
    """
    if sample.in_flight is None or known.queued_at_seconds is None:
        return False
    return now_seconds - known.queued_at_seconds < _IN_WORK_SERVICES * known.service_seconds(goals)


def _served(
    known: Estimates, goals: Goals, waiting: float, *, ready: int | None, seconds: float
) -> tuple[float, float]:
    """(slot-seconds, completions) of an interval, where only what waits is told.

    Nothing is learned of one that began with nothing waiting: how many slots worked is a guess, which what was learned
    before has made. While something waits all of them work, and each completion lets one begin; so does each slot that
    is new, where replicas are seen (`ready`).
    """
    slots = known.in_flight
    if known.waiting <= 0 or slots <= 0:
        return 0.0, 0.0
    change = waiting - known.waiting
    if ready is not None:
        new = max(ready * goals.concurrency - slots, 0.0)
        change += new
        slots += 0.5 * new
    service_seconds = known.service_seconds(goals)
    busy = slots * seconds
    hidden = unseen(known.short.value * seconds, busy / service_seconds, abs(change))
    completions = hidden + max(-change, 0.0)
    # A queue that ended did so on the way: from then on nobody knows.
    return (min(busy, completions * service_seconds) if waiting == 0 else busy), completions


def _woken(
    known: Estimates,
    sample: Sample,
    goals: Goals,
    in_flight: float,
    completions: float,
    *,
    waking: bool,
    elapsed_seconds: float,
    now_seconds: float,
) -> tuple[float | None, float | None]:
    """(since when a replica is waited for that nobody sees, how long that took if it is there now)."""
    since_seconds = known.waking_since_seconds
    # What is in flight may only be believed in; that something was completed is seen.
    by_commits = sample.in_flight is None and sample.completed_total is not None
    if since_seconds is not None and (completions > 0 or (in_flight > 0 and not by_commits)):
        told = sample.in_flight is not None or sample.completed_total is not None
        if not told or not known.is_usual(elapsed_seconds):
            return None, None
        seconds = now_seconds - since_seconds - 0.5 * elapsed_seconds
        if by_commits:  # what was completed had to be worked on first
            seconds = max(seconds - known.service_seconds(goals), 0.5 * seconds)
        return None, max(seconds, 0.1)
    if not waking:
        return None, None
    if since_seconds is None and in_flight == 0:
        since_seconds = known.at_seconds  # the answer to the sample before is what wakes
    return since_seconds, None


def _spread(
    arrived: float, arrivals: float, elapsed_seconds: float, now_seconds: float
) -> tuple[tuple[float, float], ...]:
    """What came while nobody looked for long, as if looked at all the time: evenly, as far as anyone knows.

    Taken for one crowd, five minutes without a reading asked for four times the replicas.
    """
    parts = min(math.ceil(elapsed_seconds / _SPREAD_SECONDS), _MOST_RECENT // 2)
    each, part_seconds = arrivals / parts, elapsed_seconds / parts
    return tuple((arrived + each * at, now_seconds - part_seconds * (parts - at - 0.5)) for at in range(parts))


def far_more(count: float, likely: float) -> bool:
    """Whether these are many times as many requests as were likely: something else happened than what is usual."""
    return count > 10.0 * likely + FAR_MORE_LEAST


def _windows(known: Estimates, goals: Goals) -> tuple[float, float, float]:
    """(a cold start, the time constants of the short and of the long rate) in seconds."""
    lead_seconds = known.lead_seconds(goals)
    short_seconds = max(lead_seconds, 2.0 * known.interval_seconds)
    return lead_seconds, short_seconds, 10.0 * short_seconds
