"""Results of inference as JSON objects, one for each row, and as tables for a terminal.

Each command has a `Form` below.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from fastbert.inference.rows import Row

Results = list[tuple[Row, Any]]
SHOWN_NUMBERS = 4


class Form(NamedTuple):
    """to_object: one row and its result as a JSON object. to_table: several of them as a table."""

    to_object: Callable[[Row, Any], dict[str, Any]]
    to_table: Callable[[Results], Any]


def _table(*columns: str) -> Table:
    """A table without rows. Columns whose name ends in ':' are numbers, and right-aligned."""
    table = Table()
    for name in columns:
        table.add_column(name.rstrip(":"), justify="right" if name.endswith(":") else "left", overflow="fold")
    return table


def _texts(row: Row) -> dict[str, Any]:
    return {"text": row.value} if isinstance(row.value, str) else {"first": row.value[0], "second": row.value[1]}


def _name(row: Row) -> Text:
    return Text(row.value if isinstance(row.value, str) else " / ".join(row.value))


def _embedding_object(row: Row, vector: np.ndarray) -> dict[str, Any]:
    numbers = [float(str(number)) for number in vector]  # the shortest digits that round to the same number of its dtype
    return {"text": row.value, "embedding": numbers}


def _embeddings_table(results: Results) -> Table:
    names = [str(number) for number in range(1, len(results) + 1)]
    table = _table("", "text", f"vector of {len(results[0][1])}", *(f"cosine {name}:" for name in names))
    vectors = np.stack([vector for _, vector in results]).astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    for name, (row, vector), cosines in zip(names, results, vectors @ vectors.T):
        first = " ".join(f"{number:.4f}" for number in vector[:SHOWN_NUMBERS]) + " ..."
        table.add_row(name, _name(row), first, *(f"{cosine:.3f}" for cosine in cosines))
    return table


def _mask_object(row: Row, masks: Any) -> dict[str, Any]:
    return {"text": row.value, "masks": masks}


def _masks_table(results: Results) -> Table:
    table = _table("text", "mask:", "token", "probability:")
    for _, masks in results:
        for number, fills in enumerate(masks, 1):
            for i, fill in enumerate(fills):
                first = i == 0
                table.add_row(
                    Text(fill["sequence"]), str(number) if first else "", Text(fill["token_str"]), f"{fill['score']:.4f}"
                )
        table.add_section()
    return table


def _labels_object(row: Row, labels: Any) -> dict[str, Any]:
    return _texts(row) | {"labels": labels}


def _labels_table(results: Results) -> Table:
    table = _table("text", "label", "score:")
    for row, labels in results:
        for i, label in enumerate(labels):
            table.add_row(_name(row) if i == 0 else "", Text(str(label["label"])), f"{label['score']:.4f}")
    return table


def _score_object(row: Row, value: float) -> dict[str, Any]:
    return _texts(row) | {"score": value}


def _scores_table(results: Results) -> Table:
    table = _table("A", "B", "B follows A:")
    for row, value in results:
        table.add_row(Text(row.value[0]), Text(row.value[1]), f"{value:.4f}")
    return table


def _tags_object(row: Row, result: Any) -> dict[str, Any]:
    return ({"text": row.value} if isinstance(row.value, str) else {}) | result


def _tags_table(results: Results) -> Table:
    table = _table("text", "words:", "entity", "label", "characters:", "score:")
    for row, result in results:
        lines = [
            (Text(one["word"]), Text(one["entity_group"]), f"{one['start']}-{one['end']}", f"{one['score']:.4f}")
            for one in result["entities"]
        ] or [
            (Text(word), Text(label), "", f"{value:.4f}")
            for word, label, value in zip(result["words"], result["tags"], result["scores"])
        ]
        for i, line in enumerate(lines):
            table.add_row(*((_name(row), str(len(result["words"]))) if i == 0 else ("", "")), *line)
        table.add_section()
    return table


def _answers_object(row: Row, answers: Any) -> dict[str, Any]:
    return {"question": row.value[0], "context": row.value[1], "answers": answers}


def _answers_table(results: Results) -> Table:
    table = _table("question", "answer", "characters:", "score:")
    for row, answers in results:
        found = answers or [{"answer": "(none)", "start": 0, "end": 0, "score": 0.0}]
        for i, one in enumerate(found):
            line = Text(one["answer"] or "(none)"), f"{one['start']}-{one['end']}", f"{one['score']:.4f}"
            table.add_row(Text(row.value[0]) if i == 0 else "", *line)
    return table


EMBEDDINGS = Form(_embedding_object, _embeddings_table)
MASKS = Form(_mask_object, _masks_table)
LABELS = Form(_labels_object, _labels_table)
SCORES = Form(_score_object, _scores_table)
TAGS = Form(_tags_object, _tags_table)
ANSWERS = Form(_answers_object, _answers_table)
