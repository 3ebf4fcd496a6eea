"""From the logits of a question's windows to answers: the best spans of the context."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .windows import ContextWindow

N_BEST, MAX_ANSWER_LENGTH = 20, 30


@dataclass(frozen=True)
class Answer:
    """A span of the context.

    text: context[start:end]. score: sum of its start and end logit. probability: among the n best, and no answer if allowed.
    """

    text: str
    start: int
    end: int
    score: float
    probability: float


@dataclass(frozen=True)
class Answers:
    """The answers to one question.

    best: highest score first, no span twice; empty where the context has no tokens. null_score: the smallest sum of both logits
    at [CLS] over the windows. null_probability: of no answer, 0 where that is not allowed.
    """

    best: tuple[Answer, ...]
    null_score: float
    null_probability: float = 0.0

    @property
    def null_difference(self) -> float:
        """How much better no answer scores than the best answer; infinite where there are no answers."""
        return self.null_score - self.best[0].score if self.best else float("inf")

    def choose(self, threshold: float | None = None) -> Answer | None:
        """The best answer, or None. threshold: above which `null_difference` means no answer; None for no threshold."""
        if not self.best or (threshold is not None and self.null_difference > threshold):
            return None
        return self.best[0]


def best_answers(
    windows: Sequence[ContextWindow],
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    context: str,
    *,
    n_best: int = N_BEST,
    max_answer_length: int = MAX_ANSWER_LENGTH,
    allow_none: bool = False,
) -> Answers:
    """Finds the n best answers to one question, among all spans rather than those of the best starts and ends alone.

    start_logits, end_logits: one array (tokens,) per window. context: the whole text. max_answer_length: in tokens. allow_none:
    whether no answer is one of the candidates (SQuAD 2.0).
    Raises ValueError where the numbers of windows and logits differ.
    """
    if not len(windows) == len(start_logits) == len(end_logits) or n_best < 1 or max_answer_length < 1:
        raise ValueError(
            f"expected logits per window and positive limits, got {len(windows)} windows, {len(start_logits)} and "
            f"{len(end_logits)} logits, n_best {n_best}, max_answer_length {max_answer_length}"
        )
    found: dict[tuple[int, int], float] = {}
    null_score = float("inf")
    for window, starts, ends in zip(windows, start_logits, end_logits):
        if len(starts) != len(window) or len(ends) != len(window):
            raise ValueError(f"expected {len(window)} logits for the window, got {len(starts)} and {len(ends)}")
        starts, ends = np.asarray(starts, np.float64), np.asarray(ends, np.float64)
        null_score = min(null_score, float(starts[0] + ends[0]))
        for span, score in _spans(window, starts, ends, n_best, max_answer_length):
            if score > found.get(span, -float("inf")):
                found[span] = score
    ranked = sorted(found.items(), key=lambda item: -item[1])[:n_best]
    scores = np.array([score for _, score in ranked] + ([null_score] if allow_none and windows else []))
    shares = np.exp(scores - scores.max()) if len(scores) else scores
    shares = shares / shares.sum() if len(shares) else shares
    best = tuple(
        Answer(context[start:end], start, end, score, float(share)) for ((start, end), score), share in zip(ranked, shares)
    )
    return Answers(best, null_score, float(shares[-1]) if allow_none and windows else 0.0)


def _spans(
    window: ContextWindow, starts: np.ndarray, ends: np.ndarray, n_best: int, longest: int
) -> list[tuple[tuple[int, int], float]]:
    """((start, end), score) of the best spans of a window, in characters of the context."""
    context = np.flatnonzero(window.offsets[:, 0] >= 0)
    if not len(context):
        return []
    starts, ends = starts[context], ends[context]
    padded = np.append(ends, np.full(longest - 1, -np.inf))
    scores = starts[:, None] + np.lib.stride_tricks.sliding_window_view(padded, longest)  # (first token, length - 1)
    flat = scores.ravel()
    count = min(n_best, int(np.isfinite(flat).sum()))
    if not count:
        return []
    chosen = np.argpartition(-flat, count - 1)[:count]
    chosen = chosen[np.argsort(-flat[chosen], kind="stable")]
    first, extra = np.unravel_index(chosen, scores.shape)
    begin, end = window.offsets[context[first], 0], window.offsets[context[first + extra], 1]
    return [((int(b), int(e)), float(score)) for b, e, score in zip(begin, end, flat[chosen])]
