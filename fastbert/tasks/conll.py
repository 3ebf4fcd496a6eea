"""Sentences of CoNLL files: one word per line with its columns, a blank line after each sentence."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastbert.utils.errors import InputError

from .formats import holds_json
from .lines import Lines, name_of, opened
from .rows import Row, input_error
from .tags import TAGS, is_tag

DOCUMENT = "-DOCSTART-"
WORDS, COMMENTS = "tokens", "comments"


@dataclass(frozen=True)
class Sentence:
    """A sentence.

    columns: each with a value per word, the words themselves first. comments: the lines before it that begin with #. line:
    number of its first line, from 1.
    """

    columns: tuple[tuple[str, ...], ...]
    comments: tuple[str, ...]
    line: int


class Conll:
    """Iterates once, lazily, over the sentences of numbered lines.

    sample: the first lines, as one text; where their words have a tab, tabs separate columns, else blanks. name: of the file.
    labelled: whether the last column is a tag. columns: their number, known from the first word on. Comments before a sentence
    are "## ...", or "# ..." with another number of columns than a word. A line -DOCSTART- ends a sentence like a blank one.
    Raises InputError where a line has another number of columns than the first, no word, or a last column that is no tag.
    """

    def __init__(self, lines: Iterable[tuple[int, str]], sample: str, name: str, *, labelled: bool) -> None:
        self.columns = 0
        if holds_json(sample):
            raise InputError(f"expected CoNLL, a word a line, got JSON in {name}: --format json or jsonl reads it")
        self.separator = _separator(sample.split("\n"))
        self._lines, self._name, self._labelled, self._begun = lines, name, labelled, False

    def __iter__(self) -> Iterator[Sentence]:
        words: list[list[str]] = []
        comments: list[str] = []
        start = 0
        for number, text in self._lines:
            line = text.rstrip("\r\n")
            if not line.strip() or line.split()[0] == DOCUMENT:
                if words:
                    yield self._sentence(words, comments, start)
                    words, comments = [], []
                continue
            word, *rest = line.split(self.separator)
            fields = [word, *(field.strip() for field in rest if field.strip())]  # some files end every line with a separator
            if not words and _is_comment(line, len(fields), self.columns or 2):
                comments.append(line)
                continue
            self._check(number, line, fields)
            start = start if words else number
            words.append(fields)
        if words:
            yield self._sentence(words, comments, start)

    def _sentence(self, words: list[list[str]], comments: list[str], start: int) -> Sentence:
        found = Sentence(tuple(zip(*words)), tuple(comments), start)
        first = found.columns[0]
        if not self._begun and len(first) > 2 and len(found.columns) > 3:
            # CoNLL-U numbers its words, CoNLL-2012 begins with the document: neither column holds the words.
            if first == tuple(str(number) for number in range(1, len(first) + 1)) or len(set(first)) == 1:
                got = f"{', '.join(first[:3])}, ..."
                raise input_error(self._name, start, "the words in the first column", got)
        self._begun = True
        return found

    def _check(self, number: int, line: str, fields: list[str]) -> None:
        self.columns = self.columns or len(fields)
        if not fields[0] or len(fields) != self.columns or (self._labelled and self.columns < 2):
            expected = "a word and a tag" if self._labelled and self.columns < 2 else f"{self.columns} columns"
            got = f"{len(fields) if fields[0] else 'no word'} in {line[:60]!r}"
            raise input_error(self._name, number, expected, got)
        if self._labelled and not is_tag(fields[-1]):
            raise input_error(self._name, number, f"a tag ({TAGS})", repr(fields[-1]))


def conll_rows(file: Path | None) -> Iterator[Row]:
    """Each sentence as a row: its words as "tokens", the other columns as "2", "3", ..., comments if there are any.

    file: None for the standard input.
    """
    with opened(file) as handle:
        name = name_of(file)
        lines = Lines(handle, name)
        for sentence in Conll(lines, lines.sample()[0], name, labelled=False):
            values: dict[str, Any] = {WORDS: list(sentence.columns[0])}
            values |= {str(number): list(column) for number, column in enumerate(sentence.columns[1:], 2)}
            if sentence.comments:
                values[COMMENTS] = list(sentence.comments)
            yield Row(values, sentence.line)


def looks_tagged(sample: str, whole: bool) -> bool:
    """Whether every line of a sample is a word with its columns, the last a tag. whole: whether it is the whole file."""
    lines = _whole_lines(sample, whole)
    try:
        return len(list(Conll(enumerate(lines, 1), sample, "", labelled=True))) > 0
    except InputError:
        return False


def looks_like_words(sample: str, whole: bool) -> bool:
    """Whether the lines of a sample are single words, with a blank line between: words without tags, or very short texts."""
    lines = [line.strip() for line in _whole_lines(sample, whole)]
    inner = "\n".join(lines).strip().split("\n")
    return "" in inner and len(inner) > 2 and all(len(line.split()) < 2 for line in inner)


def _whole_lines(sample: str, whole: bool) -> list[str]:
    lines = sample.split("\n")
    return lines if whole else lines[:-1]


def _separator(lines: Iterable[str]) -> str:
    words = [line for line in lines if not line.startswith("#") and line.split()[:1] != [DOCUMENT]]
    return "\t" if any("\t" in line for line in words) else " "


def _is_comment(line: str, fields: int, columns: int) -> bool:
    return line.startswith("## ") or (line.startswith("# ") and fields != columns)
