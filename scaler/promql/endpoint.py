"""Where a Prometheus API is and who asks: the parameters that the sources share, and what they become.

Names and rules are those of KEDA's `prometheus` trigger (pkg/scalers/prometheus_scaler.go, read at 8b4f083c).
Differences: `apiKey` is applied (KEDA accepts and forgets it); `oauth` and the Azure and GCP identities are
refused; credentials that no auth mode uses are an error; userinfo in the URL is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from scaler.aws import PARAMETERS as AWS_PARAMETERS
from scaler.aws import AwsIdentity, parse_identity, parse_region
from scaler.parameters import Belongs, Parameter, Secret, ValueProblem, Values, parse_map

_OAUTH = "KEDA accepts OAuth for Prometheus but never applies it; use authModes bearer with a token file"
_AZURE = "the Azure identity is not supported; use a connection with authModes bearer and a token file"
_GCP = "the GCP identity is not supported; use a connection with authModes bearer and a token file"

MODES = ("apiKey", "basic", "tls", "bearer", "custom", "oauth")


def _secret(name: str, help_text: str, *, aliases: tuple[str, ...] = ()) -> Parameter:
    return Parameter(name=name, aliases=aliases, belongs=Belongs.CREDENTIAL, secret=True, help=help_text)


def _refused(name: str, why: str, *, belongs: Belongs = Belongs.CREDENTIAL, aliases: tuple[str, ...] = ()) -> Parameter:
    return Parameter(name=name, aliases=aliases, belongs=belongs, help="not supported", refused=why)


ENDPOINT_PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        name="serverAddress",
        required=True,
        belongs=Belongs.ENDPOINT,
        help="URL of the Prometheus API, to which /api/v1/query is added",
    ),
    Parameter(
        name="queryParameters",
        kind="map",
        belongs=Belongs.ENDPOINT,
        help="further parameters of the URL, such as dedup=true,partial_response=false",
    ),
    Parameter(
        name="customHeaders",
        belongs=Belongs.CREDENTIAL,
        secret=True,  # they often carry tokens or select a tenant
        help="further headers, such as X-Scope-OrgID=team-a",
    ),
    Parameter(
        name="sourceUnsafeSsl",
        kind="flag",
        default=False,
        belongs=Belongs.ENDPOINT,
        help="don't verify the server's certificate (KEDA: unsafeSsl)",
    ),
    Parameter(
        name="timeout",
        kind="duration",
        unit="seconds",
        help="bounds one read, within what the service's own setting allows; 0: the service's own",
    ),
    Parameter(
        name="authModes",
        aliases=("authMode",),
        kind="list",
        allowed=MODES,
        belongs=Belongs.CREDENTIAL,
        help="how to authenticate: at most one of bearer and basic, with tls, custom and apiKey as needed",
    ),
    _secret("bearerToken", "for authModes bearer", aliases=("token",)),
    _secret("username", "for authModes basic"),
    _secret("password", "for authModes basic; may be absent"),
    _secret("ca", "PEM certificates to trust instead of the system's"),
    _secret("cert", "PEM client certificate, for authModes tls"),
    _secret("key", "PEM key of the client certificate, for authModes tls"),
    Parameter(name="customAuthHeader", belongs=Belongs.CREDENTIAL, help="name of the header, for authModes custom"),
    _secret("customAuthValue", "value of the header, for authModes custom"),
    _secret("apiKey", "for authModes apiKey (KEDA accepts it for Prometheus but never sends it)"),
    Parameter(
        name="method",
        allowed=("header", "query"),
        default="header",
        belongs=Belongs.CREDENTIAL,
        help="where apiKey goes",
    ),
    Parameter(
        name="keyParamName",
        belongs=Belongs.CREDENTIAL,
        help="name under which apiKey goes; X-API-KEY as header, api_key as query parameter unless set",
    ),
    Parameter(name="awsRegion", belongs=Belongs.ENDPOINT, help="signs with SigV4, for Amazon Managed Prometheus"),
    *AWS_PARAMETERS,
    Parameter(
        name="cortexOrgId",
        belongs=Belongs.CREDENTIAL,
        help="retired by KEDA; ignored",
        retired="use customHeaders: X-Scope-OrgID=...",
    ),
    *(_refused(name, _OAUTH) for name in ("oauthTokenURI", "clientID", "clientSecret", "endpointParams")),
    _refused("scopes", _OAUTH, aliases=("scope",)),
    *(_refused(name, _AZURE, belongs=Belongs.ENDPOINT) for name in ("azureManagedPrometheusResourceURL", "cloud")),
    *(
        _refused(name, _GCP)
        for name in (
            "GoogleApplicationCredentials",
            "GoogleApplicationCredentialsFile",
            "credentials",
            "credentialsFromEnvFile",
        )
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One Prometheus API and who asks. Hashable: what is equal shares a client."""

    url: str
    host: str
    port: int
    verify: bool = True
    ca: Secret | None = None
    cert: Secret | None = None
    key: Secret | None = None
    bearer_token: Secret | None = None
    username: Secret | None = None
    password: Secret | None = None
    headers: Secret | None = None
    header_name: str | None = None
    header_value: Secret | None = None
    api_key: Secret | None = None
    api_key_parameter: str | None = None
    api_key_header: str | None = None
    aws_region: str | None = None
    aws: AwsIdentity | None = None

    @property
    def tls(self) -> bool:
        """Whether it is reached by https."""
        return self.url.startswith("https:")

    @property
    def name(self) -> str:
        """Host, port and path, for people and for keys: holds no credentials."""
        return self.url.partition("://")[2]

    @property
    def sends_credentials(self) -> bool:
        """Whether requests carry something to steal."""
        secrets = (self.bearer_token, self.password, self.header_value, self.api_key)
        return any(secret is not None for secret in secrets)


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
# These frame the request or name the server; a tenant has no business in them.
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "upgrade"})
# Ours to send; KEDA appends a user's behind them, where Prometheus ignores it.
OWN_QUERY_PARAMETERS = frozenset({"query", "time", "timeout"})


