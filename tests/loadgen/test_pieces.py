"""Traces, endpoints, fleets, figures and the exporter: what needs no broker."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from rich.console import Console
from typer.testing import CliRunner

from loadgen.__main__ import app, main
from loadgen.consumers import Consumer, Delivery
from loadgen.endpoints import BrokerFailed, KafkaEndpoint, RabbitEndpoint, SqsEndpoint, parse_endpoint
from loadgen.experiment import Experiment, Plan
from loadgen.exporter import ExporterShape, PodSeries, exported
from loadgen.keda import Event
from loadgen.messages import Message, decode
from loadgen.pace import Pace
from loadgen.reports import Why
from loadgen.results import Recorder, percentile
from loadgen.traces import write_trace
from loadgen.view import LiveView
from loadgen.workers import Fleet, FleetCounts, Phase, Pod, PodState, Served, _deletion_order
from scaler.loads import read_trace
from scaler.simulator.arrivals import Arrival


def test_a_message_survives_its_journey_and_strangers_are_told_apart() -> None:
    message = Message("a-1", 1_700_000_000.25, 1.5)
    assert decode(message.encode()) == message
    assert [decode(body) for body in ("", "[]", "{}", '{"id": 1}', b"\xff\xfe", '"text"')] == [None] * 6


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "sqs+http://127.0.0.1:4566/123456789012/orders?region=eu-central-1",
            SqsEndpoint(
                queue_url="http://127.0.0.1:4566/123456789012/orders",
                region="eu-central-1",
                endpoint_url="http://127.0.0.1:4566",
            ),
        ),
        ("kafka://b:9092/orders?group=g", KafkaEndpoint(bootstrap_servers="b:9092", topic="orders", group="g")),
        (
            "amqp://user:word@b:5672/%2F?queue=orders",
            RabbitEndpoint(url="amqp://user:word@b:5672/%2F", queue="orders"),
        ),
    ],
    ids=["sqs", "kafka", "rabbitmq"],
)
def test_a_queue_is_named_by_url(url: str, expected: object) -> None:
    assert parse_endpoint(url) == expected


@pytest.mark.parametrize("url", ["", "redis://h", "kafka://h:1/", "amqp://u:word@h/v", "sqs+https://h/"])
def test_a_wrong_queue_url_says_what_is_expected_without_the_password(url: str) -> None:
    with pytest.raises(ValueError, match="queue URL: ") as error:
        parse_endpoint(url)
    assert "word" not in str(error.value).replace("user:password", "")


@pytest.mark.parametrize("name", ["trace.csv.gz", "trace.csv"])
def test_a_trace_survives_a_round_trip_and_starts_at_zero(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    assert write_trace(file, [Arrival(12.5, 2.0), Arrival(10.0, 1.0)]) == 2
    assert read_trace(file) == [Arrival(0.0, 1.0), Arrival(2.5, 2.0)]


ABSURD = [
    (["--load", "poisson:rate_per_second=-1"], 'rate_per_second is "-1"; it must be a number from 0 up'),
    (["--load", "poisson:rate_per_second=nan"], 'rate_per_second is "nan"; it must be a number from 0 up'),
    (["--load", "bursts:every_seconds=inf"], 'every_seconds is "inf"; it must be a number from 0 up'),
    (["--load", "burst"], 'pattern "burst" is unknown; there are: '),
    (["--load", "poisson:rate_per_second=1e9"], "rate_per_second is 1e+09, which makes about 3"),
    (["--load", "poisson:rate_per_second=1e9"], "expected at most 10,000,000: change it, or --duration"),
    (["--load", "bursts:every_seconds=0,burst_seconds=0"], "every_seconds is 0, which makes about inf draws"),
    (["--load", "poisson", "--duration", "1e12"], "--duration is 1e+12; expected above 0 and at most 316224000"),
    (["--load", "poisson", "--duration", "0"], "--duration is 0; expected above 0"),
    (["--load", "poisson", "--service", "1e12"], "the mean service is 1e+12 seconds; expected at most 2592000"),
    (["--load", "poisson", "--duration", "nan"], "Invalid value for '--duration': Input should be"),
    (["--load", "poisson", "--variation", "inf"], "Invalid value for '--variation': Input should be"),
    (["--load", "poisson", "--variation", "1e200"], "Invalid value for '--variation': Input should be"),
    (["--load", "poisson", "--service", "-1"], "Invalid value for '--service': Input should be"),
]


@pytest.mark.parametrize("verb", ["send", "trace"])
@pytest.mark.parametrize(("words", "said"), ABSURD, ids=[" ".join((*words, said)) for words, said in ABSURD])
def test_a_load_that_makes_no_sense_is_refused_in_one_line_before_anything_is_sent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], verb: str, words: list[str], said: str
) -> None:
    file = tmp_path / "out.csv"
    where = [str(file)] if verb == "trace" else ["--queue", "amqp://user:word@127.0.0.1:1/v?queue=orders"]
    assert main_with([verb, *where, *words]) == 2
    out, line = capfd.readouterr()
    assert out == ""
    assert line.startswith("loadgen: ")
    assert said in line
    assert line.count("\n") == 1
    assert not file.exists()


def main_with(words: list[str]) -> object:
    """The exit code of the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["loadgen", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"t_s,service_s\n1,nan\n", 'line 2: service_s is "nan"; expected seconds'),
        (b"t_s,service_s\n-1,1\n", 'line 2: t_s is "-1"; expected seconds'),
        (gzip.compress(b"t_s,service_s\n2,1\n1,1\n"), 'line 3: t_s is "1"; expected it not below 2'),
        (gzip.compress(b"t_s,service_s\n1,2\n")[:20], "can't be read: the file is cut short"),
        (b"", "expected a header"),
    ],
    ids=["no number", "negative", "order", "cut off", "empty"],
)
def test_a_trace_that_makes_no_sense_is_refused_as_backtest_refuses_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    file = tmp_path / "trace.csv"
    file.write_bytes(content)
    assert main_with(["send", "--queue", "kafka://127.0.0.1:1/orders", "--trace", str(file)]) == 2
    line = capfd.readouterr().err
    assert line.startswith(f'loadgen: trace "{file}"')
    assert said in line


