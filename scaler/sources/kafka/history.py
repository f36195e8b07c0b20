"""What is remembered of a group's partitions between two reads: counters, and how long an offset stood still. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from scaler.sources.kafka.lumps import Lumps

# Where a committed offset has not been seen for longer than this, nobody knows whether it stood still.
_LONGEST_GAP_SECONDS = 30.0


@dataclass(slots=True)
class Track:
    """What is remembered of one partition between two reads."""

    end: int
    committed: int | None
    arrived: int
    completed: int
    still_seconds: float = 0.0
    lumps: Lumps = field(default_factory=Lumps)

    @property
    def done_most(self) -> int:
        """Messages that at most are done and not committed; of a group that never committed, all."""
        return self.lumps.most_messages(max(self.end - (self.committed or 0), 0))


@dataclass(slots=True)
class Memory:
    """What is remembered of one query."""

    at_seconds: float
    tracks: dict[tuple[str, int], Track] = field(default_factory=dict)


def advance(track: Track, end: int, committed: int | None, start: int | None, gap_seconds: float) -> None:
    """Count what has happened in one partition since it was last read.

    An end that falls back (topic created anew, messages lost) and an offset that is set back count as nothing:
    the counters only grow. `start` is given where a group without offsets begins at the log's start.
    """
    track.arrived += max(end - track.end, 0)
    track.end = end
    stands = committed is not None and committed == track.committed and committed < end
    before_seconds = track.still_seconds
    track.still_seconds = track.still_seconds + min(gap_seconds, _LONGEST_GAP_SECONDS) if stands else 0.0
    if committed is None:
        track.lumps.forgotten()
        return
    before = start if track.committed is None else track.committed
    if before is not None:
        track.completed += max(committed - before, 0)
    if track.committed is None or committed < track.committed or committed > end:
        track.lumps.forgotten()
    else:
        if committed > track.committed:
            gap = gap_seconds if gap_seconds <= _LONGEST_GAP_SECONDS else None
            track.lumps.committed(committed - track.committed, before_seconds, gap)
        track.lumps.passed(track.still_seconds, end - committed)
    track.committed = committed
