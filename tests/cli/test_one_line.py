"""What is wrong with a command line is told in one line: which option, which value, what to do. Never a traceback."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from scaler.backtest.report import text_table
from tests.services import wait_until

COMMAND = [sys.executable, "-m", "scaler.cli"]


def pilotlight(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, in a folder that holds a file and a trace."""
    (folder / "file").write_text("a file")
    (folder / "trace.csv").write_text("t_s,service_s\n0,5\n700,5\n")
    return subprocess.run(
        [*COMMAND, *words], cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path), "COLUMNS": "60"}


RUN = ("backtest", "--trace", "trace.csv")


def test_which_version_it_is(tmp_path: Path) -> None:
    done = pilotlight(tmp_path, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"pilotlight \d+\.\d+\.\d+\S*\n|pilotlight, not installed: run from its sources\n", done.stdout)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("backtest",), "--trace is required"),
        ((*RUN, "--seeds", "0"), "'--seeds'"),
        ((*RUN, "--seeds", "many"), 'it is "many"; see `pilotlight backtest --help`'),
        ((*RUN, "--days", "0"), "--days is 0; it must be"),
        ((*RUN, "--day", "1"), "--day"),
        ((*RUN, "--out", "file"), '--out "file" can\'t be written: a file is where a folder should be'),
        ((*RUN, "--job-strategy", "best"), 'ScaledJob strategy "best" is unknown; there are: default'),
        ((*RUN, "--job-strategy", "default", "--policy", "slo"), '"slo" does not scale a ScaledJob here'),
        ((*RUN, "more"), "'more'"),
        (("backtest", "--recorded", ".", "--workload", "a/b"), '"pilotlight.sqlite" does not exist'),
        (("example", "--days", "0"), "'--days'"),
        (("simulate",), "'simulate'"),
        (("serve", "--config", "nowhere.yaml"), 'settings file "nowhere.yaml" can\'t be read: No such file'),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, tuple) else "",
)
def test_a_wrong_command_line_is_told_in_one_line(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    done = pilotlight(tmp_path, *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert done.stderr.startswith("pilotlight: ")
    assert done.stderr.count("\n") == 1


def test_a_ready_file_that_cannot_be_written_ends_the_service_with_one_line(tmp_path: Path) -> None:
    anywhere = [word for name in ("listen", "hints-listen", "metrics-listen") for word in (f"--{name}", "127.0.0.1:0")]
    done = pilotlight(tmp_path, "serve", *anywhere, "--ready-file", "file/ready.json")
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("pilotlight: "))
    assert line.startswith('pilotlight: --ready-file "file/ready.json" can\'t be written: Not a directory')
    assert "Traceback" not in done.stderr
    assert "serving" not in done.stderr


def test_no_words_at_all_show_the_help(tmp_path: Path) -> None:
    done = pilotlight(tmp_path)
    assert "backtest" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_results_that_nobody_can_take_are_told_in_one_line(tmp_path: Path) -> None:
    pilotlight(tmp_path)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *RUN],
            cwd=tmp_path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "pilotlight: standard output can't be written: No space left on device\n"


def test_a_reader_that_goes_ends_the_command_without_a_word(tmp_path: Path) -> None:
    pilotlight(tmp_path)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, *RUN, "--json"], cwd=tmp_path, env=environment(), stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == b""


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As in a terminal: what a shell starts in the background ignores SIGINT, and so does all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def is_there(group: int) -> bool:
    """Whether a process of this group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("seeds", ["1", "4"], ids=["alone", "several processes"])
def test_an_interrupted_backtest_ends_at_once_without_a_word_and_leaves_no_process(tmp_path: Path, seeds: str) -> None:
    out_folder = tmp_path / "out"
    words = ["--trace", "poisson:rate_per_second=2", "--days", "5", "--policy", "slo", "--seeds", seeds]  # for minutes
    running = subprocess.Popen(
        [*COMMAND, "backtest", *words, "--out", str(out_folder)],
        env=environment(),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not (psutil.Process(running.pid).children() if seeds != "1" else out_folder.exists()):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)  # somewhere in the middle
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=20)
    assert (running.returncode, out, err) == (130, b"", b"")
    wait_until(lambda: not is_there(running.pid), what="the end of its processes", timeout_seconds=20.0)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("module", ["typer", "pydantic", "tempfile"])  # the last is of the verbs
def test_a_command_that_is_interrupted_while_it_imports_ends_without_a_word(module: str) -> None:
    with subprocess.Popen(
        [COMMAND[0], "-X", "importtime", *COMMAND[1:], "backtest", "--trace", "poisson-busy"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stderr is not None
        while module not in (line := running.stderr.readline()):  # of the module, or of the first part of it
            assert line, "it was never imported"
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=20)
    # Where it meets an `exec` of text, as dataclasses have, Python ends by the signal itself; a shell says 130 of both.
    assert running.returncode in {130, -signal.SIGINT}
    assert (out, [line for line in err.splitlines() if not line.startswith("import time:")]) == ("", [])


def test_on_a_narrow_terminal_each_run_is_a_column(tmp_path: Path) -> None:
    pilotlight(tmp_path)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *RUN, "--policy", "slo", "--policy", "keda"],
        cwd=tmp_path,
        env=environment(),
        stdout=theirs,
        stderr=-3,
    ) as running:
        os.close(theirs)
        text = b""
        while running.poll() is None or not text:
            try:
                text += os.read(ours, 65_536)
            except OSError:  # Linux says so that the other end was closed
                break
    os.close(ours)
    lines = text.decode().splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[1].split() == ["policy", "slo", "keda"]


def test_a_table_is_turned_only_where_it_does_not_fit() -> None:
    rows = [{"policy": name, "gpu_seconds": 1_000 * number} for number, name in enumerate(("slo", "keda", "ray"))]
    wide = text_table(rows)
    assert wide.splitlines()[2].split() == ["keda", "1000"]
    assert text_table(rows, width=19) == wide
    assert text_table(rows, width=18).splitlines() == [
        "policy       slo",
        "gpu_seconds    0",
        "",
        "policy       keda",
        "gpu_seconds  1000",
        "",
        "policy        ray",
        "gpu_seconds  2000",
    ]
    assert text_table([], width=10) == ""
