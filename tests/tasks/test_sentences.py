"""Tables of texts and pairs of texts, and the location of what is wrong in one."""

import json
from pathlib import Path

import pytest

from fastbert.tasks.sentences import read_sentences
from fastbert.utils.errors import InputError
from tests.tasks.published import DATA, needs_data, write


def pairs_of(file: Path, **options) -> list[tuple]:
    return [(one.text, one.label) for one in read_sentences(file, **options).examples]


def test_csv_has_a_mark_quotes_line_breaks_and_either_line_end(tmp_path):
    content = b'\xef\xbb\xbftext,category\r\n"Hello, ""you""",a\r\n"two\r\nlines",b\r\nlast,a'
    file = write(tmp_path / "a.csv", content)
    found = read_sentences(file)
    assert [(one.text, one.label, one.line) for one in found.examples] == [
        ('Hello, "you"', "a", 2),
        ("two\r\nlines", "b", 3),
        ("last", "a", 5),
    ]
    assert found.columns == {"text": "text", "label": "category"}


def test_csv_may_have_semicolons(tmp_path):
    assert pairs_of(write(tmp_path / "a.csv", "label;text\n1;so, so\n")) == [("so, so", "1")]


def test_quotation_marks_in_tsv_are_text(tmp_path):
    file = write(tmp_path / "a.tsv", 'id\tdocument\tlabel\r\n1\t"so\t0\r\n2\tit\'s" ok\u2028yes\t1\r\n')
    assert pairs_of(file) == [('"so', "0"), ("it's\" ok\u2028yes", "1")]


def test_jsonl_and_json_lists_hold_labels_of_any_kind(tmp_path):
    rows = [{"sentence": "a", "label": 1}, {"sentence": "b\u2028c", "label": "x"}, {"sentence": "d", "label": True}]
    wanted = [("a", "1"), ("b\u2028c", "x"), ("d", "true")]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert pairs_of(write(tmp_path / "a.jsonl", lines + "\n\n")) == wanted
    assert pairs_of(write(tmp_path / "a.json", json.dumps(rows))) == wanted
    assert pairs_of(write(tmp_path / "b.json", json.dumps({"data": rows}))) == wanted


def test_columns_are_named_or_found(tmp_path):
    file = write(tmp_path / "a.csv", "A,B,Label\nx,y,1\n")
    assert pairs_of(file, columns={"text": "B"}) == [("y", "1")]
    with pytest.raises(InputError, match=r"expected to find text among the columns of .*a\.csv, got A, B, Label: name them"):
        read_sentences(file)
    with pytest.raises(InputError, match=r"expected a column C \(text\) in .*a\.csv, got A, B, Label"):
        read_sentences(file, columns={"text": "C"})


def test_files_without_a_header_have_numbered_columns(tmp_path):
    file = write(tmp_path / "a.tsv", "1\tfirst\n0\tsecond\n")
    assert pairs_of(file, header=False, columns={"text": "2", "label": "1"}) == [("first", "1"), ("second", "0")]


def test_rows_without_a_gold_label_are_left_out_and_counted(tmp_path):
    file = write(tmp_path / "a.tsv", "premise\thypothesis\tgold_label\na\tb\tneutral\na\tc\t-\n")
    found = read_sentences(file, pair=True)
    assert (len(found.examples), found.left_out, found.examples[0].pair) == (1, 1, "b")


def test_pairs_with_fractions_are_regression(tmp_path):
    file = write(tmp_path / "a.csv", "sentence1,sentence2,score\na,b,3.8\na,c,5\n")
    found = read_sentences(file, pair=True)
    assert found.regression
    assert [one.label for one in found.examples] == [3.8, 5.0]
    whole = write(tmp_path / "b.csv", "sentence1,sentence2,score\na,b,3\n")
    assert not read_sentences(whole, pair=True).regression
    assert read_sentences(whole, pair=True, regression=True).examples[0].label == 3.0
    words = write(tmp_path / "c.csv", "sentence1,sentence2,score\na,b,3\na,b,nan\n")
    with pytest.raises(InputError, match=r"expected a number as label, got 'nan' in line 3 of .*c\.csv"):
        read_sentences(words, pair=True, regression=True)


def test_text_alone_needs_no_label(tmp_path):
    found = read_sentences(write(tmp_path / "a.csv", "text\nhello\n"), labelled=False)
    assert (found.examples[0].label, found.columns) == (None, {"text": "text"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\na,1\nb\n", r"expected 2 fields \(text, label\), got 1 in line 3 of .*a\.csv"),
        ("a.csv", "text,label\na,b,1\n", r"expected 2 fields \(text, label\), got 3 in line 2 of .*a\.csv"),
        ("a.csv", 'text,label\n"a\nb",1\nc,d,1\n', "got 3 in line 4 of .*"),
        ("a.csv", 'text,label\na,1\n"b,1\nc,1\n', r"expected CSV, got .* in line 3 of .*a\.csv"),
        ("a.tsv", "text\tlabel\n\n \t1\n", "expected text as text, got an empty one in line 3 of .*a.tsv"),
        ("a.tsv", "text\tlabel\na\t \n", "expected a label as label, got ' ' in line 2 of .*a.tsv"),
        ("a.tsv", "text\ttext\na\tb\n", "expected different names of columns"),
        ("a.tsv", "text\tlabel\n", "expected rows in .*a.tsv, got none"),
        ("a.csv", b"text,label\na,1\nb\xff,1\n", r"expected UTF-8, got byte 0xff in line 3 of .*a\.csv"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "expected a value for label, got only text in line 2 of .*"),
        ("a.jsonl", '{"text": "a", "label": [1]}\n', r"expected a label as label, got \[1\] in line 1 of .*"),
        ("a.jsonl", '{"text": 5, "label": 1}\n', "expected text as text, got int in line 1 of .*"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{\n', r"expected a JSON object, got .* in line 2 of .*a\.jsonl"),
        ("a.json", '[{"text": "a", "label": 1}, 3]', r"expected a JSON object, got int in element 2 of .*a\.json"),
        ("a.xlsx", "text", r"expected a file that ends in \.csv"),
    ],
)
def test_bad_tables_are_errors_with_their_location(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read_sentences(write(tmp_path / name, content))


@needs_data
@pytest.mark.parametrize(
    ("name", "pair", "rows", "labels", "columns"),
    [
        ("classify/banking77_test.csv", False, 3080, 77, ["text", "category"]),
        ("classify/nsmc_test.tsv", False, 5000, 2, ["document", "label"]),
        ("pair/snli_test.tsv", True, 9824, 3, ["premise", "hypothesis", "label"]),
        ("pair/klue-nli-v1.1_dev.json", True, 3000, 3, ["premise", "hypothesis", "gold_label"]),
        ("tag/snips_validate.jsonl", False, 700, 7, ["text", "intent"]),
    ],
)
def test_published_tables(name, pair, rows, labels, columns):
    found = read_sentences(DATA / name, pair=pair)
    assert len(found.examples) == rows
    assert len({one.label for one in found.examples}) == labels
    assert list(found.columns.values()) == columns
