"""Apache Kafka for tests: the shared broker's address, and clusters of one's own to break.

A cluster runs in KRaft mode, each node broker and controller. Every node has five listeners, so that one cluster serves
tests of every kind of connection:

| listener | what it wants |
|---|---|
| PLAINTEXT | nothing; its clients are super users |
| SSL | TLS; a client certificate of the cluster's authority is checked where one is shown |
| MTLS | TLS with a client certificate; the principal is `User:CN=<name>` |
| SASL_PLAINTEXT, SASL_SSL | PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 for `USERS`, OAUTHBEARER for tokens of `tokens` |

Resources without an access rule are open to everyone; a rule on a topic or a group closes it to all others.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import struct
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.services import install
from tests.services.certificates import CertificateAuthority
from tests.services.process import (
    LOOPBACK,
    ServerProcess,
    ServiceUnavailableError,
    free_port,
    scratch_folder,
    wait_until,
)
from tests.services.tokens import TokenIssuer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

USERS = {"alice": "alice-secret", "bob": "bob-secret"}
"""Users of the SASL mechanisms PLAIN and SCRAM, with their passwords."""

LISTENERS = {
    "PLAINTEXT": "PLAINTEXT",
    "SSL": "SSL",
    "MTLS": "SSL",
    "SASL_PLAINTEXT": "SASL_PLAINTEXT",
    "SASL_SSL": "SASL_SSL",
}
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
# the client compiler and the serial collector: a broker starts in half the time, and two cores are all there is
JAVA_FLAGS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Dlog4j2.level=WARN")
TOOL_SECONDS = 60.0
READY_SECONDS = 90.0
ADMIN_TIMEOUT_MILLISECONDS = 30_000


@dataclass(frozen=True)
class Kafka:
    """A running cluster's plaintext address."""

    bootstrap: str

    async def create_topic(
        self,
        name: str,
        *,
        partitions: int = 1,
        replication: int = 1,
        configs: Mapping[str, str] | None = None,
        nodes: Sequence[int] | None = None,
    ) -> None:
        """Create a topic; automatic creation is off, so that a missing topic is missing.

        `nodes`: the only replica of partition i is on node `nodes[i]`, which leads it for good. Without it the cluster
        places `partitions` of `replication` replicas as it likes: the first is on a node of its choice.

        Returns once a broker tells of the topic: it takes it first, and knows it a moment later.
        """
        async with self._admin() as admin:
            placed = {"replica_assignments": {i: [node] for i, node in enumerate(nodes)}} if nodes is not None else {}
            counts = (-1, -1) if nodes is not None else (partitions, replication)
            topic = NewTopic(name, *counts, topic_configs=dict(configs or {}), **placed)
            answer = await admin.create_topics([topic], timeout_ms=ADMIN_TIMEOUT_MILLISECONDS)
            for _, code, message in answer.topic_errors:
                if code:
                    raise RuntimeError(f"topic {name} was not created: error {code}: {message}")
            async with asyncio.timeout(READY_SECONDS):
                while any(told["error_code"] for told in await admin.describe_topics([name])):  # noqa: ASYNC110 - it is the broker's
                    await asyncio.sleep(0.05)

    async def coordinators(self, groups: Iterable[str]) -> dict[str, int]:
        """The node that coordinates each group; a group need not exist to have one."""
        async with self._admin() as admin:
            return {group: await admin.find_coordinator(group) for group in groups}

    async def delete_topic(self, name: str) -> None:
        """Delete a topic."""
        async with self._admin() as admin:
            await admin.delete_topics([name], timeout_ms=ADMIN_TIMEOUT_MILLISECONDS)

    @contextlib.asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap, request_timeout_ms=ADMIN_TIMEOUT_MILLISECONDS)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    def tool(self, name: str, *arguments: str) -> str:
        """Run one of Kafka's command-line tools (about 2 s) and return what it prints, for example
        `tool("org.apache.kafka.tools.TopicCommand", "--describe")` or
        `tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", "--describe", "--group", "g")`.
        """
        return _java(name, "--bootstrap-server", self.bootstrap, *arguments)

    def allow(self, principal: str, *arguments: str) -> None:
        """Add an access rule: `allow("User:alice", "--operation", "Describe", "--topic", "orders")`."""
        self.tool("org.apache.kafka.tools.AclCommand", "--add", "--allow-principal", principal, *arguments)


