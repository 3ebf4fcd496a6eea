"""The scores of `fastbert evaluate` as tables of at most 80 columns."""

from typing import Any

import numpy as np
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fastbert.inference.evaluation import Evaluation

WIDTH = 80
LABEL_WIDTH = 28
SHOWN_CONFUSIONS = 10


def show(found: Evaluation) -> None:
    """Prints the metrics, the scores of each label or type, and the confusion matrix, or where it is too wide its largest."""
    screen = Console()
    screen = Console(width=min(screen.width, WIDTH) if screen.is_terminal else WIDTH)
    screen.print(_metrics(found))
    if found.labels:
        screen.print(_labels(found))
    if found.confusion is not None:
        names = list(found.labels)
        matrix = _matrix(names, found.confusion)
        fits = Measurement.get(screen, screen.options.update(width=10**4), matrix).maximum <= screen.width
        screen.print(matrix if fits else _largest(names, found.confusion))


def _metrics(found: Evaluation) -> Table:
    table = Table(title=f"{found.task}, {found.rows:,} rows", title_justify="left")
    table.add_column("metric")
    table.add_column("in percent" if found.task == "answer" else "score", justify="right")
    for name, value in found.metrics.items():
        table.add_row(name, f"{value:.2f}" if found.task == "answer" else f"{value:.4f}")
    return table


def _labels(found: Evaluation) -> Table:
    table = Table()
    table.add_column("entity" if found.task == "tag" else "label", overflow="fold", max_width=LABEL_WIDTH)
    for name in ("precision", "recall", "f1", "entities" if found.task == "tag" else "rows"):
        table.add_column(name, justify="right")
    for name, scores in found.labels.items():
        values = (f"{scores[score]:.4f}" for score in ("precision", "recall", "f1"))
        table.add_row(Text(name), *values, f"{scores['support']:,}")
    return table


def _matrix(names: list[str], confusion: np.ndarray) -> Table:
    """Rows are what is right, columns what was predicted, by number."""
    table = Table(title="expected by predicted", title_justify="left")
    table.add_column("")
    table.add_column("expected", overflow="fold", max_width=LABEL_WIDTH)
    for number in range(1, len(names) + 1):
        table.add_column(str(number), justify="right")
    for number, (name, counts) in enumerate(zip(names, confusion.tolist()), 1):
        table.add_row(str(number), Text(name), *map(str, counts))
    return table


def _largest(names: list[str], confusion: np.ndarray) -> Any:
    """The most frequent mistakes, of a matrix that is too wide; --json has it whole."""
    mistakes = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:SHOWN_CONFUSIONS]
    table = Table(title="most frequent mistakes; --json FILE has the whole matrix", title_justify="left")
    for column in ("expected", "predicted"):
        table.add_column(column, overflow="fold", max_width=LABEL_WIDTH)
    table.add_column("rows", justify="right")
    for index in order.tolist():
        row, column = divmod(index, len(names))
        if mistakes[row, column]:
            table.add_row(Text(names[row]), Text(names[column]), f"{mistakes[row, column]:,}")
    return table
