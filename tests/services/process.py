"""Server processes for tests: started, paused, killed, restarted, and never left behind.

Every process runs in a session of its own and is stopped by its process id. A small watchdog process holds the other
end of a pipe: when the test run ends in any way, SIGKILL included, the watchdog kills what is left and deletes its
folders. (Linux' parent-death signal would not do: it fires when the *thread* that started the server ends, and tests
restart brokers from worker threads so that their event loop keeps running.)
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

LOOPBACK = "127.0.0.1"
# Longer than a busy machine stands still: only what is about time-outs gives shorter ones.
PATIENT_SECONDS = 20.0
REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("PILOTLIGHT_SERVICES_CACHE", REPOSITORY / "build" / "services"))
OPEN_FILES = 65_536  # the Erlang VM sizes its tables by this limit; container defaults of 10**9 would cost gigabytes
PORTS = range(20_000, 32_000)  # below Linux' ephemeral range, so that no client takes the port of a stopped server
STOP_SECONDS = 15.0
LOG_LINE_CHARACTERS = 500  # a crashing Erlang VM writes its state in one line


class ServiceUnavailableError(RuntimeError):
    """A service that the tests need could not be had; the message says what to do."""


def unique(prefix: str) -> str:
    """Return a name that no other test uses, for queues, topics, groups and virtual hosts of a shared server."""
    return f"{prefix}-{uuid.uuid4().hex[:10]}"


_handed_out: set[int] = set()
_handing_out = threading.Lock()


def free_port() -> int:
    """Return a loopback port that nothing listens on and that this process did not hand out before."""
    with _handing_out:
        for port in random.sample(PORTS, k=500):
            if port in _handed_out:
                continue
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((LOOPBACK, port))
                except OSError as error:
                    if error.errno in (errno.EADDRINUSE, errno.EACCES):
                        continue
                    raise
            _handed_out.add(port)
            return port
    raise ServiceUnavailableError(f"no free port among 500 tried in {PORTS}: stop servers left over from earlier runs")


def accepts_connections(host: str, port: int) -> bool:
    """Tell whether something listens there."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def wait_until(ready: Callable[[], bool], *, what: str, timeout_seconds: float, every_seconds: float = 0.1) -> None:
    """Poll until `ready()` is true; raise TimeoutError that names `what` at the deadline."""
    deadline = time.monotonic() + timeout_seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {timeout_seconds:g} s")
        time.sleep(every_seconds)


def has_ended(process: psutil.Process) -> bool:
    """Tell whether a process has ended, be it that its parent has not yet fetched its exit status."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# The watchdog reads lines "+PID", "-PID", "+FOLDER", "-FOLDER" until its parent is gone.
_WATCHDOG = """
import os, shutil, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
left = {}
for line in sys.stdin:
    line = line.rstrip("\\n")
    if line[0] == "+":
        left[line[1:]] = None
    else:
        left.pop(line[1:], None)
for item in left:
    if item.isdigit():
        try:
            os.killpg(int(item), signal.SIGKILL)
        except OSError:
            pass
for item in left:
    if not item.isdigit():
        shutil.rmtree(item, ignore_errors=True)
"""


class _Watchdog:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCHDOG],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self.close)

    def tell(self, line: str) -> None:
        with self._lock:
            pipe = self._process.stdin
            assert pipe is not None
            pipe.write(line + "\n")
            pipe.flush()

    def close(self) -> None:
        with self._lock:
            pipe = self._process.stdin
            if pipe is not None and not pipe.closed:
                pipe.close()
        self._process.wait()


@functools.cache
def _watchdog() -> _Watchdog:
    return _Watchdog()


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Yield a new folder; delete it at the end, also when the test run is killed."""
    folder = Path(tempfile.mkdtemp(prefix=f"pilotlight-{prefix}-"))
    _watchdog().tell(f"+{folder}")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _watchdog().tell(f"-{folder}")


class ServerProcess:
    """One server process that can be started again after it was stopped or killed. All methods block (up to seconds):
    in a test with an event loop, call them through `asyncio.to_thread`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        is_ready: Callable[[], bool],
        ready_seconds: float = 60.0,
        outlives_us: bool = False,
    ) -> None:
        """`outlives_us`: no watchdog; for `make services-up`, which returns while the servers stay."""
        self.name = name
        self.command = list(command)
        self.log_path = folder / f"{name}.log"
        self._folder = folder
        self._environment = dict(environment or {})
        self._is_ready = is_ready
        self._ready_seconds = ready_seconds
        self._outlives_us = outlives_us
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start the process without waiting for it to be ready."""
        if self.is_running:
            raise RuntimeError(f"{self.name} is already running")
        limit = f'ulimit -n {OPEN_FILES} 2>/dev/null || ulimit -n "$(ulimit -Hn)"; exec "$@"'
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", limit, "sh", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        if not self._outlives_us:
            _watchdog().tell(f"+{self._process.pid}")

    def wait_ready(self) -> None:
        """Wait until the server answers; raise with the end of its log if it dies or takes too long."""
        deadline = time.monotonic() + self._ready_seconds
        while not self._is_ready():
            process = self._process
            if process is None:
                raise ServiceUnavailableError(f"{self.name} was stopped while it started")
            if process.poll() is not None:
                raise ServiceUnavailableError(
                    f"{self.name} ended with {process.returncode} while it started; its log ends:\n{self.log_tail()}",
                )
            if time.monotonic() > deadline:
                raise ServiceUnavailableError(
                    f"{self.name} is not ready after {self._ready_seconds:g} s; its log ends:\n{self.log_tail()}",
                )
            time.sleep(0.05)

    def start(self) -> None:
        """Start the process and wait until it is ready; leave nothing behind where it fails."""
        self.launch()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End it as a crash would: SIGKILL to the whole process group."""
        self._end(signal.SIGKILL, STOP_SECONDS)

    def stop(self) -> None:
        """End it in order (SIGTERM), then by SIGKILL where it does not go in time."""
        self._end(signal.SIGTERM, STOP_SECONDS)

    def pause(self) -> None:
        """Freeze it: it accepts connections (the kernel does) and never answers."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server run again."""
        os.killpg(self.pid, signal.SIGCONT)

    def log_tail(self, lines: int = 40) -> str:
        """Return the last lines that the server wrote."""
        if not self.log_path.exists():
            return ""
        written = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(line[:LOG_LINE_CHARACTERS] for line in written[-lines:])

    def _end(self, number: signal.Signals, timeout_seconds: float) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)  # the Erlang VM is a child of its script
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
                os.killpg(process.pid, signal.SIGCONT)  # a paused server could not see SIGTERM
            try:
                process.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            deadline = time.monotonic() + timeout_seconds
            while any(not has_ended(child) for child in family) and time.monotonic() < deadline:
                time.sleep(0.02)  # else its ports may still be open
        with contextlib.suppress(ProcessLookupError):  # what did not go in time
            os.killpg(process.pid, signal.SIGKILL)
        if not self._outlives_us:
            _watchdog().tell(f"-{process.pid}")
        self._process = None
