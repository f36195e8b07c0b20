"""kill -9 under load and a new process, over a real queue: no answer is below what is known or can't be known.

With the state folder the last decision and what `slo` learned are there again; without it, and with nobody who
reports replicas, nothing is let go for one cold start and holdSeconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import boto3
import grpc
import pytest
from structlog.testing import capture_logs

from scaler._generated import externalscaler_pb2 as pb
from scaler._generated import externalscaler_pb2_grpc as pb_grpc
from scaler.state import FILE_NAME
from tests.service.conftest import until
from tests.service.test_answers import Bench, read_queue
from tests.service.test_answers import queue as queue_of
from tests.service.test_process import LISTEN, Process, serving
from tests.services import SQS, unique

COLD_START_SECONDS, HOLD_SECONDS = 6.0, 9.0
MESSAGES = 40


class Queue:
    """A real queue, with messages in it and a number of them in flight."""

    def __init__(self, sqs: SQS) -> None:
        self.name = unique("restart")
        self._client: Any = boto3.client(
            "sqs",
            endpoint_url=sqs.endpoint_url,
            region_name=sqs.region,
            aws_access_key_id=sqs.access_key_id,
            aws_secret_access_key=sqs.secret_access_key,
        )
        self._url = self._client.create_queue(QueueName=self.name, Attributes={"VisibilityTimeout": "3600"})["QueueUrl"]
        self._taken: list[str] = []

    def send(self, messages: int) -> None:
        for start in range(0, messages, 10):
            entries = [{"Id": str(i), "MessageBody": "work"} for i in range(min(10, messages - start))]
            self._client.send_message_batch(QueueUrl=self._url, Entries=entries)

    def take(self, messages: int) -> None:
        """Begin work on so many."""
        while messages > 0:
            answer = self._client.receive_message(QueueUrl=self._url, MaxNumberOfMessages=min(10, messages))
            self._taken.extend(message["ReceiptHandle"] for message in answer["Messages"])
            messages -= len(answer["Messages"])

    def finish(self) -> None:
        """End the work on all."""
        for handle in self._taken:
            self._client.delete_message(QueueUrl=self._url, ReceiptHandle=handle)
        self._taken.clear()

    def delete(self) -> None:
        """It can't be read any more."""
        self._client.delete_queue(QueueUrl=self._url)


def ref(sqs: SQS, queue: Queue) -> pb.ScaledObjectRef:
    return pb.ScaledObjectRef(
        namespace="team-a",
        name="llama",
        scalerMetadata={
            "source": "sqs",
            "queueURL": queue.name,
            "awsRegion": sqs.region,
            "awsEndpoint": sqs.endpoint_url,
            "awsAccessKeyID": sqs.access_key_id,
            "awsSecretAccessKey": sqs.secret_access_key,
            "waitSeconds": "10",
            "serviceSeconds": "20",
            "coldStartSeconds": f"{COLD_START_SECONDS:g}",
            "holdSeconds": f"{HOLD_SECONDS:g}",
            "sampleSeconds": "0.3",
            "confirmations": "1",
        },
    )


class Polls:
    """KEDA's calls to one process."""

    def __init__(self, channel: grpc.aio.Channel, wanted: pb.ScaledObjectRef) -> None:
        stub: Any = pb_grpc.ExternalScalerStub  # generated without types
        self._stub = stub(channel)
        self._wanted = wanted

    async def desired(self) -> int:
        """The replicas that the HPA would make of the answer; the target is 1."""
        spec = (await self._stub.GetMetricSpec(self._wanted, timeout=30)).metricSpecs[0]
        assert spec.targetSizeFloat == 1.0
        request = pb.GetMetricsRequest(scaledObjectRef=self._wanted, metricName=spec.metricName)
        while True:
            before = (await self._stub.IsActive(self._wanted, timeout=30)).result
            value = (await self._stub.GetMetrics(request, timeout=30)).metricValues[0].metricValueFloat
            if (await self._stub.IsActive(self._wanted, timeout=30)).result == before:
                break  # else it was decided anew between these calls
        assert before == (value >= 1)
        return round(float(value))

    async def answered(self) -> int | None:
        """The answer; None where there is none, as when the queue can't be read for longer than holdSeconds."""
        try:
            return await self.desired()
        except grpc.aio.AioRpcError as err:
            assert err.code() == grpc.StatusCode.UNAVAILABLE, err.details()  # noqa: PT017 - others are failures
            return None

    async def settled(self, at_least: int) -> int:
        """The answer, once it is there and at least so much."""
        answers: list[int] = []

        async def there() -> bool:
            answer = await self.answered()
            if answer is None:
                return False
            answers.append(answer)
            return answer >= at_least

        await until(there, seconds=30)
        return answers[-1]


