"""A fine-tuning that is killed, stopped or out of disk, and resumed, ends as the uninterrupted one, bit for bit."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from rich.console import Console
from safetensors.torch import load_file

from fastbert.finetuning import best_epoch, single_run
from fastbert.finetuning.data import DataOptions
from fastbert.finetuning.model import load_model
from fastbert.finetuning.options import Options, Setting
from fastbert.finetuning.run import finetune
from fastbert.finetuning.task_types import load_task
from fastbert.finetuning.trainer import FineTuner
from fastbert.model.variants.frozen_heads import Frozen
from fastbert.training import checkpoints
from fastbert.utils.checkpoints import open_checkpoint
from fastbert.utils.errors import InputError
from tests import forked
from tests.finetuning.small_tasks import write_files

HERE = Path(__file__).parent
STEPS_OF_AN_EPOCH = 5
SETTING = Setting(batch_size=8, learning_rate=2e-3, epochs=3, dropout=0.1)  # dropout: the generators' states matter
VOLATILE = ("seconds", "train_runtime", "train_samples_per_second", "train_steps_per_second", "eval_seconds", "train_loss")


class Killed(BaseException):
    """Not an Exception: nothing on the way may catch it."""


def options_of(folder: Path, checkpoint: str, out: str = "out", **values) -> Options:
    train, evaluation = write_files(folder / "files", "classify", 8 * STEPS_OF_AN_EPOCH)
    values = {"setting": SETTING, **values}
    return Options("classify", checkpoint, DataOptions(train, evaluation, max_length=16), folder / out, **values)


def outcome(out: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    report = json.loads((out / "report.json").read_text())
    history = [{k: v for k, v in entry.items() if k not in VOLATILE} for entry in report.pop("history")]
    kept = {name: value for name, value in report.items() if name not in (*VOLATILE, "identity", "notes")}
    # Trainer's own last line, of times, is missing where nothing but the conclusion was left
    return {**kept, "history": [one for one in history if "loss" in one or "eval_accuracy" in one]}, load_file(
        out / "model.safetensors"
    )


def assert_same(found, wanted) -> None:
    assert found[0] == wanted[0]
    assert found[1].keys() == wanted[1].keys()
    assert all(torch.equal(found[1][name], wanted[1][name]) for name in wanted[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, checkpoint):
    folder = tmp_path_factory.mktemp("whole")
    finetune(options_of(folder, checkpoint), Console(quiet=True))
    return outcome(folder / "out")


def end_at(monkeypatch, owner, name: str, count: int, error: type[BaseException] = Killed) -> None:
    original, visits = getattr(owner, name), []

    def counted(*args, **kwargs):
        visits.append(1)
        if len(visits) == count:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize(
    ("owner", "name", "count", "left"),
    [
        (FineTuner, "compute_loss", 3, None),
        (FineTuner, "compute_loss", 8, 5),
        (FineTuner, "_predict", 2, 5),
        (checkpoints, "_sync", 12, None),  # in the first best epoch or checkpoint
        (checkpoints, "keep_last", 2, 10),
        (FineTuner, "_save_checkpoint", 2, 5),  # the best epoch is newer than the checkpoint
        (single_run, "write_report", 1, 15),  # all is trained, and the model is where it belongs
        (best_epoch.BestEpoch, "copy_to", 1, 15),
    ],
)
def test_a_run_killed_anywhere_and_resumed_is_the_uninterrupted_one(
    owner, name, count, left, tmp_path, checkpoint, console, monkeypatch, whole
):
    options = options_of(tmp_path, checkpoint)
    with monkeypatch.context() as patched:
        end_at(patched, owner, name, count)
        with pytest.raises(Killed):
            finetune(options, console)
    found = checkpoints.all_of(options.out)
    assert (found[0].name if found else None) == (f"checkpoint-{left}" if left else None)
    assert not (options.out / "report.json").exists()
    with pytest.raises(InputError, match=r"--resume, which continues it, or --overwrite, .*, got .*is unfinished"):
        finetune(options, console)
    finetune(options, console, resume=True)
    assert_same(outcome(options.out), whole)
    assert not list(options.out.glob("*checkpoint*"))
    assert not (options.out / "best").exists()
    assert not list(options.out.glob(".*"))


def test_while_it_trains_the_best_epoch_is_a_separate_model(tmp_path, checkpoint, console, monkeypatch):
    """Even where the epochs after it are worse, and it is what is kept in the end."""
    scores = iter([0.5, 0.9, 0.7])
    options = options_of(tmp_path, checkpoint)
    seen = []
    original, offer = FineTuner._predict, best_epoch.BestEpoch.offer

    def predict(self):
        seen.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return original(self)

    def offered(self, model, metrics, outputs, epoch):
        offer(self, model, metrics, outputs, epoch)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(self.path)
        expected = seen[min(len(seen), 2) - 1]
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
        assert transformers.AutoTokenizer.from_pretrained(self.path).mask_token_id == 4

    monkeypatch.setattr(FineTuner, "_predict", predict)
    monkeypatch.setattr(best_epoch.BestEpoch, "offer", offered)
    task_of = single_run.BestEpoch.__init__

    def with_scores(self, folder, method, which="best"):
        monkeypatch.setattr(type(method.task), "score", lambda self, outputs: {"accuracy": next(scores)})
        task_of(self, folder, method, which)

    monkeypatch.setattr(single_run.BestEpoch, "__init__", with_scores)
    report = finetune(options, console)
    assert (report["score"], report["epoch"]) == (0.9, 2.0)
    assert "epoch 2.00 is kept; accuracy of the last is 0.7" in console.file.getvalue()
    state = load_file(options.out / "model.safetensors")
    assert all(torch.equal(value, seen[1][name]) for name, value in state.items())
    assert (options.out / "confusion.png").is_file()


def test_the_last_epoch_is_kept_on_request(tmp_path, checkpoint, console, monkeypatch):
    last = []
    original = FineTuner._predict

    def predict(self):
        last[:] = [{name: value.clone() for name, value in self.model.state_dict().items()}]
        return original(self)

    monkeypatch.setattr(FineTuner, "_predict", predict)
    options = options_of(tmp_path, checkpoint, keep_epoch="last", setting=dataclasses.replace(SETTING, learning_rate=1.0))
    report = finetune(options, console)
    assert report["epoch"] == 3.0
    state = load_file(options.out / "model.safetensors")
    assert all(torch.equal(value, last[0][name]) for name, value in state.items())


def test_part_of_an_epoch_ends_after_its_last_step(tmp_path, checkpoint, console, monkeypatch):
    """Resumed at the very end, a fraction of an epoch is not trained on."""
    for name in ("whole", "cut"):
        options = options_of(tmp_path, checkpoint, out=name, setting=dataclasses.replace(SETTING, epochs=1.5))
        if name == "cut":
            with monkeypatch.context() as patched:
                end_at(patched, best_epoch.BestEpoch, "copy_to", 1)
                with pytest.raises(Killed):
                    finetune(options, console)
        finetune(options, console, resume=name == "cut")
    assert_same(outcome(tmp_path / "cut"), outcome(tmp_path / "whole"))


def test_a_frozen_encoders_head_is_resumed_too(tmp_path, checkpoint, console, monkeypatch):
    for name in ("whole", "cut"):
        options = options_of(tmp_path, checkpoint, out=name, frozen=Frozen("concat-last-four", "bilstm", "mean", 8))
        options = dataclasses.replace(options, frozen=Frozen("last", "bilstm", "mean", 8))
        if name == "cut":
            with monkeypatch.context() as patched:
                end_at(patched, FineTuner, "compute_loss", 8)
                with pytest.raises(Killed):
                    finetune(options, console)
        finetune(options, console, resume=name == "cut")
    one, two = (load_file(tmp_path / name / "head.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert outcome(tmp_path / "cut")[0] == outcome(tmp_path / "whole")[0]


def test_a_damaged_checkpoint_or_best_epoch_is_refused_by_name(tmp_path, checkpoint, console, monkeypatch, whole):
    for part, message in (("checkpoint-5", "refused checkpoint-5"), ("best", "refused best")):
        options = options_of(tmp_path / part, checkpoint)
        with monkeypatch.context() as patched:
            end_at(patched, FineTuner, "compute_loss", 8)
            with pytest.raises(Killed):
                finetune(options, console)
        weights = options.out / part / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        finetune(options, console, resume=True)
        assert message in console.file.getvalue()
        assert_same(outcome(options.out), whole)


def test_nothing_is_unpickled_on_the_way_back(tmp_path, checkpoint, console, monkeypatch):
    options = options_of(tmp_path, checkpoint)
    with monkeypatch.context() as patched:
        end_at(patched, FineTuner, "compute_loss", 8)
        with pytest.raises(Killed):
            finetune(options, console)
    load, seen = torch.load, []

    def watched(*args, **kwargs):
        seen.append(kwargs.get("weights_only"))
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", watched)
    finetune(options, console, resume=True)
    assert len(seen) >= 3
    assert all(seen)


def test_overwrite_starts_over_and_removes_what_was_there(tmp_path, checkpoint, console, whole):
    options = options_of(tmp_path, checkpoint, seeds=2)
    finetune(options, console)
    (options.out / "mine.txt").write_text("kept")
    other = dataclasses.replace(options, seeds=1)
    with pytest.raises(InputError, match="which is finished"):
        finetune(other, console)
    finetune(other, console, overwrite=True)
    assert_same(outcome(options.out), whole)
    assert not (options.out / "runs").exists()
    assert (options.out / "mine.txt").read_text() == "kept"
    with pytest.raises(InputError, match="expected --resume or --overwrite, got both"):
        finetune(other, console, resume=True, overwrite=True)


# The disk


def test_too_little_room_is_refused_with_numbers_before_anything_is_written(tmp_path, checkpoint, console, monkeypatch):
    options = options_of(tmp_path, checkpoint)
    task = load_task("classify", options.data, open_checkpoint(checkpoint))
    size = sum(p.nbytes for p in load_model(open_checkpoint(checkpoint), task.head, task.settings)[0].parameters())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=7 * size - 1))
    message = (
        rf"expected {7 * size:,} bytes of disk for a best epoch of {size:,} bytes and a checkpoint of {3 * size:,}, each .*"
    )
    with pytest.raises(InputError, match=message + rf"got {7 * size - 1:,} free in {tmp_path}"):
        finetune(options, console)
    assert not options.out.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=7 * size))
    finetune(options, console)


def test_the_room_that_is_asked_for_is_what_is_needed(tmp_path, checkpoint, console, monkeypatch):
    """At the height of it: a new checkpoint beside the last one and the best epoch."""
    options, most = options_of(tmp_path, checkpoint), [0]
    commit = checkpoints.commit

    def measured(folder, out, *args):
        most[0] = max(most[0], sum(file.stat().st_size for file in out.rglob("*") if file.is_file()))
        return commit(folder, out, *args)

    monkeypatch.setattr(checkpoints, "commit", measured)
    finetune(options, console)
    size = (options.out / "model.safetensors").stat().st_size
    assert 6.9 * size < most[0] < 7 * size + 200_000  # tokenizers, states, pictures


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("a small disk cannot be mounted here: that takes the rights of root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # weights may still be mapped


@pytest.mark.parametrize("full_after", [1, 2])
def test_a_disk_that_fills_up_leaves_the_last_good_epoch_and_says_where(
    full_after, small_disk, tmp_path, checkpoint, console, monkeypatch, whole
):
    options = dataclasses.replace(options_of(tmp_path, checkpoint), out=small_disk / "out")
    keep_last, count = checkpoints.keep_last, []

    def filling(*args):
        keep_last(*args)
        count.append(1)
        if len(count) == full_after:
            usage = shutil.disk_usage(small_disk)
            (small_disk / "others").write_bytes(b"x" * (usage.free - 50_000))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "keep_last", filling)
        with pytest.raises(OSError, match=r"expected to write .*got: .*") as error:
            finetune(options, console)
    last = f"checkpoint-{5 * full_after}"
    assert f"the best epoch so far is {options.out / 'best'}; --resume continues from {last}" in str(error.value)
    assert [path.name for path in checkpoints.all_of(options.out)] == [last]
    checkpoints.verify(options.out / last)
    checkpoints.verify(options.out / "best")
    transformers.AutoModelForSequenceClassification.from_pretrained(options.out / "best")
    (small_disk / "others").unlink()
    finetune(options, console, resume=True)
    assert_same(outcome(options.out), whole)


# Real signals, in processes of their own


def command(options: Options, *more: str) -> list[str]:
    words = ["finetune", "classify", "--model", options.model, "--train", options.data.train, "--eval", options.data.evaluation]
    words += ["--out", options.out, "--max-length", 16, "--batch-size", 8, "--learning-rate", 2e-3, "--epochs", 3]
    return [*map(str, words), "--precision", "float32", *more]


def python(*words: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(HERE.parent.parent), str(HERE)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)
    return forked.run(*words, environment=environment, processes=processes)


def signalled(number: int, step: int, options: Options, *more: str, process: int = 0, processes: int = 1):
    words = [str(HERE / "signalled_run.py"), str(int(number)), str(step), str(process), *command(options, *more)]
    return python(*words, processes=processes)


@pytest.mark.parametrize(
    ("number", "status", "left"),
    [
        (signal.SIGKILL, -signal.SIGKILL, "checkpoint-5"),
        (signal.SIGTERM, 128 + signal.SIGTERM, "checkpoint-8"),  # after the step under way
        (signal.SIGINT, 128 + signal.SIGINT, "checkpoint-8"),
    ],
)
def test_a_signal_in_the_middle_of_an_epoch(number, status, left, tmp_path, checkpoint, whole):
    options = options_of(tmp_path, checkpoint)
    done = signalled(number, 7, options)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "stopped or killed, the same command with --resume continues from that checkpoint" in done.stdout
    assert [path.name for path in checkpoints.all_of(options.out)] == [left]
    assert (options.out / "best" / "model.safetensors").is_file()
    assert (options.out / ".lock").exists() == (number == signal.SIGKILL)
    if number != signal.SIGKILL:
        assert done.stderr.splitlines()[-1].startswith("fastbert: stopped at step 8 of 15; the best epoch so far is ")
    again = python("-m", "fastbert", *command(options, "--resume"))
    assert again.returncode == 0, again.stderr
    assert f"continuing from {options.out / left}" in again.stdout
    assert (f"{options.out / '.lock'}: taken over from process" in again.stdout) == (number == signal.SIGKILL)
    found, wanted = outcome(options.out), whole
    if number != signal.SIGKILL:  # a reading more, of the steps until the signal
        assert {one["step"] for one in wanted[0]["history"]} <= {one["step"] for one in found[0]["history"]}
    assert_same((found[0] | {"history": 0}, found[1]), (wanted[0] | {"history": 0}, wanted[1]))
    finished = python("-m", "fastbert", *command(options, "--resume"))
    assert finished.returncode == 0
    assert "is finished, with these options; nothing is left to compute" in finished.stdout


def test_a_killed_grid_trains_no_finished_run_again(tmp_path, checkpoint):
    outcomes = []
    for name in ("whole", "killed"):
        options = options_of(tmp_path, checkpoint, out=name, seeds=3)
        more = ("--seeds", "3")
        if name == "whole":
            done = python("-m", "fastbert", *command(options, *more))
        else:
            done = signalled(signal.SIGKILL, 12, options, *more)  # in the first run
            assert done.returncode == -signal.SIGKILL
            second = options.out / "runs" / "batch8-lr0.002-epochs3-seed1"
            with pytest.MonkeyPatch.context() as patched:
                end_at(patched, FineTuner, "compute_loss", 10)  # 5 steps of the first run were left
                chosen = dataclasses.replace(options, data=dataclasses.replace(options.data, max_length=16))
                with pytest.raises(Killed):
                    finetune(chosen, Console(quiet=True), resume=True)
            assert [path.name for path in checkpoints.all_of(second)] == []
            done = python("-m", "fastbert", *command(options, *more, "--resume"))
            assert "seed0: finished before" in done.stdout
            assert "seed1: finished before" not in done.stdout
        assert done.returncode == 0, done.stderr
        outcomes.append(outcome(options.out))
    assert_same(*outcomes)


def test_two_processes_one_of_them_killed(tmp_path, checkpoint):
    outcomes = []
    for name in ("whole", "killed"):
        options = options_of(tmp_path, checkpoint, out=name)
        if name == "killed":
            assert signalled(signal.SIGKILL, 7, options, process=1, processes=2).returncode != 0
            assert [path.name for path in checkpoints.all_of(options.out)] == ["checkpoint-5"]
        done = python("-m", "fastbert", *command(options, *(["--resume"] * (name == "killed"))), processes=2)
        assert done.returncode == 0, done.stderr[-3000:]
        outcomes.append(outcome(options.out))
    assert_same(*outcomes)


def test_a_second_run_into_the_same_folder_is_refused(tmp_path, checkpoint, console, monkeypatch):
    options = options_of(tmp_path, checkpoint)
    original, seen = FineTuner._predict, []

    def predict(self):
        if not seen:
            seen.append(python("-m", "fastbert", *command(options, "--resume")))
        return original(self)

    monkeypatch.setattr(FineTuner, "_predict", predict)
    finetune(options, console)
    assert seen[0].returncode == 2
    expected = f"fastbert: expected no other run that writes to {options.out}, got process {os.getpid()} on "
    assert seen[0].stderr.splitlines()[-1].startswith(expected)
    assert not (options.out / ".lock").exists()
