"""Next-sentence pairs against what the recipe promises, on made-up ids that encode their position."""

import random

import numpy as np
import pytest

from fastbert.data.pairs import PairOptions, document_pairs
from fastbert.utils.errors import DataError

CLS, SEP = 2, 3
FIRST_ID = 10


def make_documents(count: int, sentences: tuple[int, int], tokens: tuple[int, int], seed: int = 0) -> list[list[np.ndarray]]:
    """Every token of the corpus has its own id, which identifies its document, sentence and position."""
    draw = np.random.default_rng(seed)
    documents, next_id = [], FIRST_ID
    for _ in range(count):
        document = []
        for length in draw.integers(tokens[0], tokens[1] + 1, draw.integers(sentences[0], sentences[1] + 1)):
            document.append(np.arange(next_id, next_id + length, dtype=np.uint32))
            next_id += int(length)
        documents.append(document)
    return documents


def options(**changes) -> PairOptions:
    return PairOptions(**{"seq_len": 64, "cls_id": CLS, "sep_id": SEP, **changes})


def segments(sample) -> tuple[np.ndarray, np.ndarray]:
    ids = sample.input_ids
    assert ids[0] == CLS
    assert ids[-1] == SEP
    assert ids[sample.first_length - 1] == SEP
    return ids[1 : sample.first_length - 1], ids[sample.first_length : -1]


def every_pair(documents, settings, duplicate=0):
    return [(n, pair) for n in range(len(documents)) for pair in document_pairs(documents, n, duplicate, settings)]


@pytest.mark.parametrize("seq_len", [5, 16, 64, 128])
def test_pairs_keep_limits_order_and_documents(seq_len):
    documents = make_documents(60, (1, 30), (1, 25))
    owner = np.concatenate([np.full(sum(map(len, document)), n) for n, document in enumerate(documents)])
    pairs = every_pair(documents, options(seq_len=seq_len))
    for number, (sample, dropped) in pairs:
        a, b = segments(sample)
        assert len(sample.input_ids) <= seq_len
        assert dropped == 0 or len(sample.input_ids) == seq_len
        assert len(a)
        assert len(b)
        for side in (a, b):
            assert (np.diff(side.astype(np.int64)) == 1).all()  # what is kept is one stretch of text
        assert set(owner[a - FIRST_ID]) == {number}
        others = set(owner[b - FIRST_ID])
        assert len(others) == 1
        if sample.is_random_next:
            assert others != {number}
        else:
            assert others == {number}
            assert b[0] > a[-1]
            if not dropped:
                assert b[0] == a[-1] + 1  # B begins with the token after A
    assert any(sample.is_random_next for _, (sample, _) in pairs)
    assert seq_len == 5 or any(not sample.is_random_next for _, (sample, _) in pairs)


def test_all_sentences_are_used_once_and_in_order():
    """Sentences of one token fill every target exactly, nothing is cut: A and the true B together are the document."""
    documents = make_documents(80, (1, 400), (1, 1))
    for number, document in enumerate(documents):
        read = []
        for sample, dropped in document_pairs(documents, number, 0, options(short_seq_prob=0.5)):
            assert dropped == 0
            a, b = segments(sample)
            read += [a] if sample.is_random_next else [a, b]
        np.testing.assert_array_equal(np.concatenate(read), np.concatenate(document))


@pytest.mark.parametrize("seq_len", [32, 128])
def test_every_sentence_occurs_though_some_are_cut(seq_len):
    documents = make_documents(60, (1, 30), (1, 20))
    for number, document in enumerate(documents):
        seen = [
            side for sample, _ in document_pairs(documents, number, 0, options(seq_len=seq_len)) for side in segments(sample)
        ]
        kept, total = len(np.intersect1d(np.concatenate(seen), np.concatenate(document))), sum(map(len, document))
        lost = sum(dropped for _, dropped in document_pairs(documents, number, 0, options(seq_len=seq_len)))
        assert kept >= total - lost


