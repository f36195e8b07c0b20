"""One HTTP session to one Prometheus API, used by one thread at a time.

prometheus-api-client asks the questions (`PrometheusConnect.custom_query`); everything below it is ours, since
requests' own transport follows redirects, reads bodies whole, takes proxies and passwords from the
environment and can't be interrupted. Here: no redirects, no retries, no proxies, bounded bodies, connections
only to addresses that were checked, and `abort`, which wakes a thread out of a server that hangs.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import ssl
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from threading import Lock
from typing import Any

import requests
import urllib3
from prometheus_api_client import PrometheusConnect
from requests.adapters import BaseAdapter
from requests.auth import AuthBase
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection

from scaler.aws import AwsKeys
from scaler.errors import SourceDenied, SourceError, SourceMissing, SourceTimeout, SourceUnavailable
from scaler.parameters import ValueProblem
from scaler.promql.endpoint import Server, check_header, parse_headers
from scaler.promql.questions import Answer, Question, Result, read_result

# The name under which Amazon Managed Service for Prometheus signs.
_AWS_SERVICE = "aps"
_CHUNK_BYTES = 65_536


class Line:
    """The one TCP connection of a session: made to checked addresses only, and cut from any thread.

    A duplicate of the socket is kept to cut it: shutting that down wakes a thread that is blocked in connect,
    in the TLS handshake or in a read, whoever owns the socket at that moment.
    """

    def __init__(self) -> None:
        self.addresses: tuple[str, ...] = ()
        self.connect_seconds = 5.0
        self.connections = 0
        self._lock = Lock()
        self._lever: socket.socket | None = None
        self._cut = False

    def connect(self, port: int) -> socket.socket:
        """A socket to the first of the addresses that takes it. Raises OSError."""
        deadline = time.monotonic() + self.connect_seconds
        failure: OSError = OSError("no address")
        for address in self.addresses:
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0:
                raise TimeoutError("connect")
            try:
                return self._connect(address, port, left_seconds)
            except OSError as err:
                failure = err
        raise failure

    def _connect(self, address: str, port: int, seconds: float) -> socket.socket:
        family, kind, protocol, _, target = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )[0]
        made = socket.socket(family, kind, protocol)
        try:
            self._hold(made)
            made.settimeout(seconds)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.connect(target)
        except BaseException:
            made.close()
            raise
        self.connections += 1
        return made

    def _hold(self, made: socket.socket) -> None:
        with self._lock:
            if self._cut:
                raise OSError("cut")
            self._release()
            self._lever = made.dup()

    @property
    def is_cut(self) -> bool:
        """Whether it was ended."""
        return self._cut

    def cut(self) -> None:
        """End the connection for good; whoever waits on it gets an error."""
        with self._lock:
            self._cut = True
            if self._lever is not None:
                with suppress(OSError):
                    self._lever.shutdown(socket.SHUT_RDWR)
            self._release()

    def _release(self) -> None:
        if self._lever is not None:
            self._lever.close()
            self._lever = None


class _PlainConnection(HTTPConnection):
    def __init__(self, *args: Any, line: Line, **options: Any) -> None:
        super().__init__(*args, **options)
        self._line = line

    def _new_conn(self) -> socket.socket:
        return self._line.connect(self.port)


class _TlsConnection(HTTPSConnection):
    def __init__(self, *args: Any, line: Line, **options: Any) -> None:
        super().__init__(*args, **options)
        self._line = line

    def _new_conn(self) -> socket.socket:
        return self._line.connect(self.port)

    def connect(self) -> None:
        super().connect()
        # Where it isn't, the trigger said so and was warned: urllib3 need not warn at each connection too.
        self.is_verified = True


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Parsed(requests.Response):
    """A response whose body was read and parsed already."""

    document: Mapping[str, Any]

    def json(self, **_: Any) -> Any:
        return self.document


_FAILURES = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError)
_LOST = (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected)


class _Adapter(BaseAdapter):
    """requests' border to the network: one connection, bounded in time and size, errors translated."""

    def __init__(self, server: Server, context: ssl.SSLContext | None, line: Line, *, limit_bytes: int) -> None:
        super().__init__()
        self._what = f"prometheus at {server.name}"
        self._limit_bytes = limit_bytes
        self._line = line
        self.deadline_at_seconds = 0.0
        self.result_kind: object = None
        self.intact = True  # whether the last answer was read to its end, so that the connection can go on
        pool: type[_PlainPool | _TlsPool] = _PlainPool if context is None else _TlsPool
        options: dict[str, Any] = {} if context is None else {"ssl_context": context}
        if context is not None and not context.check_hostname:
            options |= {"assert_hostname": False}
        self._pool = pool(server.host, server.port, maxsize=1, block=False, retries=False, line=line, **options)

    def send(  # noqa: PLR0917 - the signature is requests's
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: ARG002 - the body is always read here
        timeout: Any = None,  # noqa: ARG002 - the deadline of the whole read rules
        verify: Any = True,  # noqa: ARG002 - the pool's TLS context rules
        cert: Any = None,  # noqa: ARG002 - likewise
        proxies: Any = None,  # noqa: ARG002 - none are used
    ) -> requests.Response:
        left_seconds = self.deadline_at_seconds - time.monotonic()
        if left_seconds <= 0:
            raise SourceTimeout(f"{self._what}: no answer in time")
        fresh = False
        while True:
            connections = self._line.connections
            try:
                return self._exchange(request, max(self.deadline_at_seconds - time.monotonic(), 0.001))
            except _FAILURES as err:
                # A server may close an idle connection at the very moment it is used again: ask once more, on a
                # new one. A question is safe to repeat.
                lost = any(isinstance(cause, _LOST) for cause in _causes(err))
                if fresh or not lost or connections == 0 or self._line.connections != connections or self._line.is_cut:
                    raise _translated(err, self._what) from err
                fresh = True

    def _exchange(self, request: requests.PreparedRequest, left_seconds: float) -> requests.Response:
        self.intact = False
        raw = self._pool.urlopen(
            request.method or "GET",
            request.path_url,
            headers=dict(request.headers),
            redirect=False,
            retries=False,
            assert_same_host=False,
            preload_content=False,
            decode_content=False,
            timeout=urllib3.Timeout(connect=min(left_seconds, self._line.connect_seconds), read=left_seconds),
        )
        try:
            body = self._body(raw)
        except BaseException:
            raw.close()
            raise
        raw.release_conn()
        self.intact = True
        return self._response(request, raw, body)

    def close(self) -> None:
        self._pool.close()

    def _response(
        self, request: requests.PreparedRequest, raw: urllib3.BaseHTTPResponse, body: bytes
    ) -> requests.Response:
        if 300 <= raw.status < 400:
            raise SourceDenied(
                f"{self._what}: it redirects ({raw.status}), which is not followed; set serverAddress to where it leads"
            )
        if raw.headers.get("Content-Encoding", "identity") not in {"", "identity"}:
            raise SourceUnavailable(f"{self._what}: the answer is compressed though that was not asked for")
        document = _document(body)
        if raw.status != http.HTTPStatus.OK:
            raise _refusal(raw.status, document, self._what)
        if document is None:
            raise SourceMissing(
                f"{self._what}: the answer is not JSON; check that serverAddress is a Prometheus API, path included"
            )
        if document.get("status", "success") != "success":
            raise SourceUnavailable(f"{self._what}: it answers with an error")
        data = document.get("data")
        if not isinstance(data, Mapping) or "result" not in data:  # KEDA takes this for an empty result
            raise SourceMissing(f"{self._what}: the answer is not one of the Prometheus API; check serverAddress")
        self.result_kind = data.get("resultType")
        parsed = _Parsed()
        parsed.document = {"data": {"result": data["result"]}}
        parsed.status_code = raw.status
        parsed.headers = CaseInsensitiveDict(raw.headers)
        parsed.url = request.url or ""
        parsed.request = request
        parsed._content = b""  # noqa: SLF001 - requests' place for a body that was read; nobody needs it again
        return parsed

    def _body(self, raw: urllib3.BaseHTTPResponse) -> bytes:
        too_large = SourceUnavailable(
            f"{self._what}: the answer is larger than {self._limit_bytes} bytes; aggregate the query"
        )
        length = raw.headers.get("Content-Length", "")
        if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > self._limit_bytes):
            raise too_large
        body = bytearray()
        while chunk := raw.read1(_CHUNK_BYTES):
            body += chunk
            if len(body) > self._limit_bytes:
                raise too_large
            if time.monotonic() > self.deadline_at_seconds:
                raise SourceTimeout(f"{self._what}: the answer did not end in time")
        return bytes(body)


