"""Servers that are real but small: one that answers what a test says, and one that accepts and never answers."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from scaler.promql.client import PrometheusClient, open_client
from scaler.promql.endpoint import Server
from scaler.promql.questions import Question
from scaler.settings import Settings
from scaler.source import SourceContext
from scaler.sources.prometheus import PrometheusConfig
from scaler.trigger import Trigger, parse_trigger
from tests.services.process import PATIENT_SECONDS

ONE = json.dumps(
    {"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value": [1700000000, "2.5"]}]}}
).encode()


@dataclass
class Reply:
    """What the server answers; `pieces` are sent one by one with `before_piece` called before each."""

    body: bytes = ONE
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: int = 1
    before_piece: Callable[[], object] = lambda: None
    closes: bool = False


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    raw_path: str

    @property
    def parameters(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.raw_path).query, keep_blank_values=True)


class AnsweringServer:
    """An HTTP/1.1 server with keep-alive; `reply` may be changed or be a function of the request."""

    def __init__(self, tls: Any = None) -> None:
        self.reply: Reply | Callable[[Asked], Reply] = Reply()
        self.asked: list[Asked] = []
        self.connections = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                outer.connections += 1
                super().setup()

            def do_GET(self) -> None:
                asked = Asked(urlsplit(self.path).path, dict(self.headers), self.path)
                outer.asked.append(asked)
                reply = outer.reply(asked) if callable(outer.reply) else outer.reply
                with contextlib.suppress(OSError):
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    if "Content-Length" not in reply.headers:
                        self.send_header("Content-Length", str(len(reply.body)))
                    self.end_headers()
                    size = -(-len(reply.body) // reply.pieces) or 1
                    for start in range(0, len(reply.body), size):
                        reply.before_piece()
                        self.wfile.write(reply.body[start : start + size])
                        self.wfile.flush()
                if reply.closes:
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Handshakes that fail are what some tests are about."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def answering_server(tls: Any = None) -> Iterator[AnsweringServer]:
    server = AnsweringServer(tls)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def hung_server() -> Iterator[int]:
    """Accepts (in the kernel), and never answers. Yields its port."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield listening.getsockname()[1]


class Clock:
    """Monotonic seconds that a test sets."""

    def __init__(self) -> None:
        self.now_seconds = 1000.0

    def __call__(self) -> float:
        return self.now_seconds


async def any_address(host: str, port: int) -> tuple[str, ...]:  # noqa: ARG001 - the guard's signature
    return ("127.0.0.1",)


def context(**changes: Any) -> SourceContext:
    return SourceContext(
        **({"clock": Clock(), "check_address": any_address, "read_timeout_seconds": PATIENT_SECONDS, **changes})
    )


def parse(metadata: Mapping[str, str], *, source: str = "prometheus", settings: Settings | None = None) -> Trigger:
    return parse_trigger("team-a", "llama", {"source": source, **metadata}, settings or Settings())


def config_of(metadata: Mapping[str, str]) -> PrometheusConfig:
    config = parse(metadata).config
    assert isinstance(config, PrometheusConfig)
    return config


async def outcomes(client: PrometheusClient, *questions: Question) -> list[object]:
    """What is delivered for each question, in the questions' order."""
    found: dict[object, object] = {}
    await client.read(questions, lambda question, outcome: found.update({question: outcome}))
    assert len(found) == len(questions)
    return [found[question] for question in questions]


async def ask(server: Server, question: Question | str = "up", **changes: Any) -> object:
    """The outcome of one question through a client of its own."""
    if isinstance(question, str):
        question = Question(text=question)
    async with open_client(server, context(**changes)) as client:
        return (await outcomes(client, question))[0]


def local(port: int, *, scheme: str = "http", path: str = "") -> Server:
    return Server(url=f"{scheme}://127.0.0.1:{port}{path}", host="127.0.0.1", port=port)
