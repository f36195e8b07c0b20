"""OAuth 2.0 tokens by client credentials (RFC 6749, section 4.4), kept until shortly before they expire."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol
from urllib.parse import quote_plus, urlencode

from scaler.errors import SourceDenied, SourceUnavailable, quoted
from scaler.parameters import parse_query
from scaler.sources.rabbitmq.config import OAuth

# A token is renewed this long before it expires, or after half its life where that is shorter: RabbitMQ
# checks the time by its own clock.
_RENEW_BEFORE_SECONDS = 60.0
# What RFC 6749 recommends to assume where the answer has no expires_in is left open; most issuers give an hour.
_ASSUMED_LIFE_SECONDS = 300.0
# The error codes of RFC 6749, section 5.2: safe to show, since nothing else of the answer is.
_ERROR_CODES = frozenset(
    {
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
    }
)


class Post(Protocol):
    """Sends a form; answers status and bounded body. Raises SourceError."""

    def __call__(self, url: str, *, headers: Mapping[str, str], body: str, what: str) -> Awaitable[tuple[int, bytes]]:
        """(status, body)."""


class Tokens:
    """The current token of one client. Many may ask at once: one request serves them."""

    def __init__(self, oauth: OAuth, post: Post, clock: Callable[[], float]) -> None:
        self._oauth = oauth
        self._post = post
        self._clock = clock
        self._lock = asyncio.Lock()
        self._token: str | None = None
        self._renew_at_seconds = 0.0
        self._in_header = True  # how the client authenticates: learned as Go's oauth2 does

    async def token(self) -> str:
        """A token that is good for a while yet.

        Raises SourceDenied where the token endpoint refuses us, SourceUnavailable where it can't be used.
        """
        async with self._lock:
            if self._token is None or self._clock() >= self._renew_at_seconds:
                self._token = None
                self._token = await self._fetch()
            return self._token

    def forget(self, token: str) -> None:
        """RabbitMQ refused `token`: the next call fetches another one."""
        if self._token == token:
            self._token = None

    async def _fetch(self) -> str:
        what = f"token endpoint {quoted(self._oauth.token_url)}"
        asked_at_seconds = self._clock()
        status, body = await self._ask(what)
        if status in (400, 401):
            # Some endpoints take the client's secret in the header only, some in the form only.
            self._in_header = not self._in_header
            status, body = await self._ask(what)
        if status != 200:
            if status in (400, 401, 403):
                code = _text(_object(body), "error")
                said = f", {code}" if code in _ERROR_CODES else ""
                raise SourceDenied(
                    f"{what}: no token (status {status}{said}); check clientID, clientSecret, scopes and endpointParams"
                )
            raise SourceUnavailable(f"{what}: no token (status {status})")
        answer = _object(body)
        token = _text(answer, "access_token")
        if not token or not token.isascii() or not token.isprintable():
            raise SourceUnavailable(f"{what}: its answer holds no access_token; check oauthTokenURI")
        life = answer.get("expires_in")
        seconds = float(life) if isinstance(life, int) and 0 < life < 10**9 else _ASSUMED_LIFE_SECONDS
        self._renew_at_seconds = asked_at_seconds + max(seconds / 2, seconds - _RENEW_BEFORE_SECONDS)
        return token

    async def _ask(self, what: str) -> tuple[int, bytes]:
        oauth = self._oauth
        form = [("grant_type", "client_credentials")]
        if oauth.scopes:
            form.append(("scope", " ".join(oauth.scopes)))
        if oauth.parameters is not None:
            form.extend(parse_query(oauth.parameters.reveal()))
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        client, secret = oauth.client_id.reveal(), oauth.client_secret.reveal()
        if self._in_header:
            pair = f"{quote_plus(client)}:{quote_plus(secret)}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            form += [("client_id", client), ("client_secret", secret)]
        return await self._post(oauth.token_url, headers=headers, body=urlencode(form), what=what)


def _object(body: bytes) -> Mapping[str, object]:
    try:
        found = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(answer: Mapping[str, object], name: str) -> str:
    value = answer.get(name)
    return value if isinstance(value, str) else ""
