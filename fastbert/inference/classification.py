"""The label of a text or of a pair of texts."""

from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from ..checkpoints import InputError
from .engine import Batch, Encoded, Row, Task, host, rows_of, stream
from .loading import Model, load
from .saved import Saved
from .tokenizing import Encoder

CLASSES = ("BertForSequenceClassification",)
Labels = list[dict[str, Any]]


class Classification(Task[Labels]):
    """The likeliest labels of each text or pair. Arguments as of `classify`."""

    def __init__(
        self,
        model: Model,
        *,
        top: int | None = 1,
        long: str = "truncate",
        max_length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if top is not None and top < 1:
            raise InputError(f"expected top of at least 1 or None, got {top}")
        super().__init__(load(model, CLASSES, device=device, dtype=dtype))
        config = self.loaded.config
        kind = config.problem_type
        if kind == "regression":
            self.activation = "none"
        elif kind == "multi_label_classification" or (kind is None and config.num_labels == 1):
            self.activation = "sigmoid"
        else:
            self.activation = "softmax"
        self.labels: dict[int, str] = config.id2label
        self.top = config.num_labels if top is None else min(top, config.num_labels)
        self.saved = Saved(self.loaded, "classify", "pair")
        self._encoder = Encoder(self.loaded, self.notes, long, self.saved.length(max_length, self.loaded.limit))
        self.max_length = self._encoder.limit

    def encode(self, rows: Sequence[Row]) -> list[list[Encoded]]:
        return [[one] for one in self._encoder(rows)]

    def forward(self, batch: Batch) -> Tensor:
        logits = self.loaded.model(**batch.inputs).logits.float()
        if self.activation == "none":
            return logits
        return logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(-1)

    def read(self, batch: Batch, outputs: Any) -> Sequence[np.ndarray]:
        return list(host(outputs, self))

    def decode(self, row: Row, sequences: Sequence[Encoded], outcomes: Sequence[np.ndarray]) -> Labels:
        scores = outcomes[0]
        best = np.argsort(-scores, kind="stable")[: self.top].tolist()
        return [{"label": self.labels[number], "score": float(scores[number])} for number in best]


@overload
def classify(  # type: ignore[overload-overlap]  # a str is an Iterable[str] too
    texts: str | tuple[str, str],
    model: Model,
    *,
    top: int | None = ...,
    long: str = ...,
    max_length: int | None = ...,
    batch_tokens: int | None = ...,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | None = ...,
) -> Labels: ...


@overload
def classify(
    texts: Iterable[str | tuple[str, str]],
    model: Model,
    *,
    top: int | None = ...,
    long: str = ...,
    max_length: int | None = ...,
    batch_tokens: int | None = ...,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | None = ...,
) -> list[Labels]: ...


def classify(
    texts: str | tuple[str, str] | Iterable[str | tuple[str, str]],
    model: Model,
    *,
    top: int | None = 1,
    long: str = "truncate",
    max_length: int | None = None,
    batch_tokens: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> list[Labels] | Labels:
    """For each text, or pair of texts as a tuple, its `top` likeliest labels, best first; for a single one its labels.

    Each is {"label", "score"}: softmax over the labels, a sigmoid of each where the checkpoint is multi-label or has a single
    output, the value itself where it is a regression. top: None for all labels.
    model: a name, a folder or (model, tokenizer) of class BertForSequenceClassification. long: what to do with a text over the
    limit, "truncate" (of a pair the longer text first) or "error". max_length: that limit, in tokens; None for the one that
    fastbert fine-tuned the checkpoint with, else the model's. batch_tokens, device, dtype: as of
    `fastbert.embed`. Warns, with a count and the first rows, of texts that were cut and that are empty. Raises InputError,
    naming the row or the checkpoint, for what cannot be run.
    """
    single = isinstance(texts, str) or is_pair(texts)
    task = Classification(model, top=top, long=long, max_length=max_length, device=device, dtype=dtype)
    found = [labels for _, labels in stream(task, rows_of([texts] if single else texts), batch_tokens=batch_tokens)]
    task.notes.warn()
    return found[0] if single else found


def is_pair(value: Any) -> bool:
    """Whether it is one pair of texts rather than several: a tuple of two."""
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(text, str) for text in value)
