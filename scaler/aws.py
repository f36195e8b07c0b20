"""AWS identities that sources share: static or temporary keys, an assumed role, or the process's own.

Parameter names are KEDA's (pkg/scalers/aws, read at 8b4f083c). The process's own identity, alone or to assume
a role, is reachable through a connection only: with it a tenant could read whatever Pilotlight can.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from scaler.errors import SourceDenied, SourceMissing, SourceTimeout, SourceUnavailable, quoted
from scaler.parameters import Belongs, Parameter, Secret, Values

_REGION = re.compile(r"[a-z0-9-]{1,32}")

PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        name="awsAccessKeyID",
        aliases=("awsAccessKeyId",),
        belongs=Belongs.CREDENTIAL,
        secret=True,
        help="access key; with awsSecretAccessKey",
    ),
    Parameter(name="awsSecretAccessKey", belongs=Belongs.CREDENTIAL, secret=True, help="secret of the access key"),
    Parameter(
        name="awsSessionToken", belongs=Belongs.CREDENTIAL, secret=True, help="session token of temporary credentials"
    ),
    Parameter(
        name="awsRoleArn",
        belongs=Belongs.CREDENTIAL,
        help="role to assume with the keys, or with the process's own identity through a connection",
    ),
    Parameter(name="awsExternalID", belongs=Belongs.CREDENTIAL, help="external id for awsRoleArn"),
    Parameter(
        name="awsAmbientIdentity",
        kind="flag",
        default=False,
        belongs=Belongs.CONNECTION_ONLY,
        help="use the process's own identity (IRSA, pod identity, instance profile, environment)",
    ),
    Parameter(
        name="awsStsEndpoint", belongs=Belongs.ENDPOINT, help="endpoint that assumes the role, where not AWS's own"
    ),
    Parameter(
        name="identityOwner",
        allowed=("pod", "operator"),
        default="pod",
        belongs=Belongs.CREDENTIAL,
        help="KEDA's former switch; operator is awsAmbientIdentity of a connection here",
    ),
)

# Refreshed this long before they expire; botocore's own mandatory window is 10 minutes, roles last 15 at least.
_REFRESH_BEFORE_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsIdentity:
    """Who signs requests. Hashable: equal identities share a client."""

    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None
    role_arn: str | None = None
    external_id: str | None = None
    ambient: bool = False
    sts_endpoint: str | None = None


class AwsKeys(NamedTuple):
    """Keys to sign with, as botocore's ReadOnlyCredentials."""

    access_key: str
    secret_key: str
    token: str | None


def parse_region(values: Values) -> str | None:
    """`awsRegion`; a problem where it is none, for it becomes part of a host's name."""
    region = values.text("awsRegion")
    if region is not None and not _REGION.fullmatch(region):
        values.problem("awsRegion", 'expected a region such as "eu-west-1"', value=region)
        return None
    return region


def parse_identity(values: Values) -> AwsIdentity | None:
    """The identity that the values describe, or None where they describe none.

    Reports halves of keys, `identityOwner: operator` and a role without anybody to assume it.
    """
    key_id, secret = values.secret("awsAccessKeyID"), values.secret("awsSecretAccessKey")
    role = values.text("awsRoleArn")
    ambient = values.flag("awsAmbientIdentity")
    if values.text("identityOwner") == "operator" and not ambient:
        values.problem(
            "identityOwner",
            "the operator's identity is reachable only through a connection with awsAmbientIdentity",
            value="operator",
        )
    if (key_id is None) != (secret is None):
        missing = "awsSecretAccessKey" if secret is None else "awsAccessKeyID"
        values.problem(missing, "required: access key and secret come together")
    if role is not None and key_id is None and not ambient:
        values.problem(
            "awsRoleArn",
            "nobody to assume it: give keys, or name a connection with awsAmbientIdentity",
            value=role,
        )
    if key_id is None and role is None and not ambient:
        return None
    return AwsIdentity(
        access_key_id=key_id,
        secret_access_key=secret,
        session_token=values.secret("awsSessionToken"),
        role_arn=role,
        external_id=values.text("awsExternalID"),
        ambient=ambient,
        sts_endpoint=values.text("awsStsEndpoint"),
    )


