"""Queues read through RabbitMQ's management API, many with few requests.

API: https://www.rabbitmq.com/docs/http-api-reference (read with RabbitMQ 3.10.8). Its numbers are as old as the
statistics interval (5 s by default), whatever the pace of reading.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import aiohttp
from yarl import URL

from scaler.errors import (
    SourceDenied,
    SourceError,
    SourceMissing,
    SourceNoData,
    SourceTimeout,
    SourceUnavailable,
    quoted,
)
from scaler.http import guarded_sockets, read_bounded
from scaler.source import Deliver, SourceContext
from scaler.sources.rabbitmq import reading
from scaler.sources.rabbitmq.config import LARGEST_PAGE, Server, path_segment, pattern
from scaler.sources.rabbitmq.listing import (
    COLUMNS,
    Page,
    QueueQuery,
    bulk_is_cheaper,
    decoded,
    literal_of,
    page_of,
    row_of,
)
from scaler.sources.rabbitmq.tokens import Tokens
from scaler.tls import ClientTls

# Requests in flight to one server. RabbitMQ answers about 1,000 GETs of single queues a second: four at once
# keep it busy, eight hide the network's delay too.
_CONCURRENT_REQUESTS = 8
# A page of 500 queues with the longest names is below 1 MiB; parsing 4 MiB holds the event loop for about 40 ms.
_LARGEST_BODY_BYTES = 4 * 1024 * 1024
# From how many questions in a virtual host on it is worth asking how many queues it has, and for how long that holds.
_ASK_SIZE_FROM_QUERIES = 8
_SIZE_HOLDS_SECONDS = 60.0
# A small page size is honoured for this many pages; then the largest is used, so that no trigger costs more.
_SMALL_PAGES = 20
_LARGEST_LISTING = 200_000
_LONGEST_LISTING_SECONDS = 30.0
_LISTING_ATTEMPTS = 3
_REMEMBERED_EXPRESSIONS = 4096
# One search takes about 4 µs: more names than this are searched in a thread, so that the event loop goes on.
_SEARCHED_AT_ONCE = 1000
_RATES_MODE_HOLDS_SECONDS = 600.0


@dataclass(slots=True)
class _Vhost:
    """What is known of a virtual host's size, and the names of the last listing of it all."""

    queues: int | None = None
    asked_at_seconds: float = 0.0
    names: frozenset[str] = frozenset()
    matched: OrderedDict[QueueQuery, int] = field(default_factory=OrderedDict)


@dataclass(frozen=True, slots=True)
class _Expression:
    """What the last reading of an expression went through: all names, those that match, those with statistics."""

    names: frozenset[str]
    matched: frozenset[str]
    counted: frozenset[str]


_NOTHING_YET = _Expression(frozenset(), frozenset(), frozenset())


@dataclass(slots=True)
class _Listing:
    """Queues by name, None for those without statistics; how many pages they came from."""

    counts: dict[str, reading.Counts | None]
    pages: int
    has_rates: bool


