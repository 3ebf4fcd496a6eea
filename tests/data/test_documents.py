"""Documents from every kind of source, and the location of errors in one."""

import json
import sys
import types
from pathlib import Path

import pytest

from fastbert.data import documents as module
from fastbert.data.documents import Document, open_source, open_sources
from fastbert.utils.errors import DataError

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "pretrain"


def read(name) -> list[list[str]]:
    return [document.sentences for document in open_source(str(name))]


def write(file: Path, content: bytes | str) -> Path:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_text_has_a_sentence_a_line_and_blank_lines_between_documents(tmp_path):
    file = write(
        tmp_path / "a.txt", "\n \nOne.\nTwo. \r\n\r\n\t\n Three\x0bon one line.\u2028Same line.\n\nFour, without a line feed"
    )
    assert read(file) == [["One.", "Two."], ["Three\x0bon one line.\u2028Same line."], ["Four, without a line feed"]]


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert read(write(tmp_path / "a.txt", b"\xef\xbb\xbfOne.\n\nTwo.")) == [["One."], ["Two."]]


def test_documents_say_how_far_the_file_has_been_read(tmp_path):
    source = open_source(str(write(tmp_path / "a.txt", "One.\n\nTwo.\n")))
    assert list(source) == [Document(["One."], 6), Document(["Two."], 11)]
    assert source.size == 11
    assert list(source) == list(source)


def test_jsonl_has_a_document_a_line(tmp_path):
    rows = [{"text": "One.\nTwo.\n\nThree."}, {"sentences": ["A\nb", " ", "C"], "id": 1}, {"text": "  "}, {"text": "한국어"}]
    file = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    assert read(file) == [["One.", "Two.", "Three."], ["A\nb", "C"], ["한국어"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"JSON object in line 2 of .*a\.jsonl"),
        ("[1]", "line 2 .*got list"),
        ('{"body": "x"}', r"either \"text\" or \"sentences\" in line 2 .*got keys \['body'\]"),
        ('{"text": "x", "sentences": []}', "line 2 .*got keys"),
        ('{"text": 5}', "expected text in line 2 .*got int"),
        ('{"sentences": ["x", 5]}', "list of texts in line 2"),
        ('{"text": "half \\ud800"}', "UTF-8 can hold in line 2"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path, line, message):
    file = write(tmp_path / "a.jsonl", '{"text": "One."}\n' + line)
    with pytest.raises(DataError, match=message):
        read(file)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("lines_before", [0, 2])
def test_undecodable_bytes_are_named_by_file_line_and_byte(tmp_path, mark, name, lines_before):
    before = mark + (b'{"text": "caf\xc3\xa9"}\n' if name == "a.jsonl" else b"caf\xc3\xa9\n") * lines_before
    file = write(tmp_path / name, before + b"abc\xff\n")
    with pytest.raises(
        DataError, match=rf"{name}, got byte 0xff in line {lines_before + 1} \(byte {len(before) + 3} of the file"
    ):
        read(file)


@pytest.mark.parametrize("content", [" \n\n\t\n", "\ufeff\n"])
def test_a_file_of_blanks_is_an_error(tmp_path, content):
    with pytest.raises(DataError, match="got none: nothing but blanks"):
        read(write(tmp_path / "a.txt", content))


def test_files_are_checked_before_they_are_read(tmp_path):
    good = str(write(tmp_path / "good.txt", "One."))
    with pytest.raises(DataError, match=r"got an empty file"):
        open_source(str(write(tmp_path / "empty.txt", "")))
    with pytest.raises(DataError, match=r"expected a file named \.txt, \.jsonl, \.parquet or hf:NAME, got .*a\.csv"):
        open_source(str(write(tmp_path / "a.csv", "One.")))
    with pytest.raises(FileNotFoundError):
        open_source(str(tmp_path / "absent.txt"))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(IsADirectoryError):
        open_source(str(tmp_path / "folder.txt"))
    with pytest.raises(DataError, match="each file once"):
        open_sources([good, str(tmp_path / "." / "good.txt")])
    with pytest.raises(DataError, match="at least one file"):
        open_sources([])


def test_a_line_or_a_document_without_end_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 100)
    with pytest.raises(DataError, match="lines of at most 100 bytes, got a longer one: line 2"):
        read(write(tmp_path / "a.txt", "One.\n" + "x" * 101))
    with pytest.raises(DataError, match=r"blank line between documents.*line 11 of .*b\.txt"):
        read(write(tmp_path / "b.txt", "123456789\n" * 20))
    assert len(read(write(tmp_path / "c.txt", ("123456789\n" * 9 + "\n") * 3))) == 3


