"""What every aiohttp client here shares: addresses judged just before connecting, bodies bounded."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from scaler.errors import SourceUnavailable

AddressInfo = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]


class Readable(Protocol):
    """The part of aiohttp's StreamReader used here."""

    async def read(self, n: int = -1) -> bytes:
        """Up to `n` bytes, empty at the end."""


def guarded_sockets(judge_address: Callable[[str], None]) -> Callable[[AddressInfo], socket.socket]:
    """A `socket_factory` for aiohttp's connector that judges the very address about to be connected to.

    So literal addresses, redirects and names that resolve differently a second time are all covered.
    """

    def make(info: AddressInfo) -> socket.socket:
        family, kind, protocol, _, address = info
        judge_address(str(address[0]))
        return socket.socket(family=family, type=kind, proto=protocol)

    return make


async def read_bounded(stream: Readable, limit_bytes: int, *, what: str) -> bytes:
    """The whole body, at most `limit_bytes`.

    Raises SourceUnavailable where there is more.
    """
    chunks: list[bytes] = []
    left = limit_bytes
    while chunk := await stream.read(min(left + 1, 65_536)):
        left -= len(chunk)
        if left < 0:
            raise SourceUnavailable(f"{what}: the answer is larger than {limit_bytes} bytes; it was not read further")
        chunks.append(chunk)
    return b"".join(chunks)
