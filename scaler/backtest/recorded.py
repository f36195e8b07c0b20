"""A workload's own traffic as a trace: what the service recorded (scaler/state.py), turned back into requests.

Where the source has exact counters, arrivals are counted by them. Else only the difference between what arrived and
what ended is seen, from look to look: requests that both came and ended between two looks are estimated, as
core/estimate.py does, but with the whole recording at hand. The service time and the rate of arrivals at each moment
are those that explain the differences best: each round counts with what the round before has learned (expectation
maximisation), until the service time stands still.

Where requests in flight aren't told either, all slots work while something waits, and while nothing waits nothing is
seen at all. There the rate is the one at which a queue would begin as often as it did (Erlang's loss formula), over
five minutes: idle ones stay empty, lightly loaded ones come out too light.

How far two rows are apart is told by the process's clock, between two runs of the service by the wall's. Where that
was set back, or a gap is longer than anybody is likely to have been away, its length is not known: it counts as one
look, and what counters tell of it is left out. So are rows of two processes about the same time.

Where the source says how many replicas can have work at once (Kafka: one for each partition), the most that it said is
the limit of the replay: partitions are added and never taken away.

Within one interval between two observations arrivals are spread evenly. How long each request took is not recorded: all
take the mean.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from scaler.core.estimate import SERVICE_FIRST_SECONDS
from scaler.core.flows import unseen
from scaler.errors import quoted
from scaler.loads import LONGEST_SERVICE_SECONDS, MOST_REQUESTS, TraceInvalid
from scaler.simulator.arrivals import Arrival
from scaler.state import Observation, read_recording

LONGEST_GAP_SECONDS = 90.0  # a row a minute is written whatever happens; in a longer gap nobody looked
RATE_SECONDS = 60.0  # the rate at a moment is a mean over about so long before and after
BLIND_SECONDS = 300.0  # over which the beginnings of queues are counted, where in flight isn't told
# Between two runs. What is longer is rather a wall clock that was wrong: years, often.
LONGEST_OFF_SECONDS = 7 * 86_400.0
# Rows of an older version, which tell the wall's time alone: set back by so much, or two processes wrote.
SET_BACK_SECONDS = 3_600.0
LOOK_SECONDS = 5.0  # where nothing tells how often somebody looked
MOST_SLOTS = 10_000
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a recording tells of a workload's traffic, from the first observation on.

    `most_replicas`: no more can have work at once; None: the source says nothing of the kind, or an older version wrote
    the recording.
    """

    requests: list[Arrival]
    most_replicas: int | None


def recorded_trace(
    path: Path,
    workload: str,
    *,
    source: str | None = None,
    concurrency: int = 1,
    tell: Callable[[str], None] = lambda _: None,
) -> Recorded:
    """The traffic of `workload` (`namespace/name`).

    `tell` gets one line about what had to be left out, and one about a limit of replicas, if there is one. Raises
    RecordingUnreadable, and TraceInvalid where no request was observed, or more than can be simulated.
    """
    rows, gaps, left_out = _in_order(read_recording(path, workload, source=source))
    spans = _spans(rows, gaps, concurrency)
    _tell(tell, workload, rows, gaps, left_out, waited_at_first=_split(rows[0], concurrency)[0] if rows else 0.0)
    most_replicas = max((row.most_replicas for row in rows if row.most_replicas is not None), default=None)
    if most_replicas is not None:
        most_replicas = max(most_replicas, 1)  # the one that looks for work
        tell(f"recording of {workload}: at most {most_replicas} replicas can have work at once, as its source says")
    service_seconds = _learn(spans)
    expected = math.fsum(span.arrivals for span in spans)
    where = f"the recording {quoted(path, limit=400)} of {workload}"
    if not expected <= MOST_REQUESTS:
        raise TraceInvalid(f"{where} comes to {expected:.3g} requests; expected at most {MOST_REQUESTS:,}")
    if service_seconds > LONGEST_SERVICE_SECONDS:
        raise TraceInvalid(
            f"{where} comes to {service_seconds:.3g} seconds of service a request; "
            f"expected at most {LONGEST_SERVICE_SECONDS:.0f}"
        )
    arrivals: list[float] = []
    owed = 0.0
    for span in spans:
        owed += span.arrivals
        count = int(owed + 1e-9)
        owed -= count
        arrivals.extend(span.from_seconds + span.seconds * (index + 1) / count for index in range(count))
    if not arrivals:
        raise TraceInvalid(f"no request of {workload} was observed in {path}")
    return Recorded(requests=[Arrival(at, service_seconds) for at in arrivals], most_replicas=most_replicas)


