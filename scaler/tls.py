"""TLS contexts for clients, from PEM texts that may come out of Kubernetes Secrets.

Certificates of the system are always trusted; a `ca` is trusted besides them, as KEDA does.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scaler.errors import SourceDenied
from scaler.parameters import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """What a client presents and trusts. `verify` False accepts any certificate of the server."""

    ca: Secret | None = None
    certificate: Secret | None = None
    key: Secret | None = None
    key_password: Secret | None = None
    verify: bool = True

    def texts(self) -> tuple[str, ...]:
        """All texts as they are now, to tell whether a context made earlier is still right.

        Raises SourceDenied where a file can't be read.
        """
        secrets = (self.ca, self.certificate, self.key, self.key_password)
        return tuple("" if secret is None else secret.reveal() for secret in secrets)

    def context(self) -> ssl.SSLContext:
        """A new context. It reads the system's certificates: tens of milliseconds, so call it in a thread.

        Raises SourceDenied that names the text which is no PEM, or a key that can't be opened.
        """
        ca, certificate, key, key_password = self.texts()
        context = ssl.create_default_context()
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if ca:
            try:
                context.load_verify_locations(cadata=ca)
            except (ssl.SSLError, ValueError) as err:
                raise SourceDenied("ca: no certificate in PEM form can be read from it; mend it") from err
        if certificate:
            with _as_file(f"{certificate}\n{key}\n") as path:
                try:
                    # The password is always given, or OpenSSL would ask for it on the terminal.
                    context.load_cert_chain(path, password=key_password.encode())
                except (ssl.SSLError, OSError, ValueError) as err:
                    raise SourceDenied(
                        "cert and key: no certificate with its private key can be read from them; they must be in PEM "
                        "form and belong together, and keyPassword must open the key if it is encrypted"
                    ) from err
        return context


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    """A path with `text`, for as long as needed: ssl reads certificates from files only.

    It stays in memory where the system can do that, so that no key touches a disk.
    """
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("pem", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(number), "w", encoding="utf-8") as file:
                file.write(text)
            yield f"/proc/self/fd/{number}"
        finally:
            os.close(number)
        return
    with tempfile.TemporaryDirectory() as folder:  # mode 0700
        path = Path(folder) / "client.pem"
        path.write_text(text, encoding="utf-8")
        yield str(path)
