"""`source: sglang`: queue, running requests and token use of SGLang's pods, from Prometheus.

Metrics: https://docs.sglang.ai/references/production_metrics.html (with --enable-metrics). Tensor-parallel ranks
report the same numbers, so only data-parallel ranks are summed. `token_usage` is a share.
"""

from __future__ import annotations

from scaler.promql.presets import ModelServer, preset_parameters, spellings

_THRESHOLDS = {"load": 32.0, "waiting": 5.0, "cache": 80.0}


class SGLang(ModelServer):
    """SGLang."""

    name = "sglang"
    summary = "SGLang: requests queued and running, and the tokens' use, of a workload's pods"
    roles = {  # noqa: RUF012 - a constant
        "waiting": spellings("sglang:num_queue_reqs"),
        "running": spellings("sglang:num_running_reqs"),
        "cache": spellings("sglang:token_usage"),
    }
    identities = ("model_name", "engine_type", "dp_rank")
    model_label = "model_name"
    thresholds = _THRESHOLDS
    parameters = preset_parameters(_THRESHOLDS, unit="requests, or percent", model=True)


SOURCE = SGLang()
