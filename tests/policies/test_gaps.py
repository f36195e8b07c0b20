"""Minutes without a reading, as of a broker that is down, are no burst: what came meanwhile came all the while."""

from __future__ import annotations

from typing import Any

import pytest

from scaler.core.decide import Memory, decide
from scaler.core.estimate import NOTHING_KNOWN, updated
from scaler.core.model import Goals, ReplicaView, Sample
from scaler.policies.slo import POLICY

RATE, SERVICE_SECONDS = 0.75, 20.0
GOALS = Goals(target_value=1.0, wait_seconds=60.0, max_replicas=100, service_seconds=SERVICE_SECONDS)


def steady(now_seconds: float, kind: str) -> Sample:
    """15 in work, one each 4/3 s that comes and one that goes; a few wait now and then."""
    waiting, in_flight, came = float(now_seconds // 2 * 7 % 5), RATE * SERVICE_SECONDS, float(RATE * now_seconds // 1)
    counts = kind == "counts"
    return Sample(
        at_seconds=now_seconds,
        metric_value=waiting,
        active=True,
        waiting=waiting,
        in_flight=None if kind == "queue alone" else in_flight,
        arrived_total=came if counts else None,
        completed_total=came - in_flight if counts else None,
    )


@pytest.mark.parametrize("kind", ["counts", "what waits and what is in flight", "queue alone"])
@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
@pytest.mark.parametrize("gap_seconds", [45.0, 120.0, 315.0, 590.0, 900.0])
def test_after_minutes_without_a_reading_no_burst_is_taken_for_come(
    gap_seconds: float, *, kind: str, seen: bool
) -> None:
    """It was four times the replicas after five minutes, and all that are allowed after ten."""
    memory: Memory[Any] = Memory(state=POLICY.start())
    now_seconds, asked, there = 0.0, list[int](), 15
    for look in range(1200):
        now_seconds += gap_seconds if look == 900 else 2.0
        view = ReplicaView(at_seconds=now_seconds, ready=there, status_replicas=there) if seen else None
        sample = steady(now_seconds, kind)
        decision, memory = decide(POLICY, GOALS, memory, sample=sample, view=view, now_seconds=now_seconds)
        assert decision is not None
        there = decision.desired_replicas
        asked.append(there)
    before = asked[899]
    assert before >= 15
    assert before - 1 <= min(asked[900:930])
    assert max(asked[900:]) <= 1.25 * before


def test_what_came_in_a_gap_is_spread_over_it_and_stays_bounded() -> None:
    known, now_seconds, came = NOTHING_KNOWN, 0.0, 0.0
    for gap_seconds in [2.0] * 50 + [300.0, 2.0, 61.0, 590.0, 120.0] + [2.0] * 30:
        now_seconds, came = now_seconds + gap_seconds, came + gap_seconds
        sample = Sample(
            at_seconds=now_seconds, metric_value=1.0, active=True, waiting=1.0, in_flight=3.0, arrived_total=came
        )
        known = updated(known, sample, GOALS, ready=3, cold_starts_seconds=(), waking=False, now_seconds=now_seconds)
        counts, moments = zip(*known.recent, strict=True)
        assert len(counts) <= 24
        assert sorted(counts) == list(counts)
        assert sorted(moments) == list(moments)
        assert moments[-1] <= now_seconds
        if gap_seconds > 2.0:
            assert known.arrived - counts[-1] <= 60.0  # of the last minute at most, taken for what came together
