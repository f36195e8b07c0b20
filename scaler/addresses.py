"""Where endpoints from tenants' metadata may lead.

A name in metadata is resolved here and its addresses are judged, so that a tenant can't make Pilotlight talk
to the cloud's metadata service, to itself, or to the API server. The caller must connect to an address that
was returned, not resolve the name again, or the answer may differ (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from scaler.errors import SourceDenied, SourceTimeout, SourceUnavailable, quoted

# AWS, GCP and Azure answer on the first; AWS also on the second (IPv6).
_METADATA_SERVICES = frozenset({"169.254.169.254", "fd00:ec2::254"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressGuard:
    """Resolves names and refuses those that lead where tenants have no business.

    `private_allowed`: an operator's own connection, or a namespace with that right; nothing is refused.
    `forbidden` holds further addresses (the API server's).
    """

    private_allowed: bool
    forbidden: frozenset[str] = field(default_factory=frozenset)
    resolve_timeout_seconds: float = 3.0

    async def check(self, host: str, port: int) -> tuple[str, ...]:
        """The addresses of `host`.

        Raises SourceDenied where one of them may not be reached, SourceUnavailable where the name can't be
        resolved, SourceTimeout where that takes too long.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.resolve_timeout_seconds):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except TimeoutError as err:
            raise SourceTimeout(
                f"host {quoted(host)} was not resolved within {self.resolve_timeout_seconds:g} s"
            ) from err
        except (OSError, UnicodeError) as err:
            raise SourceUnavailable(f"host {quoted(host)} can't be resolved; mend the name or the DNS") from err
        addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:
            self.judge(address, host=host)
        return addresses

    def judge(self, address: str, *, host: str | None = None) -> None:
        """Raise SourceDenied where the IP `address` (of `host`) may not be reached."""
        if self.private_allowed:
            return
        ip = ipaddress.ip_address(address.partition("%")[0])
        mapped = getattr(ip, "ipv4_mapped", None)
        ip = mapped or ip
        why = None
        if str(ip) in _METADATA_SERVICES:
            why = "the cloud's metadata service"
        elif str(ip) in self.forbidden:
            why = "the Kubernetes API server"
        elif ip.is_loopback:
            why = "a loopback address"
        elif ip.is_link_local:
            why = "a link-local address"
        elif ip.is_unspecified or ip.is_multicast:
            why = "no address of a server"
        if why is not None:
            raise SourceDenied(
                f"host {quoted(host or address)} leads to {why}, which endpoints in metadata may not reach; "
                "use a connection, or "
                "set privateAddresses for the namespace"
            )


def api_server_addresses(environment: Mapping[str, str] = os.environ) -> frozenset[str]:
    """The API server's address as Kubernetes tells every pod."""
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    return frozenset({host}) if host else frozenset()
