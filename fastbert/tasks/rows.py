"""Rows of CSV, TSV, JSON, JSONL and text files of real life, one at a time, each with its location."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fastbert.utils.errors import InputError

from . import lines as text_lines
from .formats import TABLES, format_of, holds_json
from .json_values import json_objects, parse
from .lines import Lines, name_of, opened, pieces

DELIMITERS = ",;\t"
TEXT = "text"  # the column of plain text


class Row(NamedTuple):
    """One row. values: by column. line: number, from 1, of the unit: a line of the file, or an element of a JSON list."""

    values: dict[str, Any]
    line: int
    unit: str = "line"

    @property
    def location(self) -> str:
        return f"{self.unit} {self.line}"


@dataclass(frozen=True)
class Table:
    """The rows of a file. columns: of the first row, in order; in CSV and TSV, of all rows. unit: what `Row.line` counts."""

    file: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    unit: str = "line"

    def error(self, row: Row | int, expected: str, got: str) -> InputError:
        return input_error(self.file, row if isinstance(row, int) else row.line, expected, got, self.unit)


def input_error(file: Path | str, line: int, expected: str, got: str, unit: str = "line") -> InputError:
    return InputError(f"expected {expected}, got {got} in {unit} {line} of {file}")


def read_table(file: Path, *, header: bool = True, format_: str | None = None) -> Table:
    """All rows of a file. format_: one of TABLES, None for that of its suffix. header: see `read_rows`.

    Raises InputError for an unknown format, a file without rows, and as `read_rows`.
    """
    rows = tuple(read_rows(file, format_of(file, TABLES, format_), header=header))
    if not rows:
        raise InputError(f"expected rows in {file}, got none")
    return Table(file, tuple(rows[0].values), rows, rows[0].unit)


def read_rows(file: Path | None, format_: str, *, header: bool = True) -> Iterator[Row]:
    """Reads rows lazily, in memory that does not grow with the file.

    file: None for the standard input. format_: one of TABLES, or "text" with a text per line. CSV follows RFC 4180, with
    commas, or semicolons or tabs where only these make columns. In TSV a quotation mark is text. JSON is a list of objects,
    an object with a list "data", or a series of objects; JSONL an object per line, or such a list. header: whether CSV and TSV
    begin with the names of the columns, which are else "1", "2", ...
    Raises InputError, with the location, for a row that is not of the format, and OSError where there is no such file.
    """
    name = name_of(file)
    with opened(file) as handle:
        if format_ == "json":
            yield from _objects(pieces(handle, name), name)
            return
        lines = Lines(handle, name)
        if format_ == "jsonl":
            yield from _json_lines(lines, name)
        elif format_ == "text":
            yield from (Row({TEXT: line.rstrip("\r\n")}, number) for number, line in lines)
        else:
            yield from _delimited(lines, name, format_, header)


def _objects(text: Iterator[str], name: str) -> Iterator[Row]:
    return (Row(values, number, unit) for values, unit, number in json_objects(text, name))


def _json_lines(lines: Lines, name: str) -> Iterator[Row]:
    if lines.sample()[0].lstrip().startswith("["):
        yield from _objects((line for _, line in lines), name)
        return
    for number, line in lines:
        if line.strip():
            yield Row(parse(line, number, name), number)


def _delimited(lines: Lines, name: str, format_: str, header: bool) -> Iterator[Row]:
    if holds_json(lines.sample()[0]):
        raise InputError(f"expected {format_.upper()}, got JSON in {name}: --format json or jsonl reads it")
    columns: tuple[str, ...] | None = None
    for line, fields in _tab_separated(lines) if format_ == "tsv" else _separated(lines, name, header):
        if columns is None:
            columns = tuple(field.strip() for field in fields) if header else tuple(str(n + 1) for n in range(len(fields)))
            if len(set(columns)) != len(columns):
                raise input_error(name, line, "different names of columns", ", ".join(columns))
            if header:
                continue
        if len(fields) != len(columns):
            quoted = format_ == "tsv" and any(field.startswith('"') for field in fields)
            hint = ": --format csv reads quoted fields, with tabs too" if quoted else ""
            raise InputError(
                f"expected {len(columns)} fields ({', '.join(columns)}), got {len(fields)} in line {line} of {name}{hint}"
            )
        yield Row(dict(zip(columns, fields)), line)


def _tab_separated(lines: Lines) -> Iterator[tuple[int, list[str]]]:
    for number, text in lines:
        line = text.rstrip("\r\n")
        if line:
            yield number, line.split("\t")


def _separated(lines: Lines, name: str, header: bool) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(text_lines.MAX_LINE_BYTES)  # also an error for a quotation mark that is never closed
    delimiter, first = _delimiter(*lines.sample())
    blanks = header and len(first) > 1 and all(field.startswith(" ") for field in first[1:])  # fields are separated by ", "
    ends = (part for _, line in lines for part in _parts(line))
    reader = csv.reader(ends, delimiter=delimiter, skipinitialspace=blanks, strict=True)
    line = 1
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise input_error(name, line, "CSV", str(error)) from error
        if fields is None:
            return
        if fields:
            yield line, fields
        line = reader.line_num + 1


def _parts(line: str) -> list[str]:
    """The line, split at carriage returns within it, which end a row too."""
    if "\r" not in line.rstrip("\r\n"):
        return [line]
    return list(io.StringIO(line, newline=""))


def _delimiter(sample: str, whole: bool) -> tuple[str, list[str]]:
    """(delimiter, fields of the first row): one that splits all rows into as many fields, else one that splits the first."""
    found: dict[str, list[list[str]]] = {}
    for mark in DELIMITERS:
        try:
            rows = [row for row in islice(csv.reader(io.StringIO(sample, newline=""), delimiter=mark), 50) if row]
        except csv.Error:
            continue
        if rows and len(rows[0]) > 1:
            found[mark] = rows if whole or len(rows) < 2 else rows[:-1]
    even = [mark for mark, rows in found.items() if len({len(row) for row in rows}) == 1]
    chosen = next(iter([*even, *found]), ",")
    return chosen, found.get(chosen, [[]])[0]
