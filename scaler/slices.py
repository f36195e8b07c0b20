"""Long work in slices: whoever goes through many workloads lets the RPCs have their turn in between.

All of that work (readings handed out, scrapes, sweeps, lists) shares one `Slices`: one slice at a time in the whole
process, then a pause. Two kinds of work that each paused for themselves would leave the RPCs half as much together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

# How long work goes on, and for how long the loop is then the RPCs': a real pause, since an RPC takes about five turns
# of the loop, and between them gRPC's own threads need the processor and the interpreter's lock. A fifth of the time
# is enough for 8,000 readings a second.
SLICE_SECONDS: Final = 0.0005
PAUSE_SECONDS: Final = 0.002
# A pause that ends this much too late was one with RPCs in it; there may be more of them. (Timers are exact to 1 ms.)
LATE_SECONDS: Final = 0.002
# After this many pauses in a row work goes on however busy the loop is: readings get old, too.
PATIENCE: Final = 4


class Slices:
    """The turns of long work. `portion_done` is called after each slice. `clock` counts seconds."""

    def __init__(
        self, portion_done: Callable[[], None] = lambda: None, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.clock = clock
        self._portion_done = portion_done
        self._turn = asyncio.Lock()

    def first(self) -> float:
        """When, by `clock`, the first slice of some work ends."""
        return self.clock() + SLICE_SECONDS

    async def next(self) -> float:
        """Pause; then when the next slice ends. To be awaited once the one before is over."""
        self._portion_done()
        async with self._turn:
            for _ in range(PATIENCE):
                before = self.clock()
                await asyncio.sleep(PAUSE_SECONDS)
                if self.clock() - before < PAUSE_SECONDS + LATE_SECONDS:
                    break
        return self.clock() + SLICE_SECONDS