def parse_headers(text: str) -> tuple[tuple[str, str], ...]:
    """Header names and values from `customHeaders`. Raises ValueProblem, whose text holds no value."""
    try:
        pairs = parse_map(text)
    except ValueProblem as err:
        raise ValueProblem('expected comma separated pairs such as "X-Scope-OrgID=team-a,X-Other=value"') from err
    for name, value in pairs:
        check_header(name, value)
    return pairs


def check_header(name: str, value: str = "") -> None:
    """Raise ValueProblem, whose text holds no value, where this may not be sent as a header."""
    if not _HEADER_NAME.fullmatch(name):
        raise ValueProblem("a header's name may have letters, digits and hyphens only")
    if name.lower() in _OWN_HEADERS:
        raise ValueProblem(f"the header {name} is not yours to set")
    if any(character < " " or character == "\x7f" or character > "\xff" for character in value):
        raise ValueProblem(f"the value of header {name} has characters that no header may have")


def parse_server(values: Values) -> Server:
    """Endpoint and credentials from metadata or a connection, with problems reported."""
    url, host, port = _address(values)
    modes = values.items("authModes") or ()
    if "oauth" in modes:
        values.problem("authModes", f"oauth is not supported: {_OAUTH}", value="oauth")
    if {"bearer", "basic"} <= set(modes):
        values.problem("authModes", "expected at most one of bearer and basic", value=",".join(modes))
    _check_modes(values, modes)
    identity = parse_identity(values)
    region = parse_region(values)
    if region is not None and identity is None:
        values.problem(
            "awsRegion",
            "no AWS credentials to sign with: name a connection, or give awsAccessKeyID and awsSecretAccessKey",
            value=region,
        )
    if not values.given("awsRegion") and identity is not None:
        values.problem("awsRegion", "required with AWS credentials: the region of the managed Prometheus")
    if identity is not None and modes:
        values.problem("authModes", "can't be combined with AWS credentials", value=",".join(modes))
    _check_headers(values)
    for name, _ in values.pairs("queryParameters") or ():
        if name in OWN_QUERY_PARAMETERS or not name:
            values.problem("queryParameters", "query, time and timeout are set by the service itself", value=name)
    api_key = values.secret("apiKey") if "apiKey" in modes else None
    as_query = values.text("method") == "query"
    key_name = values.text("keyParamName")
    if api_key is not None and not as_query and key_name is not None:
        try:
            check_header(key_name)
        except ValueProblem as err:
            values.problem("keyParamName", str(err), value=key_name)
    return Server(
        url=url,
        host=host,
        port=port,
        verify=not values.flag("sourceUnsafeSsl"),
        ca=values.secret("ca"),
        cert=values.secret("cert") if "tls" in modes else None,
        key=values.secret("key") if "tls" in modes else None,
        bearer_token=values.secret("bearerToken") if "bearer" in modes else None,
        username=values.secret("username") if "basic" in modes else None,
        password=values.secret("password") if "basic" in modes else None,
        headers=values.secret("customHeaders"),
        header_name=values.text("customAuthHeader") if "custom" in modes else None,
        header_value=values.secret("customAuthValue") if "custom" in modes else None,
        api_key=api_key,
        api_key_header=(key_name or "X-API-KEY") if api_key is not None and not as_query else None,
        api_key_parameter=(key_name or "api_key") if api_key is not None and as_query else None,
        aws_region=region,
        aws=identity,
    )


