"""The warm pool's size: a newsvendor's quantile of the demand within one lead time.

A warm replica costs its GPU-seconds whether or not work comes; a request that no warm replica takes in time
costs a miss. So n* is the smallest n with

    P(demand within the lead time exceeds what ready replicas and n warm ones begin in time) <= h / (h + m),

h: one warm replica held for one lead time, in GPU-seconds; m: the misses that it averts when demand comes, at
the price of a late request. (Arrow, Harris, Marschak 1951; the critical ratio of the newsvendor problem.) Where
arrivals are so rare that even the first warm replica does not pay, the smallest n is zero: no rule of its own.

Demand is Poisson, or negative binomial where arrivals are more uneven than that (`dispersion` above 1), at the
higher of the rate now and the hour-of-day profile's for now and for one lead time ahead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scaler.core.estimate import Estimates
from scaler.core.model import Goals, Step
from scaler.core.replicas import remaining_seconds

_HOUR_SECONDS = 3_600.0
_SHORTEST_SECONDS = 1.0  # that a hint is valid for: who asks anew when it ends need not ask more often
# Above this many expected requests the sum of the distribution would take longer than a decision may: how far the
# quantile is from the mean grows with the deviation from there on.
_MOST_SUMMED = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmHint:
    """How many replicas to keep warm beyond those that the demand asks for now, and why.

    replicas           n*, 0 where a warm pool does not pay
    valid_seconds      how long the hint holds unless what is known changes
    lead_time_seconds  the cold start it bridges
    expected_demand    requests expected to arrive within the lead time
    demand_quantile    requests at `quantile` of that demand
    quantile           the critical ratio's complement, m / (h + m)
    """

    replicas: int
    valid_seconds: float
    lead_time_seconds: float
    expected_demand: float
    demand_quantile: float
    quantile: float
    step: Step

    @property
    def reason(self) -> str:
        """Why, with numbers."""
        return self.step.text()


def warm_hint(
    known: Estimates,
    goals: Goals,
    *,
    ready: int,
    starting_at_seconds: Sequence[float] = (),
    now_seconds: float,
    learned: Estimates | None = None,
) -> WarmHint:
    """The warm pool beyond the replicas that the demand keeps, as known at `now_seconds`.

    Those are `ready` that serve, and those that were created at `starting_at_seconds` and don't yet. `learned`: from
    where slow quantities are taken, if not from `known`.
    """
    learned = learned or known
    service_seconds = learned.service_seconds(goals)
    mean_seconds, deviation_seconds = learned.cold_start(goals)
    lead_seconds = mean_seconds + deviation_seconds
    wait_seconds = goals.wait_seconds or 0.0
    begun_by_one = goals.concurrency * (1.0 + (lead_seconds + wait_seconds) / service_seconds)
    free = max(ready * goals.concurrency - known.in_flight, 0.0)
    capacity = free + (begun_by_one - goals.concurrency) * ready
    for at_seconds in starting_at_seconds:
        left_seconds = remaining_seconds(now_seconds - at_seconds, mean_seconds, lead_seconds)
        capacity += goals.concurrency * (1.0 + max(lead_seconds + wait_seconds - left_seconds, 0.0) / service_seconds)
    there = ready + len(starting_at_seconds)
    expected = _rate(known, now_seconds, lead_seconds) * lead_seconds
    price = service_seconds * goals.attainment / (1.0 - goals.attainment)
    averted = min(max(learned.crowd, 1.0), begun_by_one)
    quantile = price * averted / (lead_seconds + price * averted)
    demand = demand_quantile(expected, learned.dispersion, quantile)
    lacking = known.waiting + demand - capacity
    replicas = max(math.ceil(lacking / begun_by_one - 1e-9), 0) if demand > 0 else 0
    replicas = min(replicas, max(goals.max_replicas - there, 0))
    reason = (
        "{:.2f} requests expected within a lead time of {:.0f} s, at most {:.0f} with a chance of {:.1%}; "
        "{} that serve and {} that start begin {:.0f} in time"
    )
    step = Step(
        name="warm pool",
        before=there,
        after=there + replicas,
        reason=reason,
        numbers=(expected, lead_seconds, demand, quantile, ready, len(starting_at_seconds), capacity),
    )
    return WarmHint(
        replicas=replicas,
        valid_seconds=_valid_seconds(known, now_seconds, lead_seconds),
        lead_time_seconds=lead_seconds,
        expected_demand=expected,
        demand_quantile=demand,
        quantile=quantile,
        step=step,
    )


def demand_quantile(expected: float, dispersion: float, quantile: float) -> float:
    """The smallest whole k with P(demand <= k) >= `quantile`.

    Demand has the mean `expected` and `dispersion` times the variance of a Poisson distribution.

    >>> demand_quantile(0.0, 1.0, 0.99), demand_quantile(1.0, 1.0, 0.5), demand_quantile(1.0, 4.0, 0.95)
    (0.0, 1.0, 5.0)
    """
    if expected <= 0 or quantile <= 0:
        return 0.0
    quantile = min(quantile, 1.0 - 1e-9)
    if expected > _MOST_SUMMED:
        above = demand_quantile(_MOST_SUMMED, dispersion, quantile) - _MOST_SUMMED
        return float(math.ceil(expected + above * math.sqrt(expected / _MOST_SUMMED) - 1e-9))
    if dispersion <= 1.0 + 1e-6:
        chance, size, share = math.exp(-expected), 0.0, 0.0
    else:
        size, share = expected / (dispersion - 1.0), 1.0 - 1.0 / dispersion
        chance = dispersion**-size
    total, count = chance, 0
    most = expected + 40.0 * math.sqrt(expected * max(dispersion, 1.0)) + 40.0
    while total < quantile and count < most:
        chance *= (expected if share == 0.0 else (count + size) * share) / (count + 1)
        total += chance
        count += 1
    return float(count)


def _rate(known: Estimates, now_seconds: float, lead_seconds: float) -> float:
    """Arrivals a second to be ready for: what is now, or what this hour and the next usually bring."""
    # What was seen for much less than a cold start tells as much, as in policies/slo.py.
    rate = 0.5 * (known.short.value * known.short.weight + known.long.value * known.long.weight)
    for at_seconds in (now_seconds, now_seconds + lead_seconds):
        usual = known.hours.rate_per_second(at_seconds)
        if usual is not None:
            rate = max(rate, usual[0])
    return rate


def _valid_seconds(known: Estimates, now_seconds: float, lead_seconds: float) -> float:
    """Until the hour turns where the profile carries the hint, be it now or one lead time ahead; else one lead time."""
    if known.hours.rate_per_second(now_seconds) is None:
        return lead_seconds
    turns_seconds = min(
        _HOUR_SECONDS - at_seconds % _HOUR_SECONDS for at_seconds in (now_seconds, now_seconds + lead_seconds)
    )
    return max(turns_seconds, _SHORTEST_SECONDS)
