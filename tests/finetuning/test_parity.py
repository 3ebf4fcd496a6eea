"""The same training as transformers' Trainer gives on padded batches: same weights, same order, same losses."""

import numpy as np
import pytest
import transformers

from fastbert.finetuning.data import DataOptions
from fastbert.finetuning.method import Method
from fastbert.finetuning.model import load_model
from fastbert.finetuning.options import Setting
from fastbert.finetuning.task_types import load_task
from fastbert.finetuning.trainer import FineTuner, training_arguments
from fastbert.utils.checkpoints import open_checkpoint
from tests.finetuning.small_tasks import padded, write_files


@pytest.mark.parametrize("kind", ["classify", "pair", "choice", "tag"])
def test_losses_are_those_of_transformers_trainer(kind, tmp_path, checkpoint):
    opened = open_checkpoint(checkpoint)
    task = load_task(kind, DataOptions(*write_files(tmp_path, kind, count=40), max_length=32), opened)
    transformers.set_seed(0)
    tested, _ = load_model(opened, task.head, task.settings, dropout=0.0)
    reference = getattr(transformers, task.head)(tested.config)
    reference.load_state_dict(tested.state_dict())
    setting = Setting(batch_size=7, learning_rate=1e-3, epochs=2, seed=4)
    arguments = training_arguments(setting, 12, tmp_path / "unused", "float32")
    ragged = FineTuner(tested, arguments, Method(task, opened))
    ragged.train()
    arguments.set_evaluate("no")
    other = transformers.Trainer(reference, arguments, train_dataset=task.train, data_collator=padded)
    other.train()
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (ragged, other)]
    assert len(losses[0]) >= 12
    np.testing.assert_allclose(*losses, atol=1e-4, rtol=1e-4)
    assert losses[0][-1] < losses[0][0]
