"""KEDA's RPCs: translate in, translate out.

Requests arrive as bytes and are parsed here, so that what is no protobuf (a string that is not UTF-8) gets a
clear error. Answers are bytes that the workload keeps until its decision changes. Which workload a call means
is told by its ScaledObjectRef, serialised with sorted keys: one lookup, no parsing.

Each unary call has a quick way, synchronous, for when nothing is new, and the whole way for everything else.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from scaler._generated import externalscaler_pb2 as pb
from scaler.errors import (
    LimitReached,
    MetricUnknown,
    NamespaceDenied,
    PilotlightError,
    Problem,
    SettingsInvalid,
    TriggerInvalid,
    quoted,
)
from scaler.evaluator import Evaluator, published
from scaler.settings import ClientRule, LimitSettings, ServerSettings, Settings, TlsSettings
from scaler.telemetry import Telemetry
from scaler.workload import Stream, Workload

SERVICE: Final = "externalscaler.ExternalScaler"

# gRPC sends the detail as a header, where a byte other than printable ASCII takes three (%XX); clients take 8 KiB of
# headers in all, and answer RESOURCE_EXHAUSTED themselves where there is more.
_DETAIL_BYTES = 4_000

# Longer references are known by their digest: kept keys must not be as large as callers like.
_KEY_BYTES = 1_024

_ACTIVE = pb.IsActiveResponse(result=True).SerializeToString()
_INACTIVE = pb.IsActiveResponse(result=False).SerializeToString()

Context = grpc.aio.ServicerContext[Any, Any]
Unary = Callable[[bytes, Context], Awaitable[bytes]]
if TYPE_CHECKING:
    Methods = dict[str, grpc.RpcMethodHandler[Any, Any]]  # not generic when it runs
MessageT = TypeVar("MessageT", bound=Message)


class ExternalScaler:
    """The service `externalscaler.ExternalScaler` over the evaluator."""

    def __init__(self, evaluator: Evaluator, settings: Settings, telemetry: Telemetry) -> None:
        self._evaluator = evaluator
        self._server = settings.server
        self._telemetry = telemetry
        self._callers = Callers(settings.server.clients) if settings.server.clients else None

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve all five RPCs."""
        guard = Guard(self._telemetry, SERVICE)
        hurry = self._callers is None  # the quick way asks nobody who they are
        methods: Methods = {
            "GetMetrics": guard.unary("GetMetrics", self.get_metrics, quick=self._quick_metrics if hurry else None),
            "IsActive": guard.unary("IsActive", self.is_active, quick=self._quick_active if hurry else None),
            "GetMetricSpec": guard.unary("GetMetricSpec", self.get_metric_spec),
            "StreamIsActive": guard.stream("StreamIsActive", self.stream_is_active),
        }
        if self._server.stream_metric_spec:  # else gRPC itself answers UNIMPLEMENTED, and KEDA stays with GetMetricSpec
            methods["StreamMetricSpec"] = guard.stream("StreamMetricSpec", self.stream_metric_spec)
        add_methods(server, SERVICE, methods)

    def _quick_metrics(self, request: bytes) -> bytes | None:
        """GetMetrics where the answer lies ready; None: go the whole way."""
        message = pb.GetMetricsRequest()
        message.ParseFromString(request)
        workload = self._evaluator.undisturbed(_key(message.scaledObjectRef))
        if workload is None or message.metricName != workload.trigger.metric_name:
            return None
        return workload.metrics_body

    def _quick_active(self, request: bytes) -> bytes | None:
        """IsActive where the answer lies ready; None: go the whole way."""
        ref = pb.ScaledObjectRef()
        ref.ParseFromString(request)
        workload = self._evaluator.undisturbed(_key(ref))
        if workload is None or (last := workload.memory.last) is None:
            return None
        return _ACTIVE if last.active else _INACTIVE

    async def get_metrics(self, request: bytes, context: Context) -> bytes:
        """The metric's value; an error where there is none, so that KEDA's fallback can start."""
        message = parsed(pb.GetMetricsRequest, request)
        workload = self._workload(message.scaledObjectRef, context)
        trigger = workload.trigger
        if message.metricName != trigger.metric_name:
            raise MetricUnknown(
                f"metric {quoted(message.metricName)} of {quoted(workload.label)} is not known; "
                f"GetMetricSpec announces {quoted(trigger.metric_name)}"
            )
        answer = self._evaluator.metrics(workload)
        if workload.restored or isinstance(answer, PilotlightError):
            await self._evaluator.first(workload)
            answer = self._evaluator.metrics(workload)
            if isinstance(answer, PilotlightError):
                raise answer
        body = workload.metrics_body
        if body is None:
            value, integer = published(answer.metric_value)
            body = workload.metrics_body = pb.GetMetricsResponse(
                metricValues=[
                    pb.MetricValue(metricName=trigger.metric_name, metricValue=integer, metricValueFloat=value)
                ]
            ).SerializeToString()
        return body

    async def is_active(self, request: bytes, context: Context) -> bytes:
        """Whether there is work; an error only where that was never known."""
        workload = self._workload(parsed(pb.ScaledObjectRef, request), context)
        answer = self._evaluator.is_active(workload)
        if workload.restored or isinstance(answer, PilotlightError):
            await self._evaluator.first(workload)
            answer = self._evaluator.is_active(workload)
            if isinstance(answer, PilotlightError):
                raise answer
        return _ACTIVE if answer else _INACTIVE

    async def get_metric_spec(self, request: bytes, context: Context) -> bytes:
        """Name and target of the metric, from the metadata and the last decision alone."""
        return _spec(self._workload(parsed(pb.ScaledObjectRef, request), context))

    async def stream_is_active(self, request: bytes, context: Context) -> None:
        """The current state, then `true` whenever KEDA should know, until shortly before the connection ends."""
        workload = self._workload(parsed(pb.ScaledObjectRef, request), context, called=False)
        if workload.trigger.refusal is not None or (workload.query is None and not workload.superseded):
            answer = self._evaluator.is_active(workload)
            if isinstance(answer, PilotlightError):
                raise answer
        await self._serve(workload, context, specs=False)

    async def stream_metric_spec(self, request: bytes, context: Context) -> None:
        """The spec at once, and again when the target changes; always what GetMetricSpec would answer."""
        await self._serve(
            self._workload(parsed(pb.ScaledObjectRef, request), context, called=False), context, specs=True
        )

    async def _serve(self, workload: Workload, context: Context, *, specs: bool) -> None:
        stream: Stream = self._evaluator.open_stream(workload, specs=specs)
        try:
            while (message := await stream.take()) is not None:
                state = _ACTIVE if message else _INACTIVE
                body = _spec(message) if isinstance(message, Workload) else state
                async with asyncio.timeout(self._server.stream_write_seconds):
                    await context.write(body)
        except TimeoutError:
            raise LimitReached(
                f"the stream's client did not take a message within {self._server.stream_write_seconds:g} s "
                "(server.streamWriteSeconds)"
            ) from None
        finally:
            self._evaluator.close_stream(stream)

    def _workload(self, ref: pb.ScaledObjectRef, context: Context, *, called: bool = True) -> Workload:
        """Whom the call means; admitted where it is new. Raises NamespaceDenied, TriggerInvalid, LimitReached."""
        if self._callers is not None:
            self._callers.check(context, ref.namespace)
        key = _key(ref)
        workload = self._evaluator.known(key, called=called)
        if workload is not None:
            return workload
        # A copy: reading a key that a protobuf map lacks would insert it.
        return self._evaluator.admit(key, ref.namespace, ref.name, dict(ref.scalerMetadata), called=called)


