"""KEDA's `rabbitmq` metadata into one frozen configuration. Pure.

Rules: KEDA's rabbitmq_scaler.go at 8b4f083c and https://keda.sh/docs/2.21/scalers/rabbitmq-queue/.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import re2

from scaler.errors import SourceDenied
from scaler.parameters import Belongs, Parameter, Secret, ValueProblem, Values, parse_query
from scaler.tls import ClientTls

DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671, "http": 80, "https": 443}
# RabbitMQ's management API answers 400 to larger pages (rabbit_mgmt_util.erl).
LARGEST_PAGE = 500
_DEFAULT_QUEUE_LENGTH = 20.0  # KEDA: defaultRabbitMQQueueLength
_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})")
_PATH_SAFE = "%:@!$&'()*+,;=~"  # RFC 3986 pchar: what is percent-encoded already stays as it is
_NAME_BYTES = 255  # AMQP's short string, for queues and virtual hosts
_URI_EXPECTED = (
    'expected a URI such as "amqp://user:password@rabbitmq.example:5672/vhost" or '
    '"https://user:password@rabbitmq.example:15671/vhost", with odd characters percent-encoded'
)
_HTTP_ONLY = "needs the management API: use an http or https host"


class Mode(Enum):
    """What is measured, by KEDA's names."""

    QUEUE_LENGTH = "QueueLength"
    MESSAGE_RATE = "MessageRate"
    DELIVER_GET_RATE = "DeliverGetRate"
    PUBLISHED_TO_DELIVERED_RATIO = "PublishedToDeliveredRatio"
    EXPECTED_QUEUE_CONSUMPTION_TIME = "ExpectedQueueConsumptionTime"


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuth:
    """Client credentials for tokens (RFC 6749, section 4.4). `parameters` is URL query syntax."""

    token_url: str
    client_id: Secret
    client_secret: Secret
    scopes: tuple[str, ...] = ()
    parameters: Secret | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server and who we are there. `base_path` is "" or "/path", and "" with AMQP."""

    scheme: str
    host: str
    port: int
    base_path: str = ""
    tls: ClientTls = field(default_factory=ClientTls)
    username: Secret | None = None
    password: Secret | None = None
    oauth: OAuth | None = None
    external: bool = False  # SASL EXTERNAL: the client certificate says who we are

    @property
    def is_amqp(self) -> bool:
        """Whether it is read by AMQP (else: by the management API)."""
        return self.scheme in ("amqp", "amqps")

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return self.scheme in ("amqps", "https")

    @property
    def place(self) -> str:
        """`host:port/base`, for people: no credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}{self.base_path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitConfig:
    """One trigger. `timeout_seconds` None: the service's own."""

    server: Server
    vhost: str
    queue: str
    mode: Mode = Mode.QUEUE_LENGTH
    value: float = _DEFAULT_QUEUE_LENGTH
    activation_value: float = 0.0
    regex: bool = False
    operation: str = "sum"
    page_size: int = 100
    exclude_unacknowledged: bool = False
    timeout_seconds: float | None = None
    warnings: tuple[str, ...] = ()


PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        name="host",
        required=True,
        belongs=Belongs.ENDPOINT,
        secret=True,
        help="URI of the server, amqp(s)://host:port/vhost or http(s)://host:port/base/vhost; the last part of the "
        "path is the virtual host",
    ),
    Parameter(name="queueName", required=True, help="name of the queue, or a regular expression with useRegex"),
    Parameter(
        name="protocol",
        allowed=("auto", "amqp", "http"),
        default="auto",
        belongs=Belongs.ENDPOINT,
        help="how it is read; auto follows the host's scheme",
    ),
    Parameter(
        name="mode",
        allowed=tuple(mode.value for mode in Mode),
        help="what is measured; all but QueueLength need the management API",
    ),
    Parameter(
        name="value",
        kind="number",
        minimum=0.001,
        help="the target, in the unit of the mode: messages, messages per second, a ratio, or seconds",
    ),
    Parameter(
        name="queueLength",
        kind="number",
        minimum=0.001,
        unit="messages",
        help="KEDA's deprecated form of mode QueueLength with this value",
    ),
    Parameter(
        name="activationValue",
        activation=True,
        kind="number",
        default=0.0,
        help="active when the mode's value is above this, strictly",
    ),
    Parameter(
        name="vhostName",
        help="virtual host, in place of the one in the host's path",
    ),
    Parameter(
        name="useRegex",
        kind="flag",
        default=False,
        help="queueName is a regular expression (RE2 syntax, found anywhere in the name, case ignored, as RabbitMQ's "
        "management API does); management API only",
    ),
    Parameter(
        name="operation",
        allowed=("sum", "avg", "max"),
        default="sum",
        help="how the queues that match a regular expression become one",
    ),
    Parameter(
        name="pageSize",
        kind="integer",
        minimum=1,
        default=100,
        unit="queues",
        help="queues a request asks for with useRegex; all pages are read, RabbitMQ allows at most 500 a page",
    ),
    Parameter(
        name="excludeUnacknowledged",
        kind="flag",
        default=False,
        help="messages that a consumer works on don't count; management API only",
    ),
    Parameter(
        name="timeout",
        kind="duration",
        above=0,
        maximum=60,
        unit="seconds",
        help="time allowed for one request to the management API; readTimeoutSeconds of the service unless set",
    ),
    Parameter(
        name="username",
        belongs=Belongs.CREDENTIAL,
        secret=True,
        help="user, in place of the one in the host; with password",
    ),
    Parameter(
        name="password",
        belongs=Belongs.CREDENTIAL,
        secret=True,
        help="password, in place of the one in the host; with username",
    ),
    Parameter(
        name="tls",
        allowed=("enable", "disable"),
        default="disable",
        belongs=Belongs.ENDPOINT,
        help="use ca, cert and key; the host's scheme decides whether the connection is encrypted",
    ),
    Parameter(
        name="ca",
        belongs=Belongs.ENDPOINT,
        secret=True,
        help="certificate authority (PEM) to trust besides the system's; with tls enable",
    ),
    Parameter(
        name="cert",
        belongs=Belongs.CREDENTIAL,
        secret=True,
        help="client certificate (PEM); with key and tls enable. With AMQP and no password it is the identity (SASL "
        "EXTERNAL)",
    ),
    Parameter(name="key", belongs=Belongs.CREDENTIAL, secret=True, help="private key (PEM) of cert"),
    Parameter(name="keyPassword", belongs=Belongs.CREDENTIAL, secret=True, help="password that opens key"),
    Parameter(
        name="sourceUnsafeSsl",
        kind="flag",
        default=False,
        belongs=Belongs.ENDPOINT,
        help="accept any certificate of the server; KEDA's unsafeSsl, whose name belongs to KEDA's connection to "
        "Pilotlight",
    ),
    Parameter(
        name="oauthTokenURI",
        belongs=Belongs.CREDENTIAL,
        help="token endpoint for OAuth 2.0 client credentials; management API only",
    ),
    Parameter(name="clientID", belongs=Belongs.CREDENTIAL, secret=True, help="OAuth 2.0 client"),
    Parameter(name="clientSecret", belongs=Belongs.CREDENTIAL, secret=True, help="its secret"),
    Parameter(
        name="scopes",
        aliases=("scope",),
        kind="list",
        belongs=Belongs.CREDENTIAL,
        help="OAuth 2.0 scopes, comma separated",
    ),
    Parameter(
        name="endpointParams",
        belongs=Belongs.CREDENTIAL,
        secret=True,
        help='more parameters of the token request, in URL query syntax ("audience=rabbitmq")',
    ),
    Parameter(
        name="workloadIdentityResource",
        belongs=Belongs.CREDENTIAL,
        help="Azure workload identity",
        refused="Azure workload identity is not built in; use OAuth 2.0 client credentials (oauthTokenURI, clientID, "
        "clientSecret) or a user with a password",
    ),
)


