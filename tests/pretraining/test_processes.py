"""Runs as separate processes: signals, a real SIGKILL, several processes with DDP and FSDP2."""

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastbert.training import checkpoints
from tests.forked import Forked
from tests.pretraining.small_runs import STEPS, assert_same, command, environment, outcome, python, without_dropout

KILLED_RUN = str(Path(__file__).parent / "killed_run.py")
SHARDING = {"ddp": [], "fsdp": ["--fsdp"]}


def test_sigterm_saves_and_leaves_and_the_command_resumes(prepared, tmp_path):
    longer = [word if word != str(STEPS) else "400" for word in command(prepared, tmp_path, "--workers", "2")]
    process = Forked(*longer, environment=environment(), new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint-8").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)  # as a job scheduler does: the workers get it too
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM, errors
    step = int(checkpoints.all_of(tmp_path)[0].name.split("-")[1])
    assert step % 4 or step > 8
    assert checkpoints.verify(checkpoints.all_of(tmp_path)[0])["step"] == step
    again = python(*longer)
    assert again.returncode == 2
    assert "expected a new output, --resume, which continues it, or --overwrite, which starts over" in again.stderr


def run_command(
    prepared, out: Path, *more: str, processes: int = 1, killed: tuple[str, int, int] | None = None, torchrun: bool = False
) -> int:
    """The exit status of a run in separate processes. killed: (place, visit, process) of a SIGKILL."""
    words = command(prepared, out, "--held-out", str(prepared.held_out), "--evaluate-every", "6", *more)
    if killed is not None:
        words = [KILLED_RUN, *map(str, killed), *words[2:]]
    done = python(*words, processes=processes, torchrun=torchrun)
    if killed is None:
        assert done.returncode == 0, done.stderr[-3000:]
    elif processes > 1:
        assert "SIGKILL" in done.stderr, done.stderr[-3000:]
    return done.returncode


@pytest.fixture(scope="module")
def of_one_process(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run_command(replace(prepared, config=without_dropout(prepared, folder)), folder / "out")
    return outcome(folder / "out")


@pytest.mark.parametrize("sharding", SHARDING)
def test_two_processes_give_the_losses_of_one(prepared, of_one_process, tmp_path, sharding):
    still = replace(prepared, config=without_dropout(prepared, tmp_path))
    run_command(still, tmp_path / "two", *SHARDING[sharding], processes=2, torchrun=True)
    (one, weights), (two, same) = of_one_process, outcome(tmp_path / "two")
    assert [entry["step"] for entry in one] == [entry["step"] for entry in two]
    for a, b in zip(one, two):
        for name in ("loss", "mlm_loss", "next_sentence_loss", "grad_norm", "eval_loss", "eval_mlm_accuracy"):
            if name in a:
                assert b[name] == pytest.approx(a[name], rel=1e-5)
    assert same.keys() == weights.keys()
    for name in weights:
        torch.testing.assert_close(same[name], weights[name], rtol=1e-3, atol=1e-5)


def test_a_run_that_got_a_sigkill_is_resumed_bit_for_bit(prepared, tmp_path):
    run_command(prepared, tmp_path / "whole")
    status = run_command(prepared, tmp_path / "killed", killed=("save", 14, 0))
    assert status == -signal.SIGKILL
    assert [path.name for path in checkpoints.all_of(tmp_path / "killed")] == ["checkpoint-4"]
    run_command(prepared, tmp_path / "killed", "--resume")
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))


@pytest.fixture(scope="module")
def of_two_processes(prepared, tmp_path_factory):
    """Uninterrupted, with dropout, in two micro-batches a step."""
    found = {}

    def outcome_of(sharding: str):
        if sharding not in found:
            out = tmp_path_factory.mktemp(sharding)
            run_command(prepared, out, *in_two(sharding), processes=2)
            found[sharding] = outcome(out)
        return found[sharding]

    return outcome_of


def in_two(sharding: str) -> list[str]:
    return [*SHARDING[sharding], "--micro-batch-tokens", "128"]


def check_killed(prepared, of_two_processes, out: Path, sharding: str, killed: tuple[str, int, int]) -> None:
    """The killed run is started by torchrun, which sends the other process SIGTERM; the others by the tests, for time."""
    assert run_command(prepared, out, *in_two(sharding), processes=2, killed=killed, torchrun=True) != 0
    assert not (out / "checkpoint-12").exists()
    run_command(prepared, out, *in_two(sharding), "--resume", processes=2)
    assert_same(outcome(out), of_two_processes(sharding))


@pytest.mark.parametrize(
    ("sharding", "killed"), [("ddp", ("save", 16, 0)), ("ddp", ("step", 13, 1)), ("fsdp", ("evaluate", 22, 1))]
)
def test_two_processes_one_of_them_killed(prepared, of_two_processes, tmp_path, sharding, killed):
    check_killed(prepared, of_two_processes, tmp_path, sharding, killed)


@pytest.mark.skipif("FASTBERT_SLOW" not in os.environ, reason="ten kill points; three run always (FASTBERT_SLOW=1 for all)")
def test_ten_random_kill_points_of_two_processes(prepared, of_two_processes, tmp_path):
    rng = random.Random(0)
    for number in range(10):
        place, process = rng.choice((("step", 0), ("step", 1), ("clip", 1), ("save", 0), ("evaluate", 0), ("evaluate", 1)))
        killed = (place, rng.randint(1, 11), process)
        check_killed(prepared, of_two_processes, tmp_path / str(number), rng.choice(list(SHARDING)), killed)
