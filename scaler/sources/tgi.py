"""`source: tgi`: queue and batch of Text Generation Inference's pods, from Prometheus.

Metrics: https://huggingface.co/docs/text-generation-inference/reference/metrics.
"""

from __future__ import annotations

from scaler.promql.presets import ModelServer, preset_parameters

_THRESHOLDS = {"load": 32.0, "waiting": 5.0}


class TGI(ModelServer):
    """Text Generation Inference."""

    name = "tgi"
    summary = "Text Generation Inference: requests queued and in the batch, of a workload's pods"
    roles = {"waiting": ("tgi_queue_size",), "running": ("tgi_batch_current_size",)}  # noqa: RUF012 - a constant
    thresholds = _THRESHOLDS
    parameters = preset_parameters(_THRESHOLDS, unit="requests", model=False)


SOURCE = TGI()
