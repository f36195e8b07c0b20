"""`source: sqs`: Amazon SQS, with the metadata of KEDA's `aws-sqs-queue`.

The counts are SQS's approximate attributes (GetQueueAttributes; AWS: "eventually consistent, within a
minute"), so waking from zero asks for `confirmations` reads that agree. The age of the oldest message comes
from CloudWatch (ApproximateAgeOfOldestMessage, one value a minute, a minute or two late) and is read only
where it is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from scaler.aws import PARAMETERS as AWS_PARAMETERS
from scaler.aws import AwsCredentials, AwsIdentity, call, parse_identity, parse_region
from scaler.core.model import ReplicaView, Sample
from scaler.errors import SourceDenied, SourceError, SourceMissing, SourceUnavailable, quoted
from scaler.http import guarded_sockets, read_bounded
from scaler.parameters import Belongs, Parameter, Values
from scaler.source import Client, Deliver, Source, SourceContext

_VISIBLE = "ApproximateNumberOfMessages"
_IN_FLIGHT = "ApproximateNumberOfMessagesNotVisible"
_DELAYED = "ApproximateNumberOfMessagesDelayed"

# Calls in flight per client. One call takes 5 to 50 ms on AWS: 32 of them read over 600 queues a second.
_CONCURRENT_CALLS = 32
# CloudWatch has one value a minute for SQS; asking more often only costs.
_AGE_EVERY_SECONDS = 60.0
# The newest value may be some minutes old: look back this far, and believe nothing older.
_AGE_LOOK_BACK = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class SqsConfig:
    """One trigger's view of a queue. `url` is what the user wrote: a URL or a bare name."""

    url: str
    queue: str
    account: str | None
    region: str
    endpoint_url: str | None
    cloudwatch_endpoint_url: str | None
    identity: AwsIdentity | None
    queue_length: float
    activation_queue_length: float
    scale_on_in_flight: bool
    scale_on_delayed: bool
    activate_on_in_flight: bool
    activate_on_delayed: bool
    oldest_age: bool


@dataclass(frozen=True, slots=True)
class SqsQuery:
    """What is read: the attributes of one queue, and its oldest message's age where asked for."""

    url: str
    queue: str
    oldest_age: bool


@dataclass(frozen=True, slots=True)
class SqsReading:
    """Messages by state at one moment; the age is None where unknown or not asked for."""

    at_seconds: float
    visible: int
    in_flight: int
    delayed: int
    oldest_age_seconds: float | None


