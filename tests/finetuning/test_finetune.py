"""Fine-tuning from files to a folder that transformers loads."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
import transformers

import fastbert
from fastbert.finetuning import run, single_run
from fastbert.finetuning.data import DataOptions
from fastbert.finetuning.model import load_model
from fastbert.finetuning.options import Options, Setting
from fastbert.finetuning.run import finetune
from fastbert.finetuning.task_types import load_task
from fastbert.utils.checkpoints import open_checkpoint
from fastbert.utils.errors import InputError
from tests.finetuning.small_tasks import FAST, options_of, printed, write_checkpoint, write_files


@pytest.mark.parametrize(
    ("kind", "auto", "least"),
    [
        ("classify", transformers.AutoModelForSequenceClassification, 0.9),
        ("pair", transformers.AutoModelForSequenceClassification, 0.9),
        ("regression", transformers.AutoModelForSequenceClassification, 0.9),
        ("choice", transformers.AutoModelForMultipleChoice, 0.9),
        ("tag", transformers.AutoModelForTokenClassification, 0.9),
        ("qa", transformers.AutoModelForQuestionAnswering, 90.0),
        ("qa2", transformers.AutoModelForQuestionAnswering, 80.0),
    ],
)
def test_every_task_learns_and_its_folder_loads_in_transformers(kind, auto, least, tmp_path, checkpoint, console):
    setting = dataclasses.replace(FAST, epochs=10) if kind in ("pair", "choice", "qa2", "qa") else FAST
    options = options_of(kind, tmp_path, checkpoint, setting)
    report = finetune(options, console)
    assert report["score"] == report["metrics"][report["headline"]] >= least
    assert report["degenerate"] is None
    assert report == json.loads((options.out / "report.json").read_text())
    assert (options.out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (options.out / "confusion.png").exists() == (kind in ("classify", "pair", "tag"))
    assert not [file for file in options.out.iterdir() if file.name.startswith(".")]
    assert "new: " in printed(console)

    # transformers' own class and fastbert's score the same from the folder alone
    task = load_task(options.task, options.data, open_checkpoint(str(options.out)))
    model, new = load_model(open_checkpoint(str(options.out)), task.head, task.settings)
    assert new == []
    reference = auto.from_pretrained(options.out).eval()
    assert type(reference).__name__ == task.head
    state = reference.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    from fastbert.tasks.features import predict

    outputs = predict(model, task.evaluation)
    assert task.score(outputs) == pytest.approx(report["metrics"])
    ids, types = task.evaluation[0].sequences[0]
    if kind != "choice":
        batch = {"input_ids": torch.tensor(ids[None]).long(), "token_type_ids": torch.tensor(types[None]).long()}
        found = reference(**batch)
        logits = found.logits if "logits" in found else torch.stack([found.start_logits, found.end_logits], -1)
        np.testing.assert_allclose(outputs[0], logits[0].detach().numpy(), atol=1e-4)
    expected = {"task": options.task, "max_length": 32}
    assert expected.items() <= reference.config.fastbert_task.items()
    assert ("null_threshold" in reference.config.fastbert_task) == (kind == "qa2")


def test_a_pipeline_speaks_the_labels_of_the_file(tmp_path, checkpoint, console):
    options = options_of("classify", tmp_path / "a", checkpoint)
    finetune(options, console)
    classify = transformers.pipeline("text-classification", model=str(options.out))
    assert [one["label"] for one in classify(["red dog runs", "a blue cat"])] == ["red", "blue"]
    options = options_of("tag", tmp_path / "b", checkpoint)
    finetune(options, console)
    tag = transformers.pipeline("token-classification", model=str(options.out), aggregation_strategy="first")
    found = [(one["entity_group"], one["start"], one["end"]) for one in tag("anna in rome rome dog")]
    assert found == [("PER", 0, 4), ("LOC", 8, 17)]


def test_saving_is_silent(tmp_path, checkpoint, console, capfd):
    """transformers' bar of the files it writes says nothing to a user."""
    finetune(options_of("classify", tmp_path, checkpoint, dataclasses.replace(FAST, epochs=1)), console)
    assert "Writing model shards" not in capfd.readouterr().err


