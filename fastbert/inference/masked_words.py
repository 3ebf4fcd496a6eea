"""Fill-mask: the likeliest tokens at each [MASK] of a text."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from fastbert.utils.checkpoints import small_checkpoint
from fastbert.utils.errors import InputError

from .engine import rows_of, stream
from .residents import Model, load, resident
from .rows import Row
from .task import Batch, Encoded, Task, to_host
from .tokenizing import TextTokenizer

CLASSES = ("BertForMaskedLM", "BertForPreTraining")
Fills = list[list[dict[str, Any]]]


class MaskFilling(Task[Fills]):
    """The likeliest tokens at each mask of each text. Arguments: see `fill_mask`.

    A text over the model's limit is read in one window around each mask.
    """

    def __init__(
        self,
        model: Model | None = None,
        *,
        top: int = 5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if top < 1:
            raise InputError(f"expected top of at least 1, got {top}")
        super().__init__(load(small_checkpoint() if model is None else model, CLASSES, device=device, dtype=dtype))
        tokenizer = self.loaded.tokenizer
        if self.loaded.config.is_decoder:
            raise InputError(f"expected a bidirectional encoder, got a left-to-right model in {self.loaded.name}")
        if tokenizer.mask_token is None:
            raise InputError(f"expected a tokenizer with a mask token in {self.loaded.name}, got none")
        self.mask: str = tokenizer.mask_token
        self.top = min(top, self.loaded.config.vocab_size)
        self._tokenizer = TextTokenizer(self.loaded, self.notes, long=None)
        self._token = lru_cache(maxsize=None)(tokenizer.decode)  # at most one per entry of the vocabulary

    def check(self, row: Row) -> None:
        """Raises InputError where the text has no mask token."""
        if self.mask not in row.value:
            raise InputError(f"expected {self.mask} in the text, got none in {row.location}")

    def encode(self, rows: Sequence[Row]) -> list[list[Encoded]]:
        for row in rows:
            if not isinstance(row.value, str):
                raise InputError(f"expected a text, got {type(row.value).__name__} in {row.location}")
            self.check(row)
        return [self._windows(row, sequence.ids) for row, sequence in zip(rows, self._tokenizer(rows))]

    def _windows(self, row: Row, ids: np.ndarray) -> list[Encoded]:
        masks = np.flatnonzero(ids == self.loaded.tokenizer.mask_token_id)
        if len(masks) != row.value.count(self.mask):
            raise InputError(f"expected {self.mask} as a single token in {row.location}, got it as other tokens")
        limit = self.loaded.limit
        if len(ids) <= limit:
            return [Encoded(ids, extra=masks)]
        self.notes.add(f"texts longer than {limit} tokens, read in a window around each mask", row.location)
        room, last = limit - 2, len(ids) - 1
        windows = []
        for mask in masks.tolist():
            start = min(max(mask - room // 2, 1), last - room)
            part = np.concatenate([ids[:1], ids[start : start + room], ids[last:]])
            windows.append(Encoded(part, extra=np.array([mask - start + 1])))
        return windows

    def forward(self, batch: Batch) -> tuple[Tensor, ...]:
        hidden = self.loaded.model.bert(**batch.inputs).last_hidden_state  # (tokens, D)
        positions = np.concatenate([start + sequence.extra for start, sequence in zip(batch.bounds, batch.sequences)])
        masked = hidden.index_select(0, torch.from_numpy(positions.astype(np.int64)).to(hidden.device))  # (masks, D)
        found = self.loaded.model.cls.predictions(masked).float().softmax(-1).topk(self.top)
        return found.values, found.indices

    def read(self, batch: Batch, outputs: Any) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        scores, ids = to_host(outputs[0], self), outputs[1].cpu().numpy()
        ends = np.cumsum([len(sequence.extra) for sequence in batch.sequences])
        pairs = list(zip(scores, ids))
        return [pairs[end - len(sequence.extra) : end] for end, sequence in zip(ends, batch.sequences)]

    def decode(self, row: Row, sequences: Sequence[Encoded], outputs: Sequence[Any]) -> Fills:
        parts = row.value.split(self.mask)
        masks = [mask for of_window in outputs for mask in of_window]
        return [
            [self._fill(parts, index, float(score), int(token)) for score, token in zip(*mask)]
            for index, mask in enumerate(masks)
        ]

    def _fill(self, parts: list[str], index: int, score: float, token: int) -> dict[str, Any]:
        """One candidate for mask `index`. parts: the text around the masks."""
        text = self._token(token)
        before, after = self.mask.join(parts[: index + 1]), self.mask.join(parts[index + 1 :])
        filled = before.rstrip() + text[2:] if text.startswith("##") and len(text) > 2 else before + text
        return {"score": score, "token": token, "token_str": text, "sequence": filled + after}


@overload
def fill_mask(  # type: ignore[overload-overlap]  # a str is an Iterable[str] too
    texts: str,
    model: Model | None = ...,
    *,
    top: int = ...,
    batch_tokens: int | None = ...,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | None = ...,
) -> Fills: ...


@overload
def fill_mask(
    texts: Iterable[str],
    model: Model | None = ...,
    *,
    top: int = ...,
    batch_tokens: int | None = ...,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | None = ...,
) -> list[Fills]: ...


def fill_mask(
    texts: str | Iterable[str],
    model: Model | None = None,
    *,
    top: int = 5,
    batch_tokens: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> list[Fills] | Fills:
    """Finds the `top` likeliest tokens at each mask token of each text.

    Returns, per text, a list of candidates per mask, best first; for a single text its list. A candidate is
    {"score": probability, "token": id, "token_str", "sequence": the text with this mask filled}.
    model: a name, a folder or (model, tokenizer), with a masked-language-model head; None for the small checkpoint of this
    package. batch_tokens, device, dtype: see `fastbert.embed`. A text over the limit is read in a window around each mask, with
    a warning. Raises InputError, naming the row or the checkpoint, for a text without a mask and what cannot be run.
    """
    task = MaskFilling(resident(model, device, dtype, small_checkpoint), top=top)
    rows = rows_of([texts] if isinstance(texts, str) else texts)
    found = [fills for _, fills in stream(task, rows, batch_tokens=batch_tokens)]
    task.notes.warn()
    return found[0] if isinstance(texts, str) else found
