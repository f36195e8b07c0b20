"""What survives a restart, in one SQLite file: last decisions, what policies learned, and what was observed.

The event loop hands over values and goes on; one thread writes them, about once a second, in one transaction.
So a crash at any moment loses the last seconds and never the file (write-ahead log). The file is bounded by size
and by age, holds no metadata and no secret, and is never a reason not to serve: what can't be read is set aside,
what can't be written is counted and told in the log.

Times in the file are Unix seconds; inside they are of the process's own clock, and are translated at this border.
A wall clock may be a year off, and be set right in the middle. So each row also says in which run it was written and
how long the service had run by then, all runs together and by their own clocks: age is counted by that alone.
docs/state.md describes the tables for those who read them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sqlite3
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Protocol, runtime_checkable

import structlog

from scaler.core.decide import Policy
from scaler.core.model import Decision, ReplicaView, Sample, Step
from scaler.errors import RecordingUnreadable, quoted
from scaler.settings import StateSettings

FILE_NAME: Final = "pilotlight.sqlite"
_APPLICATION_ID: Final = 0x50494C4F  # "PILO": tells our file from anyone else's
_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE workload (
    id INTEGER PRIMARY KEY, namespace TEXT NOT NULL, name TEXT NOT NULL, source TEXT NOT NULL, policy TEXT NOT NULL,
    UNIQUE (namespace, name, source, policy));
CREATE TABLE last (
    workload INTEGER PRIMARY KEY REFERENCES workload (id) ON DELETE CASCADE, at REAL NOT NULL, active INTEGER NOT NULL,
    metric_value REAL NOT NULL, target_value REAL NOT NULL, desired INTEGER NOT NULL, learned TEXT, ran REAL);
CREATE TABLE observation (
    id INTEGER PRIMARY KEY, workload INTEGER NOT NULL REFERENCES workload (id) ON DELETE CASCADE, at REAL NOT NULL,
    metric_value REAL NOT NULL, waiting REAL, in_flight REAL, arrived_total REAL, completed_total REAL,
    oldest_age REAL, ready INTEGER, starting INTEGER, desired INTEGER NOT NULL, active INTEGER NOT NULL,
    dry_run_desired INTEGER, run INTEGER, ran REAL, in_system REAL, most_replicas INTEGER);
CREATE INDEX observation_of ON observation (workload, id);
"""

# Columns that came later; older versions leave them empty, and read the file as well as before.
_ADDED: Final = (
    ("observation", "run", "INTEGER"),
    ("observation", "ran", "REAL"),
    ("last", "ran", "REAL"),
    ("observation", "in_system", "REAL"),
    ("observation", "most_replicas", "INTEGER"),
)

# Restored workloads that nobody has asked for yet.
_RESTORED_KEPT = 20_000
# A workload on which nothing changes leaves one observation in this time.
_UNCHANGED_SECONDS = 60.0
# Rows deleted in one transaction, so that a commit stays short.
_PRUNED_AT_ONCE = 20_000
_COMMITS_A_PRUNE = 10
_BUSY_SECONDS = 5.0
# How long an end waits for the last commit.
_CLOSE_SECONDS = 5.0
_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# What SQLite says where it can't make or fill a file, as on a full disk: the log and its index, even to read.
_NO_ROOM: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN})
_MEBIBYTE = 1024 * 1024
_LOG_BYTES = 8 * _MEBIBYTE
# Damaged files that are kept, the newest of them: the folder stays bounded.
_SET_ASIDE_KEPT = 3
# Observations written in one transaction: the log can't be cut within one.
_ROWS_AT_ONCE = 2_000

Key = tuple[str, str, str, str]
"""(namespace, name, source identity, policy): what is learned is kept under it."""


