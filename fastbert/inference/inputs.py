"""Texts, or pairs of texts, from a file or the standard input, read lazily: a row at a time, each with its place.

text            one text a line; a blank line is an empty text
jsonl           one object a line with the fields; blank lines are left out
csv, tsv        a header with the columns; in tsv a quote is text, in csv it quotes as usual
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..checkpoints import InputError
from .engine import Row

FORMATS = ("text", "jsonl", "csv", "tsv")
MAX_LINE_BYTES = 1 << 26
STDIN = "the standard input"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """file: None for the standard input. fields: names of what makes a row, one for a text, two for a pair.

    given: whether the user named the fields; else, where they are absent, as many columns as are there stand for them, and
    `say` tells it. kind: one of FORMATS.
    """

    file: Path | None
    fields: tuple[str, ...]
    given: bool
    kind: str
    say: Say

    @classmethod
    def of(cls, file: Path | None, fields: Sequence[str], given: Sequence[str] | None, kind: str | None, say: Say) -> "Source":
        """kind: None for what the file's name ends in: .jsonl, .csv, .tsv or text; the standard input is text, pairs JSONL.

        Raises InputError for what is not known or does not fit, OSError where there is no such file.
        """
        if kind is None:
            suffix = "" if file is None else file.suffix.removeprefix(".").lower()
            kind = suffix if suffix in FORMATS[1:] else "jsonl" if len(fields) > 1 and file is None else "text"
        name = STDIN if file is None else str(file)
        if kind not in FORMATS:
            raise InputError(f"expected a format among {', '.join(FORMATS)}, got {kind!r}")
        if given is not None and len(given) != len(fields):
            raise InputError(f"expected {len(fields)} field(s), {' and '.join(fields)}, got {len(given)}: {', '.join(given)}")
        if kind == "text" and len(fields) > 1:
            raise InputError(f"expected jsonl, csv or tsv with {' and '.join(fields)}, got plain text in {name}")
        if kind == "text" and given is not None:
            raise InputError(f"expected jsonl, csv or tsv beside a named field, got plain text in {name}")
        if file is not None:
            with file.open("rb"):
                pass
        return cls(file, tuple(given or fields), given is not None, kind, say)

    @property
    def name(self) -> str:
        return STDIN if self.file is None else str(self.file)

    def __iter__(self) -> Iterator[Row]:
        """Raises InputError, with the line, for what is not of the format, and where there is no row at all."""
        if self.file is None:
            yield from self._some(sys.stdin.buffer)
            return
        with self.file.open("rb") as handle:
            yield from self._some(handle)

    def _some(self, handle: BinaryIO) -> Iterator[Row]:
        lines = _lines(handle, self.name)
        read = {"text": self._text, "jsonl": self._jsonl, "csv": self._csv, "tsv": self._tsv}[self.kind]
        number = 0
        for number, row in enumerate(read(lines), 1):  # noqa: B007
            yield row
        if not number:
            raise InputError(f"expected texts in {self.name}, got none")

    def _text(self, lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
        return (Row(line.rstrip("\r\n"), self._place(number)) for number, line in lines)

    def _jsonl(self, lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
        fields: tuple[str, ...] | None = None
        for number, line in lines:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"expected a JSON object in {self._place(number)}, got {error}") from error
            if not isinstance(value, dict):
                raise InputError(f"expected a JSON object in {self._place(number)}, got {type(value).__name__}")
            fields = fields or self._choose(list(value), "fields")
            yield self._row([self._field(value, name, number) for name in fields], number)

    def _field(self, value: dict[str, Any], name: str, number: int) -> str:
        if name not in value:
            raise InputError(f"expected a field {name!r} in {self._place(number)}, got {sorted(value)}")
        if not isinstance(value[name], str):
            raise InputError(f"expected text in {name!r} in {self._place(number)}, got {type(value[name]).__name__}")
        return value[name]

    def _csv(self, lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
        csv.field_size_limit(MAX_LINE_BYTES)  # also ends a quote that never closes
        reader = csv.reader((line for _, line in lines), strict=True)
        try:
            yield from self._table((reader.line_num, cells) for cells in reader)
        except csv.Error as error:
            raise InputError(f"expected CSV in {self._place(reader.line_num)}, got {error}") from error

    def _tsv(self, lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
        stripped = ((number, line.rstrip("\r\n")) for number, line in lines)
        yield from self._table((number, line.split("\t") if line else []) for number, line in stripped)

    def _table(self, records: Iterator[tuple[int, list[str]]]) -> Iterator[Row]:
        header: list[str] | None = None
        places: list[int] = []
        for number, cells in records:
            if not cells:
                continue
            if header is None:
                header = cells
                places = [header.index(name) for name in self._choose(header, "columns")]
            elif len(cells) != len(header):
                raise InputError(f"expected {len(header)} columns in {self._place(number)}, got {len(cells)}")
            else:
                yield self._row([cells[place] for place in places], number)

    def _choose(self, names: list[str], what: str) -> tuple[str, ...]:
        """The fields by name; where none was given and as many as needed are there, those, in order."""
        if all(names.count(name) == 1 for name in self.fields):
            return self.fields
        if self.given or len(names) != len(self.fields):
            raise InputError(
                f"expected {what} {' and '.join(self.fields)} in {self.name}, got {', '.join(names)}: name them with --field"
            )
        self.say(f"{self.name}: {' and '.join(names)} taken for {' and '.join(self.fields)}")
        return tuple(names)

    def _row(self, values: list[str], number: int) -> Row:
        return Row(values[0] if len(values) == 1 else tuple(values), self._place(number))

    def _place(self, number: int) -> str:
        return f"line {number} of {self.name}"


def _lines(handle: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text with its end). Raises InputError where a line is too long or not UTF-8."""
    number = 0
    while raw := handle.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise InputError(f"expected lines of at most {MAX_LINE_BYTES} bytes, got a longer one: line {number} of {name}")
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"expected UTF-8, got byte 0x{raw[error.start]:02x} in line {number} of {name}") from error
