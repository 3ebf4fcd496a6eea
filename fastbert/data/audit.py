"""What a prepared text is like, in numbers for `meta.json` and in plain words: counted in pieces, in bounded memory."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .spool import SpooledDocuments

PIECE = 1 << 22  # elements read at a time
BINS = 16


@dataclass(frozen=True)
class ShardCounts:
    """One shard. random: samples with a random B. truncated: samples that lost tokens. dropped: tokens lost. lengths:
    samples of each length, 0 to seq_len."""

    samples: int
    tokens: int
    random: int
    truncated: int
    dropped: int
    lengths: list[int]


def audit_text(documents: SpooledDocuments, vocab_size: int, special_ids: Collection[int], unk_id: int) -> dict[str, Any]:
    """Counts of the text itself. special_ids: left out of the entropy; unk_id: counted apart as well.

    entropy: of the distribution of single tokens, in nats; what a model that only knows frequencies reaches as its loss. Beside
    it ln V, the loss of one that knows nothing.
    """
    counts = np.zeros(vocab_size, np.int64)
    for piece in _pieces(documents.tokens):
        counts += np.bincount(piece, minlength=vocab_size)
    ordinary = counts.copy()
    ordinary[list(special_ids)] = 0
    lines = len(documents.lines)
    return {
        "documents": len(documents),
        "one_sentence_documents": _ones(documents.documents),
        "sentences": lines,
        "duplicate_lines": lines - _distinct(documents.lines),
        "tokens": int(counts.sum()),
        "unknown_tokens": int(counts[unk_id]),
        "entropy": entropy(ordinary),
        "ln_vocab_size": math.log(vocab_size),
    }


def audit_samples(shards: Sequence[ShardCounts], seq_len: int) -> dict[str, Any]:
    """Counts of the pairs. fill_rate: share of seq_len that is not padding if each sample is a row. length_histogram:
    [longest length of the bin, samples]. random_interval: 95% interval of the random rate (Wilson 1927)."""
    samples = sum(shard.samples for shard in shards)
    lengths = np.sum([shard.lengths for shard in shards], axis=0)
    random = sum(shard.random for shard in shards)
    edges = sorted({round(seq_len * number / BINS) for number in range(1, BINS + 1)} - {0})
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
    """Of the distribution that `counts` estimate, in nats; 0 where all are 0."""
    total = counts.sum()
    if not total:
        return 0.0
    shares = counts[counts > 0] / total
    return float(-(shares * np.log(shares)).sum()) + 0.0


def wilson_interval(successes: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a proportion; z: the quantile of the normal distribution, 95% by default."""
    share = successes / trials
    scale = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def warnings(audit: dict[str, Any]) -> list[str]:
    """What a reader should know before training on this, in plain words."""
    found = []
    duplicates = audit["duplicate_lines"] / audit["sentences"]
    if duplicates > 0.05:
        found.append(
            f"{duplicates:.0%} of the lines stand in the text more than once ({audit['duplicate_lines']} repetitions); "
            "the model learns them by heart"
        )
    single = audit["one_sentence_documents"]
    if single > 0.05 * audit["documents"]:
        found.append(
            f"{single} of {audit['documents']} documents have one sentence and can never give a pair where B follows A; "
            "is there one sentence a line, and a blank line only between documents?"
        )
    if audit["documents"] < 10:
        found.append(f"only {audit['documents']} documents to draw a random B from; are there blank lines between documents?")
    unknown = audit["unknown_tokens"] / audit["tokens"]
    if unknown > 0.005:
        found.append(f"{unknown:.1%} of the tokens are [UNK]; the vocabulary does not fit this text")
    if audit["random_rate"] > 0.6:
        found.append(
            f"B is random in {audit['random_rate']:.0%} of the samples, not in about half: many chunks are a single sentence, "
            "because sentences are long for this sequence length or documents are short"
        )
    if audit["fill_rate"] < 0.5:
        found.append(f"samples fill {audit['fill_rate']:.0%} of the sequence length on average: documents are short for it")
    return found


def table(audit: dict[str, Any]) -> Any:
    """As a rich table."""
    from rich.table import Table

    low, high = audit["random_interval"]
    top = max(count for _, count in audit["length_histogram"]) or 1
    bars = "".join(" ▁▂▃▄▅▆▇█"[math.ceil(8 * count / top)] for _, count in audit["length_histogram"])
    shown = Table(title="Prepared text", title_justify="left", show_header=False)
    for name, value in (
        ("documents", f"{audit['documents']:,}"),
        ("  of one sentence", _share(audit["one_sentence_documents"], audit["documents"])),
        ("sentences", f"{audit['sentences']:,}"),
        ("  repeated lines", _share(audit["duplicate_lines"], audit["sentences"])),
        ("tokens", f"{audit['tokens']:,}"),
        ("  [UNK]", _share(audit["unknown_tokens"], audit["tokens"])),
        ("entropy of single tokens", f"{audit['entropy']:.3f} nats (ln V {audit['ln_vocab_size']:.3f})"),
        ("samples", f"{audit['samples']:,}"),
        ("  truncated", f"{audit['truncation_rate']:.1%} ({audit['dropped_tokens']:,} tokens lost)"),
        ("  fill of the sequence length", f"{audit['fill_rate']:.1%}"),
        ("  lengths, short to long", bars),
        ("  B is random", f"{audit['random_rate']:.2%} (95%: {low:.2%} to {high:.2%})"),
    ):
        shown.add_row(name, value)
    return shown


def _share(count: int, whole: int) -> str:
    return f"{count:,} ({count / whole:.1%})"


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(array), PIECE):
        yield array[start : start + PIECE]


def _ones(ends: np.ndarray) -> int:
    """How many of the runs that end at `ends` have length 1."""
    ones = 0
    before = 0
    for piece in _pieces(ends):
        ones += int((np.diff(piece, prepend=before) == 1).sum())
        before = int(piece[-1])
    return ones


def _distinct(hashes: np.ndarray) -> int:
    """How many values differ: a pass for each range of values, ranges small enough to sort."""
    ranges = max(1, math.ceil(len(hashes) / PIECE))
    bounds = [(number << 64) // ranges for number in range(ranges + 1)]
    distinct = 0
    for low, high in zip(bounds, bounds[1:]):
        inside = [piece[(piece >= np.uint64(low)) & (piece <= np.uint64(high - 1))] for piece in _pieces(hashes)]
        distinct += len(np.unique(np.concatenate(inside))) if inside else 0
    return distinct
