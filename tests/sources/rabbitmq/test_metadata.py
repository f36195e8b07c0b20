"""KEDA's rows for `rabbitmq` metadata (rabbitmq_scaler_test.go), and where we differ on purpose."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from scaler.errors import TriggerInvalid
from scaler.parameters import Secret
from scaler.sources.rabbitmq import SOURCE
from scaler.sources.rabbitmq.config import Mode
from tests.sources.rabbitmq.support import config_of

AMQP = "amqp://user:secret@somehost.com:5236/vhost"
HTTP = "http://user:secret@somehost.com:15672/vhost"


@dataclass(frozen=True)
class Row:
    """One row: KEDA's verdict, and the fields we complain of. `why` where the two differ."""

    name: str
    metadata: dict[str, str]
    keda_accepts: bool
    problems: frozenset[str] = frozenset()
    why: str = ""


def row(name: str, keda_accepts: bool, problems: str = "", why: str = "", /, **metadata: str) -> Row:
    return Row(name, metadata, keda_accepts, frozenset(problems.split()), why)


OK, BAD = True, False
ROWS = [
    row("nothing", BAD, "host queueName"),
    row("queueLength and host from env", OK, queueLength="10", queueName="sample", hostFromEnv=AMQP),
    row("queueLength is no number", BAD, "queueLength", queueLength="AA", queueName="sample", host=AMQP),
    row("queueLength may have a fraction", OK, queueLength="1.5", queueName="sample", host=AMQP),
    row("no queueName", BAD, "queueName", queueLength="10", host=AMQP),
    row("no host", BAD, "host", queueLength="10", queueName="sample"),
    row("host from env unresolved", BAD, "host", queueLength="10", queueName="sample", hostFromEnv=""),
    row("protocol http", OK, queueLength="10", queueName="sample", host=HTTP, protocol="http"),
    row("protocol auto and an http URL", OK, queueLength="10", queueName="sample", host=HTTP, protocol="auto"),
    row(
        "protocol auto and an https URL",
        OK,
        queueLength="10",
        queueName="sample",
        host="https://rabbit/",
        protocol="auto",
    ),
    row(
        "protocol auto and a bad URL",
        BAD,
        "host",
        queueLength="10",
        queueName="sample",
        host="something://",
        protocol="auto",
    ),
    row("unknown protocol", BAD, "protocol", queueLength="10", queueName="sample", host=HTTP, protocol="ftp"),
    row(
        "a host without a name",
        OK,
        "host",
        "it could never be read; KEDA's own rows use it as a stand-in",
        queueLength="10",
        queueName="sample",
        host="http://",
    ),
    row(
        "protocol against the scheme",
        OK,
        "protocol",
        "KEDA fails at each reading instead",
        queueLength="10",
        queueName="sample",
        host=AMQP,
        protocol="http",
    ),
    row(
        "queueLength with mode", BAD, "queueLength", queueLength="10", mode="QueueLength", queueName="sample", host=AMQP
    ),
    row("queueLength with value", BAD, "queueLength", queueLength="10", value="20", queueName="sample", host=AMQP),
    row(
        "queueLength with mode and value",
        BAD,
        "queueLength",
        queueLength="10",
        mode="QueueLength",
        value="20",
        queueName="sample",
        host=AMQP,
    ),
    row("only mode", BAD, "value", mode="QueueLength", queueName="sample", host=AMQP),
    row("only value", BAD, "mode", value="10", queueName="sample", host=AMQP),
    row("mode and value", OK, mode="QueueLength", value="20", queueName="sample", host=AMQP),
    row("mode and value with a fraction", OK, mode="QueueLength", value="1.5", queueName="sample", host=AMQP),
    row("neither mode, value nor queueLength", OK, queueName="sample", host=AMQP),
    row("unknown mode", BAD, "mode", mode="Feelings", value="20", queueName="sample", host=HTTP),
    row("value is no number", BAD, "value", mode="QueueLength", value="notanumber", queueName="sample", host=HTTP),
    row("value 0 with mode", BAD, "value", mode="QueueLength", value="0", queueName="sample", host=HTTP),
    row(
        "a negative value",
        OK,
        "value",
        "the HPA refuses a target that is not above 0",
        mode="QueueLength",
        value="-1",
        queueName="sample",
        host=HTTP,
    ),
    row(
        "queueLength 0",
        OK,
        "queueLength",
        "KEDA takes it as absent and silently uses 20",
        queueLength="0",
        queueName="sample",
        host=HTTP,
    ),
    row("MessageRate by http", OK, mode="MessageRate", value="1000", queueName="sample", host=HTTP),
    row("DeliverGetRate by http", OK, mode="DeliverGetRate", value="1000", queueName="sample", host=HTTP),
    row("ratio by http", OK, mode="PublishedToDeliveredRatio", value="1.5", queueName="sample", host=HTTP),
    row("consumption time by http", OK, mode="ExpectedQueueConsumptionTime", value="60", queueName="sample", host=HTTP),
    row("MessageRate by amqp", BAD, "mode", mode="MessageRate", value="1000", queueName="sample", host=AMQP),
    row("DeliverGetRate by amqp", BAD, "mode", mode="DeliverGetRate", value="1000", queueName="sample", host=AMQP),
    row("ratio by amqp", BAD, "mode", mode="PublishedToDeliveredRatio", value="1.5", queueName="sample", host=AMQP),
    row(
        "consumption time by amqp",
        BAD,
        "mode",
        mode="ExpectedQueueConsumptionTime",
        value="60",
        queueName="sample",
        host=AMQP,
    ),
    row("regex by http", OK, mode="QueueLength", value="1000", queueName="^sample.*", host=HTTP, useRegex="true"),
    row(
        "regex by amqp", BAD, "useRegex", mode="QueueLength", value="10", queueName="sample", host=AMQP, useRegex="true"
    ),
    row("useRegex is no flag", BAD, "useRegex", queueName="sample", host=HTTP, useRegex="notabool"),
    row(
        "a regex that is none",
        OK,
        "queueName",
        "KEDA fails at each reading instead",
        queueName="sample(",
        host=HTTP,
        useRegex="true",
    ),
    row(
        "a regex with look-around",
        OK,
        "queueName",
        "users' expressions run on RE2, in linear time",
        queueName="(?=sample)",
        host=HTTP,
        useRegex="true",
    ),
    row("operation max", OK, queueName="sample", host=HTTP, useRegex="true", operation="max"),
    row(
        "unknown operation",
        OK,
        "operation",
        "KEDA notices only when queues match",
        queueName="sample",
        host=HTTP,
        useRegex="true",
        operation="random",
    ),
    row("pageSize 100", OK, queueName="sample", host=HTTP, useRegex="true", pageSize="100"),
    row("pageSize -1", BAD, "pageSize", queueName="sample", host=HTTP, useRegex="true", pageSize="-1"),
    row("pageSize a", BAD, "pageSize", queueName="sample", host=HTTP, useRegex="true", pageSize="a"),
    row("activationValue 10", OK, queueName="sample", host=HTTP, activationValue="10"),
    row("activationValue a", BAD, "activationValue", queueName="sample", host=HTTP, activationValue="a"),
    row("timeout in milliseconds", OK, mode="QueueLength", value="10", queueName="sample", host=HTTP, timeout="1000"),
    row("timeout as a duration", OK, mode="QueueLength", value="10", queueName="sample", host=HTTP, timeout="2s"),
    row(
        "timeout negative", BAD, "timeout", mode="QueueLength", value="10", queueName="sample", host=HTTP, timeout="-10"
    ),
    row(
        "timeout is no number",
        BAD,
        "timeout",
        mode="QueueLength",
        value="10",
        queueName="sample",
        host=HTTP,
        timeout="error",
    ),
    row("timeout by amqp", BAD, "timeout", mode="QueueLength", value="10", queueName="sample", host=AMQP, timeout="10"),
    row("timeout by amqp, no mode: KEDA returns early", OK, queueName="sample", host=AMQP, timeout="10"),
    row(
        "timeout of an hour",
        OK,
        "timeout",
        "no reading is worth holding a connection for more than a minute",
        queueName="sample",
        host=HTTP,
        timeout="1h",
    ),
    row("excludeUnacknowledged by http", OK, queueName="sample", host=HTTP, excludeUnacknowledged="true"),
    row(
        "excludeUnacknowledged by amqp",
        BAD,
        "excludeUnacknowledged",
        queueName="sample",
        host=AMQP,
        excludeUnacknowledged="true",
    ),
    row(
        "excludeUnacknowledged is no flag",
        BAD,
        "excludeUnacknowledged",
        queueName="sample",
        host=HTTP,
        excludeUnacknowledged="x",
    ),
    row(
        "unsafeSsl",
        OK,
        "unsafeSsl",
        "it belongs to KEDA's connection to us; ours is sourceUnsafeSsl",
        queueName="sample",
        host=HTTP,
        unsafeSsl="true",
    ),
    row("sourceUnsafeSsl is no flag", BAD, "sourceUnsafeSsl", queueName="sample", host=HTTP, sourceUnsafeSsl="yes"),
    row("vhostName", OK, queueName="sample", host=HTTP, vhostName="other"),
    row("vhostName empty", OK, queueName="sample", host=HTTP, vhostName=""),
    row("tls enable", OK, queueName="sample", host="amqps://h/", tls="enable", ca="caaa", cert="ceert", key="keey"),
    row(
        "tls enable with key password",
        OK,
        queueName="sample",
        host="amqps://h/",
        tls="enable",
        cert="c",
        key="k",
        keyPassword="p",
    ),
    row("tls wrong value", BAD, "tls", queueName="sample", host="amqps://h/", tls="random"),
    row("cert without key", BAD, "key", queueName="sample", host="amqps://h/", tls="enable", cert="ceert"),
    row("key without cert", BAD, "cert", queueName="sample", host="amqps://h/", tls="enable", key="keey"),
    row("username and password", OK, queueName="sample", host="http://h/", username="user", password="pass"),
    row("username without password", BAD, "password", queueName="sample", host="http://h/", username="user"),
    row("password without username", BAD, "username", queueName="sample", host="http://h/", password="pass"),
    row(
        "Azure workload identity by http",
        OK,
        "workloadIdentityResource",
        "refused: not built in",
        queueName="sample",
        host=HTTP,
        workloadIdentityResource="x",
    ),
    row(
        "Azure workload identity by amqp",
        BAD,
        "workloadIdentityResource",
        queueName="sample",
        host=AMQP,
        workloadIdentityResource="x",
    ),
    row(
        "OAuth 2.0",
        OK,
        queueName="sample",
        host="https://h/",
        oauthTokenURI="https://login.example/token",
        clientID="id",
        clientSecret="s",
        scopes="a, b",
        endpointParams="audience=x&other=y",
    ),
    row(
        "OAuth 2.0 without its secret",
        BAD,
        "clientSecret",
        queueName="sample",
        host="https://h/",
        oauthTokenURI="https://login.example/token",
        clientID="id",
    ),
    row(
        "OAuth 2.0 without its endpoint",
        BAD,
        "oauthTokenURI",
        queueName="sample",
        host="https://h/",
        clientID="id",
        clientSecret="s",
    ),
    row(
        "OAuth 2.0 by amqp",
        BAD,
        "oauthTokenURI",
        queueName="sample",
        host="amqp://h/",
        oauthTokenURI="https://login.example/token",
        clientID="id",
        clientSecret="s",
    ),
    row(
        "OAuth 2.0 with username and password",
        BAD,
        "oauthTokenURI",
        queueName="sample",
        host="https://h/",
        oauthTokenURI="https://login.example/token",
        clientID="id",
        clientSecret="s",
        username="u",
        password="p",
    ),
    row(
        "OAuth 2.0 with a user in the host",
        OK,
        "oauthTokenURI",
        "two identities: which one counts would be a guess",
        queueName="sample",
        host="https://u:p@h/",
        oauthTokenURI="https://login.example/token",
        clientID="id",
        clientSecret="s",
    ),
    row(
        "OAuth 2.0 with odd endpoint parameters",
        BAD,
        "endpointParams",
        queueName="sample",
        host="https://h/",
        oauthTokenURI="https://login.example/token",
        clientID="id",
        clientSecret="s",
        endpointParams="no-equals-sign",
    ),
    row(
        "an unknown key",
        OK,
        "queueNam",
        "a typo must not be ignored for a year",
        queueName="sample",
        host=HTTP,
        queueNam="x",
    ),
    row(
        "everything wrong is told at once",
        BAD,
        "host mode pageSize tls password",
        queueName="sample",
        host="ftp://h",
        mode="x",
        value="1",
        pageSize="0",
        tls="maybe",
        username="u",
    ),
]


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_metadata_is_judged_as_keda_judges_it(case: Row) -> None:
    assert bool(case.why) == (case.keda_accepts is bool(case.problems)), (
        "a row that differs says why, and only such a row"
    )
    if case.problems:
        with pytest.raises(TriggerInvalid) as caught:
            config_of(case.metadata)
        assert {problem.field for problem in caught.value.problems} == case.problems
    else:
        config_of(case.metadata)