def _key(ref: pb.ScaledObjectRef) -> bytes:
    """What tells one workload from another: the whole reference, or its digest where that is long."""
    key = ref.SerializeToString(deterministic=True)
    return key if len(key) <= _KEY_BYTES else blake2b(key, digest_size=32).digest()


def _spec(workload: Workload) -> bytes:
    body = workload.spec_body
    if body is None:
        target, integer = published(workload.target_value)
        body = workload.spec_body = pb.GetMetricSpecResponse(
            metricSpecs=[
                pb.MetricSpec(
                    metricName=workload.trigger.metric_name,
                    # The API server refuses an HPA whose target is not above zero.
                    targetSize=max(integer, 1),
                    targetSizeFloat=max(target, 0.001),
                )
            ]
        ).SerializeToString()
    return body


def parsed(kind: type[MessageT], request: bytes) -> MessageT:
    """The message in `request`. Raises TriggerInvalid where it is none."""
    try:
        message = kind()
        message.ParseFromString(request)
    except DecodeError as err:
        problem = Problem(field=kind.DESCRIPTOR.name, expected="expected a protobuf message with UTF-8 strings")
        raise TriggerInvalid((problem,), subject="request") from err
    return message


class Callers:
    """Which namespaces a client certificate may speak for."""

    def __init__(self, rules: tuple[ClientRule, ...]) -> None:
        self._rules = rules

    def check(self, context: Context, namespace: str) -> None:
        """Raise NamespaceDenied unless a rule binds one of the caller's names to `namespace`."""
        names = caller_names(context)
        for rule in self._rules:
            if rule.name in names and any(fnmatchcase(namespace, pattern) for pattern in rule.namespaces):
                return
        shown = quoted(", ".join(sorted(names)) or "without a certificate")
        raise NamespaceDenied(
            f"client {shown} may not speak for namespace {quoted(namespace)}; add it to server.clients"
        )


