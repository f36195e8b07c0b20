"""The metadata of KEDA's `kafka` trigger (and of `apache-kafka` where it differs), parsed.

Names, defaults and rules are those of kafka_scaler.go and apache_kafka_scaler.go (kedacore/keda, read at
8b4f083c). Ours on top: `topic` as a list for `kafka` too, `persistentLagSeconds`, `sourceUnsafeSsl`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from scaler.aws import PARAMETERS as AWS_PARAMETERS
from scaler.aws import AwsIdentity, parse_identity, parse_region
from scaler.parameters import Belongs, Parameter, Secret, ValueProblem, Values
from scaler.sources.kafka.lag import LagRules
from scaler.tls import ClientTls

_KERBEROS = (
    "Kerberos (gssapi) needs system libraries and a ticket cache that this service does not carry; "
    "use SCRAM, OAUTHBEARER or a client certificate"
)

PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        name="bootstrapServers",
        kind="list",
        required=True,
        belongs=Belongs.ENDPOINT,
        help="comma separated host:port of brokers to start from",
    ),
    Parameter(name="consumerGroup", required=True, help="the consumer group whose committed offsets count"),
    Parameter(
        name="topic",
        kind="list",
        help="topic, or several by commas; without it every topic for which the group has committed offsets",
    ),
    Parameter(
        name="partitionLimitation",
        help='partitions that count, such as "1,2,10-20"; all of them unless set; ignored without topic',
    ),
    Parameter(
        name="lagThreshold",
        kind="integer",
        default=10,
        minimum=1,
        unit="messages",
        help="messages per replica: the HPA's target with policy target",
    ),
    Parameter(
        name="activationLagThreshold",
        activation=True,
        kind="integer",
        default=0,
        minimum=0,
        unit="messages",
        help="active while the lag is above this",
    ),
    Parameter(
        name="offsetResetPolicy",
        allowed=("latest", "earliest"),
        default="latest",
        help="where the consumers start in a partition without a valid committed offset (their auto.offset.reset)",
    ),
    Parameter(
        name="allowIdleConsumers",
        kind="flag",
        default=False,
        help="more replicas than partitions are allowed; else the metric is capped at partitions x lagThreshold, and "
        "no policy asks for more replicas than partitions",
    ),
    Parameter(
        name="scaleToZeroOnInvalidOffset",
        kind="flag",
        default=False,
        help="a partition without a valid committed offset counts as no lag; else it keeps one replica (latest) or "
        "counts everything in it (earliest)",
    ),
    Parameter(
        name="excludePersistentLag",
        kind="flag",
        default=False,
        help="leave out of the metric (not of activation) what lies in partitions whose committed offset has not "
        "moved for persistentLagSeconds",
    ),
    Parameter(
        name="persistentLagSeconds",
        kind="number",
        default=120.0,
        above=0,
        maximum=86_400,
        unit="seconds",
        help="with excludePersistentLag: from when on a committed offset that stands still means a stuck partition; "
        "keep it above the time between commits",
    ),
    Parameter(
        name="limitToPartitionsWithLag",
        kind="flag",
        default=False,
        help="cap the metric at partitions with lag x lagThreshold; needs topic",
    ),
    Parameter(
        name="ensureEvenDistributionOfPartitions",
        kind="flag",
        default=False,
        help="round replicas up to a divisor of the number of partitions; needs topic",
    ),
    Parameter(
        name="version",
        default="1.0.0",
        help="checked and otherwise without effect: the protocol is negotiated with each broker",
    ),
    Parameter(
        name="fullMetadata",
        kind="flag",
        default=True,
        help="without effect: only the topics that are needed are ever asked for; false needs topic, as in KEDA",
    ),
    Parameter(name="tls", allowed=("enable", "disable"), default="disable", belongs=Belongs.ENDPOINT, help="speak TLS"),
    # The certificate authority is no secret, but read anew at each connection where it comes from a file.
    Parameter(
        name="ca",
        belongs=Belongs.ENDPOINT,
        secret=True,
        help="certificate authority of the brokers, PEM; trusted besides the system's",
    ),
    Parameter(
        name="sourceUnsafeSsl",
        kind="flag",
        default=False,
        belongs=Belongs.ENDPOINT,
        help="accept any certificate of the brokers (KEDA's unsafeSsl of this trigger)",
    ),
    Parameter(name="cert", belongs=Belongs.CREDENTIAL, secret=True, help="client certificate, PEM; together with key"),
    Parameter(name="key", belongs=Belongs.CREDENTIAL, secret=True, help="private key of cert, PEM"),
    Parameter(name="keyPassword", belongs=Belongs.CREDENTIAL, secret=True, help="password of key, where it has one"),
    Parameter(
        name="sasl",
        allowed=("none", "plaintext", "scram_sha256", "scram_sha512", "oauthbearer", "aws_msk_iam", "gssapi"),
        default="none",
        belongs=Belongs.CREDENTIAL,
        help="SASL mechanism; aws_msk_iam is apache-kafka's word for oauthbearer with saslTokenProvider aws_msk_iam; "
        "gssapi is refused",
    ),
    Parameter(
        name="username", belongs=Belongs.CREDENTIAL, secret=True, help="user, or client id of OAuth; needed with sasl"
    ),
    Parameter(name="password", belongs=Belongs.CREDENTIAL, secret=True, help="password, or client secret of OAuth"),
    Parameter(
        name="saslTokenProvider",
        allowed=("bearer", "aws_msk_iam"),
        default="bearer",
        belongs=Belongs.CREDENTIAL,
        help="where oauthbearer tokens come from: an OAuth 2 token endpoint, or AWS's signature (MSK)",
    ),
    Parameter(
        name="oauthTokenEndpointUri",
        belongs=Belongs.ENDPOINT,
        help="token endpoint of the client credentials grant; needed with sasl oauthbearer",
    ),
    Parameter(name="scopes", kind="list", belongs=Belongs.CREDENTIAL, help="scopes to ask for, by commas"),
    Parameter(
        name="oauthExtensions",
        kind="map",
        belongs=Belongs.CREDENTIAL,
        help="SASL extensions sent with the token, key=value by commas",
    ),
    Parameter(name="awsRegion", belongs=Belongs.ENDPOINT, help="region of the MSK cluster; needed with aws_msk_iam"),
    *AWS_PARAMETERS,
    *(
        Parameter(name=name, belongs=Belongs.CREDENTIAL, secret=True, help="Kerberos; refused", refused=_KERBEROS)
        for name in ("keytab", "realm", "kerberosConfig", "kerberosServiceName", "kerberosDisableFAST")
    ),
)

# sarama's ParseKafkaVersion: four numbers before 1.0, three from then on.
_VERSION = re.compile(r"0\.[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}|[1-9][0-9]{0,3}\.[0-9]{1,4}\.[0-9]{1,4}")
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")  # Kafka's own rule; "." and ".." are not names either
_HOST = re.compile(
    r"(?=.{1,253}\Z)[a-zA-Z0-9_]([a-zA-Z0-9_-]*[a-zA-Z0-9_])?(\.[a-zA-Z0-9_]([a-zA-Z0-9_-]*[a-zA-Z0-9_])?)*\.?"
)
_EXTENSION_KEY = re.compile(r"[a-zA-Z]+")  # RFC 7628, 3.1
_PARTITION_MAX = 2**31 - 1
_SERVERS_MAX = 64
_TOPICS_MAX = 100
_GROUP_MAX = 1_000
_MECHANISMS = {
    "plaintext": "PLAIN",
    "scram_sha256": "SCRAM-SHA-256",
    "scram_sha512": "SCRAM-SHA-512",
    "oauthbearer": "OAUTHBEARER",
    "aws_msk_iam": "OAUTHBEARER",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuthConfig:
    """Client credentials grant of a token endpoint."""

    endpoint_url: str
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MskConfig:
    """AWS's signature as token."""

    region: str
    identity: AwsIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class SaslConfig:
    """`mechanism` by its name in Kafka's protocol. `tokens` with OAUTHBEARER only."""

    mechanism: str
    username: Secret | None
    password: Secret | None
    tokens: OAuthConfig | MskConfig | None = None
    extensions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaEndpoint:
    """A cluster and how to be let in: what a client is shared by."""

    servers: tuple[tuple[str, int], ...]
    tls: ClientTls | None
    sasl: SaslConfig | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConfig:
    """One trigger's view of a group. `topics` empty: all that the group has committed offsets for.

    `partitions` holds (first, last) ranges; empty: all.
    """

    endpoint: KafkaEndpoint
    group: str
    topics: tuple[str, ...]
    partitions: tuple[tuple[int, int], ...]
    rules: LagRules
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KafkaQuery:
    """What is read: a group's offsets in some topics, or (`topics` empty) in all that it has committed to.

    `earliest`: its consumers start at the log's start, so that this is read too where they have no offset.
    """

    group: str
    topics: tuple[str, ...]
    earliest: bool


