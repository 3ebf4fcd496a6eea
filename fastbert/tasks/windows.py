"""Long inputs in overlapping windows: every token is in some window, and every place in the input is kept.

Two windows in a row share `stride` tokens, so that whatever is at most `stride` tokens long is whole in one of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbert.utils.errors import InputError

QA_MAX_LENGTH, QA_STRIDE = 384, 128
MAX_QUESTION_LENGTH = 64
ROWS = 512  # examples that are tokenised together


@dataclass(frozen=True, eq=False)
class Window:
    """example: number of the input it is cut from. input_ids, token_type_ids: int32 (tokens,), special tokens included."""

    example: int
    input_ids: np.ndarray
    token_type_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, eq=False)
class ContextWindow(Window):
    """A question with a part of its context.

    offsets: int32 (tokens, 2), where each token begins and ends in the context, in characters; -1 for all others.
    question_cut: whether the question was longer than is kept.
    """

    offsets: np.ndarray
    question_cut: bool = False


@dataclass(frozen=True, eq=False)
class WordWindow(Window):
    """Words with their place. words: int32 (tokens,), the number of the word whose first piece a token is; -1 elsewhere."""

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

    tokenizer: a fast one. max_length: most tokens of a window. stride: tokens of context that neighbours share.
    max_question_length: tokens of a question that are kept, fewer where the context would otherwise not move on.
    Raises InputError where a window has no room for the stride.
    """
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True) - stride - 1
    if room < 1 or stride < 0:
        raise InputError(f"expected a stride well below max_length, got a stride of {stride} and a max_length of {max_length}")
    for first in range(0, len(questions), ROWS):
        asked, cut = _shortened(tokenizer, questions[first : first + ROWS], min(room, max_question_length))
        encoded = tokenizer(
            asked, list(contexts[first : first + ROWS]), truncation="only_second", max_length=max_length, stride=stride,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        for encoding, number in zip(encoded.encodings, encoded["overflow_to_sample_mapping"]):
            in_context = np.array([sequence == 1 for sequence in encoding.sequence_ids])
            offsets = np.where(in_context[:, None], np.array(encoding.offsets, np.int32), np.int32(-1))
            yield ContextWindow(first + number, *_ids(encoding), offsets, cut[number])


def answer_tokens(window: ContextWindow, start: int, end: int) -> tuple[int, int] | None:
    """(first, last) token of the characters from start to end of the context; None where the window has not all of them."""
    begins, ends = window.offsets[:, 0], window.offsets[:, 1]
    context = np.flatnonzero(begins >= 0)
    inside = context[(ends[context] > start) & (begins[context] < end)]
    if not len(inside):
        return None
    first, last = int(inside[0]), int(inside[-1])
    # A token of the window beyond the answer shows that the window does not cut it.
    whole_left = first > context[0] or begins[first] <= start
    whole_right = last < context[-1] or ends[last] >= end
    return (first, last) if whole_left and whole_right else None


def word_windows(
    tokenizer: Any, sentences: Sequence[Sequence[str]], *, max_length: int = 512, stride: int = 128
) -> Iterator[WordWindow]:
    """Windows over the words of each sentence, in order. A sentence without words has one window without any.

    tokenizer: a fast one. max_length: most tokens of a window. stride: tokens that neighbours share.
    Raises InputError where a window has no room for the stride.
    """
    step = max_length - tokenizer.num_special_tokens_to_add(pair=False) - stride
    if step < 1 or stride < 0:
        raise InputError(f"expected a stride well below max_length, got a stride of {stride} and a max_length of {max_length}")
    for first in range(0, len(sentences), ROWS):
        encoded = tokenizer(
            [list(words) for words in sentences[first : first + ROWS]], is_split_into_words=True, truncation=True,
            max_length=max_length, stride=stride, return_overflowing_tokens=True,
        )  # fmt: skip
        previous, before = -1, np.empty(0, np.int32)
        for encoding, number in zip(encoded.encodings, encoded["overflow_to_sample_mapping"]):
            words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int32)
            is_first = np.diff(words, prepend=-1) != 0
            if number == previous:  # its first token follows the one at `step` of the window before, [CLS] counted
                is_first[1] = words[1] != before[step]
            yield WordWindow(first + number, *_ids(encoding), np.where(is_first, words, np.int32(-1)))
            previous, before = number, words


def split_words(tokenizer: Any, texts: Sequence[str]) -> list[tuple[list[str], list[tuple[int, int]]]]:
    """(words, character offsets) of each text: what BERT's basic tokenisation takes apart at blanks and punctuation."""
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
    """Where the tag of each word of one sentence is read: (number of the window, token), the first piece of the word.

    Where several windows have it, the one with most context on its shorter side. None: the word has no pieces at all.
    """
    best: list[tuple[int, int] | None] = [None] * num_words
    context = [-1] * num_words
    for number, window in enumerate(windows):
        for token in np.flatnonzero(window.words >= 0).tolist():
            word, room = int(window.words[token]), min(token - 1, len(window) - 2 - token)
            if room > context[word]:
                context[word], best[word] = room, (number, token)
    return best


def _shortened(tokenizer: Any, questions: Sequence[str], limit: int) -> tuple[list[str], list[bool]]:
    encoded = tokenizer(list(questions), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    cut = [len(encoding.ids) > limit for encoding in encoded.encodings]
    kept = [
        question[: encoding.offsets[limit - 1][1]] if too_long else question
        for question, encoding, too_long in zip(questions, encoded.encodings, cut)
    ]
    return kept, cut


def _ids(encoding: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.array(encoding.ids, np.int32), np.array(encoding.type_ids, np.int32)