def caller_names(context: Context) -> set[str]:
    """The names in the caller's verified certificate: subject alternative names and common name."""
    auth = context.auth_context()
    return {
        name.decode(errors="replace")
        for key in ("x509_subject_alternative_name", "x509_common_name")
        for name in auth.get(key, ())
    }


class Guard:
    """The one place where errors become gRPC codes, for unary calls and streams alike.

    The code is the error class's own or inherited `grpc_code`. What is no PilotlightError is our bug: logged
    with its traceback, told as INTERNAL without detail.
    """

    def __init__(self, telemetry: Telemetry, service: str) -> None:
        self._telemetry = telemetry
        self._service = service

    def unary(
        self, name: str, method: Unary, *, quick: Callable[[bytes], bytes | None] | None = None
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """A handler of a call with one answer. `quick` is asked first; its failures are left to `method`."""
        observe = self._telemetry.rpc_histogram(name).observe

        async def handle(request: bytes, context: Context) -> bytes:
            started = time.perf_counter()
            try:
                if quick is not None:
                    try:
                        answer = quick(request)
                    except DecodeError:
                        answer = None
                    if answer is not None:
                        return answer
                return await method(request, context)
            except Exception as err:  # noqa: BLE001 - the border: whatever comes is translated
                await self._abort(name, err, context)
            finally:
                observe(time.perf_counter() - started)

        return grpc.unary_unary_rpc_method_handler(handle)

    def stream(
        self, name: str, method: Callable[[bytes, Context], Awaitable[None]]
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """A handler of a call that answers for as long as it likes."""

        async def handle(request: bytes, context: Context) -> None:
            try:
                await method(request, context)
            except Exception as err:  # noqa: BLE001 - the border: whatever comes is translated
                await self._abort(name, err, context)

        return grpc.unary_stream_rpc_method_handler(handle)

    async def _abort(self, name: str, err: Exception, context: Context) -> NoReturn:
        if isinstance(err, PilotlightError):
            code, detail = grpc.StatusCode[err.grpc_code], str(err)
        elif isinstance(err, grpc.aio.AbortError | grpc.aio.UsageError):
            raise err
        else:
            self._telemetry.bug("rpc_failed", err, method=f"{self._service}/{name}")
            code, detail = grpc.StatusCode.INTERNAL, "an internal error; Pilotlight's log has the detail"
        self._telemetry.rpc_ended(name, code.name)
        await context.abort(code, _bounded(detail))


def _bounded(detail: str) -> str:
    """`detail`, cut where gRPC's percent-encoding of it would exceed `_DETAIL_BYTES`."""
    if 12 * len(detail) <= _DETAIL_BYTES:  # a character is four bytes at most, and three times as much when encoded
        return detail
    room_bytes = _DETAIL_BYTES - _encoded_bytes("…")
    used_bytes = kept = 0
    for number, character in enumerate(detail):
        used_bytes += _encoded_bytes(character)
        if used_bytes <= room_bytes:
            kept = number + 1
        if used_bytes > _DETAIL_BYTES:
            return detail[:kept] + "…"
    return detail


def _encoded_bytes(character: str) -> int:
    return 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode(errors="replace"))


# --- the listener ---


def add_methods(server: grpc.aio.Server, service: str, methods: Methods) -> None:
    """Serve `methods`. Registered methods are found 30 microseconds sooner than generic ones (grpcio 1.85)."""
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    server.add_registered_method_handlers(service, methods)


def server_options(server: ServerSettings, limits: LimitSettings) -> list[tuple[str, int]]:
    """What suits KEDA's grpc-go client: it sends no keepalives of its own, keeps one connection, never closes it."""
    age_ms = int(server.max_connection_age_seconds * 1000)
    # A stream may have been opened just before the connection's age; it ends by itself within 0.8 of the age.
    grace_ms = int(server.max_connection_age_seconds * 800 + server.max_connection_age_grace_seconds * 1000)
    return [
        ("grpc.so_reuseport", 0),  # a second process on the port is a mistake, not a helper
        ("grpc.max_receive_message_length", limits.message_bytes),
        # After a restart KEDA opens all its streams at once; by default gRPC turns away those above 1,000.
        ("grpc.server.max_pending_requests", limits.streams),
        ("grpc.server.max_pending_requests_hard_limit", 2 * limits.streams),
        ("grpc.max_connection_age_ms", age_ms),
        ("grpc.max_connection_age_grace_ms", grace_ms),
        # We ask whether the client still lives, so that streams of a vanished KEDA don't pile up.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Clients that do send keepalives are not turned away for it.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def server_credentials(tls: TlsSettings, *, setting: str) -> grpc.ServerCredentials:
    """Credentials that follow the certificate's files. Raises SettingsInvalid where `setting` names no usable ones."""
    files = _CertificateFiles(tls)
    try:
        _check_certificates(tls, setting)
        first = files.load()
    except OSError as err:
        raise SettingsInvalid(
            f"{setting}: the TLS files can't be read: {quoted(err.filename)} ({type(err).__name__})"
        ) from err
    return grpc.dynamic_ssl_server_credentials(
        first, files.fetch, require_client_authentication=tls.client_ca_file is not None
    )


def _check_certificates(tls: TlsSettings, setting: str) -> None:
    """Raise SettingsInvalid where gRPC could not use the files: it only says that it can't bind. OSError: no file."""
    for field, path in (("certFile", tls.cert_file), ("clientCaFile", tls.client_ca_file)):
        if path is None:
            continue
        text = _pem(path)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=text)
        except (ssl.SSLError, ValueError) as err:
            raise SettingsInvalid(f"{setting}.{field} {quoted(path)}: expected certificates in PEM form") from err
    _pem(tls.key_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")  # which keys are strong enough is for gRPC to say
    try:
        # The password is always given, or OpenSSL would ask for it on the terminal.
        context.load_cert_chain(tls.cert_file, tls.key_file, password="")
    except ssl.SSLError as err:
        if err.reason == "KEY_VALUES_MISMATCH":
            expected = f"expected the private key of the first certificate in certFile {quoted(tls.cert_file)}"
        else:
            expected = "expected a private key in PEM form, without a password"
        raise SettingsInvalid(f"{setting}.keyFile {quoted(tls.key_file)}: {expected}") from err


def _pem(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - a setting's own path
        return file.read()


class _CertificateFiles:
    """Reads the certificate anew when one of its files has changed. Called from gRPC's threads, at each handshake."""

    def __init__(self, tls: TlsSettings) -> None:
        self._tls = tls
        self._seen: tuple[tuple[int, int], ...] = ()

    def load(self) -> Any:
        """The configuration that the files hold now."""
        tls = self._tls
        self._seen = self._stamps()
        with open(tls.key_file, "rb") as key, open(tls.cert_file, "rb") as cert:  # noqa: PTH123 - bytes of two files
            pair = (key.read(), cert.read())
        authority = None
        if tls.client_ca_file is not None:
            with open(tls.client_ca_file, "rb") as file:  # noqa: PTH123 - as above
                authority = file.read()
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=authority)

    def fetch(self) -> Any:
        """A new configuration, or None to keep the one in use."""
        try:
            return self.load() if self._stamps() != self._seen else None
        except OSError:
            return None  # half a rotation: the old certificate serves until the files are whole again

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        tls = self._tls
        paths = [path for path in (tls.cert_file, tls.key_file, tls.client_ca_file) if path is not None]
        return tuple((status.st_mtime_ns, status.st_ino) for status in map(os.stat, paths))