def _document(body: bytes) -> Mapping[str, Any] | None:
    try:
        document = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        return None
    return document if isinstance(document, dict) else None


# What Prometheus writes as `errorType` (web/api/v1/api.go): the only words of an error's body that are repeated.
_ERROR_TYPES = frozenset(
    {"timeout", "canceled", "execution", "bad_data", "internal", "unavailable", "not_found", "not_acceptable"}
)


def _refusal(status: int, document: Mapping[str, Any] | None, what: str) -> SourceError:
    kind = document.get("errorType") if document else None
    said = f"{status} {kind}" if isinstance(kind, str) and kind in _ERROR_TYPES else str(status)
    if status in {401, 403, 407}:
        return SourceDenied(f"{what}: it refuses access ({said}); check authModes and the credentials")
    if kind == "bad_data":
        return SourceMissing(f"{what}: it can't parse the query ({said}); try it in Prometheus's own page and mend it")
    if status in {400, 404, 405, 410}:
        return SourceMissing(
            f"{what}: there is no Prometheus API ({said}); check serverAddress, scheme and path included"
        )
    if kind == "timeout":
        return SourceTimeout(f"{what}: it gave up on the query ({said}); make the query cheaper")
    if kind == "execution":
        return SourceUnavailable(f"{what}: it can't evaluate the query ({said}); try it in Prometheus's own page")
    return SourceUnavailable(f"{what}: it answers {said}")


