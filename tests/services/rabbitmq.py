"""RabbitMQ with its management API for tests: the shared broker's addresses, and brokers of one's own to break.

A broker that is started here listens on loopback for AMQP and HTTP, both plain and under TLS; user `guest` may do
everything. Its statistics are collected each second (RabbitMQ's own default is 5 s), and lag by as much.
"""

from __future__ import annotations

import contextlib
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import requests

from tests.services import install
from tests.services.certificates import CertificateAuthority
from tests.services.process import (
    LOOPBACK,
    ServerProcess,
    accepts_connections,
    free_port,
    scratch_folder,
    unique,
)
from tests.services.tokens import KEY_ID, TokenIssuer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

GUEST = "guest"
HTTP_SECONDS = 10.0
READY_SECONDS = 90.0
STATISTICS_MILLISECONDS = 1000
OAUTH_RESOURCE = "rabbitmq"
"""The audience that tokens need, and the prefix of their scopes: `rabbitmq.read:*/*`."""


@dataclass(frozen=True, kw_only=True)
class RabbitMQ:
    """A running broker's addresses and its administrator."""

    host: str
    amqp_port: int
    http_port: int
    user: str = GUEST
    password: str = GUEST

    def amqp_url(self, vhost: str = "/", *, user: str | None = None, password: str | None = None) -> str:
        """Return `amqp://user:password@host:port/vhost`, everything quoted."""
        return f"amqp://{self._credentials(user, password)}@{self.host}:{self.amqp_port}/{_quoted(vhost)}"

    def http_url(self, vhost: str | None = None, *, user: str | None = None, password: str | None = None) -> str:
        """Return `http://user:password@host:port`, with `/vhost` where given, as KEDA's trigger takes it."""
        path = "" if vhost is None else f"/{_quoted(vhost)}"
        return f"http://{self._credentials(user, password)}@{self.host}:{self.http_port}{path}"

    def api(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Call the management API as administrator, `api("GET", "/queues/%2F/orders")`; return its JSON, if any."""
        answer = requests.request(
            method,
            f"http://{self.host}:{self.http_port}/api{path}",
            json=body,
            auth=(self.user, self.password),
            timeout=HTTP_SECONDS,
        )
        answer.raise_for_status()
        return answer.json() if answer.content else None

    @contextlib.contextmanager
    def vhost(self, prefix: str = "test") -> Iterator[str]:
        """Create a virtual host of this test's own, with all rights for the administrator; delete it at the end."""
        name = unique(prefix)
        self.api("PUT", f"/vhosts/{_quoted(name)}", {})
        self.allow(self.user, name)
        try:
            yield name
        finally:
            self.api("DELETE", f"/vhosts/{_quoted(name)}")

    @contextlib.contextmanager
    def account(self, *, password: str = "secret", tags: str = "monitoring") -> Iterator[str]:
        """Create a user without rights (`allow` gives some). `tags` "monitoring" lets it read the management API."""
        name = unique("user")
        self.api("PUT", f"/users/{_quoted(name)}", {"password": password, "tags": tags})
        try:
            yield name
        finally:
            self.api("DELETE", f"/users/{_quoted(name)}")

    def allow(self, user: str, vhost: str, *, configure: str = ".*", write: str = ".*", read: str = ".*") -> None:
        """Give a user rights on the names of a virtual host that match these regular expressions."""
        rights = {"configure": configure, "write": write, "read": read}
        self.api("PUT", f"/permissions/{_quoted(vhost)}/{_quoted(user)}", rights)

    def _credentials(self, user: str | None, password: str | None) -> str:
        return (
            f"{_quoted(self.user if user is None else user)}:{_quoted(self.password if password is None else password)}"
        )


@dataclass(frozen=True, kw_only=True)
class RabbitMQBroker(RabbitMQ):
    """A broker that a test may stop, kill, pause and start again; its durable queues survive."""

    amqps_port: int
    https_port: int
    authority: CertificateAuthority
    """Signed the broker's certificate; client certificates of it are checked where shown."""
    tokens: TokenIssuer
    """Makes tokens that the broker takes as password where `oauth=True`: scopes such as `rabbitmq.read:*/*`."""
    process: ServerProcess
    port_mapper: ServerProcess
    """Erlang's epmd; it stays up while the broker is down."""

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()

    def stop(self) -> None:
        """End it in order."""
        self.process.stop()

    def start(self) -> None:
        """Start it again on its ports and its data; blocks until both protocols answer (about 6 s)."""
        self.process.start()

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing is answered."""
        self.process.pause()

    def resume(self) -> None:
        """Let it go on."""
        self.process.resume()


@contextlib.contextmanager
def start_rabbitmq(
    *,
    oauth: bool = False,
    statistics_milliseconds: int = STATISTICS_MILLISECONDS,
    configuration: Mapping[str, str] | None = None,
    plugins: Sequence[str] = (),
    folder: Path | None = None,
    amqp_port: int | None = None,
    http_port: int | None = None,
    outlives_us: bool = False,
) -> Iterator[RabbitMQBroker]:
    """Run a broker. `oauth` also accepts tokens of `broker.tokens`; `configuration` goes to rabbitmq.conf, `plugins`
    are enabled besides management.
    """
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(scratch_folder("rabbitmq")) if folder is None else folder
        authority = CertificateAuthority(home / "certificates")
        certificate = authority.server("rabbitmq")
        tokens = TokenIssuer(audience=OAUTH_RESOURCE)
        mapper_port = free_port()
        # started by us: the node would start one that outlives it
        mapper = ServerProcess(
            "epmd",
            [install.epmd(), "-port", str(mapper_port), "-address", LOOPBACK],
            folder=home,
            is_ready=lambda: accepts_connections(LOOPBACK, mapper_port),
            outlives_us=outlives_us,
        )
        broker = RabbitMQBroker(
            host=LOOPBACK,
            amqp_port=amqp_port or free_port(),
            http_port=http_port or free_port(),
            amqps_port=free_port(),
            https_port=free_port(),
            authority=authority,
            tokens=tokens,
            port_mapper=mapper,
            process=ServerProcess(
                "rabbitmq",
                [install.rabbitmq_server()],
                folder=home,
                environment=_environment(home, mapper_port),
                is_ready=lambda: _answers(broker),
                ready_seconds=READY_SECONDS,
                outlives_us=outlives_us,
            ),
        )
        settings = {
            "listeners.tcp.1": f"{LOOPBACK}:{broker.amqp_port}",
            "listeners.ssl.1": f"{LOOPBACK}:{broker.amqps_port}",
            **_tls("ssl_options", authority, certificate.certificate_path, certificate.key_path),
            "management.tcp.ip": LOOPBACK,
            "management.tcp.port": str(broker.http_port),
            "management.ssl.ip": LOOPBACK,
            "management.ssl.port": str(broker.https_port),
            **_tls("management.ssl", authority, certificate.certificate_path, certificate.key_path),
            "collect_statistics_interval": str(statistics_milliseconds),
            # The management API adds up by the finest of these, 5 s by default, whatever the pace of collecting.
            "management.sample_retention_policies.global.minute": "1",
            "management.sample_retention_policies.basic.minute": "1",
            "management.sample_retention_policies.detailed.10": "1",
            "disk_free_limit.absolute": "50MB",
            "log.console": "true",
            "log.console.level": "info",
            "log.file": "false",
            **(_oauth(home, tokens) if oauth else {}),
            **(configuration or {}),
        }
        (home / "rabbitmq.conf").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        enabled = ["rabbitmq_management", *(["rabbitmq_auth_backend_oauth2"] if oauth else []), *plugins]
        (home / "enabled_plugins").write_text(f"[{','.join(enabled)}].\n")
        mapper.start()
        stack.callback(mapper.kill)
        broker.process.start()
        stack.callback(broker.process.kill)
        if outlives_us:
            stack.pop_all()
        yield broker


def _environment(home: Path, mapper_port: int) -> dict[str, str]:
    return {
        "HOME": str(home),  # the Erlang cookie lives there
        "ERL_EPMD_PORT": str(mapper_port),
        "ERL_EPMD_ADDRESS": LOOPBACK,
        "RABBITMQ_NODENAME": f"{unique('pilotlight')}@localhost",
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false",
        "RABBITMQ_CONF_ENV_FILE": str(home / "no-environment-file"),  # not the machine's own
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(home / "data"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_PID_FILE": str(home / "rabbitmq.pid"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(home / "generated"),
        "RABBITMQ_FEATURE_FLAGS_FILE": str(home / "feature_flags"),
    }


def _tls(prefix: str, authority: CertificateAuthority, certificate: Path, key: Path) -> dict[str, str]:
    return {
        f"{prefix}.cacertfile": str(authority.certificate_path),
        f"{prefix}.certfile": str(certificate),
        f"{prefix}.keyfile": str(key),
        f"{prefix}.verify": "verify_peer",
        f"{prefix}.fail_if_no_peer_cert": "false",
    }


def _oauth(home: Path, tokens: TokenIssuer) -> dict[str, str]:
    key = home / "token-key.pem"
    key.write_text(tokens.public_key_pem())
    return {
        "auth_backends.1": "internal",
        "auth_backends.2": "rabbit_auth_backend_oauth2",
        "auth_oauth2.resource_server_id": OAUTH_RESOURCE,
        f"auth_oauth2.signing_keys.{KEY_ID}": str(key),
        "auth_oauth2.default_key": KEY_ID,
        "auth_oauth2.algorithms.1": "RS256",
        "management.disable_basic_auth": "false",
    }


def _answers(broker: RabbitMQ) -> bool:
    if not accepts_connections(broker.host, broker.amqp_port):
        return False
    try:
        broker.api("GET", "/overview")
    except requests.RequestException:
        return False
    return True


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")
