"""Tables and training lines at 80 columns: nothing wider and nothing cut."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

import fastbert
from fastbert.cli import inference_results as results
from fastbert.cli.console import WIDTH, console
from fastbert.finetuning.options import Setting
from fastbert.finetuning.several_runs import _print_table
from fastbert.inference.rows import Row as Text
from fastbert.kernels.specs.accuracy import Accuracy
from fastbert.training import checkpoints
from fastbert.training.log_lines import LogLines, duration
from fastbert.utils.printing import number_of
from fastbert.utils.sizes import SIZES
from fastbert.verification.fp8 import Finding, QuantizationReport
from fastbert.verification.fp8_report import show
from fastbert.verification.report import Report
from fastbert.verification.rows import Row

PARAMETER = "bert.encoder.layer.11.attention.self.query.weight"


@pytest.fixture
def screen() -> Console:
    return Console(file=io.StringIO(), width=80)


def printed(screen: Console) -> str:
    text = screen.file.getvalue()
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= 80, lines
    assert "…" not in text, text
    return text


def test_the_report_of_verify(screen):
    worst = Accuracy(PARAMETER, 1.5e-7, 1.25e-7, 2.5e-7)
    Report(screen).add([Row("heads", "BertForNextSentencePrediction", worst, 1234), Row("heads", "pooler", worst, 2)])
    text = printed(screen)
    for value in ("1234", "1.5e-07", "1.2e-07", "1.20", f"pooler: worst at {PARAMETER}"):
        assert value in text


def test_the_report_of_fp8(screen):
    findings = (Finding("state of each token, embeddings", 123456, 0.99912, 0.98765, 0.999, 0.995),)
    about = {"checkpoint": "c", "class": "BertModel", "texts": 1, "calibration texts": 2, "dtype": "float32", "device": "CPU"}
    show(QuantizationReport(findings, 3, 4, 0.75, {}), about, screen)
    text = printed(screen)
    for value in ("123,456", "0.99912", "0.98765", "1 text,"):
        assert value in text


def test_the_table_of_a_grid(screen):
    groups = [
        (
            Setting(batch_size, rate, 4.0, 0, 0.1, 0.1, 0.01),
            [{"score": 0.98765, "degenerate": None, "identity": {"run": "x"}} for _ in range(2)],
        )
        for batch_size in (16, 32)
        for rate in (5e-5, 2e-5)
    ]
    _print_table(groups, "accuracy", Path("batch16-lr5e-05"), screen)
    text = printed(screen)
    assert "degenerate" in text
    assert "5e-05" in text


def test_explanations_and_results(screen):
    config = transformers.BertConfig(vocab_size=9, **SIZES["bert-tiny"])
    screen.print(fastbert.explain(fastbert.BertForPreTraining(config, padding="zeros")))
    text = "From next month until the autumn the museum is open on Thursdays only, and free."
    screen.print(results.EMBEDDINGS.to_table([(Text(text, "row 1"), np.ones(384, np.float32))] * 2))
    screen.print(results.LABELS.to_table([(Text(text, "row 1"), [{"label": "a" * 90, "score": 0.5}])]))
    screen.print(results.SCORES.to_table([(Text((text, text), "row 1"), 0.5)]))
    printed(screen)


def test_a_line_for_each_reading(screen):
    state = SimpleNamespace(global_step=0, max_steps=12000, is_world_process_zero=True)
    lines = LogLines(screen)
    lines.on_train_begin(None, state, None)
    for state.global_step in (1, 2):
        lines.on_step_end(None, state, None)
    lines.clock.left = 3725.0
    readings = {"loss": 7.12341, "learning_rate": 1e-4, "tokens_per_second": 12345.6, "mfu": 0.4, "data_wait": 0.01}
    lines.on_log(None, state, None, logs=readings)
    lines.on_log(
        None, state, None, logs={f"eval_{name}": 0.12345 for name in ("loss", "mlm_loss", "perplexity", "mlm_accuracy")}
    )
    state.global_step = 12000
    lines.on_log(None, state, None, logs={"train_runtime": 1.0})
    text = screen.file.getvalue().splitlines()
    assert text[0] == "step      2/12,000  loss 7.1234  lr 1.0e-04  12,346 tokens/s  mfu 40%  1h02m left"
    assert text[1] == "held out, step 2: loss 0.1235, mlm loss 0.1235, perplexity 0.1235, mlm accuracy"
    assert text[2].startswith("  0.1235")
    assert text[3].startswith("trained to step 12,000 in ")


def test_fewer_lines_than_readings_where_they_are_many(screen):
    state = SimpleNamespace(global_step=0, max_steps=100, is_world_process_zero=True)
    tokens = iter(range(0, 10**6, 1000))
    lines = LogLines(screen, lambda: next(tokens), most=5)
    lines.on_train_begin(None, state, None)
    for step in range(1, 101):
        state.global_step = step
        lines.on_step_end(None, state, None)
        lines.on_log(None, state, None, logs={"loss": 1.0, "learning_rate": 0.0})
    text = screen.file.getvalue().splitlines()
    assert [line.split("/")[0].split()[-1] for line in text] == ["20", "40", "60", "80", "100"]
    assert "left" not in text[-1]
    assert all("tokens/s" in line for line in text)


def test_a_terminal_has_a_bar_that_ends():
    screen = Console(file=io.StringIO(), width=80, force_terminal=True)
    state = SimpleNamespace(global_step=0, max_steps=4, is_world_process_zero=True)
    lines = LogLines(screen)
    lines.on_train_begin(None, state, None)
    assert lines.bar is not None
    lines.close()
    assert lines.bar is None
    assert screen.file.getvalue().count("\x1b[?25l") == screen.file.getvalue().count("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "?"), (0.2, "0s"), (59.4, "59s"), (59.9, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (90000, "1d01h")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_numbers_with_their_nouns():
    assert [number_of(n, "row") for n in (0, 1, 2, 2000)] == ["0 rows", "1 row", "2 rows", "2,000 rows"]
    assert number_of(2, "entry", "entries") == "2 entries"


def test_columns_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert console().width == 80
    monkeypatch.delenv("COLUMNS")
    assert console().width == WIDTH or console().is_terminal


def test_sizes_are_those_of_the_papers():
    """Their parameters in millions, with the vocabulary of 30522 entries, as Turc et al. and Devlin et al. have them."""
    found = []
    for size in SIZES.values():
        assert size["hidden_size"] == 64 * size["num_attention_heads"]
        with torch.device("meta"):
            model = transformers.BertModel(transformers.BertConfig(**size))
        found.append(round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1))
    assert found == [4.4, 11.2, 28.8, 41.4, 109.5, 335.1]


def test_saved_weights_have_the_mode_of_other_files(tmp_path):
    import safetensors.torch

    folder = tmp_path / "new"
    folder.mkdir()
    safetensors.torch.save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    (tmp_path / "other").touch()
    target = checkpoints.install(folder, tmp_path / "checkpoint-1", {})
    assert (target / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert sorted(path.name for path in target.iterdir()) == ["manifest.json", "model.safetensors"]