def written(state: Path) -> int:
    """The replicas of the last decision in the state folder; 0 where there is none yet."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{state / FILE_NAME}?mode=ro", uri=True)) as connection:
            (desired,) = connection.execute("SELECT max(desired) FROM last").fetchone()
    except sqlite3.OperationalError:  # the file, or its table, is on its way
        return 0
    return int(desired or 0)


@contextlib.asynccontextmanager
async def started(folder: Path, state: Path | None, wanted: pb.ScaledObjectRef) -> AsyncIterator[tuple[Process, Polls]]:
    """One process, and KEDA's calls to it."""
    (folder / "ready.json").unlink(missing_ok=True)
    settings: dict[str, Any] = {"server": LISTEN}
    if state is not None:
        settings["stateFolder"] = str(state)
    async with (
        serving(folder, settings, "--local", "--json") as process,
        grpc.aio.insecure_channel(process.serving["grpc"]) as channel,
    ):
        yield process, Polls(channel, wanted)


@pytest.mark.parametrize("kept", [True, False], ids=["with its state", "without state"])
async def test_killed_under_load_and_started_again_no_answer_is_too_low(tmp_path: Path, sqs: SQS, kept: bool) -> None:
    queue = await asyncio.to_thread(Queue, sqs)
    await asyncio.to_thread(queue.send, MESSAGES)
    wanted = ref(sqs, queue)
    if kept:
        wanted.scalerMetadata["holdSeconds"] = "60"  # a slow start must not outlast what was restored
    state = tmp_path / "state" if kept else None
    async with started(tmp_path, state, wanted) as (process, polls):
        await polls.settled(4)
        await asyncio.to_thread(queue.take, MESSAGES)  # all are worked on: nothing waits any more
        await asyncio.sleep(2.5)  # more than commitSeconds
        await polls.settled(MESSAGES)
        if state is not None:
            await until(lambda: written(state) >= MESSAGES)
        process.child.send_signal(signal.SIGKILL)
        process.child.wait()
    async with started(tmp_path, state, wanted) as (_, polls):
        # What KEDA hears first and from then on. With its state, `slo` knows what it may let go, and work in flight
        # keeps its replicas; without, the peak stands though demand falls to nothing.
        loop = asyncio.get_running_loop()
        until_at = loop.time() + (3.0 if kept else COLD_START_SECONDS + HOLD_SECONDS - 2.0)
        first = await polls.settled(0)
        assert first >= MESSAGES
        if not kept:
            await asyncio.to_thread(queue.finish)
        while (answer := await polls.answered(), loop.time())[1] < until_at:  # one that comes later may be lower
            assert answer is None or answer >= (MESSAGES if kept else first)
            await asyncio.sleep(0.3)


def test_without_state_the_peak_is_let_go_after_one_cold_start_and_hold_seconds() -> None:
    held, alone = Bench(), Bench()  # the second without that caution: what the policy itself keeps
    promise = {"waitSeconds": "60", "serviceSeconds": "20", "coldStartSeconds": "6", "holdSeconds": "60"}
    workload, single = queue_of(held, "jobs", **promise), queue_of(alone, "jobs", **promise)
    single.blank_until = alone.clock.now
    first = read_queue(held, workload, MESSAGES).desired_replicas
    assert read_queue(alone, single, MESSAGES).desired_replicas == first >= 4
    for _ in range(64):  # seconds, after the first
        answer, kept = (read_queue(*one, 0).desired_replicas for one in ((held, workload), (alone, single)))
        assert answer == first
    assert kept == 0
    assert [read_queue(held, workload, 0).desired_replicas for _ in range(2)] == [first, 0]


