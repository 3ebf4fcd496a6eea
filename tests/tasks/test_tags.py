"""From logits to tags, from tags to entities, and back."""

import numpy as np
import pytest

from fastbert.tasks.tagged import with_offsets
from fastbert.tasks.tags import bio_tags, spans, word_logits, word_tags
from fastbert.tasks.windows import best_windows, word_windows

LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def test_tags_come_from_first_pieces_of_the_window_with_most_context(tokenizer):
    words = ["anna", "was", "in", "unbelievableness", ","] * 12
    windows = list(word_windows(tokenizer, [words], max_length=20, stride=8))
    logits = [np.random.default_rng(number).normal(size=(len(window), 5)) for number, window in enumerate(windows)]
    found = word_logits(windows, logits, len(words))
    for word, position in enumerate(best_windows(windows, len(words))):
        np.testing.assert_array_equal(found[word], logits[position[0]][position[1]])
    tags, probabilities = word_tags(found, LABELS)
    assert tags == [LABELS[one] for one in found.argmax(-1)]
    np.testing.assert_allclose(probabilities, (np.exp(found) / np.exp(found).sum(-1, keepdims=True)).max(-1))


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        (["B-LOC", None, "I-LOC", None, "O"], ["B-LOC", "I-LOC", "I-LOC", "O", "O"]),
        ([None, "B-LOC", None, None, "I-LOC"], ["O", "B-LOC", "I-LOC", "I-LOC", "I-LOC"]),
        (["B-LOC", None, "B-LOC", None, "I-PER"], ["B-LOC", "O", "B-LOC", "O", "I-PER"]),
        (["I-PER", None], ["I-PER", "O"]),
        ([None, None], ["O", "O"]),
        ([], []),
    ],
)
def test_words_without_pieces_get_the_tag_around_them(known, wanted):
    logits = np.full((len(known), len(LABELS)), np.nan)
    for row, tag in zip(logits, known):
        if tag is not None:
            row[:] = 0.0
            row[LABELS.index(tag)] = 3.0
    tags, probabilities = word_tags(logits, LABELS)
    assert tags == wanted
    assert all(share == 1.0 for share, tag in zip(probabilities, known) if tag is None)


def test_spans_are_those_of_seqeval():
    from seqeval.metrics.sequence_labeling import get_entities

    rng = np.random.default_rng(0)
    for _ in range(200):
        words = [f"w{number}" for number in range(int(rng.integers(1, 12)))]
        tags = [LABELS[int(rng.integers(5))] for _ in words]
        text, offsets = with_offsets(words)
        wanted = [(label, offsets[first][0], offsets[last][1]) for label, first, last in get_entities(tags)]
        found = spans(tags, offsets, text)
        assert [(one.label, one.start, one.end) for one in found] == wanted
        assert all(one.text == text[one.start : one.end] for one in found)


def test_a_spans_probability_is_the_mean_of_its_words():
    text, offsets = with_offsets(["new", "york", "city", "anna"])
    found = spans(["B-LOC", "I-LOC", "O", "B-PER"], offsets, text, [0.5, 1.0, 0.1, 0.25])
    assert [(one.text, one.probability) for one in found] == [("new york", 0.75), ("anna", 0.25)]


def test_spans_of_characters_become_bio_tags_and_come_back():
    text, offsets = with_offsets(["in", "new", "york", "london", "anna"])
    entities = [(3, 11, "LOC"), (12, 18, "LOC"), (19, 23, "PER")]
    tags = bio_tags(entities, offsets)
    assert tags == ["O", "B-LOC", "I-LOC", "B-LOC", "B-PER"]
    assert [(one.start, one.end, one.label) for one in spans(tags, offsets, text)] == entities


def test_a_word_that_two_spans_share_is_of_the_first():
    _, offsets = with_offsets(["newyork", "city"])
    assert bio_tags([(3, 9, "B"), (0, 3, "A")], offsets) == ["B-A", "B-B"]