def parse_config(values: Values) -> KafkaConfig:
    """Everything that KEDA checks, and the addresses and names that it would only learn of from the broker."""
    topics = _topics(values)
    partitions = _partitions(values)
    endpoint = KafkaEndpoint(servers=_servers(values), tls=_tls(values), sasl=_sasl(values))
    group = values.text("consumerGroup") or ""
    if len(group) > _GROUP_MAX or not group.isprintable():
        values.problem("consumerGroup", f"expected at most {_GROUP_MAX} printable characters", value=group)
    _check_rules(values, has_topic=bool(topics) or values.failed("topic"))
    return KafkaConfig(
        endpoint=endpoint,
        group=group,
        topics=topics,
        partitions=partitions if topics else (),
        rules=LagRules(
            lag_threshold=values.integer("lagThreshold") or 1,
            activation_lag_threshold=values.integer("activationLagThreshold") or 0,
            earliest=values.text("offsetResetPolicy") == "earliest",
            zero_on_invalid_offset=values.flag("scaleToZeroOnInvalidOffset"),
            allow_idle_consumers=values.flag("allowIdleConsumers"),
            persistent_lag_seconds=(
                values.number("persistentLagSeconds") if values.flag("excludePersistentLag") else None
            ),
            limit_to_partitions_with_lag=values.flag("limitToPartitionsWithLag"),
            even_distribution=values.flag("ensureEvenDistributionOfPartitions"),
        ),
        warnings=_warnings(values, endpoint, has_topic=bool(topics)),
    )