def parse(values: Values) -> RabbitConfig:
    """The configuration; what is wrong across fields goes to `values.problem`."""
    server, uri_path, warnings = _server(values)
    known = server is not None and server.scheme != ""
    amqp = known and server is not None and server.is_amqp
    mode, value = _mode(values, amqp=amqp, warnings=warnings)
    queue = values.text("queueName") or ""
    regex = values.flag("useRegex")
    if regex and amqp:
        values.problem("useRegex", _HTTP_ONLY)
    if regex and queue:
        try:
            pattern(queue)
        except ValueProblem as err:
            values.problem("queueName", str(err), value=queue)
    elif len(queue.encode("utf-8", "replace")) > _NAME_BYTES:
        values.problem("queueName", f"a queue's name has at most {_NAME_BYTES} bytes", value=queue)
    vhost = _vhost(values, uri_path, amqp=amqp)
    if not amqp:
        for name, text in (("queueName", "" if regex else queue), ("vhostName", vhost)):
            if text in {".", ".."}:  # a step in a URL's path, however it is quoted
                values.problem(name, "the management API can't be asked for this name; use an amqp host", value=text)
    if values.flag("excludeUnacknowledged"):
        if amqp:
            values.problem("excludeUnacknowledged", _HTTP_ONLY)
    elif amqp:
        warnings.append(
            "AMQP counts messages that wait, not those being worked on, so a busy replica looks idle; an http host "
            "(management API) counts both"
        )
    page_size = values.integer("pageSize") or 100
    if page_size > LARGEST_PAGE:
        warnings.append(f"pageSize is above RabbitMQ's limit: {LARGEST_PAGE} is used")
    return RabbitConfig(
        server=server or Server(scheme="", host="", port=0),
        vhost=vhost,
        queue=queue,
        mode=mode,
        value=value,
        activation_value=values.number("activationValue") or 0.0,
        regex=regex,
        operation=values.text("operation") or "sum",
        page_size=min(page_size, LARGEST_PAGE),
        exclude_unacknowledged=values.flag("excludeUnacknowledged"),
        timeout_seconds=None if amqp else values.number("timeout"),
        warnings=tuple(warnings),
    )


