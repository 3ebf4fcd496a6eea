"""Examples of the task `choice`: a prompt and several endings, one of which is right."""

import re
from dataclasses import dataclass
from pathlib import Path

from fastbert.utils.errors import InputError

from .rows import Row, Table, read_table
from .sentences import text_of

PROMPT_NAMES = ("context", "ctx", "premise", "article", "prompt", "sent1", "question", "goal")
SECOND_NAMES = ("question", "sent2", "startphrase")
LIST_NAMES = ("choices", "endings", "options")
LABEL_NAMES = ("label", "answer", "gold", "correct")
NUMBERED = re.compile(r"(choice|ending|option|sol|answer|hyp)_?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class ChoiceExample:
    """A multiple choice.

    prompt: the first text of every pair. endings: the second texts. label: index of the right ending, or None. line: for
    messages, as in every example.
    """

    prompt: str
    endings: tuple[str, ...]
    label: int
    line: int


@dataclass(frozen=True)
class Choices:
    """The examples of a file. columns: the name of the column of each role."""

    table: Table
    columns: dict[str, str]
    examples: tuple[ChoiceExample, ...]


def read_choices(
    file: Path,
    *,
    columns: dict[str, str] | None = None,
    header: bool = True,
    format_: str | None = None,
) -> Choices:
    """Reads every row of a CSV, TSV, JSON or JSONL file as an example.

    columns: names for any of prompt, second (a start of every ending, or a question), label, choices (several, separated by
    commas). The others are found by their usual names: a list named choices, endings or options, or numbered columns such as
    ending0, ending1. A label is the index of the right ending or its letter, A, B, ... header: whether CSV and TSV begin with
    the names of the columns. format_: None for that of the file's suffix.
    Raises InputError, with file and line, where a column is missing, a text is empty, a label is out of range, or a row has
    another number of endings than the first.
    """
    table = read_table(file, header=header, format_=format_)
    names, endings = _columns(table, columns or {})
    examples: list[ChoiceExample] = []
    for row in table.rows:
        prompt = text_of(table, row, names["prompt"])
        texts = _endings(table, row, endings)
        if examples and len(texts) != len(examples[0].endings):
            raise table.error(row, f"{len(examples[0].endings)} endings as before", str(len(texts)))
        if "second" in names:
            texts = tuple(f"{text_of(table, row, names['second'])} {text}" for text in texts)
        label = _label(table, row, names["label"], len(texts))
        examples.append(ChoiceExample(prompt, texts, label, row.line))
    return Choices(table, names, tuple(examples))


def _endings(table: Table, row: Row, columns: list[str]) -> tuple[str, ...]:
    value = row.values.get(columns[0])
    if len(columns) == 1 and isinstance(value, list):
        if len(value) < 2 or not all(isinstance(text, str) and text.strip() for text in value):
            raise table.error(row, f"at least two texts as {columns[0]}", repr(value)[:80])
        return tuple(value)
    return tuple(text_of(table, row, column) for column in columns)


def _label(table: Table, row: Row, column: str, count: int) -> int:
    value = str(row.values.get(column, "")).strip()
    number = int(value) if value.isascii() and value.isdigit() else -1
    if len(value) == 1 and value.isascii() and value.isalpha():
        number = ord(value.upper()) - ord("A")
    if not 0 <= number < count:
        raise table.error(row, f"a number from 0 to {count - 1} or a letter as {column}", repr(value))
    return number


def _columns(table: Table, given: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """(columns by role, columns of the endings)."""
    endings = [name.strip() for name in given["choices"].split(",")] if "choices" in given else []
    for name in [*endings, *(name for role, name in given.items() if role != "choices")]:
        if name not in table.columns:
            raise InputError(f"expected a column {name} in {table.file}, got {', '.join(table.columns)}")
    lower = {name.lower(): name for name in reversed(table.columns)}
    if not endings:
        endings = [lower[name] for name in LIST_NAMES if name in lower][:1]
    if not endings:
        kinds: dict[str, list[str]] = {}
        for name in table.columns:
            if match := NUMBERED.fullmatch(name):
                kinds.setdefault(match[1].lower(), []).append(name)
        endings = next((names for names in kinds.values() if len(names) > 1), [])
    found = {role: name for role, name in given.items() if role != "choices"}
    for role, usual_names in (("prompt", PROMPT_NAMES), ("label", LABEL_NAMES), ("second", SECOND_NAMES)):
        used = {*found.values(), *endings}
        candidates = [lower[name] for name in usual_names if name in lower and lower[name] not in used]
        if role not in found and candidates:
            found[role] = candidates[0]
    missing = [role for role in ("prompt", "label") if role not in found]
    if len(endings) < 1 or missing:
        lacking = [*missing, *(() if endings else ("choices",))]
        raise InputError(
            f"expected to find {' and '.join(lacking)} among the columns of {table.file}, got {', '.join(table.columns)}: "
            "name them"
        )
    return {**found, "choices": ",".join(endings)}, endings