def test_a_finished_run_is_not_run_again_and_other_options_are_refused(tmp_path, checkpoint, console, monkeypatch):
    options = options_of("classify", tmp_path, checkpoint, dataclasses.replace(FAST, epochs=1))
    report = finetune(options, console)
    monkeypatch.setattr(run, "single_run", None)
    with pytest.raises(InputError, match=r"got .*out, which is finished"):
        finetune(options, console)
    assert finetune(options, console, resume=True) == report
    assert "is finished, with these options; nothing is left to compute" in printed(console)
    other = dataclasses.replace(options, setting=dataclasses.replace(options.setting, seed=1))
    with pytest.raises(InputError, match=r"expected setting seed 0, with which .*out was started, got 1"):
        finetune(other, console, resume=True)
    options.data.train.write_text(options.data.train.read_text() + "red dog,red\n")
    with pytest.raises(InputError, match=r"expected the data train with which .*out was started, got other content"):
        finetune(options, console, resume=True)


def test_the_same_seed_gives_the_same_weights(tmp_path, checkpoint, console):
    setting = Setting(batch_size=8, learning_rate=1e-3, epochs=1)
    states = []
    for name in ("a", "b", "c"):
        options = options_of("classify", tmp_path / name, checkpoint, dataclasses.replace(setting, seed=int(name == "c")))
        finetune(options, console)
        states.append(fastbert.BertForSequenceClassification.from_pretrained(options.out).state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    assert not torch.equal(states[0]["classifier.weight"], states[2]["classifier.weight"])


def test_a_run_that_learned_nothing_is_recognised_by_its_score_or_its_loss(tmp_path, checkpoint):
    task = load_task("classify", options_of("classify", tmp_path, checkpoint).data, open_checkpoint(checkpoint))
    shares = np.bincount(task.expected) / len(task.expected)
    assert task.baseline() == shares.max()
    constant = task.score([np.eye(len(shares))[shares.argmax()]] * len(task.expected))
    assert "accuracy" in single_run.why_degenerate(task, constant, [{"loss": 1.0}])
    better = {**constant, "accuracy": constant["accuracy"] + 0.01}
    assert single_run.why_degenerate(task, better, [{"loss": 1.0}]) is None
    assert single_run.why_degenerate(task, better, [{"loss": 1.0}, {"loss": float("nan")}]) == "the training loss is not finite"
    assert single_run.why_degenerate(task, {"accuracy": float("nan")}, []) is not None


# Checkpoints


def test_new_weights_are_named_and_a_head_of_other_labels_is_new(tmp_path, checkpoint, console):
    options = options_of("classify", tmp_path / "a", checkpoint, dataclasses.replace(FAST, epochs=1))
    assert finetune(options, console)["new_parameters"] == ["classifier.bias", "classifier.weight"]
    again = options_of("pair", tmp_path / "b", str(options.out), dataclasses.replace(FAST, epochs=1))
    assert finetune(again, console)["new_parameters"] == ["classifier.bias", "classifier.weight"]
    further = options_of("classify", tmp_path / "c", str(options.out), dataclasses.replace(FAST, epochs=1))
    assert finetune(further, console)["new_parameters"] == []


def test_a_pre_trained_model_without_a_pooler_gets_one(tmp_path, console):
    folder = write_checkpoint(tmp_path / "mlm", class_name="BertForMaskedLM")
    options = options_of("classify", tmp_path, str(folder), dataclasses.replace(FAST, epochs=1), count=16)
    wanted = ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"]
    assert finetune(options, console)["new_parameters"] == wanted


def test_labels_keep_the_order_of_a_checkpoint_that_knows_them(tmp_path, console):
    names = {0: "red", 1: "blue", 2: "green"}
    folder = write_checkpoint(
        tmp_path / "m", class_name="BertForSequenceClassification", id2label=names, label2id={v: k for k, v in names.items()}
    )
    task = load_task("classify", options_of("classify", tmp_path, "").data, open_checkpoint(str(folder)))
    assert task.settings["id2label"] == names


def test_an_encoder_that_lacks_weights_is_refused(tmp_path, checkpoint, console):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    options = options_of("classify", tmp_path, str(broken))
    name = r"bert\.encoder\.layer\.1\.output\.dense\.weight"
    with pytest.raises(InputError, match=rf"expected all weights of the encoder in .*broken, got none for {name}"):
        finetune(options, console)
    weights["encoder.layer.1.output.dense.weight"] = torch.zeros(3, 3)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"expected the encoder's own shapes in .*broken, got others for {name}"):
        finetune(options, console)
    assert not options.out.exists()


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, console):
    config = transformers.DistilBertConfig(vocab_size=30, dim=32, n_layers=1, n_heads=2, hidden_dim=64)
    transformers.DistilBertModel(config).save_pretrained(tmp_path / "distil")
    options = options_of("classify", tmp_path, str(tmp_path / "distil"))
    with pytest.raises(InputError, match=r"expected a checkpoint of model type 'bert', got 'distilbert'"):
        finetune(options, console)
    assert not options.out.exists()


