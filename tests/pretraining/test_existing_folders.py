"""Outputs of pre-training that exist, too little room, a run too short for its readings."""

import json
import os
import shutil
import signal
import time

import pytest

from fastbert.pretraining.plot import plot_losses
from fastbert.pretraining.run import run
from fastbert.pretraining.trainer import PreTrainer
from fastbert.training import checkpoints
from fastbert.utils.errors import InputError
from tests.forked import Forked
from tests.pretraining.small_runs import RECIPE, command, environment, options, outcome, python
from tests.pretraining.small_runs import assert_same as assert_same_outcome

SHORT = dict(steps=(2,), held_out=None, log_every=50, save_every=1000)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_shorter_than_its_log_interval_ends_well(prepared, console, tmp_path, steps):
    assert run(options(prepared, tmp_path, **{**SHORT, "steps": (steps,)}), console, resume=False) == 0
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    history = json.loads((tmp_path / f"checkpoint-{steps}" / "trainer_state.json").read_text())["log_history"]
    (reading,) = [entry for entry in history if "loss" in entry]
    assert reading["step"] == steps
    assert reading["mlm_loss"] > 0


@pytest.mark.parametrize("history", [[], [{"step": 3, "train_loss": 1.0}]])
def test_nothing_to_draw_is_no_error(tmp_path, history):
    plot_losses(history, tmp_path / "loss.png", vocab_size=10, unigram_entropy=None)
    assert not (tmp_path / "loss.png").exists()


def test_warm_up_as_long_as_the_run_and_a_held_out_folder(prepared, console, tmp_path):
    """One step, which is all warm-up, an evaluation that would come later."""
    from dataclasses import replace

    recipe = replace(RECIPE, warmup_ratio=None, warmup_steps=1)
    chosen = options(prepared, tmp_path, steps=(1,), recipe=recipe, log_every=50, evaluate_every=1000)
    assert run(chosen, console, resume=False) == 0


def test_one_rule_for_what_is_there(prepared, console, tmp_path, monkeypatch):
    chosen = options(prepared, tmp_path / "out", **SHORT)
    assert run(chosen, console, resume=False) == 0
    first = outcome(chosen.out, 2)
    with pytest.raises(InputError, match=r"--resume, .* or --overwrite, .* got .*out, which is finished"):
        run(chosen, console, resume=False)
    with monkeypatch.context() as patched:
        patched.setattr(PreTrainer, "train", None)
        patched.setattr(PreTrainer, "__init__", None)
        assert run(chosen, console, resume=True) == 0
    assert "is finished, with these options; nothing is left to compute" in console.file.getvalue()
    (chosen.out / "mine.txt").write_text("kept")
    other = options(prepared, tmp_path / "out", **SHORT, seed=1)
    with pytest.raises(InputError, match=r"expected seed 0, with which .*out was started, got 1"):
        run(other, console, resume=True)
    assert run(other, console, resume=False, overwrite=True) == 0
    assert outcome(chosen.out, 2)[0] != first[0]
    assert run(chosen, console, resume=False, overwrite=True) == 0
    assert_same_outcome(outcome(chosen.out, 2), first)
    assert (chosen.out / "mine.txt").read_text() == "kept"


def test_a_folder_of_others_is_left_alone(prepared, console, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"one of `fastbert pretrain`, got .* with other files: thesis\.txt"):
            run(options(prepared, tmp_path, **SHORT), console, resume=False, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_record_that_is_damaged_is_named(prepared, console, tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"expected the options of a run in .*run\.json, got "):
        run(options(prepared, tmp_path, **SHORT), console, resume=True)


def test_too_little_room_is_refused_with_numbers(prepared, console, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"expected [\d,]+ bytes of disk for 4 checkpoints of [\d,]+ bytes, .*got 1,000 free"):
        run(options(prepared, tmp_path / "out", keep=3), console, resume=False)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_says_what_is_kept(prepared, console, tmp_path, monkeypatch):
    commit = checkpoints.commit

    def full(folder, out, step, facts):
        if step == 8:
            raise OSError(28, "No space left on device")
        return commit(folder, out, step, facts)

    monkeypatch.setattr(checkpoints, "commit", full)
    with pytest.raises(OSError, match=r"No space left on device; in .* checkpoint-4 is there, and --resume continues from it"):
        run(options(prepared, tmp_path), console, resume=False)
    assert not list(tmp_path.glob(".saving*"))


def test_a_second_run_and_a_kill(prepared, tmp_path):
    """With worker processes, which outlive a killed parent for a while."""
    words = [word if word != "12" else "4000" for word in command(prepared, tmp_path / "out", "--workers", "1")]
    process = Forked(*words, environment=environment())
    try:
        deadline = time.monotonic() + 200
        while not (tmp_path / "out" / "checkpoint-4").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        second = python(*words, "--resume")
        assert second.returncode == 2
        expected = f"fastbert: expected no other run that writes to {tmp_path / 'out'}, got process {process.pid} on "
        assert second.stderr.splitlines()[-1].startswith(expected)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    third = Forked(*words, "--resume", environment=environment())
    try:
        while "continuing from" not in (seen := third.output()[0]):
            assert third.poll() is None, third.output()[1]
            time.sleep(0.05)
    finally:
        third.kill()
        third.communicate()
    assert f"{tmp_path / 'out' / '.lock'}: taken over from process {process.pid} on " in seen
