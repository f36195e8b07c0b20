"""A TCP proxy between a client and a server that a test tells to hang, cut, refuse or delay.

async with tcp_proxy("127.0.0.1", kafka_port) as proxy:
    client = connect(proxy.host, proxy.port)
    proxy.pause()      # half-open: bytes are swallowed up to the buffers, nothing comes back
    proxy.resume()
    proxy.delay_seconds = 0.2
    proxy.cut()        # resets every connection; new ones are served
    await proxy.refuse()   # closes the port; `await proxy.accept()` opens it again
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING

from tests.services.process import LOOPBACK, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHUNK_BYTES = 65_536
CONNECT_SECONDS = 5.0


class TcpProxy:
    """Forwards connections; see the module's example."""

    def __init__(self, target_host: str, target_port: int) -> None:
        self.host = LOOPBACK
        self.port = free_port()
        self.delay_seconds = 0.0
        """How long each piece is held before it goes on, in either direction."""
        self.accepted = 0
        """Connections accepted so far."""
        self._target = (target_host, target_port)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def open_connections(self) -> int:
        """Clients connected now."""
        return len(self._open) // 2

    def pause(self) -> None:
        """Let connections stand and forward nothing, on old and new ones."""
        self._flowing.clear()

    def resume(self) -> None:
        """Forward again, what was held included."""
        self._flowing.set()

    def cut(self) -> None:
        """Reset every open connection, on both sides."""
        for writer in list(self._open):
            _reset(writer)
        self._open.clear()

    async def accept(self) -> None:
        """Open the port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, self.host, self.port)

    async def refuse(self) -> None:
        """Close the port and reset what is open: new connections are refused."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            self.cut()
            await server.wait_closed()
            # None may be left for the loop's end to cancel: asyncio logs a cancelled handler as an error. Those that
            # are still connecting to the server come to the set of pumps later.
            while self._serving:
                for pump in self._pumps:
                    pump.cancel()
                await asyncio.wait(self._serving, timeout=0.1)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        self.accepted += 1
        self._open.add(writer)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                target_reader, target_writer = await asyncio.open_connection(*self._target)
        except OSError:  # TimeoutError is one
            self._open.discard(writer)
            _reset(writer)
            return
        self._open.add(target_writer)
        try:
            async with asyncio.TaskGroup() as group:
                for source, sink in ((reader, target_writer), (target_reader, writer)):
                    pump = group.create_task(self._forward(source, sink))
                    self._pumps.add(pump)
                    pump.add_done_callback(self._pumps.discard)
        finally:
            for end in (writer, target_writer):
                self._open.discard(end)
                end.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            with contextlib.suppress(OSError):
                await target_writer.wait_closed()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(CHUNK_BYTES):
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                await self._flowing.wait()
                writer.write(piece)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once with RST, as a crashed machine's router does, rather than with an orderly FIN."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.asynccontextmanager
async def tcp_proxy(target_host: str, target_port: int) -> AsyncIterator[TcpProxy]:
    """Yield an accepting proxy to a server; close it and its connections at the end."""
    proxy = TcpProxy(target_host, target_port)
    await proxy.accept()
    try:
        yield proxy
    finally:
        await proxy.refuse()
