"""Texts to sequences. A text that is cut or empty is counted in the notes, or is an error."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastbert.utils.errors import InputError

from .loading import Loaded
from .notes import Notes
from .rows import Row
from .task import Encoded

LONG = ("truncate", "error")


class TextTokenizer:
    """Rows of a text or a pair of texts to `Encoded`, special tokens included.

    long: "truncate" cuts at the limit, of a pair the longer text first; "error" raises; None does not limit. limit: most
    tokens, None for the model's. prompt: put before each text, of a pair before the first. prompt_tokens: how many tokens it
    is, [CLS] included.
    Raises InputError for a prompt that leaves no room for a text.
    """

    def __init__(
        self, loaded: Loaded, notes: Notes, long: str | None = "truncate", limit: int | None = None, prompt: str = ""
    ) -> None:
        if long is not None and long not in LONG:
            raise InputError(f"expected long to be {' or '.join(LONG)}, got {long!r}")
        self.tokenizer, self.notes, self.long, self._lock = loaded.tokenizer, notes, long, loaded.lock
        self.limit = loaded.limit if limit is None else min(limit, loaded.limit)
        self._unknown = self.tokenizer.unk_token_id
        self._num_special = [self.tokenizer.num_special_tokens_to_add(pair) for pair in (False, True)]
        self.prompt, self.prompt_tokens = "", 0
        if prompt:
            ids = self._tokenize([prompt])[0].ids
            self.prompt_tokens = len(ids) - (len(ids) > 0 and int(ids[-1]) in self.tokenizer.all_special_ids)
            if self.prompt_tokens + 1 >= self.limit:
                got = f"got {self.prompt_tokens} of {prompt[:40]!r}"
                raise InputError(f"expected a prompt of fewer tokens than the limit of {self.limit} leaves to texts, {got}")
            self.prompt = prompt

    def __call__(self, rows: Sequence[Row]) -> list[Encoded]:
        """Raises InputError naming the row, where one is too long and that is an error."""
        for row in rows:
            self._note_empty(row)
        encoded: list[Encoded] = [Encoded(np.empty(0, np.int32))] * len(rows)
        singles = [index for index, row in enumerate(rows) if isinstance(row.value, str)]
        pairs = [index for index, row in enumerate(rows) if not isinstance(row.value, str)]
        for indices in (singles, pairs):
            self._encode(rows, indices, encoded)
        return encoded

    def _note_empty(self, row: Row) -> None:
        if not any(text.strip() for text in ((row.value,) if isinstance(row.value, str) else row.value)):
            alone = "the prompt" if self.prompt else "special tokens"
            self.notes.add(f"empty texts, run as {alone} alone", row.location)

    def _encode(self, rows: Sequence[Row], indices: Sequence[int], encoded: list[Encoded]) -> None:
        """Fills `encoded` at the indices, which are all single texts or all pairs."""
        if not indices:
            return
        long: list[int] = []
        for index, sequence in zip(indices, self._tokenize([self._with_prompt(rows[index].value) for index in indices])):
            encoded[index] = sequence
            words = len(sequence.ids) - self._num_special[sequence.types is not None]
            if words > 0 and np.count_nonzero(sequence.ids == self._unknown) == words:
                self.notes.add("texts without a word that the tokenizer knows, alike to the model", rows[index].location)
            if self.long is not None and len(sequence.ids) > self.limit:
                if self.long == "error":
                    got = f"got {len(sequence.ids)} in {rows[index].location}"
                    raise InputError(f"expected texts of at most {self.limit} tokens, {got}")
                self.notes.add(f"texts cut at {self.limit} tokens", rows[index].location)
                long.append(index)
        if long:
            texts = [self._with_prompt(rows[index].value) for index in long]
            for index, sequence in zip(long, self._tokenize(texts, truncation=True, max_length=self.limit)):
                encoded[index] = sequence

    def _with_prompt(self, value: Any) -> Any:
        return self.prompt + value if isinstance(value, str) else (self.prompt + value[0], value[1])

    def _tokenize(self, values: Sequence[Any], **options: Any) -> list[Encoded]:
        pairs = not isinstance(values[0], str)
        texts = ([first for first, _ in values], [second for _, second in values]) if pairs else (list(values),)
        with self._lock:
            found = self.tokenizer(*texts, return_attention_mask=False, return_token_type_ids=pairs, verbose=False, **options)
        types = [np.array(ids, np.uint8) for ids in found["token_type_ids"]] if pairs else [None] * len(values)
        return [Encoded(np.array(ids, np.int32), of_text) for ids, of_text in zip(found["input_ids"], types)]
