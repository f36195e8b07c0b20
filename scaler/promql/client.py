"""The client of one Prometheus API: questions in a bounded pool of threads.

Each server has its own, so that one that hangs starves no other.

The whole read is bounded by the service's read timeout; at that deadline the connection is cut, which frees the
thread. A question for which no thread comes free within a second fails at once: the server hangs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from scaler.aws import AwsCredentials
from scaler.errors import SourceDenied, SourceError, SourceTimeout, quoted
from scaler.http import guarded_sockets
from scaler.promql.endpoint import Server
from scaler.promql.questions import Answer, Question
from scaler.source import Deliver, SourceContext

if TYPE_CHECKING:  # its libraries load on first use
    import ssl

    from scaler.promql.transport import Session

# An instant query takes Prometheus 1 to 20 ms: 8 threads ask several hundred questions a second.
THREADS = 8
# An address is looked up again after this long. Connections that stand are kept.
_ADDRESS_SECONDS = 30.0
# A vector of some thousand series; more would hold the interpreter's lock for long while it is parsed.
_LIMIT_BYTES = 2 * 1024 * 1024
# What a connection can restrict for these sources.
KINDS = frozenset({"matchers", "query", "namespace"})
_MOST_TEXTS = 4096


@dataclass(frozen=True, slots=True)
class _Addresses:
    found: tuple[str, ...]
    until_seconds: float


class _Job:
    """One question in a thread, and the session that asks it, which whoever no longer waits cuts."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self._lock = Lock()
        self._given_up = False

    def hold(self, session: Session) -> None:
        """In the thread: this session asks."""
        with self._lock:
            self.session = session
            if self._given_up:
                session.abort()

    def give_up(self) -> None:
        """Nobody waits any more."""
        with self._lock:
            self._given_up = True
            if self.session is not None:
                self.session.abort()


