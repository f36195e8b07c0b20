"""A gRPC client for load: HTTP/2 frames by hand over one blocking socket.

A stock Python client costs more per call than the server that is to be measured. This one sends prepared bytes
and reads frame headers, some ten microseconds a call, on one connection as KEDA does. It is no general client: small
messages, no TLS, no compression of headers, and a call has succeeded where a message came back.
"""

from __future__ import annotations

import gc
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _text(value: str) -> bytes:
    data = value.encode()
    assert len(data) < 127
    return bytes([len(data)]) + data


@dataclass(frozen=True, slots=True)
class Call:
    """A call, ready to send."""

    headers: bytes
    body: bytes


def prepare(path: str, message: bytes) -> Call:
    """The frames of a call of `path`, but for the stream's number."""
    block = (
        b"\x83\x86"  # :method POST, :scheme http, of HPACK's static table
        b"\x04"
        + _text(path)
        + b"\x01"
        + _text("bench")
        + b"\x0f\x10"
        + _text("application/grpc")
        + b"\x00"
        + _text("te")
        + _text("trailers")
    )
    body = b"\x00" + struct.pack(">I", len(message)) + message
    return Call(block, body)


@dataclass(slots=True)
class Outcome:
    """What a load saw. Latencies in seconds, each with the moment its call was due.

    `lateness`: how much later than due the client came to send each call, in seconds; it is part of the latency.
    """

    seconds: float = 0.0
    succeeded: int = 0
    failed: int = 0
    latencies: list[tuple[float, float]] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)


class Connection:
    """One connection to a gRPC server."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._next = 1
        self._received = bytearray()
        self._window = 65_535
        self._answered: set[int] = set()
        self._open: set[int] = set()
        self.on_end: Callable[[int, bool], None] = lambda _stream, _succeeded: None
        self.on_message: Callable[[int, bytes], None] | None = None
        no_table = struct.pack(">HI", 1, 0)  # SETTINGS_HEADER_TABLE_SIZE
        wide = struct.pack(">HI", 4, 2**30)  # SETTINGS_INITIAL_WINDOW_SIZE
        self._socket.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, no_table + wide)
            + _frame(_WINDOW, 0, 0, struct.pack(">I", 2**31 - 1 - 65_535))
        )

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def can_send(self, call: Call) -> bool:
        """Whether the server lets us send this much now."""
        return self._window >= len(call.body) + 5

    def send(self, calls: Sequence[Call]) -> list[int]:
        """Send calls together; their stream numbers."""
        streams, parts = [], []
        for call in calls:
            stream = self._next
            self._next += 2
            streams.append(stream)
            self._open.add(stream)
            parts.append(_frame(_HEADERS, _END_HEADERS, stream, call.headers))
            parts.append(_frame(_DATA, _END_STREAM, stream, call.body))
            self._window -= len(call.body)
        self._socket.sendall(b"".join(parts))
        return streams

    def receive(self, timeout_seconds: float) -> None:
        """Read what has come, waiting up to `timeout_seconds` for something."""
        if not select.select([self._socket], [], [], max(timeout_seconds, 0.0))[0]:
            return
        data = self._socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the server hung up")
        self._received += data
        self._parse()

    def _parse(self) -> None:
        buffer, offset, end = self._received, 0, len(self._received)
        while end - offset >= 9:
            length = buffer[offset] << 16 | buffer[offset + 1] << 8 | buffer[offset + 2]
            if end - offset - 9 < length:
                break
            kind, flags = buffer[offset + 3], buffer[offset + 4]
            stream = int.from_bytes(buffer[offset + 5 : offset + 9], "big") & 0x7FFFFFFF
            start = offset + 9
            offset = start + length
            if kind == _DATA:
                self._answered.add(stream)
                if self.on_message is not None:
                    self.on_message(stream, bytes(buffer[start + 5 : offset]))
            elif kind == _WINDOW:
                if stream == 0:
                    self._window += int.from_bytes(buffer[start:offset], "big")
            elif kind == _SETTINGS and not flags & _ACK:
                self._socket.sendall(_frame(_SETTINGS, _ACK, 0))
            elif kind == _PING and not flags & _ACK:
                self._socket.sendall(_frame(_PING, _ACK, 0, bytes(buffer[start:offset])))
            elif kind == _GOAWAY:
                raise ConnectionError("the server wants the connection closed")
            if ((kind in (_DATA, _HEADERS) and flags & _END_STREAM) or kind == _RESET) and stream in self._open:
                self._open.remove(stream)
                succeeded = stream in self._answered
                self._answered.discard(stream)
                self.on_end(stream, succeeded)
        del buffer[:offset]


def _clear_the_heap() -> None:
    """What the client holds is never garbage: looking through it while calls are under way would count as latency."""
    gc.collect()
    gc.freeze()
    gc.disable()


def _watched(connection: Connection) -> tuple[Outcome, dict[int, float]]:
    """(what fills as calls end, the calls under way: from when on the latency of each counts)."""
    outcome = Outcome()
    began: dict[int, float] = {}

    def ended(stream: int, succeeded: bool) -> None:
        at = began.pop(stream)
        outcome.latencies.append((at, time.perf_counter() - at))
        if succeeded:
            outcome.succeeded += 1
        else:
            outcome.failed += 1

    connection.on_end = ended
    return outcome, began


def saturate(connection: Connection, calls: Iterator[Call], *, in_flight: int, seconds: float) -> Outcome:
    """Keep `in_flight` calls under way for `seconds`; latencies count from when a call was sent."""
    _clear_the_heap()
    outcome, sent_at = _watched(connection)
    started = time.perf_counter()
    ends = started + seconds
    while (now := time.perf_counter()) < ends:
        batch = [next(calls) for _ in range(in_flight - len(sent_at))]
        if batch:
            sent_at.update(dict.fromkeys(connection.send(batch), now))
        connection.receive(ends - now)
    outcome.seconds = time.perf_counter() - started
    while sent_at:
        connection.receive(1.0)
    return outcome


def pace(connection: Connection, calls: Iterator[Call], *, per_second: float, seconds: float) -> Outcome:
    """Send calls evenly, whether or not earlier ones are answered; latencies count from when a call was due."""
    _clear_the_heap()
    outcome, due_of = _watched(connection)
    started = time.perf_counter()
    count, total = 0, int(per_second * seconds)
    while count < total or due_of:
        now = time.perf_counter()
        due = started + count / per_second
        if count < total and due <= now:
            due_of[connection.send([next(calls)])[0]] = due
            outcome.lateness.append(now - due)
            count += 1
            continue
        connection.receive(min(due - now, 0.05) if count < total else 1.0)
        if now > started + seconds + 30:
            break
    outcome.seconds = time.perf_counter() - started
    return outcome


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` of them lie; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
