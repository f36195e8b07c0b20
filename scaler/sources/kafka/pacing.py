"""Long work in short pieces, and slow brokers that hold nobody up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

# Partitions handled between two turns of the event loop: about 2 ms.
_PIECE = 500
# What a step waits for its slower brokers before it goes on with the others.
_GRACE_SECONDS = 0.2


class Breath:
    """Lets the event loop go on after each `_PIECE` of work."""

    def __init__(self) -> None:
        self._taken = 0

    async def take(self, count: int) -> None:
        """Note that so many partitions were handled."""
        self._taken += count
        if self._taken >= _PIECE:
            self._taken = 0
            await asyncio.sleep(0)


async def in_pieces(walk: Iterator[T]) -> AsyncIterator[list[T]]:
    """The items of `walk`, decoded `_PIECE` at a time between turns of the event loop."""
    while piece := list(islice(walk, _PIECE)):
        yield piece
        await asyncio.sleep(0)


async def waves(tasks: Iterable[asyncio.Task[T]]) -> AsyncIterator[set[asyncio.Task[T]]]:
    """What is done: all that comes within the grace together, the rest as it comes."""
    pending = set(tasks)
    if pending:
        done, pending = await asyncio.wait(pending, timeout=_GRACE_SECONDS)
        if done:
            yield done
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        yield done


def parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """`items`, at most `size` at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]
