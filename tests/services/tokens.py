"""An OAuth 2 token issuer for tests: signs JSON web tokens (RS256) that Kafka and RabbitMQ check, and serves the
client-credentials grant over HTTP on loopback.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import json
import threading
import time
import urllib.parse
from typing import TYPE_CHECKING, ClassVar

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.services.process import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ISSUER = "https://issuer.test"
KEY_ID = "pilotlight-test-key"


@functools.cache
def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65_537, key_size=2048)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenIssuer:
    """One signing key and the tokens made with it."""

    def __init__(self, *, issuer: str = ISSUER, audience: str = "pilotlight") -> None:
        self.issuer = issuer
        self.audience = audience

    def token(self, subject: str, *, scopes: Sequence[str] = (), lifetime_seconds: float = 3600.0) -> str:
        """Return a signed token; a negative lifetime makes one that has expired."""
        now = int(time.time())
        claims: dict[str, str | int] = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": subject,
            "client_id": subject,
            "iat": now - 1,
            "exp": now + int(lifetime_seconds),
        }
        if scopes:  # Kafka refuses an empty claim
            claims["scope"] = " ".join(scopes)
        head = {"alg": "RS256", "typ": "JWT", "kid": KEY_ID}
        signed = f"{_base64(json.dumps(head).encode())}.{_base64(json.dumps(claims).encode())}"
        signature = _key().sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_base64(signature)}"

    def jwks(self) -> str:
        """Return the public key as a JSON web key set."""
        numbers = _key().public_key().public_numbers()
        key = {
            "kty": "RSA",
            "use": "sig",
            "alg": "RS256",
            "kid": KEY_ID,
            "n": _base64(numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8)),
            "e": _base64(numbers.e.to_bytes(3)),
        }
        return json.dumps({"keys": [key]})

    def public_key_pem(self) -> str:
        """Return the public key as PEM."""
        return (
            _key()
            .public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode()
        )


class TokenServer:
    """What `serve_tokens` yields: the endpoint, and what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[dict[str, str]] = []


@contextlib.contextmanager
def serve_tokens(
    issuer: TokenIssuer,
    *,
    clients: dict[str, str],
    scopes: Sequence[str] = (),
    lifetime_seconds: float = 3600.0,
) -> Iterator[TokenServer]:
    """Serve `POST /token` with grant_type=client_credentials for `clients` (identifier to secret); 401 for others. The
    token carries the scopes that were asked for, or `scopes`. Credentials are read from the form or from HTTP basic.
    """
    server: http.server.ThreadingHTTPServer

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        state: ClassVar[TokenServer]

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            form = {name: values[0] for name, values in urllib.parse.parse_qs(body.decode()).items()}
            header = self.headers.get("Authorization", "")
            if header.startswith("Basic "):
                name, _, secret = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
                form.setdefault("client_id", urllib.parse.unquote(name))
                form.setdefault("client_secret", urllib.parse.unquote(secret))
            self.state.requests.append(form)
            client = form.get("client_id", "")
            if clients.get(client) is None or clients[client] != form.get("client_secret"):
                self._answer(401, {"error": "invalid_client"})
                return
            wanted = form["scope"].split() if form.get("scope") else list(scopes)
            token = issuer.token(client, scopes=wanted, lifetime_seconds=lifetime_seconds)
            self._answer(200, {"access_token": token, "token_type": "Bearer", "expires_in": int(lifetime_seconds)})

        def do_GET(self) -> None:
            self._answer(200, json.loads(issuer.jwks()))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
            """Stay quiet: pytest shows what a test prints."""

        def _answer(self, status: int, document: dict[str, object]) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer((LOOPBACK, 0), Handler)
    state = TokenServer(f"http://{LOOPBACK}:{server.server_port}/token")
    Handler.state = state
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
