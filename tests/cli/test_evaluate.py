"""`fastbert evaluate` on the files that a model was fine-tuned with: the scores of its report."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from typer.testing import CliRunner

import fastbert
from fastbert.cli.app import app
from fastbert.finetuning import plots
from fastbert.finetuning.run import finetune
from fastbert.tasks.metrics import scores_by_type
from tests.finetuning.small_tasks import options_of, write_checkpoint
from tests.inference.tiny_checkpoints import save
from tests.pictures import stub_pictures

NAMES = {"regression": "pair", "qa2": "qa"}


def run(*arguments: object, status: int = 0):
    done = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert done.exit_code == status, done.output + repr(done.exception)
    return done


@pytest.fixture
def trained(tmp_path, request, monkeypatch):
    """(model, its evaluation file, its report) of a task that was learned in seconds."""
    stub_pictures(request, monkeypatch, plots)
    checkpoint = str(write_checkpoint(tmp_path / "tiny"))

    def made(task: str):
        options = options_of(task, tmp_path, checkpoint)
        report = finetune(options, Console(file=io.StringIO(), width=200))
        return options.out, options.data.evaluation, report

    return made


@pytest.mark.parametrize("task", ["classify", "pair", "regression", "tag", "qa", "qa2"])
def test_the_scores_are_those_of_fine_tuning(trained, tmp_path, task):
    model, file, report = trained(task)
    out = tmp_path / "scores.json"
    done = run(NAMES.get(task, task), "--model", model, "--file", file, "--json", out)
    assert max(map(len, done.stdout.splitlines())) <= 80
    found = json.loads(out.read_text())
    expected = report["metrics"]
    if task == "qa2":  # the model answers with the threshold that was best for F1
        assert found["metrics"]["f1"] == pytest.approx(expected["best_f1"], abs=1e-4)
        assert found["metrics"]["no_answer_f1"] > 50
        assert "gives no answer where that scores better by" in done.stderr
    else:
        assert found["metrics"] == pytest.approx(expected, abs=1e-4)
        assert report["score"] > report["baseline"]
    for name, value in found["metrics"].items():
        assert name in done.stdout
        assert (f"{value:.2f}" if task.startswith("qa") else f"{value:.4f}") in done.stdout
    assert (found["model"], found["file"]) == (str(model), str(file))


def labels_of(model: str, texts: list[str]) -> list[str]:
    return [labels[0]["label"] for labels in fastbert.classify(texts, model)]


def test_scores_of_each_label_and_the_matrix(tmp_path):
    names = ("bad", "fair", "good [x]")
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    model = save(tmp_path / "model", "BertForSequenceClassification", **labels)
    texts = [f"the {one} {two} ." for one in ("cat", "dog", "man", "red ball") for two in ("sat", "plays", "lost", "is", "was")]
    predicted = labels_of(model, texts)
    right = [names[number % 3] for number in range(len(texts))]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": one, "label": two}) + "\n" for one, two in zip(texts, right)))
    out = tmp_path / "scores.json"
    done = run("classify", "--model", model, "--file", file, "--json", out)
    found = json.loads(out.read_text())
    scores = precision_recall_fscore_support(right, predicted, labels=names, zero_division=0.0)
    for number, name in enumerate(names):
        assert list(found["labels"][name].values()) == pytest.approx([float(one[number]) for one in scores])
    assert found["confusion"]["labels"] == list(names)
    assert found["confusion"]["expected by predicted"] == confusion_matrix(right, predicted, labels=names).tolist()
    assert found["rows"] == 20
    for text in ("accuracy", "f1_macro", "precision", "good [x]", "expected by predicted"):
        assert text in done.stdout
    assert "20 rows, text = text, label = label" in done.stderr

    assert (
        "expected a new output, --overwrite"
        in run("classify", "--model", model, "--file", file, "--json", out, status=2).stderr
    )
    run("classify", "--model", model, "--file", file, "--json", out, "--overwrite")
    csv = tmp_path / "rows.csv"
    csv.write_text("".join(f"{two},{one}\n" for one, two in zip(texts, right)))
    columns = ("--no-header", "--column", "text=2", "--column", "label=1")
    assert run("classify", "--model", model, "--file", csv, *columns).stdout == done.stdout


def test_labels_without_names_are_counted(tmp_path):
    model = save(tmp_path / "model", "BertForSequenceClassification", num_labels=3)
    file = tmp_path / "rows.csv"
    file.write_text("text,label\nthe cat,0\na dog,2\nthe man,1\n")
    done = run("classify", "--model", model, "--file", file)
    assert "the model's labels have no names: 0 is read as LABEL_0, and so on" in done.stderr
    predicted = labels_of(model, ["the cat", "a dog", "the man"])
    share = np.mean([one == two for one, two in zip(predicted, ("LABEL_0", "LABEL_2", "LABEL_1"))])
    assert f"{share:.4f}" in done.stdout


def test_many_labels_fit_into_80_columns(tmp_path):
    names = [f"a rather long name of the label number {number}" for number in range(40)]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    model = save(tmp_path / "model", "BertForSequenceClassification", **labels)
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "".join(f"the cat {'sat ' * number},{name}\n" for number, name in enumerate(names)))
    done = run("classify", "--model", model, "--file", file)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "most frequent mistakes" in done.stdout


def test_scores_by_type_are_seqevals():
    right = [["B-PER", "I-PER", "O", "B-LOC"], ["U-LOC", "O", "O", "O"]]
    found = [["B-PER", "I-PER", "O", "B-PER"], ["B-LOC", "O", "O", "O"]]
    assert scores_by_type(found, right) == {
        "LOC": {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
        "PER": {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1},
    }
    assert scores_by_type([["O"]], [["O"]]) == {}


def test_what_cannot_be_scored_is_one_line(tmp_path):
    classifier = save(tmp_path / "a", "BertForSequenceClassification", num_labels=2)
    tagger = save(tmp_path / "b", "BertForTokenClassification", id2label={0: "O", 1: "B-PER"}, label2id={"O": 0, "B-PER": 1})
    several = Path(shutil.copytree(classifier, tmp_path / "c"))
    config = json.loads((several / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
    (several / "config.json").write_text(json.dumps(config))
    rows, words = tmp_path / "rows.csv", tmp_path / "words.conll"
    rows.write_text("text,label\nthe cat,LABEL_0\na dog,other\n")
    words.write_text("the O\ncat B-LOC\n")
    for arguments, message in (
        (("classify", classifier, rows), f"expected a label of the model (LABEL_0, LABEL_1), got 'other' in line 3 of {rows}"),
        (("classify", tagger, rows), "expected a checkpoint of BertForSequenceClassification, got one of BertForTokenClass"),
        (("classify", several, rows), "expected a model that gives a text one label, got a multi-label one"),
        (("pair", classifier, rows), f"expected to find text and pair among the columns of {rows}"),
        (("tag", tagger, words), f"expected a type of the model (PER), got 'B-LOC' in line 2 of {words}"),
        (("tag", tagger, words, "--column", "text=a"), "expected no --column for tag, got text"),
        (("answer", classifier, rows), "expected a checkpoint of BertForQuestionAnswering"),
        (
            ("classify", classifier, rows, "--column", "word=a"),
            "expected --column ROLE=NAME with a role among text, pair, label",
        ),
        (("classify", classifier, rows, "--overwrite"), "expected --json beside --overwrite"),
        (("classify", classifier, rows, "--json", tmp_path / "no" / "a.json"), "expected a folder that exists for"),
    ):
        task, model, file, *more = arguments
        (line,) = run(task, "--model", model, "--file", file, *more, status=2).stderr.splitlines()
        assert message in line
