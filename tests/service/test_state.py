"""What survives a restart, a crash, a damaged file, a full disk's worth of rows; and what a recording tells."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from structlog.testing import capture_logs

from scaler import state as state_module
from scaler._generated import externalscaler_pb2 as pb
from scaler.core.decide import Proposal, Situation
from scaler.core.model import Decision, Goals, ReplicaView, Sample
from scaler.errors import RecordingUnreadable
from scaler.settings import Settings, StateSettings
from scaler.state import FILE_NAME, Durable, Observation, StateFile, read_recording
from tests.service.conftest import RunShell, ShellSettings, until
from tests.service.scripted import World
from tests.service.test_keda_calls import Keda, settled, trigger

KEY = ("team-a", "llama", "scripted:w/orders", "counting")
QUICK = StateSettings(commit_seconds=0.02, learned_seconds=0.02)


@dataclass(frozen=True)
class Counting:
    """A policy that counts its samples and remembers when the last one came."""

    decides_replicas: bool = True

    def problems(self, goals: Goals) -> tuple[tuple[str, str], ...]:  # noqa: ARG002 - the protocol's signature
        return ()

    def start(self) -> tuple[int, float]:
        return 0, 0.0

    def propose(self, situation: Situation, state: tuple[int, float]) -> Proposal[tuple[int, float]]:
        return Proposal(state=(state[0] + 1, situation.now_seconds), active=True, metric_value=1.0, target_value=1.0)

    def dump(self, state: tuple[int, float]) -> Mapping[str, Any]:
        return {"count": state[0], "at_seconds": state[1]}

    def load(self, values: Mapping[str, Any], *, shift_seconds: float) -> tuple[int, float]:
        return values["count"], values["at_seconds"] + shift_seconds


def decision(desired: int = 3, at: float = 0.0) -> Decision:
    return Decision(
        at_seconds=at, active=desired > 0, metric_value=float(desired), target_value=1.0, desired_replicas=desired
    )


def sample(value: float = 7.0, at: float = 0.0) -> Sample:
    return Sample(at_seconds=at, metric_value=value, active=value > 0, waiting=value, arrived_total=value + 100)


class Times:
    """A process's clock and the wall's."""

    def __init__(self, *, clock: float, wall: float) -> None:
        self.now, self.wall_now = clock, wall

    def go(self, seconds: float) -> None:
        """Time passes, by both."""
        self.now += seconds
        self.wall_now += seconds

    def clock(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.wall_now


@contextlib.contextmanager
def opened(folder: Path, settings: StateSettings = QUICK, times: Times | None = None) -> Iterator[StateFile]:
    """A started state file, and its end."""
    times = times or Times(clock=50.0, wall=1_000_000.0)
    state = StateFile(folder, settings, clock=times.clock, wall=times.wall)
    state.start()
    try:
        yield state
    finally:
        state.close()


def keep(state: StateFile, count: int = 5, key: tuple[str, str, str, str] = KEY, *, desired: int = 3) -> None:
    state.keep(key, Counting(), decision=decision(desired), state=(count, 40.0), sample=sample(float(count)), view=None)


def rows(folder: Path, workload: str = "team-a/llama") -> list[Observation]:
    return list(read_recording(folder, workload))


def test_the_policies_that_learn_can_write_it_down() -> None:
    assert isinstance(Counting(), Durable)


def test_decision_and_state_come_back_with_their_times_translated(tmp_path: Path) -> None:
    with opened(tmp_path, times=Times(clock=50.0, wall=1_000_000.0)) as state:
        keep(state)
    # Ten seconds later, in a process whose clock started at 7.
    with opened(tmp_path, times=Times(clock=7.0, wall=1_000_010.0)) as state:
        found = state.restored(KEY, Counting())
        assert state.restored(KEY, Counting()) is None  # once
    assert found is not None
    assert found.decision.at_seconds == pytest.approx(-3.0)
    assert (found.decision.desired_replicas, found.decision.active, found.decision.held) == (3, True, True)
    assert (found.decision.metric_value, found.decision.target_value) == (3.0, 1.0)
    assert found.state[0] == 5


def test_a_clock_that_went_back_does_not_put_decisions_into_the_future(tmp_path: Path) -> None:
    with opened(tmp_path, times=Times(clock=50.0, wall=1_000_000.0)) as state:
        keep(state)
    with opened(tmp_path, times=Times(clock=9.0, wall=999_000.0)) as state:
        found = state.restored(KEY, Counting())
    assert found is not None
    assert found.decision.at_seconds == 9.0


# The policy's last moment is 40 by a clock that shows 50: ten seconds before it was kept.
@pytest.mark.parametrize(
    ("wall", "at"),
    [(1_000_010.0, 7.0 - 20.0), (1_000_000.0, 7.0 - 10.0), (996_400.0, 7.0 - 10.0)],
    ids=["ten seconds later", "at once", "its wall clock was an hour fast"],
)
def test_what_a_policy_remembers_is_never_later_than_now_whatever_clocks_showed(
    tmp_path: Path, wall: float, at: float
) -> None:
    with opened(tmp_path, times=Times(clock=50.0, wall=1_000_000.0)) as state:
        keep(state)
    with opened(tmp_path, times=Times(clock=7.0, wall=wall)) as state:
        found = state.restored(KEY, Counting())
    assert found is not None
    assert found.state == (5, pytest.approx(at))


@pytest.mark.parametrize("ended", [True, False], ids=["at the end", "once it is due"])
def test_what_was_learned_last_is_written_although_nothing_was_read_since(tmp_path: Path, *, ended: bool) -> None:
    """After 5 s, and at an orderly end: it was left out where its decision had been written before."""
    times, folder = Times(clock=50.0, wall=1_000_000.0), tmp_path / "copy"
    with opened(tmp_path / "state", StateSettings(commit_seconds=0.02, learned_seconds=5.0), times=times) as state:
        for count in (1, 2, 3):
            times.go(1.0)
            keep(state, count, desired=count)
            wait_for_commit(state)
        if not ended:
            times.go(5.0)
            wait_for_commit(state)
            shutil.copytree(tmp_path / "state", folder)
    with opened(tmp_path / "state" if ended else folder) as state:
        found = state.restored(KEY, Counting())
    assert found is not None
    assert (found.decision.desired_replicas, found.state[0]) == (3, 3)


async def test_what_was_learned_is_written_although_the_wall_clock_steps_back(tmp_path: Path) -> None:
    times = Times(clock=50.0, wall=1_000_000.0)
    with opened(tmp_path, StateSettings(commit_seconds=0.02, learned_seconds=5.0), times=times) as state:
        keep(state)
        commits = state.commits
        await until(lambda: state.commits > commits + 1)
        times.now, times.wall_now = 60.0, 996_410.0
        keep(state, 6)
        commits = state.commits
        await until(lambda: state.commits > commits + 1)
        with sqlite3.connect(tmp_path / FILE_NAME) as connection:
            (learned,) = connection.execute("SELECT learned FROM last").fetchone()
        connection.close()
    assert json.loads(learned) == [996_410.0, 60.0, {"count": 6, "at_seconds": 40.0}]


def test_state_that_an_older_version_wrote_is_read_as_of_a_clock_that_counts_from_unix_time(tmp_path: Path) -> None:
    with opened(tmp_path, times=Times(clock=1_000_000.0, wall=1_000_000.0)) as state:
        keep(state)
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("UPDATE last SET learned = ?", ('{"count": 5, "at_seconds": 999990.0}',))
    connection.close()
    with opened(tmp_path, times=Times(clock=1_000_020.0, wall=1_000_020.0)) as state:
        found = state.restored(KEY, Counting())
    assert found is not None
    assert found.state == (5, 999_990.0)


def test_state_that_an_older_version_wrote_costs_what_was_learned_and_no_more(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        keep(state)
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("UPDATE last SET learned = ?", ('{"other": 1}',))
    connection.close()
    with capture_logs() as logs, opened(tmp_path) as state:
        found = state.restored(KEY, Counting())
    assert found is not None
    assert (found.decision.desired_replicas, found.state) == (3, None)
    assert [log["event"] for log in logs if log["log_level"] == "error"] == ["learned_unreadable"]


def _five_kept(folder: Path) -> list[tuple[str, str, str, str]]:
    keys = [("team-a", f"llama-{number}", "s", "p") for number in range(5)]
    with opened(folder) as state:
        for key in keys:
            keep(state, 1, key)
    return keys


@pytest.mark.parametrize(
    "learned", ["[]", "{", "null", "[1,2]", '["a","b",{}]', "[1,2,{}]", "[" * 100_000, "[NaN,1,{}]"]
)
def test_what_was_learned_and_cannot_be_read_is_told_once_for_all_workloads(tmp_path: Path, learned: str) -> None:
    keys = _five_kept(tmp_path)
    _altered(tmp_path / FILE_NAME, f"UPDATE last SET learned = '{learned}'")
    with capture_logs() as logs, opened(tmp_path) as state:
        found = [state.restored(key, Counting()) for key in keys]
    assert all(one is not None and (one.decision.desired_replicas, one.state) == (3, None) for one in found)
    assert [log["event"] for log in logs if log["log_level"] == "error"] == ["learned_unreadable"]


@pytest.mark.parametrize(
    "change",
    ["at = 'then'", "desired = -5", "desired = 'many'", "metric_value = 9e999", "target_value = 0", "active = x'00'"],
)
def test_a_last_decision_that_is_none_is_not_believed_and_told_once(tmp_path: Path, change: str) -> None:
    keys = _five_kept(tmp_path)
    _altered(tmp_path / FILE_NAME, f"UPDATE last SET {change}")
    with capture_logs() as logs, opened(tmp_path) as state:
        assert [state.restored(key, Counting()) for key in keys] == [None] * 5
        keep(state, 2, keys[0])
    assert [log["event"] for log in logs if log["log_level"] == "error"] == ["last_unreadable"]
    with opened(tmp_path) as state:
        found = state.restored(keys[0], Counting())
    assert found is not None
    assert found.state[0] == 2


def test_a_last_reading_that_is_none_costs_the_reading_only(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        keep(state, 5)
    _altered(tmp_path / FILE_NAME, "UPDATE observation SET waiting = 'many'")
    with opened(tmp_path) as state:
        found = state.restored(KEY, Counting())
    assert found is not None
    assert (found.state[0], found.sample) == (5, None)


def test_a_file_that_does_not_tell_how_long_the_service_ran_is_set_aside(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        keep(state, 5)
    _altered(tmp_path / FILE_NAME, "UPDATE observation SET ran = 'long'")
    with capture_logs() as logs, opened(tmp_path) as state:
        keep(state, 6)
        wait_for_commit(state)
    assert [log["event"] for log in logs if log["log_level"] == "error"] == ["state_set_aside"]
    with opened(tmp_path) as state:
        found = state.restored(KEY, Counting())
    assert found is not None
    assert found.state[0] == 6


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="rights of POSIX")
@pytest.mark.parametrize("killed", [True, False], ids=["killed before", "ended before"])
def test_a_folder_that_cannot_be_written_is_still_read(tmp_path: Path, *, killed: bool) -> None:
    folder, whole = tmp_path / "copy", tmp_path / "state"
    with opened(whole) as state:
        keep(state, 5)
        wait_for_commit(state)
        if killed:  # what a crash leaves: the log, too
            shutil.copytree(whole, folder)
    if not killed:
        shutil.copytree(whole, folder)
    for part in folder.iterdir():
        part.chmod(0o444)
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:  # who may write everywhere
        for parent in (tmp_path, *tmp_path.parents[:3]):
            parent.chmod(parent.stat().st_mode | 0o055)
        os.seteuid(65_534)
    try:
        with capture_logs() as logs, opened(folder) as state:
            found = state.restored(KEY, Counting())
            wait(lambda: state.failed_commits > 1)
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)
    assert found is not None
    assert found.state[0] == 5
    events = [log["event"] for log in logs]  # also of others in this process, which has lost its rights as a whole
    assert "state_restored" in events
    assert "state_unreadable" not in events


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """No file of this process can grow, as on a full disk: SQLite meets the same errors where it would write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("before", ["ended", "killed", "of an older version"])
def test_on_a_full_disk_what_was_learned_is_read_and_written_on_once_there_is_room(tmp_path: Path, before: str) -> None:
    folder, whole = tmp_path / "copy", tmp_path / "state"
    others = (*KEY[:1], "mistral", *KEY[2:])
    with opened(whole) as state:
        keep(state, 5)
        keep(state, 7, others)
        wait_for_commit(state)
        if before == "killed":  # what a crash leaves: the log, too
            shutil.copytree(whole, folder)
    if before != "killed":
        shutil.copytree(whole, folder)
    if before == "of an older version":
        as_of_an_older_version(folder)
    with capture_logs() as logs:
        with no_room():
            state = StateFile(folder, QUICK)
            state.start()
            found = state.restored(KEY, Counting())
            wait(lambda: state.failed_commits > 1)
        assert found is not None
        assert found.state[0] == 5
        keep(state, 6)
        wait_for_commit(state)
        state.close()
    assert [log["event"] for log in logs] == ["state_restored", "state_not_written", "state_written_again"]
    with opened(folder) as state:
        learned = [state.restored(key, Counting()) for key in (KEY, others)]
    assert [one and one.state[0] for one in learned] == [6, 7]  # also of whom nobody has asked for


