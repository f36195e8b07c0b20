"""The presets: what their queries select on a real Prometheus, and what is made of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.exporter import ExporterShape, PodSeries, exported
from scaler.core.model import ReplicaView, Sample
from scaler.errors import SourceDenied, SourceError, SourceNoData, SourceTimeout, TriggerInvalid
from scaler.promql.enforce import enforce
from scaler.promql.presets import Preset, PresetConfig
from scaler.promql.questions import Answer, Question, Result, Series
from scaler.settings import FileSettings, resolve
from tests.services.process import unique
from tests.services.prometheus import Prometheus, start_prometheus
from tests.sources.prometheus.server import context, parse

PRESETS = ("dcgm", "vllm", "triton", "tgi", "sglang")
GOOD = {"serverAddress": "http://prometheus:9090", "namespace": "team-a", "workload": "llama"}
POD = "llama-5d4f8c7b9d-x2x4z"
OTHER = "llama-5d4f8c7b9d-b8b9c"


def preset(source: str, metadata: Mapping[str, str] | None = None) -> tuple[Preset, PresetConfig]:
    trigger = parse(GOOD | dict(metadata or {}), source=source)
    assert isinstance(trigger.source, Preset)
    assert isinstance(trigger.config, PresetConfig)
    return trigger.source, trigger.config


def answer(*series: tuple[str, Mapping[str, str], float], wake: Result | SourceError | None = None) -> Answer:
    return Answer(
        at_seconds=5.0,
        result=Result(
            kind="vector",
            series=tuple(
                Series(labels={"__name__": name, **labels}, value=value, evaluated_at_seconds=0.0)
                for name, labels, value in series
            ),
        ),
        wake=wake,
    )


def sample(
    source: str,
    found: Answer,
    metadata: Mapping[str, str] | None = None,
    *,
    view: ReplicaView | None = None,
) -> Sample:
    made, config = preset(source, metadata)
    return made.sample(config, found, now_seconds=6.0, view=view)


def number(value: float) -> Result:
    return Result(kind="vector", series=(Series(labels={}, value=value, evaluated_at_seconds=0.0),))


def seen(ready: int, *, starting: int = 0, terminating: int = 0) -> ReplicaView:
    return ReplicaView(at_seconds=5.0, ready=ready, starting_at_seconds=(1.0,) * starting, terminating=terminating)


UTIL, ENGINE = "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_PROF_GR_ENGINE_ACTIVE"


def gpu(uuid: str, pod: str, **labels: str) -> dict[str, str]:
    return {"UUID": uuid, "pod": pod, **labels}


# Arithmetic.


@pytest.mark.parametrize(
    ("series", "percent", "gpus"),
    [
        ([(UTIL, gpu("a", "p1"), 60.0), (UTIL, gpu("b", "p2"), 80.0)], 140.0, 2),
        ([(UTIL, gpu("a", "p1"), 60.0), (UTIL, gpu("b", "p1"), 80.0)], 70.0, 2),
        ([(UTIL, gpu("a", "p1"), 80.0), (UTIL, gpu("a", "p2"), 80.0)], 80.0, 1),
        ([(UTIL, gpu("a", "p1"), 60.0), (ENGINE, gpu("a", "p1"), 0.9)], 60.0, 1),
        ([(ENGINE, gpu("a", "p1"), 0.9)], 90.0, 1),
        ([(ENGINE, gpu("a", "p1", GPU_I_ID="1"), 0.5), (ENGINE, gpu("a", "p2", GPU_I_ID="2"), 0.3)], 80.0, 2),
        ([(UTIL, gpu("a", "p1", GPU_I_ID="1"), 99.0), (ENGINE, gpu("a", "p1", GPU_I_ID="1"), 0.5)], 50.0, 1),
        ([(UTIL, gpu("a", "p1"), 2147483632.0), (UTIL, gpu("b", "p2"), 50.0)], 50.0, 1),
        ([(UTIL, gpu("a", "p1"), -1.0), (UTIL, gpu("b", "p2"), 50.0)], 50.0, 1),
        ([(ENGINE, gpu("a", "p1"), 1.01)], 100.0, 1),
        ([(UTIL, {"uuid": "a", "pod": "p1"}, 40.0), (UTIL, {"UUID": "a", "pod": "p1"}, 50.0)], 50.0, 1),
        ([(UTIL, {"UUID": "a", "exported_pod": "p1"}, 40.0), (UTIL, {"UUID": "a", "pod": "p1"}, 40.0)], 40.0, 1),
        ([(UTIL, {"UUID": "a", "pod_name": "p1"}, 40.0)], 40.0, 1),
        ([(UTIL, {"pod": "p1"}, 40.0), (UTIL, {"pod": "p2"}, 50.0)], 90.0, 2),
        ([(UTIL, gpu("a", "p1"), 60.0), (UTIL, gpu("b", "p2"), float("nan"))], 60.0, 1),
    ],
    ids=[
        "two replicas",
        "one replica with two GPUs counts by their mean",
        "a shared GPU counts once",
        "GPU_UTIL is preferred",
        "GR_ENGINE_ACTIVE where it is alone",
        "two MIG instances of one GPU",
        "GPU_UTIL under MIG is not used",
        "a blank value",
        "a negative value",
        "a ratio a little above one",
        "the UUID in either spelling",
        "both label conventions at once",
        "the old label names",
        "no UUID",
        "NaN",
    ],
)
def test_dcgm_counts_each_gpu_once_and_each_replica_by_its_mean(
    series: list[tuple[str, dict[str, str], float]], percent: float, gpus: int
) -> None:
    found = sample("dcgm", answer(*series))
    assert found.metric_value == pytest.approx(percent)
    assert found.utilization_sum == pytest.approx(percent)
    assert found.raw["gpus"] == gpus
    assert found.active


def test_an_idle_gpu_is_not_active_and_only_blank_ones_are_no_data() -> None:
    assert not sample("dcgm", answer((UTIL, gpu("a", "p1"), 0.0))).active
    assert not sample("dcgm", answer((UTIL, gpu("a", "p1"), 4.0)), {"activationThreshold": "5"}).active
    with pytest.raises(SourceNoData):
        sample("dcgm", answer((UTIL, gpu("a", "p1"), 2147483632.0)))


def vllm(
    waiting: float, running: float, cache: float, pod: str = "p1", **labels: str
) -> list[tuple[str, dict[str, str], float]]:
    return [
        (f"vllm:{name}", {"pod": pod, **labels}, value)
        for name, value in (
            ("num_requests_waiting", waiting),
            ("num_requests_running", running),
            ("kv_cache_usage_perc", cache),
        )
    ]


@pytest.mark.parametrize(
    ("scale_on", "metric", "target", "use"),
    [("load", 20.0, 32.0, None), ("waiting", 7.0, 5.0, None), ("cache", 130.0, 80.0, 130.0)],
)
def test_vllm_scales_on_what_is_asked_and_tells_all(
    scale_on: str, metric: float, target: float, use: float | None
) -> None:
    found = answer(*vllm(5, 10, 0.5), *vllm(2, 3, 0.8, "p2"))
    made, config = preset("vllm", {"scaleOn": scale_on})
    result = made.sample(config, found, now_seconds=6.0, view=None)
    assert result.metric_value == pytest.approx(metric)
    assert (result.waiting, result.in_flight, result.active) == (7.0, 13.0, True)
    assert result.utilization_sum == (None if use is None else pytest.approx(use))
    assert result.raw["cache_percent"] == pytest.approx(130.0)
    assert result.raw["pods"] == 2
    assert made.target(config) == target
    assert made.target(preset("vllm", {"scaleOn": scale_on, "threshold": "7"})[1]) == 7.0


def test_engines_of_a_pod_are_summed_and_their_cache_is_averaged() -> None:
    found = sample("vllm", answer(*vllm(1, 2, 0.2, engine="0"), *vllm(3, 4, 0.6, engine="1")), {"scaleOn": "cache"})
    assert (found.waiting, found.in_flight) == (4.0, 6.0)
    assert found.metric_value == pytest.approx(40.0)


def test_the_newer_name_of_a_metric_wins_in_each_pod() -> None:
    old = ("vllm:gpu_cache_usage_perc", {"pod": "p1"}, 0.9)
    only_old = [(name, {**labels, "pod": "p2"}, value) for name, labels, value in vllm(0, 1, 0.5)[:2]]
    found = sample(
        "vllm",
        answer(*vllm(0, 1, 0.5), old, *only_old, ("vllm:gpu_cache_usage_perc", {"pod": "p2"}, 0.7)),
        {"scaleOn": "cache"},
    )
    assert found.metric_value == pytest.approx(120.0)


def test_running_requests_keep_a_workload_active_though_none_waits() -> None:
    found = sample("vllm", answer(*vllm(0, 1, 0.1)), {"scaleOn": "waiting"})
    assert (found.metric_value, found.active) == (0.0, True)
    assert not sample("vllm", answer(*vllm(0, 0, 0.3))).active


def test_a_missing_part_that_is_needed_is_no_data() -> None:
    waiting, running, cache = vllm(1, 2, 0.3)
    for series, metadata in (
        ((running, cache), {}),
        ((waiting, cache), {}),
        ((waiting, running), {"scaleOn": "cache"}),
        ((cache,), {"scaleOn": "cache"}),
    ):
        with pytest.raises(SourceNoData, match="no series vllm:"):
            sample("vllm", answer(*series), metadata)
    assert sample("vllm", answer(waiting), {"scaleOn": "waiting"}).in_flight is None


def test_triton_stays_active_while_a_gpu_works() -> None:
    pending = ("nv_inference_pending_request_count", {"pod": "p1", "model": "m", "version": "1"}, 0.0)
    busy = ("nv_gpu_utilization", {"pod": "p1", "gpu_uuid": "g"}, 0.4)
    idle = ("nv_gpu_utilization", {"pod": "p1", "gpu_uuid": "g"}, 0.0)
    assert sample("triton", answer(pending, busy)).active
    assert not sample("triton", answer(pending, idle)).active
    assert not sample("triton", answer(pending)).active
    found = sample("triton", answer(pending, busy), {"scaleOn": "gpu"})
    assert found.metric_value == found.utilization_sum == pytest.approx(40.0)


def test_tgi_and_sglang_tell_queue_and_batch() -> None:
    found = sample("tgi", answer(("tgi_queue_size", {"pod": "p"}, 3.0), ("tgi_batch_current_size", {"pod": "p"}, 8.0)))
    assert (found.metric_value, found.waiting, found.in_flight) == (11.0, 3.0, 8.0)
    found = sample(
        "sglang",
        answer(
            ("sglang:num_queue_reqs", {"pod": "p", "dp_rank": "0"}, 3.0),
            ("sglang:num_queue_reqs", {"pod": "p", "dp_rank": "1"}, 1.0),
            ("sglang:num_running_reqs", {"pod": "p", "dp_rank": "0"}, 8.0),
            ("sglang:token_usage", {"pod": "p", "dp_rank": "0"}, 0.5),
        ),
    )
    assert (found.metric_value, found.waiting, found.in_flight) == (12.0, 4.0, 8.0)
    assert found.raw["cache_percent"] == 50.0


# No series.


@pytest.mark.parametrize("source", PRESETS)
def test_no_series_is_zero_only_where_no_replica_is_seen(source: str) -> None:
    with pytest.raises(SourceNoData):
        sample(source, answer())
    for view in (seen(1), seen(0, starting=1), seen(0, terminating=1)):
        with pytest.raises(SourceNoData):
            sample(source, answer(), view=view)
    found = sample(source, answer(), view=seen(0))
    assert (found.metric_value, found.active, found.waiting) == (0.0, False, 0.0)


@pytest.mark.parametrize("source", PRESETS)
def test_the_wake_query_wakes_from_zero_and_lets_a_workload_rest(source: str) -> None:
    metadata = {"wakeQuery": "sum(gateway)"}
    made, config = preset(source, metadata)
    woken = sample(source, answer(wake=number(3.0)), metadata)
    assert woken.active
    assert woken.waiting == 3.0
    assert woken.metric_value == (3.0 if made.counts_requests(config) else made.target(config))
    for view in (None, seen(0), seen(0, starting=1)):
        rested = sample(source, answer(wake=number(0.0)), metadata, view=view)
        assert (rested.metric_value, rested.active) == (0.0, False)
    with pytest.raises(SourceNoData):
        sample(source, answer(wake=number(0.0)), metadata, view=seen(1))
    with pytest.raises(SourceNoData):
        sample(source, answer(wake=Result(kind="vector", series=())), metadata)
    with pytest.raises(SourceTimeout):
        sample(source, answer(wake=SourceTimeout("slow")), metadata, view=seen(0))


def test_work_upstream_keeps_an_idle_workload_active() -> None:
    found = sample("vllm", answer(*vllm(0, 0, 0), wake=number(2.0)), {"wakeQuery": "g"})
    assert (found.active, found.waiting, found.metric_value) == (True, 2.0, 0.0)
    busy = sample("vllm", answer(*vllm(0, 1, 0), wake=SourceTimeout("slow")), {"wakeQuery": "g"})
    assert busy.active


def test_a_sum_that_misses_most_replicas_is_no_data() -> None:
    found = answer(*vllm(0, 1, 0))
    assert sample("vllm", found, view=seen(2)).active
    with pytest.raises(SourceNoData, match="3 replicas are ready and only 1"):
        sample("vllm", found, view=seen(3))


@pytest.mark.parametrize("source", PRESETS)
def test_who_cannot_wake_from_zero_is_warned(source: str) -> None:
    def warned(metadata: Mapping[str, str]) -> bool:
        return any("nothing here wakes" in warning for warning in parse({**GOOD, **metadata}, source=source).warnings)

    made, config = preset(source)
    assert made.vanishes_at_zero(config)
    assert warned({})
    assert not warned({"minReplicas": "1"})
    assert not warned({"wakeQuery": "sum(gateway)"})
    assert not made.vanishes_at_zero(preset(source, {"wakeQuery": "g"})[1])
    assert any("outage" in warning for warning in parse(GOOD | {"onNoData": "zero"}, source=source).warnings)


# Metadata.


@pytest.mark.parametrize("source", PRESETS)
@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"namespace": ""}, "namespace"),
        ({"namespace": 'a",namespace=~".*'}, "namespace"),
        ({"namespace": "Team_A"}, "namespace"),
        ({"workload": ""}, "workload"),
        ({"workload": "a.*"}, "workload"),
        ({"workload": "llama|.*"}, "workload"),
        ({"workload": "x" * 47}, "workload"),
        ({"pod": "llama-.*"}, "pod"),
        ({"workload": "", "pod": "("}, "pod"),
        ({"workload": "", "pod": "(?=a)"}, "pod"),
        ({"workload": "", "pod": "a" * 300}, "pod"),
        ({"workload": "", "pod": "a\x00b"}, "pod"),
        ({"podLabel": "pod.name"}, "podLabel"),
        ({"namespaceLabel": '__name__=~".*"'}, "namespaceLabel"),
        ({"threshold": "0"}, "threshold"),
        ({"staleSeconds": "1"}, "staleSeconds"),
        ({"scaleOn": "luck"}, "scaleOn"),
        ({"query": "up"}, "query"),
    ],
)
def test_what_can_not_be_part_of_a_query_is_refused(source: str, changes: dict[str, str], wrong: str) -> None:
    with pytest.raises(TriggerInvalid) as found:
        parse(GOOD | changes, source=source)
    assert {problem.field for problem in found.value.problems} == {wrong}


def test_the_resources_are_the_namespace_and_what_users_wrote() -> None:
    made, config = preset("vllm", {"wakeQuery": "sum(gateway)"})
    assert made.resources(config) == {"namespace": ("team-a",), "query": ("sum(gateway)",)}
    assert made.query(config).by_users == ("sum(gateway)",)


def test_a_connection_restricts_a_preset_by_namespace_and_fixes_its_labels() -> None:
    settings_ = resolve(
        FileSettings.model_validate(
            {
                "connections": {
                    "shared": {
                        "source": "vllm",
                        "also": ["dcgm"],
                        "namespaces": ["*"],
                        "allow": {"namespace": ["team-a"]},
                        "set": {"serverAddress": "http://prometheus:9090", "podLabel": "kubernetes_pod"},
                    }
                }
            }
        ),
        {},
        where="test",
    )
    mine = {"connection": "shared", "namespace": "team-a", "workload": "llama"}
    trigger = parse(mine, source="vllm", settings=settings_)
    assert trigger.refusal is None
    question = trigger.source.query(trigger.config)
    assert isinstance(question, Question)
    assert 'kubernetes_pod=~"llama' in question.text
    assert isinstance(parse(mine | {"namespace": "team-b"}, source="vllm", settings=settings_).refusal, SourceDenied)
    with pytest.raises(TriggerInvalid, match="podLabel"):
        parse(mine | {"podLabel": "app"}, source="vllm", settings=settings_)


def test_triggers_on_different_parts_share_one_query() -> None:
    made, config = preset("vllm", {"scaleOn": "cache"})
    assert made.query(config) == made.query(preset("vllm", {"scaleOn": "waiting", "threshold": "3"})[1])
    assert made.identity(config) != made.identity(preset("vllm", {"scaleOn": "waiting"})[1])
    assert made.object_name(config) == "llama-cache"


# Against a real server.


@dataclass(frozen=True)
class Cluster:
    server: Prometheus
    namespace: str


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with start_prometheus() as server:
        yield Cluster(server, "team-a")


async def read(
    server: Prometheus,
    source: str,
    metadata: Mapping[str, str],
    *,
    view: ReplicaView | None = None,
    allow: Mapping[str, tuple[str, ...]] | None = None,
) -> Sample:
    trigger = parse({"serverAddress": server.url, **metadata}, source=source)
    found: list[object] = []
    async with trigger.source.open(trigger.config, context(allow=allow or {})) as client:
        await client.read([trigger.source.query(trigger.config)], lambda _, outcome: found.append(outcome))
    if isinstance(found[0], SourceError):
        raise found[0]
    return trigger.source.sample(trigger.config, found[0], now_seconds=1000.0, view=view)


def mine(**changes: str) -> dict[str, str]:
    return {"namespace": unique("ns"), "workload": "llama", **changes}


async def test_vllm_is_read_from_a_real_server(prometheus: Prometheus) -> None:
    where = mine()
    namespace = where["namespace"]
    samples: list[tuple[str, dict[str, str], float]] = []
    for pod, waiting in ((POD, 3.0), (OTHER, 4.0)):
        for replica in ("a", "b"):  # two Prometheus servers of a pair scraped the same pod
            for name, labels, value in vllm(waiting, 2.0, 0.25, pod, engine="0", model_name="m"):
                samples.append((name, {**labels, "namespace": namespace, "prometheus_replica": replica}, value))
    for stranger in ("llama-70b-5d4f8c7b9d-x2x4z", "llama-5d4f8c7b9d-x2x4z-extra", "my-llama-5d4f8c7b9d-x2x4z"):
        samples += [(n, {**labels, "namespace": namespace}, 99.0) for n, labels, _ in vllm(0, 0, 0, stranger)]
    samples += [(n, {**labels, "namespace": "another"}, 99.0) for n, labels, _ in vllm(0, 0, 0, POD)]
    prometheus.push_many(samples)
    found = await read(prometheus, "vllm", where)
    assert (found.waiting, found.in_flight, found.metric_value) == (7.0, 4.0, 11.0)
    assert found.raw["cache_percent"] == pytest.approx(50.0)
    assert (await read(prometheus, "vllm", where | {"model": "m"})).waiting == 7.0
    with pytest.raises(SourceNoData):
        await read(prometheus, "vllm", where | {"model": "other"})
    by_pattern = {"namespace": namespace, "pod": "llama-.*x2x4z"}
    assert (await read(prometheus, "vllm", by_pattern)).waiting == 3.0 + 99.0


async def test_a_stateful_sets_pods_belong_to_the_workload(prometheus: Prometheus) -> None:
    where = mine()
    prometheus.push_many(
        [
            (name, {**labels, "namespace": where["namespace"]}, value)
            for pod in ("llama-0", "llama-11", "llama-70b-0")
            for name, labels, value in vllm(1.0, 0.0, 0.0, pod)
        ]
    )
    assert (await read(prometheus, "vllm", where)).waiting == 2.0


@pytest.mark.parametrize("convention", ["own", "exported", "old"])
async def test_dcgm_is_read_under_each_label_convention(prometheus: Prometheus, convention: str) -> None:
    where = mine()
    namespace = where["namespace"]

    def labels(pod: str, uuid: str, **more: str) -> dict[str, str]:
        whose = {
            "own": {"namespace": namespace, "pod": pod},
            "exported": {
                "exported_namespace": namespace,
                "exported_pod": pod,
                "namespace": "gpu-operator",
                "pod": "dcgm-exporter-abcde",
            },
            "old": {"pod_namespace": namespace, "pod_name": pod},
        }[convention]
        return {"UUID": uuid, "gpu": "0", "Hostname": "node", **whose, **more}

    prometheus.push_many(
        [
            (UTIL, labels(POD, "GPU-1"), 70.0),
            (UTIL, labels(OTHER, "GPU-2"), 50.0),
            (UTIL, labels("stranger-5d4f8c7b9d-x2x4z", "GPU-3"), 99.0),
            (ENGINE, labels(OTHER, "GPU-4", GPU_I_ID="3"), 0.3),
        ]
    )
    found = await read(prometheus, "dcgm", where)
    assert found.utilization_sum == pytest.approx(70.0 + (50.0 + 30.0) / 2)
    assert (found.raw["gpus"], found.raw["pods"]) == (3.0, 2.0)


async def test_the_exporters_own_pod_is_not_taken_for_the_workloads(prometheus: Prometheus) -> None:
    """Where labels are renamed, `pod` is the exporter's: a workload of that name must not get all GPUs."""
    where = mine(workload="dcgm-exporter")
    prometheus.push(
        UTIL,
        70.0,
        labels={
            "UUID": "GPU-1",
            "exported_namespace": "team-b",
            "exported_pod": POD,
            "namespace": where["namespace"],
            "pod": "dcgm-exporter-5d4f8c7b9d-x2x4z",
        },
    )
    with pytest.raises(SourceNoData):
        await read(prometheus, "dcgm", where)