@runtime_checkable
class Durable(Protocol):
    """A policy whose state survives a restart. Of one without these two, the last decision survives."""

    def dump(self, state: Any) -> Mapping[str, Any]:
        """`state` as values for JSON."""

    def load(self, values: Mapping[str, Any], *, shift_seconds: float) -> Any:
        """The state again; `shift_seconds` is added to every moment in it. Raises whatever it likes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a workload was when the process last ran.

    `state` None: the policy's state did not survive. `sample` is the last reading, as far as it was recorded.
    """

    decision: Decision
    state: Any
    sample: Sample | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One row of a recording: what was read and what was answered. `at_seconds` is Unix time; None: not known.

    `dry_run_desired` is what `slo` would have asked for, where the trigger says `dryRun`. `run` is the number of the
    process's run, `ran_seconds` how long the service had run by its own clock, all runs together; None: an older
    version wrote it. Within one run they tell how far two rows are apart, whatever the wall's clock did meanwhile.
    """

    at_seconds: float
    metric_value: float
    waiting: float | None
    in_flight: float | None
    arrived_total: float | None
    completed_total: float | None
    oldest_age_seconds: float | None
    ready: int | None
    starting: int | None
    desired_replicas: int
    active: bool
    dry_run_desired: int | None
    run: int | None = None
    ran_seconds: float | None = None
    in_system: float | None = None
    most_replicas: int | None = None


class _Last(NamedTuple):
    """The newest of one workload, not yet written."""

    at: float  # by the wall's clock ...
    clock_at: float  # ... and by the process's, in which `state` counts
    policy: Policy[Any] | Durable
    decision: Decision
    state: Any


class StateFile:
    """The file and the thread that writes it. Everything but `keep` and `restored` happens in that thread."""

    def __init__(
        self,
        folder: Path,
        settings: StateSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.path = folder / FILE_NAME
        self._settings = settings
        self._clock = clock
        self._wall = wall
        self._log = structlog.get_logger()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        # Under the lock.
        self._lasts: dict[Key, _Last] = {}
        self._rows: list[tuple[Key, tuple[Any, ...]]] = []
        # Of the event loop.
        self._found: OrderedDict[Key, tuple[Any, ...]] = OrderedDict()
        self._told: set[str] = set()
        # Of the thread.
        self._connection: sqlite3.Connection | None = None
        self._held: IO[bytes] | None = None
        self._files: list[tuple[Path, os.stat_result]] = []  # that the connection has open
        self._ids: dict[Key, int] = {}
        # (written at and seen at by the process's clock, seen at by the wall's, what)
        self._written: dict[Key, tuple[float, float, float, tuple[Any, ...]]] = {}
        self._limit_bytes = settings.max_megabytes * _MEBIBYTE
        self._run_number = 0
        self._ran_before = 0.0  # the service, by the file, ...
        self._ran_from = 0.0  # ... when this process's clock showed this
        self._alone_since = clock()  # since then nobody else, nor this process, has written
        self._dumped: dict[Key, float] = {}
        self._undumped: dict[Key, _Last] = {}  # whose decision is in the file, and what was learned with it not yet
        self._prune_in = 0
        self._undumpable: set[str] = set()
        self._failing = False
        # For the metrics.
        self.commits = 0
        self.failed_commits = 0
        self.dropped = 0

    # --- of the event loop ---

    def start(self) -> None:
        """Read what was kept, and write from now on. Blocks for the reading; raises nothing."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._load()
        except (sqlite3.Error, OSError) as err:
            self._found.clear()
            if not self._set_aside(err):
                self._tell("state_unreadable", err)
        self._thread = threading.Thread(target=self._run, name="state", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Commit what is there and end. Blocks for a few seconds at most."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def restored(self, key: Key, policy: Policy[Any] | Durable) -> Restored | None:
        """What is known of `key` from before the restart; once."""
        row = self._found.pop(key, None)
        if row is None:
            return None
        at, active, metric_value, target_value, desired, learned, read_at, read_value, *parts = row
        now, wall_now = self._clock(), self._wall()
        # SQLite keeps whatever it is given in any column, and looks for no bit that has turned.
        if not (_are_numbers(at, active, metric_value, target_value, desired) and target_value > 0 <= desired):
            self._tell_once(
                "last_unreadable", _Damaged(f"the last decision on {quoted('/'.join(key[:2]))} is no decision")
            )
            return None
        state = None
        if learned is not None and isinstance(policy, Durable):
            try:
                values = json.loads(learned, parse_constant=_no_number)
                # An older version wrote the state alone, of a clock that counts from Unix time.
                was_at, was_clock_at, values = values if isinstance(values, list) else (at, at, values)
                shift_seconds = _moment(now, wall_now, was_at) - was_clock_at
                state = policy.load(values, shift_seconds=shift_seconds)
            except Exception as err:  # noqa: BLE001 - whatever an older version wrote: start learning anew
                self._tell_once("learned_unreadable", err)
        decision = Decision(
            at_seconds=_moment(now, wall_now, at),
            active=bool(active),
            metric_value=metric_value,
            target_value=target_value,
            desired_replicas=int(desired),
            held=True,
            steps=(Step(name="restart", before=None, after=desired, reason="decided before the service restarted"),),
        )
        sample = None
        if _are_numbers(read_at, read_value) and all(part is None or _are_numbers(part) for part in parts):
            waiting, in_flight, arrived_total, completed_total, oldest_age_seconds, in_system, most_replicas = parts
            sample = Sample(
                at_seconds=_moment(now, wall_now, read_at),
                metric_value=read_value,
                active=read_value > 0,
                waiting=waiting,
                in_flight=in_flight,
                in_system=in_system,
                arrived_total=arrived_total,
                completed_total=completed_total,
                oldest_age_seconds=oldest_age_seconds,
                most_replicas=most_replicas,
                approximate=True,  # it is not known whether it was exact
            )
        return Restored(decision=decision, state=state, sample=sample)

    def keep(
        self,
        key: Key,
        policy: Policy[Any],
        *,
        decision: Decision,
        state: Any,
        sample: Sample,
        view: ReplicaView | None,
        dry_run_desired: int | None = None,
    ) -> None:
        """Take note of one evaluation. Values only, which nobody changes: the thread reads them later."""
        at, clock_at = self._wall(), self._clock()
        row = (
            sample.metric_value,
            sample.waiting,
            sample.in_flight,
            sample.arrived_total,
            sample.completed_total,
            sample.oldest_age_seconds,
            None if view is None else view.ready,
            None if view is None else view.starting,
            decision.desired_replicas,
            decision.active,
            dry_run_desired,
            sample.in_system,
            sample.most_replicas,
        )
        with self._lock:
            self._lasts[key] = _Last(at, clock_at, policy, decision, state)
            if len(self._rows) < self._settings.queue_observations:
                self._rows.append((key, (at, clock_at, *row)))
            else:
                self.dropped += 1

    def learn(self, key: Key, policy: Policy[Any] | Durable, *, decision: Decision, state: Any) -> None:
        """Take note of what was learned under `key`, without an observation: of a dry run, which is not asked."""
        with self._lock:
            self._lasts[key] = _Last(self._wall(), self._clock(), policy, decision, state)

    @property
    def waiting(self) -> int:
        """Observations not yet written."""
        return len(self._rows)

    # --- of the thread ---

    def _run(self) -> None:
        while not self._ended.wait(self._settings.commit_seconds):
            self._commit(last=False)
        self._commit(last=True)
        with contextlib.suppress(sqlite3.Error):
            if self._connection is not None:
                self._connection.close()
        if self._held is not None:
            self._held.close()

    def _commit(self, *, last: bool) -> None:
        """Write what came since the last commit. Raises nothing."""
        if not self._hold():  # another process still has the file, as in a rolling update: keep only the newest
            self._alone_since = self._clock()
            return
        with self._lock:
            now = self._clock()
            lasts, self._lasts = self._lasts, {}
            rows, self._rows = self._rows, []
        # Of whom nothing was read since, too: else an orderly end would lose what was learned last.
        lasts = {key: held for key, held in self._undumped.items() if last or self._is_due(key, now)} | lasts
        try:
            connection = self._open()
            with connection:  # first what matters more: where the disk is full, a restart must not go back to hours ago
                for key, newest in lasts.items():
                    self._upsert(connection, key, newest, now, last=last)
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                with connection:
                    for key, row in rows[start : start + _ROWS_AT_ONCE]:
                        self._insert(connection, key, row)
            self._prune_in -= 1
            if self._prune_in <= 0 and not last:
                self._prune_in = _COMMITS_A_PRUNE
                self._prune(connection)
        except (sqlite3.Error, OSError) as err:
            self.failed_commits += 1
            self._forget()
            with self._lock:  # the newest decisions get another chance; the observations are lost
                self._lasts = lasts | self._lasts
                self.dropped += len(rows)
            if not self._set_aside(err) and not self._failing:
                self._failing = True
                self._tell("state_not_written", err)
            return
        except Exception as err:  # noqa: BLE001 - a mistake of ours must not end the thread
            self.failed_commits += 1
            self._forget()
            if not self._failing:
                self._failing = True
                self._log.error("state_not_written", error=type(err).__name__, exc_info=err)
            return
        self.commits += 1
        self._alone_since = now
        if self._failing:
            self._failing = False
            self._log.info("state_written_again", file=self.path.name)

    def _hold(self) -> bool:
        """Whether this process alone writes the file. The system lets go of the lock when a process dies."""
        lock = self.path.with_suffix(".lock")
        if self._held is not None:
            if _same(lock, os.fstat(self._held.fileno())):
                return True
            self._held.close()  # somebody deleted it: another process would not see that we write
            self._held = None
        try:
            import fcntl  # noqa: PLC0415 - not made for every platform
        except ImportError:  # pragma: no cover - Windows, where one process is the rule
            return True
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = lock.open("ab")
        except OSError as err:
            self.failed_commits += 1
            if not self._failing:
                self._failing = True
                self._tell("state_not_written", err)
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            if not self._failing:
                self._failing = True
                self._log.warning("state_in_use", file=self.path.name, hint="another process writes this state folder")
            return False
        self._held = file
        return True

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and not all(_same(path, was) for path, was in self._files):
            self._log.error(
                "state_file_gone",
                file=self.path.name,
                hint="the state file was deleted or replaced while the service ran; it is opened anew",
            )
            self._forget()
        if self._connection is None:
            connection = _connected(self.path)
            try:
                _prepare(connection)
                self._limit_bytes = self._fitting()
                connection.execute(f"PRAGMA journal_size_limit={self._log_bytes}")
                connection.execute(f"PRAGMA wal_autocheckpoint={max(self._log_bytes // 2 // 4096, 1)}")
                self._files = [(path, path.stat()) for path in (self.path, self._log_path) if path.exists()]
                run, self._ran_before = _runs(connection)
                self._run_number, self._ran_from = run + 1, self._alone_since
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    @property
    def _log_path(self) -> Path:
        return _log_of(self.path)

    @property
    def _log_bytes(self) -> int:
        """What the write-ahead log may hold of `maxMegabytes`, or of a disk that is smaller."""
        return min(self._limit_bytes // 8, _LOG_BYTES)

    def _fitting(self) -> int:
        """What the file and its log may hold: `maxMegabytes`, on a smaller disk less, so that it is never full of them.

        A full disk would stay full: what frees space is written to the log first.
        """
        limit_bytes = self._settings.max_megabytes * _MEBIBYTE
        ours = sum(path.stat().st_size for path in (self.path, self._log_path) if path.exists())
        disk = shutil.disk_usage(self.path.parent)
        return max(min(limit_bytes, ours + disk.free - min(limit_bytes, disk.total) // 8), 0)

    def _forget(self) -> None:
        """After a failure: what was thought to be in the file may not be."""
        self._ids.clear()
        self._written.clear()
        self._dumped.clear()
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _ran(self, clock_at: float) -> float:
        """How long the service had run, all runs together, when the process's clock showed `clock_at`."""
        return self._ran_before + clock_at - self._ran_from

    def _insert(self, connection: sqlite3.Connection, key: Key, row: tuple[Any, ...]) -> None:
        at, clock_at, *values = row
        before = self._written.get(key)
        if before is not None:
            written_at, seen_clock_at, seen_at, same = before
            if list(same) == values and clock_at - written_at < _UNCHANGED_SECONDS:
                self._written[key] = (written_at, clock_at, at, same)
                return
            if list(same) != values and written_at < seen_clock_at < clock_at:  # until when nothing had changed
                self._write(connection, key, seen_at, seen_clock_at, same)
        self._written[key] = (clock_at, clock_at, at, tuple(values))
        self._write(connection, key, at, clock_at, values)

    def _write(
        self, connection: sqlite3.Connection, key: Key, at: float, clock_at: float, values: Sequence[Any]
    ) -> None:
        connection.execute(
            "INSERT INTO observation (workload, at, metric_value, waiting, in_flight, arrived_total, completed_total, "
            "oldest_age, ready, starting, desired, active, dry_run_desired, in_system, most_replicas, "
            "run, ran) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (self._id(connection, key), at, *values, self._run_number, self._ran(clock_at)),
        )

    def _upsert(self, connection: sqlite3.Connection, key: Key, newest: _Last, now: float, *, last: bool) -> None:
        decision = newest.decision
        workload = self._id(connection, key)
        learned = None
        self._undumped.pop(key, None)
        if newest.state is not None and isinstance(newest.policy, Durable):
            if last or self._is_due(key, now):
                self._dumped[key] = now
                learned = self._dump(newest)
            else:
                self._undumped[key] = newest
        connection.execute(
            "INSERT INTO last (workload, at, active, metric_value, target_value, desired, learned, ran) "
            "VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (workload) DO UPDATE SET at=excluded.at, active=excluded.active, "
            "metric_value=excluded.metric_value, target_value=excluded.target_value, desired=excluded.desired, "
            "learned=coalesce(excluded.learned, learned), ran=excluded.ran",
            (
                workload,
                newest.at,
                decision.active,
                decision.metric_value,
                decision.target_value,
                decision.desired_replicas,
                learned,
                self._ran(newest.clock_at),
            ),
        )

    def _is_due(self, key: Key, now: float) -> bool:
        """Whether what was learned is to be written again, at `now` by the process's clock."""
        return now >= self._dumped.get(key, float("-inf")) + self._settings.learned_seconds

    def _dump(self, newest: _Last) -> str | None:
        assert isinstance(newest.policy, Durable)  # the caller has seen it
        try:
            return json.dumps([newest.at, newest.clock_at, newest.policy.dump(newest.state)], separators=(",", ":"))
        except Exception as err:  # noqa: BLE001 - one policy's mistake must not cost the others their state
            kind = type(newest.policy).__name__
            if kind not in self._undumpable:
                self._undumpable.add(kind)
                self._log.error("learned_not_written", policy=kind, error=type(err).__name__, exc_info=err)
            return None

    def _id(self, connection: sqlite3.Connection, key: Key) -> int:
        known = self._ids.get(key)
        if known is None:
            connection.execute("INSERT OR IGNORE INTO workload (namespace, name, source, policy) VALUES (?,?,?,?)", key)
            row = connection.execute(
                "SELECT id FROM workload WHERE namespace=? AND name=? AND source=? AND policy=?", key
            ).fetchone()
            known = self._ids[key] = int(row[0])
        return known

    def _prune(self, connection: sqlite3.Connection) -> None:
        """Delete what is too old, and the oldest where the file is too large; a bounded part at a time.

        Age is the time that the service has run since: the wall's clock may be wrong, and time off is no age.
        """
        self._limit_bytes = self._fitting()
        now = self._clock()
        too_old = self._ran(now) - 86_400.0 * self._settings.max_age_days
        for key in [key for key, (written_at, *_) in self._written.items() if now - written_at > 3_600.0]:
            del self._written[key]  # expired workloads; a living one writes at least once a minute
            self._ids.pop(key, None)
            self._dumped.pop(key, None)
            self._undumped.pop(key, None)
        with connection:
            connection.execute(
                "DELETE FROM observation WHERE id IN (SELECT id FROM observation ORDER BY id LIMIT ?) "
                "AND coalesce(ran, 0) < ?",
                (_PRUNED_AT_ONCE, too_old),
            )
            if (
                connection.execute(
                    "DELETE FROM workload WHERE id IN (SELECT workload FROM last WHERE coalesce(ran, 0) < ? LIMIT ?) "
                    "AND NOT EXISTS (SELECT 1 FROM observation WHERE workload = workload.id)",
                    (too_old, _PRUNED_AT_ONCE),
                ).rowcount
                > 0
            ):
                self._ids.clear()
            if _bytes_used(connection) > self._limit_bytes - self._log_bytes:
                connection.execute(
                    "DELETE FROM observation WHERE id IN (SELECT id FROM observation ORDER BY id LIMIT ?)",
                    (_PRUNED_AT_ONCE,),
                )
                self._prune_in = 0  # and again at the next commit, until it fits
        # A script, since `execute` stops after one page.
        connection.executescript("PRAGMA incremental_vacuum(2000);")
        log_bytes = self._log_path.stat().st_size
        # Pages that were freed leave the file with a checkpoint only.
        if log_bytes > self._log_bytes or self.path.stat().st_size + log_bytes > self._limit_bytes:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    # --- the file itself ---

    def _load(self) -> None:
        if not self.path.exists():
            return
        writable = os.access(self.path.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
        try:
            self._read(read_only=not writable)
        except sqlite3.Error as err:
            if not writable or _code(err) not in _NO_ROOM:
                raise
            self._read(read_only=True)
        self._log.info("state_restored", workloads=len(self._found), file=self.path.name)

    def _read(self, *, read_only: bool) -> None:
        self._found.clear()
        with contextlib.closing(self._to_be_read(read_only=read_only)) as connection:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise _Damaged(verdict)
            # Else what is sorted goes to a file, which a full disk may have no room for; all of it is kept anyway.
            connection.execute("PRAGMA temp_store=MEMORY")
            # Of an older version, and nothing can be added to it where it is only read.
            ran = "last.ran" if "ran" in _columns(connection, "last") else "NULL"
            later = _told_later(connection, ("in_system", "most_replicas"))
            for namespace, name, source, policy, *row in connection.execute(
                "SELECT namespace, name, source, policy, last.at, last.active, last.metric_value, target_value, "  # noqa: S608 - names of columns only
                "last.desired, learned, seen.at, seen.metric_value, waiting, in_flight, arrived_total, "
                f"completed_total, oldest_age, {later} FROM last "
                "JOIN workload ON workload.id = last.workload LEFT JOIN observation seen ON seen.id = "
                "(SELECT max(id) FROM observation WHERE observation.workload = last.workload) "
                f"WHERE coalesce({ran}, 0) >= (SELECT coalesce(max({ran}), 0) FROM last) - ? "
                f"ORDER BY coalesce({ran}, 0) DESC, last.at DESC LIMIT ?",
                (86_400.0 * self._settings.max_age_days, _RESTORED_KEPT),
            ):
                self._found[namespace, name, source, policy] = tuple(row)

    def _to_be_read(self, *, read_only: bool) -> sqlite3.Connection:
        """`read_only`: of a folder in which nothing can be made or filled, as on a disk that is full or read-only."""
        connection = _as_it_lies(self.path) if read_only else _connected(self.path)
        try:
            if read_only:
                _count_tables(connection)
            else:
                _prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self, err: Exception) -> bool:
        """Move a file away that is damaged or not ours, so that a new one can begin; False: it is another trouble."""
        if not isinstance(err, _Damaged) and _code(err) not in _CORRUPT:
            return False
        if not self._hold():
            return False
        aside = self.path.with_suffix(".set-aside")
        names = [self.path, aside, *(Path(f"{aside}-{number}") for number in range(1, _SET_ASIDE_KEPT))]
        try:
            for newer, older in reversed(tuple(pairwise(names))):
                for ending in ("", "-wal", "-shm"):
                    Path(f"{older}{ending}").unlink(missing_ok=True)
                    part = Path(f"{newer}{ending}")
                    if part.exists():
                        part.replace(f"{older}{ending}")
        except OSError as moving:
            self._tell("state_not_set_aside", moving)
            return False
        self._log.error(
            "state_set_aside",
            file=self.path.name,
            kept_as=aside.name,
            detail=str(err),
            hint="the state file is damaged or not Pilotlight's; it was moved, and learning starts anew",
        )
        return True

    def _tell_once(self, event: str, err: Exception) -> None:
        """One line, not one for each of thousands of workloads."""
        if event not in self._told:
            self._told.add(event)
            self._tell(event, err)

    def _tell(self, event: str, err: Exception) -> None:
        self._log.error(event, file=self.path.name, error=type(err).__name__, detail=str(err))


class _Damaged(sqlite3.DatabaseError):
    """The file is SQLite's, but damaged or not ours."""


def _code(err: Exception) -> int | None:
    """SQLite's word for what went wrong, without its details; None: it was not SQLite."""
    code: int | None = getattr(err, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _runs(connection: sqlite3.Connection) -> tuple[int, float]:
    """The last run's number, and how long the service had run by then. Raises _Damaged."""
    run, ran = connection.execute("SELECT max(run), max(ran) FROM observation").fetchone()
    (ran_last,) = connection.execute("SELECT max(ran) FROM last").fetchone()
    if not _are_numbers(run or 0, ran or 0.0, ran_last or 0.0):
        raise _Damaged("it does not tell for how long the service has run")
    return int(run or 0), max(ran or 0.0, ran_last or 0.0)


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _moment(now: float, wall_now: float, wall_at: float) -> float:
    """By the process's clock, when it was `wall_at` by the wall's: never later than now."""
    return now - max(wall_now - wall_at, 0.0)


def _connected(path: Path) -> sqlite3.Connection:
    # One thread at a time uses it: the one that starts, then the writer.
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False)
    with contextlib.suppress(OSError):  # a folder that can't be written can still be read
        os.chmod(path, 0o600)  # noqa: PTH101 - what workloads exist is for the service alone
    return connection


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _as_it_lies(path: Path) -> sqlite3.Connection:
    """To read where nothing can be made or filled."""
    # Without a log nothing is missing from the file; else SQLite would want to make one. Of an empty one, too:
    # an attempt to write leaves it on a full disk. An index that can't be written is made anew in memory.
    log = _log_of(path)
    logged = log.exists() and log.stat().st_size > 0
    ways = "mode=ro&readonly_shm=1" if logged else "mode=ro&immutable=1"
    return sqlite3.connect(f"{path.resolve().as_uri()}?{ways}", uri=True, timeout=_BUSY_SECONDS)


def _to_be_looked_at(path: Path) -> sqlite3.Connection:
    """To read while a service may be writing; of a full disk, or in a folder that is only read, as it lies."""
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as err:
        connection.close()
        if _code(err) not in _NO_ROOM:
            raise
        return _as_it_lies(path)
    return connection


def _count_tables(connection: sqlite3.Connection) -> int:
    """How many there are. Raises _Damaged for someone else's file."""
    tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if tables and (application, version) != (_APPLICATION_ID, _VERSION):
        raise _Damaged(f"application id {application:#x} version {version}, expected {_APPLICATION_ID:#x} {_VERSION}")
    return tables


def _prepare(connection: sqlite3.Connection) -> None:
    """Settings, and tables where the file is new. Raises _Damaged for someone else's file."""
    tables = _count_tables(connection)
    if not tables:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")
    if not tables:
        connection.executescript(
            f"BEGIN; {_SCHEMA} PRAGMA application_id={_APPLICATION_ID}; PRAGMA user_version={_VERSION}; COMMIT;"
        )
        return
    if any(column not in _columns(connection, table) for table, column, _ in _ADDED):
        with connection:
            connection.execute("BEGIN IMMEDIATE")  # another process may be about to do the same
            for table, column, kind in _ADDED:
                if column not in _columns(connection, table):
                    connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}


def _told_later(connection: sqlite3.Connection, columns: Sequence[str]) -> str:
    """Columns of observations, to be selected; NULL for each that a file of an older version lacks."""
    there = _columns(connection, "observation")
    return ", ".join(column if column in there else "NULL" for column in columns)


def _same(path: Path, was: os.stat_result) -> bool:
    """Whether the file at `path` is still the one that was opened."""
    try:
        now = path.stat()
    except OSError:
        return False
    return (now.st_dev, now.st_ino) == (was.st_dev, was.st_ino)


def _bytes_used(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def read_recording(path: str | Path, workload: str, *, source: str | None = None) -> Iterator[Observation]:
    """What was observed of `workload` (`namespace/name`), oldest first, from a state file or its folder.

    A service may be writing it meanwhile. Where one ScaledObject has several sources, `source` says which
    (its identity, such as "sqs:..."). Between two rows nothing changed, but for gaps of over a minute: then nobody
    looked. Raises RecordingUnreadable, which names what there is.
    """
    file = Path(path)
    namespace, slash, name = workload.partition("/")
    if not slash or not namespace or not name:
        raise RecordingUnreadable(f"workload {quoted(workload)}: expected namespace/name")
    try:
        if file.is_dir():
            file /= FILE_NAME
        mode = file.stat().st_mode
    except FileNotFoundError:
        raise RecordingUnreadable(f"{_named(file)} does not exist; expected the service's state folder") from None
    except OSError as err:
        raise RecordingUnreadable(f"{_named(file)} can't be read: {err.strerror}") from err
    if not stat.S_ISREG(mode):
        raise RecordingUnreadable(f"{_named(file)} is no file; expected the service's state folder")
    try:
        with contextlib.closing(_to_be_looked_at(file)) as connection:
            _check_ours(connection, file)
            chosen = _chosen(connection, namespace, name, source)
            marks = ",".join("?" * len(chosen))
            later = _told_later(connection, _OBSERVED_LATER)
            for row in connection.execute(
                "SELECT id, at, metric_value, waiting, in_flight, arrived_total, completed_total, oldest_age, ready, "  # noqa: S608 - the text holds question marks only
                f"starting, desired, active, dry_run_desired, {later} FROM observation WHERE workload IN ({marks}) "
                "ORDER BY id",
                chosen,
            ):
                number, *values = row
                for column, value in zip(_OBSERVED, values, strict=True):
                    known = value is not None or column not in _ALWAYS
                    if not known or not (value is None or (isinstance(value, int | float) and math.isfinite(value))):
                        raise RecordingUnreadable(
                            f"{_named(file)}, observation {number}: {column} is {quoted(value)}; expected a number"
                        )
                found = dict(zip(_OBSERVED, values, strict=True))
                yield Observation(**found | {"active": bool(found["active"])})
    except sqlite3.Error as err:
        raise RecordingUnreadable(f"{_named(file)} can't be read: {err}; expected a state file of Pilotlight") from err


_OBSERVED: Final = (
    "at_seconds",
    "metric_value",
    "waiting",
    "in_flight",
    "arrived_total",
    "completed_total",
    "oldest_age_seconds",
    "ready",
    "starting",
    "desired_replicas",
    "active",
    "dry_run_desired",
    "run",
    "ran_seconds",
    "in_system",
    "most_replicas",
)
# The last of them, by their columns: a file of an older version has none.
_OBSERVED_LATER: Final = ("run", "ran", "in_system", "most_replicas")
_ALWAYS: Final = frozenset({"at_seconds", "metric_value", "desired_replicas", "active"})


def _named(file: Path) -> str:
    """How a recording is named to people, whole where its path is long."""
    return f"recording {quoted(file, limit=400)}"


def _check_ours(connection: sqlite3.Connection, file: Path) -> None:
    """Raises RecordingUnreadable for a file that is not Pilotlight's, or of a version that is not known."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != _APPLICATION_ID:
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        raise RecordingUnreadable(
            f"{_named(file)} "
            + (f"is another program's: its application id is {application:#x}" if tables else "is empty")
            + f"; expected a state file of Pilotlight ({_APPLICATION_ID:#x})"
        )
    if version != _VERSION:
        raise RecordingUnreadable(
            f"{_named(file)} is of version {version}; expected {_VERSION}: read it with the Pilotlight that wrote it"
        )


def _chosen(connection: sqlite3.Connection, namespace: str, name: str, source: str | None) -> list[int]:
    """The rows of `workload` that are meant: of one source, under whatever policy it was."""
    found: dict[str, list[int]] = {}
    for number, identity in connection.execute(
        "SELECT id, source FROM workload WHERE namespace=? AND name=? ORDER BY id", (namespace, name)
    ):
        found.setdefault(identity, []).append(number)
    if not found:
        known = connection.execute("SELECT DISTINCT namespace || '/' || name FROM workload ORDER BY 1 LIMIT 20")
        names = ", ".join(row[0] for row in known) or "none"
        raise RecordingUnreadable(f"workload {quoted(f'{namespace}/{name}')} is not recorded; there are: {names}")
    if source is None and len(found) == 1:
        return next(iter(found.values()))
    if source not in found:
        sources = ", ".join(map(str, found))
        raise RecordingUnreadable(
            f"source {quoted(source or '')} of {quoted(f'{namespace}/{name}')}: expected one of {sources}"
        )
    return found[source]
