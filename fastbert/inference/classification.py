"""Classification: the label of a text or of a pair of texts."""

from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from fastbert.utils.errors import InputError

from .engine import rows_of, stream
from .loading import Loaded
from .residents import Model, load, resident
from .rows import Row
from .saved_settings import SavedSettings
from .sentence_folder import CROSS_ENCODER, config_activation
from .sentence_modules import activation
from .task import Batch, Encoded, Task, to_host
from .tokenizing import TextTokenizer

CLASSES = ("BertForSequenceClassification",)
Labels = list[dict[str, Any]]


class Classification(Task[Labels]):
    """The likeliest labels of each text or pair. Arguments: see `classify`.

    activation: turns logits into scores. prompt: put before each text, of a pair before the first.
    """

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
        super().__init__(load(model, CLASSES, device=device, dtype=dtype, sentences=CROSS_ENCODER))
        config = self.loaded.config
        self.is_cross_encoder, self.activation = _activation(self.loaded)
        self.labels: dict[int, str] = config.id2label
        self.top = config.num_labels if top is None else min(top, config.num_labels)
        self.saved = SavedSettings(self.loaded, "classify", "pair")
        limit = self.saved.length(max_length, self.loaded.limit)
        self.prompt = "" if self.loaded.folder is None else self.loaded.folder.prompt()
        self._tokenizer = TextTokenizer(self.loaded, self.notes, long, limit, self.prompt)
        self.max_length = self._tokenizer.limit

    @property
    def line(self) -> str | None:
        """The settings that sentence-transformers saved, in a line for the user; None where it did not save the checkpoint."""
        if not self.is_cross_encoder:
            return None
        prompt = f", prompt {self.prompt!r}" if self.prompt else ""
        return f"{self.loaded.name}: a CrossEncoder, its scores by {type(self.activation).__name__} of the logits{prompt}"

    def encode(self, rows: Sequence[Row]) -> list[list[Encoded]]:
        return [[sequence] for sequence in self._tokenizer(rows)]

    def forward(self, batch: Batch) -> Tensor:
        return self.activation(self.loaded.model(**batch.inputs).logits.float())

    def read(self, batch: Batch, outputs: Any) -> Sequence[np.ndarray]:
        return list(to_host(outputs, self))

    def decode(self, row: Row, sequences: Sequence[Encoded], outputs: Sequence[np.ndarray]) -> Labels:
        scores = outputs[0]
        best = np.argsort(-scores, kind="stable")[: self.top].tolist()
        return [{"label": self.labels[index], "score": float(scores[index])} for index in best]


def _activation(loaded: Loaded) -> tuple[bool, nn.Module]:
    """(whether it is a CrossEncoder that sentence-transformers saved, the activation of its scores)."""
    config, folder = loaded.config, loaded.folder
    name = config_activation(config, loaded.name) if folder is None else folder.activation
    if name is not None:
        return True, activation(name, f"config.json of {loaded.name}") if isinstance(name, str) else name
    if folder is not None:
        return True, nn.Sigmoid() if config.num_labels == 1 else nn.Identity()
    if config.problem_type == "regression":
        return False, nn.Identity()
    is_multi_label = config.problem_type == "multi_label_classification"
    is_single_output = config.problem_type is None and config.num_labels == 1
    return False, nn.Sigmoid() if is_multi_label or is_single_output else nn.Softmax(-1)


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
    """Finds the `top` likeliest labels of each text, or pair of texts as a tuple.

    Returns a list of labels per text, best first; for a single text or pair its list. A label is {"label", "score"}. The score
    is a softmax over the labels, a sigmoid of each where the checkpoint is multi-label or has a single output, the output
    itself of a regression; of a CrossEncoder that sentence-transformers saved, it is that of its `predict`.
    model: a name, a folder or (model, tokenizer) of class BertForSequenceClassification. top: None for all labels. long: what
    to do with a text over the limit, "truncate" (of a pair the longer text first) or "error". max_length: that limit, in
    tokens; None for what fine-tuning saved, else the model's. batch_tokens, device, dtype: see `fastbert.embed`.
    Warns, with a count and the first rows, of texts that were cut and that are empty. Raises InputError, naming the row or the
    checkpoint, for what cannot be run.
    """
    single = isinstance(texts, str) or is_pair(texts)
    task = Classification(resident(model, device, dtype), top=top, long=long, max_length=max_length)
    found = [labels for _, labels in stream(task, rows_of([texts] if single else texts), batch_tokens=batch_tokens)]
    task.notes.warn()
    return found[0] if single else found


def is_pair(value: Any) -> bool:
    """Whether a value is one pair of texts, a tuple of two, rather than several texts."""
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(text, str) for text in value)
