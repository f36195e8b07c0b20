"""Traces in, tables out; the matrix resumes; the verb prints what was run."""

import csv
import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scaler import loads
from scaler.backtest import matrix as matrix_module
from scaler.backtest import page, report
from scaler.backtest.cases import (
    BLOCKS,
    MOST_POINTS,
    Case,
    as_plain,
    from_plain,
    run,
    scaler_of,
    simulated,
    waiting_of,
)
from scaler.backtest.matrix import Plan, Runs, code_digest, key_of, run_matrix
from scaler.backtest.traces import SHIPPED, is_pattern, load_trace, pattern_of
from scaler.cli import build_app
from scaler.cli.backtest import _TRACE_HELP
from scaler.errors import PilotlightError
from scaler.loads import TraceInvalid, read_trace
from scaler.simulator.arrivals import PATTERNS, Arrival, parse_pattern
from scaler.simulator.baselines import THRESHOLDS, KedaConfig, clairvoyant_bound, keda_grid
from scaler.simulator.controllers import Pilot
from tests.services import REPOSITORY


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.csv.gz"
    rows = "".join(f"{900 + 40 * i + (i % 5)},{8 + i % 7}\n" for i in range(60))
    with gzip.open(path, "wt") as file:
        file.write("t_s,service_s\n" + rows)
    return path


def test_a_trace_file_is_read_in_order(trace_file: Path) -> None:
    trace = read_trace(trace_file)
    assert (len(trace), trace[0]) == (60, Arrival(900.0, 8.0))


HEADER = b"t_s,service_s\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,b\n1,2\n", 'line 1 is "a,b": expected a header'),
        (b"", 'line 1 is "": expected a header'),
        (HEADER + b"1,x\n", 'line 2: service_s is "x"; expected seconds'),
        (HEADER + b"1\n", 'line 2: service_s is ""; expected seconds'),
        (HEADER + b"1,1\n\n\n2,nan\n", 'line 5: service_s is "nan"; expected seconds'),
        (HEADER + b"5,1\n4,1\n", 'line 3: t_s is "4"; expected it not below 5'),
        (HEADER + b"5,-1\n", 'line 2: service_s is "-1"; expected seconds, a number from 0'),
        (HEADER + b"-5,1\n", 'line 2: t_s is "-5"; expected seconds, a number from 0'),
        (HEADER + b"nan,1\n", 'line 2: t_s is "nan"'),
        (HEADER + b"1e15,1\n", 'line 2: t_s is "1e15"'),
        (HEADER + b"1,1e15\n", 'line 2: service_s is "1e15"'),
        (HEADER, "holds no request"),
        (HEADER + b"9" * 1_000_000, "line 2 is"),
        (HEADER + b'"' + b"9\n" * 1_000_000, "can't be read: field larger than"),
        (b"\0" * 1_000_000, "line 1 is"),
        (bytes(range(256)) * 10, "expected CSV in UTF-8"),
        ("t_s,service_s\n1,1\n".encode("utf-16"), "expected CSV in UTF-8"),
    ],
    ids=lambda one: one[:30] if isinstance(one, str) else "",
)
def test_a_trace_that_is_wrong_says_where(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "wrong.csv"
    path.write_bytes(content)
    with pytest.raises(TraceInvalid) as caught:
        load_trace(str(path))
    message = str(caught.value)
    assert said in message
    assert message.startswith(f'trace "{path}"')
    assert len(message) < 400
    assert message.isprintable()


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbft_s,service_s\n1,2\n", b"t_s,service_s\r\n1,2\r\n", b"t_s,service_s\r1,2\r", b"service_s,t_s\n2,1"],
    ids=["byte order mark", "CRLF", "CR", "other order"],
)
def test_what_spreadsheets_write_is_a_trace(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(content)
    assert load_trace(str(path)) == [Arrival(1.0, 2.0)]


def test_a_trace_that_is_no_file_or_may_not_be_read_says_so_and_never_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "trace.csv").write_bytes(HEADER + b"1,1\n")
    unreadable = tmp_path / "unreadable.csv"
    unreadable.write_bytes(HEADER + b"1,1\n")
    unreadable.chmod(0)
    closed.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:  # who may read everything
        for folder in (tmp_path, *tmp_path.parents[:3]):
            folder.chmod(folder.stat().st_mode | 0o055)
        os.seteuid(65_534)
    try:
        for path in (tmp_path, tmp_path / "pipe.csv"):
            with pytest.raises(TraceInvalid, match=f'"{path}" can\'t be read: expected a file'):
                load_trace(str(path))
        for path in (unreadable, closed / "trace.csv"):
            with pytest.raises(TraceInvalid, match=f'"{path}" can\'t be read: Permission denied'):
                load_trace(str(path))
    finally:
        if is_root:
            os.seteuid(0)
        closed.chmod(0o700)


