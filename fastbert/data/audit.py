"""Counts of a prepared text and its samples for `meta.json`, in bounded memory."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .spool import SpooledDocuments

PIECE = 1 << 22  # elements read at a time
HISTOGRAM_BINS = 16


@dataclass(frozen=True)
class ShardCounts:
    """Counts of one shard.

    random: samples with a random B. truncated: samples that lost tokens. dropped: tokens lost. lengths: samples of each length,
    0 to seq_len.
    """

    samples: int
    tokens: int
    random: int
    truncated: int
    dropped: int
    lengths: list[int]


def audit_text(documents: SpooledDocuments, vocab_size: int, special_ids: Collection[int], unk_id: int) -> dict[str, Any]:
    """Counts of the text itself. special_ids: ignored by the entropy. unk_id: counted as unknown_tokens.

    entropy: of the distribution of single tokens, in nats: the loss of a model that knows their frequencies alone.
    ln_vocab_size: the loss of a model that knows nothing.
    """
    counts = np.zeros(vocab_size, np.int64)
    for piece in _pieces(documents.tokens):
        counts += np.bincount(piece, minlength=vocab_size)
    ordinary = counts.copy()
    ordinary[list(special_ids)] = 0
    lines = len(documents.lines)
    return {
        "documents": len(documents),
        "one_sentence_documents": _count_ones(documents.documents),
        "sentences": lines,
        "duplicate_lines": lines - _count_distinct(documents.lines),
        "tokens": int(counts.sum()),
        "unknown_tokens": int(counts[unk_id]),
        "entropy": entropy(ordinary),
        "ln_vocab_size": math.log(vocab_size),
    }


def audit_samples(shards: Sequence[ShardCounts], seq_len: int) -> dict[str, Any]:
    """Counts of the samples.

    fill_rate: share of seq_len that is not padding where each sample is a row. length_histogram: [longest length of the bin,
    samples]. random_interval: 95% interval of the rate of random Bs (Wilson 1927).
    """
    samples = sum(shard.samples for shard in shards)
    lengths = np.sum([shard.lengths for shard in shards], axis=0)
    random = sum(shard.random for shard in shards)
    edges = sorted({round(seq_len * number / HISTOGRAM_BINS) for number in range(1, HISTOGRAM_BINS + 1)} - {0})
    bounds = [0, *(edge + 1 for edge in edges)]
    return {
        "samples": samples,
        "truncation_rate": sum(shard.truncated for shard in shards) / samples,
        "dropped_tokens": sum(shard.dropped for shard in shards),
        "fill_rate": sum(shard.tokens for shard in shards) / (samples * seq_len),
        "length_histogram": [[edge, int(lengths[low : edge + 1].sum())] for low, edge in zip(bounds, edges)],
        "random_rate": random / samples,
        "random_interval": list(wilson_interval(random, samples)),
    }


def entropy(counts: np.ndarray) -> float:
    """The entropy, in nats, of the distribution that `counts` estimate; 0 where all are 0."""
    total = counts.sum()
    if not total:
        return 0.0
    shares = counts[counts > 0] / total
    return float(-(shares * np.log(shares)).sum()) + 0.0


def wilson_interval(successes: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a proportion. z: quantile of the normal distribution, by default for 95%."""
    share = successes / trials
    scale = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(array), PIECE):
        yield array[start : start + PIECE]


def _count_ones(ends: np.ndarray) -> int:
    """How many of the runs that end at `ends` have length 1."""
    ones = 0
    before = 0
    for piece in _pieces(ends):
        ones += int((np.diff(piece, prepend=before) == 1).sum())
        before = int(piece[-1])
    return ones


def _count_distinct(hashes: np.ndarray) -> int:
    """How many different values there are: one pass per range of values, ranges small enough to sort."""
    ranges = max(1, math.ceil(len(hashes) / PIECE))
    bounds = [(number << 64) // ranges for number in range(ranges + 1)]
    distinct = 0
    for low, high in zip(bounds, bounds[1:]):
        inside = [piece[(piece >= np.uint64(low)) & (piece <= np.uint64(high - 1))] for piece in _pieces(hashes)]
        distinct += len(np.unique(np.concatenate(inside))) if inside else 0
    return distinct
