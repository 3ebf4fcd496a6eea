"""Long inputs in overlapping windows: every token is in some window, with its position in the input.

Two neighbouring windows share `stride` tokens, so anything of at most `stride` tokens is whole in one of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbert.utils.errors import InputError

QA_MAX_LENGTH, QA_STRIDE = 384, 128
MAX_QUESTION_LENGTH = 64
ROWS = 512  # examples tokenised in one call


@dataclass(frozen=True, eq=False)
class Window:
    """A part of an example. example: its index. input_ids, token_type_ids: int32 (tokens,), special tokens included."""

    example: int
    input_ids: np.ndarray
    token_type_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, eq=False)
class ContextWindow(Window):
    """A question with a part of its context.

    offsets: int32 (tokens, 2), (start, end) of each token of the context, in characters; -1 for all other tokens.
    question_cut: whether the question lost its end.
    """

    offsets: np.ndarray
    question_cut: bool = False


@dataclass(frozen=True, eq=False)
class WordWindow(Window):
    """A part of a sentence. words: int32 (tokens,), the index of the word whose first piece a token is; -1 elsewhere."""

    words: np.ndarray


def question_windows(
    tokenizer: Any,
    questions: Sequence[str],
    contexts: Sequence[str],
    *,
    max_length: int = QA_MAX_LENGTH,
    stride: int = QA_STRIDE,
    max_question_length: int = MAX_QUESTION_LENGTH,
) -> Iterator[ContextWindow]:
    """Windows `[CLS] question [SEP] part of the context [SEP]`, example by example, in order.

    tokenizer: a fast one. max_length: most tokens of a window. stride: tokens of context that neighbouring windows share.
    max_question_length: most tokens of a question; fewer where the next window would otherwise have no new context.
    Raises InputError where a window has no room for the stride.
    """
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True) - stride - 1
    if room < 1 or stride < 0:
        raise InputError(f"expected a stride well below max_length, got a stride of {stride} and a max_length of {max_length}")
    for first in range(0, len(questions), ROWS):
        shortened, cut = _shortened(tokenizer, questions[first : first + ROWS], min(room, max_question_length))
        encoded = tokenizer(
            shortened,
            list(contexts[first : first + ROWS]),
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for encoding, number in zip(encoded.encodings, encoded["overflow_to_sample_mapping"]):
            in_context = np.array([sequence == 1 for sequence in encoding.sequence_ids])
            offsets = np.where(in_context[:, None], np.array(encoding.offsets, np.int32), np.int32(-1))
            yield ContextWindow(first + number, *_ids(encoding), offsets, cut[number])


def answer_tokens(window: ContextWindow, start: int, end: int) -> tuple[int, int] | None:
    """(first, last) token of the characters from start to end of the context; None where the window lacks some of them."""
    begins, ends = window.offsets[:, 0], window.offsets[:, 1]
    context = np.flatnonzero(begins >= 0)
    inside = context[(ends[context] > start) & (begins[context] < end)]
    if not len(inside):
        return None
    first, last = int(inside[0]), int(inside[-1])
    # A context token before or after the answer shows that the window does not cut it there.
    whole_left = first > context[0] or begins[first] <= start
    whole_right = last < context[-1] or ends[last] >= end
    return (first, last) if whole_left and whole_right else None


def word_windows(
    tokenizer: Any, sentences: Sequence[Sequence[str]], *, max_length: int = 512, stride: int = 128
) -> Iterator[WordWindow]:
    """Windows over the words of each sentence, in order. A sentence without words has one empty window.

    tokenizer: a fast one. max_length: most tokens of a window. stride: tokens that neighbouring windows share.
    Raises InputError where a window has no room for the stride.
    """
    step = max_length - tokenizer.num_special_tokens_to_add(pair=False) - stride
    if step < 1 or stride < 0:
        raise InputError(f"expected a stride well below max_length, got a stride of {stride} and a max_length of {max_length}")
    for first in range(0, len(sentences), ROWS):
        encoded = tokenizer(
            [list(words) for words in sentences[first : first + ROWS]],
            is_split_into_words=True,
            truncation=True,
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
        )
        previous, before = -1, np.empty(0, np.int32)
        for encoding, number in zip(encoded.encodings, encoded["overflow_to_sample_mapping"]):
            words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int32)
            is_first = np.diff(words, prepend=-1) != 0
            if number == previous:  # its first token follows token `step` of the window before, counting [CLS]
                is_first[1] = words[1] != before[step]
            yield WordWindow(first + number, *_ids(encoding), np.where(is_first, words, np.int32(-1)))
            previous, before = number, words


def split_words(tokenizer: Any, texts: Sequence[str]) -> list[tuple[list[str], list[tuple[int, int]]]]:
    """(words, offsets in characters) of each text, split at blanks and punctuation by BERT's basic tokenisation."""
    found = []
    for first in range(0, len(texts), ROWS):
        some = texts[first : first + ROWS]
        encoded = tokenizer(list(some), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for text, encoding in zip(some, encoded.encodings):
            offsets: list[tuple[int, int]] = []
            before = None
            for word, (start, end) in zip(encoding.word_ids, encoding.offsets):
                if word == before:
                    offsets[-1] = offsets[-1][0], end
                else:
                    offsets.append((start, end))
                before = word
            found.append(([text[start:end] for start, end in offsets], offsets))
    return found


def best_windows(windows: Sequence[WordWindow], num_words: int) -> list[tuple[int, int] | None]:
    """(window, token) from which the tag of each word of one sentence is read: its first piece; None for a word without pieces.

    Of several windows that have it, the one with most context on the shorter side.
    """
    best: list[tuple[int, int] | None] = [None] * num_words
    context = [-1] * num_words
    for index, window in enumerate(windows):
        for token in np.flatnonzero(window.words >= 0).tolist():
            word, room = int(window.words[token]), min(token - 1, len(window) - 2 - token)
            if room > context[word]:
                context[word], best[word] = room, (index, token)
    return best


def _shortened(tokenizer: Any, questions: Sequence[str], limit: int) -> tuple[list[str], list[bool]]:
    """(questions of at most `limit` tokens, which of them were cut)."""
    encoded = tokenizer(list(questions), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    cut = [len(encoding.ids) > limit for encoding in encoded.encodings]
    kept = [
        question[: encoding.offsets[limit - 1][1]] if too_long else question
        for question, encoding, too_long in zip(questions, encoded.encodings, cut)
    ]
    return kept, cut


def _ids(encoding: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.array(encoding.ids, np.int32), np.array(encoding.type_ids, np.int32)
