"""The metadata of `prometheus`: KEDA's own rows (prometheus_scaler_test.go) and ours."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from scaler.errors import NamespaceDenied, TriggerInvalid
from scaler.settings import FileSettings, resolve
from tests.sources.prometheus.server import config_of, parse

GOOD = {
    "serverAddress": "http://localhost:9090",
    "metricName": "http_requests_total",
    "threshold": "100",
    "query": "up",
}
TLS = {"ca": "caaa", "cert": "ceert", "key": "keey"}
AWS = {"awsRegion": "eu-west-1", "awsAccessKeyID": "id", "awsSecretAccessKey": "hidden"}


@dataclass(frozen=True)
class Row:
    name: str
    metadata: dict[str, str]
    wrong: tuple[str, ...] = field(default=())
    differs: str | None = None  # where KEDA decides otherwise, and why we don't follow


ROWS = [
    Row("empty metadata", {}, ("serverAddress", "query", "threshold")),
    Row("all properly formed", GOOD),
    Row("with namespace", GOOD | {"namespace": "foo"}),
    Row("with ignoreNullValues", GOOD | {"ignoreNullValues": "false"}),
    Row("with activationThreshold", GOOD | {"activationThreshold": "50"}),
    Row("missing serverAddress", GOOD | {"serverAddress": ""}, ("serverAddress",)),
    Row("missing threshold", GOOD | {"threshold": ""}, ("threshold",)),
    Row("malformed threshold", GOOD | {"threshold": "one"}, ("threshold",)),
    Row("malformed activationThreshold", GOOD | {"activationThreshold": "one"}, ("activationThreshold",)),
    Row("missing query", GOOD | {"query": ""}, ("query",)),
    Row("malformed ignoreNullValues", GOOD | {"ignoreNullValues": "xxxx"}, ("ignoreNullValues",)),
    Row("unsafeSsl is KEDA's own and goes", GOOD | {"serverAddress": "https://localhost:9090", "unsafeSsl": "true"}),
    Row("customHeaders", GOOD | {"customHeaders": "key1=value1,key2=value2"}),
    Row("customHeaders malformed", GOOD | {"customHeaders": "key1=value1,key2"}, ("customHeaders",)),
    Row("queryParameters", GOOD | {"queryParameters": "key1=value1,key2=value2"}),
    Row("queryParameters malformed", GOOD | {"queryParameters": "key1=value1,key2"}, ("queryParameters",)),
    Row("timeout", GOOD | {"timeout": "1000"}),
    Row("timeout negative", GOOD | {"timeout": "-1"}, ("timeout",)),
    Row("timeout no number", GOOD | {"timeout": "a"}, ("timeout",)),
    # Authentication.
    Row("tls", GOOD | {"authModes": "tls"} | TLS),
    Row("tls without ca", GOOD | {"authModes": "tls", "cert": "ceert", "key": "keey"}),
    Row("tls without key", GOOD | {"authModes": "tls", "ca": "caaa", "cert": "ceert"}, ("key",)),
    Row("tls without cert", GOOD | {"authModes": "tls", "ca": "caaa", "key": "keey"}, ("cert",)),
    Row("bearer", GOOD | {"authModes": "bearer", "bearerToken": "tooooken"}),
    Row("bearer by its other name", GOOD | {"authMode": "bearer", "token": "tooooken"}),
    Row("bearer without token", GOOD | {"authModes": "bearer"}, ("bearerToken",)),
    Row("basic", GOOD | {"authModes": "basic", "username": "user", "password": "pass"}),
    Row("basic without password", GOOD | {"authModes": "basic", "username": "user"}),
    Row("basic without user", GOOD | {"authModes": "basic"}, ("username",)),
    Row("tls and basic", GOOD | {"authModes": "tls, basic", "username": "user", "password": "pass"} | TLS),
    Row(
        "tls and basic without certificates",
        GOOD | {"authModes": "tls,basic", "username": "user", "password": "pass"},
        ("cert", "key"),
    ),
    Row("custom", GOOD | {"authModes": "custom", "customAuthHeader": "header", "customAuthValue": "value"}),
    Row("custom without header", GOOD | {"authModes": "custom", "customAuthValue": "value"}, ("customAuthHeader",)),
    Row("custom without value", GOOD | {"authModes": "custom", "customAuthHeader": "h"}, ("customAuthValue",)),
    Row(
        "custom with newlines",
        GOOD | {"authModes": "custom", "customAuthHeader": "header\n", "customAuthValue": "value\n"},
    ),
    Row("AWS keys with another mode", GOOD | AWS | {"authModes": "basic", "username": "user"}, ("authModes",)),
    Row("AWS keys", GOOD | AWS),
    Row("bearer and basic", GOOD | {"authModes": "bearer,basic", "token": "t", "username": "u"}, ("authModes",)),
    Row("an unknown mode", GOOD | {"authModes": "magic"}, ("authModes",)),
    Row(
        "azure identity",
        GOOD | {"azureManagedPrometheusResourceURL": "https://example.com"},
        ("azureManagedPrometheusResourceURL",),
        differs="its token exchange is not implemented; a token file does the same",
    ),
    Row(
        "gcp identity",
        GOOD | {"credentialsFromEnv": "{}"},
        ("credentialsFromEnv",),
        differs="its token exchange is not implemented; a token file does the same",
    ),
    Row(
        "oauth",
        GOOD | {"authModes": "oauth", "clientID": "id"},
        ("authModes", "clientID"),
        differs="KEDA accepts it and never sends it",
    ),
    Row("apiKey", GOOD | {"authModes": "apiKey", "apiKey": "k"}),
    Row(
        "apiKey without key",
        GOOD | {"authModes": "apiKey"},
        ("apiKey",),
    ),
    Row("apiKey method", GOOD | {"authModes": "apiKey", "apiKey": "k", "method": "body"}, ("method",)),
    Row(
        "a credential that no mode uses",
        GOOD | {"bearerToken": "t"},
        ("bearerToken",),
        differs="KEDA takes it from the TriggerAuthentication and forgets it; here somebody wrote it in vain",
    ),
    Row("awsRegion alone", GOOD | {"awsRegion": "eu-west-1"}, ("awsRegion",), differs="nobody would sign"),
    Row("identityOwner operator", GOOD | {"identityOwner": "operator"}, ("identityOwner",), differs="connections only"),
    Row(
        "threshold zero",
        GOOD | {"threshold": "0"},
        ("threshold",),
        differs="KEDA accepts it and the API server then refuses the HPA",
    ),
    Row("threshold that KEDA rounds to zero", GOOD | {"threshold": "0.0004"}, ("threshold",), differs="as above"),
    Row("user and password in the URL", GOOD | {"serverAddress": "http://u:p@localhost"}, ("serverAddress",)),
    Row("no URL", GOOD | {"serverAddress": "localhost:9090"}, ("serverAddress",)),
    Row("another scheme", GOOD | {"serverAddress": "file:///etc/passwd"}, ("serverAddress",)),
    Row("a query in the URL", GOOD | {"serverAddress": "http://localhost?a=b"}, ("serverAddress",)),
    Row("a port out of range", GOOD | {"serverAddress": "http://localhost:99999"}, ("serverAddress",)),
    Row("a broken IPv6 address", GOOD | {"serverAddress": "http://[::1"}, ("serverAddress",)),
    Row("a host no resolver takes", GOOD | {"serverAddress": f"http://{'a' * 64}.com"}, ("serverAddress",)),
    Row("a path", GOOD | {"serverAddress": "https://thanos.example/team-a/"}),
    Row("a parameter that is ours", GOOD | {"queryParameters": "query=up"}, ("queryParameters",)),
    Row("a header that frames requests", GOOD | {"customHeaders": "Content-Length=0"}, ("customHeaders",)),
    Row("a header's name with a space", GOOD | {"customHeaders": "X A=0"}, ("customHeaders",)),
    Row("a value that breaks the line", GOOD | {"customHeaders": "X-A=a\r\nX-B: b"}, ("customHeaders",)),
    Row("staleSeconds zero", GOOD | {"freshnessQuery": "x", "staleSeconds": "0"}, ("staleSeconds",)),
    Row("onNoData unknown", GOOD | {"onNoData": "one"}, ("onNoData",)),
    Row("a very long query", GOOD | {"query": "x" * 7000}, ("query",)),
    Row("an unknown key", GOOD | {"treshold": "5"}, ("treshold",)),
    Row("the query from the environment", {**GOOD, "query": "", "queryFromEnv": "up"}),
    Row("cortexOrgId is retired", GOOD | {"cortexOrgId": "a"}),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_metadata_is_judged_as_keda_does_but_for_the_stated_differences(row: Row) -> None:
    if not row.wrong:
        parse(row.metadata)
        return
    with pytest.raises(TriggerInvalid) as found:
        parse(row.metadata)
    assert {problem.field for problem in found.value.problems} == set(row.wrong)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(TriggerInvalid) as found:
        parse({"serverAddress": "nowhere", "threshold": "x", "timeout": "-1", "authModes": "bearer", "qery": "up"})
    assert {problem.field for problem in found.value.problems} == {
        "serverAddress",
        "threshold",
        "timeout",
        "query",
        "bearerToken",
        "qery",
    }
    assert 'did you mean "query"' in str(found.value)


def test_no_secret_is_in_a_message_a_representation_or_a_key() -> None:
    hidden = "s3cr3t"
    secrets = {
        "authModes": "bearer,custom,apiKey",
        "bearerToken": hidden,
        "customAuthHeader": "X-A",
        "customAuthValue": hidden,
        "apiKey": hidden,
        "customHeaders": f"X-Scope-OrgID={hidden}",
    }
    trigger = parse(GOOD | secrets)
    shown = f"{trigger} {trigger.config!r} {trigger.identity} {trigger.metric_name} {trigger.warnings}"
    assert hidden not in shown
    for broken in (
        {"customHeaders": f"X-A={hidden},b"},
        {"customHeaders": f"X A={hidden}"},
        {"customHeaders": f"X-A={hidden}\x00"},
        {"serverAddress": f"http://user:{hidden}@host"},
        {"serverAddress": f"http://user:{hidden}@host:99999"},
        {"serverAddress": f"http://host/?token={hidden}"},
    ):
        with pytest.raises(TriggerInvalid) as found:
            parse(GOOD | broken)
        assert hidden not in str(found.value), broken


def test_triggers_share_a_client_by_server_and_credentials_only() -> None:
    source = parse(GOOD).source
    one = config_of(GOOD | {"authModes": "bearer", "bearerToken": "a"})
    same = config_of(GOOD | {"authModes": "bearer", "bearerToken": "a", "query": "down", "threshold": "7"})
    other = config_of(GOOD | {"authModes": "bearer", "bearerToken": "b"})
    assert source.endpoint(one) == source.endpoint(same)
    assert source.endpoint(one) != source.endpoint(other)
    assert source.query(one) != source.query(same)
    assert source.query(one) == source.query(config_of(GOOD | {"threshold": "9", "activationThreshold": "2"}))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"ignoreNullValues": "true"}, "ignoreNullValues has no effect"),
        ({"staleSeconds": "30"}, "staleSeconds has no effect"),
        ({"authModes": "bearer", "bearerToken": "t"}, "plain http"),
        ({"serverAddress": "https://h", "sourceUnsafeSsl": "true"}, "not verified"),
        ({"cortexOrgId": "a"}, "customHeaders"),
    ],
)
def test_what_is_odd_but_works_is_warned_of(metadata: dict[str, str], words: str) -> None:
    assert any(words in warning for warning in parse(GOOD | metadata).warnings)


def test_a_plain_trigger_has_no_warning() -> None:
    metadata = {key: GOOD[key] for key in ("serverAddress", "threshold", "query")}
    assert parse(metadata).warnings == ()


def test_a_connection_fixes_server_credentials_headers_and_parameters() -> None:
    settings = resolve(
        FileSettings.model_validate(
            {
                "connections": {
                    "thanos": {
                        "source": "prometheus",
                        "namespaces": ["team-*"],
                        "allow": {"query": ["sum(*)"]},
                        "set": {
                            "serverAddress": "https://thanos",
                            "authModes": "bearer",
                            "bearerToken": {"env": "TOKEN"},
                            "customHeaders": "X-Scope-OrgID=team-a",
                        },
                    }
                }
            }
        ),
        {"TOKEN": "t"},
        where="test",
    )
    mine = {"connection": "thanos", "threshold": "5", "query": "sum(up)"}
    assert parse(mine, settings=settings).refusal is None
    for key in ("serverAddress", "customHeaders", "queryParameters", "token", "sourceUnsafeSsl"):
        with pytest.raises(TriggerInvalid, match=key):
            parse(mine | {key: "a=true"}, settings=settings)
    assert "query" in str(parse(mine | {"query": "up"}, settings=settings).refusal)
    assert "query" in str(parse(mine | {"wakeQuery": "up"}, settings=settings).refusal)


def test_a_namespace_without_the_right_may_not_name_a_server() -> None:
    settings = resolve(
        FileSettings.model_validate({"rights": [{"namespaces": ["*"], "metadata_endpoints": False}]}), {}, where="test"
    )
    assert isinstance(parse(GOOD, settings=settings).refusal, NamespaceDenied)