def kept_until(folder: Path, wall: float, waiting: int, **promise: str) -> None:
    """A service that reads a queue for a while, writes what it knows, and dies at this moment."""
    bench = Bench(folder, wall=wall)
    workload = queue_of(bench, "jobs", **promise)
    for _ in range(30):
        read_queue(bench, workload, waiting)
    assert bench.state is not None
    bench.state.close()


PROMISE = {"waitSeconds": "60", "serviceSeconds": "20", "coldStartSeconds": "6", "holdSeconds": "60"}


@pytest.mark.parametrize(("off_seconds", "is_stale"), [(5.0, False), (50.0, False), (70.0, True), (86_400.0, True)])
def test_state_older_than_hold_seconds_is_as_good_as_none_about_the_replicas(
    tmp_path: Path, off_seconds: float, is_stale: bool
) -> None:
    """Perhaps the service went on for hours and could write nothing: nothing is let go that demand has asked for."""
    kept_until(tmp_path, 1_000_000.0, 1, **PROMISE)
    bench = Bench(tmp_path, wall=1_000_030.0 + off_seconds)
    workload = queue_of(bench, "jobs", **PROMISE)
    assert (workload.blank_until > bench.clock.now) == is_stale
    peak = read_queue(bench, workload, MESSAGES).desired_replicas
    assert peak >= 4
    assert workload.estimates is not None
    assert workload.estimates.samples > 1  # what was learned does stand
    if is_stale:
        assert {read_queue(bench, workload, 0).desired_replicas for _ in range(64)} == {peak}
    assert bench.state is not None
    bench.state.close()


def altered(folder: Path, change: Callable[[Any], None]) -> None:
    """What was learned, as a file with a turned bit or of another version has it."""
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as connection, connection:
        (text,) = connection.execute("SELECT learned FROM last").fetchone()
        learned = json.loads(text)
        change(learned[2])
        connection.execute("UPDATE last SET learned = ?", (json.dumps(learned),))


def test_what_was_learned_and_makes_no_sense_costs_one_reading_and_not_the_workload(tmp_path: Path) -> None:
    kept_until(tmp_path, 1_000_000.0, MESSAGES, **PROMISE)
    altered(tmp_path, lambda values: values["estimates"].update(waiting="many"))
    bench = Bench(tmp_path, wall=1_000_031.0)
    workload = queue_of(bench, "jobs", **PROMISE)
    last = workload.memory.last
    assert last is not None
    with capture_logs() as logs:
        assert read_queue(bench, workload, MESSAGES).desired_replicas == last.desired_replicas  # still the old one
    assert [log["event"] for log in logs if log["log_level"] == "error"] == ["evaluation_failed"]
    with capture_logs() as logs:
        answers = [read_queue(bench, workload, waiting).desired_replicas for waiting in (MESSAGES, *[0] * 60)]
    assert workload.error is None
    assert min(answers) >= last.desired_replicas  # and now it is as if nothing was known
    assert not [log for log in logs if log["log_level"] == "error"]
    assert bench.state is not None
    bench.state.close()


async def test_with_its_state_a_new_process_answers_while_the_queue_cannot_be_read(tmp_path: Path, sqs: SQS) -> None:
    queue = await asyncio.to_thread(Queue, sqs)
    await asyncio.to_thread(queue.send, MESSAGES)
    wanted = ref(sqs, queue)
    wanted.scalerMetadata["holdSeconds"] = "120"
    async with started(tmp_path, tmp_path / "state", wanted) as (process, polls):
        before = await polls.settled(4)
        await asyncio.sleep(2.5)  # more than commitSeconds

        async def is_written() -> bool:
            nonlocal before
            before = await polls.desired()
            return written(tmp_path / "state") == before

        await until(is_written)
        process.child.send_signal(signal.SIGKILL)
        process.child.wait()
    await asyncio.to_thread(queue.delete)
    async with started(tmp_path, tmp_path / "state", wanted) as (_, polls):
        assert await polls.desired() == before
