"""From the logits of a question's windows to answers: the best spans, cut from the context itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .windows import ContextWindow

N_BEST, MAX_ANSWER_LENGTH = 20, 30


@dataclass(frozen=True)
class Answer:
    """text: context[start:end]. score: sum of its start and end logit. probability: among the n best, and none if asked."""

    text: str
    start: int
    end: int
    score: float
    probability: float


@dataclass(frozen=True)
class Answers:
    """best: highest score first, no span twice; empty where the context has no tokens.

    null_score: the least sum of both logits at [CLS] over the windows. null_probability: 0 where no answer was not asked for.
    """

    best: tuple[Answer, ...]
    null_score: float
    null_probability: float = 0.0

    @property
    def null_difference(self) -> float:
        """How much better no answer scores than the best one; infinite where there is none."""
        return self.null_score - self.best[0].score if self.best else float("inf")

    def choose(self, threshold: float | None = None) -> Answer | None:
        """The best answer, or None where there is none. threshold: None also where `null_difference` is greater than it."""
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
    """The n best answers of one question. All spans are looked at, not only those of the best starts and ends.

    start_logits, end_logits: one array (tokens,) per window. context: the whole, of which answers are parts.
    max_answer_length: in tokens. allow_none: no answer takes part in the probabilities (SQuAD 2.0).
    Raises ValueError where the numbers do not fit.
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
    """((first, last character), score) of the best spans of a window."""
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
