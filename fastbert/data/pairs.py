"""Next-sentence pairs from tokenised documents (Devlin et al. 2019, §3.1 and appendix A.2).

The recipe is that of the BERT authors' own data program. A document is cut into chunks of sentences of about the target length;
a random number of a chunk's sentences is A; B is the rest of the chunk, or, half the time and whenever A is the whole chunk,
sentences from a random place in another document, and then the rest of the chunk begins the next one. The target is
seq_len - 3, or for a share `short_seq_prob` of the documents a random shorter one. Too long a pair loses tokens of its longer
side, from the front or from the back.

Every draw comes from (seed, duplicate, document number) alone: who makes which pairs, and when, changes nothing.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastbert.utils.errors import DataError

from .shards import Sample

SHORTEST = 5  # [CLS] a [SEP] b [SEP]

Document = Sequence[Sequence[int] | np.ndarray]


@dataclass(frozen=True)
class PairOptions:
    """seq_len: most tokens of a sample, special tokens included. cls_id, sep_id: ids of [CLS] and [SEP]. short_seq_prob:
    share of the documents with a shorter target. seed: of all draws.

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
    """sample: what is stored. dropped: tokens cut off to keep within seq_len."""

    sample: Sample
    dropped: int


def document_pairs(documents: Sequence[Document], number: int, duplicate: int, options: PairOptions) -> Iterator[Pair]:
    """The pairs of one document, in its order.

    documents: all of them, each a sequence of sentences of token ids; only `number` and randomly drawn others are looked at.
    duplicate: which pass over the text this is, from 0; another pass draws otherwise.

    Raises DataError where there is no other document to draw from, for an empty document and an empty sentence.
    """
    if len(documents) < 2:
        raise DataError(f"expected at least two documents, for a random B comes from another one, got {len(documents)}")
    document = documents[number]
    count = len(document)
    if not count:
        raise DataError(f"expected sentences in document {number}, got none")
    draw = _draws(options.seed, duplicate, number)
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


def _draws(seed: int, duplicate: int, number: int) -> random.Random:
    key = hashlib.blake2b(f"{seed} {duplicate} {number}".encode(), digest_size=16).digest()
    return random.Random(int.from_bytes(key, "little"))


def _below(draw: random.Random, bound: int) -> int:
    """0 to bound - 1. By `random()`, the one method whose numbers Python promises to keep from version to version."""
    return int(draw.random() * bound)


def _random_next(documents: Sequence[Document], number: int, target: int, draw: random.Random) -> np.ndarray:
    other = _below(draw, len(documents) - 1)
    other += other >= number
    document = documents[other]
    if not len(document):
        raise DataError(f"expected sentences in document {other}, got none")
    place = _below(draw, len(document))
    sentences = [document[place]]
    length = len(sentences[0])
    while length < target and place + len(sentences) < len(document):
        sentences.append(document[place + len(sentences)])
        length += len(sentences[-1])
    if not length:
        raise DataError(f"expected tokens in sentence {place} of document {other}, got none")
    return np.concatenate(sentences)


def _join(a: np.ndarray, b: np.ndarray, options: PairOptions) -> np.ndarray:
    """[CLS] A [SEP] B [SEP], in the type of the tokens."""
    ids = np.empty(len(a) + len(b) + 3, np.result_type(a, b))
    ids[0] = options.cls_id
    ids[1 : len(a) + 1] = a
    ids[len(a) + 1] = ids[-1] = options.sep_id
    ids[len(a) + 2 : -1] = b
    return ids


def _truncate(a: np.ndarray, b: np.ndarray, limit: int, draw: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Token by token from the longer side, B if equal, each from front or back at random; done in one step for each side."""
    excess = len(a) + len(b) - limit
    if excess <= 0:
        return a, b
    from_a = max(0, min(excess, len(a) - len(b)))
    from_b = max(0, min(excess, len(b) - len(a)))
    left = excess - from_a - from_b
    from_a += left // 2
    from_b += left - left // 2
    return _cut(a, from_a, draw), _cut(b, from_b, draw)


def _cut(ids: np.ndarray, excess: int, draw: random.Random) -> np.ndarray:
    front = sum(draw.random() < 0.5 for _ in range(excess))
    return ids[front : len(ids) - excess + front]
