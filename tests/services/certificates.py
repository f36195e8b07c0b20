"""A certificate authority for one test run, and server and client certificates that it signs (elliptic curve P-256)."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

LIFETIME = dt.timedelta(days=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """PEM files of one identity."""

    name: str
    certificate_path: Path
    key_path: Path

    @property
    def certificate_pem(self) -> str:
        return self.certificate_path.read_text()

    @property
    def key_pem(self) -> str:
        return self.key_path.read_text()


class CertificateAuthority:
    """Signs certificates for loopback servers and for clients; its own certificate is at `certificate_path`."""

    def __init__(self, folder: Path, *, name: str = "Pilotlight test CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.certificate_path = folder / "ca.pem"
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(self._name, self._name, self._key.public_key(), expired=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=True,
                    crl_sign=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        )
        certificate = builder.sign(self._key, hashes.SHA256())
        self.certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    @property
    def certificate_pem(self) -> str:
        return self.certificate_path.read_text()

    def server(
        self,
        name: str = "server",
        *,
        hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
        expired: bool = False,
    ) -> Certificate:
        """Return a certificate for a server under these names; `expired` makes one that ended yesterday."""
        return self._issue(name, hosts=hosts, usage=ExtendedKeyUsageOID.SERVER_AUTH, expired=expired)

    def client(self, name: str = "client", *, hosts: tuple[str, ...] = (), expired: bool = False) -> Certificate:
        """Return a client certificate whose common name is `name`; `hosts` become subject alternative names."""
        return self._issue(name, hosts=hosts, usage=ExtendedKeyUsageOID.CLIENT_AUTH, expired=expired)

    def client_context(self, certificate: Certificate | None = None) -> ssl.SSLContext:
        """Return an SSL context that trusts this authority only, and shows `certificate` where given."""
        context = ssl.create_default_context(cafile=str(self.certificate_path))
        if certificate is not None:
            context.load_cert_chain(certificate.certificate_path, certificate.key_path)
        return context

    def server_context(self, certificate: Certificate, *, require_client: bool = False) -> ssl.SSLContext:
        """Return an SSL context for a test's own server; `require_client` asks for a certificate of this authority."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.certificate_path))
        context.load_cert_chain(certificate.certificate_path, certificate.key_path)
        if require_client:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _issue(self, name: str, *, hosts: tuple[str, ...], usage: x509.ObjectIdentifier, expired: bool) -> Certificate:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            _builder(subject, self._name, key.public_key(), expired=expired)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False
            )
        certificate = builder.sign(self._key, hashes.SHA256())
        result = Certificate(
            name=name,
            certificate_path=self.folder / f"{name}.pem",
            key_path=self.folder / f"{name}.key.pem",
        )
        result.certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        result.key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,  # the only form that Kafka reads
                serialization.NoEncryption(),
            ),
        )
        result.key_path.chmod(0o600)
        return result


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, expired: bool
) -> x509.CertificateBuilder:
    end = dt.datetime.now(dt.UTC) + (-dt.timedelta(days=1) if expired else LIFETIME)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - 2 * LIFETIME)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.UniformResourceIdentifier(host) if "://" in host else x509.DNSName(host)
