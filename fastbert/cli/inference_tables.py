"""Results as JSON objects, one a row, and as tables for a terminal."""

from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from fastbert.inference.task import Row

Results = list[tuple[Row, Any]]
SHOWN_NUMBERS = 4


def _table(*columns: str) -> Table:
    """Columns whose name ends in ':' are numbers."""
    table = Table()
    for name in columns:
        table.add_column(name.rstrip(":"), justify="right" if name.endswith(":") else "left", overflow="fold")
    return table


def _texts(row: Row) -> dict[str, Any]:
    return {"text": row.value} if isinstance(row.value, str) else {"first": row.value[0], "second": row.value[1]}


def _name(row: Row) -> Text:
    return Text(row.value if isinstance(row.value, str) else " / ".join(row.value))


def embedding(row: Row, vector: np.ndarray) -> dict[str, Any]:
    # The shortest digits that give the vector's own dtype back.
    numbers = [float(str(number)) for number in vector]
    return {"text": row.value, "embedding": numbers}


def embeddings(results: Results) -> Table:
    names = [str(number) for number in range(1, len(results) + 1)]
    table = _table("", "text", f"vector of {len(results[0][1])}", *(f"cosine {name}:" for name in names))
    vectors = np.stack([vector for _, vector in results]).astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    for name, (row, vector), cosines in zip(names, results, vectors @ vectors.T):
        first = " ".join(f"{number:.4f}" for number in vector[:SHOWN_NUMBERS]) + " ..."
        table.add_row(name, _name(row), first, *(f"{cosine:.3f}" for cosine in cosines))
    return table


def filling(row: Row, masks: Any) -> dict[str, Any]:
    return {"text": row.value, "masks": masks}


def fillings(results: Results) -> Table:
    table = _table("text", "mask:", "token", "probability:")
    for _, masks in results:
        for number, fills in enumerate(masks, 1):
            for place, fill in enumerate(fills):
                first = place == 0
                table.add_row(
                    Text(fill["sequence"]), str(number) if first else "", Text(fill["token_str"]), f"{fill['score']:.4f}"
                )
        table.add_section()
    return table


def classification(row: Row, labels: Any) -> dict[str, Any]:
    return _texts(row) | {"labels": labels}


def classifications(results: Results) -> Table:
    table = _table("text", "label", "score:")
    for row, labels in results:
        for place, label in enumerate(labels):
            table.add_row(_name(row) if place == 0 else "", Text(str(label["label"])), f"{label['score']:.4f}")
    return table


def score(row: Row, value: float) -> dict[str, Any]:
    return _texts(row) | {"score": value}


def scores(results: Results) -> Table:
    table = _table("A", "B", "B follows A:")
    for row, value in results:
        table.add_row(Text(row.value[0]), Text(row.value[1]), f"{value:.4f}")
    return table


def tagging(row: Row, result: Any) -> dict[str, Any]:
    return ({"text": row.value} if isinstance(row.value, str) else {}) | result


def taggings(results: Results) -> Table:
    table = _table("text", "words:", "entity", "label", "characters:", "score:")
    for row, result in results:
        lines = [
            (Text(one["word"]), Text(one["entity_group"]), f"{one['start']}-{one['end']}", f"{one['score']:.4f}")
            for one in result["entities"]
        ] or [
            (Text(word), Text(label), "", f"{value:.4f}")
            for word, label, value in zip(result["words"], result["tags"], result["scores"])
        ]
        for place, line in enumerate(lines):
            table.add_row(*((_name(row), str(len(result["words"]))) if place == 0 else ("", "")), *line)
        table.add_section()
    return table


def answering(row: Row, answers: Any) -> dict[str, Any]:
    return {"question": row.value[0], "context": row.value[1], "answers": answers}


def answerings(results: Results) -> Table:
    table = _table("question", "answer", "characters:", "score:")
    for row, answers in results:
        found = answers or [{"answer": "(none)", "start": 0, "end": 0, "score": 0.0}]
        for place, one in enumerate(found):
            line = Text(one["answer"] or "(none)"), f"{one['start']}-{one['end']}", f"{one['score']:.4f}"
            table.add_row(Text(row.value[0]) if place == 0 else "", *line)
    return table
