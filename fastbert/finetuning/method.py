"""What of a checkpoint is trained and saved: here all its weights, under the head of the task."""

from pathlib import Path
from typing import Any

import torch

from fastbert.tasks.features import collate, predict
from fastbert.utils.checkpoints import Checkpoint, quiet

from .data import TaskData
from .model import load_model

ALL = slice(None)


class Method:
    """Trains all weights. Used as a context manager. report: entries of the method in a run's report."""

    def __init__(self, task: TaskData, checkpoint: Checkpoint) -> None:
        self.task, self.checkpoint = task, checkpoint
        self.report: dict[str, Any] = {}

    def disk(self, model: Any) -> tuple[int, int, int]:
        """Bytes of (a saved model, its trained weights, files that are kept until the end of all runs)."""
        weights = sum(parameter.nbytes for parameter in model.parameters())
        return weights, weights, 0

    def build(self, dropout: float) -> tuple[Any, list[str]]:
        """(model to train, names of its new parameters), drawn from torch's generator."""
        return load_model(self.checkpoint, self.task.head, self.task.settings, dropout=dropout)

    def __enter__(self) -> "Method":
        return self

    def __exit__(self, *exception: object) -> None:
        """Removes what was kept until the end of all runs."""

    @property
    def train(self) -> Any:
        """The training data as the Trainer takes it."""
        return self.task.train

    def num_tokens(self, rows: Any) -> int:
        """How many tokens rows of `train` have."""
        return sum(map(len, rows))

    def collate(self, rows: Any) -> dict[str, Any]:
        """A packed batch, sorted by length: attention on a CPU computes neighbours of equal length as one batch."""
        return collate(sorted(rows, key=len))

    def predict(self, model: Any, autocast: torch.dtype | None, part: slice = ALL) -> list[Any]:
        """The outputs of the model for a part of the evaluation data, see `features.predict`."""
        return predict(model, self.task.evaluation[part], autocast=autocast)

    def save(self, model: Any, decided: dict[str, Any], folder: Path) -> None:
        """Saves the model; its configuration tells inference the task's settings and what evaluation decided."""
        model.config.fastbert_task = {**self.task.settings["fastbert_task"], **decided}
        with quiet():
            model.save_pretrained(folder)
