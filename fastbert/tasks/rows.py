"""Rows of CSV, TSV, JSON and JSONL files as they are in the wild, each with the line it stands on."""

import csv
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastbert.checkpoints import InputError

DELIMITERS = {".tsv": "\t", ".tab": "\t", ".csv": None}
SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class Row:
    """values: by column. line: of the file, from 1; in a JSON list the number of the element, from 1."""

    values: dict[str, Any]
    line: int


@dataclass(frozen=True)
class Table:
    """columns: of the first row, in order; in CSV and TSV all rows have the same. unit: what `line` counts."""

    file: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    unit: str = "line"

    def error(self, row: Row | int, expected: str, got: str) -> InputError:
        return input_error(self.file, row if isinstance(row, int) else row.line, expected, got, self.unit)


def input_error(file: Path, line: int, expected: str, got: str, unit: str = "line") -> InputError:
    return InputError(f"expected {expected}, got {got} in {file}, {unit} {line}")


def read_utf8(file: Path) -> str:
    """The text of a file without its byte order mark. Raises InputError where it is no UTF-8, OSError where there is none."""
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise input_error(file, line, "UTF-8", f"the byte 0x{content[error.start]:02x}") from error


def read_json(file: Path) -> Any:
    """The value that a JSON file holds. Raises InputError where it holds none."""
    try:
        return json.loads(read_utf8(file))
    except json.JSONDecodeError as error:
        raise input_error(file, error.lineno, "JSON", error.msg) from error


def read_table(file: Path, *, header: bool = True) -> Table:
    """All rows of a file; its name ends in one of SUFFIXES.

    CSV follows RFC 4180, with commas, or semicolons or tabs where the first line has no comma. In TSV a quotation mark is
    text. header: False names the columns 1, 2, ... Raises InputError where a row has other columns than the first, or the file
    has no rows.
    """
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"expected a file that ends in {', '.join(SUFFIXES)}, got {file}")
    if suffix == ".json":
        table = _json_list(file)
    elif suffix in (".jsonl", ".ndjson"):
        rows = tuple(json_lines(file))
        table = Table(file, tuple(rows[0].values) if rows else (), rows)
    else:
        table = _delimited(file, DELIMITERS[suffix], header)
    if not table.rows:
        raise InputError(f"expected rows in {file}, got none")
    return table


def json_lines(file: Path) -> Iterator[Row]:
    """The objects of a JSONL file, blank lines left out."""
    for number, line in enumerate(read_utf8(file).split("\n"), 1):  # not splitlines: JSON may hold U+2028
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise input_error(file, number, "a JSON object", error.msg) from error
        if not isinstance(values, dict):
            raise input_error(file, number, "a JSON object", type(values).__name__)
        yield Row(values, number)


def _json_list(file: Path) -> Table:
    found = read_json(file)
    if isinstance(found, dict) and isinstance(found.get("data"), list):
        found = found["data"]
    if not isinstance(found, list):
        raise InputError(f"expected a list of objects in {file}, got {type(found).__name__}")
    for number, values in enumerate(found, 1):
        if not isinstance(values, dict):
            raise input_error(file, number, "a JSON object", type(values).__name__, "element")
    rows = tuple(Row(values, number) for number, values in enumerate(found, 1))
    return Table(file, tuple(rows[0].values) if rows else (), rows, "element")


def _delimited(file: Path, delimiter: str | None, header: bool) -> Table:
    text = read_utf8(file)
    records = _tab_separated(text) if delimiter == "\t" else _comma_separated(file, text)
    columns: tuple[str, ...] | None = None
    rows = []
    for line, fields in records:
        if columns is None:
            columns = tuple(name.strip() for name in fields) if header else tuple(str(n + 1) for n in range(len(fields)))
            if len(set(columns)) != len(columns):
                raise input_error(file, line, "different names of columns", repr(list(columns)))
            if header:
                continue
        if len(fields) != len(columns):
            raise input_error(file, line, f"{len(columns)} fields ({', '.join(columns)})", str(len(fields)))
        rows.append(Row(dict(zip(columns, fields)), line))
    return Table(file, columns or (), tuple(rows))


def _tab_separated(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if line:
            yield number, line.split("\t")


def _comma_separated(file: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(sys.maxsize)
    first = text[: text.find("\n")] if "\n" in text else text
    delimiter = "," if "," in first else next((mark for mark in ";\t" if mark in first), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise input_error(file, line, "CSV", str(error)) from error
        if fields is None:
            return
        if fields:
            yield line, fields
        line = reader.line_num + 1