@pytest.mark.parametrize("killed", [False, True], ids=["ended", "killed"])
def test_a_recording_is_read_where_nothing_can_be_written(tmp_path: Path, *, killed: bool) -> None:
    folder, whole = tmp_path / "copy", tmp_path / "state"
    with opened(whole) as state:
        keep(state, 5)
        keep(state, 7)
        wait_for_commit(state)
        if killed:
            shutil.copytree(whole, folder)
    if not killed:
        shutil.copytree(whole, folder)
    with no_room():
        found = rows(folder)
    assert [one.metric_value for one in found] == [5.0, 7.0]


def test_more_than_is_sorted_at_once_is_read_where_temporary_files_have_no_room(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        for count in range(1_000):
            keep(state, count, (*KEY[:1], f"w{count}", *KEY[2:]))
    learned = json.dumps([1.0, 1.0, {"count": 5, "at_seconds": 1.0, "more": "x" * 4_000}])
    _altered(tmp_path / FILE_NAME, f"UPDATE last SET learned = '{learned}'")
    with no_room(), opened(tmp_path) as state:
        found = state.restored((*KEY[:1], "w0", *KEY[2:]), Counting())
    assert found is not None
    assert found.state[0] == 5


def test_on_a_small_disk_the_oldest_go_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = 3 * 1024 * 1024

    def small(folder: str | Path) -> Any:
        used = sum(part.stat().st_size for part in Path(folder).iterdir())
        most[0] = max(most[0], used)
        return shutil._ntuple_diskusage(total, used, max(total - used, 0))

    most = [0]
    monkeypatch.setattr(shutil, "disk_usage", small)
    times = Times(clock=50.0, wall=1_000_000.0)
    with opened(tmp_path, times=times) as state:
        for count in range(40_000):
            keep(state, count, (*KEY[:1], f"w{count % 50}", *KEY[2:]))
            if count % 1_000 == 999:
                times.go(1.0)
                commits = state.commits
                wait(lambda commits=commits: state.commits > commits and state.waiting == 0)
    assert state.failed_commits == 0
    assert 1024 * 1024 < most[0] < total
    newest = rows(tmp_path, "team-a/w49")[-1]
    assert newest.metric_value == 39_999.0


def test_where_no_observation_can_be_written_the_newest_decisions_still_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(StateFile, "_insert", full)
    with capture_logs() as logs, opened(tmp_path, StateSettings(commit_seconds=3600.0)) as state:
        keep(state, 4, desired=4)
    assert [log["event"] for log in logs] == ["state_not_written"]
    with opened(tmp_path) as state:
        found = state.restored(KEY, Counting())
    assert found is not None
    assert (found.decision.desired_replicas, found.state[0]) == (4, 4)


def _garbage(file: Path) -> None:
    file.write_bytes(Random(1).randbytes(20_000))


def _truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5000])


