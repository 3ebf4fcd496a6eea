"""Tagging: a tag for every word of a text of any length, and the entities of these tags."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from fastbert.tasks.tagged import split_characters, with_offsets
from fastbert.tasks.tags import scheme_of, spans, word_logits, word_tags
from fastbert.tasks.windows import WordWindow, split_words, word_windows
from fastbert.utils.errors import InputError

from .engine import rows_of, stream
from .loading import require_offsets
from .residents import Model, load, resident
from .rows import Row, Words
from .saved_settings import SavedSettings
from .task import Batch, Encoded, Task, to_host

CLASSES = ("BertForTokenClassification",)
STRIDE = 128


class _Split(NamedTuple):
    """A text as its words, each text[start:end] by its offsets."""

    text: str
    words: Sequence[str]
    offsets: Sequence[tuple[int, int]]


class _Extra(NamedTuple):
    window: WordWindow
    split: _Split


class Tagging(Task[dict[str, Any]]):
    """Words, tags and entities of each text. Arguments: see `tag`."""

    def __init__(
        self,
        model: Model,
        *,
        max_length: int | None = None,
        stride: int | None = None,
        characters: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(load(model, CLASSES, device=device, dtype=dtype))
        require_offsets(self.loaded)
        names: dict[int, str] = self.loaded.config.id2label
        self.labels = [names[number] for number in range(self.loaded.config.num_labels)]
        try:
            self.has_entities = bool(scheme_of(self.labels))
        except ValueError:
            self.has_entities = False
        self.saved = SavedSettings(self.loaded, "tag")
        self.max_length, self.stride = self.saved.lengths(max_length, stride, (self.loaded.limit, STRIDE))
        self.characters: bool = self.saved.get("characters", characters, False)

    def encode(self, rows: Sequence[Row]) -> list[list[Encoded]]:
        for row in rows:
            self._check(row)
        split = self._split(rows)
        found: list[list[Encoded]] = [[] for _ in rows]
        words = [text.words for text in split]
        for window in word_windows(self.loaded.tokenizer, words, max_length=self.max_length, stride=self.stride):
            extra = _Extra(window, split[window.example])
            found[window.example].append(Encoded(window.input_ids, window.token_type_ids, extra))
        return found

    def _split(self, rows: Sequence[Row]) -> list[_Split]:
        texts = [row.value for row in rows if isinstance(row.value, str)]
        split = map(split_characters, texts) if self.characters else iter(split_words(self.loaded.tokenizer, texts))
        found = []
        for row in rows:
            if isinstance(row.value, str):
                found.append(_Split(row.value, *next(split)))
            else:
                words = row.value.words
                text, offsets = with_offsets(words, self.characters and all(len(word) == 1 for word in words))
                found.append(_Split(text, words, offsets))
        return found

    def _check(self, row: Row) -> None:
        if not isinstance(row.value, str | Words):
            raise InputError(f"expected a text, got {type(row.value).__name__} in {row.location}")
        if isinstance(row.value, str) and not row.value.strip():
            self.notes.add("empty texts, without words to tag", row.location)

    def forward(self, batch: Batch) -> Tensor:
        return self.loaded.model(**batch.inputs).logits.float()

    def read(self, batch: Batch, outputs: Any) -> Sequence[np.ndarray]:
        return np.split(to_host(outputs, self), batch.bounds[1:-1])

    def decode(self, row: Row, sequences: Sequence[Encoded], outputs: Sequence[np.ndarray]) -> dict[str, Any]:
        text, words, offsets = sequences[0].extra.split
        logits = word_logits([sequence.extra.window for sequence in sequences], outputs, len(words))
        tags, scores = word_tags(logits, self.labels)
        entities = spans(tags, offsets, text, scores) if self.has_entities else []
        return ({"text": text} if isinstance(row.value, Words) else {}) | {
            "words": list(words),
            "tags": tags,
            "scores": [float(score) for score in scores],
            "entities": [
                {"entity_group": span.label, "score": span.probability, "word": span.text, "start": span.start, "end": span.end}
                for span in entities
            ],
        }


@overload
def tag(  # type: ignore[overload-overlap]  # a str is an Iterable[str] too
    texts: str,
    model: Model,
    *,
    max_length: int | None = ...,
    stride: int | None = ...,
    characters: bool | None = ...,
    batch_tokens: int | None = ...,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | None = ...,
) -> dict[str, Any]: ...


@overload
def tag(
    texts: Iterable[str],
    model: Model,
    *,
    max_length: int | None = ...,
    stride: int | None = ...,
    characters: bool | None = ...,
    batch_tokens: int | None = ...,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | None = ...,
) -> list[dict[str, Any]]: ...


def tag(
    texts: str | Iterable[str],
    model: Model,
    *,
    max_length: int | None = None,
    stride: int | None = None,
    characters: bool | None = None,
    batch_tokens: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> list[dict[str, Any]] | dict[str, Any]:
    """Tags every word of each text, and groups the tags into entities.

    Returns a dict per text, or one for a single text: {"words", "tags": one per word, "scores": the tag's probability,
    "entities": a list}. An entity is {"entity_group", "score": mean over its words, "word": text[start:end], "start", "end": in
    characters}; there are none unless the labels are tags of one scheme, BIO, BIOES or BILOU, with types or without (then the
    group is "_"). Words are split at blanks and punctuation as BERT does; a word's tag is that of its first piece. A text over
    the limit is read in windows, and each word tagged where it has most context.
    model: a name, a folder or (model, tokenizer) of class BertForTokenClassification. max_length, stride: tokens of a window,
    and tokens that two windows share. characters: whether each character is a word, blanks included, as in the training data.
    None for any of them: what fine-tuning saved, else the model's limit, 128 or a third of it, and False. batch_tokens, device,
    dtype: see `fastbert.embed`. Warns of empty texts. Raises InputError, naming the row or the checkpoint, for what cannot be
    run.
    """
    task = Tagging(resident(model, device, dtype), max_length=max_length, stride=stride, characters=characters)
    rows = rows_of([texts] if isinstance(texts, str) else texts)
    found = [tags for _, tags in stream(task, rows, batch_tokens=batch_tokens)]
    task.notes.warn()
    return found[0] if isinstance(texts, str) else found