class ManagementClient:
    """One server and one set of credentials; virtual hosts share its connections."""

    def __init__(self, server: Server, context: SourceContext) -> None:
        self._server = server
        self._context = context
        self._slots = asyncio.Semaphore(_CONCURRENT_REQUESTS)
        self._http = _Http(server.tls if server.is_encrypted else None, context)
        # Its own session: the client certificate and sourceUnsafeSsl are for RabbitMQ, not for the token endpoint.
        self._token_http = _Http(ClientTls(ca=server.tls.ca), context)
        oauth = server.oauth
        self._tokens = None if oauth is None else Tokens(oauth, self._token_http.post, context.clock)
        self._vhosts: defaultdict[str, _Vhost] = defaultdict(_Vhost)
        self._rates: tuple[bool, float] | None = None  # whether RabbitMQ measures rates, and when it was asked
        self._expressions: OrderedDict[QueueQuery, _Expression] = OrderedDict()

    async def read(self, queries: Sequence[QueueQuery], deliver: Deliver) -> None:
        """Each virtual host by itself: by single GETs, or by one listing where that costs less."""
        by_vhost: defaultdict[str, list[QueueQuery]] = defaultdict(list)
        for query in queries:
            by_vhost[query.vhost].append(query)
        run = _Run(deliver)
        async with asyncio.TaskGroup() as group:
            for vhost, found in by_vhost.items():
                group.create_task(self._read_vhost(vhost, found, run))

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()
        await self._token_http.close()

    async def _read_vhost(self, vhost: str, queries: Sequence[QueueQuery], run: _Run) -> None:
        singles = [query for query in queries if not query.is_regex]
        expressions = [query for query in queries if query.is_regex]
        queues = await self._size(vhost, queries, run)
        matched = [self._vhosts[vhost].matched.get(query, queues or 0) for query in expressions]
        if queues is not None and bulk_is_cheaper(queues=queues, single=len(singles), matched=matched):
            await self._read_by_listing(vhost, singles, expressions, run)
            return
        async with asyncio.TaskGroup() as group:
            for query in singles:
                group.create_task(self._read_single(query, run))
            for query in expressions:
                group.create_task(self._read_matching(query, run))

    async def _size(self, vhost: str, queries: Sequence[QueueQuery], run: _Run) -> int | None:
        """How many queues the virtual host has, asked at most once a minute; None where it isn't worth asking."""
        known = self._vhosts[vhost]
        if len(queries) < _ASK_SIZE_FROM_QUERIES:
            return None
        now_seconds = self._context.clock()
        if known.queues is None or now_seconds - known.asked_at_seconds > _SIZE_HOLDS_SECONDS:
            try:
                page = await self._page(
                    vhost, "page=1&page_size=1&columns=name", _timeout_of(queries), what=_vhost_text(vhost), run=run
                )
            except SourceError:
                return known.queues  # the questions themselves will tell what is wrong
            self._remember_size(vhost, page)
        return known.queues

    def _remember_size(self, vhost: str, page: Page) -> None:
        known = self._vhosts[vhost]
        known.queues = page.total
        known.asked_at_seconds = self._context.clock()

    async def _read_single(self, query: QueueQuery, run: _Run) -> None:
        try:
            value = await self._get(
                f"/api/queues/{path_segment(query.vhost)}/{path_segment(query.name)}?columns={COLUMNS}",
                query.timeout_seconds,
                what=query.what,
                run=run,
            )
            row = row_of(value, query)
            counts = reading.counts_of(row)
            if counts is None:
                raise _without_statistics(query, query.name)
            rates = await self._measures_rates(run, seen="message_stats" in row)
        except SourceError as err:
            run.deliver(query, err)
        else:
            run.deliver(query, reading.one(counts, self._context.clock(), rates=rates))

    async def _read_matching(self, query: QueueQuery, run: _Run) -> None:
        """One expression by a listing of its own, narrowed where the expression begins with plain text."""
        try:
            literal = literal_of(query.name)
            listing = await self._list(
                query.vhost,
                "" if literal is None else f"&name={path_segment(literal)}&use_regex=false",
                page_size=query.page_size or LARGEST_PAGE,
                timeout_seconds=query.timeout_seconds,
                what=query.what,
                run=run,
            )
            rates = await self._measures_rates(run, seen=listing.has_rates)
            result = await self._matching(query, listing, rates=rates)
        except SourceError as err:
            run.deliver(query, err)
        else:
            matched = self._vhosts[query.vhost].matched
            matched[query] = len(listing.counts)
            matched.move_to_end(query)
            while len(matched) > _REMEMBERED_EXPRESSIONS:
                matched.popitem(last=False)
            run.deliver(query, result)

    async def _read_by_listing(
        self, vhost: str, singles: Sequence[QueueQuery], expressions: Sequence[QueueQuery], run: _Run
    ) -> None:
        """All questions of a virtual host from one listing of its queues."""
        try:
            listing = await self._list(
                vhost,
                "",
                page_size=LARGEST_PAGE,
                timeout_seconds=_timeout_of((*singles, *expressions)),
                what=_vhost_text(vhost),
                run=run,
            )
        except SourceError as err:
            for query in (*singles, *expressions):
                run.deliver(query, err)
            return
        at_seconds = self._context.clock()
        rates = await self._measures_rates(run, seen=listing.has_rates)
        unseen = []
        for query in singles:
            counts = listing.counts.get(query.name)
            if counts is not None:
                run.deliver(query, reading.one(counts, at_seconds, rates=rates))
            elif query.name in listing.counts:
                run.deliver(query, _without_statistics(query, query.name))
            elif listing.pages > 1:
                unseen.append(query)  # it may have slipped from one page to the other: ask for it by name
            else:
                run.deliver(query, _missing(query))
        # Kept as the very same object while no queue comes or goes, which spares the expressions their search.
        names = frozenset(listing.counts)
        known = self._vhosts[vhost]
        known.names = known.names if known.names == names else names
        for query in expressions:
            try:
                run.deliver(query, await self._matching(query, listing, rates=rates, names=known.names))
            except SourceError as err:
                run.deliver(query, err)
        async with asyncio.TaskGroup() as group:
            for query in unseen:
                group.create_task(self._read_single(query, run))

    async def _measures_rates(self, run: _Run, *, seen: bool) -> bool:
        """Whether RabbitMQ measures rates. Where none is `seen`, either nothing happened so far, or it does not."""
        if seen:
            return True
        now_seconds = self._context.clock()
        if self._rates is None or now_seconds - self._rates[1] > _RATES_MODE_HOLDS_SECONDS:
            self._rates = (True, now_seconds)  # until the answer is here, and where there is none
            what = "overview of the management API"
            try:
                value = await self._get(
                    "/api/overview?columns=rates_mode", None, what=what, run=run, tells_of_server=False
                )
            except SourceError:
                return True
            measures = not isinstance(value, dict) or value.get("rates_mode") != "none"
            self._rates = (measures, now_seconds)
        return self._rates[0]

    async def _matching(
        self, query: QueueQuery, listing: _Listing, *, rates: bool, names: frozenset[str] | None = None
    ) -> reading.Reading:
        """The queues of `listing` that match and that the connection allows.

        Raises SourceNoData where one of them had statistics before and has none now. One that never had any
        is new, and counts as nothing until RabbitMQ has counted it (seconds later).
        """
        names = frozenset(listing.counts) if names is None else names
        before = self._expressions.get(query, _NOTHING_YET)
        if names is before.names:
            matched = before.matched
        else:
            new = names - before.names
            if len(new) > _SEARCHED_AT_ONCE:
                wanted = await asyncio.to_thread(self._wanted, query, new)
            else:
                wanted = self._wanted(query, new)
                await asyncio.sleep(0)  # many expressions may follow
            matched = (before.matched & names) | wanted
        found: list[reading.Counts] = []
        counted: list[str] = []
        for name in matched:
            counts = listing.counts[name]
            if counts is not None:
                found.append(counts)
                counted.append(name)
            elif name in before.counted:
                raise _without_statistics(query, name)
        self._expressions[query] = _Expression(names, matched, frozenset(counted))
        self._expressions.move_to_end(query)
        while len(self._expressions) > _REMEMBERED_EXPRESSIONS:
            self._expressions.popitem(last=False)
        return reading.several(found, self._context.clock(), rates=rates)

    def _wanted(self, query: QueueQuery, names: Iterable[str]) -> frozenset[str]:
        """The names that match the expression and may be read through the connection."""
        search = pattern(query.name).search
        allowed = self._context.allow.get("queue")
        return frozenset(
            name
            for name in names
            if search(name) is not None and (allowed is None or any(fnmatchcase(name, glob) for glob in allowed))
        )

    async def _list(
        self, vhost: str, filtered: str, *, page_size: int, timeout_seconds: float | None, what: str, run: _Run
    ) -> _Listing:
        """All queues that pass the filter, page by page.

        A listing is not atomic: a queue that goes away moves those behind it forward, past the page that is read
        next. Where the number of queues changed between two pages it is read again, twice at most.
        """
        try:
            async with asyncio.timeout(_LONGEST_LISTING_SECONDS):
                for attempt in range(1, _LISTING_ATTEMPTS + 1):
                    listing, stable = await self._list_once(
                        vhost, filtered, page_size=page_size, timeout_seconds=timeout_seconds, what=what, run=run
                    )
                    if stable or attempt == _LISTING_ATTEMPTS:
                        break
        except TimeoutError as err:
            raise SourceTimeout(f"{what}: all pages took longer than {_LONGEST_LISTING_SECONDS:g} s") from err
        return listing

    async def _list_once(
        self, vhost: str, filtered: str, *, page_size: int, timeout_seconds: float | None, what: str, run: _Run
    ) -> tuple[_Listing, bool]:
        """The queues, and whether their number stayed the same from the first page to the last."""
        listing = _Listing(counts={}, pages=1, has_rates=False)
        number, matched, stable = 1, None, True
        while number <= listing.pages:
            try:
                page = await self._page(
                    vhost,
                    f"page={number}&page_size={page_size}{filtered}&columns={COLUMNS}",
                    timeout_seconds,
                    what=what,
                    run=run,
                )
            except _PageOutOfRangeError:
                if number == 1:
                    raise
                return listing, False
            if page.matched > _LARGEST_LISTING:
                raise SourceUnavailable(
                    f"{what}: {page.matched} queues are more than the {_LARGEST_LISTING} that are read; narrow "
                    "queueName"
                )
            self._remember_size(vhost, page)
            if number == 1 and page.pages > _SMALL_PAGES and page_size < LARGEST_PAGE:
                page_size = LARGEST_PAGE
                continue
            stable = stable and matched in (None, page.matched)
            matched = page.matched
            listing.pages = page.pages
            for row in page.rows:
                listing.counts[str(row["name"])] = reading.counts_of(row)
                listing.has_rates = listing.has_rates or "message_stats" in row
            number += 1
        # Without a queue there is nothing whose rates could be missing.
        listing.has_rates = listing.has_rates or not listing.counts
        return listing, stable

    async def _page(self, vhost: str, query: str, timeout_seconds: float | None, *, what: str, run: _Run) -> Page:
        path = f"/api/queues/{path_segment(vhost)}?{query}"
        return page_of(await self._get(path, timeout_seconds, what=what, run=run), what=what)

    async def _get(
        self, path: str, timeout_seconds: float | None, *, what: str, run: _Run, tells_of_server: bool = True
    ) -> object:
        """The decoded answer to one GET.

        Raises SourceError. Where the server did not answer at all, the questions still waiting for their turn
        get the same error at once: they would only add up their time limits. `tells_of_server` False: not so.
        """
        async with self._slots:
            if run.fault is not None:
                raise run.fault
            answered = run.answers
            try:
                status, body = await self._authorised(path, timeout_seconds, what=what)
            except _PageOutOfRangeError:
                raise
            except SourceUnavailable as err:
                if tells_of_server and run.answers == answered:
                    run.fault = err
                raise
            run.answers += 1
        if status == 200:
            return decoded(body, what=what)
        raise _refusal(status, what, self._server)

    async def _authorised(self, path: str, timeout_seconds: float | None, *, what: str) -> tuple[int, bytes]:
        server = self._server
        url = f"{'https' if server.is_encrypted else 'http'}://{server.place}{path}"
        timeout_seconds = timeout_seconds or self._context.read_timeout_seconds
        if self._tokens is None:
            headers = {}
            if server.username is not None:
                pair = f"{server.username.reveal()}:{server.password.reveal() if server.password else ''}"
                headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
            return await self._http.get(url, headers=headers, timeout_seconds=timeout_seconds, what=what)
        status, body = 401, b""
        for _ in range(2):  # a token may have been revoked, or RabbitMQ's clock be ahead: one fresh try
            token = await self._tokens.token()
            headers = {"Authorization": f"Bearer {token}"}
            status, body = await self._http.get(url, headers=headers, timeout_seconds=timeout_seconds, what=what)
            if status != 401:
                break
            self._tokens.forget(token)
        return status, body


