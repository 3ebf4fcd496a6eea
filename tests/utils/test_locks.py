"""The lock of an output, with real processes: a second run is refused, a killed one's lock is taken over, nothing stays."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastbert.utils.errors import InputError
from fastbert.utils.locks import locked_file, locked_folder, locked_replacement, refuse_busy_file, refuse_busy_folder

ROOT = Path(__file__).parents[2]
HOLD = """
import time, typer
from pathlib import Path
from fastbert.utils import locks
from fastbert.cli.errors import plain_errors
def hold(kind: str, out: Path, seconds: float) -> None:
    with plain_errors(), getattr(locks, kind)(out, print):
        print("held", flush=True)
        time.sleep(seconds)
typer.run(hold)
"""
KINDS = {"locked_folder": "out/.lock", "locked_file": ".out.lock"}


def start(kind: str, out: Path, seconds: float = 60.0, before: str = "") -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", before + HOLD, kind, str(out), str(seconds)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by children of a shell's background job
    )


def wait(process: subprocess.Popen[str]) -> list[str]:
    """What it says until it holds the lock."""
    lines = []
    assert process.stdout is not None
    while lines[-1:] != ["held"]:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        lines.append(line.rstrip("\n"))
    return lines[:-1]


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_is_refused_and_a_killed_one_is_followed(kind, tmp_path):
    out, file = tmp_path / "out", tmp_path / KINDS[kind]
    first = start(kind, out)
    assert wait(first) == []
    assert json.loads(file.read_text()) == {"process": first.pid, "host": socket.gethostname()}
    second = start(kind, out)
    errors = second.communicate(timeout=60)[1]
    assert second.returncode == 2
    holder = f"process {first.pid} on {socket.gethostname()}"
    assert errors == f"fastbert: expected no other run that writes to {out}, got {holder}, which does ({file})\n"
    first.kill()
    first.wait()
    assert file.exists()
    third = start(kind, out, 0.0)
    said, errors = third.communicate(timeout=60)
    assert third.returncode == 0, errors
    assert said == f"{file}: taken over from {holder}, which has ended\nheld\n"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_is_released_by_signals(number, status, tmp_path):
    process = start("locked_folder", tmp_path / "a" / "out")
    wait(process)
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_outlives_its_parent_does_not_keep_it(tmp_path):
    """As a DataLoader's do for seconds."""
    fork = "import os, threading, time\nthreading.Timer(0.5, lambda: os.fork() or time.sleep(5)).start()\n"
    process = start("locked_folder", tmp_path / "out", before=fork)
    wait(process)
    time.sleep(1.5)
    process.kill()
    process.wait()
    said: list[str] = []
    with locked_folder(tmp_path / "out", said.append):
        assert len(said) == 1


@pytest.mark.parametrize(("kind", "refuse"), [("locked_folder", refuse_busy_folder), ("locked_file", refuse_busy_file)])
def test_a_look_at_the_lock_of_another_process_takes_and_touches_nothing(kind, refuse, tmp_path):
    out = tmp_path / "out"
    refuse(out)
    assert not list(tmp_path.iterdir())
    first = start(kind, out)
    wait(first)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}
    with pytest.raises(InputError, match=f"got process {first.pid} on .*, which does"):
        refuse(out)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))} == before
    first.kill()
    first.wait()
    refuse(out)  # a lock file without its process


def test_a_look_at_the_own_lock_keeps_it(tmp_path):
    with locked_folder(tmp_path / "out", print):
        with pytest.raises(InputError, match="got one of this process"):
            refuse_busy_folder(tmp_path / "out")
        second = start("locked_folder", tmp_path / "out")
        assert "expected no other run" in second.communicate(timeout=60)[1]


def test_the_same_process_is_refused_too(tmp_path):
    with locked_folder(tmp_path / "out", print):
        with pytest.raises(InputError, match="got one of this process"), locked_folder(tmp_path / "." / "out", print):
            pass
        assert (tmp_path / "out" / ".lock").exists()
    with locked_folder(tmp_path / "out", print):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_stays_and_what_was_there_too(tmp_path):
    with locked_folder(tmp_path / "a" / "b", print):
        (tmp_path / "a" / "b" / "mine").write_text("")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["a", "a/b", "a/b/mine"]
    (tmp_path / "empty").mkdir()
    with locked_folder(tmp_path / "empty", print):
        pass
    assert (tmp_path / "empty").is_dir()
    with locked_replacement(tmp_path / "c" / "d", print):
        pass
    assert not (tmp_path / "c").exists()


def test_what_cannot_be_locked_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"expected a folder to write to, got the file .*file"),
        locked_folder(tmp_path / "file", print),
    ):
        pass
    with (
        pytest.raises(InputError, match=r"expected a folder that exists for .*none/a\.npy"),
        locked_file(tmp_path / "none" / "a.npy", print),
    ):
        pass


def test_many_at_once_never_share_it(tmp_path):
    """Each adds one to a number, read and written apart; none is lost."""
    code = """
import sys, time
from pathlib import Path
from fastbert.utils.errors import InputError
from fastbert.utils.locks import locked_file
number, left = Path(sys.argv[1]), 20
while left:
    try:
        with locked_file(number, lambda line: None):
            value = int(number.read_text())
            time.sleep(0.001)
            number.write_text(str(value + 1))
            left -= 1
    except InputError:
        time.sleep(0.001)
"""
    number = tmp_path / "number"
    number.write_text("0")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen([sys.executable, "-c", code, str(number)], env=environment) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert number.read_text() == "60"
    assert [path.name for path in tmp_path.iterdir()] == ["number"]
