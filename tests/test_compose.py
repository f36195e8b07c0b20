"""docker-compose.test.yml is valid and agrees with the test tooling, checked where no container engine runs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any
from xml.etree import ElementTree as ET

import yaml

from tests.services import compose
from tests.services.install import KAFKA_POM

SERVICES: dict[str, Any] = yaml.safe_load(compose.FILE.read_text())["services"]
PORTS = {
    "localstack": {compose.SQS_PORT},
    "kafka": {compose.KAFKA_PORT},
    "rabbitmq": {compose.AMQP_PORT, compose.RABBITMQ_HTTP_PORT},
    "prometheus": {compose.PROMETHEUS_PORT},
}


def test_the_file_follows_the_compose_specification() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(compose.FILE)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_publishes_the_ports_that_the_tooling_expects_on_loopback_only() -> None:
    assert SERVICES.keys() == PORTS.keys()
    for name, service in SERVICES.items():
        published = [port.split(":") for port in service["ports"]]
        assert {host for host, _, _ in published} == {"127.0.0.1"}, name
        assert {int(port) for _, port, _ in published} == PORTS[name], name


def test_every_service_has_a_health_check_and_a_pinned_image() -> None:
    for name, service in SERVICES.items():
        check = service["healthcheck"]
        assert check["test"][0] == "CMD", name
        assert {"interval", "timeout", "retries"} <= check.keys(), name
        _, _, tag = service["image"].rpartition(":")
        assert any(character.isdigit() for character in tag), f"{name}: the image needs a version"


def test_kafka_is_the_version_that_the_native_broker_is_and_advertises_its_published_port() -> None:
    pom = ET.parse(KAFKA_POM)  # our own file
    version = pom.findtext(".//{*}kafka.version")
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{version}"
    advertised = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"HOST://127.0.0.1:{compose.KAFKA_PORT}" in advertised


def test_prometheus_takes_pushed_samples() -> None:
    assert "--web.enable-remote-write-receiver" in SERVICES["prometheus"]["command"]
