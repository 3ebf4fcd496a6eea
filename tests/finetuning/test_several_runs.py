"""Grids and seeds: the best run is kept, an interrupted grid is resumed, and runs that learned nothing are reported."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

from fastbert.finetuning import several_runs, single_run
from fastbert.finetuning.options import Options, Setting, paper_grid
from fastbert.finetuning.run import finetune
from tests.finetuning.small_tasks import FAST, options_of, printed


def small_grid() -> tuple[Setting, ...]:
    return tuple(
        dataclasses.replace(FAST, learning_rate=rate, epochs=3) for rate in (1.0, 5e-3)
    )  # the first ends at one answer for all


def test_a_grid_keeps_the_best_tells_the_spread_and_flags_what_learned_nothing(tmp_path, checkpoint, console):
    options = options_of("classify", tmp_path, checkpoint, grid=small_grid(), seeds=2)
    report = finetune(options, console)
    assert report["best_run"].startswith("batch8-lr0.005-epochs3-seed")
    wild, fast = report["settings"]
    assert wild["degenerate"] == 2
    assert fast["degenerate"] == 0
    assert fast["mean"] == pytest.approx(np.mean(fast["scores"]))
    assert fast["deviation"] == pytest.approx(np.std(fast["scores"], ddof=1))
    assert report["score"] == max(fast["scores"])
    shown = printed(console)
    assert "degenerate: batch8-lr1-epochs3-seed0: accuracy" in shown
    runs = sorted((options.out / "runs").iterdir())
    assert len(runs) == 4
    assert all((one / "report.json").is_file() and not (one / "model").exists() for one in runs)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(options.out)
    assert sorted(model.config.label2id) == ["blue", "green", "red"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, checkpoint) -> tuple[Options, dict]:
    folder = tmp_path_factory.mktemp("whole")
    options = options_of("classify", folder, checkpoint, grid=small_grid(), seeds=2, count=24)
    return options, finetune(options, Console(quiet=True))


@pytest.mark.parametrize("interrupted_at", [1, 3])
def test_an_interrupted_grid_is_resumed_and_ends_the_same(
    tmp_path, checkpoint, console, monkeypatch, uninterrupted, interrupted_at
):
    whole, wanted = uninterrupted
    options = options_of("classify", tmp_path / "cut", checkpoint, grid=small_grid(), seeds=2, count=24)
    real, started = single_run.single_run, []

    def counted(method, setting, *args, **kwargs):
        started.append(setting)
        if len(started) == interrupted_at + 1:
            raise KeyboardInterrupt
        return real(method, setting, *args, **kwargs)

    monkeypatch.setattr(several_runs, "single_run", counted)
    with pytest.raises(KeyboardInterrupt):
        finetune(options, console)
    assert not (options.out / "report.json").exists()
    found = finetune(options, console, resume=True)
    assert len(started) == 5  # four runs and the one that was interrupted
    assert found["best_run"] == wanted["best_run"]
    assert found["settings"] == wanted["settings"]
    states = [transformers.AutoModel.from_pretrained(one.out).state_dict() for one in (whole, options)]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_a_grid_interrupted_while_it_moves_the_best_model_is_resumed(tmp_path, checkpoint, console, monkeypatch):
    options = options_of("classify", tmp_path, checkpoint, grid=small_grid(), count=24)
    real = several_runs.write_report
    monkeypatch.setattr(several_runs, "write_report", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        finetune(options, console)
    monkeypatch.setattr(several_runs, "write_report", real)
    monkeypatch.setattr(several_runs, "single_run", None)
    report = finetune(options, console, resume=True)
    assert report["best_run"] == "batch8-lr0.005-epochs3-seed0"
    transformers.AutoModelForSequenceClassification.from_pretrained(options.out)


def test_the_papers_grid_is_the_papers():
    grid = paper_grid(Setting(seed=3, warmup=0.2))
    assert len(grid) == len({one.name for one in grid}) == 2 * 4 * 3
    assert {one.batch_size for one in grid} == {16, 32}
    assert {one.learning_rate for one in grid} == {5e-5, 4e-5, 3e-5, 2e-5}
    assert {one.epochs for one in grid} == {2, 3, 4}
    assert {(one.seed, one.warmup, one.dropout) for one in grid} == {(3, 0.2, 0.1)}
