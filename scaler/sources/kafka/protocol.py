"""The five requests that lag needs, encoded and decoded for thousands of groups at once.

aiokafka's own classes decode field by field (about 10 µs a partition) in one go, and it has neither OffsetFetch
8 nor FindCoordinator 4, which ask for many groups at once (KIP-709 and KIP-699, brokers from 3.0). Here a
request is a body of bytes that travels on aiokafka's connection, and an answer stays bytes until a generator
walks through it, so that the reader decides how long it works before it lets the event loop go on.

Layouts: https://kafka.apache.org/protocol (read 2026-11). Versions used, with the oldest broker that has them:
Metadata 4 (0.11), FindCoordinator 1 (0.11) and 4 (3.0), OffsetFetch 2 (0.10.2) and 8 (3.0), ListOffsets 1
(0.10.1). All are still there in brokers 4.x (KIP-896).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar, NamedTuple

from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.api import RequestHeader_v1, RequestHeader_v2, ResponseHeader_v0, ResponseHeader_v1

LIST_OFFSETS, METADATA, OFFSET_FETCH, FIND_COORDINATOR = 2, 3, 9, 10
LATEST, EARLIEST = -1, -2
# The largest clusters have some hundreds; who runs one may be hostile.
_BROKERS_MAX = 5_000

_INT8, _INT16, _INT32, _INT64 = (struct.Struct(f">{code}") for code in "bhiq")
# ListOffsets 1: partition, error, timestamp, offset. OffsetFetch: partition, offset (8: and leader epoch).
_LISTED = struct.Struct(">ihqq")
_ASKED = struct.Struct(">iq")
_FETCHED = struct.Struct(">iq")


class Malformed(ValueError):
    """An answer does not have the layout of its version: it is not a Kafka broker that speaks."""


class _Raw:
    """What aiokafka's connection takes for a response class: it leaves the answer as it came."""

    @staticmethod
    def decode(data: BytesIO) -> bytes:
        return data.read()


@dataclass(frozen=True, slots=True)
class Call:
    """One request in one version, in the shape that aiokafka's connection sends (see aiokafka.protocol.api)."""

    API_KEY: int
    API_VERSION: int
    flexible: bool
    body: bytes

    RESPONSE_TYPE: ClassVar[type[_Raw]] = _Raw

    def prepare(self, versions: Mapping[int, tuple[int, int]]) -> Call:
        """Itself, where the broker has this version. Raises IncompatibleBrokerVersion."""
        if not has_version(versions, self.API_KEY, self.API_VERSION):
            raise IncompatibleBrokerVersion(f"the broker lacks version {self.API_VERSION} of API {self.API_KEY}")
        return self

    def build_request_header(self, correlation_id: int, client_id: str) -> Any:
        """The header that goes with the version."""
        header = RequestHeader_v2 if self.flexible else RequestHeader_v1
        return header(self, correlation_id=correlation_id, client_id=client_id)

    def parse_response_header(self, data: BytesIO) -> Any:
        """The header that the answer starts with."""
        return (ResponseHeader_v1 if self.flexible else ResponseHeader_v0).decode(data)

    def encode(self) -> bytes:
        """The body."""
        return self.body

    def __repr__(self) -> str:
        return f"Call(api={self.API_KEY}, version={self.API_VERSION}, bytes={len(self.body)})"


def has_version(versions: Mapping[int, tuple[int, int]], api_key: int, version: int) -> bool:
    """Whether a broker that offers `versions` has this one."""
    low, high = versions.get(api_key, (1, 0))
    return low <= version <= high


# Encoding. Names are at most 249 (topics) or 32767 (groups) bytes; the callers check.


def _string(text: str) -> bytes:
    data = text.encode()
    return _INT16.pack(len(data)) + data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _compact_string(text: str) -> bytes:
    data = text.encode()
    return _varint(len(data) + 1) + data


def metadata(topics: Sequence[str]) -> Call:
    """Brokers, and leaders of these topics. Version 4 is the first that can forbid to create missing topics."""
    body = b"".join((_INT32.pack(len(topics)), *map(_string, topics), b"\x00"))
    return Call(METADATA, 4, flexible=False, body=body)


def find_coordinators(groups: Sequence[str]) -> Call:
    """The coordinators of many groups."""
    body = b"".join((b"\x00", _varint(len(groups) + 1), *map(_compact_string, groups), b"\x00"))
    return Call(FIND_COORDINATOR, 4, flexible=True, body=body)


def find_coordinator(group: str) -> Call:
    """The coordinator of one group, for brokers before 3.0."""
    return Call(FIND_COORDINATOR, 1, flexible=False, body=_string(group) + b"\x00")


