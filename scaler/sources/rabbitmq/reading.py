"""What RabbitMQ tells about queues, and KEDA's five modes over it. Pure.

Counts are messages, rates are messages per second over RabbitMQ's last statistics interval (5 s by default,
https://www.rabbitmq.com/docs/management#stats-interval). KEDA's formulas: rabbitmq_scaler.go at 8b4f083c.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scaler.core.model import ReplicaView, Sample
from scaler.errors import SourceNoData, quoted
from scaler.sources.rabbitmq.config import Mode, RabbitConfig

# The least rate that RabbitMQ's statistics can show: one message in an interval of 5 s. "Nothing was
# delivered" therefore says no more than "fewer than this per second".
LEAST_RATE_PER_SECOND = 0.2
_SMALLEST_RATE = 1e-6
_GREATEST_AMOUNT = 1e15


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """One queue, or several made one. None: not known (AMQP tells `ready` only; some need traffic to appear)."""

    ready: float
    unacknowledged: float | None = None
    publish_rate: float = 0.0
    deliver_rate: float = 0.0
    consumers: float | None = None
    published_total: float | None = None
    completed_total: float | None = None

    @property
    def messages(self) -> float:
        """Ready and unacknowledged."""
        return self.ready + (self.unacknowledged or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """`queues` queues at one moment: their sum, and the greatest value of each field by itself.

    For one queue both are the same. `greatest_messages`: of ready plus unacknowledged, queue by queue. `rates`:
    whether RabbitMQ measures any; else their zeros mean nothing.
    """

    at_seconds: float
    queues: int
    total: Counts
    greatest: Counts
    greatest_messages: float
    rates: bool = True


NOTHING = Counts(ready=0.0, unacknowledged=0.0, consumers=0.0)


def one(counts: Counts, at_seconds: float, *, rates: bool = True) -> Reading:
    """The reading of a single queue."""
    return Reading(
        at_seconds=at_seconds,
        queues=1,
        total=counts,
        greatest=counts,
        greatest_messages=counts.messages,
        rates=rates,
    )


def several(queues: Iterable[Counts], at_seconds: float, *, rates: bool = True) -> Reading:
    """The reading of the queues that match an expression; none: all zero, as KEDA has it."""
    found = tuple(queues)
    if not found:
        return Reading(at_seconds=at_seconds, queues=0, total=NOTHING, greatest=NOTHING, greatest_messages=0.0)
    unacknowledged = [counts.unacknowledged for counts in found if counts.unacknowledged is not None]
    consumers = [counts.consumers for counts in found if counts.consumers is not None]
    # Totals since the start are left out: a queue that is deleted takes its part along, which looks like a restart.
    return Reading(
        at_seconds=at_seconds,
        queues=len(found),
        total=Counts(
            ready=math.fsum(counts.ready for counts in found),
            unacknowledged=math.fsum(unacknowledged) if unacknowledged else None,
            publish_rate=math.fsum(counts.publish_rate for counts in found),
            deliver_rate=math.fsum(counts.deliver_rate for counts in found),
            consumers=math.fsum(consumers) if consumers else None,
        ),
        greatest=Counts(
            ready=max(counts.ready for counts in found),
            unacknowledged=max(unacknowledged, default=None),
            publish_rate=max(counts.publish_rate for counts in found),
            deliver_rate=max(counts.deliver_rate for counts in found),
            consumers=max(consumers, default=None),
        ),
        greatest_messages=max(counts.messages for counts in found),
        rates=rates,
    )


def counts_of(row: Mapping[str, object]) -> Counts | None:
    """The counts in a row of the management API; None where the queue has no statistics (yet).

    A new queue has none for up to one statistics interval; neither has one whose node is down.
    """
    ready = _number(row.get("messages_ready"))
    unacknowledged = _number(row.get("messages_unacknowledged"))
    if ready is None or unacknowledged is None:
        return None
    found = row.get("message_stats")
    stats: Mapping[str, object] = found if isinstance(found, Mapping) else {}
    # Acknowledged, or delivered to a consumer that never acknowledges: both are done with.
    completed = [
        value for name in ("ack", "deliver_no_ack", "get_no_ack") if (value := _number(stats.get(name))) is not None
    ]
    return Counts(
        ready=ready,
        unacknowledged=unacknowledged,
        publish_rate=_rate(stats, "publish_details"),
        deliver_rate=_rate(stats, "deliver_get_details"),
        consumers=_number(row.get("consumers")),
        published_total=_number(stats.get("publish")),
        completed_total=math.fsum(completed) if completed else None,
    )


def sample(config: RabbitConfig, reading: Reading, view: ReplicaView | None) -> Sample:
    """KEDA's metric and activation, but for consumers that are stuck (see `measure`).

    Raises SourceNoData where the mode needs rates and RabbitMQ measures none.
    """
    if not reading.rates and config.mode is not Mode.QUEUE_LENGTH:
        raise SourceNoData(
            f"queue {quoted(config.queue)}: mode {config.mode.value} needs rates, and RabbitMQ measures none "
            "(management.rates_mode is none); set it to basic, or use mode QueueLength"
        )
    counts, messages = _operated(config, reading)
    metric, active = measure(
        config.mode,
        counts,
        messages,
        activation=config.activation_value,
        # While nothing is consumed nothing is learned of the rate: keep what is there, at least one.
        keep=config.value * max(1, view.alive if view is not None else 1),
    )
    total = reading.total
    raw = {
        "queues": float(reading.queues),
        "ready_messages": total.ready,
        "unacknowledged_messages": total.unacknowledged,
        "publish_per_second": total.publish_rate if total.unacknowledged is not None else None,
        "deliver_per_second": total.deliver_rate if total.unacknowledged is not None else None,
        "consumers": total.consumers,
    }
    return Sample(
        at_seconds=reading.at_seconds,
        metric_value=max(metric, 0.0),
        active=active,
        waiting=total.ready,
        in_flight=total.unacknowledged,
        arrived_total=total.published_total,
        completed_total=total.completed_total,
        raw={name: value for name, value in raw.items() if value is not None},
    )


def measure(mode: Mode, counts: Counts, messages: float, *, activation: float, keep: float) -> tuple[float, bool]:
    """(metric, active) by KEDA's formulas, where `messages` is what counts as the queue's length.

    Where there is work and none of it is delivered, KEDA reports the activation value, which wakes one
    replica and never a second, or (two of the modes) nothing, which puts the last one to sleep on a backlog.
    Here consumers that are stuck scale up: as if they took the least that can be seen. Where no consumer is
    connected there is nothing to be stuck (they start, or are asleep): `keep`, the metric that keeps the
    replicas there are, at least one.
    """
    published, delivered = counts.publish_rate, counts.deliver_rate
    idle = delivered == 0 and (messages > 0 or published > 0)
    unattended = counts.consumers == 0
    match mode:
        case Mode.QUEUE_LENGTH:
            return messages, messages > activation
        case Mode.MESSAGE_RATE:
            return published, published > activation or messages > activation
        case Mode.DELIVER_GET_RATE:
            if messages > 0 and delivered == 0:
                return (keep if unattended else max(keep, published)), True
            return delivered, delivered > activation
        case Mode.PUBLISHED_TO_DELIVERED_RATIO:
            if idle:
                return (keep if unattended else max(keep, published / LEAST_RATE_PER_SECOND)), True
            ratio = published / delivered if delivered > 0 else 0.0
            return ratio, ratio > activation
        case Mode.EXPECTED_QUEUE_CONSUMPTION_TIME:
            if messages == 0:
                return 0.0, activation < 0
            if delivered == 0:
                seconds = consumption_seconds(messages, published, LEAST_RATE_PER_SECOND)
                return (keep if unattended else max(keep, seconds)), True
            seconds = consumption_seconds(messages, published, delivered)
            return seconds, seconds > activation


def consumption_seconds(messages: float, published: float, delivered: float) -> float:
    """KEDA's expected time until the queue is empty: growth relative to deliveries, plus messages over rate.

    >>> consumption_seconds(10, 3, 2)
    5.5
    """
    return (published - delivered) / delivered + messages / delivered


def _operated(config: RabbitConfig, reading: Reading) -> tuple[Counts, float]:
    """The counts that the trigger's `operation` makes of the queues, and their length."""
    total = reading.total
    if not config.regex or reading.queues == 0 or config.operation == "sum":
        return total, total.ready if config.exclude_unacknowledged else total.messages
    if config.operation == "max":
        top = reading.greatest
        return top, top.ready if config.exclude_unacknowledged else reading.greatest_messages
    length = total.ready if config.exclude_unacknowledged else total.messages
    average = Counts(
        ready=float(total.ready // reading.queues),
        publish_rate=total.publish_rate / reading.queues,
        deliver_rate=total.deliver_rate / reading.queues,
        consumers=total.consumers,
    )
    return average, float(length // reading.queues)  # KEDA divides messages as integers


def _number(value: object) -> float | None:
    """A finite number that is not negative, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return min(number, _GREATEST_AMOUNT) if math.isfinite(number) and number >= 0 else None


def _rate(stats: Mapping[str, object], name: str) -> float:
    """Messages per second; absent means that there was no traffic of the kind.

    Bounded on both sides, so that quotients stay finite whatever a server says.
    """
    details = stats.get(name)
    rate = (_number(details.get("rate")) if isinstance(details, Mapping) else None) or 0.0
    return 0.0 if rate < _SMALLEST_RATE else min(rate, _GREATEST_AMOUNT)
