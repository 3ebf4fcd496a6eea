"""Fine-tuning on tags of every scheme, from any suffix: the model's labels, the scores, and tagging by what comes out."""

import gzip
import json
import random

import numpy as np
import pytest
import typer
from seqeval.metrics.sequence_labeling import get_entities
from typer.testing import CliRunner

from fastbert.cli.finetuning import finetune
from fastbert.cli.inference import classify, tag
from fastbert.finetuning.data import DataOptions
from fastbert.finetuning.task_types import load_task
from fastbert.utils.checkpoints import open_checkpoint
from fastbert.utils.errors import InputError
from tests.finetuning.small_tasks import CITIES, PEOPLE

SCHEMES = {  # the tags of: person, in, city city, city
    "IOB1": ["I-PER", "O", "I-LOC", "I-LOC", "B-LOC"],
    "IOB2": ["B-PER", "O", "B-LOC", "I-LOC", "B-LOC"],
    "BIOES": ["S-PER", "O", "B-LOC", "E-LOC", "S-LOC"],
    "BILOU": ["U-PER", "O", "B-LOC", "L-LOC", "U-LOC"],
    "no types": ["B", "O", "B", "I", "B"],
}
LABELS = {
    "IOB1": ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"],
    "IOB2": ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"],
    "BIOES": ["O", "B-LOC", "I-LOC", "E-LOC", "S-LOC", "B-PER", "I-PER", "E-PER", "S-PER"],
    "BILOU": ["O", "B-LOC", "I-LOC", "L-LOC", "U-LOC", "B-PER", "I-PER", "L-PER", "U-PER"],
    "no types": ["O", "B", "I"],
}


def write(folder, scheme: str, name: str = "a.conll", count: int = 48):
    rng = random.Random(name)
    sentences = []
    for _ in range(count):
        person, city = rng.choice(PEOPLE), rng.choice(CITIES)
        words = [person, "in", city, city, rng.choice(CITIES)]
        sentences.append("".join(f"{word} {one}\n" for word, one in zip(words, SCHEMES[scheme])))
    content = "\n".join(sentences).encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder / name


def loaded(checkpoint, train, evaluation):
    return load_task("tag", DataOptions(train, evaluation), open_checkpoint(checkpoint))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_labels_and_scores_are_those_of_the_scheme(tmp_path, checkpoint, scheme):
    task = loaded(checkpoint, write(tmp_path, scheme), write(tmp_path, scheme, "b.conll"))
    labels = list(task.settings["id2label"].values())
    assert labels == LABELS[scheme]
    # logits that say exactly the tags: every entity is found, whichever the scheme
    right = [feature.labels["labels"] for feature in task.evaluation]
    outputs = [np.eye(len(labels))[np.maximum(one, 0)] * 9 for one in right]
    assert task.score(outputs) == {"f1": 1.0, "precision": 1.0, "recall": 1.0, "accuracy": 1.0}
    types, counts = task.confusion(outputs)
    assert types == ["O", *(["_"] if scheme == "no types" else ["LOC", "PER"])]
    assert counts.trace() == counts.sum() == 5 * 48
    # all O but the last word: one entity in three, none too many
    tags = [SCHEMES[scheme][-1] if word == 4 else "O" for word in range(5)]
    numbers = [[0, *(labels.index(one) for one in tags), 0] for _ in right]
    scores = task.score([np.eye(len(labels))[one] * 9 for one in numbers])
    assert (scores["precision"], scores["recall"]) == (1.0, pytest.approx(1 / 3))


def test_evaluation_has_the_scheme_of_training(tmp_path, checkpoint):
    train = write(tmp_path, "IOB2")
    with pytest.raises(InputError, match=r"expected a tag of BIO as in the training data, got 'S-PER' in line 1 of .*b\.conll"):
        loaded(checkpoint, train, write(tmp_path, "BIOES", "b.conll"))
    with pytest.raises(InputError, match=r"expected a type of the training data \(LOC, PER\), got 'B' in line 1 of .*c\.conll"):
        loaded(checkpoint, train, write(tmp_path, "no types", "c.conll"))
    (tmp_path / "d.jsonl").write_text(json.dumps({"tokens": ["anna"], "tags": ["U-PER"]}))
    with pytest.raises(InputError, match=r"expected a tag of BIO as in the training data, got 'U-PER' in line 1 of .*d\.jsonl"):
        loaded(checkpoint, train, tmp_path / "d.jsonl")
    loaded(checkpoint, train, write(tmp_path, "IOB1", "e.conll"))


def command(*functions):
    found = typer.Typer(pretty_exceptions_enable=False)
    for one in functions:
        found.command()(one)

    def run(*arguments: object, status: int = 0):
        done = CliRunner().invoke(found, [str(one) for one in arguments])
        assert done.exit_code == status, done.output + repr(done.exception)
        return done

    return run


@pytest.mark.parametrize("scheme", ["BIOES", "no types"])
def test_what_is_trained_on_a_file_tags_that_file(tmp_path, checkpoint, scheme):
    """From the command line: training on odd names with --format, then tagging the same file, words as they are."""
    run = command(finetune, tag)
    train, evaluation, out = write(tmp_path, scheme, "eng.train"), write(tmp_path, scheme, "eng.testa"), tmp_path / "out"
    arguments = ["finetune", "tag", "--model", checkpoint, "--train", train, "--eval", evaluation, "--out", out]
    arguments += ["--epochs", 8, "--batch-size", 8, "--learning-rate", "3e-3"]
    done = run(*arguments, status=2)
    assert "expected a file that ends in .conll, .bio, .iob" in done.output.replace("\n", "")
    assert not out.exists()
    run(*arguments, "--format", "conll")
    packed = write(tmp_path, scheme, "b.conll.gz", 12)
    rows = [json.loads(line) for line in run("tag", "--model", out, "--file", packed).stdout.split("\n") if line]
    gold = [row["2"] for row in rows]
    assert gold == [SCHEMES[scheme]] * 12
    assert np.mean([row["tags"] == one for row, one in zip(rows, gold)]) > 0.9
    for row in rows:
        assert [one["entity_group"] for one in row["entities"]] == [kind for kind, _, _ in get_entities(row["tags"])]


def test_a_packed_table_is_trained_on_and_classified(tmp_path, checkpoint):
    run = command(finetune, classify)
    rows = [{"id": number, "Text": f"{color} dog", "label": color} for number, color in enumerate(["red", "blue"] * 8)]
    for name in ("train.json.gz", "eval.json.gz"):
        (tmp_path / name).write_bytes(gzip.compress(json.dumps({"data": rows}).encode()))
    files = ["--train", tmp_path / "train.json.gz", "--eval", tmp_path / "eval.json.gz", "--out", tmp_path / "out"]
    run("finetune", "classify", "--model", checkpoint, *files, "--epochs", 8, "--batch-size", 8, "--learning-rate", "3e-3")
    done = run("classify", "--model", tmp_path / "out", "--file", tmp_path / "eval.json.gz")
    found = [json.loads(line) for line in done.stdout.split("\n") if line]
    assert [row["id"] for row in found] == list(range(16))
    assert np.mean([row["label"] == row["labels"][0]["label"] for row in found]) > 0.9
