"""A small valid trigger for each source, at an address of the test's choosing: what the contract suite reads."""

from __future__ import annotations

from collections.abc import Callable

SECRET = "hunter2-never-shown"


def _preset(host: str, port: int) -> dict[str, str]:
    return {
        "serverAddress": f"http://{host}:{port}",
        "namespace": "team-a",
        "workload": "llama",
        "authModes": "bearer",
        "bearerToken": SECRET,
    }


_OPENED: dict[str, Callable[[str, int], dict[str, str]]] = {
    "sqs": lambda host, port: {
        "queueURL": f"http://{host}:{port}/123456789012/orders",
        "awsRegion": "eu-central-1",
        "awsEndpoint": f"http://{host}:{port}",
        "awsAccessKeyID": "id",
        "awsSecretAccessKey": SECRET,
    },
    "kafka": lambda host, port: {
        "bootstrapServers": f"{host}:{port}",
        "consumerGroup": "workers",
        "topic": "orders",
    },
    "rabbitmq": lambda host, port: {
        "host": f"http://user:{SECRET}@{host}:{port}/vhost",
        "queueName": "orders",
        "mode": "QueueLength",
        "value": "5",
    },
    "prometheus": lambda host, port: {
        "serverAddress": f"http://{host}:{port}",
        "query": "sum(requests_waiting)",
        "threshold": "5",
        "authModes": "bearer",
        "bearerToken": SECRET,
    },
    **dict.fromkeys(("dcgm", "sglang", "tgi", "triton", "vllm"), _preset),
}


def example(source: str, host: str, port: int) -> dict[str, str]:
    """Metadata of a trigger that reads `source` at `host`:`port`.

    Raises KeyError for a source that has no example yet: add one, the contract suite then covers it.
    """
    if source not in _OPENED:
        raise KeyError(f"tests/sources/examples.py has no example for source {source}: add one")
    return {"source": source} | _OPENED[source](host, port)