def _in_order(rows: Iterable[Observation]) -> tuple[list[Observation], list[float | None], int]:
    """Rows, the seconds between each and the next (None: not known), and how many rows were left out."""
    kept: list[Observation] = []
    gaps: list[float | None] = []
    left_out = 0
    for row in rows:
        if kept:
            seconds = _apart(kept[-1], row)
            if seconds is not None and seconds <= 0:
                left_out += 1
                continue
            gaps.append(seconds)
        kept.append(row)
    return kept, gaps, left_out


def _apart(before: Observation, now: Observation) -> float | None:
    """Seconds between two rows; None: not known; not above 0: what `now` shows was told already."""
    seconds = now.at_seconds - before.at_seconds
    if before.ran_seconds is not None and now.ran_seconds is not None:
        ran_seconds = now.ran_seconds - before.ran_seconds
        # Below 0 in another run: that process waited for the file, which the one before was still writing.
        if before.run == now.run or ran_seconds < 0:
            return ran_seconds
    elif -SET_BACK_SECONDS <= seconds <= 0:
        return seconds
    return seconds if 0 < seconds <= LONGEST_OFF_SECONDS else None


def _tell(
    tell: Callable[[str], None],
    workload: str,
    kept: list[Observation],
    gaps: list[float | None],
    left_out: int,
    *,
    waited_at_first: float,
) -> None:
    unknown = [index for index, seconds in enumerate(gaps) if seconds is None]
    said = []
    if waited_at_first >= 1.0:
        said.append(f"{waited_at_first:.0f} requests that waited already at the first look are left out")
    if unknown:
        requests = sum(_counted(kept[index].arrived_total, kept[index + 1].arrived_total) or 0.0 for index in unknown)
        said.append(
            f"{len(unknown)} gaps between observations are of unknown length (the wall clock was set, or nobody looked "
            f"for over {LONGEST_OFF_SECONDS / 86_400:.0f} days) and count as one look each"
            + (f"; {requests:.0f} requests that counters tell of them are left out" if requests else "")
        )
    if left_out:
        said.append(f"{left_out} observations of times that others tell of already are left out")
    if said:
        tell(f"recording of {workload}: {'; '.join(said)}")


def _spans(kept: list[Observation], gaps: list[float | None], concurrency: int) -> list[_Span]:
    # What a row shows had not changed at the look of the row before: the gap is one look.
    looks_seconds = sorted(
        seconds for (a, b), seconds in zip(pairwise(kept), gaps, strict=True) if seconds and _seen(a) != _seen(b)
    )
    look_seconds = looks_seconds[len(looks_seconds) // 2] if looks_seconds else math.inf
    spans = []
    unknown_seconds = look_seconds if looks_seconds else LOOK_SECONDS
    from_seconds = 0.0
    for (before, now), known_seconds in zip(pairwise(kept), gaps, strict=True):
        is_known = known_seconds is not None
        seconds = unknown_seconds if known_seconds is None else known_seconds
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
                from_seconds=from_seconds,
                seconds=seconds,
                looks=looks,
                change=change,
                slots=0.5 * (slots_before + slots),
                busy_seconds=0.0 if is_blind else busy * seconds,
                arrived=_counted(before.arrived_total, now.arrived_total) if is_known else None,
                completed=_counted(before.completed_total, now.completed_total) if is_known else None,
                is_blind=is_blind,
                begins_queue=not told and waited == 0 < waits,
            )
        )
        from_seconds += seconds
    return spans


def _seen(row: Observation) -> tuple[float | None, ...]:
    return row.metric_value, row.waiting, row.in_flight, row.in_system, row.arrived_total, row.completed_total


def _split(row: Observation, concurrency: int) -> tuple[float, float | None, float]:
    """(waiting, in flight or None where it isn't told, slots)."""
    slots = float((row.desired_replicas if row.ready is None else row.ready) * concurrency)
    system = row.in_system
    if row.in_flight is None and row.arrived_total is not None and row.completed_total is not None:
        # Older versions wrote Kafka's lag, which holds what is worked on, as what waits; no other source tells so.
        system = row.waiting if system is None else system
    if row.waiting is None or system is not None:
        system = max(row.metric_value if system is None else system, 0.0)
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
            slots = min(round(sum(span.slots * span.seconds for span in blind) / length), MOST_SLOTS)
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