Place = tuple[str, int]  # topic and partition
Wanted = Mapping[str, Sequence[int]] | None  # partitions by topic; None: everything the group has committed


def offset_fetch(groups: Iterable[tuple[str, Wanted]]) -> Call:
    """Committed offsets of many groups. Offsets of transactions still open don't count (require_stable false)."""
    encoded = []
    count = 0
    for group, wanted in groups:
        count += 1
        encoded.append(_compact_string(group))
        if wanted is None:
            encoded.append(b"\x00")
        else:
            encoded.append(_varint(len(wanted) + 1))
            for topic, partitions in wanted.items():
                numbers = struct.pack(f">{len(partitions)}i", *partitions)
                encoded.append(_compact_string(topic) + _varint(len(partitions) + 1) + numbers + b"\x00")
        encoded.append(b"\x00")
    return Call(OFFSET_FETCH, 8, flexible=True, body=b"".join((_varint(count + 1), *encoded, b"\x00\x00")))


def offset_fetch_one(group: str, wanted: Wanted) -> Call:
    """Committed offsets of one group, for brokers before 3.0."""
    parts = [_string(group)]
    if wanted is None:
        parts.append(_INT32.pack(-1))
    else:
        parts.append(_INT32.pack(len(wanted)))
        for topic, partitions in wanted.items():
            parts.append(_string(topic) + _INT32.pack(len(partitions)))
            parts.append(struct.pack(f">{len(partitions)}i", *partitions))
    return Call(OFFSET_FETCH, 2, flexible=False, body=b"".join(parts))


def list_offsets(wanted: Mapping[str, Sequence[int]], timestamp: int) -> Call:
    """Log ends (LATEST: the high watermark) or log starts (EARLIEST) of partitions that one broker leads."""
    parts = [_INT32.pack(-1), _INT32.pack(len(wanted))]
    pack = _ASKED.pack
    for topic, partitions in wanted.items():
        parts.append(_string(topic) + _INT32.pack(len(partitions)))
        parts.extend(pack(partition, timestamp) for partition in partitions)
    return Call(LIST_OFFSETS, 1, flexible=False, body=b"".join(parts))


# Decoding: generators over the answer's bytes.


class _Cursor:
    """Reads along an answer. Every count is checked against the bytes left, so that none can lie about sizes."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def number(self, layout: struct.Struct) -> int:
        (value,) = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return int(value)

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 28:
                raise Malformed("a number is too long")

    def skip(self, count: int) -> None:
        if count < 0 or self.at + count > len(self.data):
            raise Malformed("the answer ends early")
        self.at += count

    def _text(self, length: int) -> str:
        start = self.at
        self.skip(length)
        return self.data[start : self.at].decode()

    def string(self) -> str:
        length = self.number(_INT16)
        return "" if length < 0 else self._text(length)

    def compact_string(self) -> str:
        length = self.varint()
        return "" if length == 0 else self._text(length - 1)

    def count(self) -> int:
        return self._checked(self.number(_INT32))

    def compact_count(self) -> int:
        return self._checked(self.varint() - 1)

    def _checked(self, count: int) -> int:
        if count > len(self.data) - self.at:
            raise Malformed("more elements than bytes")
        return max(count, 0)

    def skip_tags(self) -> None:
        for _ in range(self.varint()):
            self.varint()
            self.skip(self.varint())


class BrokerFound(NamedTuple):
    """A broker as the cluster advertises it."""

    node: int
    host: str
    port: int


class TopicFound(NamedTuple):
    """A topic, or why it can't be had: `error` is Kafka's code, 0 for none."""

    topic: str
    error: int


class LeaderFound(NamedTuple):
    """A partition's leader; -1: none at present. Follows the TopicFound of its topic."""

    topic: str
    partition: int
    leader: int


class CoordinatorFound(NamedTuple):
    """A group's coordinator, or why there is none."""

    group: str
    node: int
    error: int


class GroupFetched(NamedTuple):
    """The end of a group's offsets; its OffsetFetched came before."""

    group: str
    error: int


class OffsetFetched(NamedTuple):
    """A committed offset; -1: none."""

    topic: str
    partition: int
    offset: int
    error: int


class OffsetListed(NamedTuple):
    """An end or start of a partition's log."""

    topic: str
    partition: int
    offset: int
    error: int


def _guarded(walk: Iterator[Any]) -> Iterator[Any]:
    """`walk`, with running off the end told as Malformed."""
    try:
        yield from walk
    except (struct.error, IndexError, UnicodeDecodeError) as err:
        raise Malformed(str(err)) from err


def read_metadata(data: bytes) -> Iterator[BrokerFound | TopicFound | LeaderFound]:
    """Brokers first, then each topic followed by its partitions."""
    return _guarded(_read_metadata(data))