@pytest.mark.parametrize(
    ("source", "series", "waiting"),
    [
        ("triton", {"nv_inference_pending_request_count": 3.0, "nv_gpu_utilization": 0.5}, 3.0),
        ("tgi", {"tgi_queue_size": 4.0, "tgi_batch_current_size": 1.0}, 4.0),
        ("sglang", {"sglang:num_queue_reqs": 5.0, "sglang:num_running_reqs": 1.0, "sglang:token_usage": 0.5}, 5.0),
        ("vllm", {"num_requests_waiting": 6.0, "num_requests_running": 1.0}, 6.0),
    ],
)
async def test_the_other_servers_are_read_from_a_real_server(
    prometheus: Prometheus, source: str, series: dict[str, float], waiting: float
) -> None:
    where = mine()
    prometheus.push_many(
        [
            (name, {"namespace": where["namespace"], "pod": POD, "tp_rank": rank}, value)
            for name, value in series.items()
            for rank in ("0", "1")
        ]
    )
    assert (await read(prometheus, source, where)).waiting == waiting


async def test_other_label_names_can_be_given(prometheus: Prometheus) -> None:
    where = mine(podLabel="kubernetes_pod_name", namespaceLabel="kubernetes_namespace")
    prometheus.push_many(
        [
            (name, {"kubernetes_namespace": where["namespace"], "kubernetes_pod_name": POD}, value)
            for name, _, value in vllm(2, 1, 0.5)
        ]
    )
    assert (await read(prometheus, "vllm", where)).waiting == 2.0