def parse_partitions(text: str) -> tuple[tuple[int, int], ...]:
    """(first, last) ranges of "1,2,10-20", spaces allowed; a range that runs backwards holds nothing, as in KEDA.

    Ranges stay ranges: "0-2147483647" costs nothing. Raises ValueProblem.
    """
    ranges = []
    for element in text.split(","):
        ends = [end.strip() for end in element.split("-")]
        if len(ends) > 2 or not all(end.isascii() and end.isdigit() and len(end) <= 10 for end in ends):
            raise ValueProblem('expected partitions such as "1,2,10-20"')
        first, last = int(ends[0]), int(ends[-1])
        if max(first, last) > _PARTITION_MAX:
            raise ValueProblem(f"expected partitions up to {_PARTITION_MAX}")
        ranges.append((first, last))
    return tuple(ranges)


def parse_server(text: str) -> tuple[str, int]:
    """(host, port) of "host:port" or "[IPv6]:port". Raises ValueProblem."""
    expected = 'expected brokers as "host:port", by commas'
    host, colon, port_text = text.rpartition(":")
    if not colon or not port_text.isascii() or not port_text.isdigit() or len(port_text) > 5:
        raise ValueProblem(expected)
    port = int(port_text)
    if not 1 <= port <= 65_535:
        raise ValueProblem("expected a port between 1 and 65535")
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1])), port
        except ValueError as err:
            raise ValueProblem(expected) from err
    if not _HOST.fullmatch(host):
        raise ValueProblem(expected)
    return host, port


def _servers(values: Values) -> tuple[tuple[str, int], ...]:
    servers = []
    texts = values.items("bootstrapServers") or ()
    if len(texts) > _SERVERS_MAX:
        values.problem("bootstrapServers", f"expected at most {_SERVERS_MAX} brokers")
        return ()
    for text in texts:
        try:
            servers.append(parse_server(text))
        except ValueProblem as err:
            values.problem("bootstrapServers", str(err), value=text)
    return tuple(sorted(set(servers)))


def _topics(values: Values) -> tuple[str, ...]:
    topics = values.items("topic") or ()
    if len(topics) > _TOPICS_MAX:
        values.problem("topic", f"expected at most {_TOPICS_MAX} topics")
        return ()
    for topic in topics:
        if not _TOPIC.fullmatch(topic) or topic in {".", ".."}:
            values.problem("topic", "expected names of letters, digits, dots, underscores and hyphens", value=topic)
    return tuple(sorted(set(topics)))


def _partitions(values: Values) -> tuple[tuple[int, int], ...]:
    text = values.text("partitionLimitation")
    if text is None or values.items("topic") is None:  # KEDA does not look at it without a topic
        return ()
    try:
        return parse_partitions(text)
    except ValueProblem as err:
        values.problem("partitionLimitation", str(err), value=text)
        return ()


def _check_rules(values: Values, *, has_topic: bool) -> None:
    limit, even = values.flag("limitToPartitionsWithLag"), values.flag("ensureEvenDistributionOfPartitions")
    if limit and values.flag("allowIdleConsumers"):
        values.problem("limitToPartitionsWithLag", "it can't be combined with allowIdleConsumers")
    if limit and even:
        values.problem("limitToPartitionsWithLag", "it can't be combined with ensureEvenDistributionOfPartitions")
    if limit and not has_topic:
        values.problem("limitToPartitionsWithLag", "it needs topic")
    if even and not has_topic:
        values.problem("ensureEvenDistributionOfPartitions", "it needs topic")
    if not values.flag("fullMetadata") and not values.failed("fullMetadata") and not has_topic:
        values.problem("fullMetadata", "false needs topic")
    version = values.text("version")
    if version is not None and not _VERSION.fullmatch(version):
        values.problem("version", 'expected a Kafka version such as "2.8.0" or "0.10.2.0"', value=version)


