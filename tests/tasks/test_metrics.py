"""Metrics against cases worked by hand, and SQuAD's against what its published evaluation says of itself."""

import itertools
import math

import numpy as np
import pytest

from fastbert.tasks.metrics import (
    best_threshold,
    classification_metrics,
    entity_metrics,
    exact_match,
    normalise_answer,
    regression_metrics,
    squad_metrics,
    token_f1,
)


def test_binary_classification_by_hand():
    # right: 3 positive, 5 negative; found: 2 true positives, 1 false positive, 1 false negative, 4 true negatives
    found = classification_metrics([1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0], 2)
    assert found["accuracy"] == 6 / 8
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["f1_macro"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["matthews"] == pytest.approx((2 * 4 - 1 * 1) / math.sqrt(3 * 3 * 5 * 5))


def test_classification_of_several_labels_by_hand():
    found = classification_metrics([0, 1, 1, 2], [0, 1, 2, 2], 3)
    assert found["accuracy"] == 3 / 4
    assert found["f1_macro"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert "f1" not in found


def test_one_answer_for_all_has_no_correlation():
    found = classification_metrics([0, 0, 0], [0, 1, 1], 2)
    assert found["matthews"] == 0.0
    assert found["f1"] == 0.0
    assert regression_metrics([2.0, 2.0], [1.0, 3.0]) == {"pearson": 0.0, "spearman": 0.0, "mse": 1.0}


def test_regression_by_hand():
    found = regression_metrics([1, 2, 3, 10], [1, 2, 3, 4])
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(14 / math.sqrt(50 * 5))  # deviations -3 -2 -1 6 and -1.5 -.5 .5 1.5
    assert found["mse"] == 9.0


def test_entities_count_whole_and_with_their_type():
    tags = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "I-LOC"]]
    guessed = [["B-PER", "I-PER", "O", "B-PER"], ["O", "B-LOC", "O"]]
    found = entity_metrics(guessed, tags)  # 3 right, 3 guessed, 1 of both
    assert (found["precision"], found["recall"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert found["f1"] == pytest.approx(1 / 3)
    assert found["accuracy"] == 5 / 7


def test_no_entities_at_all_score_zero():
    assert entity_metrics([["O"]], [["O"]]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  Cat, an  apple!", "cat apple"),
        ("a", ""),
        ("theatre another", "theatre another"),
        ("U.S.A.", "usa"),
        ("the-cat", "thecat"),  # punctuation goes before articles
        ("$1,000.5", "10005"),
        ("“curly”", "“curly”"),  # only ASCII punctuation
        ("A\u00a0cat\n", "cat"),
        ("L'été", "lété"),
    ],
)
def test_answers_are_normalised_as_squad_does(text, wanted):
    assert normalise_answer(text) == wanted


def test_exact_match_and_f1_take_the_best_answer():
    assert exact_match("The cat.", ["dog", "cat"]) == 1.0
    assert exact_match("cats", ["cat"]) == 0.0
    assert token_f1("the big black cat", ["black cat", "cat"]) == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert token_f1("cat cat dog", ["cat cat"]) == pytest.approx(0.8)  # words count as often as they come
    assert token_f1("dog", ["cat"]) == 0.0


def test_no_answer_scores_one_only_against_no_answer():
    for score in (exact_match, token_f1):
        assert score("", []) == 1.0
        assert score("the", []) == 1.0  # nothing is left of it
        assert score("cat", []) == 0.0
        assert score("", ["cat"]) == 0.0
        assert score("", ["the", "cat"]) == 0.0  # answers of which nothing is left are no answers


def test_squad_metrics_by_hand():
    answers = {"a": ["black cat"], "b": ["dog"], "c": [], "d": []}
    guesses = {"a": "cat", "b": "the dog", "c": "x", "d": ""}
    found = squad_metrics(guesses, answers)
    assert found["exact_match"] == 50.0
    assert found["f1"] == pytest.approx(100 * (2 / 3 + 1 + 0 + 1) / 4)
    assert found["has_answer_exact_match"] == 50.0
    assert found["has_answer_f1"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert found["no_answer_f1"] == found["no_answer_exact_match"] == 50.0
    assert set(squad_metrics({"b": "dog"}, {"b": ["dog"]})) == {"exact_match", "f1"}


def test_a_question_without_a_prediction_is_refused():
    with pytest.raises(ValueError, match="got none for \\['b'\\]"):
        squad_metrics({"a": "x"}, {"a": ["x"], "b": ["y"]})


@pytest.mark.parametrize("seed", range(20))
def test_the_best_threshold_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    keys = [f"q{number}" for number in range(12)]
    answerable = {key: bool(rng.integers(2)) for key in keys}
    scores = {key: float(rng.choice([0.0, 0.5, 1.0])) if answerable[key] else 0.0 for key in keys}
    differences = {key: float(rng.integers(-4, 5)) for key in keys}  # many equal

    def at(threshold: float) -> float:
        return sum(float(not answerable[key]) if differences[key] > threshold else scores[key] for key in keys)

    value, threshold = best_threshold(scores, answerable, differences)
    assert value == pytest.approx(at(threshold))
    assert value == pytest.approx(max(at(one) for one in itertools.chain([-9.0], differences.values())))


def test_best_scores_come_with_their_thresholds():
    answers = {"a": ["cat"], "b": ["dog"], "c": []}
    found = squad_metrics({"a": "cat", "b": "pig", "c": "x"}, answers, {"a": -3.0, "b": 5.0, "c": 1.0})
    assert found["best_exact_match"] == found["best_f1"] == pytest.approx(200 / 3)
    assert found["best_exact_match_threshold"] == -3.0
    assert found["exact_match"] == pytest.approx(100 / 3)


def test_a_question_that_cannot_be_answered_is_never_above_a_threshold():
    differences = {"a": float("inf"), "b": -1.0}
    assert best_threshold({"a": 1.0, "b": 1.0}, {"a": False, "b": True}, differences) == (2.0, -1.0)
