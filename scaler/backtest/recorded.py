"""A workload's own traffic as a trace: what the service recorded (scaler/state.py), turned back into requests.

Where the source has exact counters, arrivals are counted by them. Else only the difference between what arrived and
what ended is seen, from look to look: requests that both came and ended between two looks are estimated, as
core/estimate.py does, but with the whole recording at hand. The service time and the rate of arrivals at each moment
are those that explain the differences best: each round counts with what the round before has learned (expectation
maximisation), until the service time stands still.

Where requests in flight aren't told either, all slots work while something waits, and while nothing waits nothing is
seen at all. There the rate is the one at which a queue would begin as often as it did (Erlang's loss formula), over
five minutes: idle ones stay empty, lightly loaded ones come out too light.

Within one interval between two observations arrivals are spread evenly. How long each request took is not recorded: all
take the mean.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from scaler.backtest.traces import TraceInvalid
from scaler.core.estimate import SERVICE_FIRST_SECONDS, unseen
from scaler.simulator.arrivals import Arrival
from scaler.state import Observation, read_recording

LONGEST_GAP_SECONDS = 90.0  # a row a minute is written whatever happens; in a longer gap nobody looked
RATE_SECONDS = 60.0  # the rate at a moment is a mean over about so long before and after
BLIND_SECONDS = 300.0  # over which the beginnings of queues are counted, where in flight isn't told
ROUNDS = 60
MOST_WORK = 3_000_000  # intervals times rounds: some ten seconds
CLOSE = 5e-4


@dataclass(slots=True)
class _Span:
    """From one observation to the next; `looks` of them, of which only the last saw a change.

    `slots`: those that could work. `busy_seconds`: slot-seconds worked. `arrived`, `completed`: by exact counters.
    `is_blind`: nothing waits and what is in flight is not told.
    """

    from_seconds: float
    seconds: float
    looks: float
    change: float
    slots: float
    busy_seconds: float
    arrived: float | None
    completed: float | None
    is_blind: bool
    begins_queue: bool
    rate: float = 0.0
    arrivals: float = 0.0


def recorded_trace(path: Path, workload: str, *, source: str | None = None, concurrency: int = 1) -> list[Arrival]:
    """The requests of `workload` (`namespace/name`), from the first observation on.

    Raises RecordingUnreadable, and TraceInvalid where no request was observed.
    """
    spans = _spans(read_recording(path, workload, source=source), concurrency)
    service_seconds = _learn(spans)
    arrivals: list[float] = []
    owed = 0.0
    for span in spans:
        owed += span.arrivals
        count = int(owed + 1e-9)
        owed -= count
        arrivals.extend(span.from_seconds + span.seconds * (index + 1) / count for index in range(count))
    if not arrivals:
        raise TraceInvalid(f"no request of {workload} was observed in {path}")
    return [Arrival(at, service_seconds) for at in arrivals]


def _spans(rows: Iterable[Observation], concurrency: int) -> list[_Span]:
    kept: list[Observation] = []
    for row in rows:
        if not kept or row.at_seconds > kept[-1].at_seconds:  # else the wall clock was set back
            kept.append(row)
    # What a row shows had not changed at the look of the row before: the gap is one look.
    gaps = sorted(b.at_seconds - a.at_seconds for a, b in pairwise(kept) if _seen(a) != _seen(b))
    look_seconds = gaps[len(gaps) // 2] if gaps else math.inf
    spans = []
    for before, now in pairwise(kept):
        seconds = now.at_seconds - before.at_seconds
        (waited, worked, slots_before), (waits, works, slots) = _split(before, concurrency), _split(now, concurrency)
        changed = _seen(before) != _seen(now)
        looks = 1.0 if changed or seconds > LONGEST_GAP_SECONDS else max(seconds / look_seconds, 1.0)
        told = worked is not None and works is not None
        is_blind = not told and waited == waits == 0 and (slots_before > 0 or slots > 0)
        # While something waits, all slots work.
        busy = 0.5 * ((slots_before if worked is None else worked) + (slots if works is None else works))
        change = waits - waited + ((works or 0.0) - (worked or 0.0) if told else 0.0)
        spans.append(
            _Span(
                from_seconds=before.at_seconds - kept[0].at_seconds,
                seconds=seconds,
                looks=looks,
                change=change,
                slots=0.5 * (slots_before + slots),
                busy_seconds=0.0 if is_blind else busy * seconds,
                arrived=_counted(before.arrived_total, now.arrived_total),
                completed=_counted(before.completed_total, now.completed_total),
                is_blind=is_blind,
                begins_queue=not told and waited == 0 < waits,
            )
        )
    return spans


def _seen(row: Observation) -> tuple[float | None, ...]:
    return row.metric_value, row.waiting, row.in_flight, row.arrived_total, row.completed_total


def _split(row: Observation, concurrency: int) -> tuple[float, float | None, float]:
    """(waiting, in flight or None where it isn't told, slots)."""
    slots = float((row.desired_replicas if row.ready is None else row.ready) * concurrency)
    if row.waiting is None:
        system = max(row.metric_value, 0.0)
        busy = min(system, slots) if row.in_flight is None else min(row.in_flight, system)
        return system - busy, busy, slots
    return row.waiting, 0.0 if row.in_flight is None and slots == 0 else row.in_flight, slots


def _counted(before: float | None, now: float | None) -> float | None:
    """By a counter; a restarted one tells nothing."""
    return None if before is None or now is None or now < before else now - before


def _learn(spans: list[_Span]) -> float:
    """The mean service time; `arrivals` of every span are set."""
    service_seconds, rounds = math.inf, max(5, min(ROUNDS, MOST_WORK // max(len(spans), 1)))
    for _ in range(rounds):
        busy, completions = 0.0, 0.0
        for span in spans:
            ended = _count(span, service_seconds)
            if ended is not None:
                busy += span.busy_seconds
                completions += ended
        before, service_seconds = service_seconds, _service_seconds(busy, completions)
        _smooth(spans)
        if abs(service_seconds / before - 1.0) < CLOSE:
            break
    _fill(spans, service_seconds)
    return service_seconds


def _service_seconds(busy_seconds: float, completions: float) -> float:
    return max(busy_seconds / max(completions, 1.0), 1e-3) if busy_seconds > 0 else SERVICE_FIRST_SECONDS


def _count(span: _Span, service_seconds: float) -> float | None:
    """Set the arrivals of a span; its completions, or None where they say nothing of the service time."""
    change, arrived, completed = span.change, span.arrived, span.completed
    if arrived is not None and completed is None:
        completed = max(arrived - change, 0.0)
    elif completed is not None and arrived is None:
        arrived = max(change + completed, 0.0)
    elif arrived is None or completed is None:
        if span.is_blind:
            span.arrivals = 0.0
            return None
        likely = span.busy_seconds / service_seconds
        looks = span.looks
        came, ended = span.rate * span.seconds / looks, likely / looks
        terms = 12 + int(min(2.0 * math.sqrt(came * ended), 100.0))  # from so far down the rest does not matter
        hidden = looks * unseen(came, ended, abs(change), terms=terms)
        arrived, completed = hidden + max(change, 0.0), hidden + max(-change, 0.0)
        if service_seconds < math.inf and -change > 10.0 * likely + 20.0:  # no work: the queue was purged
            span.arrivals = hidden
            return None
    span.arrivals = arrived
    return None if span.is_blind else completed


def _smooth(spans: list[_Span]) -> None:
    """The rate of arrivals at each span: a mean of those around it, the nearer the more; blind ones left out."""
    seen = [span for span in spans if not span.is_blind]
    sums: list[tuple[float, float]] = []
    for one_way in (seen, seen[::-1]):
        count = length = 0.0
        for span in one_way:
            fade = math.exp(-span.seconds / RATE_SECONDS)
            count, length = count * fade + span.arrivals, length * fade + span.seconds
            sums.append((count, length))
    for span, forth, back in zip(seen, sums[: len(seen)], sums[: len(seen) - 1 : -1], strict=True):
        # Both hold the span itself.
        span.rate = (forth[0] + back[0] - span.arrivals) / (forth[1] + back[1] - span.seconds)


def _fill(spans: list[_Span], service_seconds: float) -> None:
    """Arrivals while nothing waited and nobody told what was in flight, from how often queues began."""
    blocks: dict[int, list[_Span]] = {}
    for span in spans:
        if span.is_blind or span.begins_queue:
            blocks.setdefault(int(span.from_seconds // BLIND_SECONDS), []).append(span)
    for block in blocks.values():
        blind = [span for span in block if span.is_blind and span.arrived is None and span.completed is None]
        length = sum(span.seconds for span in blind)
        if length > 0:
            slots = round(sum(span.slots * span.seconds for span in blind) / length)
            rate = _rate(sum(span.begins_queue for span in block) / length, service_seconds, slots)
            for span in blind:
                span.arrivals = rate * span.seconds


def _rate(queues_a_second: float, service_seconds: float, slots: int) -> float:
    """The rate of arrivals at which one finds all slots taken so often: the rate times Erlang's loss formula."""
    low, high = 0.0, max(2.0 * slots / service_seconds, queues_a_second)
    for _ in range(40):
        middle = 0.5 * (low + high)
        load, lost = middle * service_seconds, 1.0
        for taken in range(1, slots + 1):
            lost = load * lost / (taken + load * lost)
        low, high = (middle, high) if middle * lost < queues_a_second else (low, middle)
    return low


def write_trace(trace: list[Arrival], path: Path) -> None:
    """As the CSV that `read_trace` reads."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("t_s", "service_s"))
        writer.writerows((f"{one.at_seconds:.3f}", f"{one.service_seconds:.3f}") for one in trace)
