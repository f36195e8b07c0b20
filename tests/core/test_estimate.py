import heapq
import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.core.estimate import NOTHING_KNOWN, SERVICE_FIRST_SECONDS, Estimates, dumped, loaded, updated
from scaler.core.hours import Hours
from scaler.core.model import Goals, Sample
from scaler.simulator.arrivals import Poisson, Service, generate

GOALS = Goals(target_value=1.0, wait_seconds=20.0, attainment=0.95)


def sample(
    at: float, waiting: float, in_flight: float, arrived: float | None = None, completed: float | None = None
) -> Sample:
    return Sample(
        at_seconds=at,
        metric_value=waiting + in_flight,
        active=waiting + in_flight > 0,
        waiting=waiting,
        in_flight=in_flight,
        arrived_total=arrived,
        completed_total=completed,
    )


def fed(known: Estimates, *samples: Sample, ready: int = 1, goals: Goals = GOALS) -> Estimates:
    for one in samples:
        known = updated(
            known, one, goals, ready=ready, cold_starts_seconds=(), waking=False, now_seconds=one.at_seconds
        )
    return known


def steady() -> list[Sample]:
    """Two requests a second, five seconds each, none waits."""
    return [sample(5.0 * i, 0.0, 10.0, 10.0 + 10.0 * i, 10.0 * i) for i in range(400)]


def test_rate_and_service_time_of_a_steady_flow() -> None:
    known = fed(NOTHING_KNOWN, *steady(), ready=10)
    assert known.service_seconds(GOALS) == pytest.approx(5.0, rel=0.05)
    assert known.short.value == pytest.approx(2.0, rel=0.05)
    assert known.waits.achieved is None or known.waits.achieved == 1.0


def taught(service_seconds: float) -> Estimates:
    """What four requests of such a service, the first guess among them, have taught."""
    known = replace(NOTHING_KNOWN, busy_slot_seconds=4.0 * service_seconds - SERVICE_FIRST_SECONDS, completions=3.0)
    assert known.service_seconds(GOALS) == pytest.approx(service_seconds)
    return known


@pytest.mark.parametrize("guess", [2.0, 5.0, 30.0])
def test_a_wrong_first_guess_of_the_service_time_is_corrected_without_counters(guess: float) -> None:
    goals, known = GOALS, taught(guess)
    for i in range(1, 6_001):  # one request every 100 s, 10 s in flight, looked at every 2 s
        one = sample(2.0 * i, 0.0, 1.0 if i % 50 in range(1, 6) else 0.0)
        known = updated(known, one, goals, ready=1, cold_starts_seconds=(), waking=False, now_seconds=2.0 * i)
    assert known.service_seconds(goals) == pytest.approx(10.0, rel=0.1)
    assert known.arrived == pytest.approx(120.0, rel=0.1)


@pytest.mark.parametrize("guess", [2.0, 5.0, 30.0])
@pytest.mark.parametrize(("rate", "slots"), [(0.25, 3), (2.0, 25)], ids=["a queue now and then", "many in flight"])
def test_service_time_and_arrivals_are_told_from_random_traffic_without_counters(
    guess: float, rate: float, slots: int
) -> None:
    goals = GOALS
    trace = list(
        generate(
            Poisson(rate_per_second=rate), Service(mean_seconds=10.0, variation=0.5), random.Random(3), 4_000.0 / rate
        )
    )
    known, now = taught(guess), 0.0
    free, waiting, busy, arrived = slots, list[float](), list[float](), 0
    while now < 4_000.0 / rate:
        now += 2.0
        while True:  # what happens until then, in order
            ends = busy[0] if busy else math.inf
            comes = trace[arrived].at_seconds if arrived < len(trace) else math.inf
            if min(ends, comes) > now:
                break
            if comes <= ends:
                waiting.append(trace[arrived].service_seconds)
                arrived += 1
            else:
                heapq.heappop(busy)
                free += 1
            if free and waiting:
                heapq.heappush(busy, min(ends, comes) + waiting.pop(0))
                free -= 1
        one = sample(now, float(len(waiting)), float(len(busy)))
        known = updated(known, one, goals, ready=slots, cold_starts_seconds=(), waking=False, now_seconds=now)
    # With many in flight their difference tells little: it errs towards too long a service, which is the safe side, and
    # comes away from a wrong guess slowly, since what is inferred must not run away where traffic is even.
    assert 8.0 < known.service_seconds(goals) < (20.0 if guess > 10.0 else 15.0)
    assert (0.5 if guess > 10.0 else 0.65) * arrived < known.arrived < 1.1 * arrived


