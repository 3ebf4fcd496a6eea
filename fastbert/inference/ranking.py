"""Ranking: which texts answer a query best, by a cross-encoder that reads the query with each of them."""

import heapq
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from fastbert.utils.errors import InputError

from .classification import Classification
from .engine import rows_of, stream
from .residents import Model, resident
from .rows import Row
from .task import Encoded

Ranked = list[dict[str, Any]]


class Ranking(Classification):
    """The score of each pair of query and text. Arguments: see `rank`."""

    def __init__(
        self,
        model: Model,
        *,
        long: str = "truncate",
        max_length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(model, long=long, max_length=max_length, device=device, dtype=dtype)
        found = self.loaded.config.num_labels
        if found != 1:
            raise InputError(
                f"expected a cross-encoder, which gives a pair one score, got {found} labels in {self.loaded.name}: classify "
                "gives the score of each"
            )

    def decode(self, row: Row, sequences: Sequence[Encoded], outputs: Sequence[np.ndarray]) -> Any:
        """The score, a float."""
        return float(outputs[0][0])


def rank(
    query: str,
    texts: Iterable[str],
    model: Model,
    *,
    top: int | None = None,
    long: str = "truncate",
    max_length: int | None = None,
    batch_tokens: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Ranked:
    """Sorts texts by how well they answer a query, best first; of equal scores the earlier text first.

    Returns a list of {"index": the text's place among `texts`, from 0, "score", "text"}. The score is that of sentence-
    transformers' `CrossEncoder.rank`: the checkpoint's activation of the logit, a sigmoid where it names none.
    model: a name, a folder, (model, tokenizer) or a CrossEncoder, of class BertForSequenceClassification with a single label.
    top: only so many of the best; None for all. long, max_length: see `fastbert.classify`; of query and text the longer one is
    cut first. batch_tokens, device, dtype: see `fastbert.embed`. Warns, with a count and the first rows, of pairs that were
    cut. Raises InputError, naming the row or the checkpoint, for what cannot be run.
    """
    if not isinstance(query, str) or isinstance(texts, str):
        got = f"{type(query).__name__} and {type(texts).__name__}"
        raise InputError(f"expected a text as query and several texts to rank, got {got}")
    check_top(top)
    task = Ranking(resident(model, device, dtype), long=long, max_length=max_length)
    pairs = ((query, text) for text in texts)
    found = best(stream(task, rows_of(pairs), batch_tokens=batch_tokens), top)
    task.notes.warn()
    return [{"index": index, "score": score, "text": row.value[1]} for index, row, score in found]


def check_top(top: int | None) -> None:
    """Raises InputError for fewer than one."""
    if top is not None and top < 1:
        raise InputError(f"expected top of at least 1 or None, got {top}")


def best(results: Iterable[tuple[Row, Any]], top: int | None) -> list[tuple[int, Row, float]]:
    """(place, row, score), highest score first, of the `top` best or of all."""
    numbered = ((index, row, score) for index, (row, score) in enumerate(results))
    if top is None:
        return sorted(numbered, key=_score, reverse=True)
    return heapq.nlargest(top, numbered, key=_score)


def _score(result: tuple[int, Row, float]) -> float:
    return result[2]