def _tls(values: Values) -> ClientTls | None:
    if values.text("tls") != "enable":
        return None
    cert, key = values.secret("cert"), values.secret("key")
    if cert is not None and key is None:
        values.problem("key", "required with cert")
    if key is not None and cert is None:
        values.problem("cert", "required with key")
    return ClientTls(
        ca=values.secret("ca"),
        certificate=cert,
        key=key,
        key_password=values.secret("keyPassword"),
        verify=not values.flag("sourceUnsafeSsl"),
    )


def _sasl(values: Values) -> SaslConfig | None:
    said = values.text("sasl") or "none"
    if said == "none":
        return None
    if said == "gssapi":
        values.problem("sasl", f"not supported: {_KERBEROS}", value="gssapi")
        return None
    msk = said == "aws_msk_iam" or (said == "oauthbearer" and values.text("saslTokenProvider") == "aws_msk_iam")
    username, password = values.secret("username"), values.secret("password")
    tokens: OAuthConfig | MskConfig | None = None
    if msk:
        tokens = _msk(values)
    elif said != "oauthbearer" or not values.failed("saslTokenProvider"):
        for name, secret in (("username", username), ("password", password)):
            if secret is None:
                values.problem(name, f"required with sasl {said}")
        if said == "oauthbearer":
            tokens = _oauth(values)
    extensions = values.pairs("oauthExtensions") or ()
    for name, value in extensions:
        # RFC 7628: letters only; "auth" is the token's own; control characters would end the message early.
        if not _EXTENSION_KEY.fullmatch(name) or name == "auth" or not value.isprintable():
            values.problem("oauthExtensions", "expected keys of letters other than auth, and printable values")
    return SaslConfig(
        mechanism=_MECHANISMS[said], username=username, password=password, tokens=tokens, extensions=extensions
    )


def _oauth(values: Values) -> OAuthConfig | None:
    url = values.text("oauthTokenEndpointUri")
    if url is None:
        values.problem("oauthTokenEndpointUri", "required with sasl oauthbearer")
        return None
    try:
        parts = urlsplit(url)
        fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.username is None
        fine = fine and (parts.port is None or parts.port > 0)
    except ValueError:
        fine = False
    if not fine:
        values.problem("oauthTokenEndpointUri", "expected an http or https URL without user information", value=url)
        return None
    return OAuthConfig(endpoint_url=url, scopes=tuple(scope for scope in values.items("scopes") or () if scope))


def _msk(values: Values) -> MskConfig | None:
    region = parse_region(values)
    if not values.given("awsRegion"):
        values.problem("awsRegion", "required with aws_msk_iam")
    if values.text("tls") != "enable":
        values.problem("tls", "aws_msk_iam needs tls enable", value=values.text("tls"))
    count = len(values.problems)
    identity = parse_identity(values)
    if identity is None and len(values.problems) == count:
        values.problem(
            "awsAccessKeyID",
            "required with aws_msk_iam: awsAccessKeyID and awsSecretAccessKey, or a connection with an AWS identity",
        )
    if region is None or identity is None:
        return None
    return MskConfig(region=region, identity=identity)


def _warnings(values: Values, endpoint: KafkaEndpoint, *, has_topic: bool) -> tuple[str, ...]:
    found = []
    if not has_topic:
        found.append(
            "without topic, only topics with committed offsets are seen: a group that never committed, or whose "
            "offsets have expired, can't wake up; name the topic"
        )
        if values.given("partitionLimitation"):
            found.append("partitionLimitation is ignored without topic")
    if endpoint.tls is None:
        ignored = [name for name in ("ca", "cert", "key", "sourceUnsafeSsl") if values.given(name)]
        if ignored:
            found.append(f"{', '.join(ignored)} without effect: tls is disable")
        if endpoint.sasl is not None and endpoint.sasl.mechanism in {"PLAIN", "OAUTHBEARER"}:
            found.append("sasl without tls sends the password or token in the clear; set tls: enable")
    elif not endpoint.tls.verify:
        found.append("sourceUnsafeSsl accepts any certificate: whoever sits in between can read the credentials")
    if endpoint.sasl is None and (values.given("username") or values.given("password")):
        found.append("username and password without effect: sasl is none")
    if values.given("persistentLagSeconds") and not values.flag("excludePersistentLag"):
        found.append("persistentLagSeconds is without effect: excludePersistentLag is false")
    if values.flag("scaleToZeroOnInvalidOffset") and values.text("offsetResetPolicy") == "earliest":
        found.append(
            "scaleToZeroOnInvalidOffset with offsetResetPolicy earliest: a group without committed offsets never "
            "wakes, however much is waiting"
        )
    return tuple(found)
