"""`tag`: a tag for each word, in the scheme of the training data."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbert.kernels.limits import IGNORE_INDEX
from fastbert.tasks.features import Feature
from fastbert.tasks.metrics import entity_metrics
from fastbert.tasks.rows import input_error
from fastbert.tasks.tagged import Tagged, read_tagged
from fastbert.tasks.tags import OUTSIDE, SCHEMES, all_tags, scheme_of, tag_type, word_logits, word_tags
from fastbert.tasks.windows import WordWindow, word_windows
from fastbert.utils.printing import number_of

from .data import DataOptions, TaskData, in_order_of_checkpoint, label_settings, length_limit

MAX_LENGTH, STRIDE = 512, 128


@dataclass
class Tags(TaskData):
    """Tags of words. tagged: the evaluation data. windows: one for each of its features."""

    tagged: Tagged
    windows: list[WordWindow]

    head = "BertForTokenClassification"
    headline = "f1"

    def predicted_tags(self, outputs: Sequence[np.ndarray]) -> list[list[str]]:
        """A tag for every word of every sentence."""
        names = list(self.settings["id2label"].values())
        grouped: list[list[int]] = [[] for _ in self.tagged.examples]
        for i, window in enumerate(self.windows):
            grouped[window.example].append(i)
        return [
            word_tags(
                word_logits([self.windows[i] for i in indices], [outputs[i] for i in indices], len(example.words)),
                names,
            )[0]
            for indices, example in zip(grouped, self.tagged.examples)
        ]

    def score(self, outputs: Sequence[np.ndarray]) -> dict[str, float]:
        return entity_metrics(self.predicted_tags(outputs), [example.tags or () for example in self.tagged.examples])

    def baseline(self) -> float:
        return 0.0

    def confusion(self, outputs: Sequence[np.ndarray]) -> tuple[list[str], np.ndarray] | None:
        """Of entity types, word by word; the marks of the scheme (B, I, ...) are not distinguished."""
        types = list(dict.fromkeys(tag_type(name) for name in self.settings["id2label"].values()))
        counts = np.zeros((len(types), len(types)), np.int64)
        for example, tags in zip(self.tagged.examples, self.predicted_tags(outputs)):
            for expected, predicted in zip(example.tags or (), tags):
                counts[types.index(tag_type(expected)), types.index(tag_type(predicted))] += 1
        return types, counts


def load_tagged(options: DataOptions, tokenizer: Any, config: Any) -> TaskData:
    """The task `tag`. Raises InputError where a file cannot be read, or evaluation has a type or mark that training has not."""
    max_length = length_limit(options.max_length, MAX_LENGTH, config)
    stride = min(STRIDE, max_length // 4) if options.stride is None else options.stride
    train, evaluation = (read_tagged(file, tokenizer, format_=options.format) for file in (options.train, options.evaluation))
    tags = {tag for example in train.examples for tag in example.tags or ()}
    names = in_order_of_checkpoint(all_tags(tags), config)
    types = sorted({tag_type(tag) for tag in tags} - {OUTSIDE})
    scheme = scheme_of(tags)
    _check_tags(evaluation, types, scheme)
    notes = [f"{number_of(len(types), 'type')}: {', '.join(types)}; tags of {scheme}"]
    label_ids = {name: i for i, name in enumerate(names)}
    features, windows = [], []
    for data in (train, evaluation):
        cut = list(word_windows(tokenizer, [one.words for one in data.examples], max_length=max_length, stride=stride))
        count = sum(len(one.words) for one in data.examples)
        notes.append(f"{data.file}: {data.format}; {number_of(len(data.examples), 'sentence')}, {number_of(count, 'word')}")
        if len(cut) > len(data.examples):
            long = sum(number > 1 for number in Counter(window.example for window in cut).values())
            notes.append(
                f"{data.file}: {number_of(long, 'sentence')} in windows of {max_length} tokens with an overlap of {stride}"
            )
        if data.mixed_words:
            notes.append(f"{data.file}: {number_of(data.mixed_words, 'word')} cut by the edge of a span and tagged whole")
        features.append([_feature(window, data, label_ids) for window in cut])
        windows.append(cut)
    task = {"task": "tag", "max_length": max_length, "stride": stride, "characters": train.characters}
    settings = {**label_settings(names), "fastbert_task": task}
    return Tags(features[0], features[1], settings, notes, evaluation, windows[1])


def _feature(window: WordWindow, data: Tagged, label_ids: dict[str, int]) -> Feature:
    tags = data.examples[window.example].tags or ()
    labels = np.array([IGNORE_INDEX if word < 0 else label_ids[tags[word]] for word in window.words.tolist()], np.int64)
    return Feature(((window.input_ids, window.token_type_ids),), {"labels": labels})


def _check_tags(data: Tagged, types: Sequence[str], scheme: str) -> None:
    for example in data.examples:
        for i, tag in enumerate(example.tags or ()):
            if tag == OUTSIDE:
                continue
            line = example.line + (i if data.format.startswith("CoNLL") else 0)
            if tag_type(tag) not in types:
                raise input_error(data.file, line, f"a type of the training data ({', '.join(types)})", repr(tag))
            if tag[0] not in SCHEMES[scheme]:
                raise input_error(data.file, line, f"a tag of {scheme} as in the training data", repr(tag))
