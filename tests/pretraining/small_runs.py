"""Short runs on the small data, what they leave, and places in the code where one can be ended."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

from fastbert.pretraining.options import Options
from fastbert.pretraining.recipe import Recipe
from fastbert.pretraining.trainer import PreTrainer
from fastbert.training import checkpoints
from tests import forked

ROOT = Path(__file__).parent.parent.parent
RECIPE = Recipe(optimizer="adamw", learning_rate=2e-3, betas=(0.9, 0.98), eps=1e-6, warmup_ratio=0.1)
STEPS = 12
PLAIN = ("loss", "mlm_loss", "next_sentence_loss", "grad_norm", "learning_rate", "epoch")


def options(prepared, out: Path, **changes) -> Options:
    values = dict(
        data=(prepared.data,),
        steps=(STEPS,),
        out=out,
        config=str(prepared.config),
        recipe=RECIPE,
        batch_tokens=512,
        micro_batch_tokens=256,
        precision="float32",
        held_out=prepared.held_out,
        save_every=4,
        evaluate_every=6,
        log_every=1,
        peak_tflops=1.0,  # to measure it takes as long as the run; `test_commands` does
    )
    return Options(**(values | changes))


def outcome(folder: Path, step: int = STEPS) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """(losses of every step and evaluation, weights) of a finished run."""
    last = folder / f"checkpoint-{step}"
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    kept = [
        {name: entry[name] for name in entry if name in PLAIN or name.startswith("eval_")} | {"step": entry["step"]}
        for entry in history
        if "loss" in entry or "eval_loss" in entry
    ]
    return kept, load_file(last / "model.safetensors")


def assert_same(found, expected) -> None:
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    assert all(torch.equal(found[1][name], expected[1][name]) for name in expected[1])


def without_dropout(prepared, tmp_path) -> Path:
    config = json.loads(prepared.config.read_text()) | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "still.json").write_text(json.dumps(config))
    return tmp_path / "still.json"


class Killed(BaseException):
    """Not an Exception: nothing on the way may catch it."""


def kill() -> None:
    raise Killed


PLACES = {
    "step": (PreTrainer, "compute_loss"),
    "clip": (PreTrainer, "_clip_grad_norm"),
    "save": (checkpoints, "_sync"),
    "rename": (checkpoints, "keep_last"),
    "evaluate": (transformers.Trainer, "_prepare_inputs"),
}


def end_at(place: str, count: int, end, setattr=setattr) -> None:
    """Calls end() at the count-th visit of one of PLACES. setattr: monkeypatch's, where the change is to be undone."""
    owner, name = PLACES[place]
    original, visits = getattr(owner, name), []

    def counted(*args, **kwargs):
        visits.append(1)
        if len(visits) == count:
            end()
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def command(prepared, out: Path, *more: str) -> list[str]:
    return [
        "-m",
        "fastbert",
        "pretrain",
        "--data",
        str(prepared.data),
        "--steps",
        str(STEPS),
        "--out",
        str(out),
        "--config",
        str(prepared.config),
        "--peak-tflops",
        "1",
        "--batch-tokens",
        "512",
        "--micro-batch-tokens",
        "256",
        "--learning-rate",
        "2e-3",
        "--save-every",
        "4",
        "--log-every",
        "1",
        "--workers",
        "0",
        "--precision",
        "float32",
        *more,
    ]


def environment() -> dict[str, str]:
    found = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    found.pop("TRITON_INTERPRET", None)
    return found


def python(*words: str, processes: int = 1, torchrun: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs Python with these words. torchrun: several processes are started by it, and not by `forked.run` in its manner."""
    if not torchrun:
        return forked.run(*words, environment=environment(), processes=processes)
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run([sys.executable, *start, *words], env=environment(), capture_output=True, text=True, check=False)
