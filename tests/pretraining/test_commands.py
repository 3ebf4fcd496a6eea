"""Raw text to a checkpoint by the commands a user types."""

import io
import json
import random
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers
from rich.console import Console
from typer.testing import CliRunner

from fastbert.cli.app import app
from fastbert.data.shards import Shards
from fastbert.pretraining.notices import StuckAtFrequencies
from fastbert.pretraining.recipe import PRESETS
from tests import forked
from tests.pretraining.small_runs import environment


def fastbert(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return forked.run("-m", "fastbert", *words, environment=environment(), folder=folder)


def write_text(file: Path, seed: int) -> None:
    rng = random.Random(seed)
    words = [rng.choice("bdklmnprst") + rng.choice("aeiou") + rng.choice("bdklmnprst") for _ in range(120)]
    documents = ["\n".join(" ".join(rng.choices(words, k=rng.randint(4, 12))) + " ." for _ in range(12)) for _ in range(60)]
    file.write_text("\n\n".join(documents) + "\n", encoding="utf-8")


def test_text_becomes_a_checkpoint_in_three_commands(tmp_path):
    write_text(tmp_path / "text.txt", 0)
    write_text(tmp_path / "other.txt", 0)
    config = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64)
    (tmp_path / "config.json").write_text(json.dumps(config))
    for words in (
        ["tokenizer", "text.txt", "--vocab-size", "200", "--out", "tok"],
        ["prepare", "text.txt", "--tokenizer", "tok", "--out", "data", "--seq-len", "64"],
        ["prepare", "other.txt", "--tokenizer", "tok", "--out", "held", "--seq-len", "64", "--seed", "1"],
        ["masks", "data"],
        [
            "pretrain",
            "--data",
            "data",
            "--steps",
            "3",
            "--held-out",
            "held",
            "--config",
            "config.json",
            "--out",
            "run",
            "--batch-tokens",
            "1024",
            "--micro-batch-tokens",
            "512",
            "--evaluate-every",
            "3",
            "--log-every",
            "1",
            "--workers",
            "0",
            "--preset",
            "google-2018",
            "--warmup-steps",
            "1",
        ],
    ):
        done = fastbert(tmp_path, *words)
        assert done.returncode == 0, done.stderr[-2000:]
    assert "3 steps of 1,024 tokens" in done.stdout
    assert "unlike the preset modern, masks: those of epoch 0 in every epoch (static)" in done.stdout
    assert "data has each document once" in done.stdout
    assert "finished: run/checkpoint-3" in done.stdout
    assert transformers.BertForPreTraining.from_pretrained(tmp_path / "run" / "checkpoint-3").config.vocab_size <= 200
    history = json.loads((tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    assert {"eval_mlm_loss", "eval_perplexity", "eval_mlm_accuracy", "eval_next_sentence_accuracy"} <= set(history[-1])
    reading = next(entry for entry in reversed(history) if "loss" in entry)
    assert 0 < reading["mfu"]
    assert 0 <= reading["padding_skipped"] < 1
    assert Shards(tmp_path / "data").meta.audit["entropy"] > 3  # what the plot and the warning compare the loss with


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "nowhere", "--steps", "3"], "folder of a finished `fastbert prepare`"),
        (["--data", "a", "--data", "b", "--steps", "3"], "one --steps per --data, got 1 for 2 folders"),
        (["--data", "a", "--steps", "3", "--preset", "new"], "'--preset': 'new' is not one of 'modern', 'google-2018'"),
        (["--data", "a", "--steps", "3", "--preset", "google-2018"], "at least warmup_steps=10000, got 3"),
        (["--data", "a", "--steps", "3", "--optimizer", "sgd"], "optimizer"),
    ],
)
def test_wrong_words_are_answered_in_one_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    if "nowhere" not in words:
        monkeypatch.setattr("fastbert.data.shards.Shards.__init__", lambda self, folder: None)  # as if it were prepared
    done = CliRunner().invoke(app, ["pretrain", "--out", "run", *words])
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())
    assert isinstance(done.exception, SystemExit)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_stays_at_the_frequencies_is_said_once():
    console = Console(file=io.StringIO(), width=300)
    callback = StuckAtFrequencies(6.5, PRESETS["modern"], 1000, console)
    state = SimpleNamespace(global_step=0, is_world_process_zero=True)
    for step in range(100):
        state.global_step = step
        callback.on_log(None, state, None, logs={"mlm_loss": 6.55})
    assert console.file.getvalue().count("entropy of single tokens") == 1
    learning = StuckAtFrequencies(6.5, PRESETS["modern"], 1000, Console(file=(silent := io.StringIO())))
    for step in range(100):
        state.global_step = step
        learning.on_log(None, state, None, logs={"mlm_loss": 6.5 if step % 10 else 5.9})
    assert silent.getvalue() == ""