@dataclass(frozen=True)
class KafkaCluster(Kafka):
    """A cluster that a test may stop, kill, pause and start again, node by node (numbered from 1)."""

    listeners: Mapping[str, str]
    """Bootstrap addresses by listener name, see the module's table."""
    authority: CertificateAuthority
    """The authority that signed the brokers' certificates; it also makes client certificates."""
    tokens: TokenIssuer
    """Makes tokens for OAUTHBEARER."""
    nodes: Mapping[int, ServerProcess]

    def kill(self, node: int = 1) -> None:
        """End a node as a crash would."""
        self.nodes[node].kill()

    def stop(self, node: int = 1) -> None:
        """End a node in order: it hands its partitions over first."""
        self.nodes[node].stop()

    def start(self, node: int = 1) -> None:
        """Start a node again, on its ports and its data; blocks until it answers (about 4 s)."""
        self.nodes[node].start()

    def wait_whole(self) -> None:
        """Wait until every node counts all of them: one that was away answers before it may lead a new partition."""
        addresses = [address.rpartition(":") for address in self.listeners["PLAINTEXT"].split(",")]
        wait_until(
            lambda: all(broker_count(host, int(port)) == len(addresses) for host, _, port in addresses),
            what="a cluster of all nodes",
            timeout_seconds=READY_SECONDS,
        )

    def pause(self, node: int = 1) -> None:
        """Freeze a node: connections stay open and nothing is answered."""
        self.nodes[node].pause()

    def resume(self, node: int = 1) -> None:
        """Let a paused node go on."""
        self.nodes[node].resume()


@contextlib.contextmanager
def start_kafka(
    *,
    nodes: int = 1,
    heap_megabytes: int = 512,
    properties: Mapping[str, str] | None = None,
    folder: Path | None = None,
    plaintext_port: int | None = None,
    outlives_us: bool = False,
) -> Iterator[KafkaCluster]:
    """Run a cluster. `properties` are added to each node's server.properties. Blocks for about 6 s plus 3 s a node."""
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(scratch_folder("kafka")) if folder is None else folder
        cluster = _prepare(
            home,
            nodes=nodes,
            heap_megabytes=heap_megabytes,
            properties=properties or {},
            plaintext_port=plaintext_port,
            outlives_us=outlives_us,
        )
        for process in cluster.nodes.values():
            stack.callback(process.kill)
        for process in cluster.nodes.values():
            process.launch()
        for process in cluster.nodes.values():
            process.wait_ready()
        if outlives_us:
            stack.pop_all()
        yield cluster