def _causes(err: BaseException) -> list[BaseException]:
    """The error and those it wraps, outermost first."""
    causes = [err]
    for cause in causes:
        nested = [*cause.args, getattr(cause, "reason", None), cause.__cause__, cause.__context__]
        causes.extend(
            found for found in nested if isinstance(found, BaseException) and found not in causes and len(causes) < 16
        )
    return causes


def _translated(err: Exception, what: str) -> SourceError:
    """Our error for one of urllib3's or the socket's."""
    causes = _causes(err)
    for cause in causes:
        if isinstance(cause, SourceError):
            return cause
        if isinstance(cause, ssl.SSLCertVerificationError | ssl.CertificateError):
            return SourceDenied(
                f"{what}: its certificate is not trusted ({cause.verify_message}); give its authority as ca, "
                "or mend the host name"
            )
        if isinstance(cause, ssl.SSLError):
            reason = (cause.reason or "handshake failed").lower().replace("_", " ")
            return SourceDenied(f"{what}: TLS failed ({reason}); check scheme, port and client certificate")
    for cause in causes:
        if isinstance(cause, urllib3.exceptions.TimeoutError | TimeoutError):
            return SourceTimeout(f"{what}: no answer in time")
        if isinstance(cause, ConnectionRefusedError):
            return SourceUnavailable(f"{what}: the connection is refused; check host, port and that it runs")
    return SourceUnavailable(f"{what}: the connection failed ({type(causes[-1]).__name__})")


