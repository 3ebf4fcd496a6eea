"""The ablation: what it claims from scores made by hand, and a run of two steps from text to table, twice."""

import io
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

pytest.importorskip("accelerate", reason="accelerate is not installed")

from benchmarks.studies import ablation as tool
from benchmarks.studies import ablation_runs as runs
from benchmarks.studies.ablation import ablate
from benchmarks.studies.ablation_runs import Ablation
from benchmarks.studies.ablation_table import BERT, LEFT, NO_PAIRS, PAPER, ROWS, mean_and_deviation, table_of, verdict
from benchmarks.studies.tasks import Task, parse_task
from fastbert.finetuning.options import Setting
from fastbert.utils.errors import InputError


@pytest.mark.parametrize(
    ("row", "baseline", "claim", "text"),
    [
        ([70.0, 71.0, 69.0], [80.0, 81.0, 79.0], True, "worse by 10.0 ±2.3"),
        ([81.0, 80.0, 82.0], [70.0, 71.0, 69.0], True, "better by 11.0 ±2.3"),
        ([78.0, 84.0, 81.0], [82.0, 79.0, 85.0], False, "-1.0, within the spread (±6.8)"),
        ([70.0, 72.0], [73.0, 75.0], False, "-3.0, within the spread (±6.1)"),
        ([60.0], [90.0], False, "-30.0: no verdict from one seed"),
        ([60.0, None], [90.0, 91.0], False, "no verdict: a run has no score"),
        ([60.0, 61.0], [90.0, float("nan")], False, "no verdict: a run has no score"),
        ([50.0, 50.0], [50.0, 50.0], False, "no difference"),
        ([50.0, 50.0], [60.0, 60.0], False, "-10.0: no verdict, the seeds do not differ"),
    ],
)
def test_a_difference_is_claimed_beyond_the_spread_of_seeds_only(row, baseline, claim, text):
    """Intervals worked by hand: three seeds of deviation s each have 4 degrees of freedom, t = 2.776, times s * sqrt(2 / 3):
    2.27 for 1, 6.80 for 3; two seeds of deviation sqrt(2) have 2, t = 4.303, times sqrt(2): 6.09."""
    found = verdict(row, baseline)
    assert found.claim is claim
    assert found.text == text


def test_scores_as_text():
    assert mean_and_deviation([70.0, 72.0, 74.0]) == "72.0 ± 2.0"
    assert mean_and_deviation([70.0]) == "70.0"
    assert mean_and_deviation([None]) == "no score"


def test_the_table_shows_the_runs_beside_the_paper():
    scores = {BERT: {"pair": [80.0, 81.0, 79.0]}, NO_PAIRS: {"pair": [80.0, 82.0, 79.0]}, LEFT: {"pair": [70.0, 71.0, 69.0]}}
    out = Console(file=io.StringIO(), width=200)
    out.print(table_of(scores, {"pair": "accuracy"}, dict.fromkeys(ROWS, "9.9")))
    text = out.file.getvalue()
    assert "vs BERT-base: +0.3, within the spread" in text
    assert "vs BERT-base: worse by 10.0" in text
    assert "vs No NSP: worse by 10.3" in text
    for values in PAPER.values():
        assert all(f"{value:.1f}" in text for value in values)


@pytest.fixture
def files(tmp_path) -> Path:
    rng = random.Random(0)
    words = [rng.choice("bdklmnprst") + rng.choice("aeiou") + rng.choice("bdklmnprst") for _ in range(60)]
    for name, count in (("text", 40), ("held-out", 6)):
        documents = ["\n".join(" ".join(rng.choices(words, k=6)) + " ." for _ in range(10)) for _ in range(count)]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    for name, count in (("train", 24), ("dev", 12)):
        rows = "".join(f"{' '.join(rng.choices(words, k=3))},{('yes', 'no')[number % 2]}\n" for number in range(count))
        (tmp_path / f"{name}.csv").write_text("text,label\n" + rows, encoding="utf-8")
    return tmp_path