# Files


@pytest.mark.parametrize(
    ("kind", "name", "line", "message"),
    [
        ("classify", "eval.csv", "red dog,purple\n", r"expected a label of the training data \(blue, .*\), got 'purple' in "),
        ("classify", "train.csv", "red dog\n", r"expected 2 fields \(text, label\), got 1 in line 66 of .*train\.csv"),
        ("tag", "eval.conll", "\nanna O\nrome B-CITY\n", r"expected a type of the training data \(LOC, .*, got 'B-CITY' in "),
        ("regression", "eval.csv", "red dog,dog,high\n", r"expected a number as label, got 'high' in line 34 of .*eval\.csv"),
        (
            "choice",
            "eval.jsonl",
            '\n{"context": "a", "choices": ["x", "y"], "label": 0}',
            r"expected 3 endings as before, got 2 in line 33 of .*eval\.jsonl",
        ),
    ],
)
def test_bad_files_are_errors_with_their_place_and_nothing_is_written(kind, name, line, message, tmp_path, checkpoint, console):
    options = options_of(kind, tmp_path, checkpoint)
    file = tmp_path / "files" / name
    file.write_text(file.read_text() + line)
    with pytest.raises(InputError, match=message) as found:
        finetune(options, console)
    assert re.search(rf" in line \d+ of .*{re.escape(name)}", str(found.value))
    assert not options.out.exists()


def test_what_was_cut_is_mentioned(tmp_path, checkpoint, console):
    options = options_of("classify", tmp_path, checkpoint, dataclasses.replace(FAST, epochs=1), count=16)
    options.data.train.write_text(options.data.train.read_text() + "red " * 500 + ",red\n")
    report = finetune(options, console)
    assert any("1 of 17 longer than 32 tokens, and cut" in note for note in report["notes"])
    assert "text = text, label = label" in printed(console)


def test_a_folder_with_other_files_is_refused(tmp_path, checkpoint, console):
    options = options_of("classify", tmp_path, checkpoint)
    options.out.mkdir()
    (options.out / "thesis.txt").write_text("x")
    with pytest.raises(
        InputError, match=r"expected a new or empty folder, or one of `fastbert finetune`, got .*out with other files: thes"
    ):
        finetune(options, console)
    assert [file.name for file in options.out.iterdir()] == ["thesis.txt"]


def test_more_tokens_than_the_model_has_places_for_are_refused(tmp_path, checkpoint, console):
    options = options_of("classify", tmp_path, checkpoint)
    options = dataclasses.replace(options, data=dataclasses.replace(options.data, max_length=65))
    with pytest.raises(InputError, match="expected a max_length from 8 to 64, the model's positions, got 65"):
        finetune(options, console)


def test_long_sentences_and_contexts_are_scored_whole(tmp_path, checkpoint, console):
    train, _ = write_files(tmp_path / "files", "tag")
    words = ["anna", "in", "rome", "rome", "dog"] * 40
    tags = ["B-PER", "O", "B-LOC", "I-LOC", "O"] * 40
    long = tmp_path / "long.conll"
    long.write_text("".join(f"{word} {tag}\n" for word, tag in zip(words, tags)))
    options = Options("tag", checkpoint, DataOptions(train, long, max_length=32), tmp_path / "out", FAST)
    report = finetune(options, console)
    assert any("1 sentence in windows of 32 tokens with an overlap of 8" in note for note in report["notes"])
    counts = load_task("tag", options.data, open_checkpoint(str(options.out)))
    model, _ = load_model(open_checkpoint(str(options.out)), counts.head, counts.settings)
    from fastbert.tasks.features import predict

    outputs = predict(model, counts.evaluation)
    assert [len(one) for one in counts.predicted_tags(outputs)] == [200]
    names, matrix = counts.confusion(outputs)
    assert (names, matrix.sum()) == (["O", "LOC", "PER"], 200)