@pytest.mark.parametrize(
    "name",
    ["no-such-thing", "no-such-thing:rate_per_second=1", "a" * 5_000],
    ids=["name", "settings", "no file's name"],
)
def test_what_is_no_trace_at_all_names_the_shipped_traces_and_the_patterns_apart(name: str) -> None:
    with pytest.raises(TraceInvalid, match="is no file, no shipped trace and no pattern") as caught:
        load_trace(name)
    said = str(caught.value)
    assert f"; shipped traces: {', '.join(sorted(SHIPPED))}; patterns: {', '.join(sorted(PATTERNS))}; " in said
    assert 'of bursts, diurnal, documents, flash the name alone is the trace: the pattern is "bursts:"' in said


def test_a_setting_that_a_pattern_lacks_is_named() -> None:
    with pytest.raises(TraceInvalid, match='no pattern either: pattern bursts: setting "rate" is unknown'):
        load_trace("bursts:rate=1")


def test_the_help_names_every_shipped_trace_and_every_pattern() -> None:
    named = re.search(r"a shipped trace \((.*?)\) or a pattern \((.*?)\), with a colon", _TRACE_HELP)
    assert named is not None
    assert [names.split(", ") for names in named.groups()] == [sorted(SHIPPED), sorted(PATTERNS)]


@pytest.mark.parametrize("name", sorted(SHIPPED.keys() & PATTERNS.keys()))
def test_of_a_name_that_a_trace_and_a_pattern_have_the_colon_says_the_pattern(name: str) -> None:
    said = re.findall(r'"(.+?)"', pattern_of(name) or "")
    assert len(said) == 2
    assert all(is_pattern(text) and load_trace(text, days=2.0) for text in said)
    assert not is_pattern(name)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("poisson:rate_per_second=1e9", "rate_per_second is 1e+09, which makes about 8.64e+13 requests"),
        ("steady:rate_per_second=1e308", "rate_per_second is 1e+308, which makes about inf requests"),
        ("diurnal:mean_rate_per_second=1e5", "mean_rate_per_second is 100000, which"),
        ("diurnal:swing=1e300", "swing is 1e+300, which"),
        ("bursts:every_seconds=0,burst_rate_per_second=1e4", "burst_rate_per_second is 10000, which"),
        ("bursts:every_seconds=0,burst_seconds=0", "every_seconds is 0, which makes about inf draws"),
        ("bursts:quiet_rate_per_second=1e6", "quiet_rate_per_second is 1e+06, which"),
        ("flash:base_rate_per_second=1e6", "base_rate_per_second is 1e+06, which"),
        (
            "flash:peak_rate_per_second=1e4,decay_seconds=1",
            "peak_rate_per_second is 10000, which makes about 8.64e+08 draws",
        ),
        ("flash:decay_seconds=0", "decay_seconds is 0; expected above 0"),
        ("documents:documents_per_day=1e9", "documents_per_day is 1e+09, which makes about 1e+09 requests"),
        ("documents:to_hour=90", "to_hour is 90; expected an hour"),
        ("documents:from_hour=18,to_hour=8", "from_hour is 18; expected at most to_hour"),
    ],
)
def test_a_pattern_that_would_fill_the_memory_or_never_end_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(TraceInvalid) as caught:
        load_trace(pattern)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f'pattern "{pattern}": ')


