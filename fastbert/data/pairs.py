"""Next-sentence pairs from tokenised documents (Devlin et al. 2019, §3.1 and appendix A.2).

The recipe is that of the BERT authors' create_pretraining_data.py. A document is cut into chunks of sentences of about the
target length; A is a random number of sentences from the start of a chunk. B is the rest of the chunk, or, half the time and
whenever A is the whole chunk, sentences from a random point of another document; then the rest of the chunk begins the next
one. The target is seq_len - 3, or for a share `short_seq_prob` of the documents a random shorter length. A pair that is too
long loses tokens of its longer segment, from the front or from the back.

Every draw depends on (seed, duplicate, document number) alone, so the order and the process in which pairs are drawn change
nothing.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from fastbert.utils.errors import DataError

from .shards import Sample

SHORTEST = 5  # [CLS] a [SEP] b [SEP]

Item = TypeVar("Item", covariant=True)


class Indexed(Protocol[Item]):
    """A sequence, of which only the length and single items are used."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...


Document = Indexed[Sequence[int] | np.ndarray]  # its sentences, as token ids


@dataclass(frozen=True)
class PairOptions:
    """The settings of the recipe.

    seq_len: most tokens of a sample, special tokens included. cls_id, sep_id: ids of [CLS] and [SEP]. short_seq_prob: share
    of the documents with a shorter target. seed: of all draws.
    Raises DataError for a seq_len below 5 or a probability outside of 0 to 1.
    """

    seq_len: int
    cls_id: int
    sep_id: int
    short_seq_prob: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seq_len < SHORTEST:
            raise DataError(f"expected a sequence length of at least {SHORTEST}, got {self.seq_len}")
        if not 0 <= self.short_seq_prob <= 1:
            raise DataError(f"expected a probability of short sequences from 0 to 1, got {self.short_seq_prob}")


class Pair(NamedTuple):
    """A sample, and how many tokens were cut off so that it fits into seq_len."""

    sample: Sample
    dropped: int


def document_pairs(documents: Indexed[Document], number: int, duplicate: int, options: PairOptions) -> Iterator[Pair]:
    """The pairs of one document, in order.

    documents: all of them; only `number` and randomly drawn others are read. duplicate: which pass over the text this is, from
    0; every pass draws other pairs.
    Raises DataError where there is no other document to draw from, for an empty document and an empty sentence.
    """
    if len(documents) < 2:
        raise DataError(f"expected at least two documents, for a random B comes from another one, got {len(documents)}")
    document = documents[number]
    count = len(document)
    if not count:
        raise DataError(f"expected sentences in document {number}, got none")
    draw = _generator(options.seed, duplicate, number)
    limit = options.seq_len - 3
    target = limit
    if draw.random() < options.short_seq_prob:
        target = 2 + _below(draw, limit - 1)
    start = 0
    while start < count:
        chunk: list[Sequence[int] | np.ndarray] = []
        length = 0
        while start + len(chunk) < count and length < target:
            sentence = document[start + len(chunk)]
            if not len(sentence):
                raise DataError(f"expected tokens in sentence {start + len(chunk)} of document {number}, got none")
            chunk.append(sentence)
            length += len(sentence)
        first = 1 + _below(draw, len(chunk) - 1) if len(chunk) > 1 else 1
        a = np.concatenate(chunk[:first])
        is_random_next = len(chunk) == 1 or draw.random() < 0.5
        if is_random_next:
            b = _random_next(documents, number, target - len(a), draw)
            start += first
        else:
            b = np.concatenate(chunk[first:])
            start += len(chunk)
        whole = len(a) + len(b)
        a, b = _truncate(a, b, limit, draw)
        yield Pair(Sample(_join(a, b, options), len(a) + 2, is_random_next), whole - len(a) - len(b))


def _generator(seed: int, duplicate: int, number: int) -> random.Random:
    key = hashlib.blake2b(f"{seed} {duplicate} {number}".encode(), digest_size=16).digest()
    return random.Random(int.from_bytes(key, "little"))


def _below(draw: random.Random, bound: int) -> int:
    """0 to bound - 1, by `random()`: the only method whose numbers Python guarantees across versions."""
    return int(draw.random() * bound)


def _random_next(documents: Indexed[Document], number: int, target: int, draw: random.Random) -> np.ndarray:
    """About `target` tokens from a random sentence on, of a random document other than `number`."""
    other = _below(draw, len(documents) - 1)
    other += other >= number
    document = documents[other]
    if not len(document):
        raise DataError(f"expected sentences in document {other}, got none")
    first = _below(draw, len(document))
    sentences = [document[first]]
    length = len(sentences[0])
    while length < target and first + len(sentences) < len(document):
        sentences.append(document[first + len(sentences)])
        length += len(sentences[-1])
    if not length:
        raise DataError(f"expected tokens in sentence {first} of document {other}, got none")
    return np.concatenate(sentences)


def _join(a: np.ndarray, b: np.ndarray, options: PairOptions) -> np.ndarray:
    """[CLS] A [SEP] B [SEP], in the dtype of the tokens."""
    ids = np.empty(len(a) + len(b) + 3, np.result_type(a, b))
    ids[0] = options.cls_id
    ids[1 : len(a) + 1] = a
    ids[len(a) + 1] = ids[-1] = options.sep_id
    ids[len(a) + 2 : -1] = b
    return ids


def _truncate(a: np.ndarray, b: np.ndarray, limit: int, draw: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Drops tokens one by one from the longer segment, B if equal, each from the front or the back at random."""
    excess = len(a) + len(b) - limit
    if excess <= 0:
        return a, b
    from_a = max(0, min(excess, len(a) - len(b)))
    from_b = max(0, min(excess, len(b) - len(a)))
    rest = excess - from_a - from_b
    from_a += rest // 2
    from_b += rest - rest // 2
    return _cut(a, from_a, draw), _cut(b, from_b, draw)


def _cut(ids: np.ndarray, excess: int, draw: random.Random) -> np.ndarray:
    front = sum(draw.random() < 0.5 for _ in range(excess))
    return ids[front : len(ids) - excess + front]