@pytest.mark.parametrize("source", PRESETS)
async def test_a_stale_sample_is_no_sample(prometheus: Prometheus, source: str) -> None:
    made, _ = preset(source)
    where = mine()
    labels = {"namespace": where["namespace"], "pod": POD, "UUID": "GPU-1"}
    series = [(names[0], labels, 0.5) for names in made.roles.values()]
    prometheus.push_many(series, at_seconds=time.time() - 200)
    assert (await read(prometheus, source, where | {"staleSeconds": "250"})).raw
    with pytest.raises(SourceNoData):
        await read(prometheus, source, where)


async def test_a_pod_that_ended_is_gone_at_once_by_its_staleness_marker(prometheus: Prometheus) -> None:
    import struct  # noqa: PLC0415 - only here

    where = mine()
    labels = {"namespace": where["namespace"]}
    series = [(name, {**own, **labels}, value) for name, own, value in vllm(3, 1, 0.5, POD)]
    prometheus.push_many(series, at_seconds=time.time() - 2)
    assert (await read(prometheus, "vllm", where)).waiting == 3.0
    marker: float = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))[0]  # Prometheus model/value.StaleNaN
    prometheus.push_many([(name, own, marker) for name, own, _ in series], at_seconds=time.time() - 1)
    with pytest.raises(SourceNoData):
        await read(prometheus, "vllm", where)


