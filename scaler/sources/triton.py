"""`source: triton`: pending requests and GPU use of Triton Inference Server's pods, from Prometheus.

Metrics: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html.
`nv_inference_pending_request_count` counts requests that wait, per model and version; requests at work are not
counted by Triton, so a GPU in use keeps the workload active. `nv_gpu_utilization` is a share per GPU.
"""

from __future__ import annotations

from scaler.promql.presets import ModelServer, preset_parameters

_THRESHOLDS = {"waiting": 5.0, "gpu": 80.0}


class Triton(ModelServer):
    """Triton Inference Server."""

    name = "triton"
    summary = "Triton Inference Server: requests pending, and the GPUs' use, of a workload's pods"
    roles = {  # noqa: RUF012 - a constant
        "waiting": ("nv_inference_pending_request_count",),
        "gpu": ("nv_gpu_utilization",),
    }
    identities = ("model", "version", "gpu_uuid")
    thresholds = _THRESHOLDS
    parameters = preset_parameters(_THRESHOLDS, unit="requests, or percent", model=False)
    share = "gpu"


SOURCE = Triton()
