"""Rows of texts, or pairs of texts, from a file or the standard input, read one at a time as `fastbert finetune` reads them.

The other values of a row are carried along, to be written beside its result.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fastbert.tasks import rows as files
from fastbert.tasks.conll import WORDS as CONLL_WORDS
from fastbert.tasks.conll import conll_rows, looks_like_words, looks_tagged
from fastbert.tasks.formats import CONLL_TOO, TABLES, format_of, holds_json, known_format, suffix_of
from fastbert.tasks.lines import name_of, sample_of
from fastbert.tasks.sentences import text_columns
from fastbert.tasks.squad import ARTICLE, questions_of
from fastbert.tasks.tagged import WORD_NAMES
from fastbert.utils.errors import InputError
from fastbert.utils.printing import number_of

from .rows import Row, Words

PREFIX = "input_"  # of a carried column whose name a result has too

Say = Callable[[str], None]


@dataclass(frozen=True)
class Kind:
    """What the rows of a command are.

    roles: the names of a row's texts. results: the names its results are written under. words: whether a text may be given as
    words, as in CoNLL. questions: whether published SQuAD files are read.
    """

    roles: tuple[str, ...]
    results: tuple[str, ...]
    words: bool = False
    questions: bool = False

    @property
    def formats(self) -> tuple[str, ...]:
        return (*TABLES, *(("text",) if len(self.roles) == 1 else ()), *(("conll",) if self.words else ()))


EMBED = Kind(("text",), ("embedding",))
FILL_MASK = Kind(("text",), ("masks",))
CLASSIFY = Kind(("text",), ("labels",))
CLASSIFY_PAIRS = Kind(("first", "second"), ("labels",))
RANK = Kind(("text",), ("rank", "score", "row"))
NEXT = Kind(("first", "second"), ("score",))
TAG = Kind(("text",), ("words", "tags", "scores", "entities"), words=True)
ANSWER = Kind(("question", "context"), ("answers",), questions=True)


@dataclass(frozen=True)
class Source:
    """The rows of one file or the standard input.

    file: None for the standard input. fields: the columns of the texts, as the user named them; None for the columns named as
    the roles, else as fine-tuning finds them, else all where there are as many columns as roles and none is a question.
    format: one of the kind's. header: whether CSV and TSV begin with the names of the columns. say: called with a line for the
    user, such as which columns were chosen.
    """

    file: Path | None
    kind: Kind
    fields: tuple[str, ...] | None
    format: str
    header: bool
    say: Say

    @classmethod
    def of(
        cls,
        file: Path | None,
        kind: Kind,
        fields: Sequence[str] | None = None,
        format_: str | None = None,
        *,
        header: bool = True,
        say: Say,
    ) -> "Source":
        """Checks the options. format_: None for that of the file's suffix; the standard input is text, or JSONL of pairs.

        Raises InputError for an unknown format and options that do not fit it, OSError where there is no such file.
        """
        roles, name, said = kind.roles, name_of(file), set[str]()
        if file is not None:
            with file.open("rb"):
                pass
        found = _format(file, kind, format_)
        if fields is not None and len(fields) != len(roles):
            raise InputError(
                f"expected {number_of(len(roles), 'field')}, {' and '.join(roles)}, got {len(fields)}: {', '.join(fields)}"
            )
        if found in ("text", "conll") and fields is not None:
            raise InputError(f"expected {', '.join(TABLES)} beside a named field, got {found} in {name}")
        if not header and found not in ("csv", "tsv"):
            raise InputError(f"expected csv or tsv beside --no-header, got {found} in {name}")

        def say_once(line: str) -> None:
            if line not in said:
                said.add(line)
                say(line)

        return cls(file, kind, tuple(fields) if fields is not None else None, found, header, say_once)

    @property
    def name(self) -> str:
        return name_of(self.file)

    @cached_property
    def _reserved(self) -> frozenset[str]:
        """The names that a row of results has itself."""
        return frozenset((*self.kind.roles, *self.kind.results))

    def __iter__(self) -> Iterator[Row]:
        """Raises InputError, with the location, for a row that is not of the format, and where there is no row at all."""
        columns: tuple[str, ...] | None = None
        name = self.name
        for row in self._rows():
            if columns is None:
                columns = self._select_columns(row)
            if len(columns) == 1:
                value: Any = self._text(row, columns[0])
            else:
                value = tuple([self._text(row, column) for column in columns])
            yield Row(value, f"{row.unit} {row.line} of {name}", self._carried(row, columns))
        if columns is None:
            raise InputError(f"expected texts in {name}, got none")

    def _rows(self) -> Iterator[files.Row]:
        if self.format == "conll":
            self.say(f"{self.name}: CoNLL; the first column is read as words, the others are carried along")
            yield from conll_rows(self.file)
            return
        for row in files.read_rows(self.file, self.format, header=self.header):
            if isinstance(row.values.get(ARTICLE), list):
                if not self.kind.questions:
                    raise InputError(f"expected rows with {' and '.join(self.kind.roles)}, got SQuAD's articles in {self.name}")
                yield from questions_of(row, self.name)
            else:
                yield row

    def _select_columns(self, row: files.Row) -> tuple[str, ...]:
        """The columns of the texts."""
        if self.format == "conll":
            return (CONLL_WORDS,)
        columns, roles = tuple(row.values), self.kind.roles
        wanted = self.fields or roles
        words = [name for name in WORD_NAMES if self.kind.words and isinstance(row.values.get(name), list)]
        if self.fields is None and words:
            return (words[0],)
        if all(name in columns for name in wanted):
            return wanted
        found = self._find_columns(columns) if self.fields is None else ()
        if not found:
            hint = "" if self.fields else ": name them with --field"
            raise InputError(f"expected columns {' and '.join(wanted)} in {self.name}, got {', '.join(columns)}{hint}")
        self.say(f"{self.name}: {' and '.join(found)} read as {' and '.join(roles)}")
        return found

    def _find_columns(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        """The columns of the texts by their usual names; () where they are not found."""
        roles = self.kind.roles
        lower = {name.lower(): name for name in reversed(columns)}
        if all(role in lower for role in roles):
            return tuple(lower[role] for role in roles)
        if roles != ANSWER.roles and (found := text_columns(columns, {}, pair=len(roles) > 1)):
            return tuple(found.values())
        # Any two columns are a pair, but which of them is a question only their names say.
        in_order = len(columns) == len(roles) and (roles != ANSWER.roles or not self.header)
        return columns if in_order else ()

    def _text(self, row: files.Row, column: str) -> str | Words:
        value = row.values.get(column)
        if isinstance(value, str):
            return value
        location = f"{row.location} of {self.name}"
        if column not in row.values:
            raise InputError(f"expected a value for {column}, got only {', '.join(row.values)} in {location}")
        if not self.kind.words or not isinstance(value, list):
            raise InputError(f"expected text as {column}, got {type(value).__name__} in {location}")
        if not value or not all(isinstance(word, str) and word for word in value):
            raise InputError(f"expected a list of words as {column}, got {repr(value)[:80]} in {location}")
        return Words(tuple(value))

    def _carried(self, row: files.Row, columns: tuple[str, ...]) -> dict[str, Any]:
        found = {name: value for name, value in row.values.items() if name not in columns}
        if self._reserved.isdisjoint(found):
            return found
        renamed = {}
        for name, value in found.items():
            written = PREFIX + name if name in self._reserved else name
            if written != name and written in row.values:
                raise InputError(
                    f"expected no {written} beside {name}, which is written as that, got both in {row.location} of {self.name}"
                )
            if written != name:
                self.say(f"{self.name}: its {name} is written as {written}, beside the {name} of the results")
            renamed[written] = value
        return renamed


def _format(file: Path | None, kind: Kind, given: str | None) -> str:
    if file is None or given is not None:
        default = "text" if "text" in kind.formats else "jsonl"
        return known_format(given or default, kind.formats)
    # Fine-tuning reads tags from .txt and .tsv too; such files are recognised by the tag at the end of each line.
    suffix = suffix_of(file)
    sample = sample_of(file) if suffix in CONLL_TOO else ("", True)
    if kind.words and suffix in CONLL_TOO and looks_tagged(*sample):
        return "conll"
    found = format_of(file, kind.formats)
    if found == "text":
        if holds_json(sample[0]):
            raise InputError(f"expected texts, one a line, got JSON in {file}: say --format jsonl, json or text")
        if kind.words and looks_like_words(*sample):
            raise InputError(f"expected texts, one a line, got one word a line in {file}: say --format conll or text")
    return found
