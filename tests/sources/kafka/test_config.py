"""Metadata conformance: the rows of KEDA's kafka_scaler_test.go and apache_kafka_scaler_test.go (8b4f083c).

Each row: what is said, and the fields that are wrong (none: accepted). Where we differ on purpose the id says
"ours" and the comment why. KEDA reads credentials from a TriggerAuthentication; here they stand in metadata
or come from a connection, under the same names and rules.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.errors import SourceMissing, TriggerInvalid
from scaler.parameters import Belongs, Secret, ValueProblem, Values, read_values
from scaler.settings import FileSettings, resolve
from scaler.sources.kafka import SOURCE
from scaler.sources.kafka.config import (
    KafkaConfig,
    MskConfig,
    OAuthConfig,
    parse_partitions,
    parse_server,
)
from scaler.sources.kafka.lag import KafkaReading, PartitionReading
from scaler.trigger import parse_trigger

BASE = {"bootstrapServers": "b:9092", "consumerGroup": "my-group", "topic": "my-topic"}
NO_TOPIC = {key: value for key, value in BASE.items() if key != "topic"}
TLS = {"tls": "enable", "ca": "caaa", "cert": "ceert", "key": "keey"}
PLAIN = {"sasl": "plaintext", "username": "admin", "password": "admin"}
OAUTH = {**PLAIN, "sasl": "oauthbearer", "oauthTokenEndpointUri": "https://website.com", "scopes": "scope"}
MSK = {
    "sasl": "oauthbearer",
    "saslTokenProvider": "aws_msk_iam",
    "tls": "enable",
    "awsRegion": "eu-west-1",
    "awsAccessKeyID": "none",
    "awsSecretAccessKey": "none",
}


def parsed(metadata: Mapping[str, str], fixed: Mapping[str, str | Secret] | None = None) -> tuple[KafkaConfig, Values]:
    values = read_values(SOURCE.parameters, metadata, fixed=fixed)
    return SOURCE.parse(values), values


def row(what: str, said: Mapping[str, str], *wrong: str, base: Mapping[str, str] = BASE) -> object:
    return pytest.param({**base, **said}, wrong, id=what)


ROWS = [
    row("nothing", {}, "bootstrapServers", "consumerGroup", base={}),
    row("no brokers", {"consumerGroup": "g", "topic": "t"}, "bootstrapServers", base={}),
    row("no group", {"bootstrapServers": "b:9092", "topic": "t"}, "consumerGroup", base={}),
    row("no topic", {}, base=NO_TOPIC),
    row(
        "brokers from the environment",
        {"bootstrapServersFromEnv": "b:9092,c:9092", "consumerGroupFromEnv": "g"},
        base={},
    ),
    row("version", {"version": "1.0.0"}),
    row("version before 1.0", {"version": "0.10.2.0"}),
    row("bad version", {"version": "1.2.3.4"}, "version"),
    row("partition limit without topic is ignored", {"partitionLimitation": "1,a,2"}, base=NO_TOPIC),
    row("partition limit of spaces", {"partitionLimitation": "    "}),
    row("partition limit", {"partitionLimitation": "1"}),
    row("partition list", {"partitionLimitation": "1,2,3,4,5,6"}),
    row("partition list with spaces", {"partitionLimitation": " 1, 2 ,3 "}),
    row("partition range", {"partitionLimitation": "1-4,8,10-12"}),
    row("partition range of one", {"partitionLimitation": "4-4"}),
    row("partition range backwards", {"partitionLimitation": "10-4"}),
    row("partition not a number", {"partitionLimitation": "a-4"}, "partitionLimitation"),
    row("partition range of three", {"partitionLimitation": "1-4-8"}, "partitionLimitation"),
    row("partition list with a letter", {"partitionLimitation": "1,2,a"}, "partitionLimitation"),
    row("partition below zero", {"partitionLimitation": "-1"}, "partitionLimitation"),
    row("lag threshold -1", {"lagThreshold": "-1"}, "lagThreshold"),
    row("lag threshold 0", {"lagThreshold": "0"}, "lagThreshold"),
    row("lag threshold 1000000", {"lagThreshold": "1000000"}),
    row("lag threshold no number", {"lagThreshold": "aa"}, "lagThreshold"),
    row("lag threshold a fraction", {"lagThreshold": "1.5"}, "lagThreshold"),
    row("activation 0", {"activationLagThreshold": "0"}),
    row("activation 10", {"lagThreshold": "10", "activationLagThreshold": "10"}),
    row("activation no number", {"activationLagThreshold": "aa"}, "activationLagThreshold"),
    row("activation below zero", {"activationLagThreshold": "-1"}, "activationLagThreshold"),
    row("reset policy latest", {"offsetResetPolicy": "latest"}),
    row("reset policy earliest", {"offsetResetPolicy": "earliest"}),
    row("reset policy unknown", {"offsetResetPolicy": "foo"}, "offsetResetPolicy"),
    row("idle consumers malformed", {"allowIdleConsumers": "notvalid"}, "allowIdleConsumers"),
    row("idle consumers", {"allowIdleConsumers": "true"}),
    row("persistent lag malformed", {"excludePersistentLag": "notvalid"}, "excludePersistentLag"),
    row("persistent lag", {"excludePersistentLag": "true"}),
    row("zero on invalid offset malformed", {"scaleToZeroOnInvalidOffset": "maybe"}, "scaleToZeroOnInvalidOffset"),
    row("limit to partitions with lag malformed", {"limitToPartitionsWithLag": "notvalid"}, "limitToPartitionsWithLag"),
    row("limit to partitions with lag", {"limitToPartitionsWithLag": "true"}),
    row(
        "limit and idle consumers exclude each other",
        {"limitToPartitionsWithLag": "true", "allowIdleConsumers": "true"},
        "limitToPartitionsWithLag",
    ),
    row("limit needs topic", {"limitToPartitionsWithLag": "true"}, "limitToPartitionsWithLag", base=NO_TOPIC),
    # apache-kafka does not check this one; the two caps contradict each other there too.
    row(
        "limit and even distribution exclude each other",
        {"limitToPartitionsWithLag": "true", "ensureEvenDistributionOfPartitions": "true"},
        "limitToPartitionsWithLag",
    ),
    row("even distribution", {"ensureEvenDistributionOfPartitions": "true"}),
    row(
        "even distribution with idle consumers", {"ensureEvenDistributionOfPartitions": "t", "allowIdleConsumers": "1"}
    ),
    row(
        "even distribution needs topic",
        {"ensureEvenDistributionOfPartitions": "true"},
        "ensureEvenDistributionOfPartitions",
        base=NO_TOPIC,
    ),
    row("full metadata", {"fullMetadata": "true"}),
    row("full metadata without topic", {"fullMetadata": "true"}, base=NO_TOPIC),
    row("no full metadata", {"fullMetadata": "false"}),
    row("no full metadata without topic", {"fullMetadata": "false"}, "fullMetadata", base=NO_TOPIC),
    row("full metadata malformed", {"fullMetadata": "no"}, "fullMetadata", base=NO_TOPIC),
    # SASL
    row("sasl none", {"sasl": "none"}),
    row("sasl plain", PLAIN),
    row("sasl plain without user", {"sasl": "plaintext", "password": "x"}, "username"),
    row("sasl plain without password", {"sasl": "plaintext", "username": "x"}, "password"),
    row("sasl plain with empty password", {**PLAIN, "password": " "}, "password"),
    row("sasl scram 256", {**PLAIN, "sasl": "scram_sha256"}),
    row("sasl scram 512", {**PLAIN, "sasl": "scram_sha512"}),
    row("sasl scram without anything", {"sasl": "scram_sha512"}, "username", "password"),
    row("sasl unknown", {**PLAIN, "sasl": "foo"}, "sasl"),
    row("secrets with line ends", {**PLAIN, "username": "admin\n", "password": " admin\n"}),
    row("sasl and tls", {**PLAIN, **TLS}),
    row("oauth", OAUTH),
    row("oauth with scopes", {**OAUTH, "scopes": "scope1, scope2"}),
    row("oauth without scopes", {**OAUTH, "scopes": ""}),
    row("oauth with an extension", {**OAUTH, "oauthExtensions": "extensionfoo=extensionbar"}),
    row("oauth with extensions", {**OAUTH, "oauthExtensions": "foo=bar,baz=baz"}),
    row("oauth with a bad extension", {**OAUTH, "oauthExtensions": "foo=bar,baz"}, "oauthExtensions"),
    row("ours: extension keys are letters (RFC 7628)", {**OAUTH, "oauthExtensions": "f\x01o=bar"}, "oauthExtensions"),
    row("oauth without endpoint", {**OAUTH, "oauthTokenEndpointUri": ""}, "oauthTokenEndpointUri"),
    row(
        "ours: oauth endpoint is a web address",
        {**OAUTH, "oauthTokenEndpointUri": "file:///x"},
        "oauthTokenEndpointUri",
    ),
    row("oauth without client", {**OAUTH, "username": "", "password": ""}, "username", "password"),
    row("msk with keys", MSK),
    row("msk with temporary keys", {**MSK, "awsSessionToken": "none"}),
    row("apache-kafka's word for msk", {**MSK, "sasl": "aws_msk_iam"}),
    row("msk without tls", {**MSK, "tls": "disable"}, "tls"),
    row("msk without region", {**MSK, "awsRegion": ""}, "awsRegion"),
    row("msk without keys", {**MSK, "awsAccessKeyID": "", "awsSecretAccessKey": ""}, "awsAccessKeyID"),
    row("msk without secret", {**MSK, "awsSecretAccessKey": ""}, "awsSecretAccessKey"),
    row("msk with a role to assume by the keys", {**MSK, "awsRoleArn": "arn:aws:iam::1:role/x"}),
    row("ours: the region becomes part of a host name", {**MSK, "awsRegion": "eu.evil/#"}, "awsRegion"),
    row("token provider unknown", {**MSK, "saslTokenProvider": "gcp"}, "saslTokenProvider"),
    # ours: Kerberos is refused whatever comes along; KEDA accepts the first of these rows and rejects the others.
    row("ours: gssapi", {"sasl": "gssapi", "username": "admin"}, "sasl"),
    row(
        "ours: gssapi with everything",
        {"sasl": "gssapi", "username": "u", "password": "p", "realm": "r", "kerberosConfig": "c"},
        "realm",
        "kerberosConfig",
        "sasl",
    ),
    row("ours: gssapi with keytab", {"sasl": "gssapi", "keytab": "k"}, "keytab", "sasl"),
    row(
        "ours: kerberos keys without gssapi",
        {"kerberosServiceName": "kafka", "kerberosDisableFAST": "true"},
        "kerberosServiceName",
        "kerberosDisableFAST",
    ),
    # TLS
    row("tls", TLS),
    row("tls with key password", {**TLS, "keyPassword": "keeyPassword"}),
    row("tls with authority only", {"tls": "enable", "ca": "caaa"}),
    row("tls without anything", {"tls": "enable"}),
    row("tls with cert only", {"tls": "enable", "cert": "ceert"}, "key"),
    row("tls with key only", {"tls": "enable", "key": "keey"}, "cert"),
    row("tls unknown", {**TLS, "tls": "yes"}, "tls"),
    row("tls off: cert without key is not looked at", {"cert": "ceert"}),
    row("our name for unsafeSsl", {**TLS, "sourceUnsafeSsl": "true"}),
    row("our name for unsafeSsl malformed", {**TLS, "sourceUnsafeSsl": "yes"}, "sourceUnsafeSsl"),
    # apache-kafka
    row("several topics", {"topic": "my-topic,my-other-topic"}),
    row("several topics with spaces", {"topic": " my-topic , my-other-topic "}),
    # ours: what the broker would only refuse later, or never.
    row("ours: an empty topic in the list", {"topic": "a,,b"}, "topic"),
    row("ours: a topic Kafka can't have", {"topic": "my topic"}, "topic"),
    row("ours: broker without port", {"bootstrapServers": "b"}, "bootstrapServers"),
    row("ours: port too large", {"bootstrapServers": "b:99999"}, "bootstrapServers"),
    row("ours: broker as URL", {"bootstrapServers": "http://b:9092"}, "bootstrapServers"),
    row("ours: every bad broker is named", {"bootstrapServers": "b,c:9092,d"}, "bootstrapServers", "bootstrapServers"),
    row("ours: persistentLagSeconds 0", {"persistentLagSeconds": "0"}, "persistentLagSeconds"),
    row(
        "ours: everything at once",
        {"lagThreshold": "0", "tls": "on", "sasl": "plaintext", "topic": "a b", "partitionLimitation": "x"},
        "lagThreshold",
        "tls",
        "topic",
        "partitionLimitation",
        "username",
        "password",
    ),
]


@pytest.mark.parametrize(("said", "wrong"), ROWS)
def test_metadata_as_kedas_tables(said: Mapping[str, str], wrong: tuple[str, ...]) -> None:
    _, values = parsed(said)
    assert [problem.field for problem in values.problems] == list(wrong)


def test_defaults_are_kedas() -> None:
    config, values = parsed(BASE)
    assert not values.problems
    assert config.endpoint.servers == (("b", 9092),)
    assert config.endpoint.tls is None
    assert config.endpoint.sasl is None
    rules = config.rules
    assert (rules.lag_threshold, rules.activation_lag_threshold, rules.earliest) == (10, 0, False)
    assert rules.persistent_lag_seconds is None
    flags = (
        rules.zero_on_invalid_offset,
        rules.allow_idle_consumers,
        rules.limit_to_partitions_with_lag,
        rules.even_distribution,
    )
    assert flags == (False, False, False, False)
    assert SOURCE.target(config) == 10.0


def test_values_reach_the_configuration() -> None:
    config, values = parsed(
        {
            **BASE,
            **OAUTH,
            **TLS,
            "partitionLimitation": "1,2,10-20",
            "scopes": "one, two",
            "oauthExtensions": "cluster=lkc",
            "excludePersistentLag": "true",
            "offsetResetPolicy": "earliest",
            "keyPassword": "hidden",
        }
    )
    assert not values.problems
    assert config.partitions == ((1, 1), (2, 2), (10, 20))
    assert config.rules.persistent_lag_seconds == 120.0
    assert config.rules.earliest
    sasl, tls = config.endpoint.sasl, config.endpoint.tls
    assert sasl is not None
    assert tls is not None
    assert sasl.mechanism == "OAUTHBEARER"
    assert sasl.tokens == OAuthConfig(endpoint_url="https://website.com", scopes=("one", "two"))
    assert sasl.extensions == (("cluster", "lkc"),)
    assert tls.key_password is not None
    assert tls.key_password.reveal() == "hidden"


def test_msk_carries_the_identity() -> None:
    config, _ = parsed({**BASE, **MSK})
    assert config.endpoint.sasl is not None
    tokens = config.endpoint.sasl.tokens
    assert isinstance(tokens, MskConfig)
    assert tokens.region == "eu-west-1"


def test_secrets_are_in_no_text_of_the_configuration() -> None:
    config, values = parsed({**BASE, **OAUTH, **TLS, "password": "s3cret-pw", "key": "s3cret-key", "tls": "wrong"})
    shown = f"{config!r} {[str(problem) for problem in values.problems]} {SOURCE.identity(config)}"
    assert "s3cret" not in shown


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        pytest.param(PLAIN, PLAIN, True, id="same user"),
        pytest.param(PLAIN, {**PLAIN, "password": "other"}, False, id="other password"),
        pytest.param(TLS, {**TLS, "ca": "other"}, False, id="other authority"),
        pytest.param(TLS, {**TLS, "sourceUnsafeSsl": "true"}, False, id="other trust"),
        pytest.param({"bootstrapServers": "a:1,b:2"}, {"bootstrapServers": "b:2, a:1"}, True, id="order of brokers"),
        pytest.param({}, {"lagThreshold": "3", "partitionLimitation": "1"}, True, id="thresholds"),
    ],
)
def test_clients_are_shared_by_cluster_and_credentials(
    first: Mapping[str, str], second: Mapping[str, str], *, shared: bool
) -> None:
    one, other = parsed({**BASE, **first})[0], parsed({**BASE, **second})[0]
    assert (SOURCE.endpoint(one) == SOURCE.endpoint(other)) is shared
    assert hash(SOURCE.endpoint(one)) is not None


def test_names() -> None:
    one, several, all_topics = (
        parsed(BASE)[0],
        parsed({**BASE, "topic": "b,a", "partitionLimitation": "1-3"})[0],
        parsed(NO_TOPIC)[0],
    )
    assert SOURCE.object_name(one) == "my-topic"
    assert SOURCE.object_name(several) == "a,b"
    assert SOURCE.object_name(all_topics) == "my-group-topics"
    assert SOURCE.identity(one) == "b:9092/my-group/my-topic"
    assert SOURCE.identity(several) == "b:9092/my-group/a,b/1-3"
    assert SOURCE.identity(all_topics) == "b:9092/my-group/*"
    assert SOURCE.resources(several) == {"group": ("my-group",), "topic": ("a", "b")}


@pytest.mark.parametrize(
    ("said", "word"),
    [
        pytest.param(NO_TOPIC, "name the topic", id="no topic"),
        pytest.param({**NO_TOPIC, "partitionLimitation": "1"}, "partitionLimitation is ignored", id="limit"),
        pytest.param({**BASE, **PLAIN}, "in the clear", id="password without tls"),
        pytest.param({**BASE, "ca": "x"}, "tls is disable", id="authority without tls"),
        pytest.param({**BASE, **TLS, "sourceUnsafeSsl": "true"}, "any certificate", id="unsafe"),
        pytest.param({**BASE, "username": "x"}, "sasl is none", id="user without sasl"),
        pytest.param({**BASE, "persistentLagSeconds": "5"}, "excludePersistentLag is false", id="seconds without flag"),
        pytest.param(
            {**BASE, "scaleToZeroOnInvalidOffset": "true", "offsetResetPolicy": "earliest"}, "never wakes", id="asleep"
        ),
    ],
)
def test_odd_configurations_are_warned_of(said: Mapping[str, str], word: str) -> None:
    config, values = parsed(said)
    assert not values.problems
    assert any(word in warning for warning in SOURCE.warnings(config))


def test_an_ordinary_configuration_warns_of_nothing() -> None:
    assert SOURCE.warnings(parsed(BASE)[0]) == ()


def test_endpoint_and_credentials_can_be_fixed_by_a_connection() -> None:
    settings = resolve(
        FileSettings.model_validate(
            {
                "connections": {
                    "events": {
                        "source": "kafka",
                        "namespaces": ["team-a"],
                        "allow": {"topic": ["orders-*"], "group": ["team-a-*"]},
                        "set": {"bootstrapServers": "b:9093", "tls": "enable", **PLAIN},
                    }
                }
            }
        ),
        {},
        where="test",
    )
    said = {"source": "kafka", "connection": "events", "consumerGroup": "team-a-x", "topic": "orders-1"}
    trigger = parse_trigger("team-a", "so", said, settings)
    assert trigger.refusal is None
    assert trigger.metric_name == "target-kafka-orders-1"
    denied = parse_trigger("team-a", "so", {**said, "topic": "payments"}, settings)
    assert "payments" in str(denied.refusal)
    with pytest.raises(TriggerInvalid, match="password"):
        parse_trigger("team-a", "so", {**said, "password": "other"}, settings)
    with pytest.raises(TriggerInvalid, match='did you mean "consumerGroup"'):
        parse_trigger("team-a", "so", {**said, "consumergroup": "x"}, settings)


def test_everything_about_access_belongs_to_endpoint_or_credentials() -> None:
    ours = {
        parameter.name
        for parameter in SOURCE.parameters
        if parameter.belongs is Belongs.TRIGGER and parameter.refused is None
    }
    assert ours == {
        "bootstrapServers",
        "consumerGroup",
        "topic",
        "partitionLimitation",
        "lagThreshold",
        "activationLagThreshold",
        "offsetResetPolicy",
        "allowIdleConsumers",
        "scaleToZeroOnInvalidOffset",
        "excludePersistentLag",
        "persistentLagSeconds",
        "limitToPartitionsWithLag",
        "ensureEvenDistributionOfPartitions",
        "version",
        "fullMetadata",
    } - {"bootstrapServers"}


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("b:9092", ("b", 9092)),
        ("kafka-0.kafka.svc.cluster.local:9092", ("kafka-0.kafka.svc.cluster.local", 9092)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]:9092", ("::1", 9092)),
    ],
)
def test_servers(text: str, server: tuple[str, int]) -> None:
    assert parse_server(text) == server


@given(st.text(max_size=60))
def test_any_text_is_a_server_or_a_problem(text: str) -> None:
    try:
        host, port = parse_server(text)
    except ValueProblem:
        return
    assert 1 <= port <= 65_535
    assert host


@given(st.text(alphabet="0123456789-, ab", max_size=40))
def test_any_text_is_partitions_or_a_problem(text: str) -> None:
    try:
        ranges = parse_partitions(text)
    except ValueProblem:
        return
    assert all(0 <= end <= 2**31 - 1 for pair in ranges for end in pair)


@given(st.dictionaries(st.sampled_from([p.name for p in SOURCE.parameters]), st.text(max_size=30), max_size=15))
def test_any_metadata_is_a_configuration_or_problems_and_never_an_error(said: Mapping[str, str]) -> None:
    config, _ = parsed(said)
    hash(SOURCE.endpoint(config))
    SOURCE.identity(config)
    SOURCE.warnings(config)


def partition(topic: str, number: int, lag: int) -> PartitionReading:
    return PartitionReading(
        topic=topic,
        partition=number,
        end=100,
        start=None,
        committed=100 - lag,
        arrived=100,
        completed=100 - lag,
        still_seconds=0.0,
    )


def test_a_sample_counts_the_selected_partitions_only() -> None:
    config, _ = parsed({**BASE, "partitionLimitation": "1,3-4", "allowIdleConsumers": "true"})
    reading = KafkaReading(7.0, tuple(partition("my-topic", number, 10 + number) for number in range(6)))
    sample = SOURCE.sample(config, reading, now_seconds=9.0, view=None)
    assert sample.at_seconds == 7.0
    assert sample.metric_value == sample.in_system == 11 + 13 + 14
    assert sample.waiting is None  # what a consumer holds in its hands is among them, and not told
    assert sample.active
    assert (sample.arrived_total, sample.completed_total, sample.in_flight) == (300.0, 300.0 - 38, None)
    assert (sample.in_system_least, sample.in_system_most) == (38.0, 38.0)
    assert sample.raw["partitions"] == 3.0
    assert sample.most_replicas is None


def test_the_metric_is_capped_and_what_is_in_the_system_is_not() -> None:
    config, _ = parsed({**BASE, "lagThreshold": "10"})
    reading = KafkaReading(7.0, tuple(partition("my-topic", number, 40) for number in range(2)))
    sample = SOURCE.sample(config, reading, now_seconds=9.0, view=None)
    assert (sample.metric_value, sample.in_system, sample.most_replicas) == (20.0, 80.0, 2)


def test_no_selected_partition_is_an_error_and_no_zero() -> None:
    config, _ = parsed({**BASE, "partitionLimitation": "7"})
    with pytest.raises(SourceMissing, match="partitionLimitation"):
        SOURCE.sample(config, KafkaReading(0.0, (partition("my-topic", 0, 5),)), now_seconds=0.0, view=None)


def test_what_people_are_shown_of_many_topics_is_bounded() -> None:
    config, _ = parsed(NO_TOPIC)
    reading = KafkaReading(0.0, tuple(partition(f"t{number}", 0, number % 90) for number in range(500)))
    sample = SOURCE.sample(config, reading, now_seconds=0.0, view=None)
    assert len(sample.raw) < 30
    assert sample.raw["lag_messages t89"] == 89.0
