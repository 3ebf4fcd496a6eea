"""Sentences of CoNLL files: a word a line, its columns with tabs or blanks between, a blank line after each sentence."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fastbert.utils.errors import InputError

from .formats import holds_json
from .lines import Lines, name_of, opened
from .rows import Row, input_error
from .tags import TAGS, is_tag

DOCUMENT = "-DOCSTART-"
WORDS, COMMENTS = "tokens", "comments"


@dataclass(frozen=True)
class Sentence:
    """columns: of the words, the first the words themselves. comments: the lines before it that begin with #. line: from 1."""

    columns: tuple[tuple[str, ...], ...]
    comments: tuple[str, ...]
    line: int


class Conll:
    """The sentences of numbered lines, read lazily, once. columns: how many, from the first word on.

    sample: the first lines, as one text; where words of it have a tab, that is the separator, else a blank. name: of the file.
    labelled: the last column is a tag. Comments stand before a sentence: "## ...", or "# ..." with other columns than a word
    has. Lines of -DOCSTART- end a sentence as blank ones do.
    Raises InputError where a line has other columns than the first, no word, or a last column that is no tag.
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
            # CoNLL-U numbers its words, CoNLL-2012 has the document first: columns that would be tagged without a word of it.
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
    """Each sentence as a row: its words under "tokens", further columns under their numbers, 2, 3, ..., comments if any."""
    with opened(file) as handle:
        name = name_of(file)
        lines = Lines(handle, name)
        for one in Conll(lines, lines.sample()[0], name, labelled=False):
            values = {WORDS: list(one.columns[0])} | {str(n): list(column) for n, column in enumerate(one.columns[1:], 2)}
            yield Row(values | ({COMMENTS: list(one.comments)} if one.comments else {}), one.line)


def looks_tagged(sample: str, whole: bool) -> bool:
    """Whether every line, as the first ones of a file are given, is a word with its columns, the last of them a tag."""
    lines = _whole_lines(sample, whole)
    try:
        return len(list(Conll(enumerate(lines, 1), sample, "", labelled=True))) > 0
    except InputError:
        return False


def looks_like_words(sample: str, whole: bool) -> bool:
    """Whether the lines are single words, with a blank line somewhere between: words without tags, or very short texts."""
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