def _read_metadata(data: bytes) -> Iterator[BrokerFound | TopicFound | LeaderFound]:
    cursor = _Cursor(data)
    cursor.skip(4)  # throttle time
    brokers = cursor.count()
    if brokers > _BROKERS_MAX:
        raise Malformed(f"it names {brokers} brokers")
    for _ in range(brokers):
        node, host, port = cursor.number(_INT32), cursor.string(), cursor.number(_INT32)
        cursor.string()  # rack
        yield BrokerFound(node, host, port)
    cursor.string()  # cluster
    cursor.skip(4)  # controller
    for _ in range(cursor.count()):
        error, topic = cursor.number(_INT16), cursor.string()
        cursor.skip(1)  # internal
        yield TopicFound(topic, error)
        for _ in range(cursor.count()):
            cursor.skip(2)  # the partition's error: leader -1 says as much
            partition, leader = cursor.number(_INT32), cursor.number(_INT32)
            cursor.skip(4 * cursor.count())  # replicas
            cursor.skip(4 * cursor.count())  # in sync
            yield LeaderFound(topic, partition, leader)


def read_coordinators(data: bytes) -> Iterator[CoordinatorFound]:
    """The answer to `find_coordinators`."""
    return _guarded(_read_coordinators(data))


def _read_coordinators(data: bytes) -> Iterator[CoordinatorFound]:
    cursor = _Cursor(data)
    cursor.skip(4)  # throttle time
    for _ in range(cursor.compact_count()):
        group, node = cursor.compact_string(), cursor.number(_INT32)
        cursor.compact_string()  # host
        cursor.skip(4)  # port
        error = cursor.number(_INT16)
        cursor.compact_string()  # message
        cursor.skip_tags()
        yield CoordinatorFound(group, node, error)


def read_coordinator(group: str, data: bytes) -> Iterator[CoordinatorFound]:
    """The answer to `find_coordinator`."""
    return _guarded(_read_coordinator(group, data))


def _read_coordinator(group: str, data: bytes) -> Iterator[CoordinatorFound]:
    cursor = _Cursor(data)
    cursor.skip(4)  # throttle time
    error = cursor.number(_INT16)
    cursor.string()  # message
    yield CoordinatorFound(group, cursor.number(_INT32), error)


def read_offset_fetch(data: bytes) -> Iterator[OffsetFetched | GroupFetched]:
    """The answer to `offset_fetch`: offsets of a group, then the group."""
    return _guarded(_read_offset_fetch(data))


def _read_offset_fetch(data: bytes) -> Iterator[OffsetFetched | GroupFetched]:
    cursor = _Cursor(data)
    cursor.skip(4)  # throttle time
    for _ in range(cursor.compact_count()):
        group = cursor.compact_string()
        for _ in range(cursor.compact_count()):
            topic = cursor.compact_string()
            for _ in range(cursor.compact_count()):
                partition, offset = _FETCHED.unpack_from(data, cursor.at)
                cursor.at += 16  # and the leader epoch
                cursor.skip(max(cursor.varint() - 1, 0))  # metadata of the commit
                error = cursor.number(_INT16)
                cursor.skip_tags()
                yield OffsetFetched(topic, partition, offset, error)
            cursor.skip_tags()
        error = cursor.number(_INT16)
        cursor.skip_tags()
        yield GroupFetched(group, error)


def read_offset_fetch_one(group: str, data: bytes) -> Iterator[OffsetFetched | GroupFetched]:
    """The answer to `offset_fetch_one`."""
    return _guarded(_read_offset_fetch_one(group, data))


def _read_offset_fetch_one(group: str, data: bytes) -> Iterator[OffsetFetched | GroupFetched]:
    cursor = _Cursor(data)
    for _ in range(cursor.count()):
        topic = cursor.string()
        for _ in range(cursor.count()):
            partition, offset = _FETCHED.unpack_from(data, cursor.at)
            cursor.at += 12
            cursor.skip(max(cursor.number(_INT16), 0))  # metadata of the commit
            yield OffsetFetched(topic, partition, offset, cursor.number(_INT16))
    yield GroupFetched(group, cursor.number(_INT16))


def read_list_offsets(data: bytes) -> Iterator[OffsetListed]:
    """The answer to `list_offsets`."""
    return _guarded(_read_list_offsets(data))


def _read_list_offsets(data: bytes) -> Iterator[OffsetListed]:
    cursor = _Cursor(data)
    unpack = _LISTED.unpack_from
    for _ in range(cursor.count()):
        topic = cursor.string()
        for _ in range(cursor.count()):
            partition, error, _, offset = unpack(data, cursor.at)
            cursor.at += _LISTED.size
            yield OffsetListed(topic, partition, offset, error)