def test_without_mode_and_value_the_target_is_twenty_messages() -> None:
    config = config_of({"queueName": "q", "host": HTTP})
    assert (config.mode, SOURCE.target(config)) == (Mode.QUEUE_LENGTH, 20.0)


def test_the_deprecated_queue_length_is_mode_queue_length() -> None:
    config = config_of({"queueName": "q", "host": HTTP, "queueLength": "7"})
    assert (config.mode, SOURCE.target(config)) == (Mode.QUEUE_LENGTH, 7.0)


def test_values_of_secrets_are_trimmed() -> None:
    config = config_of({"queueName": " q\n", "host": "http://h/\n", "username": "u ", "password": " p\n"})
    assert config.server.username == Secret("u", what="username")
    assert config.server.password == Secret("p", what="password")


# (path of the URL, vhostName) -> (base path, virtual host); KEDA's getVhostAndPathFromURL.
VHOSTS = {
    ("", None): ("", "/"),
    ("/", None): ("", "/"),
    ("//", None): ("", "/"),
    ("/%2F", None): ("", "/"),
    ("/%2f", None): ("", "/"),
    ("/myhost", None): ("", "myhost"),
    ("/subpath/myhost", None): ("/subpath", "myhost"),
    ("/subpath/%2F", None): ("/subpath", "/"),
    ("/subpath/", None): ("/subpath", "/"),
    ("/subpath//", None): ("/subpath", "/"),
    ("/sub1/sub2/myhost", None): ("/sub1/sub2", "myhost"),
    ("/sub1/sub2/%2F", None): ("/sub1/sub2", "/"),
    ("/myhost", "other"): ("", "other"),
    ("/subpath/myhost", "other"): ("/subpath", "other"),
    ("/subpath/", "other"): ("/subpath", "other"),
    ("", "other"): ("", "other"),
    ("/myhost", "/"): ("", "/"),
    # KEDA decodes before it splits, and so reads /my as base path and vhost as virtual host.
    ("/my%2Fvhost", None): ("", "my/vhost"),
    ("/with%20space", None): ("", "with space"),
    # KEDA escapes a space in vhostName as "+", which RabbitMQ takes for a plus sign.
    ("/x", "with space"): ("", "with space"),
    ("/%C3%BC", None): ("", "ü"),
}


