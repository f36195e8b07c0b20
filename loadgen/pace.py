"""The clock of an experiment: its seconds may run faster than real ones, so that hours fit into minutes.

"Experiment seconds" start at 0 when the Pace is made. Time-outs of calls stay in real seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Pace:
    """Experiment seconds, `speed` of them to one real second."""

    def __init__(
        self,
        speed: float = 1.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.speed = speed
        self._clock = clock
        self._start_at_seconds = clock()
        # Messages cross processes, so they carry the wall clock's reading.
        self._wall_start_unix_seconds = wall_clock()

    def now(self) -> float:
        """Experiment seconds since the start."""
        return (self._clock() - self._start_at_seconds) * self.speed

    def real_seconds(self, seconds: float) -> float:
        """The real length of so many experiment seconds."""
        return seconds / self.speed

    def unix_seconds(self, at_seconds: float) -> float:
        """The wall clock's reading at an experiment second."""
        return self._wall_start_unix_seconds + at_seconds / self.speed

    def from_unix_seconds(self, unix_seconds: float) -> float:
        """The experiment second of a wall clock's reading."""
        return (unix_seconds - self._wall_start_unix_seconds) * self.speed

    async def sleep(self, seconds: float) -> None:
        """Sleep for so many experiment seconds."""
        await asyncio.sleep(max(seconds, 0.0) / self.speed)

    async def sleep_until(self, at_seconds: float) -> None:
        """Sleep until an experiment second; not at all when it is past."""
        await self.sleep(at_seconds - self.now())
