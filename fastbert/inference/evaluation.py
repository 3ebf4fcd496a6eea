"""`fastbert evaluate`: how well a saved model does on a labelled file, read and scored as fine-tuning does."""

import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastbert.tasks.metrics import (
    classification_metrics,
    entity_metrics,
    regression_metrics,
    scores_by_label,
    scores_by_type,
    squad_metrics,
)
from fastbert.tasks.sentences import SentenceExample, Sentences, read_sentences
from fastbert.tasks.squad import read_squad
from fastbert.tasks.tagged import Tagged, read_tagged
from fastbert.tasks.tags import OUTSIDE, tag_type
from fastbert.utils.errors import InputError
from fastbert.utils.installation import install_command

from .answering import Answering
from .classification import Classification
from .engine import Report, stream
from .residents import Model
from .rows import Row, Words
from .tagging import Tagging
from .task import Task

TASKS = ("classify", "pair", "tag", "answer", "qa")
NEEDED = {"sklearn": "scikit-learn", "scipy": "scipy", "seqeval": "seqeval"}
SHOWN_LABELS = 12


@dataclass(frozen=True)
class LabelledFile:
    """A labelled file.

    columns: names by role, text, pair and label, for `classify` and `pair`; the others are found by their usual names. header:
    whether the first row of a CSV or TSV names its columns. format: None for that of its suffix.
    """

    file: Path
    columns: dict[str, str] = field(default_factory=dict)
    header: bool = True
    format: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """What came of it.

    metrics: by name, shares of 1 but SQuAD's, in percent. labels: precision, recall, f1 and support by label or type of entity,
    none for numbers and answers. confusion: (labels, labels) counts, expected by predicted, for `classify` and `pair`; None
    where labels are numbers, and for the others. notes: what was read, left out and cut, for the user.
    """

    task: str
    rows: int
    metrics: dict[str, float]
    labels: dict[str, dict[str, float]] = field(default_factory=dict)
    confusion: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"task": self.task, "rows": self.rows, "metrics": self.metrics}
        if self.labels:
            found["labels"] = self.labels
        if self.confusion is not None:
            found["confusion"] = {"labels": list(self.labels), "expected by predicted": self.confusion.tolist()}
        return found | {"notes": self.notes}


def evaluate(
    task: str,
    model: Model,
    data: LabelledFile,
    *,
    max_length: int | None = None,
    batch_tokens: int | None = None,
    report: Report | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Evaluation:
    """Scores a model that can do the task, one of TASKS, on a file of its format.

    "qa" is "answer", by the name that fine-tuning has for it. The model answers as `classify`, `tag` and `answer` do, with the
    settings it was fine-tuned with. max_length: instead of the saved one, in tokens. report: see `engine.stream`.
    Raises InputError, naming file and line, for a file that fine-tuning would not read and a label that the model does not
    know, and, naming the checkpoint, for a model that cannot do the task; or where a library of the metrics is missing.
    """
    if task not in TASKS:
        raise InputError(f"expected a task among {', '.join(TASKS)}, got {task!r}")
    for library, name in NEEDED.items():
        if importlib.util.find_spec(library) is None:
            raise InputError(f"expected {name} to evaluate, got none installed: {install_command('train')}")
    with data.file.open("rb"):
        pass
    options: dict[str, Any] = {"max_length": max_length, "device": device, "dtype": dtype}
    run = _Run(batch_tokens, report)
    if task in ("classify", "pair"):
        return _sentences(task, Classification(model, **options), data, run)
    if task == "tag":
        return _tags(Tagging(model, **options), data, run)
    return _answers(Answering(model, **options), data, run)


@dataclass(frozen=True)
class _Run:
    batch_tokens: int | None
    report: Report | None

    def __call__(self, task: Task[Any], rows: Sequence[Row]) -> Iterator[Any]:
        """The result of each row."""
        return (result for _, result in stream(task, rows, batch_tokens=self.batch_tokens, report=self.report))


# Labels and numbers


def _sentences(name: str, task: Classification, data: LabelledFile, run: _Run) -> Evaluation:
    config = task.loaded.config
    if config.problem_type == "multi_label_classification":
        raise InputError(f"expected a model that gives a text one label, got a multi-label one in {task.loaded.name}")
    is_number = config.num_labels == 1
    read = read_sentences(
        data.file,
        pair=name == "pair",
        columns=data.columns,
        header=data.header,
        regression=is_number,
        format_=data.format,
    )
    notes = [f"{len(read.examples):,} rows, {', '.join(f'{role} = {column}' for role, column in read.columns.items())}"]
    if read.left_out:
        notes.append(f"{read.left_out:,} rows without a gold label are left out")
    rows = [Row(_value(one), f"{read.table.unit} {one.line} of {data.file}") for one in read.examples]
    if is_number:
        scores = [labels[0]["score"] for labels in run(task, rows)]
        metrics = regression_metrics(scores, [float(one.label or 0.0) for one in read.examples])
        return Evaluation(name, len(rows), metrics, notes=notes + task.notes.lines())
    names = [str(task.labels[number]) for number in range(config.num_labels)]
    expected = _expected(read, names, notes)
    predicted = [names.index(str(labels[0]["label"])) for labels in run(task, rows)]
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (expected, predicted), 1)
    return Evaluation(
        name,
        len(rows),
        classification_metrics(predicted, expected, len(names)),
        scores_by_label(predicted, expected, names),
        confusion,
        notes + task.notes.lines(),
    )


