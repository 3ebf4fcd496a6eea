"""The usual metrics of each task: from scikit-learn, SciPy and seqeval; SQuAD's as its published evaluation script."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .tags import OUTSIDE, as_bioes, tag_type

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def classification_metrics(predictions: Sequence[int], labels: Sequence[int], num_labels: int) -> dict[str, float]:
    """accuracy, f1_macro over the labels that occur, matthews; with two labels also f1 of label 1."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    found = {
        "accuracy": float(accuracy_score(labels, predictions)),
        "f1_macro": float(f1_score(labels, predictions, average="macro", zero_division=0.0)),
        "matthews": float(matthews_corrcoef(labels, predictions)),
    }
    if num_labels == 2:
        found["f1"] = float(f1_score(labels, predictions, labels=[0, 1], pos_label=1, zero_division=0.0))
    return found


def scores_by_label(predictions: Sequence[int], labels: Sequence[int], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """precision, recall, f1 and support (rows that have it) of each label, by its name; 0 where there is nothing to count."""
    from sklearn.metrics import precision_recall_fscore_support

    numbers = list(range(len(names)))
    found = precision_recall_fscore_support(labels, predictions, labels=numbers, zero_division=0.0)
    return {name: _scores(*one) for name, *one in zip(names, *found)}


def _scores(precision: float, recall: float, f1: float, support: int) -> dict[str, float]:
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}


def regression_metrics(predictions: Sequence[float], labels: Sequence[float]) -> dict[str, float]:
    """pearson, spearman and mse; the correlations are 0 for fewer than two values, or equal ones on either side."""
    from scipy.stats import pearsonr, spearmanr

    guessed, wanted = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    found = {"pearson": 0.0, "spearman": 0.0, "mse": float(np.mean((guessed - wanted) ** 2))}
    if len(wanted) > 1 and np.ptp(guessed) and np.ptp(wanted):
        found["pearson"] = float(pearsonr(guessed, wanted).statistic)
        found["spearman"] = float(spearmanr(guessed, wanted).statistic)
    return found


def entity_metrics(predictions: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> dict[str, float]:
    """precision, recall and f1 of whole entities over all sentences, as seqeval and conlleval count them; accuracy per word.

    BILOU is counted as BIOES: outside its strict mode seqeval would count U-X U-X as one entity.
    """
    import warnings

    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    guessed, wanted = _tag_lists(predictions), _tag_lists(tags)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without any entities the score is 0
        return {
            "f1": float(f1_score(wanted, guessed, zero_division=0)),
            "precision": float(precision_score(wanted, guessed, zero_division=0)),
            "recall": float(recall_score(wanted, guessed, zero_division=0)),
            "accuracy": float(accuracy_score(wanted, guessed)),
        }


def scores_by_type(predictions: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    """precision, recall, f1 and support (entities) of each type of entity, as `entity_metrics` counts them."""
    import warnings

    from seqeval.metrics import classification_report

    guessed, wanted = _tag_lists(predictions), _tag_lists(tags)
    names = sorted({tag_type(tag) for sentence in (*guessed, *wanted) for tag in sentence} - {OUTSIDE})
    if not names:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = classification_report(wanted, guessed, output_dict=True, zero_division=0)
    values = {name: found[name] for name in names}
    return {name: _scores(one["precision"], one["recall"], one["f1-score"], one["support"]) for name, one in values.items()}


def _tag_lists(tags: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[as_bioes(tag) for tag in sentence] for sentence in tags]


def normalise_answer(text: str) -> str:
    """The text in lower case, without ASCII punctuation, English articles and extra blanks, removed in that order."""
    kept = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the normalised prediction equals one of the answers. answers: empty for an unanswerable question."""
    guessed = normalise_answer(prediction)
    return float(any(guessed == normalise_answer(answer) for answer in _given(answers)))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 of shared words over the answers, all normalised. answers: empty for an unanswerable question."""
    guessed = normalise_answer(prediction).split()
    return max(_f1(guessed, normalise_answer(answer).split()) for answer in _given(answers))


def squad_metrics(
    predictions: Mapping[str, str],
    answers: Mapping[str, Sequence[str]],
    null_differences: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """exact_match and f1 of the predictions, in percent over all questions.

    predictions: a text by question id, empty only where it is no answer. answers: the right texts by question id, none for an
    unanswerable question; where there are such questions, the metrics of both kinds are added. null_differences: how much
    better no answer scores than the prediction; adds best_exact_match, best_f1 and, for each, the threshold above which no
    answer is given.
    Raises ValueError where a question has no prediction.
    """
    missing = [key for key in answers if key not in predictions]
    if missing or not answers:
        raise ValueError(f"expected a prediction for each of at least one question, got none for {missing[:3]}")
    exact = {key: exact_match(predictions[key], right) for key, right in answers.items()}
    f1 = {key: token_f1(predictions[key], right) for key, right in answers.items()}
    found = {"exact_match": _percent(exact.values()), "f1": _percent(f1.values())}
    answerable = {key: any(normalise_answer(answer) for answer in right) for key, right in answers.items()}
    if not all(answerable.values()):
        for name, wanted in (("has_answer", True), ("no_answer", False)):
            keys = [key for key in answers if answerable[key] is wanted]
            if keys:
                found[f"{name}_exact_match"] = _percent(exact[key] for key in keys)
                found[f"{name}_f1"] = _percent(f1[key] for key in keys)
    if null_differences is not None:
        for name, scores in (("exact_match", exact), ("f1", f1)):
            value, threshold = best_threshold(scores, answerable, null_differences)
            found[f"best_{name}"], found[f"best_{name}_threshold"] = 100.0 * value / len(answers), threshold
    return found


def best_threshold(
    scores: Mapping[str, float], answerable: Mapping[str, bool], null_differences: Mapping[str, float]
) -> tuple[float, float]:
    """(sum of scores, threshold) at the best threshold: a question whose null difference is above it gets no answer.

    scores: of the predictions, without a threshold. Of equal sums the lowest threshold, which may be below all differences.
    """
    keys = sorted(scores, key=lambda key: null_differences[key])
    total = float(sum(not answerable[key] for key in keys))
    differences = [null_differences[key] for key in keys]
    finite = [value for value in differences if np.isfinite(value)]
    best, threshold = total, (min(finite) if finite else 0.0) - 1.0
    for index, key in enumerate(keys):
        total += scores[key] - (0.0 if answerable[key] else 1.0)
        last_of_its_value = index + 1 == len(keys) or differences[index + 1] > differences[index]
        if last_of_its_value and total > best and np.isfinite(differences[index]):
            best, threshold = total, differences[index]
    return best, threshold


def _given(answers: Sequence[str]) -> list[str]:
    return [answer for answer in answers if normalise_answer(answer)] or [""]


def _f1(guessed: list[str], wanted: list[str]) -> float:
    if not guessed or not wanted:
        return float(guessed == wanted)
    shared = sum((Counter(guessed) & Counter(wanted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(guessed), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _percent(values: Any) -> float:
    return 100.0 * float(np.mean(list(values)))
