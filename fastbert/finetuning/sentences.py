"""`classify`, `pair` and `choice`: one label, number or choice for each row."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbert.tasks.choices import Choices, read_choices
from fastbert.tasks.features import Feature, encode
from fastbert.tasks.metrics import classification_metrics, regression_metrics
from fastbert.tasks.sentences import Sentences, read_sentences
from fastbert.utils.errors import InputError
from fastbert.utils.printing import number_of

from .data import DataOptions, TaskData, cut_note, in_order_of_checkpoint, label_settings, length_limit, sorted_labels

MAX_LENGTH = 512
SHOWN_LABELS = 12


@dataclass
class Rows(TaskData):
    """expected: the label, number or choice of each row of the evaluation data."""

    expected: np.ndarray

    def confusion(self, outputs: Sequence[np.ndarray]) -> tuple[list[str], np.ndarray] | None:
        names = list(self.settings.get("id2label", {}).values())
        counts = np.zeros((len(names), len(names)), np.int64)
        np.add.at(counts, (self.expected, _best(outputs)), 1)
        return names, counts

    def score(self, outputs: Sequence[np.ndarray]) -> dict[str, float]:
        return classification_metrics(_best(outputs).tolist(), self.expected.tolist(), self.settings["num_labels"])

    def baseline(self) -> float:
        return max(Counter(self.expected.tolist()).values()) / len(self.expected)


@dataclass
class Labelled(Rows):
    head = "BertForSequenceClassification"
    headline = "accuracy"


@dataclass
class Scored(Rows):
    head = "BertForSequenceClassification"
    headline = "pearson"

    def confusion(self, outputs: Sequence[np.ndarray]) -> tuple[list[str], np.ndarray] | None:
        return None

    def score(self, outputs: Sequence[np.ndarray]) -> dict[str, float]:
        return regression_metrics([float(one[0]) for one in outputs], self.expected.tolist())

    def baseline(self) -> float:
        return min(2.0 / len(self.expected) ** 0.5, 0.99)  # two standard errors, where nothing is correlated


@dataclass
class Chosen(Rows):
    head = "BertForMultipleChoice"
    headline = "accuracy"

    def confusion(self, outputs: Sequence[np.ndarray]) -> tuple[list[str], np.ndarray] | None:
        return None

    def score(self, outputs: Sequence[np.ndarray]) -> dict[str, float]:
        return {"accuracy": float(np.mean(_best(outputs) == self.expected))}


def load_sentences(options: DataOptions, tokenizer: Any, config: Any, *, pair: bool) -> TaskData:
    """`classify` or `pair`. Raises InputError where a file cannot be read, or evaluation has a label that training has not."""
    settings: dict[str, Any] = {
        "columns": options.columns,
        "header": options.header,
        "pair": pair,
        "format_": options.format,
    }
    train = read_sentences(options.train, **settings, regression=options.regression)
    regression = train.regression
    evaluation = read_sentences(options.evaluation, **settings, regression=regression)
    max_length = length_limit(options.max_length, MAX_LENGTH, config)
    notes = []
    for data in (train, evaluation):
        columns = ", ".join(f"{role} = {name}" for role, name in data.columns.items())
        notes.append(f"{data.table.file}: {number_of(len(data.examples), 'row')}, {columns}")
        if data.left_out:
            notes.append(f"{data.table.file}: {number_of(data.left_out, 'row')} without a gold label left out")
    names: list[str] = []
    if regression:
        notes.append("labels are numbers: regression")
        model = {"num_labels": 1, "problem_type": "regression"}
    else:
        names = in_order_of_checkpoint(sorted_labels(str(example.label) for example in train.examples), config)
        if len(names) < 2:
            raise InputError(f"expected at least two labels in {options.train}, got {', '.join(names)}")
        model = {**label_settings(names), "problem_type": "single_label_classification"}
        notes.append(f"{len(names)} labels: {_some(names)}")
    model["fastbert_task"] = {"task": "pair" if pair else "classify", "max_length": max_length}
    label_ids = {name: i for i, name in enumerate(names)}
    train_features, cut = _features(train, label_ids, tokenizer, max_length)
    notes += cut_note(str(options.train), cut, len(train_features), max_length)
    features, cut = _features(evaluation, label_ids, tokenizer, max_length)
    notes += cut_note(str(options.evaluation), cut, len(features), max_length)
    expected = np.array([feature.labels["labels"] for feature in features])
    return (Scored if regression else Labelled)(train_features, features, model, notes, expected)


def load_choices(options: DataOptions, tokenizer: Any, config: Any) -> TaskData:
    """`choice`. Raises InputError where a file cannot be read, or the numbers of endings differ."""
    max_length = length_limit(options.max_length, MAX_LENGTH, config)
    data = [
        read_choices(file, columns=options.columns, header=options.header, format_=options.format)
        for file in (options.train, options.evaluation)
    ]
    count = len(data[0].examples[0].endings)
    notes: list[str] = []
    features = []
    for one in data:
        if len(one.examples[0].endings) != count:
            raise one.table.error(one.examples[0].line, f"{count} endings as in training", str(len(one.examples[0].endings)))
        columns = ", ".join(f"{role} = {name}" for role, name in one.columns.items())
        notes.append(f"{one.table.file}: {number_of(len(one.examples), 'row')} of {count} endings, {columns}")
        rows, cut = _choice_features(one, tokenizer, max_length)
        notes += cut_note(f"{one.table.file}, endings", cut, len(rows) * count, max_length)
        features.append(rows)
    settings = {"num_labels": count, "fastbert_task": {"task": "choice", "max_length": max_length}}
    expected = np.array([feature.labels["labels"] for feature in features[1]])
    return Chosen(features[0], features[1], settings, notes, expected)


def _features(data: Sentences, label_ids: dict[str, int], tokenizer: Any, max_length: int) -> tuple[list[Feature], int]:
    labels: list[int | float] = []
    for example in data.examples:
        if isinstance(example.label, float):
            labels.append(example.label)
        elif example.label not in label_ids:
            raise data.table.error(
                example.line, f"a label of the training data ({_some(list(label_ids))})", repr(example.label)
            )
        else:
            labels.append(label_ids[str(example.label)])
    pairs = [example.pair or "" for example in data.examples] if "pair" in data.columns else None
    encoded, cut = encode(tokenizer, [example.text for example in data.examples], pairs, max_length)
    return [Feature((one,), {"labels": label}) for one, label in zip(encoded, labels)], cut


def _choice_features(data: Choices, tokenizer: Any, max_length: int) -> tuple[list[Feature], int]:
    prompts = [example.prompt for example in data.examples for _ in example.endings]
    endings = [ending for example in data.examples for ending in example.endings]
    encoded, cut = encode(tokenizer, prompts, endings, max_length)
    count = len(data.examples[0].endings)
    rows = [tuple(encoded[at : at + count]) for at in range(0, len(encoded), count)]
    return [Feature(row, {"labels": example.label}) for row, example in zip(rows, data.examples)], cut


def _best(outputs: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([int(np.argmax(one)) for one in outputs])


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_LABELS
    return ", ".join(names[:SHOWN_LABELS]) + (f" and {more} more" if more > 0 else "")
