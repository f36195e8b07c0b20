"""Kafka's error codes as errors a person can act on."""

from __future__ import annotations

from scaler.errors import SourceDenied, SourceError, SourceMissing, SourceUnavailable, quoted
from scaler.sources.kafka import protocol

# Kafka's error codes (https://kafka.apache.org/protocol#protocol_error_codes).
UNKNOWN_TOPIC, _INVALID_TOPIC, _TOPIC_DENIED = 3, 17, 29
_GROUP_DENIED, _INVALID_GROUP, GROUP_NOT_FOUND = 30, 24, 69
_CLUSTER_DENIED = 31
_COORDINATOR_LOADING, _COORDINATOR_NOT_AVAILABLE, _NOT_COORDINATOR = 14, 15, 16
_COORDINATOR_MOVES = frozenset({_COORDINATOR_LOADING, _COORDINATOR_NOT_AVAILABLE, _NOT_COORDINATOR})
# Unknown topic, leader not available, not leader, replica not available, storage error, fenced and unknown leader
# epoch, offset not available.
_LEADER_MOVES = frozenset({UNKNOWN_TOPIC, 5, 6, 9, 56, 74, 75, 78})


class Moved(SourceUnavailable):
    """Asked the wrong broker, or one that can't be reached: worth looking up and asking once more.

    `plain` is what to tell where that did not help.
    """

    def __init__(self, message: str, plain: SourceError | None = None) -> None:
        super().__init__(message)
        self.plain = plain or SourceUnavailable(message)


def plain(problem: SourceError) -> SourceError:
    """What to tell of a problem."""
    return problem.plain if isinstance(problem, Moved) else problem


def malformed(err: protocol.Malformed) -> SourceUnavailable:
    """An answer that can't be understood."""
    return SourceUnavailable(f"a broker sent an answer that is not Kafka's ({err}); check what listens there")


def topic_problem(topic: str, error: int) -> SourceError:
    """What metadata says of a topic."""
    what = f"topic {quoted(topic)}"
    if error == _TOPIC_DENIED:
        return SourceDenied(f"{what}: the user may not describe it; grant DESCRIBE on the topic")
    if error == UNKNOWN_TOPIC:
        return SourceMissing(f"{what} does not exist; create it or mend the name")
    if error == _INVALID_TOPIC:
        return SourceMissing(f"{what}: the cluster takes no such name; mend it")
    return SourceUnavailable(f"{what} can't be read at present (Kafka's error {error})")


def partition_problem(topic: str, partition: int, error: int) -> SourceError:
    """What a leader or a coordinator says of a partition."""
    if error == _TOPIC_DENIED:
        return topic_problem(topic, error)
    what = f"partition {partition} of topic {quoted(topic)}"
    if error in _LEADER_MOVES:
        return Moved(f"{what}: its leader is moving (Kafka's error {error})")
    return SourceUnavailable(f"{what} can't be read at present (Kafka's error {error})")


def group_problem(group: str, error: int) -> SourceError:
    """What a coordinator says of a group."""
    what = f"group {quoted(group)}"
    if error == _GROUP_DENIED:
        return SourceDenied(f"{what}: the user may not describe it; grant DESCRIBE on the group")
    if error == _CLUSTER_DENIED:
        return SourceDenied(f"{what}: the cluster lets this user ask for nothing; check its rights")
    if error == _INVALID_GROUP:
        return SourceMissing(f"{what}: the cluster takes no such name; mend it")
    if error in _COORDINATOR_MOVES:
        return Moved(f"{what}: its coordinator is moving or loading (Kafka's error {error})")
    return SourceUnavailable(f"{what} can't be read at present (Kafka's error {error})")