def test_waits_are_told_from_the_order_of_arrival() -> None:
    samples, arrived, completed = [], 0.0, 0.0
    for i in range(200):  # one a second arrives, one a second starts, thirty wait: each waits thirty seconds
        arrived = 31.0 + 5.0 * i
        completed = 5.0 * i
        samples.append(sample(5.0 * i, 30.0, 1.0, arrived, completed))
    known = fed(NOTHING_KNOWN, *samples)
    assert known.waits.achieved is not None
    assert known.waits.achieved < 0.1
    assert known.waits.debt > 0


@pytest.mark.parametrize("hugging_seconds", [2.0, 5.0, 1_000.0], ids=["steeply", "less so", "evenly"])
def test_misses_are_told_where_most_waits_end_just_in_time(hugging_seconds: float) -> None:
    """Looked at every 5 s, a wait of 19 s looks like one of 21: how waits thin out around the promise tells which."""
    chance = random.Random(4)
    known, looks = NOTHING_KNOWN, 400 * 12
    span = 1.0 - math.exp(-20.0 / hugging_seconds)  # waits from 10 to 30 s
    waits = [10.0 - hugging_seconds * math.log(1.0 - span * chance.random()) for _ in range(400)]
    began_at = [60.0 * index + 10.0 * chance.random() for index in range(400)]
    for look in range(looks):
        now_seconds = 5.0 * look
        index = min(int(now_seconds // 60.0), 399)
        came_at, served_at = began_at[index], began_at[index] + waits[index]
        waiting = came_at <= now_seconds < served_at
        busy = served_at <= now_seconds < served_at + 5.0
        arrived = index + (came_at <= now_seconds)
        one = sample(now_seconds, float(waiting), float(busy), arrived, arrived - waiting - busy)
        known = updated(known, one, GOALS, ready=1, cold_starts_seconds=(), waking=False, now_seconds=one.at_seconds)
    misses = sum(wait > 20.0 for wait in waits)
    fade = 86_400.0 / 24_000.0 * (1.0 - math.exp(-24_000.0 / 86_400.0))  # what is counted is about a day's
    assert known.waits.missed == pytest.approx(misses * fade, rel=0.25, abs=3.0)


def test_what_is_counted_is_about_the_last_day_however_seldom_something_comes() -> None:
    known = NOTHING_KNOWN
    for hour in range(24 * 20):  # one request an hour, looked at while it is there
        for second in (0.0, 5.0, 10.0):
            there = second == 5.0
            at = 3_600.0 * hour + second
            known = fed(known, sample(at, float(there), 0.0, hour + float(second > 0), hour + float(second > 5)))
    assert known.waits.counted == pytest.approx(24.0, rel=0.1)


@pytest.mark.parametrize("before", [0.0, 1.0, 3.0, 40.0])
@pytest.mark.parametrize("ready", [1, 2, 3, 9])
def test_more_waiting_is_never_fewer_arrivals_where_replicas_are_only_believed_in(before: float, ready: int) -> None:
    def read(at: float, waiting: float) -> Sample:
        return Sample(at_seconds=at, metric_value=waiting, active=waiting > 0, waiting=waiting)

    def looked(known: Estimates, one: Sample, ready: int) -> Estimates:
        return updated(
            known, one, GOALS, ready=ready, cold_starts_seconds=(), waking=False, blind=True, now_seconds=one.at_seconds
        )

    known = NOTHING_KNOWN
    for at in range(10):
        known = looked(known, read(5.0 * at, 2.0 * at), 2)
    known = looked(known, read(50.0, before), 2)
    arrived = [looked(known, read(55.0, waiting), ready).arrived for waiting in (0.0, 0.5, 1.0, 2.0, 3.0, 50.0)]
    assert arrived == sorted(arrived)


def test_a_counter_that_restarts_loses_one_sample_and_nothing_else() -> None:
    before = fed(NOTHING_KNOWN, *steady(), ready=10)
    last = steady()[-1]
    after = fed(before, sample(last.at_seconds + 5.0, 0.0, 10.0, 3.0, 0.0), ready=10)
    assert after.service_seconds(GOALS) == pytest.approx(before.service_seconds(GOALS), rel=0.05)
    assert after.short.value == pytest.approx(before.short.value, rel=0.3)


def test_a_purge_is_not_taken_for_work_done() -> None:
    before = fed(NOTHING_KNOWN, *[sample(5.0 * i, 1_000.0, 1.0) for i in range(50)])
    after = fed(before, sample(250.0, 0.0, 1.0))
    assert after.service_seconds(GOALS) == before.service_seconds(GOALS)
    assert after.waits.batches == ()


def test_a_purge_that_no_counter_counts_is_not_taken_for_requests_begun_late() -> None:
    before = fed(NOTHING_KNOWN, *steady(), ready=10)
    at, done = 5.0 * 400, 10.0 * 400
    flood = [sample(at + 5.0 * i, 1_000.0, 10.0, done + 1_010.0 + 10.0 * i, done + 10.0 * i) for i in range(12)]
    purged = [
        sample(at + 60.0 + 5.0 * i, 0.0, 10.0, done + 1_130.0 + 10.0 * i, done + 120.0 + 10.0 * i) for i in range(9)
    ]
    after = fed(before, *flood, *purged, ready=10)
    assert after.waits.missed < before.waits.missed + 120.0  # those that began late behind the flood, not the flood
    assert after.service_seconds(GOALS) == pytest.approx(5.0, rel=0.1)


@pytest.mark.parametrize("gap_seconds", [3_600.0, 86_400.0])
def test_a_gap_in_the_readings_teaches_nothing_of_the_service_time(gap_seconds: float) -> None:
    at, done = 5.0 * 400 + gap_seconds, 10.0 * 400 + 20.0
    after = fed(NOTHING_KNOWN, *steady(), sample(at, 0.0, 10.0, done + 10.0, done), ready=10)
    assert after.service_seconds(GOALS) == pytest.approx(5.0, rel=0.05)


def test_a_clock_that_steps_back_keeps_what_was_learned() -> None:
    before = fed(NOTHING_KNOWN, *steady(), ready=10)
    after = fed(before, sample(3.0, 0.0, 10.0, 5_000.0, 4_990.0), ready=10)
    assert after.service_seconds(GOALS) == before.service_seconds(GOALS)
    assert after.short.value == before.short.value


@pytest.mark.parametrize(("said_seconds", "seconds"), [(None, 60.0), (45.0, 45.0), (0.5, 0.5), (0.0, 0.001)])
def test_a_first_guess_of_nothing_is_no_absent_guess(said_seconds: float | None, seconds: float) -> None:
    goals = replace(GOALS, cold_start_seconds=said_seconds, service_seconds=said_seconds)
    assert NOTHING_KNOWN.cold_start(goals)[0] == seconds
    assert NOTHING_KNOWN.service_seconds(goals) == (5.0 if said_seconds is None else seconds)
    # The rate is taken over one cold start: of ten in the last five seconds it tells the more the shorter that is.
    quiet = [sample(5.0 * i, 0.0, 1.0, 0.0, 0.0) for i in range(10)]
    known = NOTHING_KNOWN
    for one in (*quiet, sample(50.0, 0.0, 1.0, 10.0, 10.0)):
        known = updated(known, one, goals, ready=1, cold_starts_seconds=(), waking=False, now_seconds=one.at_seconds)
    assert (known.short.value > 0.5) == (seconds < 10.0)


def test_a_service_time_that_is_told_is_believed_where_nobody_counts_and_a_first_guess_elsewhere() -> None:
    goals = replace(GOALS, service_seconds=120.0)
    uncounted, counted = NOTHING_KNOWN, NOTHING_KNOWN
    for i in range(400):  # a queue of ten stands: 2 a second come and go, as only a counter shows
        seconds = 5.0 * i
        uncounted = fed(uncounted, sample(seconds, 10.0, 10.0), ready=10, goals=goals)
        counted = fed(counted, sample(seconds, 10.0, 10.0, 20.0 + 10.0 * i, 10.0 * i), ready=10, goals=goals)
    assert uncounted.service_seconds(goals) == 120.0
    assert counted.service_seconds(goals) < 7.0
    assert uncounted.arrived < 0.1 * counted.arrived


def test_cold_starts_are_the_mean_of_those_seen_and_the_first_guess_before() -> None:
    guess = replace(GOALS, cold_start_seconds=45.0)
    assert NOTHING_KNOWN.cold_start(guess)[0] == 45.0
    known = NOTHING_KNOWN
    for i in range(30):
        known = updated(
            known,
            sample(5.0 * i, 0.0, 1.0),
            GOALS,
            ready=1,
            cold_starts_seconds=(80.0, 120.0),
            waking=False,
            now_seconds=5.0 * i,
        )
    mean_seconds, deviation_seconds = known.cold_start(GOALS)
    assert mean_seconds == pytest.approx(100.0, rel=0.05)
    assert deviation_seconds == pytest.approx(20.0, rel=0.3)


def test_without_a_view_the_first_work_after_a_wake_tells_the_cold_start() -> None:
    known = fed(NOTHING_KNOWN, sample(0.0, 0.0, 0.0, 0.0, 0.0), ready=0)
    for i in range(1, 30):
        served = i >= 17
        one = sample(5.0 * i, 0.0 if served else 1.0, 1.0 if served else 0.0, 1.0, 0.0)
        known = updated(
            known, one, GOALS, ready=0, cold_starts_seconds=(), waking=not served, now_seconds=one.at_seconds
        )
    assert known.cold_starts == 1
    assert known.cold_start(GOALS)[0] == pytest.approx(80.0, abs=6.0)


COUNT = st.one_of(st.none(), st.floats(0, 1e9))


@given(st.lists(st.tuples(st.floats(-100, 1e5), st.floats(0, 1e6), COUNT, COUNT, COUNT), min_size=1, max_size=40))
def test_whatever_is_read_it_stays_finite_bounded_and_survives_a_round_trip(
    readings: list[tuple[float, float, float | None, float | None, float | None]],
) -> None:
    known, now = NOTHING_KNOWN, 0.0
    for gap, waiting, in_flight, arrived, completed in readings:
        now += gap
        one = Sample(
            at_seconds=now,
            metric_value=waiting,
            active=True,
            waiting=waiting,
            in_flight=in_flight,
            arrived_total=arrived,
            completed_total=completed,
        )
        known = updated(known, one, GOALS, ready=2, cold_starts_seconds=(), waking=False, now_seconds=now)
    assert 0 < known.service_seconds(GOALS) < float("inf")
    assert 0.5 <= known.dispersion <= 100
    assert len(known.waits.batches) <= 97
    text = json.dumps(dumped(known), allow_nan=False)
    assert loaded(json.loads(text)) == known


def test_the_hours_of_the_day_move_with_the_clock_by_whole_hours() -> None:
    hours = tuple((float(hour), 1.0) for hour in range(24))
    known = replace(NOTHING_KNOWN, hours=Hours(hour=23, profile=hours))
    for seconds, five in ((0.0, 5.0), (3_600.0, 4.0), (-3_600.0, 6.0), (1_000.0, 5.0), (86_400.0 * 365, 5.0)):
        moved = known.shifted(seconds, turns_hours=True)
        assert moved.hours.rate_per_second(5.5 * 3_600.0) == (five, 1.0)
        assert known.shifted(seconds, turns_hours=False).hours == known.hours
    assert known.shifted(3_600.0, turns_hours=True).hours.hour == 0


def test_what_is_loaded_later_moves_with_the_clock() -> None:
    known = fed(NOTHING_KNOWN, sample(100.0, 5.0, 1.0, 6.0, 0.0))
    moved = loaded(json.loads(json.dumps(dumped(known)))).shifted(-100.0, turns_hours=True)
    assert moved.at_seconds == 0.0
    assert moved.waits.batches[0][1] == known.waits.batches[0][1] - 100.0
    assert loaded({}) == NOTHING_KNOWN