@pytest.mark.parametrize(
    ("service_seconds", "days", "said"), [(1e12, 1.0, "the mean service is 1e+12"), (1.0, 1e9, "days is 1e+09")]
)
def test_a_pattern_of_no_sensible_length_is_refused(service_seconds: float, days: float, said: str) -> None:
    with pytest.raises(TraceInvalid, match=re.escape(said)):
        load_trace("documents:documents_per_day=0", service_seconds=service_seconds, days=days)


def test_a_file_of_more_requests_than_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "MOST_REQUESTS", 1_000)
    path = tmp_path / "long.csv"
    path.write_bytes(HEADER + b"1,1\n" * 1_000)
    assert len(load_trace(str(path))) == 1_000
    path.write_bytes(HEADER + b"1,1\n" * 1_001)
    with pytest.raises(TraceInvalid, match="line 1002: expected at most 1,000 requests"):
        load_trace(str(path))


@pytest.mark.parametrize("name", sorted(PATTERNS))
@pytest.mark.parametrize("days", [0.5, 7.0])
def test_about_as_many_requests_come_as_a_pattern_is_taken_for(name: str, days: float) -> None:
    """The estimate is from above, and close enough that nothing sensible is refused."""
    made = len(load_trace(f"{name}:", days=days))  # the bare name may be that of a shipped trace
    told = loads._size(parse_pattern(name), days * 86_400.0)
    assert made * 0.9 <= told.requests <= made * 2.0 + 10
    assert told.draws >= told.requests * 0.99


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_shipped_trace_generates_the_same_requests_each_time(name: str) -> None:
    trace = load_trace(name)
    assert len(trace) > 100
    assert trace == load_trace(name)


@pytest.mark.parametrize("scaler", ["slo", "target", "keda", "keda-fast", "knative", "ray", "sagemaker", "fixed"])
def test_everybody_serves_every_request(trace_file: Path, scaler: str) -> None:
    case = Case(trace=str(trace_file), cold_start_seconds=30.0, scaler=scaler, wait_seconds=60.0, replicas=2)
    result = run(case)
    assert result.requests == 60
    assert result.gpu_seconds >= result.busy_seconds
    assert sum(block[0] for block in result.blocks) == 60
    assert sum(block[1] for block in result.blocks) == pytest.approx(result.gpu_seconds, abs=0.05 * BLOCKS)
    assert from_plain(json.loads(json.dumps(as_plain(result)))).shares == result.shares


def test_nobody_is_cheaper_than_the_bound(trace_file: Path) -> None:
    for scaler in ("slo", "keda", "knative"):
        case = Case(trace=str(trace_file), cold_start_seconds=30.0, scaler=scaler, wait_seconds=60.0)
        result = run(case)
        bound = clairvoyant_bound(
            read_trace(trace_file),
            cold_start_seconds=30.0,
            concurrency=1,
            wait_seconds=60.0,
            attainment=result.shares["60"],
            from_seconds=600.0,
        )
        assert result.busy_seconds <= bound <= result.gpu_seconds


def test_the_bound_counts_the_smaller_of_gap_and_cold_start() -> None:
    trace = [Arrival(0.0, 10.0), Arrival(100.0, 10.0), Arrival(125.0, 10.0)]
    sure = clairvoyant_bound(trace, cold_start_seconds=30.0, concurrency=1, wait_seconds=5.0, attainment=1.0)
    assert sure == pytest.approx(30.0 + 30.0 + 10.0)
    lax = clairvoyant_bound(trace, cold_start_seconds=30.0, concurrency=1, wait_seconds=5.0, attainment=0.6)
    assert lax == pytest.approx(30.0 + 10.0)


