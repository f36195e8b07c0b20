"""When Python looks for cyclic garbage: often and little, instead of seldom and long.

Left to itself the collector counts allocations less deallocations. A thousand evaluations allocate as many
objects as they free, so it waits, and when it comes the young generation holds fifty thousand objects: 40 ms in
which no RPC is answered (measured with 8,000 evaluations a second). So whoever makes many objects says so, and
each time a few hundred are looked at.
"""

from __future__ import annotations

import gc
from typing import Final

# Portions of work between two looks at the middle generation.
_MIDDLE_EVERY: Final = 32
# Cycles that outlive the middle generation (ended streams) wait for a look at everything, which takes about 10 ms for
# each 1,000 workloads.
FULL_EVERY_SECONDS: Final = 300.0


class Garbage:
    """Looks for garbage after each portion of work."""

    __slots__ = ("_portions",)

    def __init__(self) -> None:
        self._portions = 0

    def portion_done(self) -> None:
        """A portion of work, of half a millisecond or so, has made and dropped objects."""
        self._portions += 1
        gc.collect(0 if self._portions % _MIDDLE_EVERY else 1)


def settle() -> None:
    """Once the process serves: what start-up made is never garbage, and nobody looks at everything uncalled."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 16, 1_000_000)


def look_at_everything() -> None:
    """To be called every FULL_EVERY_SECONDS."""
    gc.collect()
