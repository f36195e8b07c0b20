"""Publishes the series of simulated GPU pods: DCGM's, as dcgm-exporter labels them, and vLLM's.

DCGM labels: dcgm-exporter `gpu`, `UUID`, `device`, `modelName`, `Hostname`, under MIG `GPU_I_PROFILE` and
`GPU_I_ID`, and `pod`, `namespace`, `container` of the pod that holds the GPU; with Prometheus'
`honor_labels: false` these three arrive as `exported_pod` and so on. vLLM (V1): `vllm:num_requests_waiting`,
`vllm:num_requests_running`, `vllm:kv_cache_usage_perc`, labelled `model_name`; its pod labels come from the scrape.
Without pods there are no series: that is how scale to zero looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from prometheus_client.core import CollectorRegistry, GaugeMetricFamily
from prometheus_client.registry import Collector

from loadgen.workers import Fleet, PodState


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSeries:
    """One pod as its exporters see it. Shares are 0 to 1.

    `serving` False: the pod holds its GPU but its server is not up, so there are no vLLM series. `mig` is
    (GPU_I_PROFILE, GPU_I_ID): then GPU_UTIL is absent and GR_ENGINE_ACTIVE speaks for the slice.
    """

    namespace: str
    pod: str
    gpu_share: float
    serving: bool = True
    running: int = 0
    waiting: int = 0
    kv_cache_share: float = 0.0
    container: str = "server"
    model: str = "llama"
    gpu: int = 0
    mig: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterShape:
    """How the exporters are set up.

    `exported_labels`: the labels that a scrape without honor_labels leaves behind. `old_labels`: `pod_name`,
    `pod_namespace`, `container_name` of the old-namespace flag.
    """

    exported_labels: bool = False
    old_labels: bool = False
    hostname: str = "gpu-node-1"
    model_name: str = "NVIDIA H100 80GB HBM3"


class PodCollector(Collector):
    """Series of whatever pods there are at the moment of the scrape."""

    def __init__(self, pods: Callable[[], Sequence[PodSeries]], shape: ExporterShape | None = None) -> None:
        self._pods = pods
        self._shape = shape or ExporterShape()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All families; empty ones without pods."""
        pods = self._pods()
        yield self._dcgm("DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", pods, lambda pod: 100 * pod.gpu_share)
        yield self._dcgm("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "Ratio of time the graphics engine is active.", pods, _share)
        yield self._dcgm("DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB).", pods, lambda _pod: 70_000.0)
        yield _vllm("vllm:num_requests_running", "Requests in model execution batches.", pods, lambda pod: pod.running)
        yield _vllm("vllm:num_requests_waiting", "Requests waiting to be processed.", pods, lambda pod: pod.waiting)
        yield _vllm("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 %.", pods, lambda pod: pod.kv_cache_share)

    def _dcgm(
        self, name: str, documentation: str, pods: Sequence[PodSeries], value: Callable[[PodSeries], float]
    ) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, documentation, labels=self._label_names())
        for pod in pods:
            if pod.mig is not None and name == "DCGM_FI_DEV_GPU_UTIL":
                continue  # not measured for an instance
            profile, instance = pod.mig or ("", "")
            family.add_metric(
                [
                    str(pod.gpu),
                    f"GPU-{uuid5(NAMESPACE_OID, f'{self._shape.hostname}/{pod.gpu}/{pod.pod}')}",
                    f"nvidia{pod.gpu}",
                    self._shape.model_name,
                    self._shape.hostname,
                    profile,
                    instance,
                    pod.pod,
                    pod.namespace,
                    pod.container,
                ],
                value(pod),
            )
        return family

    def _label_names(self) -> list[str]:
        pod_labels = ["pod", "namespace", "container"]
        if self._shape.old_labels:
            pod_labels = ["pod_name", "pod_namespace", "container_name"]
        elif self._shape.exported_labels:
            pod_labels = [f"exported_{label}" for label in pod_labels]
        gpu_labels = ["gpu", "UUID", "device", "modelName", "Hostname", "GPU_I_PROFILE", "GPU_I_ID"]
        return gpu_labels + pod_labels


def fleet_series(fleet: Fleet, namespace: str, *, concurrency: int, waiting: Callable[[], int]) -> list[PodSeries]:
    """The series of a fleet's pods; requests that wait are spread over the ready ones."""
    ready = sum(1 for pod in fleet.pods if pod.state is PodState.READY)
    return [
        PodSeries(
            namespace=namespace,
            pod=pod.name,
            gpu_share=pod.busy / concurrency,
            serving=pod.state is not PodState.STARTING,
            running=pod.busy,
            waiting=waiting() // ready if ready and pod.state is PodState.READY else 0,
            kv_cache_share=0.9 * pod.busy / concurrency,
            gpu=index % 8,
        )
        for index, pod in enumerate(fleet.pods)
    ]


@contextmanager
def exported(
    pods: Callable[[], Sequence[PodSeries]],
    *,
    shape: ExporterShape | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
) -> Iterator[str]:
    """Serve /metrics; yields its URL. Port 0 takes a free one."""
    from prometheus_client.exposition import start_wsgi_server  # noqa: PLC0415

    registry = CollectorRegistry()
    registry.register(PodCollector(pods, shape))
    server, thread = start_wsgi_server(port, addr=host, registry=registry)
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _share(pod: PodSeries) -> float:
    return pod.gpu_share


def _vllm(
    name: str, documentation: str, pods: Sequence[PodSeries], value: Callable[[PodSeries], Any]
) -> GaugeMetricFamily:
    # The pod labels that a scrape by pod discovery adds are given here, since one endpoint speaks for all pods.
    family = GaugeMetricFamily(name, documentation, labels=["model_name", "engine", "namespace", "pod"])
    for pod in pods:
        if pod.serving:
            family.add_metric([pod.model, "0", pod.namespace, pod.pod], float(value(pod)))
    return family
