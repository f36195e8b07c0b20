"""SQS as read from a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Hashable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest

from scaler.addresses import AddressGuard
from scaler.core.model import Sample
from scaler.errors import SourceDenied, SourceMissing, SourceTimeout, SourceUnavailable
from scaler.settings import FileSettings, Settings, resolve
from scaler.source import Client, SourceContext
from scaler.trigger import Trigger, parse_trigger
from tests.services import SQS, start_sqs, tcp_proxy, unique


def boto(sqs: SQS, service: str = "sqs", **credentials: str) -> Any:
    keys = {"aws_access_key_id": sqs.access_key_id, "aws_secret_access_key": sqs.secret_access_key} | credentials
    return boto3.client(service, endpoint_url=sqs.endpoint_url, region_name=sqs.region, **keys)


def trigger(sqs: SQS, queue: str, **metadata: str) -> Trigger:
    base = {
        "source": "sqs",
        "queueURL": queue,
        "awsRegion": sqs.region,
        "awsEndpoint": sqs.endpoint_url,
        "awsAccessKeyID": sqs.access_key_id,
        "awsSecretAccessKey": sqs.secret_access_key,
    }
    return parse_trigger("team-a", "llama", base | metadata, Settings())


@contextlib.asynccontextmanager
async def client_of(trigger: Trigger, timeout_seconds: float = 20.0) -> AsyncIterator[Client]:
    guard = AddressGuard(private_allowed=True)
    context = SourceContext(
        clock=time.monotonic,
        read_timeout_seconds=timeout_seconds,
        connect_timeout_seconds=timeout_seconds,
        check_address=guard.check,
        judge_address=guard.judge,
    )
    async with trigger.source.open(trigger.config, context) as client:
        yield client


async def outcomes(client: Client, *triggers: Trigger) -> list[object]:
    found: dict[Hashable, object] = {}
    queries = [trigger.source.query(trigger.config) for trigger in triggers]
    await client.read(queries, found.__setitem__)
    return [found[query] for query in queries]


async def read(trigger: Trigger) -> object:
    async with client_of(trigger) as client:
        return (await outcomes(client, trigger))[0]


async def sample_of(trigger: Trigger) -> Sample:
    reading = await read(trigger)
    assert not isinstance(reading, Exception), reading
    return trigger.source.sample(trigger.config, reading, now_seconds=0.0, view=None)


@pytest.fixture
def queue(sqs: SQS) -> Iterator[str]:
    """The URL of a queue with 4 messages visible, 3 in flight and 2 delayed."""
    sender = boto(sqs)
    url = str(sender.create_queue(QueueName=unique("orders"))["QueueUrl"])
    for _ in range(7):
        sender.send_message(QueueUrl=url, MessageBody="work")
    got = sender.receive_message(QueueUrl=url, MaxNumberOfMessages=3, VisibilityTimeout=600).get("Messages", [])
    while len(got) < 3:
        got += sender.receive_message(QueueUrl=url, MaxNumberOfMessages=3 - len(got), VisibilityTimeout=600)["Messages"]
    for _ in range(2):
        sender.send_message(QueueUrl=url, MessageBody="later", DelaySeconds=900)
    yield url
    sender.delete_queue(QueueUrl=url)


@pytest.mark.parametrize(
    ("metadata", "metric"),
    [
        pytest.param({}, 7.0, id="visible and in flight by default"),
        pytest.param({"scaleOnInFlight": "false"}, 4.0, id="visible only"),
        pytest.param({"scaleOnDelayed": "true"}, 9.0, id="all three"),
        pytest.param({"scaleOnDelayed": "true", "scaleOnInFlight": "false"}, 6.0, id="visible and delayed"),
    ],
)
async def test_the_metric_is_the_sum_of_what_counts(
    sqs: SQS, queue: str, metadata: dict[str, str], metric: float
) -> None:
    sample = await sample_of(trigger(sqs, queue, **metadata))
    assert sample.metric_value == metric
    assert (sample.waiting, sample.in_flight) == (4.0, 3.0)
    assert sample.approximate


@pytest.mark.parametrize(("threshold", "active"), [("6", True), ("7", False)])
async def test_activation_is_strictly_above_its_threshold(
    sqs: SQS, queue: str, threshold: str, *, active: bool
) -> None:
    assert (await sample_of(trigger(sqs, queue, activationQueueLength=threshold))).active is active


async def test_activation_may_leave_out_what_scaling_counts(sqs: SQS, queue: str) -> None:
    sample = await sample_of(trigger(sqs, queue, activateOnInFlight="false", activationQueueLength="5"))
    assert sample.metric_value == 7.0
    assert not sample.active


async def test_a_bare_name_is_read_too(sqs: SQS, queue: str) -> None:
    sample = await sample_of(trigger(sqs, queue.rsplit("/", 1)[1]))
    assert sample.metric_value == 7.0


@pytest.mark.parametrize("by", ["name", "url"])
async def test_a_queue_that_does_not_exist_is_missing(sqs: SQS, by: str) -> None:
    name = unique("nowhere")
    outcome = await read(trigger(sqs, name if by == "name" else f"{sqs.endpoint_url}/123456789012/{name}"))
    assert isinstance(outcome, SourceMissing)
    assert name in str(outcome)


async def test_a_missing_queue_does_not_disturb_its_neighbours(sqs: SQS, queue: str) -> None:
    good, bad = trigger(sqs, queue), trigger(sqs, unique("nowhere"))
    async with client_of(good) as client:
        reading, error = await outcomes(client, good, bad)
    assert good.source.sample(good.config, reading, now_seconds=0.0, view=None).metric_value == 7.0
    assert isinstance(error, SourceMissing)


async def test_a_queue_made_later_is_found(sqs: SQS) -> None:
    name = unique("later")
    later = trigger(sqs, name)
    async with client_of(later) as client:
        assert isinstance((await outcomes(client, later))[0], SourceMissing)
        boto(sqs).create_queue(QueueName=name)
        reading = (await outcomes(client, later))[0]
    assert later.source.sample(later.config, reading, now_seconds=0.0, view=None).metric_value == 0.0


async def test_many_queues_are_read_by_one_client(sqs: SQS) -> None:
    sender = boto(sqs)
    names = [unique("many") for _ in range(40)]
    for name in names:
        sender.create_queue(QueueName=name)
    triggers = [trigger(sqs, name) for name in names]
    async with client_of(triggers[0]) as client:
        readings = await outcomes(client, *triggers)
    assert not [reading for reading in readings if isinstance(reading, Exception)]


async def test_a_server_that_stops_and_comes_back_is_read_again() -> None:
    with start_sqs() as server:
        name = unique("orders")
        boto(server).create_queue(QueueName=name)
        watched = trigger(server, name)
        async with client_of(watched) as client:
            assert not isinstance((await outcomes(client, watched))[0], Exception)
            await asyncio.to_thread(server.kill)
            assert isinstance((await outcomes(client, watched))[0], SourceUnavailable)
            await asyncio.to_thread(server.start)
            boto(server).create_queue(QueueName=name)
            assert not isinstance((await outcomes(client, watched))[0], Exception)


async def test_a_half_open_connection_times_out_and_recovers(sqs: SQS, queue: str) -> None:
    async with tcp_proxy(sqs.host, sqs.port) as proxy:
        watched = trigger(sqs, queue, awsEndpoint=f"http://{proxy.host}:{proxy.port}")
        # Longer than a busy machine stands still: what is read before and afterwards is read in time.
        async with client_of(watched, timeout_seconds=5) as client:
            assert not isinstance((await outcomes(client, watched))[0], Exception)
            proxy.pause()
            assert isinstance((await outcomes(client, watched))[0], SourceTimeout)
            proxy.resume()
            assert not isinstance((await outcomes(client, watched))[0], Exception)


async def test_tls_spoken_to_a_plain_server_is_said_so(sqs: SQS, queue: str) -> None:
    outcome = await read(trigger(sqs, queue, awsEndpoint=f"https://{sqs.host}:{sqs.port}"))
    assert isinstance(outcome, SourceUnavailable)
    assert "TLS" in str(outcome)


async def test_the_oldest_age_comes_from_cloudwatch(sqs: SQS, queue: str) -> None:
    name = queue.rsplit("/", 1)[1]
    boto(sqs, "cloudwatch").put_metric_data(
        Namespace="AWS/SQS",
        MetricData=[
            {
                "MetricName": "ApproximateAgeOfOldestMessage",
                "Dimensions": [{"Name": "QueueName", "Value": name}],
                "Timestamp": datetime.now(UTC) - timedelta(minutes=2),
                "Value": 321.0,
            }
        ],
    )
    assert (await sample_of(trigger(sqs, queue, oldestAge="true"))).oldest_age_seconds == 321.0
    assert (await sample_of(trigger(sqs, queue))).oldest_age_seconds is None


async def test_an_age_that_cannot_be_had_is_unknown_and_costs_nothing_else(sqs: SQS, queue: str) -> None:
    blind = trigger(sqs, queue, oldestAge="true", awsCloudWatchEndpoint="http://127.0.0.1:9")
    sample = await sample_of(blind)
    assert sample.metric_value == 7.0
    assert sample.oldest_age_seconds is None


class TestRights:
    """Against a server that enforces IAM."""

    @staticmethod
    def _user(server: SQS, policy: dict[str, Any]) -> tuple[str, str]:
        iam = boto(server, "iam")
        iam.create_user(UserName="pilotlight")
        key = iam.create_access_key(UserName="pilotlight")["AccessKey"]
        iam.put_user_policy(UserName="pilotlight", PolicyName="own", PolicyDocument=json.dumps(policy))
        return str(key["AccessKeyId"]), str(key["SecretAccessKey"])

    async def test_refused_keys_and_rights_are_denied_and_a_role_reads(self) -> None:
        everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
        with start_sqs(check_credentials=True) as server:
            key_id, secret = self._user(server, everything)
            keys = {"aws_access_key_id": key_id, "aws_secret_access_key": secret}
            name = unique("orders")
            boto(server, **keys).create_queue(QueueName=name)
            iam = boto(server, "iam", **keys)
            roles = {}
            for role, statements in (
                ("reader", [{"Effect": "Allow", "Action": "sqs:*", "Resource": "*"}]),
                ("nobody", [{"Effect": "Allow", "Action": "s3:ListAllMyBuckets", "Resource": "*"}]),
            ):
                trust = {
                    "Version": "2012-10-17",
                    "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}],
                }
                made = iam.create_role(RoleName=role, AssumeRolePolicyDocument=json.dumps(trust))
                policy = {"Version": "2012-10-17", "Statement": statements}
                iam.put_role_policy(RoleName=role, PolicyName="own", PolicyDocument=json.dumps(policy))
                roles[role] = str(made["Role"]["Arn"])

            async def outcome_with(**metadata: str) -> object:
                base = {"awsAccessKeyID": key_id, "awsSecretAccessKey": secret, "awsStsEndpoint": server.endpoint_url}
                return await read(trigger(server, name, **(base | metadata)))

            assert not isinstance(await outcome_with(), Exception)
            assert not isinstance(await outcome_with(awsRoleArn=roles["reader"]), Exception)
            for refused in (
                await outcome_with(awsRoleArn=roles["nobody"]),
                await outcome_with(awsSecretAccessKey="not-it"),
                await outcome_with(awsAccessKeyID="AKIAUNKNOWN000000000"),
            ):
                assert isinstance(refused, SourceDenied), refused
                assert "not-it" not in str(refused)
                assert secret not in str(refused)


async def test_a_connection_reads_with_keys_from_files(sqs: SQS, queue: str, tmp_path: Any) -> None:
    (tmp_path / "id").write_text(f"{sqs.access_key_id}\n")
    (tmp_path / "secret").write_text(f"{sqs.secret_access_key}\n")
    parsed = FileSettings.model_validate(
        {
            "connections": {
                "aws": {
                    "source": "sqs",
                    "namespaces": ["team-a"],
                    "set": {
                        "awsRegion": sqs.region,
                        "awsEndpoint": sqs.endpoint_url,
                        "awsAccessKeyID": {"file": str(tmp_path / "id")},
                        "awsSecretAccessKey": {"file": str(tmp_path / "secret")},
                    },
                }
            }
        }
    )
    settings = resolve(parsed, {}, where="test")
    name = queue.rsplit("/", 1)[1]
    watched = parse_trigger("team-a", "llama", {"source": "sqs", "queueURL": name, "connection": "aws"}, settings)
    assert watched.refusal is None
    assert (await sample_of(watched)).metric_value == 7.0
    (tmp_path / "secret").unlink()
    outcome = await read(watched)
    assert isinstance(outcome, SourceDenied)
