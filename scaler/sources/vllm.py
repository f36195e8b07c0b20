"""`source: vllm`: queue, running requests and KV-cache use of vLLM's pods, from Prometheus.

Metrics: https://docs.vllm.ai/en/latest/usage/metrics.html (V1, read for 0.10). `kv_cache_usage_perc` is a share
in spite of its name, and was `gpu_cache_usage_perc` before; NVIDIA NIM exports them without the prefix. Engines of
one pod (data-parallel ranks) are summed.
"""

from __future__ import annotations

from scaler.promql.presets import ModelServer, preset_parameters, spellings

_THRESHOLDS = {"load": 32.0, "waiting": 5.0, "cache": 80.0}


class VLLM(ModelServer):
    """vLLM, and NIM on vLLM."""

    name = "vllm"
    summary = "vLLM: requests waiting and running, and the KV cache's use, of a workload's pods"
    roles = {  # noqa: RUF012 - a constant
        "waiting": (*spellings("vllm:num_requests_waiting"), "num_requests_waiting"),
        "running": (*spellings("vllm:num_requests_running"), "num_requests_running"),
        "cache": (
            *spellings("vllm:kv_cache_usage_perc"),
            *spellings("vllm:gpu_cache_usage_perc"),
            "kv_cache_usage_perc",
            "gpu_cache_usage_perc",
        ),
    }
    identities = ("model_name", "engine")
    model_label = "model_name"
    thresholds = _THRESHOLDS
    parameters = preset_parameters(_THRESHOLDS, unit="requests, or percent", model=True)


SOURCE = VLLM()
