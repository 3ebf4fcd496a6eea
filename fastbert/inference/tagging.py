"""A tag for every word of a text of any length, and the entities that the tags spell."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from fastbert.tasks.tagged import split_characters, with_offsets
from fastbert.tasks.tags import scheme_of, spans, word_logits, word_tags
from fastbert.tasks.windows import WordWindow, split_words, word_windows
from fastbert.utils.errors import InputError

from .engine import Batch, Encoded, Row, Task, Words, host, rows_of, stream
from .loading import Model, load, require_offsets
from .saved import Saved

CLASSES = ("BertForTokenClassification",)
STRIDE = 128


class _Cut(NamedTuple):
    text: str
    words: Sequence[str]
    offsets: Sequence[tuple[int, int]]


class _Extra(NamedTuple):
    window: WordWindow
    cut: _Cut


class Tagging(Task[dict[str, Any]]):
    """Words, tags and entities of each text. Arguments as of `tag`."""

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
        self.saved = Saved(self.loaded, "tag")
        self.max_length, self.stride = self.saved.lengths(max_length, stride, (self.loaded.limit, STRIDE))
        self.characters: bool = self.saved.take("characters", characters, False)

    def encode(self, rows: Sequence[Row]) -> list[list[Encoded]]:
        for row in rows:
            self._check(row)
        cuts = self._cut(rows)
        found: list[list[Encoded]] = [[] for _ in rows]
        words = [one.words for one in cuts]
        for window in word_windows(self.loaded.tokenizer, words, max_length=self.max_length, stride=self.stride):
            extra = _Extra(window, cuts[window.example])
            found[window.example].append(Encoded(window.input_ids, window.token_type_ids, extra))
        return found

    def _cut(self, rows: Sequence[Row]) -> list[_Cut]:
        texts = [row.value for row in rows if isinstance(row.value, str)]
        split = [split_characters(one) for one in texts] if self.characters else split_words(self.loaded.tokenizer, texts)
        cut = iter(split)
        found = []
        for row in rows:
            if isinstance(row.value, str):
                found.append(_Cut(row.value, *next(cut)))
            else:
                words = row.value.words
                text, offsets = with_offsets(words, self.characters and all(len(word) == 1 for word in words))
                found.append(_Cut(text, words, offsets))
        return found

    def _check(self, row: Row) -> None:
        if not isinstance(row.value, str | Words):
            raise InputError(f"expected a text, got {type(row.value).__name__} in {row.place}")
        if isinstance(row.value, str) and not row.value.strip():
            self.notes.add("empty texts, without words to tag", row.place)

    def forward(self, batch: Batch) -> Tensor:
        return self.loaded.model(**batch.inputs).logits.float()

    def read(self, batch: Batch, outputs: Any) -> Sequence[np.ndarray]:
        return np.split(host(outputs, self), batch.bounds[1:-1])

    def decode(self, row: Row, sequences: Sequence[Encoded], outcomes: Sequence[np.ndarray]) -> dict[str, Any]:
        text, words, offsets = sequences[0].extra.cut
        logits = word_logits([one.extra.window for one in sequences], outcomes, len(words))
        tags, scores = word_tags(logits, self.labels)
        entities = spans(tags, offsets, text, scores) if self.has_entities else []
        return ({"text": text} if isinstance(row.value, Words) else {}) | {
            "words": list(words),
            "tags": tags,
            "scores": [float(score) for score in scores],
            "entities": [
                {"entity_group": one.label, "score": one.probability, "word": one.text, "start": one.start, "end": one.end}
                for one in entities
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
    """For each text its words, their tags and the entities; for a single text the one.

    Of a text: {"words", "tags": one per word, "scores": the tag's probability, "entities": a list}. An entity is
    {"entity_group", "score": mean over its words, "word": text[start:end], "start", "end": in characters}; there are none where
    the labels are not tags of one scheme, BIO, BIOES or BILOU, with types or without (then the group is "_"). Words are what
    BERT takes apart at blanks and punctuation; the tag is that of the first piece. A text over the limit is read in windows,
    and each word tagged where it has most context.
    model: a name, a folder or (model, tokenizer) of class BertForTokenClassification. max_length, stride: tokens of a window,
    and those that windows share. characters: a word is a single character, blanks included, as the model was trained. None:
    what the checkpoint was fine-tuned with by fastbert, else the model's limit, 128 or a third of it, and False. batch_tokens,
    device, dtype: as of `fastbert.embed`. Warns of empty texts. Raises InputError, naming the row or the checkpoint, for what
    cannot be run.
    """
    task = Tagging(model, max_length=max_length, stride=stride, characters=characters, device=device, dtype=dtype)
    rows = rows_of([texts] if isinstance(texts, str) else texts)
    found = [tags for _, tags in stream(task, rows, batch_tokens=batch_tokens)]
    task.notes.warn()
    return found[0] if isinstance(texts, str) else found
