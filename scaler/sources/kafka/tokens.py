"""Tokens for SASL OAUTHBEARER: from an OAuth 2 token endpoint, or signed by AWS for MSK.

OAuth: the client credentials grant (RFC 6749, 4.4), client in an Authorization header first and in the body
where the endpoint refuses that, as Go's oauth2 library does for KEDA. MSK: a presigned request for
`kafka-cluster:Connect`, as AWS's signer libraries make it (github.com/aws/aws-msk-iam-sasl-signer-python, read
2026-11).
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
from typing import Any
from urllib.parse import quote_plus

from aiokafka.abc import AbstractTokenProvider

from scaler.aws import AwsCredentials
from scaler.errors import SourceDenied, SourceTimeout, SourceUnavailable, quoted
from scaler.http import guarded_sockets, read_bounded
from scaler.source import SourceContext
from scaler.sources.kafka.config import MskConfig, OAuthConfig, SaslConfig

_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")
_ANSWER_BYTES = 256 * 1024
# A token is renewed this long before it ends, or at half its life where that is shorter.
_RENEW_BEFORE_SECONDS = 60.0
# Where the endpoint does not say how long (RFC 6749 only recommends it).
_LIFE_SECONDS = 300.0
_MSK_EXPIRY_SECONDS = 900


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka ships no types
    """What aiokafka asks for a token at each connection."""

    def __init__(self, sasl: SaslConfig, context: SourceContext) -> None:
        self._extensions = dict(sasl.extensions)
        self._context = context
        self._sasl = sasl

    def extensions(self) -> dict[str, str]:
        """SASL extensions that go with the token."""
        return self._extensions

    async def token(self) -> str:
        """A token that is valid now. Raises SourceDenied, SourceTimeout or SourceUnavailable."""
        raise NotImplementedError


class OAuthTokens(TokenProvider):
    """Tokens of a token endpoint, kept until shortly before they end."""

    def __init__(self, sasl: SaslConfig, oauth: OAuthConfig, context: SourceContext) -> None:
        import aiohttp  # noqa: PLC0415 - loaded when the client opens, and only where OAuth is used

        super().__init__(sasl, context)
        self._aiohttp = aiohttp
        self._oauth = oauth
        self._what = f"token endpoint {quoted(oauth.endpoint_url)}"
        self._lock = asyncio.Lock()
        self._token: str | None = None
        self._renew_at_seconds = 0.0

    async def token(self) -> str:
        """A token that is valid now. Raises SourceDenied, SourceTimeout or SourceUnavailable."""
        async with self._lock:
            if self._token is None or self._context.clock() >= self._renew_at_seconds:
                self._token, life_seconds = await self._fetch()
                kept_seconds = life_seconds - min(_RENEW_BEFORE_SECONDS, life_seconds / 2)
                self._renew_at_seconds = self._context.clock() + kept_seconds
            return self._token

    async def _fetch(self) -> tuple[str, float]:
        aiohttp = self._aiohttp
        timeout = aiohttp.ClientTimeout(total=self._context.read_timeout_seconds)
        connector = aiohttp.TCPConnector(socket_factory=guarded_sockets(self._context.judge_address))
        try:
            async with aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=False) as session:
                status, body = await self._post(session, in_header=True)
                if status in {400, 401}:
                    status, body = await self._post(session, in_header=False)
        except TimeoutError as err:
            raise SourceTimeout(f"{self._what} did not answer within {self._context.read_timeout_seconds:g} s") from err
        except aiohttp.ClientError as err:
            for cause in (err.__cause__, err.__context__, getattr(err, "os_error", None)):
                if isinstance(cause, SourceDenied):
                    raise cause from err
            raise SourceUnavailable(f"{self._what} can't be reached ({type(err).__name__})") from err
        return self._understood(status, body)

    async def _post(self, session: Any, *, in_header: bool) -> tuple[int, bytes]:
        client_id = self._sasl.username.reveal() if self._sasl.username else ""
        client_secret = self._sasl.password.reveal() if self._sasl.password else ""
        form = {"grant_type": "client_credentials"}
        headers = {"Accept": "application/json"}
        if self._oauth.scopes:
            form["scope"] = " ".join(self._oauth.scopes)
        if in_header:
            pair = f"{quote_plus(client_id)}:{quote_plus(client_secret)}".encode()
            headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
        else:
            form.update(client_id=client_id, client_secret=client_secret)
        async with session.post(self._oauth.endpoint_url, data=form, headers=headers, allow_redirects=False) as answer:
            return answer.status, await read_bounded(answer.content, _ANSWER_BYTES, what=self._what)

    def _understood(self, status: int, body: bytes) -> tuple[str, float]:
        if status in {400, 401, 403}:
            raise SourceDenied(f"{self._what} refused the client ({status}); check username, password and scopes")
        if status != 200:
            raise SourceUnavailable(f"{self._what} answered {status}")
        try:
            answer = json.loads(body)
            token = answer["access_token"]
            life_seconds = float(answer.get("expires_in", _LIFE_SECONDS))
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise SourceUnavailable(f"{self._what} sent no token that can be understood") from err
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise SourceUnavailable(f"{self._what} sent no token that can be understood")
        if not math.isfinite(life_seconds) or life_seconds <= 0:
            life_seconds = _LIFE_SECONDS
        return token, life_seconds


class MskTokens(TokenProvider):
    """Presigned requests as tokens; signing needs no call, but for the role's own keys."""

    def __init__(self, sasl: SaslConfig, msk: MskConfig, context: SourceContext) -> None:
        super().__init__(sasl, context)
        self._region = msk.region
        self._credentials = AwsCredentials(
            msk.identity,
            region=msk.region,
            timeout_seconds=context.read_timeout_seconds,
            make_config=self._config,
        )

    def _config(self) -> Any:
        from aiobotocore.config import AioConfig  # noqa: PLC0415 - only where AWS is used

        timeout_seconds = self._context.read_timeout_seconds
        return AioConfig(
            connect_timeout=timeout_seconds,
            read_timeout=timeout_seconds,
            retries={"total_max_attempts": 1},
            connector_args={"socket_factory": guarded_sockets(self._context.judge_address)},
        )

    async def token(self) -> str:
        """The signed request, base64."""
        from botocore.auth import SigV4QueryAuth  # noqa: PLC0415 - only where AWS is used
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415
        from botocore.credentials import Credentials  # noqa: PLC0415

        keys = await self._credentials.keys()
        request = AWSRequest(
            method="GET",
            url=f"https://kafka.{self._region}.amazonaws.com/",
            params={"Action": "kafka-cluster:Connect"},
        )
        signer = SigV4QueryAuth(
            Credentials(keys.access_key, keys.secret_key, keys.token),
            "kafka-cluster",
            self._region,
            expires=_MSK_EXPIRY_SECONDS,
        )
        signer.add_auth(request)
        signed = f"{request.url}&User-Agent=pilotlight"
        return base64.urlsafe_b64encode(signed.encode()).decode().rstrip("=")


def token_provider(sasl: SaslConfig | None, context: SourceContext) -> TokenProvider | None:
    """The provider that `sasl` needs, or None."""
    if sasl is None or sasl.tokens is None:
        return None
    if isinstance(sasl.tokens, MskConfig):
        return MskTokens(sasl, sasl.tokens, context)
    return OAuthTokens(sasl, sasl.tokens, context)
