"""Next-sentence prediction: does the second of two texts follow the first?"""

from collections.abc import Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from fastbert.utils.checkpoints import small_checkpoint
from fastbert.utils.errors import InputError

from .classification import is_pair
from .engine import rows_of, stream
from .residents import Model, load, resident
from .rows import Row
from .task import Batch, Encoded, Task, to_host
from .tokenizing import TextTokenizer

CLASSES = ("BertForNextSentencePrediction", "BertForPreTraining")
FOLLOWS = 0  # the class of a true pair, as in BERT's pre-training


class NextSentence(Task[float]):
    """The probability that the second text of a pair follows the first. Arguments: see `next_sentence`."""

    def __init__(
        self,
        model: Model | None = None,
        *,
        long: str = "truncate",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(load(small_checkpoint() if model is None else model, CLASSES, device=device, dtype=dtype))
        self._tokenizer = TextTokenizer(self.loaded, self.notes, long)

    def encode(self, rows: Sequence[Row]) -> list[list[Encoded]]:
        for row in rows:
            if not (isinstance(row.value, tuple) and len(row.value) == 2):
                raise InputError(f"expected a pair of texts, got {type(row.value).__name__} in {row.location}")
        return [[sequence] for sequence in self._tokenizer(rows)]

    def forward(self, batch: Batch) -> Tensor:
        pooled = self.loaded.model.bert(**batch.inputs).pooler_output
        return self.loaded.model.cls.seq_relationship(pooled).float().softmax(-1)[:, FOLLOWS]

    def read(self, batch: Batch, outputs: Any) -> list[float]:
        return to_host(outputs, self).tolist()

    def decode(self, row: Row, sequences: Sequence[Encoded], outputs: Sequence[float]) -> float:
        return outputs[0]


@overload
def next_sentence(
    pairs: tuple[str, str],
    model: Model | None = ...,
    *,
    long: str = ...,
    batch_tokens: int | None = ...,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | None = ...,
) -> float: ...


@overload
def next_sentence(
    pairs: Iterable[tuple[str, str]],
    model: Model | None = ...,
    *,
    long: str = ...,
    batch_tokens: int | None = ...,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | None = ...,
) -> list[float]: ...


def next_sentence(
    pairs: tuple[str, str] | Iterable[tuple[str, str]],
    model: Model | None = None,
    *,
    long: str = "truncate",
    batch_tokens: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> list[float] | float:
    """Gives the probability, by the next-sentence head, that B follows A, for each pair (A, B).

    Returns a list of numbers, or a number for a single pair.
    model: a name, a folder or (model, tokenizer), with a next-sentence head; None for the small checkpoint of this package.
    long: what to do with a pair over the model's limit, "truncate" (the longer text first) or "error". batch_tokens, device,
    dtype: see `fastbert.embed`. Warns, with a count and the first rows, of pairs that were cut and that are empty. Raises
    InputError, naming the row or the checkpoint, for what cannot be run.
    """
    single = is_pair(pairs)
    task = NextSentence(resident(model, device, dtype, small_checkpoint), long=long)
    found = [score for _, score in stream(task, rows_of([pairs] if single else pairs), batch_tokens=batch_tokens)]
    task.notes.warn()
    return found[0] if single else found
