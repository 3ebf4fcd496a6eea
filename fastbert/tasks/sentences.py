"""Examples of `classify` (one text) and `pair` (two texts) from tables of any column names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastbert.utils.errors import InputError

from .rows import Row, Table, read_table

TEXT_NAMES = (
    "text", "sentence", "document", "review", "utterance", "query", "question", "content", "comment", "tweet", "message",
    "headline", "title", "description",
)  # fmt: skip
PAIR_NAMES = (
    ("first", "second"),
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("question1", "question2"),
    ("text1", "text2"), ("text_a", "text_b"), ("sentence_a", "sentence_b"), ("sent1", "sent2"), ("s1", "s2"),
    ("question", "sentence"), ("query", "passage"), ("question", "answer"), ("text", "text_pair"),
)  # fmt: skip
LABEL_NAMES = (
    "gold_label", "label", "labels", "category", "intent", "class", "sentiment", "target", "score", "similarity",
    "is_duplicate", "rating", "tag",
)  # fmt: skip
NO_GOLD = "-"  # what SNLI and its kin write where the annotators did not agree


@dataclass(frozen=True)
class SentenceExample:
    """pair: the second text, or None. label: its name, a number where `Sentences.regression`, None where not asked for."""

    text: str
    pair: str | None
    label: str | float | None
    line: int


@dataclass(frozen=True)
class Sentences:
    """columns: what was taken for what. left_out: rows without a gold label."""

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
    """Every row of a CSV, TSV, JSON or JSONL file as an example. format_: which, None for what its name ends in.

    columns: names for any of text, pair, label; the others are found by their usual names, upper or lower case. header:
    False where the first row is an example; the columns are then 1, 2, ... regression: labels are numbers; None means they
    are if all of them are numbers and some are no integers (pairs only). labelled: False asks for no label column.
    Raises InputError, with file and line, where a column is missing or not to be told, a text is empty or a label is none.
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
    for place, row in enumerate(rows):
        label: str | float | None = as_text[place] if labelled else None
        if regression and labelled:
            label = _number(table, row, as_text[place])
        second = text_of(table, row, names["pair"]) if pair else None
        examples.append(SentenceExample(text_of(table, row, names["text"]), second, label, row.line))
    return Sentences(table, names, tuple(examples), bool(regression), left_out)


def text_of(table: Table, row: Row, column: str) -> str:
    """The text in a column. Raises InputError where there is none."""
    value = _value(table, row, column)
    if not isinstance(value, str):
        raise table.error(row, f"text as {column}", type(value).__name__)
    if not value.strip():
        raise table.error(row, f"text as {column}", "an empty one")
    return value


def label_name(table: Table, row: Row, column: str) -> str:
    """A label as its name: text or a number, which JSON may hold. Raises InputError where there is none."""
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
    """Columns for text, and pair, by their usual names, upper or lower case, beside those that are found; {} where none are."""
    lower = {name.lower(): name for name in reversed(columns)}
    if not pair:
        names = [lower[name] for name in TEXT_NAMES if name in lower and lower[name] != found.get("label")]
        return {"text": found.get("text", names[0])} if names else {}
    for first, second in PAIR_NAMES:
        names = [found.get("text", lower.get(first, "")), found.get("pair", lower.get(second, ""))]
        if all(names) and names[0] != names[1]:
            return dict(zip(("text", "pair"), names))
    return {}
