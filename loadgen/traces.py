"""Writes trace files: CSV with the header `t_s,service_s`, sorted by time, as scaler/loads.py reads them."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable
from pathlib import Path

from scaler.simulator.arrivals import Arrival

HEADER = ("t_s", "service_s")


def write_trace(path: str | Path, trace: Iterable[Arrival]) -> int:
    """Write a trace file, compressed where its name ends in .gz, its time starting at 0; the number of requests."""
    rows = sorted(trace)
    first_seconds = rows[0].at_seconds if rows else 0.0
    path = Path(path)
    with (
        gzip.open(path, "wt", encoding="utf-8", newline="")
        if path.suffix == ".gz"
        else path.open("w", encoding="utf-8", newline="")
    ) as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        writer.writerows(
            (f"{arrival.at_seconds - first_seconds:.3f}", f"{arrival.service_seconds:.3f}") for arrival in rows
        )
    return len(rows)
