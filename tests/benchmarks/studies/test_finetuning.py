"""The comparison of fine-tuning with transformers: both learn from the same batches, and the tables tell the truth."""

import json
import statistics

import numpy as np
import pytest
import transformers
from rich.console import Console

from benchmarks.studies import finetuning
from benchmarks.studies.finetuning import CONTENDERS, FASTBERT, TRANSFORMERS, Comparison, compare
from benchmarks.studies.finetuning_peer import predict_padded
from benchmarks.studies.finetuning_table import agreement, ratio, standard_error
from benchmarks.studies.subsets import subset
from benchmarks.studies.tasks import parse_task
from fastbert.finetuning.data import DataOptions
from fastbert.finetuning.model import load_model
from fastbert.finetuning.options import Setting
from fastbert.finetuning.task_types import load_task
from fastbert.tasks.features import predict
from fastbert.utils.checkpoints import open_checkpoint
from fastbert.utils.errors import InputError
from tests.finetuning.small_tasks import write_files

KINDS = ("classify", "pair", "qa", "tag")


@pytest.mark.parametrize("kind", KINDS)
def test_without_dropout_both_end_with_the_same_scores(kind, tmp_path, checkpoint):
    files = write_files(tmp_path, kind, count=40)
    comparison = Comparison(str(checkpoint), Setting(batch_size=8, learning_rate=1e-3, epochs=1, dropout=0.0), 24, 8)
    tasks = [parse_task(f"{kind}={files[0]},{files[1]}")]
    record = compare(comparison, tasks, 2, tmp_path / "record.json", Console(quiet=True))
    (task,) = record["tasks"].values()
    assert task["examples"] == 24
    assert set(task["runs"]) == {"0", "1"}
    for run in task["runs"].values():
        assert set(run) == set(CONTENDERS)
        assert run[FASTBERT]["padding"] == 0.0
        assert run[TRANSFORMERS]["metrics"] == pytest.approx(run[FASTBERT]["metrics"], abs=1e-6)
        assert (run[TRANSFORMERS]["padding"] > 0.0) == (kind in ("classify", "pair"))  # the others' rows are of one length
    assert json.loads((tmp_path / "record.json").read_text()) == record


def test_what_is_finished_is_not_run_again(tmp_path, checkpoint, monkeypatch):
    files = write_files(tmp_path, "classify", count=16)
    comparison = Comparison(str(checkpoint), Setting(batch_size=8, epochs=1), 8, 4)
    tasks, out = [parse_task(f"classify={files[0]},{files[1]}")], tmp_path / "record.json"
    first = compare(comparison, tasks, 1, out, Console(quiet=True))
    seeds = []
    train = finetuning.train

    def watched(name, task, opened, setting, console):
        seeds.append(setting.seed)
        return train(name, task, opened, setting, console)

    monkeypatch.setattr(finetuning, "train", watched)
    second = compare(comparison, tasks, 2, out, Console(quiet=True))
    assert seeds == [1, 1, 1]
    name = tasks[0].name
    assert second["tasks"][name]["runs"]["0"] == first["tasks"][name]["runs"]["0"]
    with pytest.raises(InputError, match="expected examples 8"):
        compare(Comparison(str(checkpoint), comparison.setting, 9, 4), tasks, 1, out, Console(quiet=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_subset_is_scored_as_its_examples_are(kind, tmp_path, checkpoint):
    opened = open_checkpoint(checkpoint)
    task = load_task(kind, DataOptions(*write_files(tmp_path, kind, count=60), max_length=16), opened)
    model, _ = load_model(opened, task.head, task.settings, dropout=0.0)
    few = subset(task, 10, 12)
    assert len(few.train) == 10
    assert {id(one) for one in few.evaluation} < {id(one) for one in task.evaluation}
    everything = subset(task, None, None)
    assert everything.score(predict(model, everything.evaluation)) == task.score(predict(model, task.evaluation))
    assert set(few.score(predict(model, few.evaluation))) == set(task.score(predict(model, task.evaluation)))
    again = subset(task, 10, 12)
    assert [id(one) for one in again.evaluation] == [id(one) for one in few.evaluation]


@pytest.mark.parametrize("kind", KINDS)
def test_padded_outputs_are_the_packed_ones(kind, tmp_path, checkpoint):
    opened = open_checkpoint(checkpoint)
    task = load_task(kind, DataOptions(*write_files(tmp_path, kind, count=40)), opened)
    model, _ = load_model(opened, task.head, task.settings, dropout=0.0)
    peer = getattr(transformers, task.head)(model.config)
    peer.load_state_dict(model.state_dict())
    for one, other in zip(predict(model, task.evaluation), predict_padded(peer, task.evaluation), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=1e-4)


def test_two_means_are_told_apart_by_their_standard_error():
    scores, others = [0.90, 0.92, 0.91], [0.89, 0.93, 0.91]
    by_hand = ((statistics.variance(scores) + statistics.variance(others)) / 3) ** 0.5
    assert standard_error(scores, others) == pytest.approx(by_hand)
    assert "within" in agreement(scores, others)
    assert "BEYOND" in agreement(scores, [0.80, 0.81, 0.82])
    assert agreement([0.5], [0.5]) == "+0.0000: no verdict from one seed"
    with pytest.raises(ValueError, match="at least two"):
        standard_error([0.5], [0.5, 0.6])


def test_the_ratio_is_of_runs_that_followed_each_other():
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 1.0]) == 3.0
