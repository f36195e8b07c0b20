"""Trace files: gzip CSV with the header `t_s,service_s`, sorted by time."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable
from pathlib import Path

from scaler.simulator.arrivals import Arrival, in_order

HEADER = ("t_s", "service_s")


def read_trace(path: str | Path) -> list[Arrival]:
    """The requests of a trace file.

    Raises ValueError that names the file, the line and what was expected.
    """
    trace: list[Arrival] = []
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            if tuple(next(rows, ())) != HEADER:
                raise ValueError(f'trace "{path}": line 1 must be {",".join(HEADER)}')
            for number, row in enumerate(rows, start=2):
                try:
                    at_seconds, service_seconds = row
                    trace.append(Arrival(float(at_seconds), float(service_seconds)))
                except ValueError as err:
                    raise ValueError(f'trace "{path}": line {number} must be two numbers of seconds') from err
    except (OSError, EOFError, UnicodeDecodeError) as err:
        raise ValueError(f'trace "{path}" can\'t be read as a gzip file: {type(err).__name__}') from err
    if not in_order(trace):
        raise ValueError(f'trace "{path}" must be sorted by t_s')
    return trace


def write_trace(path: str | Path, trace: Iterable[Arrival]) -> int:
    """Write a trace file, its time starting at 0; returns the number of requests."""
    rows = sorted(trace)
    first_seconds = rows[0].at_seconds if rows else 0.0
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        writer.writerows(
            (f"{arrival.at_seconds - first_seconds:.3f}", f"{arrival.service_seconds:.3f}") for arrival in rows
        )
    return len(rows)
