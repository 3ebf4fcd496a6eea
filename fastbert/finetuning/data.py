"""A task's data: features for training and evaluation, and metrics; and functions that the files which load them share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastbert.tasks.features import Feature
from fastbert.utils.errors import InputError


@dataclass(frozen=True)
class DataOptions:
    """How files become features.

    columns: by role, see the readers. header: whether the first row of a CSV or TSV names its columns. max_length, stride: in
    tokens, None for the task's own. regression: labels are numbers; None leaves it to the file. format: of both files, None for
    what their names end in.
    """

    train: Path
    evaluation: Path
    columns: dict[str, str] = field(default_factory=dict)
    header: bool = True
    max_length: int | None = None
    stride: int | None = None
    max_answer_length: int = 30
    regression: bool | None = None
    format: str | None = None


@dataclass
class TaskData(ABC):
    """One task's examples as features, and its metrics.

    head: the class of the model. headline: the metric that runs are compared by. settings: for the model's configuration.
    notes: what was inferred, cut or left out, for the user to read.
    """

    train: list[Feature]
    evaluation: list[Feature]
    settings: dict[str, Any]
    notes: list[str]

    head = ""
    headline = ""

    @abstractmethod
    def score(self, outputs: Sequence[np.ndarray]) -> dict[str, float]:
        """The metrics of the outputs of `features.predict` for the evaluation data."""

    @abstractmethod
    def baseline(self) -> float:
        """The headline metric without looking at the input; a run that is no better is called degenerate."""

    def confusion(self, outputs: Sequence[np.ndarray]) -> tuple[list[str], np.ndarray] | None:
        """(labels, counts (labels, labels): expected by predicted), or None where the task has no labels."""
        return None

    def decided(self, metrics: dict[str, float]) -> dict[str, Any]:
        """What evaluation decided for inference: further entries of `fastbert_task` in the configuration."""
        return {}


def sorted_labels(names: Iterable[str]) -> list[str]:
    """The distinct labels, in the order of numbers if all are integers, else of the alphabet."""
    found = set(names)
    numeric = all(name.isascii() and name.removeprefix("-").isdigit() for name in found)
    return sorted(found, key=int) if numeric else sorted(found)


def in_order_of_checkpoint(names: list[str], config: Any) -> list[str]:
    """The labels in the order of the checkpoint's head if it has the same ones, so that its training can be continued."""
    known = [config.id2label[i] for i in sorted(config.id2label)]
    return known if sorted(known) == sorted(names) else names


def label_settings(names: Sequence[str]) -> dict[str, Any]:
    """The entries of a configuration for these labels."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


def length_limit(chosen: int | None, default: int, config: Any) -> int:
    """The maximum number of tokens of a sequence. Raises InputError where the model has too few positions."""
    most = config.max_position_embeddings
    if chosen is not None and not 8 <= chosen <= most:
        raise InputError(f"expected a max_length from 8 to {most}, the model's positions, got {chosen}")
    return min(default, most) if chosen is None else chosen


def cut_note(what: str, cut: int, of: int, max_length: int) -> list[str]:
    """The note, if any, that sequences were longer than max_length. cut, of: how many, and of how many."""
    return [f"{what}: {cut:,} of {of:,} longer than {max_length} tokens, and cut"] if cut else []
