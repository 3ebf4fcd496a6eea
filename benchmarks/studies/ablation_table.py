"""The table of an ablation beside table 5 of Devlin et al. 2019, and which differences exceed those between seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BERT, NO_PAIRS, LEFT = "BERT-base", "No NSP", "LTR & No NSP"
ROWS = (BERT, NO_PAIRS, LEFT)
AGAINST = {BERT: (), NO_PAIRS: (BERT,), LEFT: (BERT, NO_PAIRS)}  # the last shows the direction alone
# Devlin et al. 2019, table 5: development sets; accuracy, and F1 for SQuAD. Models of BERT-base's size.
PAPER_TASKS = ("MNLI-m", "QNLI", "MRPC", "SST-2", "SQuAD")
PAPER: dict[str, tuple[float, ...]] = {
    BERT: (84.4, 88.4, 86.7, 92.7, 88.5),
    NO_PAIRS: (83.9, 84.9, 86.5, 92.6, 87.9),
    LEFT: (82.1, 84.3, 77.5, 92.1, 77.8),
}
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdict:
    """Whether a row of the table differs from a baseline.

    difference: the row's mean minus the baseline's, in points, None where a run has no score. spread: half the width of its
    95% interval over seeds (Welch), None where there is none. claim: whether the difference exceeds the spread.
    """

    difference: float | None
    spread: float | None
    claim: bool
    text: str


def verdict(row: Sequence[float | None], baseline: Sequence[float | None]) -> Verdict:
    """Compares the scores of a row's seeds with those of the baseline's."""
    scores, others = _finite(row), _finite(baseline)
    if not scores or not others or len(scores) < len(row) or len(others) < len(baseline):
        return Verdict(None, None, False, "no verdict: a run has no score")
    difference = sum(scores) / len(scores) - sum(others) / len(others)
    if len(scores) < 2 or len(others) < 2:
        return Verdict(difference, None, False, f"{difference:+.1f}: no verdict from one seed")
    if len(set(scores)) == len(set(others)) == 1:
        text = "no difference" if difference == 0.0 else f"{difference:+.1f}: no verdict, the seeds do not differ"
        return Verdict(difference, None, False, text)
    from scipy import stats

    interval = stats.ttest_ind(scores, others, equal_var=False).confidence_interval(CONFIDENCE)
    spread = float(interval.high - interval.low) / 2
    if abs(difference) <= spread:
        return Verdict(difference, spread, False, f"{difference:+.1f}, within the spread (±{spread:.1f})")
    direction = "better" if difference > 0 else "worse"
    return Verdict(difference, spread, True, f"{direction} by {abs(difference):.1f} ±{spread:.1f}")


def _finite(scores: Sequence[float | None]) -> list[float]:
    return [score for score in scores if score is not None and math.isfinite(score)]


def mean_and_deviation(scores: Sequence[float | None]) -> str:
    """Mean ± deviation of the sample, as text."""
    found = _finite(scores)
    if not found:
        return "no score"
    mean = sum(found) / len(found)
    if len(found) < 2:
        return f"{mean:.1f}"
    deviation = math.sqrt(sum((score - mean) ** 2 for score in found) / (len(found) - 1))
    return f"{mean:.1f} ± {deviation:.1f}"


def table_of(
    scores: Mapping[str, Mapping[str, Sequence[float | None]]], metrics: Mapping[str, str], perplexities: Mapping[str, str]
) -> Any:
    """The rich table.

    scores: of each row of ROWS and each task, by seed, in percent. metrics: what each task's score is. perplexities: of each
    row, as text.
    """
    from rich.table import Table

    table = Table(
        title="Here, mean ± deviation over seeds, and table 5 of Devlin et al. 2019 (BERT-base, their data)", show_lines=True
    )
    table.add_column("")
    for task, metric in metrics.items():
        table.add_column(f"here: {task}\n{metric}")
    table.add_column("held-out\nperplexity")
    for task in PAPER_TASKS:
        table.add_column(f"paper\n{task}", justify="right")
    for row in ROWS:
        cells = []
        for task in metrics:
            lines = [mean_and_deviation(scores[row][task])]
            lines += [f"vs {other}: {verdict(scores[row][task], scores[other][task]).text}" for other in AGAINST[row]]
            cells.append("\n".join(lines))
        table.add_row(row, *cells, perplexities[row], *(f"{value:.1f}" for value in PAPER[row]))
    return table
