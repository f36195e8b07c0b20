"""Real services for tests: started on demand, shared by a test run, stopped at its end.

The fixtures in tests/conftest.py give the shared ones. A test that stops, kills or pauses a broker starts its own with
`start_kafka`, `start_rabbitmq`, `start_prometheus` or `start_sqs`; these block, so an async test wraps restarts in
`asyncio.to_thread`.
"""

from tests.services.certificates import Certificate, CertificateAuthority
from tests.services.kafka import Kafka, KafkaCluster, start_kafka
from tests.services.process import (
    REPOSITORY,
    ServerProcess,
    ServiceUnavailableError,
    free_port,
    unique,
    wait_until,
)
from tests.services.prometheus import Prometheus, PrometheusServer, start_prometheus
from tests.services.proxy import TcpProxy, tcp_proxy
from tests.services.rabbitmq import RabbitMQ, RabbitMQBroker, start_rabbitmq
from tests.services.sqs import SQS, SQSServer, start_sqs
from tests.services.tokens import TokenIssuer, TokenServer, serve_tokens

__all__ = [
    "REPOSITORY",
    "SQS",
    "Certificate",
    "CertificateAuthority",
    "Kafka",
    "KafkaCluster",
    "Prometheus",
    "PrometheusServer",
    "RabbitMQ",
    "RabbitMQBroker",
    "SQSServer",
    "ServerProcess",
    "ServiceUnavailableError",
    "TcpProxy",
    "TokenIssuer",
    "TokenServer",
    "free_port",
    "serve_tokens",
    "start_kafka",
    "start_prometheus",
    "start_rabbitmq",
    "start_sqs",
    "tcp_proxy",
    "unique",
    "wait_until",
]
