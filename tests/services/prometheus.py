"""Prometheus for tests: the shared server's address, and servers of one's own.

Series are written through the remote-write receiver, so a test puts a sample at the time that it wants and queries
it at once, instead of waiting for a scrape.
"""

from __future__ import annotations

import contextlib
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import requests

from tests.services import install
from tests.services.process import LOOPBACK, ServerProcess, accepts_connections, free_port, scratch_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

HTTP_SECONDS = 10.0
SCRAPE_SECONDS = 1


@dataclass(frozen=True, kw_only=True)
class Prometheus:
    """A running server's address."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def push(
        self,
        name: str,
        value: float,
        *,
        labels: Mapping[str, str] | None = None,
        at_seconds: float | None = None,
    ) -> None:
        """Write one sample, at a Unix time or now; it can be queried when this returns. Samples of one series must be
        written in the order of their times.
        """
        self.push_many([(name, labels or {}, value)], at_seconds=at_seconds)

    def push_many(
        self, samples: Sequence[tuple[str, Mapping[str, str], float]], *, at_seconds: float | None = None
    ) -> None:
        """Write samples (metric name, labels, value) of one time."""
        now = time.time() if at_seconds is None else at_seconds
        answer = requests.post(
            f"{self.url}/api/v1/write",
            data=_snappy(_write_request(samples, now)),
            headers={
                "Content-Type": "application/x-protobuf",
                "Content-Encoding": "snappy",
                "X-Prometheus-Remote-Write-Version": "0.1.0",
            },
            timeout=HTTP_SECONDS,
        )
        if not answer.ok:
            raise RuntimeError(f"Prometheus refused the samples: {answer.status_code} {answer.text}")


@dataclass(frozen=True, kw_only=True)
class PrometheusServer(Prometheus):
    """A server that a test may stop, kill, pause and start again."""

    process: ServerProcess

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()

    def stop(self) -> None:
        """End it in order."""
        self.process.stop()

    def start(self) -> None:
        """Start it again on its port and its data; blocks until it is ready."""
        self.process.start()

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing is answered."""
        self.process.pause()

    def resume(self) -> None:
        """Let it go on."""
        self.process.resume()


@contextlib.contextmanager
def start_prometheus(
    *,
    scrape_targets: Mapping[str, Sequence[str]] | None = None,
    web_configuration: str | None = None,
    flags: Sequence[str] = (),
    folder: Path | None = None,
    port: int | None = None,
    outlives_us: bool = False,
) -> Iterator[PrometheusServer]:
    """Run a server (ready in about 0.3 s). `scrape_targets` is job name to `host:port` list, scraped each second;
    `web_configuration` is the text of a `--web.config.file` (TLS, basic authentication; it is then ready when its port
    is open).
    """
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(scratch_folder("prometheus")) if folder is None else folder
        jobs = "".join(
            f"  - job_name: {job}\n    static_configs:\n      - targets: [{', '.join(targets)}]\n"
            for job, targets in (scrape_targets or {}).items()
        )
        pace = f"global:\n  scrape_interval: {SCRAPE_SECONDS}s\n  scrape_timeout: {SCRAPE_SECONDS}s\n"
        (home / "prometheus.yml").write_text(f"{pace}scrape_configs:\n{jobs or '  []'}\n")
        own_port = port or free_port()
        command = [
            install.prometheus(),
            f"--config.file={home / 'prometheus.yml'}",
            f"--storage.tsdb.path={home / 'data'}",
            f"--web.listen-address={LOOPBACK}:{own_port}",
            "--web.enable-remote-write-receiver",
            "--web.enable-lifecycle",
            "--log.level=warn",
            *flags,
        ]
        if web_configuration is not None:
            (home / "web.yml").write_text(web_configuration)
            command.append(f"--web.config.file={home / 'web.yml'}")
        server = PrometheusServer(
            host=LOOPBACK,
            port=own_port,
            process=ServerProcess(
                "prometheus",
                command,
                folder=home,
                is_ready=lambda: _is_ready(own_port, plain=web_configuration is None),
                outlives_us=outlives_us,
            ),
        )
        server.process.start()
        stack.callback(server.process.kill)
        if outlives_us:
            stack.pop_all()
        yield server


def _is_ready(port: int, *, plain: bool) -> bool:
    if not plain:
        return accepts_connections(LOOPBACK, port)
    try:
        return requests.get(f"http://{LOOPBACK}:{port}/-/ready", timeout=2).ok
    except requests.RequestException:
        return False


# Remote write is a snappy-compressed protobuf message of a few fields, stable since version 0.1.0
# (prometheus.io/docs/specs/prw/remote_write_spec): written by hand, it needs no dependency.


def _varint(number: int) -> bytes:
    out = bytearray()
    rest = number & 0xFFFF_FFFF_FFFF_FFFF
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _write_request(samples: Sequence[tuple[str, Mapping[str, str], float]], at_seconds: float) -> bytes:
    out = bytearray()
    for name, labels, value in samples:
        pairs = sorted({**labels, "__name__": name}.items())
        series = b"".join(_field(1, _field(1, key.encode()) + _field(2, text.encode())) for key, text in pairs)
        sample = _varint(1 << 3 | 1) + struct.pack("<d", value) + _varint(2 << 3) + _varint(int(at_seconds * 1000))
        out += _field(1, series + _field(2, sample))
    return bytes(out)


def _snappy(data: bytes) -> bytes:
    """Snappy's block format with literals only: valid, and no smaller than its input."""
    out = bytearray(_varint(len(data)))
    for start in range(0, len(data), 65_536):
        piece = data[start : start + 65_536]
        out += bytes([61 << 2]) + struct.pack("<H", len(piece) - 1) + piece  # tag 61: a length of two bytes follows
    return bytes(out)
