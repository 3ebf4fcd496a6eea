"""The n best answers against every span there is."""

import itertools

import numpy as np
import pytest

from fastbert.tasks.answers import best_answers
from fastbert.tasks.windows import question_windows

CONTEXT = "anna was born in paris , the city of france . bob , king of england , was in rome 1234 ."


def windows_and_logits(tokenizer, seed: int, max_length: int = 18, stride: int = 6):
    windows = list(question_windows(tokenizer, ["who ?"], [CONTEXT], max_length=max_length, stride=stride))
    rng = np.random.default_rng(seed)
    return windows, *([rng.normal(size=len(window)) * 3 for window in windows] for _ in range(2))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("longest", [1, 3, 200])
def test_best_answers_are_the_best_of_all_spans(tokenizer, seed, longest):
    windows, starts, ends = windows_and_logits(tokenizer, seed)
    scores: dict[tuple[int, int], float] = {}
    for window, start, end in zip(windows, starts, ends):
        inside = [token for token in range(len(window)) if window.offsets[token, 0] >= 0]
        for first, last in itertools.product(inside, inside):
            if 0 <= last - first < longest:
                span = int(window.offsets[first, 0]), int(window.offsets[last, 1])
                scores[span] = max(scores.get(span, -np.inf), start[first] + end[last])
    wanted = sorted(scores.items(), key=lambda item: -item[1])[:20]
    found = best_answers(windows, starts, ends, CONTEXT, max_answer_length=longest, allow_none=True)
    assert [(one.start, one.end) for one in found.best] == [span for span, _ in wanted]
    np.testing.assert_allclose([one.score for one in found.best], [score for _, score in wanted])
    assert all(one.text == CONTEXT[one.start : one.end] for one in found.best)
    assert found.null_score == pytest.approx(min(start[0] + end[0] for start, end in zip(starts, ends)))
    assert sum(one.probability for one in found.best) + found.null_probability == pytest.approx(1.0)


def test_probabilities_are_the_softmax_of_scores(tokenizer):
    windows, starts, ends = windows_and_logits(tokenizer, 0)
    found = best_answers(windows, starts, ends, CONTEXT, n_best=2)
    gap = found.best[0].score - found.best[1].score
    assert found.best[0].probability / found.best[1].probability == pytest.approx(np.exp(gap))
    assert found.null_probability == 0.0
    assert sum(one.probability for one in found.best) == pytest.approx(1.0)


def test_text_is_cut_from_the_context_as_it_was_written(tokenizer):
    context = "Ännä   was (BORN) in Paris"
    (window,) = question_windows(tokenizer, ["who ?"], [context], max_length=32, stride=4)
    tokens = {tuple(pair): number for number, pair in enumerate(window.offsets.tolist())}
    start, end = np.zeros(len(window)), np.zeros(len(window))
    start[next(number for (first, _), number in tokens.items() if first == 0)] = 9.0
    end[next(number for (_, last), number in tokens.items() if last == context.index(")"))] = 9.0
    assert best_answers([window], [start], [end], context).best[0].text == "Ännä   was (BORN"


def test_no_answer_is_chosen_where_it_scores_better_than_the_threshold_allows(tokenizer):
    windows, starts, ends = windows_and_logits(tokenizer, 1)
    for start in starts:
        start[0] = 2.0
    for end in ends:
        end[0] = 1.0
    found = best_answers(windows, starts, ends, CONTEXT)
    assert found.null_difference == pytest.approx(3.0 - found.best[0].score)
    assert found.choose() is found.best[0]
    assert found.choose(found.null_difference) is found.best[0]
    assert found.choose(found.null_difference - 1e-9) is None


def test_a_context_without_tokens_has_no_answer(tokenizer):
    (window,) = question_windows(tokenizer, ["who ?"], ["\u200b"], max_length=32, stride=4)
    found = best_answers([window], [np.zeros(len(window))], [np.zeros(len(window))], "\u200b", allow_none=True)
    assert found.best == ()
    assert found.choose() is None
    assert found.null_probability == 1.0


def test_logits_that_do_not_fit_are_refused(tokenizer):
    windows, starts, ends = windows_and_logits(tokenizer, 0)
    with pytest.raises(ValueError, match=f"got {len(windows)} windows, 1 and"):
        best_answers(windows, starts[:1], ends, CONTEXT)
    with pytest.raises(ValueError, match=r"expected 18 logits for the window, got 17 and 18"):
        best_answers(windows, [starts[0][:-1], *starts[1:]], ends, CONTEXT)
