"""Installs the native servers that the tests start where no container engine answers: apt for RabbitMQ, Prometheus,
Java and Maven, Maven for Kafka's jars. Each is installed once, on first use, and found again later.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.services.process import CACHE, ServiceUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

APT_SECONDS = 900
MAVEN_SECONDS = 900
KAFKA_POM = Path(__file__).parent / "kafka_libraries" / "pom.xml"
COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
RABBITMQ_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # not the wrapper in PATH, which changes the user
POLICY = Path("/usr/sbin/policy-rc.d")  # Debian: exit status 101 keeps a package from starting its service


@contextlib.contextmanager
def _only_one_installs() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    sys.stderr.write(f"[test services] {text}\n")
    sys.stderr.flush()


def _run(
    command: Sequence[str],
    *,
    timeout_seconds: float,
    what_to_do: str,
    environment: dict[str, str] | None = None,
) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
            env={**os.environ, **(environment or {})},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceUnavailableError(f"{' '.join(command)}: {error}. {what_to_do}") from error
    if done.returncode != 0:
        raise ServiceUnavailableError(
            f"{' '.join(command)} ended with status {done.returncode}. {what_to_do}\n{done.stdout[-3000:]}",
        )


@contextlib.contextmanager
def _packages_start_no_services() -> Iterator[None]:
    """RabbitMQ's and Prometheus' packages would start servers on their default ports, on all addresses."""
    if os.geteuid() != 0 or POLICY.exists() or not POLICY.parent.is_dir():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)


@contextlib.contextmanager
def _no_port_mapper_left() -> Iterator[None]:
    """RabbitMQ's package starts an epmd of its own on all addresses when it is installed, and leaves it there."""
    before = _port_mappers()
    yield
    for pid in _port_mappers() - before:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)


def _port_mappers() -> set[int]:
    return {process.pid for process in psutil.process_iter(["name"]) if process.info["name"] == "epmd"}


def _apt_install(*packages: str) -> None:
    by_hand = f"Install {', '.join(packages)} by hand, run a container engine, or set the PILOTLIGHT_TEST_* addresses."
    if shutil.which("apt-get") is None:
        raise ServiceUnavailableError(f"this machine has no apt-get. {by_hand}")
    as_root: list[str] = []
    if os.geteuid() != 0:
        if shutil.which("sudo") is None:
            raise ServiceUnavailableError(f"installing packages needs root or sudo. {by_hand}")
        as_root = ["sudo", "--non-interactive"]
    _say(f"installing {', '.join(packages)} with apt-get")
    # through `env`, since sudo drops the environment; RUNLEVEL=1 keeps service scripts from starting under sudo
    apt = [
        *as_root,
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "RUNLEVEL=1",
        "apt-get",
        "-o",
        "DPkg::Lock::Timeout=600",
    ]
    with _packages_start_no_services(), _no_port_mapper_left():
        _run([*apt, "update"], timeout_seconds=APT_SECONDS, what_to_do=by_hand)
        _run(
            [*apt, "install", "--yes", "--no-install-recommends", *packages],
            timeout_seconds=APT_SECONDS,
            what_to_do=by_hand,
        )


@functools.cache
def java() -> str:
    """Return the path of a Java runtime, 17 or later."""
    with _only_one_installs():
        if shutil.which("java") is None:
            _apt_install("openjdk-17-jre-headless")
    path = shutil.which("java")
    if path is None:
        raise ServiceUnavailableError(
            "java is still not in PATH after its installation: install a Java 17 runtime by hand"
        )
    return path


@functools.cache
def kafka_class_path() -> str:
    """Return the Java class path of Kafka's broker and tools; the jars are kept under the cache folder, one per pom."""
    java()
    digest = hashlib.sha256(KAFKA_POM.read_bytes()).hexdigest()[:12]
    jars = CACHE / "kafka" / digest
    with _only_one_installs():
        if not (jars / ".complete").exists():
            if shutil.which("mvn") is None:
                _apt_install("maven")
            _say("fetching Apache Kafka with Maven")
            shutil.rmtree(jars, ignore_errors=True)
            _run(
                ["mvn", "-B", "-q", "-f", str(KAFKA_POM), COPY_DEPENDENCIES, f"-DoutputDirectory={jars}"],
                timeout_seconds=MAVEN_SECONDS,
                what_to_do="Check that Maven reaches a repository, or set PILOTLIGHT_TEST_KAFKA=host:port.",
            )
            (jars / ".complete").touch()
    return f"{jars}/*"


@functools.cache
def rabbitmq_server() -> str:
    """Return the path of RabbitMQ's start script."""
    with _only_one_installs():
        if not RABBITMQ_SERVER.exists():
            _apt_install("rabbitmq-server")
    return str(RABBITMQ_SERVER)


@functools.cache
def epmd() -> str:
    """Return the path of Erlang's port mapper, which comes with RabbitMQ."""
    rabbitmq_server()
    path = shutil.which("epmd")
    if path is None:
        raise ServiceUnavailableError("epmd is not in PATH though RabbitMQ is installed: install erlang-base")
    return path


@functools.cache
def prometheus() -> str:
    """Return the path of the Prometheus server."""
    with _only_one_installs():
        if shutil.which("prometheus") is None:
            _apt_install("prometheus")
    path = shutil.which("prometheus")
    if path is None:
        raise ServiceUnavailableError("prometheus is still not in PATH after its installation: install it by hand")
    return path


def everything() -> None:
    """Install whatever is missing, so that no test waits for it."""
    kafka_class_path()
    rabbitmq_server()
    prometheus()