class AwsCredentials:
    """Current keys of an identity; a role's are fetched on first use and renewed before they expire."""

    def __init__(
        self,
        identity: AwsIdentity,
        *,
        region: str,
        timeout_seconds: float,
        make_config: Callable[[], Any],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._identity = identity
        self._region = region
        self._timeout_seconds = timeout_seconds
        self._make_config = make_config
        self._now = now
        self._lock = asyncio.Lock()
        self._role_keys: AwsKeys | None = None
        self._renew_at: datetime | None = None
        self._ambient: Any = None

    async def keys(self) -> AwsKeys:
        """Keys that are valid now.

        Raises SourceDenied where a role may not be assumed or no identity is found, SourceUnavailable or
        SourceTimeout where they can't be had at present.
        """
        if self._identity.role_arn is None:
            return await self._base_keys()
        async with self._lock:
            if self._role_keys is None or self._renew_at is None or self._now() >= self._renew_at:
                self._role_keys, expires_at = await self._assume(await self._base_keys())
                lifetime = (expires_at - self._now()).total_seconds()
                self._renew_at = datetime.fromtimestamp(
                    expires_at.timestamp() - min(_REFRESH_BEFORE_SECONDS, lifetime / 2), UTC
                )
            return self._role_keys

    def forget(self) -> None:
        """Drop a role's keys: they were refused."""
        self._role_keys = None

    async def _base_keys(self) -> AwsKeys:
        identity = self._identity
        if identity.access_key_id is not None and identity.secret_access_key is not None:
            token = identity.session_token.reveal() if identity.session_token else None
            return AwsKeys(identity.access_key_id.reveal(), identity.secret_access_key.reveal(), token)
        from aiobotocore.session import get_session  # noqa: PLC0415 - its client library loads on first use

        if self._ambient is None:
            self._ambient = get_session()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                found = await self._ambient.get_credentials()
                frozen = await found.get_frozen_credentials() if found is not None else None
        except TimeoutError as err:
            raise SourceTimeout(f"the process's AWS identity was not had within {self._timeout_seconds:g} s") from err
        if frozen is None:
            raise SourceDenied(
                "the process has no AWS identity; give its service account a role, or keys to the connection"
            )
        return AwsKeys(frozen.access_key, frozen.secret_key, frozen.token)

    async def _assume(self, base: AwsKeys) -> tuple[AwsKeys, datetime]:
        from aiobotocore.session import get_session  # noqa: PLC0415 - its client library loads on first use

        identity = self._identity
        request: dict[str, str] = {"RoleArn": identity.role_arn or "", "RoleSessionName": "pilotlight"}
        if identity.external_id:
            request["ExternalId"] = identity.external_id
        async with get_session().create_client(
            "sts",
            region_name=self._region,
            endpoint_url=identity.sts_endpoint,
            aws_access_key_id=base.access_key,
            aws_secret_access_key=base.secret_key,
            aws_session_token=base.token,
            config=self._make_config(),
        ) as sts:
            what = f"role {quoted(identity.role_arn)}"
            answer = await call(sts.assume_role(**request), what=what, timeout_seconds=self._timeout_seconds)
        got = answer["Credentials"]
        return AwsKeys(got["AccessKeyId"], got["SecretAccessKey"], got["SessionToken"]), got["Expiration"]


async def call(awaitable: Awaitable[Any], *, what: str, timeout_seconds: float) -> Any:
    """The answer of one AWS API call, with the library's errors translated.

    Raises SourceMissing for queues and the like that don't exist, SourceDenied, SourceTimeout or
    SourceUnavailable. Messages hold the error's code, never its body.
    """
    from botocore import exceptions as aws  # noqa: PLC0415 - its client library loads on first use

    try:
        async with asyncio.timeout(timeout_seconds):
            return await awaitable
    except TimeoutError as err:
        raise SourceTimeout(f"{what}: no answer within {timeout_seconds:g} s") from err
    except aws.ClientError as err:
        raise _translated(err, what) from err
    except (aws.ConnectTimeoutError, aws.ReadTimeoutError) as err:
        raise SourceTimeout(f"{what}: no answer within {timeout_seconds:g} s") from err
    except aws.SSLError as err:
        raise SourceUnavailable(
            f"{what}: TLS failed; check that the endpoint speaks TLS and its certificate is trusted"
        ) from err
    except (aws.HTTPClientError, aws.ConnectionError) as err:  # also what a guard raised while connecting
        for cause in (err.kwargs.get("error"), err.__cause__, err.__context__):
            if isinstance(cause, (SourceDenied, SourceUnavailable)):
                raise cause from err
        raise SourceUnavailable(f"{what}: the endpoint can't be reached ({type(err).__name__})") from err
    except (aws.NoCredentialsError, aws.PartialCredentialsError) as err:
        raise SourceDenied(f"{what}: no AWS credentials") from err
    except (aws.BotoCoreError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        # An endpoint that is no AWS API answers with bodies the parser chokes on in many ways.
        raise SourceUnavailable(
            f"{what}: the answer is not one of the AWS API ({type(err).__name__}); check the endpoint"
        ) from err


_DENIED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "KMS.AccessDeniedException",
        "MissingAuthenticationToken",
        "NotAuthorized",
        "OptInRequired",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnauthorizedOperation",
        "UnrecognizedClientException",
    }
)
_MISSING = frozenset(
    {
        "AWS.SimpleQueueService.NonExistentQueue",
        "InvalidAddress",
        "QueueDoesNotExist",
        "com.amazonaws.sqs#QueueDoesNotExist",
    }
)


def _translated(err: Any, what: str) -> Exception:
    code = str(err.response.get("Error", {}).get("Code", ""))
    status = err.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    said = quoted(code or status, limit=60)
    if code in _MISSING:
        return SourceMissing(f"{what} does not exist (AWS says {said}); create it or mend the name and region")
    if code in _DENIED or status in {401, 403}:
        return SourceDenied(f"{what}: AWS refuses access ({said}); check credentials and policy")
    return SourceUnavailable(f"{what}: AWS answers {said}")
