"""Fine-tuning a left-to-right checkpoint: it stays causal, and a row is read from its last token."""

import dataclasses

import pytest
import torch
import transformers

import fastbert
from fastbert.finetuning.data import DataOptions
from fastbert.finetuning.model import load_model
from fastbert.finetuning.options import Options, Setting
from fastbert.finetuning.run import finetune
from fastbert.finetuning.task_types import load_task
from fastbert.model.variants import left_to_right as direction
from fastbert.pretraining.objectives import Objective
from fastbert.tasks.features import collate, predict
from fastbert.utils.checkpoints import open_checkpoint
from fastbert.utils.errors import InputError
from tests.finetuning.small_tasks import write_checkpoint, write_files

FAST = Setting(batch_size=8, learning_rate=5e-3, epochs=6, dropout=0.0)


@pytest.fixture
def causal(tmp_path) -> str:
    return str(write_checkpoint(tmp_path / "causal", class_name="BertLMHeadModel", is_decoder=True))


@pytest.mark.parametrize("task", ["classify", "choice", "tag"])
def test_a_left_to_right_checkpoint_learns_tasks_and_stays_causal(task, causal, tmp_path, console):
    train, evaluation = write_files(tmp_path / "files", task)
    data = DataOptions(train, evaluation, max_length=32)
    report = finetune(Options(task, causal, data, tmp_path / "out", FAST), console)
    assert report["degenerate"] is None
    checkpoint = open_checkpoint(str(tmp_path / "out"))
    assert checkpoint.config.is_decoder
    features = load_task(task, data, checkpoint)
    model = direction.head_class(features.head, checkpoint.config).from_pretrained(checkpoint.path).eval()
    scores = features.score(predict(model, features.evaluation))
    assert scores[features.headline] == pytest.approx(report["score"])
    batch = collate(features.evaluation[:1])
    ids = batch["input_ids"].clone()
    ids[-1:] = 6  # the last token
    bounds = {name: batch[name] for name in ("cu_seqlens", "max_seqlen")}
    before, after = (model.bert(one, **bounds).last_hidden_state for one in (batch["input_ids"], ids))
    assert torch.equal(before[:-1], after[:-1])
    assert not torch.equal(before[-1], after[-1])


def test_a_row_is_read_from_its_last_token(causal):
    """Packed and padded on either side; from the first token all rows would look the same."""
    config = transformers.BertConfig.from_pretrained(causal, num_labels=3)
    torch.manual_seed(0)
    model = direction.head_class("BertForSequenceClassification", config).from_pretrained(causal, config=config).eval()
    ids, lengths = torch.tensor([2, 5, 6, 3, 2, 7, 3]), [4, 3]
    inputs = {"cu_seqlens": torch.tensor([0, 4, 7], dtype=torch.int32), "max_seqlen": 4}
    packed = model(ids, **inputs).logits
    assert (packed[0] - packed[1]).abs().max() > 1e-2
    rows = torch.nn.utils.rnn.pad_sequence(ids.split(lengths), batch_first=True)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    torch.testing.assert_close(model(rows, attention_mask=mask).logits, packed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(rows[1:, :3]).logits, packed[1:], rtol=1e-5, atol=1e-5)
    left = torch.tensor([[2, 5, 6, 3], [0, 2, 7, 3]])
    places = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2]])
    padded_left = model(left, attention_mask=mask.flip(1).sort(1).values, position_ids=places).logits
    torch.testing.assert_close(padded_left, packed, rtol=1e-5, atol=1e-5)
    states = model(ids, **inputs, output_hidden_states=True, return_dict=False)
    assert len(states[1]) == config.num_hidden_layers + 1
    with pytest.raises(ValueError, match=r"attention_mask of shape \(batch, seq\)"):
        model(rows, attention_mask=mask[:, None].expand(-1, 4, -1))


