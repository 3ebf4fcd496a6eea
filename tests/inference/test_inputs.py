"""Rows of every format, lazily, each with its location; and the location of errors."""

import io
import json
import sys

import pytest

from fastbert.inference.inputs import EMBED as TEXT
from fastbert.inference.inputs import NEXT as PAIR
from fastbert.inference.inputs import Source
from fastbert.tasks import lines
from fastbert.utils.errors import InputError


def source(file, kind=TEXT, fields=None, format_=None, said=None) -> Source:
    return Source.of(file, kind, fields, format_, say=(said if said is not None else []).append)


def values(file, *args, **kwargs) -> list:
    return [row.value for row in source(file, *args, **kwargs)]


def write(file, content: bytes | str):
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_a_line_is_a_row_and_a_blank_one_an_empty_text(tmp_path):
    file = write(tmp_path / "a.txt", "\ufeffOne.\r\n\n  Two\u2028 \n\x0bThree, no line feed")
    assert values(file) == ["One.", "", "  Two\u2028 ", "\x0bThree, no line feed"]
    assert [row.location for row in source(file)][2] == f"line 3 of {file}"


def test_jsonl_by_field(tmp_path):
    rows = [{"id": 1, "text": "One.\nTwo."}, {"text": "한국어", "id": 2}]
    file = write(tmp_path / "a.jsonl", "\n\n".join(map(json.dumps, rows)) + "\n")
    assert values(file) == ["One.\nTwo.", "한국어"]
    assert [row.location for row in source(file)] == [f"line 1 of {file}", f"line 3 of {file}"]
    pairs = write(tmp_path / "b.jsonl", json.dumps({"x": "A", "first": "B", "second": "C"}))
    assert values(pairs, PAIR) == [("B", "C")]
    assert values(pairs, PAIR, ["x", "second"]) == [("A", "C")]


def test_csv_and_tsv_by_column(tmp_path):
    csv = write(tmp_path / "a.csv", 'label,text\r\n1,"One, ""two""\nand three"\r\n2,Four\r\n\r\n3,\r\n')
    assert values(csv) == ['One, "two"\nand three', "Four", ""]
    assert [row.location for row in source(csv)] == [f"line {number} of {csv}" for number in (2, 4, 6)]
    tsv = write(tmp_path / "a.tsv", 'premise\thypothesis\tlabel\nA "quote\tB\t1\nC\t\t2\n')
    assert values(tsv, PAIR, ["premise", "hypothesis"]) == [('A "quote', "B"), ("C", "")]
    assert values(tsv, TEXT, ["hypothesis"]) == ["B", ""]


def test_columns_that_are_found_are_reported(tmp_path):
    said: list[str] = []
    file = write(tmp_path / "a.tsv", "premise\thypothesis\nA\tB\n")
    assert values(file, PAIR, said=said) == [("A", "B")]
    assert said == [f"{file}: premise and hypothesis read as first and second"]
    said.clear()
    assert values(write(tmp_path / "b.csv", "review\nA\n"), said=said) == ["A"]
    assert "review read as text" in said[0]
    assert values(write(tmp_path / "c.csv", "text,second,first\nA,B,C\n"), PAIR, said=said) == [("C", "B")]
    assert len(said) == 1


@pytest.mark.parametrize(
    ("name", "content", "given", "message"),
    [
        ("a.txt", "", None, r"expected texts in .*a\.txt, got none"),
        ("a.csv", "text\n", None, r"expected texts in .*a\.csv, got none"),
        ("a.txt", b"one\ntw\xff\n", None, r"expected UTF-8, got byte 0xff in line 2 of .*a\.txt"),
        ("a.jsonl", '{"text": "a"}\n{', None, r"expected a JSON object, got .* in line 2 of .*a\.jsonl"),
        ("a.jsonl", '{"text": "a"}\n[1]', None, "expected a JSON object, got list in line 2 of"),
        ("a.jsonl", '{"text": "a"}\n{"body": "b"}', None, "expected a value for text, got only body in line 2 of"),
        ("a.jsonl", '{"text": "a"}\n{"text": 5}', None, "expected text as text, got int in line 2 of"),
        ("a.jsonl", '{"a": "a", "b": "b"}', None, r"expected columns text in .*got a, b: name them with --field"),
        ("a.csv", "a,b\n1,2\n", None, r"expected columns text in .*got a, b: name them with --field"),
        ("a.csv", "a,b\n1,2\n", ["c"], r"expected columns c in .*got a, b"),
        ("a.csv", "text,text\n1,2\n", None, r"expected different names of columns, got text, text in line 1 of .*a\.csv"),
        ("a.csv", "text,b\n1,2\n3\n", None, r"expected 2 fields \(text, b\), got 1 in line 3 of .*a\.csv"),
        ("a.tsv", "text\tb\n1\t2\n3\t4\t5\n", None, r"expected 2 fields \(text, b\), got 3 in line 3 of .*a\.tsv"),
        ("a.csv", 'text\n"never closed\nand on\n', None, r"expected CSV, got unexpected end of data in line 2 of .*a\.csv"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, given, message):
    with pytest.raises(InputError, match=message):
        values(write(tmp_path / name, content), TEXT, given)


def test_a_line_without_end_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100)
    with pytest.raises(InputError, match=r"lines of at most 100 bytes, got a longer one: line 2 of .*a\.txt"):
        values(write(tmp_path / "a.txt", "One.\n" + "x" * 101))
    with pytest.raises(InputError, match="field larger than field limit"):
        values(write(tmp_path / "a.csv", 'text\n"' + "never closed\n" * 20))


def test_rows_come_one_at_a_time(tmp_path):
    rows = iter(source(write(tmp_path / "a.txt", b"One.\nTwo.\n\xff")))
    assert [next(rows).value, next(rows).value] == ["One.", "Two."]
    with pytest.raises(InputError):
        next(rows)


@pytest.mark.parametrize(
    ("kind", "fields", "format_", "message"),
    [
        (TEXT, None, "xml", "expected a format among csv, tsv, jsonl, json, text, got 'xml'"),
        (PAIR, ["a"], "jsonl", r"expected 2 fields, first and second, got 1: a"),
        (PAIR, None, "text", "expected a format among csv, tsv, jsonl, json, got 'text'"),
        (TEXT, ["a"], "text", "expected csv, tsv, jsonl, json beside a named field, got text in"),
    ],
)
def test_options_that_do_not_fit_are_named(tmp_path, kind, fields, format_, message):
    with pytest.raises(InputError, match=message):
        source(write(tmp_path / "a.txt", "One."), kind, fields, format_)


def test_the_standard_input(monkeypatch):
    def stdin(content: str):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))

    stdin("One.\nTwo.\n")
    assert [(row.value, row.location) for row in source(None)] == [
        ("One.", "line 1 of the standard input"),
        ("Two.", "line 2 of the standard input"),
    ]
    stdin('{"first": "A", "second": "B"}\n')
    assert values(None, PAIR) == [("A", "B")]
    stdin("first\tsecond\nA\tB\n")
    assert values(None, PAIR, None, "tsv") == [("A", "B")]


def test_an_absent_file_is_met_at_once(tmp_path):
    with pytest.raises(FileNotFoundError):
        source(tmp_path / "absent.txt")