def _address(values: Values) -> tuple[str, str, int]:
    text = values.text("serverAddress")
    if text is None:
        return "", "", 0
    expected = "expected an http or https URL such as http://prometheus.monitoring:9090"
    # Where it may hold a password, the value is not repeated.
    if "@" in text:
        values.problem("serverAddress", "it may not hold user and password; use authModes basic, or a connection")
        return "", "", 0
    if "?" in text or "#" in text:
        values.problem("serverAddress", "it may not have a query or fragment; use queryParameters")
        return "", "", 0
    try:
        parts = urlsplit(text)
        port = parts.port
        host = parts.hostname or ""
    except ValueError:
        values.problem("serverAddress", expected, value=text)
        return "", "", 0
    fine = parts.scheme in {"http", "https"} and host and port != 0
    if not fine or any(character <= " " or character == "\x7f" for character in text):
        values.problem("serverAddress", expected, value=text)
        return "", "", 0
    try:
        host.encode("idna")
    except UnicodeError:
        values.problem("serverAddress", expected, value=text)
        return "", "", 0
    return text.rstrip("/"), host, port or (443 if parts.scheme == "https" else 80)


# What each mode needs, and what only makes sense with it. `ca` works without a mode, as in KEDA.
_NEEDS = {
    "bearer": ("bearerToken",),
    "basic": ("username",),
    "tls": ("cert", "key"),
    "custom": ("customAuthHeader", "customAuthValue"),
    "apiKey": ("apiKey",),
}
_USES = {**_NEEDS, "basic": ("username", "password")}


def _check_modes(values: Values, modes: tuple[str, ...]) -> None:
    for mode, names in _NEEDS.items():
        if mode in modes:
            for name in names:
                if not values.given(name):
                    values.problem(name, f"required with authModes {mode}")
    for mode, names in _USES.items():
        if mode not in modes:
            for name in names:
                if values.given(name):
                    values.problem(name, f"nothing uses it; add {mode} to authModes or remove it")


def _check_headers(values: Values) -> None:
    headers = values.secret("customHeaders")
    if headers is not None and headers.path is None:
        try:
            parse_headers(headers.reveal())
        except ValueProblem as err:
            values.problem("customHeaders", str(err))
    name = values.text("customAuthHeader")
    if name is not None:
        try:
            check_header(name)
        except ValueProblem as err:
            values.problem("customAuthHeader", str(err), value=name)


def server_warnings(server: Server) -> tuple[str, ...]:
    """What is odd about how the server is reached."""
    warnings = []
    if server.tls and not server.verify:
        warnings.append("sourceUnsafeSsl: the server's certificate is not verified; give its ca instead")
    if not server.tls and server.sends_credentials:
        warnings.append("serverAddress: credentials are sent over plain http; use https")
    return tuple(warnings)
