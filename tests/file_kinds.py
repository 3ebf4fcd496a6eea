"""The same rows in every kind of file that is read, as they are in the wild: for fine-tuning's reader and for each command."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

Values = Sequence[dict[str, str]]


def _csv(rows: Values, delimiter: str = ",", **options: object) -> str:
    content = io.StringIO(newline="")
    writer = csv.DictWriter(content, list(rows[0]), delimiter=delimiter, **options)  # type: ignore[arg-type]
    writer.writeheader()
    writer.writerows(rows)
    return content.getvalue()


def _blanks(rows: Values) -> str:
    """As some people write CSV: a blank after each comma, and around the names."""
    header = ", ".join(f"{name} " for name in rows[0])
    quoted = ('"' + '", "'.join(value.replace('"', '""') for value in row.values()) + '"' for row in rows)
    return "\n".join([header, *quoted]) + "\n"


def _tsv(rows: Values) -> str:
    return "".join("\t".join(fields) + "\r\n" for fields in [list(rows[0]), *(list(row.values()) for row in rows)])


def _lines(rows: Values) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows)


KINDS: dict[str, tuple[str, Callable[[Values], str]]] = {
    "comma": ("a.csv", _csv),
    "semicolon": ("a.csv", lambda rows: _csv(rows, ";")),
    "tab": ("a.csv", lambda rows: _csv(rows, "\t")),
    "all quoted": ("a.csv", lambda rows: _csv(rows, quoting=csv.QUOTE_ALL, lineterminator="\n")),
    "mark": ("a.CSV", lambda rows: "\ufeff" + _csv(rows)),
    "blanks": ("a.csv", _blanks),
    "carriage returns": ("a.csv", lambda rows: _csv(rows, quoting=csv.QUOTE_ALL, lineterminator="\r")),
    "tsv": ("a.tsv", _tsv),
    "tab suffix": ("a.tab", lambda rows: "\ufeff" + _tsv(rows)),
    "jsonl": ("a.jsonl", _lines),
    "ndjson": ("a.ndjson", lambda rows: "\ufeff" + _lines(rows)),
    "list in jsonl": ("a.jsonl", lambda rows: json.dumps(rows, indent=1)),
    "json": ("a.json", json.dumps),
    "indented json": ("a.json", lambda rows: "\ufeff" + json.dumps(rows, indent=2, ensure_ascii=False)),
    "json of data": ("a.json", lambda rows: json.dumps({"version": 1.5, "data": rows, "more": {"a": [1]}})),
    "lines in json": ("a.json", _lines),
    "gzip csv": ("a.csv.gz", _csv),
    "gzip json": ("a.json.gz", json.dumps),
    "gzip tsv": ("a.tsv.gz", _tsv),
}
PLAIN = ("tsv", "tab suffix", "gzip tsv")  # where a text can hold neither tabs nor line breaks


def write_kind(folder: Path, kind: str, rows: Values) -> Path:
    """The rows in a file of this kind."""
    name, render = KINDS[kind]
    content = render(rows).encode()
    file = folder / name
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return file


def texts_for(kind: str, texts: Sequence[str]) -> list[str]:
    """The texts as the kind can hold them."""
    return [" ".join(text.split()) if kind in PLAIN else text for text in texts]