def _value(example: SentenceExample) -> str | tuple[str, str]:
    return example.text if example.pair is None else (example.text, example.pair)


def _expected(read: Sentences, names: list[str], notes: list[str]) -> list[int]:
    """The number of each row's label. A model without names of its own for its labels counts them: 0 is LABEL_0."""
    known = {name: number for number, name in enumerate(names)}
    unnamed = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    if unnamed and not any(one.label in known for one in read.examples):
        known = {name.removeprefix("LABEL_"): number for name, number in known.items()}
        notes.append(f"the model's labels have no names: 0 is read as {names[0]}, and so on")
    found = []
    for one in read.examples:
        if one.label not in known:
            raise read.table.error(one.line, f"a label of the model ({_some(list(known))})", repr(one.label))
        found.append(known[str(one.label)])
    return found


# Tags


def _tags(task: Tagging, data: LabelledFile, run: _Run) -> Evaluation:
    if data.columns:
        raise InputError(f"expected no --column for tag, got {', '.join(data.columns)}")
    if not task.has_entities:
        raise InputError(f"expected a model whose labels are tags, got {_some(task.labels)} in {task.loaded.name}")
    read = read_tagged(data.file, task.loaded.tokenizer, format_=data.format)
    _check_types(read, task)
    words = sum(len(one.words) for one in read.examples)
    notes = [f"{read.format}; {len(read.examples):,} sentences, {words:,} words"]
    if read.characters and not task.characters:
        notes.append("every word is a single character, and the model was not fine-tuned on characters")
    rows = [Row(Words(one.words), f"line {one.line} of {data.file}") for one in read.examples]
    predicted = [found["tags"] for found in run(task, rows)]
    expected = [list(one.tags or ()) for one in read.examples]
    metrics = entity_metrics(predicted, expected)
    return Evaluation("tag", len(rows), metrics, scores_by_type(predicted, expected), notes=notes + task.notes.lines())


def _check_types(read: Tagged, task: Tagging) -> None:
    known = {tag_type(label) for label in task.labels}
    for one in read.examples:
        for place, tag in enumerate(one.tags or ()):
            if tag_type(tag) not in known:
                line = one.line + (place if read.format.startswith("CoNLL") else 0)
                types = _some(sorted(known - {OUTSIDE}))
                raise InputError(f"expected a type of the model ({types}), got {tag!r} in line {line} of {read.file}")


# Answers


def _answers(task: Answering, data: LabelledFile, run: _Run) -> Evaluation:
    if data.columns:
        raise InputError(f"expected no --column for answer, got {', '.join(data.columns)}")
    read = read_squad(data.file, header=data.header, format_=data.format)
    rows = [Row((one.question, one.context), f"{one.location} of {data.file}") for one in read.examples]
    notes = [f"{len(rows):,} questions, {sum(not one.answers for one in read.examples):,} without an answer"]
    threshold = task.null_threshold
    says = "answers every question" if threshold is None else f"gives no answer where that scores better by {threshold:.4g}"
    notes.append(f"the model {says}")
    predicted = {
        one.key: found[0]["answer"] if found else "" for one, found in zip(read.examples, run(task, rows), strict=True)
    }
    right = {one.key: [text for text, _ in one.answers] for one in read.examples}
    return Evaluation("answer", len(rows), squad_metrics(predicted, right), notes=notes + task.notes.lines())


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_LABELS
    return ", ".join(names[:SHOWN_LABELS]) + (f" and {more} more" if more > 0 else "")
