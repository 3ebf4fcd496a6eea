"""Questions on paragraphs from SQuAD 1.1 and 2.0 files, as published or as tables, with checked positions of answers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastbert.utils.errors import InputError

from .formats import TABLES, format_of
from .rows import Row, read_rows

ARTICLE = "paragraphs"  # the column that only published files have


@dataclass(frozen=True)
class QuestionExample:
    """A question on a context.

    key: its id. answers: (text, first character in the context), none where it has no answer. location: for messages.
    """

    key: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    location: str


@dataclass(frozen=True)
class Questions:
    """The questions of a file. some_unanswerable: whether some have no answer, as in SQuAD 2.0."""

    file: Path
    examples: tuple[QuestionExample, ...]
    some_unanswerable: bool


def read_squad(file: Path, *, labelled: bool = True, header: bool = True, format_: str | None = None) -> Questions:
    """Reads all questions of a file, in order.

    A file is a published one, JSON of articles with paragraphs with questions, or a table of questions with the columns
    question and context, and optionally id and answers: {"text": [...], "answer_start": [...]}, both empty where there is no
    answer, or a list as in published files; in CSV and TSV as JSON.
    labelled: False reads no answers. header, format_: see `read_table`.
    Raises InputError, with file and location, for another format, an empty question or context, an id that occurs twice, an
    answer that is not at its answer_start, and a question without answers that is not marked is_impossible.
    """
    examples: list[QuestionExample] = []
    keys: set[str] = set()
    for row in read_rows(file, format_of(file, TABLES, format_), header=header):
        for one in questions_of(row, str(file)):
            example = _question(one, file, labelled, published=ARTICLE in row.values)
            if example.key in keys:
                raise InputError(f"expected an id once, got {example.key!r} again in {example.location} of {file}")
            keys.add(example.key)
            examples.append(example)
    if not examples:
        raise InputError(f"expected questions in {file}, got none")
    return Questions(file, tuple(examples), labelled and any(not example.answers for example in examples))


def questions_of(row: Row, file: str) -> Iterator[Row]:
    """The questions of an article of a published file, as rows that have the context and the title too; any other row itself.

    Raises InputError where a list of the format is missing.
    """
    if ARTICLE not in row.values:
        yield row
        return
    article = f"article {row.line}"
    title = {name: row.values[name] for name in ("title",) if name in row.values}
    for p, paragraph in enumerate(_list(row.values, ARTICLE, file, article), 1):
        location = f"{article}, paragraph {p}"
        for q, entry in enumerate(_list(paragraph, "qas", file, location), 1):
            if not isinstance(entry, dict):
                raise InputError(f"expected a question as a JSON object, got {type(entry).__name__} in {location} of {file}")
            context = {name: paragraph[name] for name in ("context",) if name in paragraph}
            yield Row(title | context | entry, q, f"{location}, question")


def _question(row: Row, file: Path, labelled: bool, *, published: bool) -> QuestionExample:
    location, values = row.location, row.values
    context, question = _text(values, "context", file, location), _text(values, "question", file, location)
    key = values.get("id", location)
    if not isinstance(key, str | int):
        raise InputError(f"expected an id of text, got {key!r} in {location} of {file}")
    location = f"{location} (id {key})"
    answers = []
    if labelled and not values.get("is_impossible", False):
        found = _list(values, "answers", file, location) if published else _column_of_answers(values, file, location)
        for answer in found:
            text, start = _text(answer, "text", file, location), answer.get("answer_start")
            if not isinstance(start, int) or start < 0 or context[start : start + len(text)] != text:
                found_text = repr(context[start : start + len(text)]) if isinstance(start, int) else "no number"
                raise InputError(
                    f"expected the answer {text!r} at answer_start {start!r} of the context, "
                    f"got {found_text} in {location} of {file}"
                )
            answers.append((text, start))
        if not answers and published and "is_impossible" not in values:
            raise InputError(f"expected answers, or is_impossible as in SQuAD 2.0, got neither in {location} of {file}")
        if not answers and published:
            raise InputError(f"expected answers where is_impossible is false, got none in {location} of {file}")
    return QuestionExample(str(key), question, context, tuple(answers), location)


def _column_of_answers(values: dict[str, Any], file: Path, location: str) -> list[Any]:
    """The answers of a row of a table, in the form of published files."""
    value = values.get("answers")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InputError(f"expected answers as JSON, got {value[:60]!r} in {location} of {file}") from error
    if isinstance(value, list):
        return value
    texts, starts = (value.get("text"), value.get("answer_start")) if isinstance(value, dict) else (None, None)
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        expected = '{"text": [...], "answer_start": [...]}, as many of both'
        got = repr(value)[:60] if "answers" in values else f"only {', '.join(values)}"
        raise InputError(f"expected answers, {expected}, got {got} in {location} of {file}")
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts)]


def _text(values: Any, name: str, file: Path | str, location: str) -> str:
    value = values.get(name) if isinstance(values, dict) else None
    if not isinstance(value, str) or not value.strip():
        got = "an empty one" if isinstance(value, str) else repr(value)
        if isinstance(values, dict) and name not in values:
            got = f"only {', '.join(values)}"
        raise InputError(f"expected text as {name}, got {got} in {location} of {file}")
    return value


def _list(values: Any, name: str, file: Path | str, location: str) -> list[Any]:
    value = values.get(name) if isinstance(values, dict) else None
    if not isinstance(value, list):
        raise InputError(f"expected a list {name}, got {type(value).__name__} in {location} of {file}")
    return value