class _Run:
    """What the questions of one read share: whom to tell, and whether the server answers."""

    def __init__(self, deliver: Deliver) -> None:
        self.deliver = deliver
        self.answers = 0
        self.fault: SourceUnavailable | None = None


class _PageOutOfRangeError(SourceUnavailable):
    """RabbitMQ has fewer pages than asked for."""


class _Http:
    """An aiohttp session that follows no redirect, reads bounded bodies and judges each address."""

    def __init__(self, tls: ClientTls | None, context: SourceContext) -> None:
        self._tls = tls  # None: never encrypted, so that no context need be made, which takes 40 ms
        self._context = context
        self._opening = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._texts: tuple[str, ...] = ()

    async def get(
        self, url: str, *, headers: Mapping[str, str], timeout_seconds: float, what: str
    ) -> tuple[int, bytes]:
        """(status, body) of a GET. Raises SourceError."""
        return await self._send("GET", url, headers=headers, body=None, timeout_seconds=timeout_seconds, what=what)

    async def post(self, url: str, *, headers: Mapping[str, str], body: str, what: str) -> tuple[int, bytes]:
        """(status, body) of a POST. Raises SourceError."""
        seconds = self._context.read_timeout_seconds
        return await self._send("POST", url, headers=headers, body=body, timeout_seconds=seconds, what=what)

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: str | None,
        timeout_seconds: float,
        what: str,
    ) -> tuple[int, bytes]:
        session = await self._ready()
        timeout = aiohttp.ClientTimeout(
            total=timeout_seconds, sock_connect=min(timeout_seconds, self._context.connect_timeout_seconds)
        )
        try:
            async with session.request(
                method,
                URL(url, encoded=True),
                headers={"Accept": "application/json", "Accept-Encoding": "identity", **headers},
                data=body,
                allow_redirects=False,
                timeout=timeout,
            ) as response:
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise SourceUnavailable(f"{what}: the answer is compressed though that was not asked for")
                if response.status != 200 and method == "GET":
                    text = await read_bounded(response.content, 65_536, what=what)
                    if response.status == 400 and b'"page_out_of_range"' in text:
                        raise _PageOutOfRangeError(f"{what}: the page does not exist")
                    return response.status, b""
                limit_bytes = min(self._context.max_response_bytes, _LARGEST_BODY_BYTES)
                return response.status, await read_bounded(response.content, limit_bytes, what=what)
        except TimeoutError as err:
            raise SourceTimeout(f"{what}: no answer within {timeout_seconds:g} s") from err
        except (aiohttp.ClientError, OSError, ValueError) as err:
            raise SourceUnavailable(f"{what}: {_reason(err)}") from err

    async def _ready(self) -> aiohttp.ClientSession:
        """The session; a new one where certificates were rotated."""
        tls = self._tls
        rotated = any(
            secret is not None and secret.path is not None
            for secret in ((tls.ca, tls.certificate, tls.key, tls.key_password) if tls is not None else ())
        )
        if self._session is not None and not rotated:
            return self._session
        async with self._opening:
            texts = () if tls is None else tls.texts()
            if self._session is None or texts != self._texts:
                await self.close()
                self._session = await self._open()
                self._texts = texts
            return self._session

    async def _open(self) -> aiohttp.ClientSession:
        context = True if self._tls is None else await asyncio.to_thread(self._tls.context)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=_CONCURRENT_REQUESTS,
                ssl=context,
                socket_factory=guarded_sockets(self._context.judge_address),
                # One address after the other: what the guard raises would be lost in a race of several.
                happy_eyeballs_delay=None,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            headers={"User-Agent": "pilotlight"},
        )


