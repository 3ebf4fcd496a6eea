"""Examples of the tasks `classify` (one text) and `pair` (two texts), from tables with any names of columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastbert.utils.errors import InputError

from .rows import Row, Table, read_table

TEXT_NAMES = (
    "text",
    "sentence",
    "document",
    "review",
    "utterance",
    "query",
    "question",
    "content",
    "comment",
    "tweet",
    "message",
    "headline",
    "title",
    "description",
)
PAIR_NAMES = (
    ("first", "second"),
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
    ("sent1", "sent2"),
    ("s1", "s2"),
    ("question", "sentence"),
    ("query", "passage"),
    ("question", "answer"),
    ("text", "text_pair"),
)
LABEL_NAMES = (
    "gold_label",
    "label",
    "labels",
    "category",
    "intent",
    "class",
    "sentiment",
    "target",
    "score",
    "similarity",
    "is_duplicate",
    "rating",
    "tag",
)
NO_GOLD = "-"  # the label in SNLI and MultiNLI where the annotators did not agree


@dataclass(frozen=True)
class SentenceExample:
    """A text or a pair of texts. label: its name, a number for a regression, None where labels are not read."""

    text: str
    pair: str | None
    label: str | float | None
    line: int


@dataclass(frozen=True)
class Sentences:
    """The examples of a file. columns: the name of the column of each role. left_out: rows without a gold label."""

    table: Table
    columns: dict[str, str]
    examples: tuple[SentenceExample, ...]
    regression: bool = False
    left_out: int = 0


def read_sentences(
    file: Path,
    *,
    pair: bool = False,
    columns: dict[str, str] | None = None,
    header: bool = True,
    regression: bool | None = None,
    labelled: bool = True,
    format_: str | None = None,
) -> Sentences:
    """Reads every row of a CSV, TSV, JSON or JSONL file as an example.

    pair: whether an example has two texts. columns: names for any of text, pair, label; the others are found by their usual
    names, upper or lower case. header: see `read_rows`. regression: whether labels are numbers; None for pairs whose labels
    are all numbers, some not integers. labelled: False reads no labels. format_: None for that of the file's suffix.
    Raises InputError, with file and line, where a column is missing or cannot be found, a text is empty or a label is invalid.
    """
    table = read_table(file, header=header, format_=format_)
    names = _columns(table, pair, columns or {}, labelled)
    rows, left_out = list(table.rows), 0
    if labelled:
        rows = [row for row in rows if row.values.get(names["label"]) != NO_GOLD]
        left_out = len(table.rows) - len(rows)
        if not rows:
            raise InputError(f"expected gold labels in {file}, got none")
    as_text = [label_name(table, row, names["label"]) for row in rows] if labelled else []
    if regression is None:
        regression = pair and labelled and _are_scores(as_text)
    examples = []
    for index, row in enumerate(rows):
        label: str | float | None = as_text[index] if labelled else None
        if regression and labelled:
            label = _number(table, row, as_text[index])
        second = text_of(table, row, names["pair"]) if pair else None
        examples.append(SentenceExample(text_of(table, row, names["text"]), second, label, row.line))
    return Sentences(table, names, tuple(examples), bool(regression), left_out)


def text_of(table: Table, row: Row, column: str) -> str:
    """The text of a column. Raises InputError where there is none."""
    value = _value(table, row, column)
    if not isinstance(value, str):
        raise table.error(row, f"text as {column}", type(value).__name__)
    if not value.strip():
        raise table.error(row, f"text as {column}", "an empty one")
    return value


def label_name(table: Table, row: Row, column: str) -> str:
    """The label of a column as text; JSON may hold numbers. Raises InputError where there is none."""
    value = _value(table, row, column)
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float) or not str(value).strip():
        raise table.error(row, f"a label as {column}", repr(value))
    return str(value).strip()


def _value(table: Table, row: Row, column: str) -> Any:
    if column not in row.values:
        raise table.error(row, f"a value for {column}", f"only {', '.join(row.values)}")
    return row.values[column]


def _number(table: Table, row: Row, label: str) -> float:
    try:
        value = float(label)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise table.error(row, "a number as label", repr(label))
    return value


def _are_scores(labels: Sequence[str]) -> bool:
    try:
        values = [float(label) for label in labels]
    except ValueError:
        return False
    return any(value != round(value) for value in values if abs(value) < float("inf"))


def _columns(table: Table, pair: bool, given: dict[str, str], labelled: bool) -> dict[str, str]:
    for role, name in given.items():
        if name not in table.columns:
            raise InputError(f"expected a column {name} ({role}) in {table.file}, got {', '.join(table.columns)}")
    found = dict(given)
    if labelled and "label" not in found:
        lower = {name.lower(): name for name in reversed(table.columns)}
        candidates = [lower[name] for name in LABEL_NAMES if name in lower and lower[name] not in found.values()]
        if candidates:
            found["label"] = candidates[0]
    found |= text_columns(table.columns, found, pair=pair)
    wanted = ["text", *(["pair"] if pair else []), *(["label"] if labelled else [])]
    missing = [role for role in wanted if role not in found]
    if missing:
        raise InputError(
            f"expected to find {' and '.join(missing)} among the columns of {table.file}, got {', '.join(table.columns)}: "
            "name them"
        )
    return {role: found[role] for role in wanted}


def text_columns(columns: Sequence[str], found: Mapping[str, str], *, pair: bool) -> dict[str, str]:
    """Finds the columns of text, and pair, by their usual names, upper or lower case; {} where there are none.

    found: roles with a known column.
    """
    lower = {name.lower(): name for name in reversed(columns)}
    if not pair:
        names = [lower[name] for name in TEXT_NAMES if name in lower and lower[name] != found.get("label")]
        return {"text": found.get("text", names[0])} if names else {}
    for first, second in PAIR_NAMES:
        names = [found.get("text", lower.get(first, "")), found.get("pair", lower.get(second, ""))]
        if all(names) and names[0] != names[1]:
            return dict(zip(("text", "pair"), names))
    return {}