@lru_cache(maxsize=4096)
def pattern(text: str) -> Any:
    """The compiled expression: RE2, case ignored.

    RabbitMQ's own filter ignores case too (seen with 3.10); RE2 runs in linear time, whatever a tenant writes.
    Raises ValueProblem.
    """
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    try:
        return re2.compile(text, options)
    except re2.error as err:
        raise ValueProblem(
            "expected a regular expression in RE2 syntax (no look-around, no back-references), not too large"
        ) from err


def _mode(values: Values, *, amqp: bool, warnings: list[str]) -> tuple[Mode, float]:
    """KEDA's rules for mode, value and the deprecated queueLength."""
    given = {name for name in ("mode", "value", "queueLength") if values.given(name)}
    mode = Mode(values.text("mode") or Mode.QUEUE_LENGTH.value)
    value = values.number("value")
    if not given:
        if amqp and values.given("timeout"):
            warnings.append("timeout is for the management API; with AMQP it has no effect")
        return Mode.QUEUE_LENGTH, _DEFAULT_QUEUE_LENGTH
    if "queueLength" in given:
        if given != {"queueLength"}:
            values.problem("queueLength", "deprecated by KEDA and exclusive of mode and value: keep those, remove it")
        value = values.number("queueLength")
        if "mode" not in given:
            mode = Mode.QUEUE_LENGTH
    elif "value" not in given:
        values.problem("value", "required with mode")
    elif "mode" not in given:
        values.problem("mode", "required with value: one of " + ", ".join(mode.value for mode in Mode))
    if amqp and mode is not Mode.QUEUE_LENGTH:
        values.problem("mode", _HTTP_ONLY, value=mode.value)
    if amqp and values.given("timeout"):
        values.problem("timeout", _HTTP_ONLY)
    return mode, _DEFAULT_QUEUE_LENGTH if value is None else value


def _server(values: Values) -> tuple[Server | None, str, list[str]]:
    """The server, the raw path of its URI, and warnings."""
    warnings: list[str] = []
    username, password = values.secret("username"), values.secret("password")
    if (username is None) != (password is None):
        values.problem("username" if username is None else "password", "username and password go together: set both")
    certificate, key = values.secret("cert"), values.secret("key")
    if (certificate is None) != (key is None):
        values.problem("cert" if certificate is None else "key", "cert and key go together: set both")
    oauth, says_oauth = _oauth(values), values.given("oauthTokenURI")
    found = _uri(values)
    if found is None:
        return None, "", warnings
    scheme, host, port, path, user, user_password, has_query = found
    if says_oauth and (username is not None or user is not None):
        values.problem("oauthTokenURI", "OAuth 2.0 excludes a user: remove username, password and those in host")
    if username is None:
        username, password = user, user_password
    amqp = scheme in ("amqp", "amqps")
    if amqp and says_oauth:
        values.problem("oauthTokenURI", _HTTP_ONLY)
    tls_enabled = values.text("tls") == "enable"
    encrypted = scheme in ("amqps", "https")
    if tls_enabled and not encrypted:
        warnings.append(f"tls is enable, but {scheme} is not encrypted: write {scheme}s in host")
    if not tls_enabled and any(values.given(name) for name in ("ca", "cert", "key")):
        warnings.append("ca, cert and key are used with tls enable only")
    if has_query:
        warnings.append("what follows ? or # in host has no effect")
    tls = ClientTls(
        ca=values.secret("ca") if tls_enabled else None,
        certificate=certificate if tls_enabled else None,
        key=key if tls_enabled else None,
        key_password=values.secret("keyPassword") if tls_enabled else None,
        verify=not values.flag("sourceUnsafeSsl"),
    )
    # KEDA: with a client certificate and no password anywhere, the certificate is the identity.
    external = amqp and encrypted and tls.certificate is not None and password is None
    if amqp and not external:
        # KEDA's AMQP library fills in RabbitMQ's own default user.
        username = username or Secret("guest", what="username")
        password = password or Secret("guest", what="password")
    server = Server(
        scheme=scheme,
        host=host,
        port=port,
        base_path="" if amqp else _base_path(path),
        tls=tls,
        username=None if external else username,
        password=None if external else password,
        oauth=oauth,
        external=external,
    )
    return server, path, warnings