@pytest.mark.parametrize("source", PRESETS)
async def test_a_presets_query_is_understood_where_matchers_are_enforced(prometheus: Prometheus, source: str) -> None:
    made, config = preset(source)
    text = enforce(made.text(config), ('cluster="x"',))
    assert text.count('cluster = "x"') == text.count("__name__ =~") == 2 * len(made.pairs)
    where = mine()
    labels = {"namespace": where["namespace"], "pod": POD, "UUID": "GPU-1"}
    prometheus.push_many([(names[0], {**labels, "cluster": "x"}, 0.5) for names in made.roles.values()])
    assert (await read(prometheus, source, where, allow={"matchers": ('cluster="x"',)})).raw
    with pytest.raises(SourceNoData):
        await read(prometheus, source, where, allow={"matchers": ('cluster="y"',)})


HOSTILE = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            '"} or vllm:num_requests_waiting{pod=~".*',
            'llama"}[5m]) or ({pod=~".*"}',
            "llama\\",
            'llama\\"',
            ".*|x",
            "x`y",
            "x\ny",
            "(?i)LLAMA.*",
            "[^a]+",
            "\\Q.*\\E",
        ]
    ),
)


@settings(deadline=None)
@given(pod=HOSTILE, model=HOSTILE, namespace=HOSTILE, source=st.sampled_from(PRESETS))
def test_no_value_breaks_out_of_its_string(pod: str, model: str, namespace: str, source: str) -> None:
    metadata = {"serverAddress": "http://p", "namespace": namespace, "pod": pod, "model": model}
    if source not in {"vllm", "sglang"}:
        del metadata["model"]
    try:
        trigger = parse(metadata, source=source)
    except TriggerInvalid:
        return
    question = trigger.source.query(trigger.config)
    assert isinstance(question, Question)
    made = trigger.source
    assert isinstance(made, Preset)
    rewritten = enforce(question.text, ('mark="1"',))
    assert rewritten.count('{ mark = "1"') == 2 * len(made.pairs)
    assert rewritten.count("max by") == len(made.pairs)


