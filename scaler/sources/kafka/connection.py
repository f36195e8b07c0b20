"""One connection to one broker: guarded address, TLS, SASL, bounded answers, and errors a person can act on.

It is aiokafka's connection (TLS, SASL exchanges, versions, pipelining) and not its client: that one creates
missing topics when it asks for metadata, opens connections one after the other under a lock, so that one hung
broker holds up all, and resolves names where no guard can look.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
import struct
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.conn import AIOKafkaConnection, AIOKafkaProtocol, CloseReason, OAuthAuthenticator
from aiokafka.util import create_future

from scaler.errors import SourceDenied, SourceError, SourceTimeout, SourceUnavailable, quoted
from scaler.source import SourceContext
from scaler.sources.kafka.config import KafkaEndpoint, SaslConfig
from scaler.sources.kafka.protocol import Call, Malformed
from scaler.sources.kafka.tokens import TokenProvider
from scaler.tls import ClientTls

_READER_LIMIT_BYTES = 2**16
# A TLS record (alert or handshake, version 3.x) read as a length: the other side speaks TLS and we don't.
_TLS_FIRST_BYTES = (0x15, 0x16)


class AnswerTooLarge(Exception):
    """The length before an answer is above the limit, or it is no length at all."""

    def __init__(self, size: int, limit: int) -> None:
        self.looks_like_tls = size >> 24 in _TLS_FIRST_BYTES and (size >> 16) & 0xFF == 3
        super().__init__(f"an answer of {size} bytes, above the limit of {limit}")


def quiet_aiokafka() -> None:
    """Aiokafka logs requests at debug level, passwords of SASL exchanges included: never let it."""
    logger = logging.getLogger("aiokafka")
    if logger.getEffectiveLevel() < logging.CRITICAL:
        logger.setLevel(logging.CRITICAL)


class _Connection(AIOKafkaConnection):  # type: ignore[misc]  # aiokafka ships no types
    """aiokafka's connection that goes to addresses already judged and reads answers of bounded size."""

    def __init__(self, host: str, port: int, *, addresses: tuple[str, ...], max_bytes: int, **options: Any) -> None:
        super().__init__(host, port, **options)
        self._addresses = addresses
        self._max_bytes = max_bytes

    async def connect(self) -> None:
        """As its parent's, but for the addresses: the name is not resolved a second time."""
        loop = asyncio.get_running_loop()
        context = self._ssl_context if self._security_protocol in {"SSL", "SASL_SSL"} else None
        for number, address in enumerate(self._addresses, start=1):
            self._closed_fut = create_future()
            reader = asyncio.StreamReader(limit=_READER_LIMIT_BYTES, loop=loop)
            protocol = AIOKafkaProtocol(self._closed_fut, reader, loop=loop)
            try:
                transport, _ = await loop.create_connection(
                    lambda protocol=protocol: protocol,
                    address,
                    self.port,
                    ssl=context,
                    server_hostname=self.host if context is not None else None,
                )
            except OSError as err:
                # Another address of the name may be reachable; a TLS handshake would end there as it did here.
                if number == len(self._addresses) or isinstance(err, ssl.SSLError):
                    raise
            else:
                self._reader, self._protocol = reader, protocol
                self._writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                break
        self._read_task = self._create_reader_task()
        try:
            await self._do_version_lookup()
            if self._security_protocol in {"SASL_SSL", "SASL_PLAINTEXT"}:
                await self._do_sasl_handshake()
        except BaseException:
            self.close()
            raise

    @staticmethod
    async def _read(self_ref: Any) -> None:
        """As its parent's, with a bound on the size of an answer."""
        this = self_ref()
        if this is None:
            return
        reader, max_bytes = this._reader, this._max_bytes  # noqa: SLF001 - its own
        del this  # a strong reference would keep a dropped connection open
        while True:
            (size,) = struct.unpack(">i", await reader.readexactly(4))
            if not 0 <= size <= max_bytes:
                raise _Reset(AnswerTooLarge(size & 0xFFFFFFFF, max_bytes))
            answer = await reader.readexactly(size)
            this = self_ref()
            if this is None:
                return
            this._handle_frame(answer)  # noqa: SLF001 - its own
            del this

    def authenticator_oauth(self) -> Any:
        """Its parent's takes the broker's refusal for a success."""
        return _OAuthAuthenticator(sasl_oauth_token_provider=self._sasl_oauth_token_provider)

    async def closed(self) -> None:
        """Wait until the transport is closed, at most a second."""
        if self._closed_fut is not None:
            await asyncio.wait([self._closed_fut], timeout=1.0)

    @property
    def versions(self) -> dict[int, tuple[int, int]]:
        """The versions of each API that the broker has."""
        found: dict[int, tuple[int, int]] = self._versions
        return found


class _OAuthAuthenticator(OAuthAuthenticator):  # type: ignore[misc]  # aiokafka ships no types
    """aiokafka's exchange and its end: a refusal is JSON in an answer without an error code (RFC 7628, 3.2.2)."""

    async def step(self, payload: bytes | None) -> tuple[bytes, bool] | None:
        """The next message, or None at the end."""
        if payload:
            raise kafka_errors.SaslAuthenticationFailed
        following: tuple[bytes, bool] | None = await super().step(payload)
        return following


