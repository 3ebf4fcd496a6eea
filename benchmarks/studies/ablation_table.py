"""The ablation of Devlin et al. 2019, table 5, beside scores of one's own: what differs, by more than seeds do."""

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
    """difference: the row's mean minus the baseline's, in points, None where a run has no score. spread: half the width of
    its 95% interval over seeds (Welch), None where there is none. claim: whether the one exceeds the other."""

    difference: float | None
    spread: float | None
    claim: bool
    text: str


def verdict(row: Sequence[float | None], baseline: Sequence[float | None]) -> Verdict:
    """Of the scores of a row's seeds against those of the baseline's."""
    ours = [one for one in row if one is not None and math.isfinite(one)]
    theirs = [one for one in baseline if one is not None and math.isfinite(one)]
    if not ours or not theirs or len(ours) < len(row) or len(theirs) < len(baseline):
        return Verdict(None, None, False, "no verdict: a run has no score")
    difference = sum(ours) / len(ours) - sum(theirs) / len(theirs)
    if len(ours) < 2 or len(theirs) < 2:
        return Verdict(difference, None, False, f"{difference:+.1f}: no verdict from one seed")
    if len(set(ours)) == len(set(theirs)) == 1:
        said = "no difference" if difference == 0.0 else f"{difference:+.1f}: no verdict, the seeds do not differ"
        return Verdict(difference, None, False, said)
    from scipy import stats

    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(CONFIDENCE)
    spread = float(interval.high - interval.low) / 2
    claim = abs(difference) > spread
    if not claim:
        return Verdict(difference, spread, False, f"{difference:+.1f}, within the spread (±{spread:.1f})")
    return Verdict(
        difference, spread, True, f"{'better' if difference > 0 else 'worse'} by {abs(difference):.1f} ±{spread:.1f}"
    )


def mean_and_deviation(scores: Sequence[float | None]) -> str:
    """As text: mean ± deviation of the sample."""
    found = [one for one in scores if one is not None and math.isfinite(one)]
    if not found:
        return "no score"
    mean = sum(found) / len(found)
    if len(found) < 2:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {math.sqrt(sum((one - mean) ** 2 for one in found) / (len(found) - 1)):.1f}"


def table_of(
    scores: Mapping[str, Mapping[str, Sequence[float | None]]], metrics: Mapping[str, str], perplexities: Mapping[str, str]
) -> Any:
    """A rich table. scores: of each row of ROWS and each task, by seed, in percent. metrics: what each task's score is.
    perplexities: of each row, as text."""
    from rich.table import Table

    table = Table(
        title="Ours, mean ± deviation over seeds, and table 5 of Devlin et al. 2019 (BERT-base, their data)", show_lines=True
    )
    table.add_column("")
    for task, metric in metrics.items():
        table.add_column(f"ours: {task}\n{metric}")
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