@asynccontextmanager
async def open_management(server: Server, context: SourceContext) -> AsyncIterator[ManagementClient]:
    """A client that connects when it first reads."""
    client = ManagementClient(server, context)
    try:
        yield client
    finally:
        await client.close()


def _reason(err: BaseException) -> str:
    """Why a connection failed, in our own words: a library's may hold the URL."""
    if isinstance(err, aiohttp.ClientConnectorCertificateError):
        return "the server's certificate is not trusted or not for this name; give its authority in ca with tls enable"
    cause: BaseException | None = err
    while cause is not None:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, aiohttp.ClientError):
            return f"TLS failed ({cause.reason or 'no reason given'}); check the scheme, ca, cert and key"
        cause = cause.__cause__ or getattr(cause, "os_error", None)
    if isinstance(err, aiohttp.ClientConnectorError):
        return f"can't connect ({err.os_error.strerror or type(err.os_error).__name__}); check scheme, host and port"
    if isinstance(err, aiohttp.ServerDisconnectedError | OSError):
        return "the connection was lost; if that goes on, check scheme, host and port"
    return f"the answer is not HTTP as expected ({type(err).__name__}); check scheme, host and port"


def _refusal(status: int, what: str, server: Server) -> SourceError:
    """What a status other than 200 means."""
    place = quoted(server.place)
    match status:
        case 401 | 403:
            return SourceDenied(
                f"{what}: {place} refused the credentials (status {status}); the user needs the tag management or "
                "monitoring and rights on the virtual host"
            )
        case 404:
            return SourceMissing(
                f"{what}: {place} has no such queue or virtual host; create it or mend the name (in the host's path, "
                "what comes before the last part is the base path of the management API)"
            )
        case 300 | 301 | 302 | 303 | 307 | 308:
            return SourceUnavailable(f"{what}: {place} answers with a redirect, which is not followed; mend host")
        case _:
            return SourceUnavailable(f"{what}: {place} answers with status {status}")


def _missing(query: QueueQuery) -> SourceMissing:
    return SourceMissing(f"{query.what}: it does not exist; create it or mend the name")


def _without_statistics(query: QueueQuery, name: str) -> SourceNoData:
    return SourceNoData(
        f"{query.what}: RabbitMQ has no statistics of {quoted(name)} at present; it is new (wait some seconds), its "
        "node is down, or statistics are switched off"
    )


def _vhost_text(vhost: str) -> str:
    return f"queues of virtual host {quoted(vhost)}"


def _timeout_of(queries: Sequence[QueueQuery]) -> float | None:
    """The longest time that one of the queries allows; None: the service's own."""
    given = [query.timeout_seconds for query in queries if query.timeout_seconds is not None]
    return max(given) if len(given) == len(queries) else None
