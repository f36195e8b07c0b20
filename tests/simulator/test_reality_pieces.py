"""What `python -m tests.reality` measures with. The comparison itself takes minutes and is no unit test."""

from __future__ import annotations

import asyncio
import random
import time
from itertools import pairwise

import pytest

from loadgen.keda import Event
from loadgen.results import Point
from scaler.simulator.arrivals import in_order
from scaler.trigger import parse_steps
from tests import reality


def scaled(by: str, at_seconds: float) -> Event:
    return Event(at_seconds=at_seconds, kind="scaled", by=by, replicas_before=0, replicas_after=1)


def point(at_seconds: float, wanted: int, *, terminating: int = 0) -> Point:
    return Point(
        at_seconds=at_seconds, waiting=0, wanted=wanted, ready=wanted, starting=0, terminating=terminating, busy=0
    )


@pytest.mark.parametrize(
    ("moments", "share"),
    [([5.0, 20.0, 35.0], 1 / 3), ([14.9, 30.1], 0.0), ([0.1, 14.9, 44.9, 45.1], 0.0), ([], 0.0)],
    ids=str,
)
def test_the_phase_of_a_loop_is_found_across_the_edge_of_its_period(moments: list[float], share: float) -> None:
    events = [scaled("hpa", at) for at in moments] + [scaled("push", 7.0)]
    found = reality._phase(reality._scaled(events, "hpa"), 15.0)
    assert min(abs(found - share), 1 - abs(found - share)) < 1e-6


def test_gpu_seconds_are_the_area_under_the_replicas_terminating_ones_included() -> None:
    points = [point(0.0, 0), point(10.0, 2), point(20.0, 2), point(30.0, 0, terminating=2), point(40.0, 0)]
    assert reality._gpu_seconds(points, 40.0) == 10.0 + 20.0 + 20.0 + 10.0
    assert reality._gpu_seconds(points, 15.0) == 10.0 + 10.0


def test_a_simulation_of_what_it_gave_itself_is_close_all_the_time() -> None:
    arrivals = reality.load(1, 4.0)
    outcome = reality.simulate("steps", arrivals, 1, (0.5, 0.2, 0.9))
    assert reality._close(outcome.timeline, outcome, outcome.end_at_seconds) == 1.0
    apart = [(entry[0], entry[1] + 2) for entry in outcome.timeline]
    assert reality._close(apart, outcome, outcome.end_at_seconds) < 0.9


@pytest.mark.parametrize("minutes", [3.0, 20.0])
def test_the_load_is_in_order_begins_after_the_lead_and_falls_silent(minutes: float) -> None:
    arrivals = reality.load(random.Random(1).randrange(99), minutes)
    assert in_order(arrivals)
    assert arrivals[0].at_seconds >= reality.LEAD_SECONDS
    gaps = [later.at_seconds - before.at_seconds for before, later in pairwise(arrivals)]
    assert max(gaps) >= 0.2 * 60.0 * minutes


def test_both_ways_are_given_the_same_goals() -> None:
    assert parse_steps(reality.METADATA["steps"]["steps"]) == reality.GOALS["steps"].steps
    goals, metadata = reality.GOALS["slo"], reality.METADATA["slo"]
    assert (goals.wait_seconds, goals.attainment, goals.service_seconds) == (
        float(metadata["waitSeconds"]), float(metadata["attainment"]), float(metadata["serviceSeconds"]),
    )  # fmt: skip


def test_seconds_of_the_fast_loop_are_shorter_than_real_ones() -> None:
    async def nap() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.sleep(20.0)
        return loop.time() - began

    began = time.monotonic()
    with asyncio.Runner(loop_factory=lambda: reality._FastLoop(100.0)) as runner:
        assert runner.run(nap()) >= 20.0
    assert 0.2 <= time.monotonic() - began < 10.0