def test_the_grid_is_the_whole_grid() -> None:
    grid = list(keda_grid())
    assert len(grid) == len(set(grid)) == len(THRESHOLDS) * 2 * 3 * (4 + 3)


def few_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [
        KedaConfig(threshold=t, cooldown_seconds=60.0, stabilization_seconds=60.0, min_replicas=0, fast=True)
        for t in (0.5, 1.0)
    ]
    monkeypatch.setattr(matrix_module, "keda_grid", lambda: iter(few))
    monkeypatch.setattr(matrix_module, "FIXED", (1, 4))


def small_plan(trace_file: Path, **changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "traces": (str(trace_file),),
        "cold_starts_seconds": (30.0,),
        "wait_factors": (1.0, 2.0),
        "attainments": (0.95,),
        "seeds": 2,
        "unseen_seeds": 1,
        "others": False,
        "parts": ("baselines", "ours"),
    }
    return Plan(**fields | changes)


def quiet(path: Path, *, is_over: Callable[[], bool] = lambda: False) -> Runs:
    return Runs(path, 1, lambda *_: None, is_over)


def test_the_matrix_runs_resumes_and_writes_its_results(
    trace_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_configs(monkeypatch)
    plan = small_plan(trace_file)
    told: list[tuple[int, int]] = []
    first = run_matrix(plan, Runs(tmp_path / "runs.jsonl", 1, lambda _, done, total: told.append((done, total))))
    ran = len((tmp_path / "runs.jsonl").read_text().splitlines())
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"key": "cut sho')  # as a crash leaves it
    again = run_matrix(plan, quiet(tmp_path / "runs.jsonl"))
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == ran + 1
    assert [report.row_of_cell(cell) for cell in first] == [report.row_of_cell(cell) for cell in again]
    assert told[-1][0] == told[-1][1]

    page.write_results(first, tmp_path / "docs", plan)
    text = (tmp_path / "docs/results.md").read_text()
    assert text.startswith("# Pilotlight against tuned KEDA")
    assert "no constant was varied" in text
    assert "| ... queue only (as AMQP) | " in text
    with (tmp_path / "docs/results/matrix.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for name, seeds in (("unseen", "1"), ("fast", "1"), ("uncounted", "1"), ("queue_only", "1")):
        assert all(row[f"{name}_seeds"] == seeds and float(row[f"{name}_cost"]) >= 1 for row in rows), name
    assert (tmp_path / "docs/results/ratios.png").stat().st_size > 1_000


def test_what_runs_after_a_crash_is_a_line_of_its_own(
    trace_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_configs(monkeypatch)
    (tmp_path / "runs.jsonl").write_text('{"key": "cut sho')
    cells = run_matrix(small_plan(trace_file), quiet(tmp_path / "runs.jsonl"))
    again = run_matrix(small_plan(trace_file), quiet(tmp_path / "runs.jsonl", is_over=lambda: True))
    assert [report.row_of_cell(cell) for cell in cells] == [report.row_of_cell(cell) for cell in again]


def test_a_matrix_that_is_stopped_early_says_what_it_lacks(
    trace_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_configs(monkeypatch)
    plan = small_plan(trace_file)
    begun = iter(range(1_000))
    cells = run_matrix(plan, quiet(tmp_path / "runs.jsonl", is_over=lambda: next(begun) >= 7))
    page.write_results(cells, tmp_path / "docs", plan)
    text = (tmp_path / "docs/results.md").read_text()
    assert "**Missing:** ours has fewer than 2 seeds in 2 cells" in text
    assert "**Missing:** ours without a view has fewer than 1 seeds in 2 cells" in text


def test_what_others_do_is_known_by_nothing_of_the_policy_and_of_the_promise(trace_file: Path) -> None:
    one = Case(trace=str(trace_file), cold_start_seconds=30.0, scaler="keda")
    assert key_of(one) == key_of(replace(one, most_gpu_seconds=5.0))
    assert len({key_of(replace(one, **change)) for change in ({}, {"seed": 2}, {"cold_start_seconds": 60.0})}) == 3
    assert code_digest(ours=False) != code_digest(ours=True)


def test_what_a_source_tells_is_told_apart_and_keys_of_runs_before_it_stay() -> None:
    ours = Case(trace="flash", cold_start_seconds=30.0, scaler="slo", wait_seconds=30.0)
    cases = [ours, *(replace(ours, **extra) for extra in matrix_module.OTHERWISE.values())]
    assert len({key_of(case) for case in cases}) == len(cases)
    # Defaults are no part of a key, so what a case of those is leaves the key as it was before there was the field.
    assert key_of(replace(ours, sees_counters=True, sees_in_flight=True)) == key_of(ours)
    pilots = {name: scaler_of(replace(ours, **extra)) for name, extra in matrix_module.OTHERWISE.items()}
    told = {
        name: (pilot.sees_replicas, pilot.sees_counters, pilot.sees_in_flight, pilot.fast_scale, pilot.sample_seconds)
        for name, pilot in pilots.items()
        if isinstance(pilot, Pilot)
    }
    assert told == {
        "unseen": (False, True, True, False, 5.0),
        "fast": (True, True, True, True, 5.0),
        "uncounted": (True, False, True, False, 5.0),
        "queue_only": (True, False, False, False, 5.0),
    }


@pytest.mark.parametrize("seeds", [0, 1, 3])
def test_sources_without_counters_have_as_many_seeds_as_were_asked_for(
    trace_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: int
) -> None:
    few_configs(monkeypatch)
    plan = small_plan(trace_file, wait_factors=(1.0,), parts=("ours",), seeds=1, uncounted_seeds=seeds)
    (cell,) = run_matrix(plan, quiet(tmp_path / "runs.jsonl"))
    assert (len(cell.ours), len(cell.uncounted), len(cell.queue_only)) == (1, seeds, seeds)


def test_a_trace_that_changes_is_another_trace(tmp_path: Path) -> None:
    keys = []
    for name, length in (("one", 8), ("two", 8), ("three", 9)):
        path = tmp_path / f"{name}.csv"
        path.write_text(f"t_s,service_s\n0,{length}\n")
        keys.append(key_of(Case(trace=str(path), cold_start_seconds=30.0, scaler="keda")))
    assert keys[0] == keys[1] != keys[2]


def test_a_run_that_costs_too_much_is_stopped_and_keeps_no_promise(trace_file: Path) -> None:
    case = Case(trace=str(trace_file), cold_start_seconds=30.0, scaler="keda")
    whole = run(case)
    stopped = run(replace(case, most_gpu_seconds=whole.gpu_seconds / 2))
    assert stopped.stopped
    assert whole.gpu_seconds / 2 < stopped.gpu_seconds < whole.gpu_seconds
    assert set(stopped.shares.values()) == {0.0}
    assert run(replace(case, most_gpu_seconds=whole.gpu_seconds * 1.01)) == whole


def test_the_slices_of_the_grid_are_the_grid() -> None:
    configs = [config for part in matrix_module.grid_slices() for config in part]
    assert set(configs) == set(keda_grid())
    assert len(configs) == len(set(configs))


def test_the_verb_prints_json_and_writes_its_files(trace_file: Path, tmp_path: Path) -> None:
    words = ["backtest", "--trace", str(trace_file), "--policy", "slo", "--policy", "keda", "--slo", "60:0.9", "--json"]
    done = CliRunner().invoke(build_app(), [*words, "--out", str(tmp_path / "out"), "--cold-start", "30"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert [row["policy"] for row in rows] == ["slo", "keda"]
    for name in ("replicas", "waits", "frontier"):
        assert (tmp_path / f"out/{name}.png").stat().st_size > 5_000
    assert (tmp_path / "out/runs.csv").read_text().startswith("trace,policy")


def test_what_waits_is_known_between_changes_of_the_replicas() -> None:
    trace = [Arrival(0.0, 1.0), Arrival(10.0, 1.0), Arrival(20.0, 1.0), Arrival(400.0, 1.0)]
    spans = list(waiting_of(trace, [0.0, 50.0, 60.0, 0.0]))
    assert len(spans) == MOST_POINTS
    assert [span[1] for span in spans[:-1]] == [span[0] for span in spans[1:]]
    seen = {at: next(most for begin, end, most in spans if begin <= at < end) for at in (5.0, 15.0, 40.0, 70.0, 90.0)}
    assert seen == {5.0: 0, 15.0: 1, 40.0: 2, 70.0: 1, 90.0: 0}


@pytest.mark.parametrize("scaler", ["slo", "keda", "fixed"])
def test_what_is_kept_for_plots_changes_no_figure(trace_file: Path, scaler: str) -> None:
    case = Case(trace=str(trace_file), cold_start_seconds=30.0, scaler=scaler, wait_seconds=60.0, replicas=2)
    plain, watched = simulated(case), simulated(replace(case, keep_timeline=True))
    assert as_plain(plain) == as_plain(watched)
    assert not plain.waiting
    assert watched.wait_quantiles_seconds[-1] == pytest.approx(max(watched.wait_quantiles_seconds))
    assert len(watched.wait_quantiles_seconds) == 401


def short_trace(tmp_path: Path, text: str = "t_s,service_s\n0,5\n30,5\n") -> str:
    path = tmp_path / "short.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_where_nothing_is_scored_no_share_is_given_and_a_warning_says_why(tmp_path: Path) -> None:
    words = ["backtest", "--trace", short_trace(tmp_path), "--policy", "keda", "--json"]
    done = CliRunner().invoke(build_app(), words)
    (row,) = json.loads(done.stdout)
    assert (row["requests"], row["share_in_time"], row["wait_p95_seconds"]) == (0, None, None)
    assert "no request is scored" in done.stderr
    assert "--score-from 0" in done.stderr
    assert "2 of 2 requests" in done.stderr


@pytest.mark.parametrize("more", [[], ["--job-strategy", "default"]], ids=["ScaledObject", "ScaledJob"])
def test_scoring_may_begin_with_the_first_request(tmp_path: Path, more: list[str]) -> None:
    words = ["backtest", "--trace", short_trace(tmp_path), "--policy", "keda", "--json", "--score-from", "0"]
    done = CliRunner().invoke(build_app(), [*words, *more])
    (row,) = json.loads(done.stdout)
    assert row["requests"] == 2
    assert row["share_in_time"] is not None
    assert row["gpu_seconds"] > 0
    assert "scored" not in done.stderr


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    assert len(read_trace(Path(short_trace(tmp_path, "\ufefft_s,service_s\n0,5\n")))) == 1


def test_a_trace_that_is_cut_short_says_so(trace_file: Path) -> None:
    trace_file.write_bytes(trace_file.read_bytes()[:-10])
    with pytest.raises(TraceInvalid, match="cut short"):
        read_trace(trace_file)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--policy slo --threshold 3", "--threshold has no effect: it is for policies keda, keda-fast, target, util"),
        ("--policy slo --replicas 3", "--replicas has no effect: it is for policy fixed"),
        ("--policy slo --steps 1:2", "--steps has no effect: it is for policy steps"),
        ("--policy slo --requests-per-job 4", "--requests-per-job has no effect: it is for --job-strategy"),
        ("--policy keda --threshold 3", None),
        ("--policy utilization+burst --threshold 70", None),
        ("--policy slo --policy fixed --replicas 3", None),
        ("--policy steps --steps 1:2", None),
        ("--job-strategy default --requests-per-job 4", None),
    ],
)
def test_what_no_policy_named_asks_for_is_told(words: str, said: str | None, trace_file: Path) -> None:
    done = CliRunner().invoke(build_app(), ["backtest", "--trace", str(trace_file), *words.split()])
    assert done.exit_code == 0, done.output
    told = [line for line in done.stderr.splitlines() if "no effect" in line]
    assert len(told) == (said is not None)
    assert all(line.startswith(f"warning: {said}") for line in told)


def test_keda_has_the_threshold_that_is_said() -> None:
    words = ["backtest", "--trace", "bursts:", "--days", "0.1", "--policy", "keda", "--policy", "keda-fast", "--json"]
    plain, few = (
        json.loads(CliRunner().invoke(build_app(), [*words, *more]).stdout) for more in ([], ["--threshold", "1"])
    )
    assert all(one["gpu_seconds"] > 2 * other["gpu_seconds"] for one, other in zip(few, plain, strict=True))


def test_no_policy_but_fixed_has_more_replicas_than_it_may() -> None:
    words = ["backtest", "--trace", "poisson:rate_per_second=1", "--days", "0.05", "--service", "20", "--json"]
    shares = []
    for most in (5, 40):
        done = CliRunner().invoke(
            build_app(),
            [*words, "--policy", "slo", "--policy", "fixed", "--replicas", "40", "--max-replicas", str(most)],
        )
        shares.append([row["share_in_time"] for row in json.loads(done.stdout)])
    (short, fixed), (enough, _) = shares
    assert short < 0.3
    assert enough > 0.8
    assert fixed > 0.95


def test_fixed_runs_with_so_many_replicas(trace_file: Path) -> None:
    words = ["backtest", "--trace", str(trace_file), "--policy", "fixed", "--replicas", "3", "--json"]
    (row,) = json.loads(CliRunner().invoke(build_app(), words).stdout)
    assert row["starts"] == 0


@pytest.mark.parametrize(
    ("trace", "words", "said"),
    [
        (
            "flash",
            ["--days", "2"],
            '"flash" is a trace, not a pattern; the pattern is "flash:", or with any of its numbers, as in "flash:base',
        ),
        ("poisson-busy", ["--days", "2"], 'warning: --days has no effect: "poisson-busy" is a trace, not a pattern\n'),
        ("{file}", ["--service", "1", "--days", "2"], 'warning: --service and --days have no effect: "{file}" is a'),
        ("poisson:rate_per_second=0.01", ["--days", "0.1", "--service", "1"], None),
        ("flash", [], None),
    ],
)
def test_what_is_said_of_a_pattern_has_no_effect_on_a_trace_and_that_is_told(
    trace: str, words: list[str], said: str | None, trace_file: Path
) -> None:
    trace = trace.format(file=trace_file)
    done = CliRunner().invoke(
        build_app(), ["backtest", "--trace", trace, "--policy", "fixed", "--replicas", "1", *words]
    )
    assert done.exit_code == 0, done.output
    assert ("no effect" in done.stderr) == (said is not None)
    assert (said or "").format(file=trace_file) in done.stderr


@pytest.mark.parametrize("rows", [b"5,2\n", b"5,0\n9000,0\n"], ids=["over too soon", "no work"])
def test_a_matrix_of_a_trace_of_which_nothing_is_scored_is_refused_before_anything_runs(
    rows: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "one.csv"
    path.write_bytes(HEADER + rows)
    words = ["backtest", "matrix", "--trace", str(path), "--out", str(tmp_path), "--docs", str(tmp_path)]
    done = CliRunner().invoke(build_app(), words)
    assert isinstance(done.exception, PilotlightError)
    assert "no request of it is scored: the first 600 s are run to settle" in str(done.exception)


WRITING = [
    ["backtest", "--trace", "flash", "--out"],
    ["backtest", "matrix", "--docs", "{good}", "--out"],
    ["backtest", "matrix", "--out", "{good}", "--docs"],
    ["example", "--write"],
    ["demo", "--out"],
    ["docs", "--file"],
]


@pytest.mark.parametrize("words", WRITING, ids=" ".join)
@pytest.mark.parametrize("place", ["{good}/taken", "{good}/taken/below", "/proc/x"])
def test_what_can_not_be_written_is_told_in_a_line_before_anything_runs(
    words: list[str], place: str, tmp_path: Path
) -> None:
    (tmp_path / "taken").touch()
    if words[0] == "docs" and place.endswith("taken"):
        place = "{good}"  # it writes a file: a folder is what can't be
    done = subprocess.run(
        [sys.executable, "-m", "scaler.cli", *(word.format(good=tmp_path) for word in (*words, place))],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f'pilotlight: {words[-1]} "{place.format(good=tmp_path)}" can\'t be written: ')
    assert not done.stdout


def test_pictures_that_can_not_be_written_are_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "docs").touch()
    command = [sys.executable, "-m", "scaler.backtest.pictures"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        'pictures: the folder "docs/pictures" can\'t be written: a file is where a folder should be; '
        "name a folder that you may write to\n"
    )


@pytest.mark.parametrize("words", WRITING[:-1], ids=" ".join)
def test_where_nothing_can_be_drawn_the_missing_extra_is_named_before_anything_runs(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    place = tmp_path / "out"
    done = CliRunner().invoke(build_app(), [*(word.format(good=place) for word in words), str(place)])
    assert isinstance(done.exception, PilotlightError)
    assert str(done.exception).endswith("needs matplotlib: pip install 'pilotlight[demo]'")
    assert not list(place.iterdir())


def test_a_file_of_runs_that_can_not_be_read_is_told(trace_file: Path, tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").mkdir()
    with pytest.raises(PilotlightError, match=r'runs.jsonl" can\'t be written: Is a directory'):
        quiet(tmp_path / "runs.jsonl")
    with pytest.raises(PilotlightError, match="can't be written: a file is where a folder should be"):
        run_matrix(small_plan(trace_file), quiet(trace_file / "runs.jsonl"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "slo"], "--trace is required"),
        (["--trace", "bursts", "--slo", "soon"], "WAIT_SECONDS:SHARE"),
        (["--trace", "flash", "--policy", "magic"], "unknown"),
        (["--trace", "flash", "--policy", "keda-tuned"], "unknown"),
        (["--trace", "flash", "--policy", "fixed"], "--replicas"),
        (["--trace", "flash", "--threshold", "0"], "--threshold is 0"),
        (["--trace", "flash", "--threshold", "-1"], "--threshold is -1"),
        (["--trace", "flash", "--steps", "3:1,2:2"], '--steps is "3:1,2:2"'),
        (["--trace", "flash", "--cold-start", "-5"], "--cold-start is -5"),
        (["--trace", "flash", "--cold-start", "nan"], "--cold-start is nan"),
        (["--trace", "flash", "--cold-start", "1e12"], "--cold-start is 1e+12; it must be at most 604800"),
        (["--trace", "flash", "--replicas", "9999", "--concurrency", "9999"], "--concurrency 9999; their product"),
        (["--trace", "poisson:rate_per_second=1e9"], "expected at most 10,000,000"),
        (["--trace", "poisson", "--service", "0"], "--service is 0"),
        (["--trace", "poisson", "--days", "inf"], "--days is inf"),
        (["--trace", "flash", "--gpu-cost", "nan"], "--gpu-cost is nan"),
        (["--trace", "flash", "--gpu-cost", "-2"], "--gpu-cost is -2"),
        (["--trace", "flash", "--workload", "a/b"], "--workload and --source go with --recorded"),
    ],
    ids=lambda one: " ".join(one[-2:]) if isinstance(one, list) else "",
)
def test_the_verb_says_what_is_wrong(words: list[str], said: str) -> None:
    done = CliRunner().invoke(build_app(), ["backtest", *words])
    assert isinstance(done.exception, PilotlightError)
    assert said in str(done.exception)


@pytest.mark.parametrize("option", ["--replicas", "--concurrency"])
def test_more_replicas_or_slots_than_fit_are_refused(option: str) -> None:
    done = CliRunner().invoke(build_app(), ["backtest", "--trace", "flash", option, "123456789"])
    assert done.exit_code == 2
    assert "10000" in done.stderr  # the range, in a box that is as wide as the terminal
