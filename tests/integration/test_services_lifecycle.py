"""Servers of tests are broken and mended as told, and never outlive the run that started them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import aio_pika
import psutil
import pytest
import requests

from tests.services import (
    REPOSITORY,
    ServiceUnavailableError,
    session,
    start_prometheus,
    start_rabbitmq,
    wait_until,
)
from tests.services.process import accepts_connections, has_ended

if TYPE_CHECKING:
    from collections.abc import Callable

ENDED_SECONDS = 15.0


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or has_ended(psutil.Process(pid))


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), signal.SIGKILL)", "raise KeyboardInterrupt", "os._exit(3)"])
def test_no_server_and_no_folder_outlives_a_run_however_it_ends(ending: str) -> None:
    program = f"""
        import os, signal
        from tests.services import start_prometheus
        with start_prometheus() as server:
            print(server.process.pid, server.process.log_path.parent, flush=True)
            {ending}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=60,
        check=False,
    )
    pid, folder = done.stdout.split()
    wait_until(lambda: is_gone(int(pid)), what="the end of the server", timeout_seconds=ENDED_SECONDS)
    wait_until(lambda: not Path(folder).exists(), what="the end of its folder", timeout_seconds=ENDED_SECONDS)


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(ServiceUnavailableError, match="unknown long flag"), start_prometheus(flags=["--no-such-flag"]):
        pass


@pytest.mark.timeout(300)  # a broker takes 6 s to start, and a minute on a machine that is busy
async def test_a_rabbitmq_broker_keeps_durable_messages_over_a_crash_and_hangs_when_paused() -> None:
    with start_rabbitmq() as broker:

        async def ready_messages(seconds: float = 30.0) -> int | None:
            async with asyncio.timeout(seconds), await aio_pika.connect(broker.amqp_url(), timeout=30) as connection:
                channel = await connection.channel()
                queue = await channel.declare_queue("kept", durable=True, passive=True)
                return queue.declaration_result.message_count

        async with await aio_pika.connect(broker.amqp_url()) as connection:
            channel = await connection.channel()
            await channel.declare_queue("kept", durable=True)
            message = aio_pika.Message(b"one", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(message, routing_key="kept")
        broker.pause()
        with pytest.raises(TimeoutError):
            await ready_messages(seconds=5.0)
        broker.resume()
        assert await ready_messages() == 1
        await asyncio.sleep(3)  # Erlang's disk log holds writes back for up to 2 s, and it was paused
        broker.kill()
        assert not accepts_connections(broker.host, broker.amqp_port)
        await asyncio.to_thread(broker.start)
        assert await ready_messages() == 1


@pytest.mark.parametrize(
    ("variables", "read", "word"),
    [
        ({"PILOTLIGHT_TEST_KAFKA": "9092"}, session.given_kafka, "host:port"),
        ({"PILOTLIGHT_TEST_SQS": "127.0.0.1:1"}, session.given_sqs, "nothing accepts connections"),
        ({"PILOTLIGHT_TEST_RABBITMQ_AMQP": "127.0.0.1:1"}, session.given_rabbitmq, "nothing accepts connections"),
    ],
)
def test_a_wrong_address_in_the_environment_fails_the_test_that_needs_it(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    read: Callable[[], object],
    word: str,
) -> None:
    for variable in (session.AMQP_VARIABLE, session.RABBITMQ_HTTP_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    for variable, text in variables.items():
        monkeypatch.setenv(variable, text)
    with pytest.raises(ServiceUnavailableError, match=word):
        read()


def test_services_that_stay_are_found_by_their_file_and_ended_by_down(tmp_path: Path) -> None:
    # all but Prometheus are named in the environment, so that only this one is started
    named = (session.KAFKA_VARIABLE, session.SQS_VARIABLE, session.AMQP_VARIABLE, session.RABBITMQ_HTTP_VARIABLE)
    environment = {
        **{name: text for name, text in os.environ.items() if name != session.PROMETHEUS_VARIABLE},
        **dict.fromkeys(named, "127.0.0.1:1"),
        "PILOTLIGHT_SERVICES_CACHE": str(tmp_path),
    }

    def run(verb: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "tests.services", verb],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=True,
        ).stdout

    try:
        addresses = dict(line.split("=") for line in run("up").splitlines())
        assert addresses.keys() == {*named, session.PROMETHEUS_VARIABLE}
        address = addresses[session.PROMETHEUS_VARIABLE]
        assert requests.get(f"http://{address}/-/ready", timeout=30).ok
        assert dict(line.split("=") for line in run("env").splitlines()) == addresses
    finally:
        run("down")
    host, _, port = address.partition(":")
    assert not accepts_connections(host, int(port))
    assert run("env") == ""
