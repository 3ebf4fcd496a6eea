"""Scores and seconds of fine-tunings side by side, and whether two means differ by more than seeds do."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

STANDARD_ERRORS = 2.0


def standard_error(scores: Sequence[float], others: Sequence[float]) -> float:
    """The standard error of the difference of two means (Welch). Raises ValueError for fewer than two scores."""
    if min(len(scores), len(others)) < 2:
        raise ValueError(f"expected at least two scores of each, got {len(scores)} and {len(others)}")
    return math.sqrt(statistics.variance(scores) / len(scores) + statistics.variance(others) / len(others))


def agreement(scores: Sequence[float], others: Sequence[float]) -> str:
    """The difference of the means beside STANDARD_ERRORS standard errors of it, as text."""
    difference = statistics.fmean(scores) - statistics.fmean(others)
    if min(len(scores), len(others)) < 2:
        return f"{difference:+.4f}: no verdict from one seed"
    most = STANDARD_ERRORS * standard_error(scores, others)
    return f"{difference:+.4f}, {'within' if abs(difference) <= most else 'BEYOND'} ±{most:.4f}"


def ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """The median over seeds of seconds over others; the two runs of a seed followed each other."""
    return statistics.median(one / other for one, other in zip(seconds, others, strict=True))


def table_of(tasks: Mapping[str, Any], contenders: Sequence[str]) -> Any:
    """The rich table of a record's tasks; the first contender is the one the others are compared with."""
    from rich.table import Table

    first = contenders[0]
    table = Table(title="Fine-tuning: mean ± deviation over seeds; median seconds of training")
    for name in ("", "", "score", f"{first} is", "seconds", "padding", f"{first} is"):
        table.add_column(name, justify="left" if not name else "right")
    for name, task in tasks.items():
        runs = list(task["runs"].values())
        scores = {one: [run[one]["metrics"][task["metric"]] for run in runs] for one in contenders}
        seconds = {one: [run[one]["seconds"] for run in runs] for one in contenders}
        for one in contenders:
            deviation = f" ± {statistics.stdev(scores[one]):.4f}" if len(runs) > 1 else ""
            table.add_row(
                f"{name}\n{task['metric']}, {len(runs)} seeds" if one == first else "",
                one,
                f"{statistics.fmean(scores[one]):.4f}{deviation}",
                "" if one == first else agreement(scores[first], scores[one]),
                f"{statistics.median(seconds[one]):.1f}",
                f"{statistics.fmean(run[one]['padding'] for run in runs):.0%}",
                "" if one == first else f"{ratio(seconds[one], seconds[first]):.2f}x",
                end_section=one == contenders[-1],
            )
    return table
