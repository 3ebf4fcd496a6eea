"""Training a head on the features of a frozen encoder, with the weights of the encoder's layers where the head mixes them."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastbert.model.bert import BertModel
from fastbert.model.variants.frozen import FrozenModel, save_frozen
from fastbert.model.variants.frozen_features import FeatureCache
from fastbert.model.variants.frozen_heads import Frozen, FrozenHead, Shape
from fastbert.utils.checkpoints import Checkpoint
from fastbert.utils.errors import InputError
from fastbert.utils.printing import print_line

from .data import TaskData
from .method import ALL, Method
from .model import load_model
from .output import CACHE


class FrozenMethod(Method):
    """Trains a `FrozenHead`. All runs of a command share one, and its features, which are removed when the context ends.

    folder: for the cache. precision: float32 or bf16, of the encoder and the cache. Raises InputError where the choices do not
    fit the task or the model, the model reads in one direction and pools its last token, or the disk has no room.
    """

    def __init__(
        self, task: TaskData, checkpoint: Checkpoint, frozen: Frozen, folder: Path, precision: str, console: Console
    ) -> None:
        super().__init__(task, checkpoint)
        self.shape = Shape.of(frozen, task.head, checkpoint.config, task.settings)
        self.console = console
        self.whole_model, new = load_model(checkpoint, task.head, task.settings)
        if type(getattr(self.whole_model, "bert", None)) is not BertModel:
            raise InputError(f"expected a BertModel under {task.head} for --frozen, got {type(self.whole_model).__name__}")
        if any(name.startswith("bert.pooler.") for name in new):
            self.whole_model.bert.pooler = None  # random weights, and not trained here
        self.encoder = self.whole_model.bert.to("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.num_train = len(task.train)
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
        """Computes the features before the head is drawn; draws nothing from torch's generator."""
        if self.cache.array is None:
            what = "sequences" if self.shape.pools_features else "tokens"
            print_line(
                self.console,
                f"features of {self.cache.starts[-1]:,} {what}: {self.cache.nbytes:,} bytes of disk in {self.cache.file}, "
                "until the end",
            )
            self.cache.fill()

    @property
    def train(self) -> Any:
        return range(self.num_train)

    def num_tokens(self, rows: Any) -> int:
        return sum(len(self.task.train[row]) for row in rows)

    def collate(self, rows: Any) -> dict[str, Any]:
        return self.cache.collate(rows)

    def predict(self, model: Any, autocast: torch.dtype | None, part: slice = ALL) -> list[Any]:
        return self.cache.predict(model, range(self.num_train, len(self.cache.features))[part])

    def save(self, model: Any, decided: dict[str, Any], folder: Path) -> None:
        """With a linear head on the tokens of the last layer transformers' own class; else see `frozen.save_frozen`."""
        if self.shape.is_plain:
            last = self.whole_model.classifier if self.shape.kind == "tokens" else self.whole_model.qa_outputs
            last.load_state_dict(model.classifier.state_dict())
            super().save(self.whole_model, decided, folder)
            return
        self.encoder.config.fastbert_task = {**self.task.settings["fastbert_task"], **decided}
        save_frozen(FrozenModel(self.encoder, model), folder)
