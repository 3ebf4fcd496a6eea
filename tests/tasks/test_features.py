"""Packed batches and what comes out of them, against transformers on padded ones."""

import numpy as np
import pytest
import torch
import transformers

from fastbert.finetuning.data import DataOptions
from fastbert.finetuning.model import load_model
from fastbert.finetuning.task_types import load_task
from fastbert.tasks.features import Feature, batches_by_length, collate, predict
from fastbert.utils.checkpoints import open_checkpoint
from tests.finetuning.small_tasks import padded, write_checkpoint, write_files

KINDS = ("classify", "pair", "regression", "choice", "tag", "qa", "qa2")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("models") / "tiny"))


def task_of(kind, tmp_path, checkpoint):
    train, evaluation = write_files(tmp_path, kind, count=16)
    name = {"regression": "pair", "qa2": "qa"}.get(kind, kind)
    return load_task(name, DataOptions(train, evaluation, max_length=32), open_checkpoint(checkpoint))


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_transformers_on_a_padded_batch(kind, tmp_path, checkpoint):
    task = task_of(kind, tmp_path, checkpoint)
    torch.manual_seed(0)
    swapped, _ = load_model(open_checkpoint(checkpoint), task.head, task.settings, dropout=0.0)
    original = getattr(transformers, task.head)(swapped.config)
    original.load_state_dict(swapped.state_dict())
    features = task.train[:7]
    assert len({len(feature) for feature in features}) > 1 or kind in ("qa", "qa2", "tag")
    found = swapped.train()(**collate(features))
    batch = padded(features)
    if kind in ("qa", "qa2"):  # its softmax over padding is no part of the packed loss: one row at a time has none
        losses = [original.train()(**padded([feature])).loss for feature in features]
        wanted = torch.stack(losses).mean()
    else:
        wanted = original.train()(**batch).loss
    torch.testing.assert_close(found.loss, wanted, atol=1e-5, rtol=1e-5)
    found.loss.backward()
    wanted.backward()
    for (name, one), other in zip(swapped.named_parameters(), original.parameters()):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_come_back_in_order_and_as_alone(kind, tmp_path, checkpoint, monkeypatch):
    task = task_of(kind, tmp_path, checkpoint)
    torch.manual_seed(0)
    model, _ = load_model(open_checkpoint(checkpoint), task.head, task.settings)
    model.train()
    features = task.evaluation[:9]
    found = predict(model, features)
    assert model.training
    for feature, one in zip(features, found):
        np.testing.assert_allclose(one, predict(model, [feature])[0], atol=1e-5)
        rows = len(feature) if task.head in ("BertForTokenClassification", "BertForQuestionAnswering") else None
        assert one.shape[0] == (rows or task.settings["num_labels"])


def test_batches_by_length_hold_everything_once_within_their_tokens():
    rng = np.random.default_rng(0)
    features = [Feature(((np.zeros(length, np.int32),) * 2,)) for length in rng.integers(2, 90, 60)]
    batches = list(batches_by_length(features, tokens=64))
    assert sorted(number for batch in batches for number in batch) == list(range(60))
    assert all(len(batch) == 1 or sum(len(features[one]) for one in batch) <= 64 for batch in batches)
    flat = [len(features[number]) for batch in batches for number in batch]
    assert flat == sorted(flat, reverse=True)


def test_a_packed_batch_holds_no_padding():
    one, two = np.array([2, 7, 3], np.int32), np.array([2, 3], np.int32)
    batch = collate(
        [Feature(((one, one * 0), (two, two * 0)), {"labels": 1}), Feature(((two, two * 0), (one, one * 0)), {"labels": 0})]
    )
    assert batch["input_ids"].tolist() == [2, 7, 3, 2, 3, 2, 3, 2, 7, 3]
    assert batch["cu_seqlens"].tolist() == [0, 3, 5, 7, 10]
    assert batch["cu_seqlens"].dtype == torch.int32
    assert (batch["max_seqlen"], batch["num_choices"], batch["labels"].tolist()) == (3, 2, [1, 0])