class Sqs(Source[SqsConfig, SqsQuery, SqsReading]):
    """Queue attributes through aiobotocore, one client per endpoint, region and identity."""

    name = "sqs"
    summary = "Amazon SQS: messages visible, in flight and delayed"
    keda_trigger = "aws-sqs-queue"
    needs_extra = "sqs"
    libraries = ("aiobotocore.session",)
    allow_kinds = ("queue", "account")
    sample_seconds = 2.0
    parameters = (
        Parameter(name="queueURL", required=True, help="URL of the queue, or its name"),
        Parameter(
            name="queueLength",
            kind="integer",
            minimum=1,
            default=5,
            unit="messages",
            help="messages per replica: the HPA's target with policy target",
        ),
        Parameter(
            name="activationQueueLength",
            activation=True,
            kind="integer",
            minimum=0,
            default=0,
            unit="messages",
            help="active when there are more messages than this",
        ),
        Parameter(name="awsRegion", required=True, belongs=Belongs.ENDPOINT, help="region of the queue"),
        Parameter(name="awsEndpoint", belongs=Belongs.ENDPOINT, help="endpoint other than AWS's own (LocalStack)"),
        Parameter(name="scaleOnInFlight", kind="flag", default=True, help="messages being worked on count for scaling"),
        Parameter(name="scaleOnDelayed", kind="flag", default=False, help="delayed messages count for scaling"),
        Parameter(
            name="activateOnInFlight",
            kind="flag",
            help="messages being worked on count for activation; as scaleOnInFlight unless set",
        ),
        Parameter(
            name="activateOnDelayed",
            kind="flag",
            help="delayed messages count for activation; as scaleOnDelayed unless set",
        ),
        Parameter(
            name="oldestAge",
            kind="flag",
            default=False,
            help="read the age of the oldest message from CloudWatch too (a minute or two late; needs "
            "cloudwatch:GetMetricData)",
        ),
        Parameter(
            name="awsCloudWatchEndpoint",
            belongs=Belongs.ENDPOINT,
            help="CloudWatch endpoint other than AWS's own; awsEndpoint unless set",
        ),
        *AWS_PARAMETERS,
    )

    def parse(self, values: Values) -> SqsConfig:
        """Check the queue's URL by KEDA's rule, the endpoints, and that somebody signs the requests."""
        url = values.text("queueURL") or ""
        queue, account = _queue_name(url)
        for name in ("queueURL", "awsEndpoint", "awsCloudWatchEndpoint", "awsStsEndpoint"):
            if "@" in (values.text(name) or ""):  # where it may hold a password, the value is not repeated
                values.problem(name, "it may not hold user and password; use a connection, or awsAccessKeyIDFromEnv")
        if url and queue is None and not values.failed("queueURL"):
            values.problem("queueURL", "expected a queue name, or a URL that ends in /account/name", value=url)
        for name in ("awsEndpoint", "awsCloudWatchEndpoint", "awsStsEndpoint"):
            endpoint = values.text(name)
            if endpoint is not None and not values.failed(name) and not _is_http_url(endpoint):
                values.problem(name, "expected a URL such as http://localstack:4566", value=endpoint)
        identity = parse_identity(values)
        if identity is None and not any(values.failed(name) for name in ("awsAccessKeyID", "awsSecretAccessKey")):
            values.problem(
                "awsAccessKeyID",
                "missing: name a connection (KEDA forwards no TriggerAuthentication to external scalers), or give "
                "awsAccessKeyIDFromEnv and awsSecretAccessKeyFromEnv",
            )
        in_flight, delayed = values.flag("scaleOnInFlight"), values.flag("scaleOnDelayed")
        return SqsConfig(
            url=url,
            queue=queue or "",
            account=account,
            region=parse_region(values) or "",
            endpoint_url=values.text("awsEndpoint"),
            cloudwatch_endpoint_url=values.text("awsCloudWatchEndpoint") or values.text("awsEndpoint"),
            identity=identity,
            queue_length=values.number("queueLength") or 5.0,
            activation_queue_length=values.number("activationQueueLength") or 0.0,
            scale_on_in_flight=in_flight,
            scale_on_delayed=delayed,
            activate_on_in_flight=(
                values.flag("activateOnInFlight") if values.given("activateOnInFlight") else in_flight
            ),
            activate_on_delayed=values.flag("activateOnDelayed") if values.given("activateOnDelayed") else delayed,
            oldest_age=values.flag("oldestAge"),
        )

    def endpoint(self, config: SqsConfig) -> Hashable:
        """Region, endpoints and identity."""
        return (config.region, config.endpoint_url, config.cloudwatch_endpoint_url, config.identity)

    def query(self, config: SqsConfig) -> SqsQuery:
        """The queue; whether its age is read too."""
        return SqsQuery(config.url, config.queue, config.oldest_age)

    def identity(self, config: SqsConfig) -> str:
        """Endpoint or region, then the queue."""
        return f"{config.endpoint_url or config.region}/{config.account or ''}/{config.queue}"

    def object_name(self, config: SqsConfig) -> str:
        """The queue's name."""
        return config.queue

    def resources(self, config: SqsConfig) -> Mapping[str, tuple[str, ...]]:
        """The queue and, where the URL tells, the account."""
        found = {"queue": (config.queue,)}
        return found if config.account is None else found | {"account": (config.account,)}

    def target(self, config: SqsConfig) -> float:
        """`queueLength`."""
        return config.queue_length

    @asynccontextmanager
    async def open(self, config: SqsConfig, context: SourceContext) -> AsyncIterator[Client]:
        """A client that connects when it first reads."""
        async with AsyncExitStack() as stack:
            yield _SqsClient(config, context, stack)

    def sample(
        self,
        config: SqsConfig,
        reading: SqsReading,
        *,
        now_seconds: float,  # noqa: ARG002 - the counts don't depend on the time
        view: ReplicaView | None,  # noqa: ARG002 - nor on the replicas
    ) -> Sample:
        """KEDA's sum for scaling; a sum of its own for activation where the trigger says so."""
        metric = reading.visible
        metric += reading.in_flight if config.scale_on_in_flight else 0
        metric += reading.delayed if config.scale_on_delayed else 0
        activation = reading.visible
        activation += reading.in_flight if config.activate_on_in_flight else 0
        activation += reading.delayed if config.activate_on_delayed else 0
        return Sample(
            at_seconds=reading.at_seconds,
            metric_value=float(metric),
            active=activation > config.activation_queue_length,
            waiting=float(reading.visible),
            in_flight=float(reading.in_flight),
            oldest_age_seconds=reading.oldest_age_seconds,
            approximate=True,
            raw={
                "visible_messages": float(reading.visible),
                "in_flight_messages": float(reading.in_flight),
                "delayed_messages": float(reading.delayed),
            },
        )