class _Reset(ConnectionError):
    """Makes aiokafka close the connection without a traceback in the log; holds the reason."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason
        super().__init__(str(reason))


class Broker:
    """One broker: connects on first use, and again after a failure, at growing intervals.

    `node` is None for a bootstrap address that is not known to be one of the cluster's brokers.
    """

    def __init__(self, host: str, port: int, *, security: Security, context: SourceContext) -> None:
        self.host = host
        self.port = port
        self.requests = 0
        self.connections = 0
        self.one_by_one = asyncio.Lock()  # for requests that are paced
        self._security = security
        self._context = context
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        self._failure: SourceError | None = None
        self._failures = 0
        self._retry_at_seconds = 0.0

    def __str__(self) -> str:
        return quoted(f"{self.host}:{self.port}")

    @property
    def connected(self) -> bool:
        """Whether a connection is open, as far as one can know."""
        return self._connection is not None and bool(self._connection.connected())

    @property
    def failing(self) -> bool:
        """Whether the last attempt to connect failed a moment ago."""
        return self._failure is not None and self._context.clock() < self._retry_at_seconds

    async def versions(self) -> dict[int, tuple[int, int]]:
        """The versions of each API that it has. Raises SourceError."""
        return (await self._connected()).versions

    async def ask(self, call: Call) -> bytes:
        """The answer's body. Raises SourceError; a connection that broke in between is made anew once.

        All requests here only read, so that asking twice does no harm.
        """
        fresh = not self.connected
        try:
            return await self._ask_once(call)
        except _Broken as err:
            if fresh:
                raise err.translated from err.__cause__
        try:
            return await self._ask_once(call)
        except _Broken as err:
            raise err.translated from err.__cause__

    async def _ask_once(self, call: Call) -> bytes:
        connection = await self._connected()
        self.requests += 1
        timeout_seconds = self._context.read_timeout_seconds
        try:
            async with asyncio.timeout(timeout_seconds):
                answer: bytes = await connection.send(call)
        except TimeoutError as err:
            # Half-open, hung or overloaded: the next request gets a new connection.
            self.drop(connection)
            raise SourceTimeout(
                f"broker {self} did not answer within {timeout_seconds:g} s; check the broker and the network"
            ) from err
        except kafka_errors.IncompatibleBrokerVersion as err:
            raise SourceUnavailable(
                f"broker {self} lacks a request that lag needs; Kafka 0.11 or later is required"
            ) from err
        except (kafka_errors.KafkaError, OSError, EOFError) as err:
            self.drop(connection)
            raise _Broken(self._translated(err)) from err
        return answer

    async def _connected(self) -> _Connection:
        async with self._connecting:
            if self._connection is not None and self._connection.connected():
                return self._connection
            self.drop(self._connection)
            if self._failure is not None and self._context.clock() < self._retry_at_seconds:
                raise type(self._failure)(str(self._failure))  # anew: a raised one gathers tracebacks
            try:
                self._connection = await self._connect()
            except SourceError as err:
                self._failure = err
                self._failures += 1
                # A wrong password locks accounts and fills logs: ask less often than for a broker that restarts.
                base, most = (5.0, 60.0) if isinstance(err, SourceDenied) else (0.5, 8.0)
                pause_seconds = min(most, base * 2 ** min(self._failures - 1, 6))
                self._retry_at_seconds = self._context.clock() + pause_seconds
                raise
            self._failure, self._failures = None, 0
            return self._connection

    async def _connect(self) -> _Connection:
        addresses = await self._context.check_address(self.host, self.port)
        timeout_seconds = self._context.connect_timeout_seconds
        connection = None
        self.connections += 1
        try:
            async with asyncio.timeout(timeout_seconds):
                options = await self._security.options()
                connection = _Connection(
                    self.host,
                    self.port,
                    addresses=addresses,
                    max_bytes=self._context.max_response_bytes,
                    client_id="pilotlight",
                    request_timeout_ms=int(self._context.read_timeout_seconds * 1000),
                    **options,
                )
                await connection.connect()
        except TimeoutError as err:
            self.drop(connection)
            raise SourceTimeout(
                f"broker {self}: no connection within {timeout_seconds:g} s; check the address, the network and "
                f"whether the listener {self._security.expects}"
            ) from err
        except SourceError:
            self.drop(connection)
            raise
        except (kafka_errors.KafkaError, OSError, EOFError, ValueError, AssertionError, KeyError) as err:
            # ValueError, AssertionError, KeyError: aiokafka's reactions to a SASL exchange that makes no sense.
            self.drop(connection)
            raise self._translated(err) from err
        except asyncio.CancelledError:
            self.drop(connection)
            raise
        return connection

    def drop(self, connection: _Connection | None = None) -> None:
        """Close a connection, the present one unless told."""
        connection = connection or self._connection
        if connection is None:
            return
        if connection is self._connection:
            self._connection = None
        connection.close(reason=CloseReason.SHUTDOWN)

    async def close(self) -> None:
        """Close the connection and wait a moment until it is closed."""
        connection = self._connection
        self.drop()
        if connection is not None:
            await connection.closed()

    def _translated(self, err: BaseException) -> SourceError:
        for cause in _causes(err):
            if isinstance(cause, SourceError):
                return cause
        for cause in _causes(err):
            told = self._told(cause)
            if told is not None:
                return told
        return SourceUnavailable(
            f"broker {self}: the connection was closed by the other side; check the broker and whether the listener "
            f"{self._security.expects}"
        )

    def _told(self, err: BaseException) -> SourceError | None:
        """What one error of the chain means, or None."""
        reason = err.reason if isinstance(err, _Reset) else err
        if isinstance(reason, AnswerTooLarge):
            if reason.looks_like_tls:
                return SourceUnavailable(f"broker {self} speaks TLS at this port; set tls: enable")
            return SourceUnavailable(f"broker {self} sent {reason}; check that a Kafka broker listens there")
        if isinstance(reason, Malformed):
            return SourceUnavailable(f"broker {self} sent an answer that is not Kafka's")
        if isinstance(err, ssl.SSLCertVerificationError):
            return SourceDenied(
                f"broker {self}: its certificate is not trusted ({err.verify_message}); give the right `ca`, or a host "
                "name that the certificate has"
            )
        if isinstance(err, ssl.SSLError):
            return self._tls_refused(err)
        if isinstance(err, kafka_errors.AuthenticationFailedError | kafka_errors.SaslAuthenticationFailed):
            return SourceDenied(f"broker {self} refused the credentials of SASL {self._security.mechanism}")
        if isinstance(err, kafka_errors.UnsupportedSaslMechanismError):
            return SourceDenied(
                f"broker {self} does not offer SASL {self._security.mechanism} at this port; set another `sasl`"
            )
        if isinstance(err, kafka_errors.IllegalSaslStateError):
            return SourceDenied(f"broker {self} wants no SASL at this port; set sasl: none or use another port")
        if isinstance(err, ConnectionRefusedError):
            return SourceUnavailable(f"broker {self} refused the connection; check that it runs and listens there")
        if isinstance(err, OSError) and not isinstance(err, ConnectionError):
            return SourceUnavailable(f"broker {self} can't be reached ({err.strerror or type(err).__name__})")
        return None

    def _tls_refused(self, err: ssl.SSLError) -> SourceError:
        text = str(err.reason or "")
        if "ALERT" in text and any(
            word in text for word in ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE", "ACCESS_DENIED")
        ):
            return SourceDenied(f"broker {self} refused our certificate, or wants one; check `cert` and `key`")
        return SourceUnavailable(f"broker {self}: the TLS handshake failed; check that it speaks TLS at this port")


class _Broken(Exception):
    """A connection broke under a request."""

    def __init__(self, translated: SourceError) -> None:
        self.translated = translated
        super().__init__(str(translated))


def _causes(err: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    this: BaseException | None = err
    while this is not None and this not in chain and len(chain) < 8:
        chain.append(this)
        this = this.__cause__ or this.__context__
    return chain


class Security:
    """What every connection of a client presents. Files of secrets are read anew for each connection."""

    def __init__(self, endpoint: KafkaEndpoint, tokens: TokenProvider | None) -> None:
        self._tls = endpoint.tls
        self._sasl = endpoint.sasl
        self._tokens = tokens
        self._made: tuple[bytes, ssl.SSLContext] | None = None

    @property
    def mechanism(self) -> str:
        """The SASL mechanism."""
        return self._sasl.mechanism if self._sasl else "none"

    @property
    def expects(self) -> str:
        """What we speak, for messages."""
        return f"{'speaks' if self._tls else 'speaks no'} TLS and {'asks for' if self._sasl else 'asks for no'} SASL"

    async def options(self) -> dict[str, Any]:
        """Aiokafka's arguments. Raises SourceDenied where certificates or secrets can't be used."""
        options: dict[str, Any] = {}
        if self._tls is not None:
            options["ssl_context"] = await self._ssl_context(self._tls)
        if self._sasl is not None:
            options.update(self._sasl_options(self._sasl))
        options["security_protocol"] = {
            (False, False): "PLAINTEXT",
            (True, False): "SSL",
            (False, True): "SASL_PLAINTEXT",
            (True, True): "SASL_SSL",
        }[self._tls is not None, self._sasl is not None]
        return options

    def _sasl_options(self, sasl: SaslConfig) -> dict[str, Any]:
        options: dict[str, Any] = {"sasl_mechanism": sasl.mechanism}
        if sasl.tokens is not None:
            options["sasl_oauth_token_provider"] = self._tokens
        elif sasl.username is not None and sasl.password is not None:
            options["sasl_plain_username"] = sasl.username.reveal()
            options["sasl_plain_password"] = sasl.password.reveal()
        return options

    async def _ssl_context(self, tls: ClientTls) -> ssl.SSLContext:
        mark = hashlib.sha256("\0".join(tls.texts()).encode()).digest()
        if self._made is None or self._made[0] != mark:
            self._made = mark, await asyncio.to_thread(tls.context)
        return self._made[1]