@pytest.mark.parametrize(("given", "expected"), VHOSTS.items(), ids=str)
def test_the_last_segment_of_the_path_is_the_virtual_host_and_what_precedes_it_the_base(
    given: tuple[str, str | None], expected: tuple[str, str]
) -> None:
    path, named = given
    metadata = {"queueName": "q", "host": f"https://h:1{path}"} | ({} if named is None else {"vhostName": named})
    config = config_of(metadata)
    assert (config.server.base_path, config.vhost) == expected


@pytest.mark.parametrize(
    ("path", "named", "expected"),
    [
        ("", None, "/"),
        ("/", None, "/"),
        ("/myhost", None, "myhost"),
        ("/%2F", None, "/"),
        ("//", None, "/"),
        ("/a/b", None, "a/b"),
        ("/a%2Fb", None, "a/b"),
        ("/myhost", "other", "other"),
    ],
)
def test_by_amqp_the_whole_path_is_the_virtual_host(path: str, named: str | None, expected: str) -> None:
    metadata = {"queueName": "q", "host": f"amqp://h{path}"} | ({} if named is None else {"vhostName": named})
    assert config_of(metadata).vhost == expected


@pytest.mark.parametrize(
    ("host", "place"),
    [
        ("amqp://h", "h:5672"),
        ("amqps://h", "h:5671"),
        ("http://h", "h:80"),
        ("https://h", "h:443"),
        ("https://h:15671/base/v", "h:15671/base"),
        ("amqp://[::1]:7/v", "[::1]:7"),
        ("http://RABBIT.example/", "rabbit.example:80"),
    ],
)
def test_ports_and_names_follow_the_uri(host: str, place: str) -> None:
    assert config_of({"queueName": "q", "host": host}).server.place == place