class _Credentials(AuthBase):
    """Puts headers and credentials on each request, read anew so that rotated files take effect."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.aws_keys: AwsKeys | None = None

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        server = self._server
        try:
            if server.headers is not None:
                for name, value in parse_headers(server.headers.reveal()):
                    request.headers[name] = value
            if server.bearer_token is not None:
                self._set(request, "Authorization", f"Bearer {server.bearer_token.reveal()}")
            elif server.username is not None:
                password = server.password.reveal() if server.password is not None else ""
                pair = f"{server.username.reveal()}:{password}".encode()
                self._set(request, "Authorization", f"Basic {base64.b64encode(pair).decode('ascii')}")
            if server.header_name is not None and server.header_value is not None:
                self._set(request, server.header_name, server.header_value.reveal())
            if server.api_key is not None and server.api_key_header is not None:
                self._set(request, server.api_key_header, server.api_key.reveal())
        except ValueProblem as err:
            raise SourceDenied(f"prometheus at {server.name}: {err}") from None
        if server.aws_region is not None and self.aws_keys is not None:
            sign(request, self.aws_keys, server.aws_region)
        return request

    @staticmethod
    def _set(request: requests.PreparedRequest, name: str, value: str) -> None:
        check_header(name, value)
        request.headers[name] = value


def sign(request: requests.PreparedRequest, keys: AwsKeys, region: str) -> None:
    """Sign a request without a body by AWS Signature Version 4."""
    from botocore.auth import SigV4Auth  # noqa: PLC0415 - only managed Prometheus needs it
    from botocore.awsrequest import AWSRequest  # noqa: PLC0415
    from botocore.credentials import Credentials  # noqa: PLC0415

    # AWS takes "+" for itself, not for a space; a "+" of the query is %2B already.
    request.url = (request.url or "").replace("+", "%20")
    unsigned = AWSRequest(method=request.method, url=request.url)
    SigV4Auth(Credentials(keys.access_key, keys.secret_key, keys.token), _AWS_SERVICE, region).add_auth(unsigned)
    for name, value in unsigned.headers.items():
        request.headers[name] = value


def tls_context(server: Server) -> ssl.SSLContext | None:
    """How the server is verified and who we are to it; None for plain http.

    The key must lie in a file for the moment in which OpenSSL reads it: private, and gone right after. Raises
    SourceDenied where ca, cert or key can't be used.
    """
    if not server.tls:
        return None
    what = f"prometheus at {server.name}"
    try:
        context = ssl.create_default_context(cadata=server.ca.reveal() if server.ca is not None else None)
    except (ssl.SSLError, ValueError) as err:
        raise SourceDenied(f"{what}: ca is not a PEM certificate") from err
    if not server.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if server.cert is not None and server.key is not None:
        pem = f"{server.cert.reveal()}\n{server.key.reveal()}\n"
        handle, path = tempfile.mkstemp(prefix="pilotlight-", suffix=".pem")  # mkstemp: mode 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(pem)
            # Without a password callback OpenSSL would ask on the terminal, and wait.
            context.load_cert_chain(path, password=lambda: b"")
        except (ssl.SSLError, ValueError) as err:
            raise SourceDenied(f"{what}: cert and key are not a PEM pair without a password") from err
        finally:
            os.unlink(path)  # noqa: PTH108 - no Path needed
    return context


class Session:
    """One connection to a server, asked by one thread at a time. `generation` counts its certificates' changes."""

    def __init__(
        self, server: Server, context: ssl.SSLContext | None, *, limit_bytes: int, generation: int = 0
    ) -> None:
        self.generation = generation
        self._server = server
        self._line = Line()
        self._adapter = _Adapter(server, context, self._line, limit_bytes=limit_bytes)
        self._credentials = _Credentials(server)
        session = _RequestsSession(self._adapter)
        self._connect = PrometheusConnect(
            url=server.url,
            headers={"User-Agent": "pilotlight", "Accept": "application/json", "Accept-Encoding": "identity"},
            session=session,
            auth=self._credentials,
            retry=urllib3.Retry(0),
        )

    @property
    def usable(self) -> bool:
        """Whether it may be asked again: also after an answer that was an error."""
        return self._adapter.intact and not self._line.is_cut

    def ask(
        self,
        question: Question,
        texts: Mapping[str, str],
        *,
        addresses: tuple[str, ...],
        aws_keys: AwsKeys | None,
        at_seconds: float,
        connect_seconds: float,
        timeout_seconds: float,
    ) -> Answer:
        """The answer to a question, blocking.

        `texts` holds what is sent for each text of the question (with matchers enforced). Raises SourceError
        where the query itself can't be answered; a failure of the two others is part of the answer.
        """
        self._line.addresses = addresses
        self._line.connect_seconds = connect_seconds
        self._credentials.aws_keys = aws_keys
        self._adapter.deadline_at_seconds = time.monotonic() + timeout_seconds
        result = self._query(texts[question.text], question)
        return Answer(
            at_seconds=at_seconds,
            result=result,
            freshness=self._try(texts, question.freshness, question),
            wake=self._try(texts, question.wake, question),
        )

    def _try(self, texts: Mapping[str, str], text: str | None, question: Question) -> Result | SourceError | None:
        if text is None:
            return None
        try:
            return self._query(texts[text], question)
        except SourceError as err:
            return err

    def _query(self, text: str, question: Question) -> Result:
        left_seconds = max(self._adapter.deadline_at_seconds - time.monotonic(), 0.001)
        parameters = dict(question.parameters)
        # The server need not go on once nobody listens any more.
        parameters["timeout"] = f"{left_seconds:.3f}"  # seconds
        if self._server.api_key is not None and self._server.api_key_parameter is not None:
            parameters[self._server.api_key_parameter] = self._server.api_key.reveal()
        what = f"prometheus at {self._server.name}"
        try:
            found = self._connect.custom_query(query=text, params=parameters)
        except (requests.RequestException, UnicodeError) as err:
            raise SourceUnavailable(f"{what}: the request can't be made ({type(err).__name__})") from None
        return read_result(self._adapter.result_kind, found, what=what)

    def abort(self) -> None:
        """Cut the connection; a thread that waits on it gets an error. From any thread."""
        self._line.cut()

    def close(self) -> None:
        """Close the connection."""
        self._line.cut()
        self._connect.close()


class _RequestsSession(requests.Session):
    """A session that has one adapter, takes nothing from the environment and keeps no cookies."""

    def __init__(self, adapter: _Adapter) -> None:
        super().__init__()
        self.trust_env = False
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._adapter = adapter

    def mount(self, prefix: str | bytes, adapter: BaseAdapter) -> None:
        """Ours stays: prometheus-api-client would put one that retries in its place."""

    def get_adapter(self, url: str | bytes) -> BaseAdapter:  # noqa: ARG002 - there is one
        return self._adapter

    def close(self) -> None:
        super().close()
        self._adapter.close()