class _SqsClient:
    """Reads the attributes of many queues of one endpoint, region and identity."""

    def __init__(self, config: SqsConfig, context: SourceContext, stack: AsyncExitStack) -> None:
        self._config = config
        self._context = context
        self._stack = stack
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(_CONCURRENT_CALLS)
        self._sqs: Any = None
        self._cloudwatch: Any = None
        self._credentials: AwsCredentials | None = None
        self._urls: dict[str, str] = {}
        self._ages: dict[str, tuple[float, float | None]] = {}
        self._age_lock = asyncio.Lock()

    async def read(self, queries: Sequence[SqsQuery], deliver: Deliver) -> None:
        """One GetQueueAttributes a queue, at most 32 at once."""
        sqs = await self._client("sqs", self._config.endpoint_url)
        aged = [query for query in queries if query.oldest_age]
        async with asyncio.TaskGroup() as group:
            ages = group.create_task(self._read_ages(aged)) if aged else None
            for query in queries:
                group.create_task(self._read_one(sqs, query, ages, deliver))

    async def _read_one(self, sqs: Any, query: SqsQuery, ages: asyncio.Task[None] | None, deliver: Deliver) -> None:
        async with self._slots:
            try:
                attributes = await self._attributes(sqs, query)
                reading = SqsReading(
                    at_seconds=self._context.clock(),
                    visible=_count(attributes, _VISIBLE, query),
                    in_flight=_count(attributes, _IN_FLIGHT, query),
                    delayed=_count(attributes, _DELAYED, query),
                    oldest_age_seconds=None,
                )
            except SourceError as err:
                if isinstance(err, SourceDenied) and self._credentials is not None:
                    self._credentials.forget()
                deliver(query, err)
                return
        if query.oldest_age and ages is not None:
            await ages
            age = self._ages.get(query.queue, (0.0, None))[1]
            reading = SqsReading(reading.at_seconds, reading.visible, reading.in_flight, reading.delayed, age)
        deliver(query, reading)

    async def _attributes(self, sqs: Any, query: SqsQuery) -> Mapping[str, str]:
        what = f"queue {quoted(query.url)}"
        url = await self._url(sqs, query, what)
        try:
            answer = await call(
                sqs.get_queue_attributes(QueueUrl=url, AttributeNames=[_VISIBLE, _IN_FLIGHT, _DELAYED]),
                what=what,
                timeout_seconds=self._context.read_timeout_seconds,
            )
        except SourceMissing:
            self._urls.pop(query.url, None)
            raise
        attributes = answer.get("Attributes")
        return attributes if isinstance(attributes, Mapping) else {}

    async def _url(self, sqs: Any, query: SqsQuery, what: str) -> str:
        """The queue's URL: as given, or looked up once for a bare name (KEDA sends the bare name itself)."""
        if "/" in query.url:
            return query.url
        known = self._urls.get(query.url)
        if known is None:
            try:
                answer = await call(
                    sqs.get_queue_url(QueueName=query.queue),
                    what=what,
                    timeout_seconds=self._context.read_timeout_seconds,
                )
            except SourceDenied:
                return query.url  # without the right to look it up, do as KEDA does
            known = self._urls[query.url] = str(answer.get("QueueUrl") or query.url)
        return known

    async def _read_ages(self, queries: Sequence[SqsQuery]) -> None:
        """Fill `_ages` from CloudWatch, at most once a minute a queue. A failure only leaves the age unknown."""
        now_seconds = self._context.clock()
        async with self._age_lock:
            due = [
                query.queue
                for query in queries
                if now_seconds - self._ages.get(query.queue, (-_AGE_EVERY_SECONDS, None))[0] >= _AGE_EVERY_SECONDS
            ]
            for start in range(0, len(due), 500):  # GetMetricData takes 500 queries at most
                part = due[start : start + 500]
                try:
                    found = await self._ages_of(part)
                except SourceError:
                    found = {}
                for queue in part:
                    self._ages[queue] = (now_seconds, found.get(queue))

    async def _ages_of(self, queues: Sequence[str]) -> dict[str, float]:
        cloudwatch = await self._client("cloudwatch", self._config.cloudwatch_endpoint_url)
        now = datetime.now(UTC)
        answer = await call(
            cloudwatch.get_metric_data(
                StartTime=now - _AGE_LOOK_BACK,
                EndTime=now,
                ScanBy="TimestampDescending",
                MetricDataQueries=[
                    {
                        "Id": f"q{index}",
                        "MetricStat": {
                            "Metric": {
                                "Namespace": "AWS/SQS",
                                "MetricName": "ApproximateAgeOfOldestMessage",
                                "Dimensions": [{"Name": "QueueName", "Value": queue}],
                            },
                            "Period": 60,
                            "Stat": "Maximum",
                        },
                    }
                    for index, queue in enumerate(queues)
                ],
            ),
            what="CloudWatch ApproximateAgeOfOldestMessage",
            timeout_seconds=self._context.read_timeout_seconds,
        )
        found: dict[str, float] = {}
        for result in answer.get("MetricDataResults", ()):
            if result.get("Values"):
                found[queues[int(result["Id"][1:])]] = float(result["Values"][0])
        return found

    async def _client(self, service: str, endpoint_url: str | None) -> Any:
        """The aiobotocore client of `service`, made once."""
        made = self._sqs if service == "sqs" else self._cloudwatch
        if made is not None:
            return made
        async with self._opening:
            made = self._sqs if service == "sqs" else self._cloudwatch
            if made is None:
                made = await self._make(service, endpoint_url)
                if service == "sqs":
                    self._sqs = made
                else:
                    self._cloudwatch = made
        return made

    async def _make(self, service: str, endpoint_url: str | None) -> Any:
        # The library loads on first use, and in a thread: its import takes a second that no RPC should wait for.
        library = await asyncio.to_thread(import_module, "aiobotocore.session")
        config, context = self._config, self._context
        session = await asyncio.to_thread(library.get_session)
        if self._credentials is None:
            self._credentials = AwsCredentials(
                config.identity or AwsIdentity(),
                region=config.region,
                timeout_seconds=context.read_timeout_seconds,
                make_config=lambda: _client_config(context),
            )
        session.register_component("credential_provider", _provider_of(self._credentials))
        try:
            return await self._stack.enter_async_context(
                session.create_client(
                    service, region_name=config.region, endpoint_url=endpoint_url, config=_client_config(context)
                )
            )
        except ValueError as err:
            raise SourceUnavailable(f"endpoint {quoted(endpoint_url)} is not one to connect to; mend the URL") from err


