"""`source: dcgm`: GPU utilisation of a workload's pods, by NVIDIA's dcgm-exporter and Prometheus.

Metrics: https://docs.nvidia.com/datacenter/cloud-native/gpu-telemetry/latest/dcgm-exporter.html. Whole GPUs:
DCGM_FI_DEV_GPU_UTIL in percent (GR_ENGINE_ACTIVE where it is missing); MIG instances (`GPU_I_ID`), which have no
GPU_UTIL: DCGM_FI_PROF_GR_ENGINE_ACTIVE, a share. The exporter collects every 30 s by default and is scraped
every 15 to 30 s, so a value may be a minute old.

The metric is a sum over replicas, each counted by the mean of its GPUs, so it does not multiply while replicas
load. A GPU that several pods of the workload share (time slicing) counts once, split among them.

Utilisation says that some kernel ran, nothing of a queue: it is 100 % with a batch of one. Use it where there is
no queue to read.
"""

from __future__ import annotations

from collections.abc import Iterable

from scaler.core.model import Sample
from scaler.errors import SourceNoData
from scaler.promql.presets import Pair, Point, Preset, PresetConfig, preset_parameters
from scaler.promql.questions import Answer

_UTIL = "DCGM_FI_DEV_GPU_UTIL"
_ENGINE = "DCGM_FI_PROF_GR_ENGINE_ACTIVE"
_THRESHOLDS = {"gpu": 80.0}
# DCGM writes "blank" as huge numbers (dcgm_structs.h: DCGM_INT32_BLANK 0x7ffffff0); a ratio may overshoot a little.
_MOST_PERCENT = 105.0


class DCGM(Preset):
    """dcgm-exporter."""

    name = "dcgm"
    summary = "NVIDIA DCGM: GPU utilisation of a workload's pods, whole GPUs and MIG instances"
    roles = {"gpu": (_UTIL, _ENGINE)}  # noqa: RUF012 - a constant
    identities = ("UUID", "uuid", "GPU_I_ID")
    # Prometheus renames the exporter's own labels where it does not honour them; then `pod` is the exporter's pod.
    # The last pair is that of --use-old-namespace.
    pairs = (
        Pair(namespace="exported_namespace", pod="exported_pod"),
        Pair(namespace="namespace", pod="pod", without="exported_pod"),
        Pair(namespace="pod_namespace", pod="pod_name"),
    )
    thresholds = _THRESHOLDS
    parameters = preset_parameters(_THRESHOLDS, unit="percent", model=False)

    def interpret(self, config: PresetConfig, answer: Answer, points: tuple[Point, ...], *, what: str) -> Sample:
        """The sum over replicas of the mean use of their GPUs, in percent."""
        uses = _uses(points)
        if not uses:
            raise SourceNoData(f"{what}: no usable value of {_UTIL} or {_ENGINE}; check dcgm-exporter's counters")
        sharers: dict[str, int] = {}
        for gpu, _ in uses:
            sharers[gpu] = sharers.get(gpu, 0) + 1
        by_pod: dict[str, list[float]] = {}
        for (gpu, pod), percent in uses.items():
            by_pod.setdefault(pod, []).append(percent / sharers[gpu])
        total = sum(sum(percents) / len(percents) for percents in by_pod.values())
        return Sample(
            at_seconds=answer.at_seconds,
            metric_value=total,
            active=total > config.common.activation_threshold,
            utilization_sum=total,
            raw={"percent_sum": total, "gpus": float(len(sharers)), "pods": float(len(by_pod))},
        )


def _uses(points: Iterable[Point]) -> dict[tuple[str, str], float]:
    """Percent in use by (GPU or MIG instance, pod)."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for point in points:
        percent = point.value * (100.0 if point.metric == _ENGINE else 1.0)
        if not 0.0 <= percent <= _MOST_PERCENT:
            continue
        instance = point.labels.get("GPU_I_ID", "")
        uuid = point.labels.get("UUID") or point.labels.get("uuid") or ""
        if instance and point.metric == _UTIL:  # of the whole GPU, or nothing
            continue
        values = found.setdefault((f"{uuid or point.pod}/{instance}", point.pod), {})
        values[point.metric] = max(values.get(point.metric, 0.0), min(percent, 100.0))
    return {key: values.get(_UTIL, values.get(_ENGINE, 0.0)) for key, values in found.items()}


SOURCE = DCGM()
