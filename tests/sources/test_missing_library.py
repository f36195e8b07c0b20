"""A source whose extra is not installed says so; the libraries that are there load outside the event loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys

# In a process of its own: nothing that an earlier test imported may be there already.
_SCRIPT = """
import asyncio, json, sys, threading
from importlib.abc import MetaPathFinder

blocked = {"aiohttp", "aiokafka", "aio_pika", "aiormq", "aiobotocore", "botocore", "requests", "urllib3"}
on_the_loop = []

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            if threading.current_thread() is threading.main_thread():
                on_the_loop.append(name)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Blocker())

from scaler.readers import Readers
from scaler.settings import LimitSettings, ReadingSettings, Settings, TelemetrySettings
from scaler.telemetry import Telemetry
from scaler.trigger import parse_trigger
from tests.sources.examples import example

class Subscriber:
    sample_seconds = 1.0
    def __init__(self):
        self.told = asyncio.get_running_loop().create_future()

def dispatch(subscriber, outcome, now):
    if not subscriber.told.done():
        subscriber.told.set_result(outcome)

async def main():
    telemetry = Telemetry(TelemetrySettings())
    told = {}
    readers = Readers(reading=ReadingSettings(), limits=LimitSettings(), metrics=telemetry, dispatch=dispatch)
    async with readers:
        for name, more in {
            "kafka": {}, "prometheus": {}, "vllm": {}, "rabbitmq": {}, "sqs": {},
            "amqp": {"source": "rabbitmq", "host": "amqp://a:b@127.0.0.1:9/v"},
            "oauth": {
                "source": "kafka", "sasl": "oauthbearer", "username": "a", "password": "b", "tls": "enable",
                "oauthTokenEndpointUri": "http://127.0.0.1:9/token",
            },
            "msk": {
                "source": "kafka", "sasl": "aws_msk_iam", "tls": "enable", "awsRegion": "eu-central-1",
                "awsAccessKeyID": "a", "awsSecretAccessKey": "b",
            },
        }.items():
            base = example(more.get("source", name), "127.0.0.1", 9)
            if name == "oauth":
                blocked.discard("aiokafka")  # installed, but not what OAuth and MSK need besides
            subscriber = Subscriber()
            trigger = parse_trigger("team-a", "llama", base | more, Settings())
            readers.subscribe(trigger, subscriber, private_addresses=True)
            outcome = await asyncio.wait_for(subscriber.told, 20)
            told[name] = [type(outcome).__name__, outcome.grpc_code, str(outcome)]
    print(json.dumps({"told": told, "on_the_loop": on_the_loop, "bugs": telemetry.bugs}))

asyncio.run(main())
"""

_EXTRAS = {
    "kafka": ("kafka", "kafka"),
    "prometheus": ("prometheus", "prometheus"),
    "vllm": ("vllm", "prometheus"),
    "rabbitmq": ("rabbitmq", "rabbitmq"),
    "sqs": ("sqs", "sqs"),
    "amqp": ("rabbitmq", "rabbitmq"),
    "oauth": ("kafka", "kafka"),
    "msk": ("kafka", "kafka"),
}


def test_a_source_without_its_library_names_the_extra_and_asks_for_it_outside_the_loop() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        capture_output=True,
        timeout=100,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    seen = json.loads(done.stdout.splitlines()[-1])
    for name, (source, extra) in _EXTRAS.items():
        kind, code, message = seen["told"][name]
        assert (kind, code) == ("SourceNotInstalled", "FAILED_PRECONDITION"), (name, message)
        assert message.startswith(f"source {source} needs its extra: pip install 'pilotlight[{extra}]'")
    assert seen["on_the_loop"] == []
    assert seen["bugs"] == 0
    assert done.stderr == b""