def _uri(values: Values) -> tuple[str, str, int, str, Secret | None, Secret | None, bool] | None:
    """(scheme, host, port, raw path, user, password, whether it has a query) or None, with the problem reported.

    No message shows the text: it may hold a password.
    """
    given = values.secret("host")
    if given is None:
        return None
    try:
        text = given.reveal()
    except SourceDenied as err:
        values.problem("host", str(err))
        return None
    try:
        parts = urlsplit(text)
        port = parts.port
        host = parts.hostname
    except ValueError:
        values.problem("host", _URI_EXPECTED)
        return None
    if parts.scheme not in DEFAULT_PORTS or any(character.isspace() for character in text):
        values.problem("host", _URI_EXPECTED)
        return None
    if not host or port == 0 or not _is_host(host):
        values.problem("host", f"the server's name is missing or odd; {_URI_EXPECTED}")
        return None
    amqp = parts.scheme in ("amqp", "amqps")
    wanted = values.text("protocol") or "auto"
    if wanted != "auto" and (wanted == "amqp") != amqp:
        values.problem(
            "protocol", f"it does not fit host, whose scheme is {parts.scheme}; leave it at auto", value=wanted
        )
    user = None if parts.username is None else Secret(_decoded(parts.username), what="user in host")
    password = None if parts.password is None else Secret(_decoded(parts.password), what="password in host")
    if any("\N{REPLACEMENT CHARACTER}" in secret.reveal() for secret in (user, password) if secret is not None):
        values.problem("host", f"user and password must be UTF-8; {_URI_EXPECTED}")
    return (
        parts.scheme,
        host,
        port or DEFAULT_PORTS[parts.scheme],
        parts.path,
        user,
        password,
        bool(parts.query or parts.fragment),
    )


def _decoded(text: str) -> str:
    return unquote(text, errors="replace")


def _is_host(text: str) -> bool:
    if ":" in text:
        try:
            ipaddress.IPv6Address(text)
        except ValueError:
            return False
        return True
    return _HOST_NAME.fullmatch(text) is not None


def _base_path(path: str) -> str:
    """All segments of the path but the last, which is the virtual host. Stays percent-encoded."""
    segments = [segment for segment in path.split("/")[:-1] if segment]
    return "".join(f"/{quote(segment, safe=_PATH_SAFE)}" for segment in segments)


def _vhost(values: Values, path: str, *, amqp: bool) -> str:
    """The virtual host, decoded; "/" where nothing names one.

    By AMQP it is the whole path (amqp091-go's ParseURI), by the management API the last segment.
    """
    named = values.text("vhostName")
    if named is not None:
        vhost = named
    elif amqp:
        vhost = _decoded(path[1:])
    else:
        vhost = _decoded(path.rsplit("/", 1)[-1])
    limit = 127 if amqp else _NAME_BYTES  # AMQP's type path; RabbitMQ itself takes longer names
    if "\N{REPLACEMENT CHARACTER}" in vhost or len(vhost.encode("utf-8", "replace")) > limit:
        values.problem("vhostName" if named else "host", f"a virtual host's name is UTF-8, at most {limit} bytes")
    return vhost or "/"


def _oauth(values: Values) -> OAuth | None:
    """KEDA: the first three of oauthTokenURI, clientID and clientSecret go together."""
    needed = ("oauthTokenURI", "clientID", "clientSecret")
    given = [name for name in needed if values.given(name)]
    if not given:
        if values.given("scopes") or values.given("endpointParams"):
            values.problem("oauthTokenURI", "required with scopes and endpointParams, as are clientID and clientSecret")
        return None
    for name in needed:
        if name not in given:
            values.problem(name, "oauthTokenURI, clientID and clientSecret go together: set all three")
    url = values.text("oauthTokenURI") or ""
    try:
        parts = urlsplit(url)
        odd = parts.port == 0 or not parts.hostname or not _is_host(parts.hostname)
    except ValueError:
        odd = True
        parts = urlsplit("")
    if url and (odd or parts.scheme not in ("http", "https") or parts.username is not None or not url.isprintable()):
        values.problem("oauthTokenURI", 'expected a URL without a user such as "https://login.example/oauth/token"')
    parameters = values.secret("endpointParams")
    if parameters is not None:
        try:
            parse_query(parameters.reveal())
        except (ValueProblem, SourceDenied) as err:
            values.problem("endpointParams", str(err))
    client_id, client_secret = values.secret("clientID"), values.secret("clientSecret")
    if client_id is None or client_secret is None:
        return None
    return OAuth(
        token_url=url,
        client_id=client_id,
        client_secret=client_secret,
        scopes=values.items("scopes") or (),
        parameters=parameters,
    )


def path_segment(text: str) -> str:
    """A virtual host or queue as one segment of a URL's path."""
    return quote(text, safe="", errors="replace")
