"""Masks: measured rates, purity, whole words, limits."""

import numpy as np
import pytest

from fastbert.data.masking import Masker, MaskRates, random_words
from fastbert.data.shards import Sample
from fastbert.kernels.limits import IGNORE_INDEX

VOCAB_SIZE, MASK, SPECIAL = 30522, 103, (0, 100, 101, 102, 103)


def samples(count: int, length: int = 128, seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        ids = rng.integers(1000, VOCAB_SIZE, length)
        ids[0], ids[length // 2], ids[-1] = 101, 102, 102
        out.append(Sample(ids, length // 2 + 1, bool(rng.integers(2))))
    return out


def measured_rates(masker: Masker, some: list[Sample], count: int) -> MaskRates:
    """The rates of `count` samples, counted by thousands: as long as the samples themselves take to mask."""
    rates = MaskRates()
    for first in range(0, count, 1000):
        numbers = range(first, min(first + 1000, count))
        block = [some[number % len(some)] for number in numbers]
        masked, labels = zip(*(masker(sample, number, epoch=0) for sample, number in zip(block, numbers)))
        joined = Sample(np.concatenate([sample.input_ids for sample in block]), 1, False)
        rates.add(joined, np.concatenate(masked), np.concatenate(labels), masker)
    return rates


@pytest.mark.parametrize("length", [9, 128])
def test_rates_over_a_million_tokens(length):
    rates = measured_rates(Masker(VOCAB_SIZE, MASK, SPECIAL, seed=1), samples(200, length), 1_000_000 // length + 1)
    assert rates.tokens >= 1_000_000
    expected = 0.15 if length > 9 else 1 / 6  # of 6 ordinary tokens, one
    assert rates.predicted / rates.maskable == pytest.approx(expected, abs=0.0015)
    for share, expected in ((rates.to_mask, 0.8), (rates.to_random, 0.1), (rates.kept, 0.1)):
        assert share / rates.predicted == pytest.approx(expected, abs=0.005)
    assert rates.special == 0


def test_short_samples_keep_the_rate_where_one_token_is_not_too_many():
    rates = measured_rates(Masker(VOCAB_SIZE, MASK, SPECIAL), samples(100, 23), 20_000)  # 20 ordinary tokens: 3 on average
    assert rates.predicted / rates.maskable == pytest.approx(0.15, abs=0.0015)


def test_masks_depend_on_seed_epoch_and_sample_alone():
    sample = samples(1)[0]
    masker = Masker(VOCAB_SIZE, MASK, SPECIAL, seed=5)
    ids, labels = masker(sample, 7, 2)
    for again in (masker, Masker(VOCAB_SIZE, MASK, SPECIAL, seed=5)):
        np.testing.assert_array_equal(again(sample, 7, 2)[0], ids)
        np.testing.assert_array_equal(again(sample, 7, 2)[1], labels)
    others = [masker(sample, 8, 2), masker(sample, 7, 3), Masker(VOCAB_SIZE, MASK, SPECIAL, seed=6)(sample, 7, 2)]
    assert all((other[1] != labels).any() for other in others)
    static = Masker(VOCAB_SIZE, MASK, SPECIAL, seed=5, static=True)
    np.testing.assert_array_equal(static(sample, 7, 0)[1], static(sample, 7, 9)[1])


def test_labels_are_the_tokens_before_and_nothing_else_changes():
    for number, sample in enumerate(samples(50)):
        before = sample.input_ids.copy()
        ids, labels = Masker(VOCAB_SIZE, MASK, SPECIAL)(sample, number, 0)
        np.testing.assert_array_equal(sample.input_ids, before)
        chosen = labels != IGNORE_INDEX
        np.testing.assert_array_equal(labels[chosen], before[chosen])
        np.testing.assert_array_equal(ids[~chosen], before[~chosen])
        assert not np.isin(ids[chosen & (ids != MASK)], SPECIAL).any()


def test_whole_words_are_predicted_together():
    continues = np.zeros(VOCAB_SIZE, bool)
    continues[20000:] = True
    masker = Masker(VOCAB_SIZE, MASK, SPECIAL, continues=continues)
    predicted = maskable = 0
    for number, sample in enumerate(samples(300)):
        labels = masker(sample, number, 0)[1]
        ids = sample.input_ids
        for position in range(1, len(ids)):
            if continues[ids[position]] and ids[position - 1] not in SPECIAL:
                assert (labels[position] == IGNORE_INDEX) == (labels[position - 1] == IGNORE_INDEX)
        predicted += (labels != IGNORE_INDEX).sum()
        maskable += (~np.isin(ids, SPECIAL)).sum()
    assert predicted / maskable == pytest.approx(0.15, abs=0.01)


def test_the_most_predictions_of_a_sample_are_kept():
    masker = Masker(VOCAB_SIZE, MASK, SPECIAL, max_predictions=5)
    assert {int((masker(sample, n, 0)[1] != IGNORE_INDEX).sum()) for n, sample in enumerate(samples(20))} == {5}


def test_a_sample_of_special_tokens_alone_predicts_nothing():
    ids, labels = Masker(VOCAB_SIZE, MASK, SPECIAL)(Sample(np.array([101, 102, 102]), 2, False), 0, 0)
    assert ids.tolist() == [101, 102, 102]
    assert (labels == IGNORE_INDEX).all()


def test_random_words_are_these_on_every_machine():
    """Raw Philox output, which NumPy guarantees; a change would silently change every training."""
    assert random_words(1, 2, 3, size=3).tolist() == [15768235504358795223, 4205703100317650915, 5464880595561476444]
    assert len({tuple(random_words(1, *counters, size=2)) for counters in ((0, 0), (0, 1), (1, 0), (2, 0))}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(probability=0.0), "probability between 0 and 1, got 0.0"),
        (dict(probability=1.0), "probability between 0 and 1, got 1.0"),
        (dict(max_predictions=0), "at least one prediction per sample, got 0"),
        (dict(mask_id=40000), "below 30522, got 40000"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Masker(**{"vocab_size": VOCAB_SIZE, "mask_id": MASK, "special_ids": SPECIAL, **options})