@pytest.mark.parametrize(
    "host",
    [
        "http://h:99999/",
        "http://h:x/",
        "http://h:0/",
        "http://a b/",
        "http://user:pa ss@h/",
        "http://[::1/",
        "http://h\x00/",
        "http://-h/",
        "http://%68/",
        "http:///v",
        "h:5672",
        "amqp:h",
        "\N{SNOWMAN}",
        "http://\N{SNOWMAN}/",
        "http://h/%FF",
        "http://u:%FF@h/",
        "http://h/" + "v" * 256,
    ],
)
def test_an_odd_uri_is_a_problem_of_host_and_is_never_shown(host: str) -> None:
    with pytest.raises(TriggerInvalid) as caught:
        config_of({"queueName": "q", "host": host})
    assert {problem.field for problem in caught.value.problems} == {"host"}
    assert {problem.value for problem in caught.value.problems} == {None}


def test_a_password_appears_nowhere_but_where_it_is_used() -> None:
    metadata = {
        "queueName": "q",
        "host": "http://me:hunter2@h/v",
        "cert": "hunter2",
        "key": "hunter2",
        "keyPassword": "hunter2",
        "tls": "enable",
    }
    config = config_of(metadata)
    shown = (
        repr(config),
        str(config),
        repr(SOURCE.endpoint(config)),
        repr(SOURCE.query(config)),
        SOURCE.identity(config),
        SOURCE.object_name(config),
        str(SOURCE.warnings(config)),
        str(SOURCE.resources(config)),
    )
    assert not any("hunter2" in text or "me:" in text for text in shown)
    assert SOURCE.identity(config) == "h:80/v/q"