def test_documents_come_one_at_a_time(tmp_path):
    """The bad byte behind the first documents is not met before they are out."""
    documents = iter(open_source(str(write(tmp_path / "a.txt", b"One.\n\nTwo.\n\n\xff"))))
    assert next(documents).sentences == ["One."]
    assert next(documents).sentences == ["Two."]
    with pytest.raises(DataError):
        next(documents)


def test_libraries_that_are_missing_are_named(tmp_path, monkeypatch):
    for name in ("datasets", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r"expected pyarrow .*pip install .*\[train\]"):
        open_source(str(write(tmp_path / "a.parquet", "PAR1")))
    with pytest.raises(DataError, match=r"expected datasets for hf:imdb.*pip install .*\[train\]"):
        open_source("hf:imdb")


def test_parquet_has_a_document_a_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": ["One.\nTwo.", "", "Three."]}), file)
    assert read(file) == [["One.", "Two."], ["Three."]]
    assert list(open_source(str(file)))[-1].read == file.stat().st_size
    parquet.write_table(pyarrow.table({"text": ["One.", None]}), file)
    with pytest.raises(DataError, match="expected text in row 2 of"):
        read(file)
    parquet.write_table(pyarrow.table({"body": ["One."]}), file)
    with pytest.raises(DataError, match=r"column `text`.*got \['body'\]"):
        open_source(str(file))
    with pytest.raises(DataError, match="expected a parquet file"):
        open_source(str(write(file, "not parquet")))


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("hf:owner/books", ("owner/books", None, "train", "text")),
        ("hf:books@2023.en:validation", ("books", "2023.en", "validation", "text")),
        ("hf:books:test:body", ("books", None, "test", "body")),
    ],
)
def test_data_sets_are_streamed(monkeypatch, name, called):
    data_set, config, split, column = called
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return iter([{column: "One.\nTwo."}, {column: ["Three.", "Four."]}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read(name) == [["One.", "Two."], ["Three.", "Four."]]
    assert calls == [((data_set, config), {"split": split, "streaming": True})]
    if column == "text":
        with pytest.raises(DataError, match=r"column `absent`.*got \['text'\]"):
            read(f"hf:books:{split}:absent")


@pytest.mark.parametrize("name", ["hf:", "hf::train", "hf:a::text", "hf:a:b:c:d"])
def test_a_bad_name_of_a_data_set_is_an_error(name):
    with pytest.raises(DataError, match="expected hf:NAME"):
        open_source(name)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared text is not beside the repository")
@pytest.mark.parametrize(("name", "lines"), [("en_books_heldout.txt", 6737), ("ko_wikinews.txt", None)])
def test_real_text_keeps_its_documents(name, lines):
    documents = read(DATA / name)
    text = (DATA / name).read_text(encoding="utf-8")
    assert documents == [part.split("\n") for part in text.strip("\n").split("\n\n")]
    assert lines is None or sum(map(len, documents)) == lines


def test_a_data_set_is_read_by_the_library_itself(tmp_path):
    """A folder is a data set too: the same streaming as from the hub, without a network."""
    pytest.importorskip("datasets", reason="datasets is not installed")
    (tmp_path / "books").mkdir()
    rows = [{"text": "One.\nTwo.", "body": ["Four."]}, {"text": "Three.", "body": ["Five.", "Six."]}]
    for split in ("train", "test"):
        write(tmp_path / "books" / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert read(f"hf:{tmp_path / 'books'}") == [["One.", "Two."], ["Three."]]
    assert read(f"hf:{tmp_path / 'books'}:test:body") == [["Four."], ["Five.", "Six."]]
    with pytest.raises(DataError, match=r"expected a column `words` in .*:words, got \['body', 'text'\]"):
        read(f"hf:{tmp_path / 'books'}:test:words")
    with pytest.raises(DataError, match=r"expected a data set that can be read as hf:.*:dev"):
        read(f"hf:{tmp_path / 'books'}:dev")
    write(tmp_path / "books" / "test.jsonl", '{"other": 1}\n')
    with pytest.raises(DataError, match="got at row 1: Couldn't cast"):
        read(f"hf:{tmp_path / 'books'}:test")
