"""What every task gives to training and evaluation, whichever model the features go through."""

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
    """What decides how files become features.

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
        """The metrics of `features.predict` on the evaluation data."""

    @abstractmethod
    def baseline(self) -> float:
        """The headline of an answer that knows nothing of the input; a run no better is called degenerate."""

    def confusion(self, outputs: Sequence[np.ndarray]) -> tuple[list[str], np.ndarray] | None:
        """(labels, counts (labels, labels), right by guessed), where the task has labels."""
        return None

    def decided(self, metrics: dict[str, float]) -> dict[str, Any]:
        """What inference needs to know and evaluation found out: more entries of `fastbert_task` in the configuration."""
        return {}


def sorted_labels(names: Iterable[str]) -> list[str]:
    """Each once, by number where all are integers, else by alphabet."""
    found = set(names)
    numeric = all(name.isascii() and name.removeprefix("-").isdigit() for name in found)
    return sorted(found, key=int) if numeric else sorted(found)


def as_checkpoint_has_them(names: list[str], config: Any) -> list[str]:
    """The labels in the order of the checkpoint's head where they are the same, so that it can be trained further."""
    known = [config.id2label[number] for number in sorted(config.id2label)]
    return known if sorted(known) == sorted(names) else names


def label_settings(names: Sequence[str]) -> dict[str, Any]:
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


def length_limit(asked: int | None, usual: int, config: Any) -> int:
    """Tokens of a sequence. Raises InputError where the model has no positions for them."""
    most = config.max_position_embeddings
    if asked is not None and not 8 <= asked <= most:
        raise InputError(f"expected a max_length from 8 to {most}, the model's positions, got {asked}")
    return min(usual, most) if asked is None else asked


def cut_note(what: str, cut: int, of: int, max_length: int) -> list[str]:
    return [f"{what}: {cut:,} of {of:,} are longer than {max_length} tokens and lose their end"] if cut else []