def _prepare(
    home: Path,
    *,
    nodes: int,
    heap_megabytes: int,
    properties: Mapping[str, str],
    plaintext_port: int | None,
    outlives_us: bool,
) -> KafkaCluster:
    authority = CertificateAuthority(home / "certificates")
    server = authority.server("kafka")
    key_store = home / "certificates" / "kafka-store.pem"
    key_store.write_text(server.key_pem + server.certificate_pem)
    tokens = TokenIssuer()
    (home / "jwks.json").write_text(tokens.jwks())
    numbers = range(1, nodes + 1)
    controller_ports = {number: free_port() for number in numbers}
    ports = {number: {listener: free_port() for listener in LISTENERS} for number in numbers}
    if plaintext_port is not None:
        ports[1]["PLAINTEXT"] = plaintext_port
    common = {
        "process.roles": "broker,controller",
        "controller.quorum.voters": ",".join(
            f"{number}@{LOOPBACK}:{port}" for number, port in controller_ports.items()
        ),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": ",".join(
            f"{listener}:{protocol}" for listener, protocol in {**LISTENERS, "CONTROLLER": "PLAINTEXT"}.items()
        ),
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        "offsets.topic.num.partitions": "5",
        "offsets.topic.replication.factor": str(min(3, nodes)),
        "transaction.state.log.num.partitions": "5",
        "transaction.state.log.replication.factor": str(min(3, nodes)),
        "transaction.state.log.min.isr": "1",
        "broker.heartbeat.interval.ms": "500",
        # a killed leader is replaced in 6 s instead of 9 s; a lone broker on a busy machine is never taken for dead
        "broker.session.timeout.ms": "6000" if nodes > 1 else "60000",
        "controlled.shutdown.enable": "true",
        "log.retention.check.interval.ms": "1000",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
        "super.users": "User:ANONYMOUS",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(key_store),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.certificate_path),
        "listener.name.ssl.ssl.client.auth": "requested",
        "listener.name.mtls.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": ",".join(MECHANISMS),
        # the default one checks no signature here
        "sasl.oauthbearer.jwt.validator.class": "org.apache.kafka.common.security.oauthbearer.BrokerJwtValidator",
        "sasl.oauthbearer.jwks.endpoint.url": (home / "jwks.json").as_uri(),
        "sasl.oauthbearer.expected.issuer": tokens.issuer,
        "sasl.oauthbearer.expected.audience": tokens.audience,
    }
    plain_users = " ".join(f'user_{name}="{password}"' for name, password in USERS.items())
    modules = "org.apache.kafka.common.security"
    for listener in ("sasl_plaintext", "sasl_ssl"):
        prefix = f"listener.name.{listener}"
        common[f"{prefix}.plain.sasl.jaas.config"] = f"{modules}.plain.PlainLoginModule required {plain_users};"
        for mechanism in ("scram-sha-256", "scram-sha-512"):
            common[f"{prefix}.{mechanism}.sasl.jaas.config"] = f"{modules}.scram.ScramLoginModule required;"
        common[f"{prefix}.oauthbearer.sasl.jaas.config"] = (
            f'{modules}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'
        )
        common[f"{prefix}.oauthbearer.sasl.server.callback.handler.class"] = (
            f"{modules}.oauthbearer.OAuthBearerValidatorCallbackHandler"
        )
    for number in numbers:
        addresses = {listener: f"{LOOPBACK}:{port}" for listener, port in ports[number].items()}
        advertised = ",".join(f"{listener}://{address}" for listener, address in addresses.items())
        own = {
            "node.id": str(number),
            "listeners": f"{advertised},CONTROLLER://{LOOPBACK}:{controller_ports[number]}",
            "advertised.listeners": advertised,
            "log.dirs": str(home / f"node-{number}"),
        }
        lines = [f"{name}={value}" for name, value in {**common, **own, **properties}.items()]
        (home / f"node-{number}.properties").write_text("\n".join(lines) + "\n")
    _format(home, numbers)
    trusted = f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={(home / 'jwks.json').as_uri()}"
    command = [
        install.java(),
        f"-Xmx{heap_megabytes}m",
        *JAVA_FLAGS,
        trusted,
        "-cp",
        install.kafka_class_path(),
        "kafka.Kafka",
    ]
    processes = {
        number: ServerProcess(
            f"kafka-{number}",
            [*command, str(home / f"node-{number}.properties")],
            folder=home,
            is_ready=_Sees(ports[number]["PLAINTEXT"], nodes),
            ready_seconds=READY_SECONDS,
            outlives_us=outlives_us,
        )
        for number in numbers
    }
    listeners = {
        listener: ",".join(f"{LOOPBACK}:{ports[number][listener]}" for number in numbers) for listener in LISTENERS
    }
    return KafkaCluster(
        bootstrap=listeners["PLAINTEXT"],
        listeners=listeners,
        authority=authority,
        tokens=tokens,
        nodes=processes,
    )


def _format(home: Path, numbers: range) -> None:
    """Format the nodes' folders, two at a time: each takes a Java start of about 2 s."""
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    scram = [
        f"--add-scram={mechanism}=[name={name},password={password}]"
        for name, password in USERS.items()
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
    ]

    def one(number: int) -> None:
        _java(
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={cluster}",  # as two words, an id that begins with "-", one of 64, would be an option
            "-c",
            str(home / f"node-{number}.properties"),
            *scram,
        )

    with ThreadPoolExecutor(max_workers=2) as pool:
        for _ in pool.map(one, numbers):
            pass


class _Sees:
    """Ready check of a node: it answers a metadata request, and the answer names as many brokers as are running."""

    def __init__(self, port: int, brokers: int) -> None:
        self._port = port
        self._brokers = brokers

    def __call__(self) -> bool:
        brokers = broker_count(LOOPBACK, self._port)
        enough = brokers is not None and brokers >= self._brokers
        if enough:
            self._brokers = 1  # after a restart the others may be down on purpose
        return enough


def broker_count(host: str, port: int) -> int | None:
    """Return how many brokers the one at this plaintext address knows; None where it doesn't answer within a second."""
    request = struct.pack(">hhihi", 3, 1, 7, -1, 0)  # Metadata version 1, correlation id 7, no client id, no topics
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.recv(12, socket.MSG_WAITALL)  # length, correlation id, count of brokers
    except OSError:
        return None
    if len(answer) < 12:
        return None
    count: int = struct.unpack(">iii", answer)[2]
    return count


def _java(main_class: str, *arguments: str) -> str:
    command = [
        install.java(),
        "-Xmx256m",
        *JAVA_FLAGS,
        "-cp",
        install.kafka_class_path(),
        main_class,
        *arguments,
    ]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TOOL_SECONDS,
        check=False,
        env=dict(os.environ),
    )
    if done.returncode != 0:
        raise ServiceUnavailableError(f"{main_class} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