class PrometheusClient:
    """Asks one server, by one identity, within what its connection allows."""

    def __init__(self, server: Server, context: SourceContext) -> None:
        self._server = server
        self._context = context
        self._what = f"prometheus at {server.name}"
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=f"prometheus-{server.host}"[:40])
        self._slots = asyncio.Semaphore(THREADS)
        self._idle: list[Session] = []
        self._busy: set[_Job] = set()
        self._lock = Lock()  # of the idle sessions, which threads take and the loop gives back; held briefly
        self._tls_lock = Lock()  # of the three below; held while certificates are read, by threads only
        self._addresses: _Addresses | None = None
        self._resolving = asyncio.Lock()
        self._tls: ssl.SSLContext | None = None
        self._tls_of: tuple[str, ...] | None = None
        self._generation = 0
        self._texts: dict[str, str] = {}
        self._closed = False
        self._aws = _aws_credentials(server, context)

    async def read(self, queries: Sequence[Question], deliver: Deliver) -> None:
        """Ask all at once, as many at a time as there are threads; deliver each as it comes."""
        async with asyncio.TaskGroup() as group:
            for question in queries:
                group.create_task(self._read_one(question, deliver))

    async def _read_one(self, question: Question, deliver: Deliver) -> None:
        try:
            outcome: object = await self._answer(question)
        except SourceError as err:
            outcome = err
        deliver(question, outcome)

    async def _answer(self, question: Question) -> Answer:
        texts = self._allowed(question)
        bound_seconds = self._context.read_timeout_seconds
        if question.timeout_seconds:
            bound_seconds = min(bound_seconds, question.timeout_seconds)
        started_at_seconds = self._context.clock()
        loop = asyncio.get_running_loop()
        deadline_at_seconds = loop.time() + bound_seconds
        missed = "no answer"
        try:
            async with asyncio.timeout_at(deadline_at_seconds):
                addresses = await self._checked_addresses()
                aws_keys = await self._aws.keys() if self._aws is not None else None
                missed = f"none of the {THREADS} threads that ask it was free (earlier questions are unanswered)"
                await self._slots.acquire()
                missed = "no answer"
                answering = self._start(
                    question,
                    texts,
                    addresses=addresses,
                    aws_keys=aws_keys,
                    at_seconds=started_at_seconds,
                    connect_seconds=self._context.connect_timeout_seconds,
                    timeout_seconds=max(deadline_at_seconds - loop.time(), 0.001),
                )
                return await answering
        except TimeoutError as err:
            self._addresses = None
            raise SourceTimeout(f"{self._what}: {missed} within {bound_seconds:g} s") from err
        except SourceDenied:
            if self._aws is not None:
                self._aws.forget()
            raise

    def _start(self, question: Question, texts: Mapping[str, str], **how: Any) -> asyncio.Future[Answer]:
        """Ask in a thread. The slot is free again when the thread really is."""
        job = _Job()
        self._busy.add(job)
        loop = asyncio.get_running_loop()
        future = self._threads.submit(self._work, job, question, texts, how)

        def finished(_: Future[Answer]) -> None:
            """In the thread: hand the session back to the loop."""
            try:
                loop.call_soon_threadsafe(self._finish, job)
            except RuntimeError:  # the loop is closed, and so is the client
                job.give_up()

        def given_up(waited: asyncio.Future[Answer]) -> None:
            if waited.cancelled():
                job.give_up()

        future.add_done_callback(finished)  # before whoever waits learns of it, who may ask again
        answering = asyncio.wrap_future(future)
        answering.add_done_callback(given_up)
        return answering

    def _work(self, job: _Job, question: Question, texts: Mapping[str, str], how: Mapping[str, Any]) -> Answer:
        """In a thread: an idle session, or a new one, asks.

        Here, and not in the loop, since certificates are read and libraries are imported on first use.
        """
        job.hold(self._session())
        assert job.session is not None
        return job.session.ask(question, texts, **how)

    def _finish(self, job: _Job) -> None:
        self._busy.discard(job)
        self._slots.release()
        session = job.session
        if session is None:
            return
        with self._lock:
            if session.usable and not self._closed and session.generation == self._generation:
                self._idle.append(session)
                return
        self._addresses = None  # it may have moved
        session.close()

    def _session(self) -> Session:
        """An idle session, or a new one. Raises SourceDenied where ca, cert or key can't be used."""
        from scaler.promql.transport import Session, tls_context  # noqa: PLC0415 - its libraries load on first use

        server = self._server
        with self._tls_lock:
            # Certificates rotate: their text decides whether connections that stand may be used on.
            secrets = tuple(secret.reveal() for secret in (server.ca, server.cert, server.key) if secret is not None)
            if self._tls_of != secrets:
                self._tls = tls_context(server)
                self._tls_of = secrets
                with self._lock:
                    self._generation += 1
                    outdated, self._idle = self._idle, []
                for idle in outdated:
                    idle.close()
            tls, generation = self._tls, self._generation
        with self._lock:
            if self._idle:
                return self._idle.pop()
        limit_bytes = min(_LIMIT_BYTES, self._context.max_response_bytes)
        return Session(server, tls, limit_bytes=limit_bytes, generation=generation)

    async def _checked_addresses(self) -> tuple[str, ...]:
        async with self._resolving:
            now_seconds = self._context.clock()
            if self._addresses is None or now_seconds >= self._addresses.until_seconds:
                found = await self._context.check_address(self._server.host, self._server.port)
                self._addresses = _Addresses(found, now_seconds + _ADDRESS_SECONDS)
            return self._addresses.found

    def _allowed(self, question: Question) -> Mapping[str, str]:
        """What is sent for each text. Raises SourceDenied where the connection does not let it be asked."""
        allow = self._context.allow
        unknown = sorted(set(allow) - KINDS)
        if unknown:
            raise SourceDenied(
                f"{self._what}: the connection restricts {quoted(unknown[0])}, which can't be held for this source; "
                f"its allow list may have {', '.join(sorted(KINDS))}"
            )
        if "namespace" in allow and question.by_users and not {"matchers", "query"} & set(allow):
            raise SourceDenied(
                f"{self._what}: the connection restricts namespaces, which says nothing of queries that users write; "
                "its operator must add matchers (or query patterns) to its allow list"
            )
        texts = [text for text in (question.text, question.freshness, question.wake) if text is not None]
        if "matchers" not in allow:
            return {text: text for text in texts}
        from scaler.promql.enforce import enforce  # noqa: PLC0415 - few connections need it

        if len(self._texts) > _MOST_TEXTS:
            self._texts.clear()
        for text in texts:
            if text not in self._texts:
                self._texts[text] = enforce(text, allow["matchers"])
        return {text: self._texts[text] for text in texts}

    def close(self) -> None:
        """Cut every connection. Threads end as soon as they notice; nobody waits for them."""
        for job in self._busy:
            job.give_up()
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _aws_credentials(server: Server, context: SourceContext) -> AwsCredentials | None:
    if server.aws is None or server.aws_region is None:
        return None

    def config() -> Any:
        from aiobotocore.config import AioConfig  # noqa: PLC0415 - its client library loads on first use

        return AioConfig(
            connect_timeout=context.connect_timeout_seconds,
            read_timeout=context.read_timeout_seconds,
            retries={"total_max_attempts": 1, "mode": "standard"},
            connector_args={"socket_factory": guarded_sockets(context.judge_address)},
        )

    return AwsCredentials(
        server.aws,
        region=server.aws_region,
        timeout_seconds=context.read_timeout_seconds,
        make_config=config,
    )


@asynccontextmanager
async def open_client(server: Server, context: SourceContext) -> AsyncIterator[PrometheusClient]:
    """A client that connects when it first reads."""
    client = PrometheusClient(server, context)
    try:
        yield client
    finally:
        client.close()