def test_half_of_the_chunks_with_a_choice_get_a_random_next():
    """100,000 and more chunks of several sentences: 50% ± 0.7 points. Four standard errors are 0.63."""
    documents = make_documents(450, (1000, 1000), (7, 9))
    settings = options(seq_len=32, short_seq_prob=0)
    choices = randoms = 0
    for number, document in enumerate(documents):
        last = document[-1][0]
        for sample, _ in document_pairs(documents, number, 0, settings):
            a, _ = segments(sample)
            if a[-1] < last:  # a chunk that ends before the document has at least four sentences
                choices += 1
                randoms += sample.is_random_next
    assert choices >= 100_000
    assert abs(randoms / choices - 0.5) < 0.007


def test_short_targets_follow_the_probability():
    """Sentences of one token fill every target exactly, so that a true pair shows its document's target."""
    documents = make_documents(2000, (62, 62), (1, 1))
    for share in (0.0, 0.1, 1.0):
        settings = options(seq_len=64, short_seq_prob=share)
        first = [next(document_pairs(documents, number, 0, settings)).sample for number in range(2000)]
        targets = [len(sample.input_ids) - 3 for sample in first if not sample.is_random_next]
        assert abs(np.mean(np.array(targets) < 61) - share * 59 / 60) <= 0.04 * (0 < share < 1) + 0.02 * (share == 1)
        assert min(targets) >= 2
        if share == 1:
            assert set(targets) == set(range(2, 62))


def test_draws_depend_on_seed_duplicate_and_document_only():
    documents = make_documents(30, (2, 20), (1, 20))

    def flat(pairs):
        return [(sample.input_ids.tolist(), sample.first_length, sample.is_random_next) for _, (sample, _) in pairs]

    forward = flat(every_pair(documents, options()))
    order = random.Random(1).sample(range(30), 30)
    shuffled = {n: flat((n, pair) for pair in document_pairs(documents, n, 0, options())) for n in order}
    assert [item for n in range(30) for item in shuffled[n]] == forward
    assert flat(every_pair([[list(map(int, s)) for s in d] for d in documents], options())) == forward
    assert flat(every_pair(documents, options(seed=1))) != forward
    assert flat(every_pair(documents, options(), duplicate=1)) != forward


def test_a_sentence_longer_than_the_limit_is_cut_from_both_ends():
    documents = make_documents(2, (1, 1), (500, 500))
    fronts = []
    for duplicate in range(50):
        (pair,) = document_pairs(documents, 0, duplicate, options())
        a, b = segments(pair.sample)
        assert pair.sample.is_random_next  # A is the whole document
        assert len(pair.sample.input_ids) == 64
        assert abs(len(a) - len(b)) <= 1
        assert pair.dropped == 1000 - 61
        fronts.append(int(a[0]) - FIRST_ID)
    assert 200 < np.mean(fronts) < 270  # about half of the 470 lost tokens
    assert len(set(fronts)) > 10


def test_one_sentence_documents_always_get_a_random_next():
    pairs = every_pair(make_documents(40, (1, 1), (3, 8)), options())
    assert len(pairs) == 40
    assert all(pair.sample.is_random_next for _, pair in pairs)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (make_documents(1, (5, 5), (3, 8)), "at least two documents"),
        ([[], [[11]]], "sentences in document 0, got none"),
        ([[[11]], []], "sentences in document 1, got none"),
        ([[[11], []], [[12]]], "tokens in sentence 1 of document 0"),
    ],
)
def test_rejects_documents_without_pairs(documents, message):
    with pytest.raises(DataError, match=message):
        list(document_pairs(documents, 0, 0, options(short_seq_prob=0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 4}, "at least 5, got 4"),
        ({"short_seq_prob": 1.5}, "from 0 to 1"),
        ({"short_seq_prob": float("nan")}, "0 to 1"),
    ],
)
def test_rejects_bad_options(changes, message):
    with pytest.raises(DataError, match=message):
        options(**changes)
