"""What an experiment recorded, and its figures. Times are experiment seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from loadgen.workers import FleetCounts, Served
from scaler.simulator.arrivals import Arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The state of things at one moment."""

    at_seconds: float
    waiting: int
    wanted: int
    ready: int
    starting: int
    terminating: int
    busy: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of a run; a wait percentile is None where nothing was served.

    `left_zero`: there were replicas at all. `returned_to_zero`: at the end there were none left.
    `worker_errors`: calls to the broker that failed in the pods (they try again).
    """

    requests: int
    served: int
    wait_p50_seconds: float | None
    wait_p95_seconds: float | None
    wait_p99_seconds: float | None
    within_share: float | None
    gpu_seconds: float
    starts: int
    most_replicas: int
    left_zero: bool
    returned_to_zero: bool
    duration_seconds: float
    worker_errors: int = 0

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


class Recorder:
    """Collects what was sent, started and served, and the fleet over time."""

    def __init__(self) -> None:
        self.sent: list[Arrival] = []
        self.served: list[Served] = []
        self.points: list[Point] = []
        self._started: set[str] = set()
        self._served_ids: set[str] = set()

    def on_sent(self, arrivals: Sequence[Arrival]) -> None:
        """Messages were handed to the broker."""
        self.sent.extend(arrivals)

    def on_started(self, identity: str) -> None:
        """A worker began with a message; a second time (delivered again) does not count."""
        self._started.add(identity)

    def on_served(self, served: Served) -> None:
        """A worker finished a message."""
        if served.identity not in self._served_ids:
            self._served_ids.add(served.identity)
            self.served.append(served)

    @property
    def waiting(self) -> int:
        """Sent, not yet begun."""
        return max(len(self.sent) - len(self._started), 0)

    @property
    def in_flight(self) -> int:
        """Begun, not yet finished."""
        return len(self._started) - len(self._served_ids)

    def note(self, at_seconds: float, counts: FleetCounts) -> Point:
        """Record a point in time."""
        point = Point(
            at_seconds=at_seconds,
            waiting=self.waiting,
            wanted=counts.wanted,
            ready=counts.ready,
            starting=counts.starting,
            terminating=counts.terminating,
            busy=counts.busy,
        )
        self.points.append(point)
        return point

    def summary(
        self, *, gpu_seconds: float, starts: int, within_seconds: float | None = None, worker_errors: int = 0
    ) -> Summary:
        """The figures; `within_seconds` is the promised wait, if there is one."""
        waits = sorted(served.wait_seconds for served in self.served)
        alive = [point.ready + point.starting + point.terminating for point in self.points]
        return Summary(
            requests=len(self.sent),
            served=len(self.served),
            wait_p50_seconds=percentile(waits, 0.50),
            wait_p95_seconds=percentile(waits, 0.95),
            wait_p99_seconds=percentile(waits, 0.99),
            within_share=(
                sum(1 for wait in waits if wait <= within_seconds) / len(waits)
                if waits and within_seconds is not None
                else None
            ),
            gpu_seconds=gpu_seconds,
            starts=starts,
            most_replicas=max(alive, default=0),
            left_zero=any(alive),
            returned_to_zero=any(alive) and alive[-1] == 0,
            duration_seconds=self.points[-1].at_seconds if self.points else 0.0,
            worker_errors=worker_errors,
        )


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of the sorted values do not exceed; None where there are none."""
    if not ordered:
        return None
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]