def test_userinfo_is_decoded_and_yields_to_username_and_password() -> None:
    in_uri = config_of({"queueName": "q", "host": "http://a%40b:p%2Fw%3A@h/"}).server
    assert in_uri.username is not None
    assert in_uri.password is not None
    assert (in_uri.username.reveal(), in_uri.password.reveal()) == ("a@b", "p/w:")
    given = config_of({"queueName": "q", "host": "http://a:b@h/", "username": "c", "password": "d"}).server
    assert given.username is not None
    assert given.username.reveal() == "c"


CERTIFICATE = {"tls": "enable", "cert": "c", "key": "k"}
EXTERNAL = [
    # KEDA's seven cases: a client certificate by AMQP with TLS and no password anywhere is the identity.
    ("certificate, no password", "amqps://h/", CERTIFICATE, True),
    ("certificate, user without password in URI", "amqps://u@h/", CERTIFICATE, True),
    ("certificate, password in URI", "amqps://u:p@h/", CERTIFICATE, False),
    ("certificate, username and password", "amqps://h/", CERTIFICATE | {"username": "u", "password": "p"}, False),
    ("no certificate", "amqps://h/", {"tls": "enable"}, False),
    ("tls disabled", "amqps://h/", {"cert": "c", "key": "k"}, False),
    ("management API", "https://h/", CERTIFICATE, False),
    ("not encrypted", "amqp://h/", CERTIFICATE, False),
]


@pytest.mark.parametrize(
    ("host", "more", "expected"), [case[1:] for case in EXTERNAL], ids=[case[0] for case in EXTERNAL]
)
def test_the_certificate_is_the_identity_only_without_a_password(
    host: str, more: dict[str, str], expected: bool
) -> None:
    assert config_of({"queueName": "q", "host": host, **more}).server.external is expected


