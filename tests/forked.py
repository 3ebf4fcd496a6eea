"""Python programs in separate processes, forked from a server that has imported what they need.

A new interpreter spends six seconds on importing PyTorch and transformers' Trainer, far more than the programs of the tests
need. What is forked here is a real process with its own id, signals, exit status and output; only its start is cheap.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path

PRELOADED = ["fastbert.cli.app", "fastbert.finetuning.run", "fastbert.pretraining.run"]
SECONDS = 300.0

_context = multiprocessing.get_context("forkserver")


def start_server(environment: dict[str, str]) -> None:
    """Starts the server with the environment that its imports are to see; one that runs stays as it is."""
    before = dict(os.environ)
    _context.set_forkserver_preload(PRELOADED)
    os.environ.clear()
    os.environ.update(environment)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


class Forked:
    """`python *words` as a running process, with the methods of subprocess.Popen that the tests use.

    words: "-m", a module and its arguments, or the path of a program and its arguments. new_session: as of Popen's
    start_new_session. folder: the one it works in, that of the tests where None. Output goes to files.
    """

    def __init__(self, *words: str, environment: dict[str, str], new_session: bool = False, folder: Path | None = None) -> None:
        start_server(environment)
        self.folder = tempfile.TemporaryDirectory()
        self.files = [Path(self.folder.name) / name for name in ("stdout", "stderr")]
        for file in self.files:
            file.touch()
        # A daemon could have no worker processes; what is not one is waited for at the end of the tests.
        self.process = _context.Process(target=_run, args=(words, environment, new_session, folder, *map(str, self.files)))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def output(self) -> tuple[str, str]:
        """What it has written to stdout and to stderr so far."""
        out, errors = (file.read_text() for file in self.files)
        return out, errors

    def communicate(self, timeout: float = SECONDS) -> tuple[str, str]:
        """Waits for the end; (stdout, stderr)."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            self.process.join()
            raise subprocess.TimeoutExpired("python", timeout, *self.output())
        return self.output()


def run(
    *words: str, environment: dict[str, str], processes: int = 1, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `python *words` to its end; on several processes as torchrun does, which ends all when one fails."""
    if processes == 1:
        one = Forked(*words, environment=environment, folder=folder)
        out, errors = one.communicate()
        return subprocess.CompletedProcess(words, one.returncode or 0, out, errors)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**environment, "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        Forked(*words, environment={**shared, "RANK": str(i), "LOCAL_RANK": str(i)}, folder=folder) for i in range(processes)
    ]
    deadline = time.monotonic() + SECONDS
    failed = None
    while failed is None and any(one.poll() is None for one in ranks):
        failed = next((i for i, one in enumerate(ranks) if one.poll()), None)
        assert time.monotonic() < deadline, [one.output() for one in ranks]
        time.sleep(0.02)
    failed = next((i for i, one in enumerate(ranks) if one.poll()), None)
    for one in ranks:
        one.kill()
    outputs = [one.communicate() for one in ranks]
    out, errors = ("".join(parts) for parts in zip(*outputs))
    if failed is None:
        return subprocess.CompletedProcess(words, 0, out, errors)
    status = ranks[failed].returncode or 0
    errors += f"rank {failed}: {signal.Signals(-status).name if status < 0 else f'exit status {status}'}\n"
    return subprocess.CompletedProcess(words, 1, out, errors)


def _run(
    words: tuple[str, ...], environment: dict[str, str], new_session: bool, folder: Path | None, stdout: str, stderr: str
) -> None:
    multiprocessing.set_start_method("fork", force=True)  # as a program has it by default; the server's children do not
    if new_session:
        os.setsid()
    if folder is not None:
        os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")
