"""Fewer examples of a task, the same on every machine."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastbert.finetuning.data import TaskData
from fastbert.finetuning.questions import Spans
from fastbert.finetuning.sentences import Rows
from fastbert.finetuning.tagging import Tags

SEED = 0


def subset(task: TaskData, train: int | None, evaluation: int | None) -> TaskData:
    """The task with `train` of its training features and `evaluation` of its evaluation examples; None leaves all."""
    features = [task.train[one] for one in _draw(len(task.train), train)]
    if isinstance(task, Rows):
        chosen = _draw(len(task.evaluation), evaluation)
        kept = [task.evaluation[one] for one in chosen]
        return replace(task, train=features, evaluation=kept, expected=task.expected[np.array(chosen)])
    if isinstance(task, Spans):
        chosen = _draw(len(task.asked.examples), evaluation)
        asked = replace(task.asked, examples=tuple(task.asked.examples[one] for one in chosen))
        return replace(task, train=features, asked=asked, **_windows(task, chosen))
    assert isinstance(task, Tags)
    chosen = _draw(len(task.tagged.examples), evaluation)
    tagged = replace(task.tagged, examples=tuple(task.tagged.examples[one] for one in chosen))
    return replace(task, train=features, tagged=tagged, **_windows(task, chosen))


def _windows(task: Spans | Tags, chosen: Sequence[int]) -> dict[str, Any]:
    """The windows of the chosen examples, renumbered, and their features."""
    position = {number: i for i, number in enumerate(chosen)}
    pairs = [(window, feature) for window, feature in zip(task.windows, task.evaluation) if window.example in position]
    windows: list[Any] = [replace(window, example=position[window.example]) for window, _ in pairs]
    return {"windows": windows, "evaluation": [feature for _, feature in pairs]}


def _draw(count: int, wanted: int | None) -> list[int]:
    if wanted is None or wanted >= count:
        return list(range(count))
    return sorted(random.Random(SEED).sample(range(count), wanted))
