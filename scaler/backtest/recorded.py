"""A workload's own traffic as a trace: what the service recorded (scaler/state.py), turned back into requests.

Arrivals are counted as `slo` counts them (core/estimate.py): by the source's exact counters where it has some, else
by differences of what is in the system. Within one interval between two observations they are spread evenly. How
long each request took is not recorded: all take the mean that the observations tell.
"""

from __future__ import annotations

import csv
from pathlib import Path

from scaler.backtest.traces import TraceInvalid
from scaler.core.estimate import NOTHING_KNOWN, updated
from scaler.core.model import Goals, Sample
from scaler.simulator.arrivals import Arrival
from scaler.state import read_recording


def recorded_trace(path: Path, workload: str, *, source: str | None = None, concurrency: int = 1) -> list[Arrival]:
    """The requests of `workload` (`namespace/name`), from the first observation on.

    Raises RecordingUnreadable, and TraceInvalid where no request was observed.
    """
    goals = Goals(target_value=1.0, concurrency=concurrency)
    known, arrivals = NOTHING_KNOWN, list[float]()
    first_at: float | None = None
    owed = 0.0
    for row in read_recording(path, workload, source=source):
        first_at = row.at_seconds if first_at is None else first_at
        before, now = known, row.at_seconds
        if before.at_seconds is not None and now <= before.at_seconds:
            continue  # the wall clock was set back
        known = updated(
            before,
            Sample(
                at_seconds=now,
                metric_value=row.metric_value,
                active=row.active,
                waiting=row.waiting,
                in_flight=row.in_flight,
                arrived_total=row.arrived_total,
                completed_total=row.completed_total,
            ),
            goals,
            ready=row.desired_replicas if row.ready is None else row.ready,
            cold_starts_seconds=(),
            waking=False,
            now_seconds=now,
        )
        began_at = now if before.at_seconds is None else before.at_seconds
        owed += known.arrived - before.arrived
        count = int(owed + 1e-9)
        owed -= count
        arrivals.extend(began_at + (now - began_at) * (index + 1) / count - first_at for index in range(count))
    if not arrivals:
        raise TraceInvalid(f"no request of {workload} was observed in {path}")
    service_seconds = known.service_seconds(goals)
    return [Arrival(at, service_seconds) for at in arrivals]


def write_trace(trace: list[Arrival], path: Path) -> None:
    """As the CSV that `read_trace` reads."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("t_s", "service_s"))
        writer.writerows((f"{one.at_seconds:.3f}", f"{one.service_seconds:.3f}") for one in trace)
