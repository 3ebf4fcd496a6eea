"""Scores and seconds of fine-tunings side by side, and whether two means differ by more than seeds make them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

STANDARD_ERRORS = 2.0


def standard_error(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of the difference of two means (Welch). Raises ValueError for fewer than two scores."""
    if min(len(ours), len(theirs)) < 2:
        raise ValueError(f"expected at least two scores on each side, got {len(ours)} and {len(theirs)}")
    return math.sqrt(statistics.variance(ours) / len(ours) + statistics.variance(theirs) / len(theirs))


def agreement(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The difference of the means beside two standard errors of it, as text."""
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    if min(len(ours), len(theirs)) < 2:
        return f"{difference:+.4f}: no verdict from one seed"
    most = STANDARD_ERRORS * standard_error(ours, theirs)
    return f"{difference:+.4f}, {'within' if abs(difference) <= most else 'BEYOND'} ±{most:.4f}"


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """The median over seeds of the ratio of seconds: each is of two runs that followed each other."""
    return statistics.median(one / other for one, other in zip(of, to, strict=True))


def table_of(tasks: Mapping[str, Any], contenders: Sequence[str]) -> Any:
    """A rich table of a record's tasks; the first contender is the one the others are compared with."""
    from rich.table import Table

    table = Table(title="Fine-tuning: mean ± deviation over seeds; median seconds of training")
    for name in ("", "", "score", f"{contenders[0]} is", "seconds", "padding", f"{contenders[0]} is"):
        table.add_column(name, justify="left" if not name else "right")
    for name, task in tasks.items():
        runs = list(task["runs"].values())
        scores = {one: [run[one]["metrics"][task["metric"]] for run in runs] for one in contenders}
        seconds = {one: [run[one]["seconds"] for run in runs] for one in contenders}
        for one in contenders:
            spread = f" ± {statistics.stdev(scores[one]):.4f}" if len(runs) > 1 else ""
            table.add_row(
                f"{name}\n{task['metric']}, {len(runs)} seeds" if one == contenders[0] else "", one,
                f"{statistics.fmean(scores[one]):.4f}{spread}",
                "" if one == contenders[0] else agreement(scores[contenders[0]], scores[one]),
                f"{statistics.median(seconds[one]):.1f}", f"{statistics.fmean(run[one]['padding'] for run in runs):.0%}",
                "" if one == contenders[0] else f"{ratio(seconds[one], seconds[contenders[0]]):.2f}x",
                end_section=one == contenders[-1],
            )  # fmt: skip
    return table
