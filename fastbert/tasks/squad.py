"""Questions on paragraphs from SQuAD 1.1 and 2.0 files, every answer's place checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastbert.checkpoints import InputError

from .rows import read_json


@dataclass(frozen=True)
class QuestionExample:
    """answers: (text, first character in the context), none where the question has no answer. place: for messages."""

    key: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    place: str


@dataclass(frozen=True)
class Questions:
    """some_unanswerable: as in SQuAD 2.0."""

    file: Path
    examples: tuple[QuestionExample, ...]
    some_unanswerable: bool


def read_squad(file: Path, *, labelled: bool = True) -> Questions:
    """All questions of a file, in order. labelled: False asks for no answers.

    Raises InputError, with file and place, where the format is another, a question or context is empty, a key comes twice,
    an answer does not stand where answer_start says, or a question that is_impossible does not name has no answer.
    """
    found = read_json(file)
    if not isinstance(found, dict) or not isinstance(found.get("data"), list):
        raise InputError(f'expected a SQuAD file, an object with a list "data", got {type(found).__name__} in {file}')
    examples: list[QuestionExample] = []
    keys: set[str] = set()
    for a, article in enumerate(found["data"], 1):
        for p, paragraph in enumerate(_list(article, "paragraphs", file, f"article {a}"), 1):
            place = f"article {a}, paragraph {p}"
            context = _text(paragraph, "context", file, place)
            for q, entry in enumerate(_list(paragraph, "qas", file, place), 1):
                example = _question(entry, context, file, f"{place}, question {q}", labelled)
                if example.key in keys:
                    raise InputError(f"expected an id once, got {example.key!r} again in {file}, {example.place}")
                keys.add(example.key)
                examples.append(example)
    if not examples:
        raise InputError(f"expected questions in {file}, got none")
    return Questions(file, tuple(examples), labelled and any(not example.answers for example in examples))


def _question(entry: Any, context: str, file: Path, place: str, labelled: bool) -> QuestionExample:
    question = _text(entry, "question", file, place)
    key = entry.get("id", place)
    if not isinstance(key, str | int):
        raise InputError(f"expected an id of text, got {key!r} in {file}, {place}")
    place = f"{place} (id {key})"
    answers = []
    if labelled and not entry.get("is_impossible", False):
        for answer in _list(entry, "answers", file, place):
            text, start = _text(answer, "text", file, place), answer.get("answer_start")
            if not isinstance(start, int) or start < 0 or context[start : start + len(text)] != text:
                there = repr(context[start : start + len(text)]) if isinstance(start, int) else "no number"
                raise InputError(
                    f"expected the answer {text!r} at answer_start {start!r} of the context, got {there} in {file}, {place}"
                )
            answers.append((text, start))
        if not answers and "is_impossible" not in entry:
            raise InputError(f"expected answers, or is_impossible as in SQuAD 2.0, got neither in {file}, {place}")
        if not answers:
            raise InputError(f"expected answers where is_impossible is false, got none in {file}, {place}")
    return QuestionExample(str(key), question, context, tuple(answers), place)


def _text(values: Any, name: str, file: Path, place: str) -> str:
    value = values.get(name) if isinstance(values, dict) else None
    if not isinstance(value, str) or not value.strip():
        got = "an empty one" if isinstance(value, str) else repr(value)
        raise InputError(f"expected text as {name}, got {got} in {file}, {place}")
    return value


def _list(values: Any, name: str, file: Path, place: str) -> list[Any]:
    value = values.get(name) if isinstance(values, dict) else None
    if not isinstance(value, list):
        raise InputError(f"expected a list {name}, got {type(value).__name__} in {file}, {place}")
    return value
