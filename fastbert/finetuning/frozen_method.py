"""Training on the features of a frozen encoder: only a head, and the weights of the encoder's layers, are new and change."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import fastbert
from fastbert.model.frozen import FeatureCache, FrozenModel, save_frozen
from fastbert.model.frozen_heads import Frozen, FrozenHead, Shape
from fastbert.utils.checkpoints import Checkpoint
from fastbert.utils.errors import InputError

from .data import TaskData
from .method import EVERY, Method
from .model import load_model

CACHE = ".features"


class FrozenMethod(Method):
    """One for all runs of a command, which share the features. A context: the cached features end with it.

    folder: for the cache. precision: float32 or bf16, of the encoder and the cache. Raises InputError where the choices do not
    fit the task or the model, the model reads in one direction and pools its last token, or the disk has no room.
    """

    def __init__(
        self, task: TaskData, checkpoint: Checkpoint, frozen: Frozen, folder: Path, precision: str, console: Console
    ) -> None:
        super().__init__(task, checkpoint)
        self.shape = Shape.of(frozen, task.head, checkpoint.config, task.settings)
        self.console = console
        self.whole, new = load_model(checkpoint, task.head, task.settings)
        if type(getattr(self.whole, "bert", None)) is not fastbert.BertModel:
            raise InputError(f"expected a BertModel under {task.head} for --frozen, got {type(self.whole).__name__}")
        if any(name.startswith("bert.pooler.") for name in new):
            self.whole.bert.pooler = None  # drawn at random, and not trained here
        self.encoder = self.whole.bert.to("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.count = len(task.train)
        self.cache = FeatureCache(self.encoder, self.shape, [*task.train, *task.evaluation], folder / CACHE, dtype)
        self.cache.check_room(folder)
        self.report = {"frozen": {**self.shape.as_dict(), "cache_bytes": self.cache.nbytes}}

    def __exit__(self, *exception: object) -> None:
        self.cache.__exit__(*exception)

    def disk(self, model: Any) -> tuple[int, int, int]:
        encoder = sum(parameter.nbytes for parameter in self.encoder.parameters())
        head = sum(parameter.nbytes for parameter in FrozenHead(self.shape, 0.0).parameters())
        return encoder + head, head, self.cache.nbytes

    def build(self, dropout: float) -> tuple[Any, list[str]]:
        self._fill()
        head = FrozenHead(self.shape, dropout)
        return head, [name for name, _ in head.named_parameters()]

    def _fill(self) -> None:
        """Before torch's generator is asked for the head; draws nothing from it."""
        if self.cache.array is None:
            what = "sequences" if self.shape.pools_features else "tokens"
            self.console.print(
                f"features of {self.cache.starts[-1]:,} {what}: {self.cache.nbytes:,} bytes of disk in {self.cache.file}, "
                "until the end",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
            self.cache.fill()

    @property
    def train(self) -> Any:
        return range(self.count)

    def collate(self, rows: Any) -> dict[str, Any]:
        return self.cache.collate(rows)

    def predict(self, model: Any, autocast: torch.dtype | None, part: slice = EVERY) -> list[Any]:
        return self.cache.predict(model, range(self.count, len(self.cache.features))[part])

    def save(self, model: Any, decided: dict[str, Any], folder: Path) -> None:
        """With a linear head on the tokens of the last layer transformers' own class; else see `frozen.save_frozen`."""
        if self.shape.is_plain:
            last = self.whole.classifier if self.shape.kind == "tokens" else self.whole.qa_outputs
            last.load_state_dict(model.classifier.state_dict())
            super().save(self.whole, decided, folder)
            return
        self.encoder.config.fastbert_task = {**self.task.settings["fastbert_task"], **decided}
        save_frozen(FrozenModel(self.encoder, model), folder)
