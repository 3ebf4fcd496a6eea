"""Masked-language-model masks (Devlin et al. 2019, §3.1), each a pure function of (seed, epoch, sample number).

15% of a sample's ordinary tokens are predicted: 80% of them become [MASK], 10% another token, 10% stay. Random numbers are
the raw integers of a Philox counter, so the masks do not depend on NumPy's version, on processes or on order.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastbert.kernels.limits import IGNORE_INDEX
from fastbert.utils.errors import DataError

from .shards import Sample

TO_MASK, TO_RANDOM = 0.8, 0.1


def random_words(seed: int, *counters: int, size: int) -> np.ndarray:
    """uint64 (size,) from Philox, keyed by the seed and up to three counters below 2^64."""
    counter = [0, *counters, *[0] * (3 - len(counters))]
    generator = np.random.Philox(key=np.array([seed, 0x6661737462657274], np.uint64), counter=np.array(counter, np.uint64))
    return generator.random_raw(size)


def uniform(words: np.ndarray) -> np.ndarray:
    """float64 in [0, 1), from the upper 53 bits of each word."""
    return (words >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Masker:
    """Masks the samples of one vocabulary.

    mask_id: of [MASK]. special_ids: never masked, never drawn. seed: of the masks. probability: of a token to be predicted.
    max_predictions: per sample, None for no limit. continues: bool (vocab_size,), pieces that continue a word, to mask whole
    words; None to mask single pieces. static: every epoch gets the masks of the first.
    Raises ValueError for values out of range.
    """

    vocab_size: int
    mask_id: int
    special_ids: tuple[int, ...]
    seed: int = 0
    probability: float = 0.15
    max_predictions: int | None = None
    continues: np.ndarray | None = None
    static: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.probability < 1.0:
            raise ValueError(f"expected a masking probability between 0 and 1, got {self.probability}")
        if self.max_predictions is not None and self.max_predictions < 1:
            raise ValueError(f"expected at least one prediction per sample, got {self.max_predictions}")
        if not 0 <= self.mask_id < self.vocab_size:
            raise ValueError(f"expected the id of [MASK] below {self.vocab_size}, got {self.mask_id}")

    @classmethod
    def of(cls, tokenizer: Any, *, whole_words: bool = False, **options: Any) -> "Masker":
        """The masker of a BERT tokenizer. whole_words: all pieces of a word are predicted together.

        Raises DataError for a tokenizer without [MASK].
        """
        if tokenizer.mask_token_id is None:
            raise DataError("expected a tokenizer with a mask token, got one without")
        continues = None
        if whole_words:
            continues = np.zeros(len(tokenizer), bool)
            for piece, token_id in tokenizer.get_vocab().items():
                continues[token_id] = piece.startswith("##")
        special = tuple(sorted(tokenizer.all_special_ids))
        return cls(len(tokenizer), tokenizer.mask_token_id, special, continues=continues, **options)

    def __call__(self, sample: Sample, number: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids, labels) of sample `number` in an epoch: int64 (length,), IGNORE_INDEX where nothing is predicted."""
        ids = sample.input_ids
        length = len(ids)
        words = random_words(self.seed, number, 0 if self.static else epoch, size=3 * length + 1)
        maskable = np.flatnonzero(~self._is_special[ids])
        labels = np.full(length, IGNORE_INDEX, np.int64)
        if len(maskable) == 0:
            return ids.copy(), labels
        count = self._count(len(maskable), uniform(words[-1:])[0])
        chosen = self._choose(ids, maskable, words[:length], count)
        labels[chosen] = ids[chosen]
        masked = ids.copy()
        draw = uniform(words[length : 2 * length][chosen])
        random = self._ordinary[(words[2 * length : 3 * length][chosen] % np.uint64(len(self._ordinary))).astype(np.int64)]
        masked[chosen] = np.where(draw < TO_MASK, self.mask_id, np.where(draw < TO_MASK + TO_RANDOM, random, ids[chosen]))
        return masked, labels

    def _count(self, maskable: int, chance: float) -> int:
        """How many tokens to predict, rounded at random so that the rate is right for short samples too."""
        count = max(1, int(self.probability * maskable + chance))
        return min(count, maskable, self.max_predictions or maskable)

    def _choose(self, ids: np.ndarray, maskable: np.ndarray, words: np.ndarray, count: int) -> np.ndarray:
        """Positions to predict: the first `count` in a random order, of pieces or of whole words that fit."""
        if self.continues is None:
            return maskable[np.argsort(words[maskable], kind="stable")[:count]]
        begins = ~self.continues[ids[maskable]]
        begins[0] = True
        begins[1:] |= np.diff(maskable) > 1  # after a special token
        word = np.cumsum(begins) - 1
        first = np.flatnonzero(begins)
        sizes = np.diff(np.append(first, len(maskable)))
        taken = np.zeros(len(first), bool)
        remaining = count
        for index in np.argsort(words[maskable[first]], kind="stable"):
            if sizes[index] <= remaining:
                taken[index] = True
                remaining -= sizes[index]
                if remaining == 0:
                    break
        return maskable[taken[word]]

    @cached_property
    def _is_special(self) -> np.ndarray:
        special = np.zeros(self.vocab_size, bool)
        special[list(self.special_ids)] = True
        return special

    @cached_property
    def _ordinary(self) -> np.ndarray:
        return np.flatnonzero(~self._is_special)


@dataclass
class MaskRates:
    """Counts of tokens over many masked samples."""

    samples: int = 0
    tokens: int = 0
    maskable: int = 0
    predicted: int = 0
    to_mask: int = 0
    to_random: int = 0
    kept: int = 0
    special: int = 0

    def add(self, sample: Sample, masked: np.ndarray, labels: np.ndarray, masker: Masker) -> None:
        chosen = labels != IGNORE_INDEX
        special = np.isin(sample.input_ids, masker.special_ids)
        after, before = masked[chosen], sample.input_ids[chosen]
        self.samples += 1
        self.tokens += len(masked)
        self.maskable += int((~special).sum())
        self.predicted += int(chosen.sum())
        self.to_mask += int((after == masker.mask_id).sum())
        self.kept += int((after == before).sum())
        self.to_random += int(((after != before) & (after != masker.mask_id)).sum())
        self.special += int((chosen & special).sum())
