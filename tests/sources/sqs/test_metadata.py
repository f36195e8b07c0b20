"""The metadata of `aws-sqs-queue`: KEDA's own rows (aws_sqs_queue_scaler_test.go) and ours."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from scaler.errors import NamespaceDenied, TriggerInvalid
from scaler.settings import FileSettings, Settings, resolve
from scaler.sources.sqs import SqsConfig
from scaler.trigger import Trigger, parse_trigger

URL = "https://sqs.eu-west-1.amazonaws.com/account_id/DeleteArtifactQ"
KEYS = {"awsAccessKeyID": "none", "awsSecretAccessKey": "none"}
GOOD = {"queueURL": URL, "queueLength": "1", "awsRegion": "eu-west-1", **KEYS}


def parse(metadata: dict[str, str], settings: Settings | None = None) -> Trigger:
    return parse_trigger("team-a", "llama", {"source": "sqs", **metadata}, settings or Settings())


def config_of(metadata: dict[str, str]) -> SqsConfig:
    config = parse(metadata).config
    assert isinstance(config, SqsConfig)
    return config


@dataclass(frozen=True)
class Row:
    name: str
    metadata: dict[str, str]
    wrong: tuple[str, ...] = field(default=())
    differs: str | None = None  # where KEDA decides otherwise, and why we don't follow


ROWS = [
    Row("empty metadata", {}, ("queueURL", "awsRegion", "awsAccessKeyID")),
    Row("properly formed queue and region", GOOD),
    Row("custom endpoint", GOOD | {"awsEndpoint": "http://localhost:4566"}),
    Row("missing queueURL", {key: GOOD[key] for key in GOOD if key != "queueURL"}, ("queueURL",)),
    Row("URL without a name", GOOD | {"queueURL": "https://sqs.eu-west-1.amazonaws.com/account_id/"}, ("queueURL",)),
    Row("URL without a path", GOOD | {"queueURL": "https://sqs.eu-west-1.amazonaws.com"}, ("queueURL",)),
    Row("empty region", GOOD | {"awsRegion": ""}, ("awsRegion",)),
    Row("queueLength no integer", GOOD | {"queueLength": "a"}, ("queueLength",)),
    Row("queueLength no integer but a number", GOOD | {"queueLength": "1.5"}, ("queueLength",)),
    Row("activationQueueLength an integer", GOOD | {"activationQueueLength": "1"}),
    Row("activationQueueLength no integer", GOOD | {"activationQueueLength": "a"}, ("activationQueueLength",)),
    Row("static keys", GOOD),
    Row("temporary keys", GOOD | {"awsSessionToken": "none"}),
    Row("temporary keys, alias", {**GOOD, "awsAccessKeyID": "", "awsAccessKeyId": "none"}),
    Row("access key missing", GOOD | {"awsAccessKeyID": ""}, ("awsAccessKeyID",)),
    Row("secret key missing", GOOD | {"awsSecretAccessKey": ""}, ("awsSecretAccessKey",)),
    Row(
        "role alone",
        {"queueURL": URL, "awsRegion": "eu-west-1", "awsRoleArn": "arn:aws:iam::1:role/r"},
        ("awsRoleArn",),
        differs="KEDA assumes it with the operator's identity; ours is reachable through a connection only",
    ),
    Row("role with keys to assume it", GOOD | {"awsRoleArn": "arn:aws:iam::1:role/r", "awsExternalID": "x"}),
    Row(
        "identityOwner operator",
        {"queueURL": URL, "awsRegion": "eu-west-1", "identityOwner": "operator"},
        ("identityOwner", "awsAccessKeyID"),
        differs="the operator's identity is reachable through a connection only",
    ),
    Row("identityOwner unknown", GOOD | {"identityOwner": "me"}, ("identityOwner",)),
    Row("a bare queue name", GOOD | {"queueURL": "my-queue"}),
    Row("queueURLFromEnv", {**GOOD, "queueURL": "", "queueURLFromEnv": URL}),
    Row("queueURLFromEnv empty", {**GOOD, "queueURL": "", "queueURLFromEnv": ""}, ("queueURL",)),
    Row("keys from the environment", {**GOOD, "awsAccessKeyID": "", "awsAccessKeyIDFromEnv": "id"}),
    Row("scaleOnInFlight no flag", GOOD | {"scaleOnInFlight": "yes"}, ("scaleOnInFlight",)),
    Row("scaleOnDelayed no flag", GOOD | {"scaleOnDelayed": "2"}, ("scaleOnDelayed",)),
    Row(
        "queueLength zero",
        GOOD | {"queueLength": "0"},
        ("queueLength",),
        differs="KEDA accepts it and the API server then refuses the HPA",
    ),
    Row(
        "activationQueueLength negative",
        GOOD | {"activationQueueLength": "-1"},
        ("activationQueueLength",),
        differs="KEDA accepts it: an empty queue would be active for ever",
    ),
    Row("endpoint no URL", GOOD | {"awsEndpoint": "localhost"}, ("awsEndpoint",)),
    Row("ambient identity from a tenant", GOOD | {"awsAmbientIdentity": "true"}, ("awsAmbientIdentity",)),
    Row("ambient identity by FromEnv", GOOD | {"awsAmbientIdentityFromEnv": "true"}, ("awsAmbientIdentityFromEnv",)),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_metadata_row(row: Row) -> None:
    if not row.wrong:
        assert parse(row.metadata).refusal is None
        return
    with pytest.raises(TriggerInvalid) as caught:
        parse(row.metadata)
    assert {problem.field for problem in caught.value.problems} == set(row.wrong), str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "metric", "activation"),
    [
        pytest.param({}, (True, False), (True, False), id="KEDA's defaults: in flight yes, delayed no"),
        pytest.param({"scaleOnInFlight": "false"}, (False, False), (False, False), id="activation follows scaling"),
        pytest.param({"scaleOnDelayed": "true"}, (True, True), (True, True), id="delayed too"),
        pytest.param(
            {"scaleOnInFlight": "false", "activateOnInFlight": "true"}, (False, False), (True, False), id="sets differ"
        ),
        pytest.param({"activateOnInFlight": "f"}, (True, False), (False, False), id="only waiting work wakes"),
    ],
)
def test_the_sets_for_scaling_and_activation(
    metadata: dict[str, str], metric: tuple[bool, bool], activation: tuple[bool, bool]
) -> None:
    config = config_of(GOOD | metadata)
    assert (config.scale_on_in_flight, config.scale_on_delayed) == metric
    assert (config.activate_on_in_flight, config.activate_on_delayed) == activation


def test_defaults_are_those_of_keda() -> None:
    config = config_of({key: value for key, value in GOOD.items() if key != "queueLength"})
    assert (config.queue_length, config.activation_queue_length) == (5.0, 0.0)
    assert (config.queue, config.account) == ("DeleteArtifactQ", "account_id")


def test_the_metric_name_is_stable_and_fit_for_kubernetes() -> None:
    name = parse(GOOD).metric_name
    assert name == parse(GOOD).metric_name
    assert name.startswith("target-sqs-deleteartifactq")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_names_that_differ_in_case_only_do_not_collide() -> None:
    lower, upper = (parse(GOOD | {"queueURL": name}).metric_name for name in ("orders", "Orders"))
    assert lower == "target-sqs-orders"
    assert upper != lower


def test_no_secret_is_shown_anywhere() -> None:
    trigger = parse(GOOD | {"awsSecretAccessKey": "hunter2-secret", "awsAccessKeyID": "hunter2-id"})
    assert "hunter2" not in repr(trigger.config)
    assert "hunter2" not in trigger.identity + trigger.metric_name
    with pytest.raises(TriggerInvalid) as caught:
        parse({"queueURL": "", "awsSecretAccessKey": "hunter2-secret"})
    assert "hunter2" not in str(caught.value)


def connections(**changes: object) -> Settings:
    connection: dict[str, object] = {
        "source": "sqs",
        "namespaces": ["team-*"],
        "allow": {"queue": ["orders-*"]},
        "set": {"awsRegion": "eu-west-1", "awsAmbientIdentity": True, "awsRoleArn": "arn:aws:iam::1:role/r"},
    }
    parsed = FileSettings.model_validate({"connections": {"aws": connection | changes}})
    return resolve(parsed, {}, where="test")


def test_a_connection_brings_region_and_identity() -> None:
    trigger = parse({"queueURL": "orders-eu", "connection": "aws"}, connections())
    config = trigger.config
    assert isinstance(config, SqsConfig)
    assert trigger.refusal is None
    assert config.region == "eu-west-1"
    assert config.identity is not None
    assert config.identity.ambient


@pytest.mark.parametrize("key", ["awsRegion", "awsEndpoint", "awsAccessKeyID", "awsAccessKeyIDFromEnv", "awsRoleArn"])
def test_what_a_connection_fixes_cannot_be_overridden(key: str) -> None:
    with pytest.raises(TriggerInvalid, match=key):
        parse({"queueURL": "orders-eu", "connection": "aws", key: "http://x/y"}, connections())


@pytest.mark.parametrize(
    ("metadata", "settings"),
    [
        pytest.param({"connection": "aws", "queueURL": "orders"}, Settings(), id="missing"),
        pytest.param(
            {"connection": "aws", "queueURL": "orders"}, connections(namespaces=["team-b"]), id="not this namespace's"
        ),
    ],
)
def test_a_connection_that_cannot_be_used_refuses_reading_but_not_parsing(
    metadata: dict[str, str], settings: Settings
) -> None:
    trigger = parse(metadata, settings)
    assert isinstance(trigger.refusal, NamespaceDenied)
    assert trigger.metric_name == "target-sqs-orders"


def test_missing_and_forbidden_connections_answer_alike() -> None:
    metadata = {"connection": "aws", "queueURL": "orders"}
    assert str(parse(metadata).refusal) == str(parse(metadata, connections(namespaces=["other"])).refusal)


def test_a_queue_outside_the_allow_list_is_refused() -> None:
    assert parse({"queueURL": "orders-eu", "connection": "aws"}, connections()).refusal is None
    assert "payroll" in str(parse({"queueURL": "payroll", "connection": "aws"}, connections()).refusal)


def test_a_namespace_without_the_right_may_not_bring_endpoints() -> None:
    parsed = FileSettings.model_validate({"rights": [{"namespaces": ["*"], "metadataEndpoints": False}]})
    trigger = parse(GOOD, resolve(parsed, {}, where="test"))
    assert isinstance(trigger.refusal, NamespaceDenied)


def test_all_that_may_not_be_said_is_named_at_once() -> None:
    parsed = FileSettings.model_validate(
        {"rights": [{"namespaces": ["*"], "metadataEndpoints": False, "metadataCredentials": False}]}
    )
    trigger = parse(GOOD, resolve(parsed, {}, where="test"))
    for name in ("awsRegion", "awsAccessKeyID", "awsSecretAccessKey"):
        assert name in str(trigger.refusal)


@pytest.mark.parametrize("key", ["queueURL", "awsEndpoint", "awsCloudWatchEndpoint", "awsStsEndpoint"])
def test_a_password_in_an_address_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(TriggerInvalid) as found:
        parse(GOOD | {key: "https://user:hidden@sqs.eu-west-1.amazonaws.com/123456789012/orders"})
    assert [problem.field for problem in found.value.problems] == [key]
    assert "hidden" not in str(found.value)
    assert "user and password" in str(found.value)


def test_a_table_that_cannot_be_read_is_not_said_to_be_missing() -> None:
    with pytest.raises(TriggerInvalid) as found:
        parse(GOOD | {"policy": "steps", "steps": "1:2,1:3"})
    assert [problem.field for problem in found.value.problems] == ["steps"]
    assert "required" not in str(found.value)


@pytest.mark.parametrize("region", ["eu west 1", "eu-west-1/", "EU", "x" * 33, "eu.example"])
def test_what_is_no_region_is_told_by_its_name(region: str) -> None:
    with pytest.raises(TriggerInvalid) as found:
        parse(GOOD | {"awsRegion": region})
    assert [problem.field for problem in found.value.problems] == ["awsRegion"]


def test_a_table_of_steps_without_its_policy_is_told() -> None:
    with pytest.raises(TriggerInvalid, match="only for policy steps"):
        parse(GOOD | {"steps": "1:2"})
    assert parse(GOOD | {"steps": "1:2", "policy": "steps+burst"}).policy_name == "steps+burst"


def test_a_wait_without_the_policy_that_keeps_it_is_warned_of() -> None:
    trigger = parse(GOOD | {"waitSeconds": "30", "policy": "target"})
    assert any("waitSeconds" in warning for warning in trigger.warnings)
    assert not any("waitSeconds" in warning for warning in parse(GOOD | {"waitSeconds": "30"}).warnings)