CONFIG = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64)


def small(files: Path) -> tuple[Ablation, list[Task]]:
    chosen = Ablation(
        files / "text.txt",
        files / "held-out.txt",
        2,
        files / "out",
        CONFIG,
        vocab_size=150,
        seq_len=32,
        batch_tokens=512,
        micro_batch_tokens=512,
        setting=Setting(batch_size=12, epochs=1.0),
        max_length=16,
    )
    return chosen, [Task("classify", files / "train.csv", files / "dev.csv")]


def test_text_becomes_a_table_and_finished_runs_are_not_repeated(files, monkeypatch):
    chosen, tasks = small(files)
    console = Console(file=io.StringIO(), width=220)
    record = ablate(chosen, tasks, 1, console)
    text = console.file.getvalue()
    assert "no verdict from one seed" in text
    assert "not to be compared" in text
    models = {
        row: json.loads((chosen.out / folder / "seed-0/pretrained/checkpoint-2/config.json").read_text())
        for row, folder in runs.FOLDERS.items()
    }
    classes = {row: config["architectures"][0] for row, config in models.items()}
    assert classes == {BERT: "BertForPreTraining", NO_PAIRS: "BertForMaskedLM", LEFT: "BertLMHeadModel"}
    tuned = json.loads((chosen.out / "left-to-right/seed-0/classify-dev/config.json").read_text())
    assert tuned["is_decoder"]

    trained = []
    pretrain, finetune = runs.pretrain, runs.finetune
    monkeypatch.setattr(runs, "pretrain", lambda options, *a, **k: trained.append(options.out) or pretrain(options, *a, **k))
    monkeypatch.setattr("fastbert.finetuning.run.single_run", lambda *a, **k: pytest.fail("fine-tuned again"))
    assert ablate(chosen, tasks, 1, console)["scores"] == record["scores"]
    assert trained == []
    monkeypatch.undo()
    monkeypatch.setattr(runs, "pretrain", lambda options, *a, **k: trained.append(options.out) or pretrain(options, *a, **k))
    assert finetune is runs.finetune
    more = ablate(chosen, tasks, 2, console)
    assert [path.parent.name for path in trained] == ["seed-1"] * 3
    assert [len(more["scores"][row]["classify-dev"]) for row in ROWS] == [2, 2, 2]
    assert json.loads((chosen.out / tool.RECORD).read_text()) == more
    assert set(more["verdicts"][LEFT]["classify-dev"]) == {BERT, NO_PAIRS}
    assert all(0 < one["eval_perplexity"] < 1000 for row in ROWS for one in more["held_out"][row])
    with pytest.raises(InputError, match=r"expected steps 2, with which .* was started, got 3"):
        ablate(replace(chosen, steps=3), tasks, 1, console)


def test_wrong_words_are_refused_before_anything_is_written(files):
    chosen, tasks = small(files)
    with pytest.raises(InputError, match="each evaluated on a file of another name, got classify-dev, classify-dev"):
        ablate(chosen, tasks * 2, 1, Console(quiet=True))
    for words, message in (
        ("classify", "expected a task as KIND=TRAIN,EVAL"),
        ("pair=a,b", "expected a file for the task pair"),
    ):
        with pytest.raises(InputError, match=message):
            parse_task(words)
    import typer

    app = typer.Typer()
    app.command()(tool.main)
    given = ["--text", str(chosen.text), "--held-out", str(chosen.held_out), "--steps", "1", "--out", str(chosen.out)]
    done = CliRunner().invoke(app, [*given, "--task", "guess=a,b"])
    assert done.exit_code == 2
    assert not chosen.out.exists()
    (chosen.out / "mine").mkdir(parents=True)
    with pytest.raises(InputError, match="expected a new or empty folder"):
        ablate(chosen, tasks, 1, Console(quiet=True))
