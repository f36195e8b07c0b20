"""Our encoding and decoding against aiokafka's own, field by field, and against answers that make no sense."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest
from aiokafka.protocol.commit import OffsetFetchRequest_v2, OffsetFetchResponse_v2
from aiokafka.protocol.coordination import FindCoordinatorRequest_v1, FindCoordinatorResponse_v1
from aiokafka.protocol.metadata import MetadataRequest_v4, MetadataResponse_v4
from aiokafka.protocol.offset import OffsetRequest_v1, OffsetResponse_v1
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int8,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)
from hypothesis import given
from hypothesis import strategies as st

from scaler.sources.kafka import protocol
from scaler.sources.kafka.protocol import (
    BrokerFound,
    CoordinatorFound,
    GroupFetched,
    LeaderFound,
    Malformed,
    OffsetFetched,
    OffsetListed,
    TopicFound,
)

TAGS = ("tags", TaggedFields)
# The two versions that aiokafka lacks, written down with its own building blocks.
OFFSET_FETCH_8_REQUEST = Schema(
    (
        "groups",
        CompactArray(
            ("group", CompactString("utf-8")),
            (
                "topics",
                CompactArray(("topic", CompactString("utf-8")), ("partitions", CompactArray(Int32)), TAGS),
            ),
            TAGS,
        ),
    ),
    ("require_stable", Boolean),
    TAGS,
)
OFFSET_FETCH_8_RESPONSE = Schema(
    ("throttle", Int32),
    (
        "groups",
        CompactArray(
            ("group", CompactString("utf-8")),
            (
                "topics",
                CompactArray(
                    ("topic", CompactString("utf-8")),
                    (
                        "partitions",
                        CompactArray(
                            ("partition", Int32),
                            ("offset", Int64),
                            ("epoch", Int32),
                            ("metadata", CompactString("utf-8")),
                            ("error", Int16),
                            TAGS,
                        ),
                    ),
                    TAGS,
                ),
            ),
            ("error", Int16),
            TAGS,
        ),
    ),
    TAGS,
)
FIND_COORDINATOR_4_REQUEST = Schema(("type", Int8), ("keys", CompactArray(CompactString("utf-8"))), TAGS)
FIND_COORDINATOR_4_RESPONSE = Schema(
    ("throttle", Int32),
    (
        "coordinators",
        CompactArray(
            ("key", CompactString("utf-8")),
            ("node", Int32),
            ("host", CompactString("utf-8")),
            ("port", Int32),
            ("error", Int16),
            ("message", CompactString("utf-8")),
            TAGS,
        ),
    ),
    TAGS,
)

name = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=200)
int16 = st.integers(-(2**15), 2**15 - 1)
int32 = st.integers(-(2**31), 2**31 - 1)
int64 = st.integers(-(2**63), 2**63 - 1)
number = st.integers(0, 2**31 - 1)
partitions = st.lists(number, max_size=5, unique=True)
wanted = st.dictionaries(name, partitions, max_size=4)


@given(st.lists(st.tuples(name, st.none() | wanted), max_size=6))
def test_offset_fetch_of_many_groups_is_encoded_as_written_down(groups: list[tuple[str, Any]]) -> None:
    decoded = OFFSET_FETCH_8_REQUEST.decode(BytesIO(protocol.offset_fetch(groups).encode()))
    expected: list[object] = [
        (group, None if topics is None else [(topic, list(its), {}) for topic, its in topics.items()], {})
        for group, topics in groups
    ]
    assert decoded == (expected, False, {})


@given(st.lists(name, max_size=200))
def test_find_coordinators_is_encoded_as_written_down(groups: list[str]) -> None:
    decoded = FIND_COORDINATOR_4_REQUEST.decode(BytesIO(protocol.find_coordinators(groups).encode()))
    assert decoded == (0, groups, {})


@given(name, st.none() | wanted, wanted, st.sampled_from([protocol.LATEST, protocol.EARLIEST]))
def test_older_versions_are_encoded_as_aiokafka_does(group: str, one: Any, many: Any, timestamp: int) -> None:
    topics = None if one is None else [(topic, list(its)) for topic, its in one.items()]
    assert protocol.offset_fetch_one(group, one).encode() == OffsetFetchRequest_v2(group, topics).encode()
    assert protocol.find_coordinator(group).encode() == FindCoordinatorRequest_v1(group, 0).encode()
    asked = [(topic, [(partition, timestamp) for partition in its]) for topic, its in many.items()]
    assert protocol.list_offsets(many, timestamp).encode() == OffsetRequest_v1(-1, asked).encode()
    assert protocol.metadata(list(many)).encode() == MetadataRequest_v4(list(many), False).encode()


@given(
    st.lists(
        st.tuples(
            name,
            st.lists(
                st.tuples(
                    name,
                    st.lists(st.tuples(number, int64, int32, st.none() | name, int16, st.just({})), max_size=4),
                    st.just({}),
                ),
                max_size=3,
            ),
            int16,
            st.just({}),
        ),
        max_size=5,
    )
)
def test_offsets_of_many_groups_are_decoded_as_written_down(groups: Any) -> None:
    answer = OFFSET_FETCH_8_RESPONSE.encode((0, groups, {}))
    expected: list[object] = []
    for group, topics, error, _ in groups:
        expected += [
            OffsetFetched(topic, partition, offset, code)
            for topic, its, _ in topics
            for partition, offset, _, _, code, _ in its
        ]
        expected.append(GroupFetched(group, error))
    assert list(protocol.read_offset_fetch(answer)) == expected


@given(st.lists(st.tuples(name, int32, name, int32, int16, st.none() | name, st.just({})), max_size=6))
def test_coordinators_are_decoded_as_written_down(found: Any) -> None:
    answer = FIND_COORDINATOR_4_RESPONSE.encode((0, found, {}))
    assert list(protocol.read_coordinators(answer)) == [
        CoordinatorFound(group, node, error) for group, node, _, _, error, _, _ in found
    ]


@given(
    name,
    st.lists(
        st.tuples(name, st.lists(st.tuples(number, int64, st.none() | name, int16), max_size=4)),
        max_size=3,
    ),
    int16,
)
def test_offsets_of_one_group_are_decoded_as_aiokafka_does(group: str, topics: Any, error: int) -> None:
    expected: list[object] = [
        OffsetFetched(topic, partition, offset, code) for topic, its in topics for partition, offset, _, code in its
    ]
    answer = OffsetFetchResponse_v2(topics, error).encode()
    assert list(protocol.read_offset_fetch_one(group, answer)) == [*expected, GroupFetched(group, error)]


@given(name, int16, st.none() | name, int32)
def test_one_coordinator_is_decoded_as_aiokafka_does(group: str, error: int, message: str | None, node: int) -> None:
    answer = FindCoordinatorResponse_v1(0, error, message, node, "host", 9092).encode()
    assert list(protocol.read_coordinator(group, answer)) == [CoordinatorFound(group, node, error)]


@given(st.lists(st.tuples(name, st.lists(st.tuples(number, int16, int64, int64), max_size=5)), max_size=4))
def test_log_ends_are_decoded_as_aiokafka_does(topics: Any) -> None:
    answer = OffsetResponse_v1(topics).encode()
    assert list(protocol.read_list_offsets(answer)) == [
        OffsetListed(topic, partition, offset, error) for topic, its in topics for partition, error, _, offset in its
    ]


@given(
    st.lists(st.tuples(int32, name, int32, st.none() | name), max_size=4),
    st.lists(
        st.tuples(
            int16,
            name,
            st.booleans(),
            st.lists(
                st.tuples(int16, number, int32, st.lists(int32, max_size=3), st.lists(int32, max_size=3)), max_size=4
            ),
        ),
        max_size=4,
    ),
)
def test_metadata_is_decoded_as_aiokafka_does(brokers: Any, topics: Any) -> None:
    answer = MetadataResponse_v4(0, brokers, "cluster", 1, topics).encode()
    expected: list[object] = [BrokerFound(node, host, port) for node, host, port, _ in brokers]
    for error, topic, _, its in topics:
        expected.append(TopicFound(topic, error))
        expected += [LeaderFound(topic, partition, leader) for _, partition, leader, _, _ in its]
    assert list(protocol.read_metadata(answer)) == expected


READERS: list[Callable[[bytes], Iterator[Any]]] = [
    protocol.read_metadata,
    protocol.read_coordinators,
    lambda data: protocol.read_coordinator("g", data),
    protocol.read_offset_fetch,
    lambda data: protocol.read_offset_fetch_one("g", data),
    protocol.read_list_offsets,
]


@pytest.mark.parametrize("read", READERS, ids=["metadata", "coordinators", "coordinator", "many", "one", "ends"])
@given(data=st.binary(max_size=300) | st.integers(0, 300).map(lambda count: b"\x00\x00\x00\x01" * count))
def test_any_answer_is_understood_or_malformed(read: Callable[[bytes], Iterator[Any]], data: bytes) -> None:
    with suppress(Malformed):
        assert len(list(read(data))) <= len(data) + 1


def test_a_lie_about_the_number_of_elements_costs_nothing() -> None:
    started = time.process_time()
    with pytest.raises(Malformed, match="more elements than bytes"):
        list(protocol.read_list_offsets(b"\x7f\xff\xff\xff"))
    with pytest.raises(Malformed, match="more elements than bytes"):
        list(protocol.read_offset_fetch(b"\x00\x00\x00\x00\xff\xff\xff\xff\x07"))
    assert time.process_time() - started < 0.1