@pytest.mark.parametrize("task", ["classify", "choice", "tag", "qa"])
def test_a_shallow_checkpoint_learns_tasks_and_keeps_its_halves_apart(task, tmp_path, console):
    config = write_shallow(tmp_path / "shallow")
    train, evaluation = write_files(tmp_path / "files", task)
    data = DataOptions(train, evaluation, max_length=32)
    setting = dataclasses.replace(FAST, epochs=10)
    report = finetune(Options(task, str(tmp_path / "shallow"), data, tmp_path / "out", setting), console)
    assert report["degenerate"] is None
    checkpoint = open_checkpoint(str(tmp_path / "out"))
    features = load_task(task, data, checkpoint)
    model = direction.head_class(features.head, checkpoint.config).from_pretrained(checkpoint.path).eval()
    assert features.score(predict(model, features.evaluation))[features.headline] == pytest.approx(report["score"])
    batch = collate(features.evaluation[:1])
    ids, bounds = batch["input_ids"].clone(), {name: batch[name] for name in ("cu_seqlens", "max_seqlen")}
    ids[len(ids) // 2] = 6 if ids[len(ids) // 2] != 6 else 7
    states = [model.bert(one, **bounds).last_hidden_state for one in (batch["input_ids"], ids)]
    left, right = (states[0] - states[1]).abs().split(config.hidden_size // 2, 1)
    assert left[: len(ids) // 2].max() == 0.0
    assert right[len(ids) // 2 + 1 :].max() == 0.0
    assert min(left.max(), right.max()) > 1e-3


def write_shallow(folder):
    """As pre-training leaves it, without training."""
    write_checkpoint(folder)
    config = transformers.BertConfig.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    objective = Objective("shallow", next_sentence=False)
    objective.prepare(config)
    torch.manual_seed(0)
    objective.model(config).save_pretrained(folder)
    return config


def test_transformers_does_not_take_the_last_token_for_the_first(causal, tmp_path, console):
    train, evaluation = write_files(tmp_path / "files", "classify", 16)
    data = DataOptions(train, evaluation, max_length=32)
    finetune(Options("classify", causal, data, tmp_path / "out", FAST), console)
    _, found = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert sorted(found["missing_keys"]) == ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]


@pytest.mark.parametrize("direction_of", ["left", "shallow"])
def test_inference_reads_the_folder_as_it_was_trained(direction_of, causal, tmp_path, console):
    start = causal
    if direction_of == "shallow":
        start = str(tmp_path / "shallow")
        write_shallow(tmp_path / "shallow")
    files = {task: write_files(tmp_path / task, task, 16) for task in ("classify", "tag")}
    models = {}
    for task, (train, evaluation) in files.items():
        options = Options(task, start, DataOptions(train, evaluation, max_length=32), tmp_path / f"{task}-out", FAST)
        finetune(options, console)
        opened = open_checkpoint(str(options.out))
        features = load_task(task, options.data, opened)
        models[task] = features, predict(load_model(opened, features.head, features.settings)[0], features.evaluation)
    features, outputs = models["classify"]
    texts = [line.split(",")[0] for line in files["classify"][1].read_text().splitlines()[1:]]
    found = fastbert.classify(texts, str(tmp_path / "classify-out"))
    names = features.settings["id2label"]
    assert [one[0]["label"] for one in found] == [names[int(output.argmax())] for output in outputs]
    features, outputs = models["tag"]
    text = " ".join(features.tagged.examples[0].words)
    tagged = fastbert.tag(text, str(tmp_path / "tag-out"))
    assert tagged["tags"] == features.predicted_tags(outputs)[0]


def test_a_shallow_encoder_fills_no_masks(tmp_path):
    write_shallow(tmp_path / "shallow")
    with pytest.raises(InputError, match="over a shallow encoder, got BertForMaskedLM"):
        fastbert.fill_mask("red [MASK]", str(tmp_path / "shallow"))


def test_other_heads_are_fastberts():
    both, left = transformers.BertConfig(), transformers.BertConfig(is_decoder=True)
    assert direction.head_class("BertForSequenceClassification", both) is fastbert.BertForSequenceClassification
    assert direction.head_class("BertForTokenClassification", left) is fastbert.BertForTokenClassification
    with pytest.raises(ValueError, match="with a pooler, got one without"):
        direction.pool_last_token(fastbert.BertModel(transformers.BertConfig(**TINY_SIZE), add_pooling_layer=False))


TINY_SIZE = dict(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
