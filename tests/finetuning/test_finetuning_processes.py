"""Fine-tuning on two processes (DDP over gloo) beside one: the same steps, losses, weights and scores."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastbert.finetuning.model import load_model
from fastbert.finetuning.run import finetune
from fastbert.finetuning.task_types import load_task
from fastbert.model.variants.frozen_heads import Frozen
from fastbert.tasks.features import collate, loss_terms
from fastbert.utils.checkpoints import open_checkpoint
from fastbert.utils.errors import InputError
from tests import forked
from tests.finetuning.several_runs import GRID, KINDS, options_of, run_all
from tests.finetuning.small_tasks import write_files

HERE = Path(__file__).parent
# What a softmax takes no notice of: the gradient is rounding alone, of which Adam makes steps of full size.
UNMOVED = dict.fromkeys(KINDS, ("key.bias",)) | {"qa": ("key.bias", "layer.1.output.LayerNorm.bias", "qa_outputs.bias")}


@pytest.fixture(scope="module")
def outcomes(checkpoint, tmp_path_factory) -> tuple[dict, list[dict], Path, Path]:
    """What one process returned, what each of two did, and the folders."""
    alone, together = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    path = os.pathsep.join((str(HERE.parent.parent), str(HERE)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = forked.run(str(HERE / "several_runs.py"), checkpoint, str(together), environment=environment, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((together / f"process-{number}.json").read_text()) for number in range(2)]
    return run_all(checkpoint, alone), found, alone, together


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_losses_weights_and_scores_of_one(outcomes, kind):
    alone, together, *folders = outcomes
    one, two = alone[kind][0], together[0][kind][0]
    assert [entry["step"] for entry in two["history"]] == [entry["step"] for entry in one["history"]]
    assert one["steps"] == 2 * 4 if kind != "qa" else 2 * 7
    for tested, reference in zip(one["history"], two["history"]):
        for name in {"loss", "grad_norm", "learning_rate", "epoch"} & tested.keys():
            assert reference[name] == pytest.approx(tested[name], rel=1e-4), (kind, name, tested["step"])
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
    first, second = (load_file(folder / kind / "model.safetensors") for folder in folders)
    assert second.keys() == first.keys()
    for name in first:
        if name.endswith(UNMOVED[kind]):
            continue
        torch.testing.assert_close(second[name], first[name], rtol=1e-3, atol=1e-4)


def test_all_processes_return_what_the_first_wrote_and_only_it_prints(outcomes):
    alone, (first, second), _, folder = outcomes
    said, silence = first.pop("command")[1], second.pop("command")[1]
    assert "is finished, with these options" in said
    assert "accuracy" in said
    assert silence == ""
    for kind, (report, printed) in first.items():
        assert second[kind] == [report, ""]
        assert printed
        written = folder / kind.removesuffix(" again")
        assert json.loads((written / "report.json").read_text()) == report
        assert [one.name for one in written.iterdir() if one.name.startswith(".")] == []
    assert alone.keys() == first.keys()


def test_a_grid_ends_the_same_and_is_not_run_again(outcomes):
    alone, (first, _), *_ = outcomes
    one, two = alone[GRID][0], first[GRID][0]
    assert two["best_run"] == one["best_run"]
    assert [entry["scores"] for entry in two["settings"]] == [entry["scores"] for entry in one["settings"]]
    again, printed = first[f"{GRID} again"]
    assert again == two
    assert "is finished, with these options" in printed


def test_a_batch_size_that_the_processes_do_not_divide_is_refused(checkpoint, tmp_path, console, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    options = options_of("classify", checkpoint, tmp_path)
    message = r"expected a batch size \(of a step, over all processes\) that the 3 processes divide, got 8"
    with pytest.raises(InputError, match=message):
        finetune(options, console)
    grid = tuple(dataclasses.replace(options.setting, batch_size=size) for size in (6, 8))
    with pytest.raises(InputError, match=message):
        finetune(dataclasses.replace(options, grid=grid), console)
    frozen = dataclasses.replace(options, frozen=Frozen("last", "linear", None, None))
    with pytest.raises(InputError, match=r"expected one process with --frozen, .*, got 3"):
        finetune(frozen, console)
    assert not options.out.exists()


@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("kind", ["classify", "tag", "qa", "choice"])
def test_every_weight_gets_a_gradient(kind, is_decoder, checkpoint, tmp_path):
    """Else DDP would wait for it: it does not look for unused ones."""
    options = options_of(kind, checkpoint, tmp_path)
    opened = open_checkpoint(checkpoint)
    opened.config.is_decoder = is_decoder
    task = load_task(kind, options.data, opened)
    model, _ = load_model(opened, task.head, task.settings)
    model(**collate(task.train[:2])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_terms_of_a_loss_are_its_labelled_tokens_or_rows(checkpoint, tmp_path):
    write_files(tmp_path, "tag")
    features = load_task("tag", options_of("tag", checkpoint, tmp_path).data, open_checkpoint(checkpoint)).train
    assert [loss_terms(feature) for feature in features[:3]] == [5, 5, 5]  # words, without [CLS] and [SEP]
    rows = load_task("classify", options_of("classify", checkpoint, tmp_path).data, open_checkpoint(checkpoint)).train
    assert [loss_terms(feature) for feature in rows[:3]] == [1, 1, 1]