async def test_a_hostile_pattern_reads_no_other_namespace(cluster: Cluster) -> None:
    cluster.server.push_many(
        [(name, {**labels, "namespace": "team-b"}, value) for name, labels, value in vllm(9, 9, 0.9, POD)]
    )
    for pod in (".*", '.*"} or {namespace="team-b', ".*|x", "(?s).*"):
        with pytest.raises(SourceNoData):
            await read(cluster.server, "vllm", {"namespace": cluster.namespace, "pod": pod})


@pytest.mark.parametrize("convention", ["own", "exported", "old"])
async def test_scraped_pods_come_go_and_are_waited_for(convention: str) -> None:
    """A real scrape of exporters in the shape of dcgm-exporter and vLLM, from two replicas to none."""
    pods = [
        PodSeries(namespace="team-a", pod=POD, gpu_share=0.9, running=4, waiting=6, kv_cache_share=0.5),
        PodSeries(namespace="team-a", pod=OTHER, gpu_share=0.5, running=2, waiting=1, gpu=1, mig=("1g.10gb", "7")),
        PodSeries(namespace="team-b", pod=POD, gpu_share=1.0, running=50, waiting=50, gpu=2),
    ]
    shape = ExporterShape(exported_labels=convention == "exported", old_labels=convention == "old")
    where = {"namespace": "team-a", "workload": "llama"}
    with exported(lambda: pods, shape=shape) as url:
        target = url.removeprefix("http://").removesuffix("/metrics")
        with start_prometheus(scrape_targets={"pods": [target]}) as server:

            async def once(source: str, view: ReplicaView | None = None) -> Sample | None:
                try:
                    return await read(server, source, where, view=view)
                except SourceNoData:
                    return None

            gpus = await _eventually(lambda: once("dcgm"), lambda found: found is not None)
            assert gpus is not None
            assert gpus.utilization_sum == pytest.approx(140.0)
            # A scrape that a busy machine misses makes all series stale until the next one.
            queue = await _eventually(lambda: once("vllm"), lambda found: found is not None)
            assert queue is not None
            assert (queue.waiting, queue.in_flight) == (7.0, 6.0)
            del pods[:2]
            await _eventually(lambda: once("vllm"), lambda found: found is None)
            assert await once("dcgm") is None
            for source in ("dcgm", "vllm"):
                rested = await _eventually(partial(once, source, seen(0)), lambda found: found is not None)
                assert rested is not None
                assert (rested.metric_value, rested.active) == (0.0, False)
                assert await once(source, seen(1)) is None


async def _eventually(
    read_once: Callable[[], Awaitable[Sample | None]], wanted: Callable[[Sample | None], bool]
) -> Sample | None:
    """What is read once it is as wanted; scrapes come each second."""
    for _ in range(600):
        found = await read_once()
        if wanted(found):
            return found
        await asyncio.sleep(0.1)
    raise AssertionError("it did not come")