def _scribbled(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[4096:12000] = Random(2).randbytes(12000 - 4096)
    file.write_bytes(whole)


def _altered(file: Path, *statements: str) -> None:
    with sqlite3.connect(file) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def _foreign(file: Path) -> None:
    file.unlink()
    _altered(file, "CREATE TABLE recipes (name TEXT)")


def _newer(file: Path) -> None:
    _altered(file, "PRAGMA user_version=99")


@pytest.mark.parametrize("damage", [_garbage, _truncated, _scribbled, _foreign, _newer])
def test_a_file_that_is_damaged_or_not_ours_is_set_aside_and_a_new_one_begins(tmp_path: Path, damage: Any) -> None:
    with opened(tmp_path) as state:
        for count in range(300):
            keep(state, count, ("team-a", f"llama-{count}", "s", "p"))
    damage(tmp_path / FILE_NAME)
    before = (tmp_path / FILE_NAME).read_bytes()
    with capture_logs() as logs, opened(tmp_path) as state:
        assert state.restored(("team-a", "llama-3", "s", "p"), Counting()) is None
        keep(state, 8)
    errors = [log for log in logs if log["log_level"] == "error"]
    assert [log["event"] for log in errors] == ["state_set_aside"]
    assert (tmp_path / errors[0]["kept_as"]).read_bytes() == before
    with opened(tmp_path) as state:
        found = state.restored(KEY, Counting())
    assert found is not None
    assert found.state[0] == 8


def test_several_damaged_files_are_kept_the_newest_first_and_no_more_than_three(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / FILE_NAME).write_bytes(f"garbage {number}".encode() * 1_000)
        with opened(tmp_path) as state:
            keep(state)
    kept = sorted(path for path in tmp_path.iterdir() if "set-aside" in path.name)
    assert [path.name for path in kept] == ["pilotlight.set-aside", "pilotlight.set-aside-1", "pilotlight.set-aside-2"]
    assert [path.read_bytes()[:9] for path in kept] == [b"garbage 4", b"garbage 3", b"garbage 2"]


@pytest.mark.parametrize("what", ["files", "log", "folder"])
def test_what_is_deleted_while_it_is_written_is_made_anew_and_told(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "state"
    with capture_logs() as logs, opened(folder) as state:
        keep(state, 1)
        wait(lambda: state.commits > 2)
        for part in list(folder.iterdir()):
            if what != "log" or part.name.endswith("-wal"):
                part.unlink()
        if what == "folder":
            folder.rmdir()
        keep(state, 2)
        commits = state.commits
        wait(lambda: state.commits > commits + 2)
        assert (folder / FILE_NAME).exists()
        assert (folder / "pilotlight.lock").exists()
        assert _values(folder)[-1] == 2.0
    assert [log["event"] for log in logs if log["log_level"] == "error"] == ["state_file_gone"]
    with opened(folder) as state:
        found = state.restored(KEY, Counting())
    assert found is not None
    assert found.state[0] == 2


def test_a_file_that_breaks_while_it_is_written_is_set_aside(tmp_path: Path) -> None:
    with capture_logs() as logs, opened(tmp_path) as state:
        keep(state, 1)
        wait_for_commit(state)
        # In place, and the index of the log last: until then SQLite, which has it mapped, may find the rest as it was.
        for part in sorted(tmp_path.glob(f"{FILE_NAME}*"), key=lambda part: part.name.endswith("-shm")):
            with part.open("r+b") as file:
                file.write(Random(3).randbytes(max(part.stat().st_size, 9_000)))
        for count in range(2, 400):
            keep(state, count)
            time.sleep(0.002)
            if any(log["event"] == "state_set_aside" for log in logs):
                break
        keep(state, 1000)
    assert "state_set_aside" in [log["event"] for log in logs]
    with opened(tmp_path) as state:
        found = state.restored(KEY, Counting())
    assert found is not None
    assert found.state[0] == 1000


def wait(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_commit(state: StateFile) -> None:
    """Until what was kept so far is in the file: a commit that is under way may have begun before it."""
    commits = state.commits
    wait(lambda: state.commits > commits + 1)


def test_a_folder_that_cannot_be_made_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    with capture_logs() as logs, opened(tmp_path / "taken" / "state") as state:
        for count in range(5):
            keep(state, count)
            time.sleep(0.05)
        assert state.restored(KEY, Counting()) is None
        wait(lambda: state.failed_commits > 1)
    assert {log["event"] for log in logs} == {"state_unreadable", "state_not_written"}
    assert len(logs) == 2
    assert state.failed_commits > 1  # the alert asks for these


def test_a_policy_that_cannot_dump_its_state_costs_the_others_nothing(tmp_path: Path) -> None:
    with capture_logs() as logs, opened(tmp_path) as state:
        for _ in range(3):
            state.keep(
                ("team-a", "bad", "s", "p"), Counting(), decision=decision(), state=7, sample=sample(), view=None
            )
            keep(state, 6)
            time.sleep(0.05)
    assert [log["event"] for log in logs] == ["learned_not_written"]
    with opened(tmp_path) as state:
        good, bad = state.restored(KEY, Counting()), state.restored(("team-a", "bad", "s", "p"), Counting())
    assert good is not None
    assert good.state[0] == 6
    assert bad is not None
    assert (bad.decision.desired_replicas, bad.state) == (3, None)


def test_two_processes_never_write_one_file(tmp_path: Path) -> None:
    with opened(tmp_path) as first:
        keep(first, 1, desired=1)
        wait_for_commit(first)
        with capture_logs() as logs, opened(tmp_path) as second:
            keep(second, 2, desired=2)
            wait(lambda: logs)
            time.sleep(0.1)
            assert second.commits == 0
            assert [log["event"] for log in logs if log["log_level"] == "warning"] == ["state_in_use"]
            first.close()  # the old process of a rolling update ends
            wait(lambda: second.commits > 0)
    with opened(tmp_path) as state:
        found = state.restored(KEY, Counting())
    assert found is not None
    assert found.decision.desired_replicas == 2


def test_what_nothing_changes_on_is_written_once_a_minute(tmp_path: Path) -> None:
    times = Times(clock=50.0, wall=1_000_000.0)
    with opened(tmp_path, times=times) as state:
        for _ in range(600):
            keep(state, 1)
            times.go(1.0)
        keep(state, 2)
    assert [row.at_seconds for row in rows(tmp_path)] == [
        *(1_000_000.0 + 60 * minute for minute in range(10)),
        1_000_599.0,  # the last look before it changed
        1_000_600.0,
    ]


def test_more_observations_than_may_wait_are_dropped_and_counted(tmp_path: Path) -> None:
    with opened(tmp_path, StateSettings(commit_seconds=3600.0, queue_observations=10)) as state:
        for count in range(25):
            keep(state, count)
        assert (state.waiting, state.dropped) == (10, 15)
    with opened(tmp_path) as state:
        found = state.restored(KEY, Counting())
    assert found is not None
    assert found.state[0] == 24  # the newest decision is never among what is dropped


def test_the_file_stays_within_its_size_and_keeps_the_newest(tmp_path: Path) -> None:
    times = Times(clock=50.0, wall=1_000_000.0)
    settings = StateSettings(commit_seconds=0.02, max_megabytes=2, queue_observations=200_000)
    with opened(tmp_path, settings, times) as state:
        for count in range(80_000):
            times.go(1.0)
            keep(state, count)
        wait(lambda: number(tmp_path, "SELECT max(waiting) FROM observation") == 79_999, seconds=40)
        # Space is given back in portions; with its log it is within the limit while it is written, too.
        wait(lambda: sum(path.stat().st_size for path in tmp_path.glob(f"{FILE_NAME}*")) <= 2 * 2**20 + 2**16)
    sizes = {part.name: part.stat().st_size for part in tmp_path.iterdir()}
    assert sum(sizes.values()) < 3 * 2**20, sizes
    kept = rows(tmp_path)
    assert kept[-1].waiting == 79_999
    assert 5_000 < len(kept) <= 60_000
    assert [row.waiting for row in kept] == list(range(80_000 - len(kept), 80_000))


def test_what_is_older_than_the_limit_goes(tmp_path: Path) -> None:
    times = Times(clock=50.0, wall=1_000_000.0)
    with opened(tmp_path, times=times) as state:
        keep(state, 1)
        keep(state, 1, ("team-b", "gone", "s", "p"))
        wait_for_commit(state)
        times.go(29 * 86_400)
        keep(state, 2)
    times = Times(clock=7.0, wall=times.wall_now)  # restarted: what came before counts on
    with opened(tmp_path, times=times) as state:
        times.go(86_401)
        keep(state, 3)
        wait(lambda: _values(tmp_path) == [2.0, 3.0])
        wait(lambda: names(tmp_path) == [("llama",)])
    with opened(tmp_path, times=times) as state:
        assert state.restored(("team-b", "gone", "s", "p"), Counting()) is None
        assert state.restored(KEY, Counting()) is not None


YEAR = 365 * 86_400.0


def prunes(state: StateFile, count: int = 2) -> None:
    """Wait for so many looks at what is too old."""
    until_commits = state.commits + count * 10
    wait(lambda: state.commits > until_commits)


@pytest.mark.parametrize("step", [YEAR, -YEAR, -1_000_000.0], ids=["a year ahead", "a year back", "to 1970"])
def test_a_wall_clock_that_steps_deletes_nothing_and_hides_nothing(tmp_path: Path, step: float) -> None:
    times = Times(clock=50.0, wall=1_000_000.0)
    with opened(tmp_path, times=times) as state:
        for count in range(5):
            times.go(1.0)
            keep(state, count)
        keep(state, 1, ("team-b", "quiet", "s", "p"))
        wait_for_commit(state)
        times.wall_now += step
        times.go(1.0)
        keep(state, 5)
        prunes(state)
        times.wall_now -= step
        times.go(1.0)
        keep(state, 6)
        prunes(state)
    times = Times(clock=7.0, wall=times.wall_now + step)  # and once more, at a restart
    with opened(tmp_path, times=times) as state:
        found = state.restored(KEY, Counting())
        assert state.restored(("team-b", "quiet", "s", "p"), Counting()) is not None
        keep(state, 7)
        prunes(state)
    assert found is not None
    assert found.state[0] == 6
    assert _values(tmp_path) == [float(count) for count in range(8)]
    assert names(tmp_path) == [("llama",), ("quiet",)]


def test_what_a_clock_that_was_fast_stamped_crowds_nothing_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(clock=50.0, wall=1_000_000.0 + YEAR)
    with opened(tmp_path, times=times) as state:
        for number in range(3):
            keep(state, 1, ("team-a", f"early-{number}", "s", "p"))
        wait_for_commit(state)
        times.wall_now -= YEAR
        times.go(10.0)
        keep(state, 2)
    monkeypatch.setattr(state_module, "_RESTORED_KEPT", 2)
    with opened(tmp_path, times=times) as state:
        found = state.restored(KEY, Counting())
    assert found is not None
    assert found.state[0] == 2


def test_a_row_tells_how_long_the_service_had_run(tmp_path: Path) -> None:
    times = Times(clock=50.0, wall=1_000_000.0)
    with opened(tmp_path, times=times) as state:
        times.go(2.0)
        keep(state, 1)
        times.go(3.0)
        times.wall_now -= YEAR
        keep(state, 2)
    times = Times(clock=7.0, wall=1_000_000.0)
    with opened(tmp_path, times=times) as state:
        times.go(4.0)
        keep(state, 3)
    assert [(row.run, row.ran_seconds) for row in rows(tmp_path)] == [(1, 2.0), (1, 5.0), (2, 9.0)]


def test_a_process_that_waited_for_the_file_counts_on_from_when_the_other_ended(tmp_path: Path) -> None:
    times = Times(clock=50.0, wall=1_000_000.0)
    with opened(tmp_path, times=times) as first:
        times.go(2.0)
        keep(first, 1)
        wait_for_commit(first)
        with capture_logs() as logs, opened(tmp_path, times=times) as second:
            times.go(3.0)
            keep(second, 2)  # the first sees this, too
            keep(first, 3)
            wait(lambda: first.waiting == 0 and any(log["event"] == "state_in_use" for log in logs))
            times.go(4.0)
            tried = threading.Event()
            hold = second._hold
            second._hold = lambda: (hold(), tried.set())[0]  # type: ignore[method-assign,func-returns-value]  # to see one
            assert tried.wait(30.0)
            first.close()
            wait(lambda: second.commits > 0)
            times.go(1.0)
            keep(second, 4)
    kept = [(row.waiting, row.run, row.ran_seconds) for row in rows(tmp_path)]
    assert kept == [(1.0, 1, 2.0), (3.0, 1, 5.0), (2.0, 2, 1.0), (4.0, 2, 6.0)]


def as_of_an_older_version(folder: Path) -> None:
    """The file as it was before its rows told of the process's clock."""
    with sqlite3.connect(folder / FILE_NAME) as connection:
        for table, column, _ in state_module._ADDED:
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    connection.close()


def test_a_file_of_an_older_version_is_read_and_written_on(tmp_path: Path) -> None:
    times = Times(clock=50.0, wall=1_000_000.0)
    with opened(tmp_path, times=times) as state:
        keep(state, 1)
    as_of_an_older_version(tmp_path)
    told = [(row.waiting, row.run, row.ran_seconds, row.most_replicas) for row in rows(tmp_path)]
    assert told == [(1.0, None, None, None)]
    with opened(tmp_path, times=times) as state:
        assert state.restored(KEY, Counting()) is not None
        times.go(29 * 86_400)
        keep(state, 2)
        prunes(state)
        assert _values(tmp_path) == [1.0, 2.0]  # their age begins now
        times.go(2 * 86_400)
        wait(lambda: _values(tmp_path) == [2.0])


def number(folder: Path, query: str) -> int | None:
    """The query's only value; None while there is no row to take it from."""
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        found = connection.execute(query).fetchone()[0]
    return None if found is None else int(found)


def names(folder: Path) -> list[tuple[str]]:
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        return connection.execute("SELECT name FROM workload ORDER BY name").fetchall()


# --- the recording ---


def test_a_recording_tells_what_was_read_and_answered(tmp_path: Path) -> None:
    view = ReplicaView(at_seconds=0.0, ready=2, starting_at_seconds=(1.0,))
    read = Sample(
        at_seconds=0.0,
        metric_value=9.0,
        active=True,
        waiting=8.0,
        in_flight=1.0,
        arrived_total=100.0,
        completed_total=91.0,
        oldest_age_seconds=4.0,
    )
    with opened(tmp_path) as state:
        state.keep(KEY, Counting(), decision=decision(4), state=None, sample=read, view=view, dry_run_desired=2)
        keep(state, 3, ("team-a", "other", "s", "p"))
        wait_for_commit(state)
        while_written = rows(tmp_path)
    assert while_written == rows(tmp_path / FILE_NAME)
    assert while_written == [
        Observation(
            at_seconds=1_000_000.0,
            metric_value=9.0,
            waiting=8.0,
            in_flight=1.0,
            arrived_total=100.0,
            completed_total=91.0,
            oldest_age_seconds=4.0,
            ready=2,
            starting=1,
            desired_replicas=4,
            active=True,
            dry_run_desired=2,
            run=1,
            ran_seconds=0.0,
        )
    ]


def test_what_is_in_the_system_is_recorded_and_restored(tmp_path: Path) -> None:
    read = Sample(at_seconds=0.0, metric_value=5.0, active=True, in_system=9.0, completed_total=4.0)
    with opened(tmp_path) as state:
        state.keep(KEY, Counting(), decision=decision(4), state=None, sample=read, view=None)
    assert [(row.waiting, row.in_system, row.completed_total) for row in rows(tmp_path)] == [(None, 9.0, 4.0)]
    with opened(tmp_path) as state:
        restored = state.restored(KEY, Counting())
    assert restored is not None
    assert restored.sample is not None
    assert (restored.sample.waiting, restored.sample.in_system) == (None, 9.0)


def test_how_many_replicas_can_have_work_is_recorded_and_restored_also_in_an_older_file(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        keep(state, 1)
    _altered(tmp_path / FILE_NAME, "ALTER TABLE observation DROP COLUMN most_replicas")
    with opened(tmp_path) as state:
        restored = state.restored(KEY, Counting())
        assert restored is not None
        assert restored.sample is not None
        assert (restored.sample.waiting, restored.sample.most_replicas) == (1.0, None)
        for partitions in (3, 4):
            read = Sample(at_seconds=0.0, metric_value=5.0, active=True, in_system=9.0, most_replicas=partitions)
            state.keep(KEY, Counting(), decision=decision(3), state=None, sample=read, view=None)
    assert [row.most_replicas for row in rows(tmp_path)] == [None, 3, 4]
    with opened(tmp_path) as state:
        restored = state.restored(KEY, Counting())
    assert restored is not None
    assert restored.sample is not None
    assert restored.sample.most_replicas == 4


def test_a_recording_of_several_sources_asks_which_and_of_several_policies_does_not(tmp_path: Path) -> None:
    with opened(tmp_path) as state:
        keep(state, 1, ("team-a", "llama", "sqs:orders", "target"))
        keep(state, 2, ("team-a", "llama", "sqs:orders", "slo"))
    assert [row.waiting for row in rows(tmp_path)] == [1.0, 2.0]
    with opened(tmp_path) as state:
        keep(state, 3, ("team-a", "llama", "sqs:mails", "slo"))
    with pytest.raises(RecordingUnreadable, match=r"expected one of sqs:orders, sqs:mails"):
        rows(tmp_path)
    assert [row.waiting for row in read_recording(tmp_path, "team-a/llama", source="sqs:mails")] == [3.0]


@pytest.mark.parametrize(
    ("workload", "message"),
    [("llama", "expected namespace/name"), ("team-a/none", "there are: team-a/llama")],
)
def test_what_a_recording_lacks_is_named(tmp_path: Path, workload: str, message: str) -> None:
    with opened(tmp_path) as state:
        keep(state)
    with pytest.raises(RecordingUnreadable, match=message):
        rows(tmp_path, workload)


def _text(file: Path) -> None:
    file.write_text("no database" * 100)


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _without_tables(file: Path) -> None:
    file.unlink()
    _altered(file, "PRAGMA user_version=1", "PRAGMA application_id=0x50494C4F")


def _with_a_word(file: Path) -> None:
    _altered(file, "UPDATE observation SET waiting = 'many'")


def _with_infinity(file: Path) -> None:
    _altered(file, "UPDATE observation SET in_flight = 9e999")


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, "does not exist; expected the service's state folder"),
        (_text, "can't be read: file is not a database; expected a state file of Pilotlight"),
        (_empty, "is empty; expected a state file of Pilotlight"),
        (_foreign, "is another program's: its application id is 0x0; expected a state file of Pilotlight"),
        (_newer, "is of version 99; expected 1"),
        (_without_tables, "can't be read: no such table: workload; expected a state file of Pilotlight"),
        (_truncated, "can't be read: "),
        (_pipe, "is no file; expected the service's state folder"),
        (_with_a_word, 'observation 1: waiting is "many"; expected a number'),
        (_with_infinity, 'observation 1: in_flight is "inf"; expected a number'),
    ],
)
def test_a_recording_that_is_none_says_so(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    with opened(tmp_path) as state:
        for count in range(300):
            keep(state, count)
    damage(tmp_path / FILE_NAME)
    with pytest.raises(RecordingUnreadable) as caught:
        rows(tmp_path)
    assert str(caught.value).startswith(f'recording "{tmp_path / FILE_NAME}"')
    assert said in str(caught.value)


def test_a_recording_with_too_long_a_name_says_so() -> None:
    with pytest.raises(RecordingUnreadable, match="can't be read: File name too long"):
        rows(Path("a" * 5_000))


# --- crashes ---

_WRITER = """
import sys, time
from pathlib import Path
from scaler.settings import StateSettings
from scaler.state import StateFile
from tests.service.test_state import KEY, Counting, decision, sample
state = StateFile(Path(sys.argv[1]), StateSettings(commit_seconds=0.05, learned_seconds=0.05, max_megabytes=1))
state.start()
count = sure = marked = commits = 0
while True:
    if state.commits > commits + 1:
        sure, marked, commits = marked, count, state.commits  # written since, also what was learned
    count += 1
    for number in range(50):
        state.keep((*KEY[:1], f"w{number}", *KEY[2:]), Counting(), decision=decision(count % 7 + 1),
                   state=(count, time.time()), sample=sample(float(count)), view=None)
    print(count, sure, flush=True)
    time.sleep(0.002)
"""


@pytest.mark.parametrize("seed", range(2))
def test_a_kill_at_any_moment_loses_the_last_moments_and_never_the_file(tmp_path: Path, seed: int) -> None:
    for round_number in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", _WRITER, tmp_path],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert child.stdout is not None
        while not re.fullmatch(rb"\d+ [1-9]\d*\n", child.stdout.readline()):
            assert child.poll() is None  # and until something is sure to be written
        time.sleep(Random(10 * seed + round_number).uniform(0.3, 1.0))
        child.send_signal(signal.SIGKILL)
        said, sure = map(int, child.stdout.read().splitlines()[-1].split())
        child.wait()
        child.stdout.close()
        with capture_logs() as logs, opened(tmp_path, times=Times(clock=0.0, wall=time.time())) as state:
            found = state.restored((*KEY[:1], "w7", *KEY[2:]), Counting())
        assert [log["event"] for log in logs] == ["state_restored"]
        assert found is not None
        assert 0 < sure <= found.state[0] <= said + 1
        assert found.decision.at_seconds > -60.0


# --- the service ---


def kept_in(folder: Path) -> ShellSettings:
    return ShellSettings(whole=Settings(state_folder=str(folder), state=StateSettings(commit_seconds=0.05)))


async def test_a_restarted_service_holds_its_last_decision_while_the_source_is_away(
    shell: RunShell, world: World, tmp_path: Path
) -> None:
    world.answers["orders"] = 12.0
    async with shell(kept_in(tmp_path)) as running:
        assert await Keda(running, pb, trigger()).poll() == (12.0, 5.0, True)
    world.answers["orders"] = ConnectionResetError("the broker is away")
    async with shell(kept_in(tmp_path)) as running:
        keda = Keda(running, pb, trigger())
        assert await keda.poll() == (12.0, 5.0, True)
        assert (await keda.stream().read()).result is True
    world.answers["orders"] = 3.0
    async with shell(kept_in(tmp_path)) as running:
        keda = Keda(running, pb, trigger())
        assert await keda.poll() == (3.0, 5.0, True)  # what is read counts more than what was


async def test_a_restarted_service_waits_for_its_first_reading_before_it_repeats_an_old_answer(
    shell: RunShell, world: World, tmp_path: Path
) -> None:
    world.answers["orders"] = 0.0
    async with shell(kept_in(tmp_path)) as running:
        assert await Keda(running, pb, trigger()).poll() == (0.0, 5.0, False)
    world.answers["orders"] = 9.0
    async with shell(kept_in(tmp_path)) as running:
        assert await Keda(running, pb, trigger()).active() is True


async def test_an_old_decision_is_held_no_longer_than_hold_seconds(
    shell: RunShell, world: World, tmp_path: Path
) -> None:
    world.answers["orders"] = 12.0
    async with shell(kept_in(tmp_path)) as running:
        await Keda(running, pb, trigger()).poll()
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
        connection.execute("UPDATE last SET at = at - 125")
    world.answers["orders"] = ConnectionResetError("the broker is away")
    async with shell(kept_in(tmp_path)) as running:
        keda = Keda(running, pb, trigger())
        name = (await keda.spec()).metricName
        with pytest.raises(Exception, match="UNAVAILABLE"):
            await keda.metrics(name)
        assert await keda.active()


async def test_no_secret_and_no_metadata_reaches_the_folder(shell: RunShell, world: World, tmp_path: Path) -> None:
    world.answers["orders"] = 12.0
    async with shell(kept_in(tmp_path)) as running:
        await settled(Keda(running, pb, trigger(password="hunter2-hunter2")), (12.0, 5.0, True))
    parts = [part for part in tmp_path.iterdir() if part.is_file()]  # noqa: ASYNC240 - a few names
    assert {part.name for part in parts} >= {FILE_NAME}
    for part in parts:
        assert b"hunter2" not in part.read_bytes()
        assert b"scalerAddress" not in part.read_bytes()
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o077 == 0


async def test_the_service_writes_a_recording_that_can_be_read_meanwhile(
    shell: RunShell, world: World, tmp_path: Path
) -> None:
    world.answers["orders"] = 1.0
    async with shell(kept_in(tmp_path)) as running:
        keda = Keda(running, pb, trigger(sampleSeconds="0.2"))
        for value in (1.0, 2.0, 3.0):
            world.answers["orders"] = value
            await settled(keda, (value, 5.0, True))
        await until(lambda: (tmp_path / FILE_NAME).exists() and _values(tmp_path) == [1.0, 2.0, 3.0])
    observed = rows(tmp_path)[0]
    assert abs(observed.at_seconds - time.time()) < 60


def _values(folder: Path) -> list[float]:
    try:
        return [row.metric_value for row in rows(folder)]
    except RecordingUnreadable:
        return []