def _client_config(context: SourceContext) -> Any:
    """No retries of its own (the next read comes in seconds), no redirects, bounded bodies, guarded sockets."""
    from aiobotocore.config import AioConfig  # noqa: PLC0415 - its client library loads on first use

    return AioConfig(
        connect_timeout=context.connect_timeout_seconds,
        read_timeout=context.read_timeout_seconds,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=_CONCURRENT_CALLS,
        parameter_validation=False,
        warm_up_loader_caches=True,  # the service models are megabytes of JSON: read in a thread, not on the loop
        http_session_cls=_bounded_session_class(context.max_response_bytes),
        connector_args={"socket_factory": guarded_sockets(context.judge_address)},
    )


def _bounded_session_class(limit_bytes: int) -> type[Any]:
    from aiobotocore.httpsession import AIOHTTPSession  # noqa: PLC0415 - its client library loads on first use

    class BoundedSession(AIOHTTPSession):  # type: ignore[misc]  # the base ships no types
        """aiobotocore's session follows redirects and reads bodies whole; an endpoint from metadata gets neither."""

        async def _get_session(self, proxy_url: str | None) -> Any:
            return _WithoutRedirects(await super()._get_session(proxy_url))

        async def send(self, request: Any) -> Any:
            request.stream_output = True  # leave the body to us
            response = await super().send(request)
            try:
                body = await read_bounded(response.raw.content, limit_bytes, what="AWS endpoint")
            except BaseException:
                response.raw.close()  # what is left unread would keep the connection
                raise
            response._content = body or b""  # noqa: SLF001 - what its `content` answers once it is set
            return response

    return BoundedSession


class _WithoutRedirects:
    """An aiohttp session whose requests never follow a redirect."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def request(self, method: str, **options: Any) -> Any:
        return await self._session.request(method, allow_redirects=False, **options)


def _provider_of(credentials: AwsCredentials) -> Any:
    """A botocore credential resolver that always answers the identity's current keys."""
    from aiobotocore.credentials import AioCredentials  # noqa: PLC0415 - its client library loads on first use

    class Current(AioCredentials):  # type: ignore[misc]  # the base ships no types
        async def get_frozen_credentials(self) -> Any:
            return await credentials.keys()

    class Provider:
        async def load_credentials(self) -> Any:
            return Current("rotates", "rotates")

    return Provider()


def _queue_name(url: str) -> tuple[str | None, str | None]:
    """(queue, account) by KEDA's rule: a request URI must have a path /account/name; else it is the name."""
    path = url if url.startswith("/") else _path(url)
    if path is None:
        return (url or None), None
    parts = path.split("/")
    return (parts[2], parts[1]) if len(parts) == 3 and parts[2] else (None, None)


def _path(url: str) -> str | None:
    """The path of a URL with scheme and host, or None where it is no such URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return parts.path if parts.scheme and parts.netloc else None


def _is_http_url(text: str) -> bool:
    return text.startswith(("http://", "https://")) and _path(text) is not None


def _count(attributes: Mapping[str, str], name: str, query: SqsQuery) -> int:
    """One attribute as a count.

    Raises SourceUnavailable where it is missing or no whole number: never a zero in its stead.
    """
    text = str(attributes.get(name, ""))
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise SourceUnavailable(f"queue {quoted(query.url)}: its attribute {name} is missing or no number")
    return int(text)


SOURCE = Sqs()