@pytest.mark.parametrize("queue", ["kafka://127.0.0.1:1/orders", "amqp://user:word@127.0.0.1:1/v?queue=orders"])
def test_a_broker_that_is_not_there_ends_the_command_with_one_line(queue: str) -> None:
    words = ["send", "--queue", queue, "--load", "steady", "--duration", "1", "--json"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    done = subprocess.run(  # in a process of its own: pytest takes what clients log
        [sys.executable, "-m", "loadgen", *words],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.startswith(b"loadgen: ")
    assert done.stderr.count(b"\n") == 1


def test_the_trace_command_writes_what_its_seed_says(tmp_path: Path) -> None:
    file = tmp_path / "out.csv.gz"
    arguments = ["trace", str(file), "--load", "poisson:rate_per_second=2", "--duration", "100", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    trace = read_trace(file)
    assert json.loads(result.output) == {"requests": len(trace), "file": str(file)}
    assert 150 < len(trace) < 250


@pytest.mark.parametrize(
    ("queue", "told"),
    [
        ("sqs+http://127.0.0.1:1/1/orders", "SQS queue http://127.0.0.1:1/1/orders"),
        ("kafka://127.0.0.1:1/orders", "Kafka topic orders at 127.0.0.1:1"),
        ("amqp://user:word@127.0.0.1:1/v?queue=orders", "RabbitMQ queue orders at 127.0.0.1:1"),
    ],
    ids=["sqs", "kafka", "rabbitmq"],
)
def test_a_broker_that_is_not_there_is_one_line_without_the_password(
    monkeypatch: pytest.MonkeyPatch, queue: str, told: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
    result = CliRunner().invoke(app, ["send", "--queue", queue, "--duration", "3", "--json"])
    assert isinstance(result.exception, BrokerFailed)
    assert str(result.exception).startswith(told)
    assert "word" not in str(result.exception)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100), (0.001, 1)], ids=str)
def test_a_percentile_is_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile(range(1, 101), share) == expected


def test_no_waits_have_no_percentile() -> None:
    assert percentile([], 0.5) is None


def counts(*, ready: int = 0, starting: int = 0) -> FleetCounts:
    return FleetCounts(wanted=ready + starting, ready=ready, starting=starting, terminating=0, busy=0)


def test_a_summary_counts_what_was_served_once_and_whether_zero_came_back() -> None:
    recorder = Recorder()
    recorder.on_sent([Arrival(0, 1), Arrival(0, 1)])
    for moment, state in enumerate([counts(), counts(starting=1), counts(ready=3), counts()]):
        recorder.note(float(moment), state)
    for wait_seconds in (4.0, 4.0):
        recorder.on_started("one")
        recorder.on_served(Served("one", 0.0, wait_seconds, 5.0, 1.0))
    assert (recorder.waiting, recorder.in_flight) == (1, 0)
    summary = recorder.summary(gpu_seconds=12.0, starts=3, within_seconds=5.0)
    assert (summary.requests, summary.served, summary.wait_p99_seconds, summary.within_share) == (2, 1, 4.0, 1.0)
    assert (summary.most_replicas, summary.left_zero, summary.returned_to_zero) == (3, True, True)


class _Broker:
    """An in-process queue, for pods alone; the real brokers have tests of their own."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[Message] = asyncio.Queue()
        self.done_ids: list[str] = []
        self.released_ids: list[str] = []

    @asynccontextmanager
    async def consumer(self, concurrency: int) -> Any:  # noqa: ARG002 - receive has its limit
        yield self

    async def receive(self, limit: int, wait_seconds: float) -> Sequence[Delivery]:
        try:
            async with asyncio.timeout(wait_seconds):
                found = [await self.waiting.get()]
        except TimeoutError:
            return ()
        while len(found) < limit and not self.waiting.empty():
            found.append(self.waiting.get_nowait())
        return [Delivery(message, None) for message in found]

    async def done(self, delivery: Delivery) -> None:
        self.done_ids.append(delivery.message.identity)

    async def release(self, delivery: Delivery) -> None:
        self.released_ids.append(delivery.message.identity)


_: type[Consumer] = _Broker


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for belongs to the code under test
            await asyncio.sleep(0.002)


def loop_pace() -> Pace:
    """By the event loop's clock, which passes at once under looptime: how busy the machine is counts for nothing."""
    return Pace(speed=50, clock=asyncio.get_running_loop().time)


@pytest.mark.looptime
async def test_a_pod_serves_as_many_at_once_as_it_has_slots() -> None:
    broker, most = _Broker(), 0
    for index in range(7):
        broker.waiting.put_nowait(Message(str(index), 0.0, 1.0))
    async with Fleet(broker, loop_pace(), random.Random(1), concurrency=3) as fleet:
        fleet.set_replicas(1)
        async with asyncio.timeout(5):
            while len(broker.done_ids) < 7:
                most = max(most, fleet.counts().busy)
                await asyncio.sleep(0.001)
    assert most == 3


@pytest.mark.looptime
async def test_a_pod_that_is_asked_to_stop_finishes_what_it_works_on_and_is_billed_until_then() -> None:
    broker, pace = _Broker(), loop_pace()
    broker.waiting.put_nowait(Message("long", 0.0, 10.0))
    async with Fleet(broker, pace, random.Random(1), phases=[Phase(name="load", mean_seconds=2, variation=0)]) as fleet:
        fleet.set_replicas(1)
        assert fleet.counts().starting == 1
        await until(lambda: fleet.counts().busy == 1)
        fleet.set_replicas(0)
        broker.waiting.put_nowait(Message("late", 0.0, 1.0))
        assert (fleet.counts().terminating, fleet.scale().status_replicas) == (1, 0)
        await until(lambda: not fleet.pods)
        assert broker.done_ids == ["long"]
        assert fleet.gpu_seconds() == pytest.approx(12.0, abs=2.0)
        assert fleet.cold_starts_seconds == [pytest.approx(2.0, abs=1.0)]
    assert broker.waiting.qsize() == 1


@pytest.mark.looptime
async def test_a_pod_past_its_grace_is_killed_and_its_work_goes_back() -> None:
    broker = _Broker()
    broker.waiting.put_nowait(Message("long", 0.0, 1000.0))
    async with Fleet(broker, loop_pace(), random.Random(1), grace_seconds=2.0) as fleet:
        fleet.set_replicas(1)
        await until(lambda: fleet.counts().busy == 1)
        fleet.set_replicas(0)
        await until(lambda: not fleet.pods)
        await until(lambda: broker.released_ids == ["long"])
    assert broker.done_ids == []


async def test_a_starting_pod_goes_at_once() -> None:
    phases = [Phase(name="load", mean_seconds=1000, variation=0)]
    async with Fleet(None, Pace(), random.Random(1), phases=phases) as fleet:
        fleet.set_replicas(3)
        fleet.set_replicas(1)
        await until(lambda: len(fleet.pods) == 1)
        assert fleet.pods[0].name == "pod-1"  # the newest go first
        assert fleet.starts == 3


def test_scale_in_takes_pods_that_are_not_ready_then_the_newest_ready() -> None:
    def pod(name: str, created: float, ready: float | None) -> Pod:
        state = PodState.STARTING if ready is None else PodState.READY
        return Pod(name, created, 1, state=state, ready_at_seconds=ready)

    pods = [pod("old", 0, 10), pod("slow", 1, 50), pod("starting", 2, None), pod("newest", 3, None)]
    assert [found.name for found in sorted(pods, key=_deletion_order)] == ["newest", "starting", "slow", "old"]


@pytest.mark.parametrize(
    ("shape", "label"),
    [
        (ExporterShape(), 'pod="pod-1"'),
        (ExporterShape(exported_labels=True), 'exported_pod="pod-1"'),
        (ExporterShape(old_labels=True), 'pod_name="pod-1"'),
    ],
    ids=["honor_labels", "exported", "old"],
)
def test_the_exporter_labels_gpus_as_dcgm_does(shape: ExporterShape, label: str) -> None:
    pods = [
        PodSeries(namespace="team-a", pod="pod-1", gpu_share=0.25, running=2, waiting=3, kv_cache_share=0.5),
        PodSeries(namespace="team-a", pod="pod-2", gpu_share=1.0, serving=False, mig=("1g.10gb", "3")),
    ]
    with exported(lambda: pods, shape=shape) as url:
        text = urlopen(url, timeout=30).read().decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    utilisation = [line for line in lines if line.startswith("DCGM_FI_DEV_GPU_UTIL")]
    assert len(utilisation) == 1, "not measured for a MIG instance"
    assert label in utilisation[0]
    assert utilisation[0].endswith(" 25.0")
    assert any("DCGM_FI_PROF_GR_ENGINE_ACTIVE" in line and 'GPU_I_ID="3"' in line for line in lines)
    assert [line.rsplit(" ", 1)[1] for line in lines if line.startswith("vllm:num_requests_waiting")] == ["3.0"]


def test_no_pods_have_no_series() -> None:
    with exported(list) as url:
        text = urlopen(url, timeout=30).read().decode()
    assert [line for line in text.splitlines() if not line.startswith("#")] == []


def shown(view_width: int) -> str:
    """The live picture of a made-up moment, as text."""
    endpoint = KafkaEndpoint(bootstrap_servers="b:1", topic="t")
    experiment = Experiment(Plan(endpoint=endpoint, arrivals=[]))
    experiment.recorder.note(1.0, counts(starting=2))
    experiment.recorder.note(5.0, counts(ready=3, starting=1))
    experiment.events.append(Event(at_seconds=4.0, kind="scaled", by="push", replicas_before=0, replicas_after=1))
    why = Why(
        active=True,
        desired_replicas=4,
        metric_value=4.0,
        target_value=1.0,
        held=False,
        error="",
        reasons=("need: 12 wait", "hold: " + "long reason " * 20),
    )
    written = io.StringIO()
    console = Console(width=view_width, file=written, force_terminal=True, color_system=None)
    with LiveView(console, title="test", duration_seconds=10.0) as view:
        view.update(experiment, [why])
    return written.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_live_view_fits_and_says_what_is_decided_and_why(width: int) -> None:
    text = shown(width)
    assert "4 replicas, active" in text
    assert "need: 12 wait" in text
    assert "3 ready" in text
    assert "Pilotlight pushed: 0 → 1 replicas" in text
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in text.splitlines()]
    assert max(map(len, lines)) <= width