def test_by_amqp_nobody_means_rabbitmqs_default_user_as_in_keda() -> None:
    server = config_of({"queueName": "q", "host": "amqp://h/"}).server
    assert server.username is not None
    assert server.username.reveal() == "guest"
    assert config_of({"queueName": "q", "host": "http://h/"}).server.username is None


@pytest.mark.parametrize(
    ("metadata", "part"),
    [
        ({"host": AMQP}, "not those being worked on"),
        ({"host": AMQP, "timeout": "10"}, "timeout"),
        ({"host": "amqp://h/", "tls": "enable"}, "amqps"),
        ({"host": "amqps://h/", "ca": "x"}, "tls enable only"),
        ({"host": "amqp://h/v?heartbeat=3"}, "follows ? or #"),
        ({"host": HTTP, "pageSize": "1000"}, "500"),
    ],
)
def test_what_works_but_looks_odd_is_warned_of(metadata: dict[str, str], part: str) -> None:
    config = config_of({"queueName": "q", **metadata})
    assert any(part in warning for warning in SOURCE.warnings(config))


def test_a_plain_trigger_by_http_has_no_warning() -> None:
    assert SOURCE.warnings(config_of({"queueName": "q", "host": HTTP})) == ()


def test_equal_servers_share_a_client_and_virtual_hosts_share_it_by_http_only() -> None:
    def endpoint(host: str, **more: str) -> object:
        return SOURCE.endpoint(config_of({"queueName": "q", "host": host, **more}))

    assert endpoint("http://u:p@h/a") == endpoint("http://u:p@h/b", queueName="other", value="3", mode="QueueLength")
    assert endpoint("amqp://u:p@h/a") != endpoint("amqp://u:p@h/b")
    assert endpoint("http://u:p@h/a") != endpoint("http://u:other@h/a")
    assert endpoint("http://u:p@h/a") != endpoint("http://h/a")
    assert endpoint("https://h/a") != endpoint("https://h/a", sourceUnsafeSsl="true")
    assert endpoint("http://h/a") != endpoint("http://h/base/a")


def test_thresholds_share_a_reading_and_names_do_not() -> None:
    def query(**more: str) -> object:
        return SOURCE.query(config_of({"queueName": "q", "host": HTTP, **more}))

    assert query() == query(mode="MessageRate", value="3", activationValue="2", excludeUnacknowledged="true")
    assert query() != query(queueName="r")
    assert query() != query(vhostName="w")
    assert query() != query(useRegex="true")
    assert query(useRegex="true") == query(useRegex="true", operation="max")


def test_resources_are_the_virtual_host_and_the_queue_but_not_an_expression() -> None:
    plain = config_of({"queueName": "q", "host": HTTP})
    assert SOURCE.resources(plain) == {"vhost": ("vhost",), "queue": ("q",)}
    many = config_of({"queueName": "q.*", "host": HTTP, "useRegex": "true"})
    assert SOURCE.resources(many) == {"vhost": ("vhost",)}


def test_a_secret_file_that_is_missing_is_told_without_raising(tmp_path: object) -> None:
    with pytest.raises(TriggerInvalid) as caught:
        config_of({"queueName": "q"}, {"host": Secret(path=f"{tmp_path}/none", what="host")})
    assert [problem.field for problem in caught.value.problems] == ["host"]


def test_every_credential_is_secret_or_belongs_to_the_operator() -> None:
    by_name = {parameter.name: parameter for parameter in SOURCE.parameters}
    secret = {name for name, parameter in by_name.items() if parameter.secret}
    assert secret == {
        "host",
        "username",
        "password",
        "ca",
        "cert",
        "key",
        "keyPassword",
        "clientID",
        "clientSecret",
        "endpointParams",
    }


def test_what_is_wrong_with_mode_and_oauth_is_told_at_once() -> None:
    metadata = {"queueName": "q", "host": AMQP, "mode": "MessageRate", "value": "2"}
    metadata |= {"queueLength": "3", "oauthTokenURI": "https://login.example/token", "clientID": "me"}
    with pytest.raises(TriggerInvalid) as found:
        config_of(metadata)
    fields = {problem.field for problem in found.value.problems}
    assert fields == {"queueLength", "mode", "clientSecret", "oauthTokenURI"}
