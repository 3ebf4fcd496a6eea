"""Fine-tuning's readers on every kind of file: the same examples come out; what is another format says so."""

import gzip
import json
import re
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastbert.tasks.choices import read_choices
from fastbert.tasks.sentences import read_sentences
from fastbert.tasks.squad import read_squad
from fastbert.tasks.tagged import read_tagged
from fastbert.utils.errors import InputError
from tests.file_kinds import KINDS, texts_for, write_kind

TEXTS = ['She said, "sit; down"', "two\n\nlines\twith \u2028 more", "안녕; {[", "'"]


@pytest.mark.parametrize("kind", KINDS)
def test_sentences_of_every_kind(tmp_path, kind):
    texts = texts_for(kind, TEXTS)
    rows = [{"id": f"0{number}", "text": text, "label": f"l{number % 2}"} for number, text in enumerate(texts)]
    found = read_sentences(write_kind(tmp_path, kind, rows))
    assert [(one.text, one.label) for one in found.examples] == [(row["text"], row["label"]) for row in rows]
    assert [row.values for row in found.table.rows] == rows


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_and_choices_of_every_kind(tmp_path, kind):
    texts = texts_for(kind, TEXTS)
    rows = [{"sentence1": text, "sentence2": f"b, {text}", "label": "x"} for text in texts]
    found = read_sentences(write_kind(tmp_path, kind, rows), pair=True)
    assert [(one.text, one.pair) for one in found.examples] == [(row["sentence1"], row["sentence2"]) for row in rows]
    rows = [{"context": text, "ending0": f"a {text}", "ending1": f"b {text}", "label": "1"} for text in texts]
    choices = read_choices(write_kind(tmp_path, kind, rows))
    assert [(one.prompt, one.endings, one.label) for one in choices.examples] == [
        (row["context"], (row["ending0"], row["ending1"]), 1) for row in rows
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_questions_in_tables_of_every_kind(tmp_path, kind):
    answers = {"text": ["Paris", "in Paris"], "answer_start": [13, 10]}
    rows = [
        {"id": "q1", "question": "Where?", "context": "Anna was, in Paris; yes", "answers": json.dumps(answers)},
        {"id": "q2", "question": "Why?", "context": "Anna", "answers": json.dumps({"text": [], "answer_start": []})},
    ]
    found = read_squad(write_kind(tmp_path, kind, rows))
    assert [(one.key, one.question, one.answers) for one in found.examples] == [
        ("q1", "Where?", (("Paris", 13), ("in Paris", 10))),
        ("q2", "Why?", ()),
    ]
    assert found.some_unanswerable


def test_questions_of_tables_may_hold_objects_or_lists(tmp_path):
    answers = [{"text": "Paris", "answer_start": 3}]
    row = {"id": 7, "question": "Where?", "context": "in Paris", "answers": answers}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (one,) = read_squad(tmp_path / "a.jsonl").examples
    assert (one.key, one.answers) == ("7", (("Paris", 3),))
    (tmp_path / "b.jsonl").write_text(json.dumps(row | {"answers": {"text": ["Rome"], "answer_start": [3]}}))
    with pytest.raises(InputError, match=r"expected the answer 'Rome' at answer_start 3 .* in line 1 \(id 7\) of .*b\.jsonl"):
        read_squad(tmp_path / "b.jsonl")
    (tmp_path / "c.csv").write_text("question,context,answers\nWho?,Anna,\"{'text': array(['Anna'])}\"\n")
    with pytest.raises(InputError, match=r"expected answers as JSON, got .*array"):
        read_squad(tmp_path / "c.csv")
    (tmp_path / "d.jsonl").write_text('{"question": "Who?", "context": "Anna"}')
    with pytest.raises(InputError, match=r"expected answers, .* got only question, context in line 1"):
        read_squad(tmp_path / "d.jsonl")


@pytest.mark.parametrize("name", ["a.conll", "a.bio", "a.iob", "a.IOB2", "a.bioes", "a.txt", "a.tsv", "a.tab", "a.conll.gz"])
@pytest.mark.parametrize("separator", [" ", "\t"])
def test_conll_by_any_of_its_names(tmp_path, tokenizer, name, separator):
    lines = ["-DOCSTART- -X- O", "", "# id 1 x y", "Anna NNP B-PER", "ran VBD O", "-DOCSTART- -X- O", "Rome NNP B-LOC", "", ""]
    content = "\r\n".join(line if line.startswith("#") else line.replace(" ", separator) for line in lines).encode()
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    found = read_tagged(tmp_path / name, tokenizer)
    assert [(one.words, one.tags, one.line) for one in found.examples] == [
        (("Anna", "ran"), ("B-PER", "O"), 4),
        (("Rome",), ("B-LOC",), 7),
    ]


def test_tags_in_json_are_those_of_jsonl(tmp_path, tokenizer):
    rows = [{"tokens": ["in", "Rome"], "ner_tags": ["O", "S-LOC"]}, {"tokens": ["Rome"], "ner_tags": ["O"]}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.jsonl").write_text(json.dumps(rows))
    wanted = [(("in", "Rome"), ("O", "S-LOC")), (("Rome",), ("O",))]
    for name in ("a.json", "a.jsonl", "b.jsonl"):
        assert [(one.words, one.tags) for one in read_tagged(tmp_path / name, tokenizer).examples] == wanted


@pytest.mark.parametrize("name", ["eng.train", "a.xlsx", "a", "a.gz", "a.conll"])
def test_a_format_can_be_named_where_the_suffix_says_none(tmp_path, name):
    (tmp_path / name).write_text("text,label\na,b\n")
    with pytest.raises(InputError, match=r"expected a file that ends in \.csv, \.tsv, .*, got .*: --format names"):
        read_sentences(tmp_path / name)
    if name != "a.gz":
        assert read_sentences(tmp_path / name, format_="csv").examples[0].text == "a"
    with pytest.raises(InputError, match="expected a format among csv, tsv, jsonl, json, got 'conll'"):
        read_sentences(tmp_path / name, format_="conll")


def test_an_unknown_suffix_is_not_taken_for_conll(tmp_path, tokenizer):
    (tmp_path / "eng.train").write_text("Anna B-PER\n")
    with pytest.raises(InputError, match=r"expected a file that ends in \.conll, \.bio, .*\.tsv, .*got .*eng\.train"):
        read_tagged(tmp_path / "eng.train", tokenizer)
    assert read_tagged(tmp_path / "eng.train", tokenizer, format_="conll").examples[0].tags == ("B-PER",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", '[{"text": "a", "label": "b"}]', "expected CSV, got JSON in .*: --format json or jsonl reads it"),
        ("a.csv", '{"text": "a", "label": "b"}\n{"text": "a", "label": "b"}', "expected CSV, got JSON"),
        ("a.tsv", '[\n {\n  "text": "a"\n }\n]', "expected TSV, got JSON"),
        ("a.tsv", 'text\tlabel\n"two\nlines"\tb\n', r"expected 2 fields .*, got 1 in line 2 .*--format csv"),
        ("a.json", "text,label\na,b\n", "expected a list of objects, or objects, got 't' in line 1"),
        ("a.jsonl", "text,label\na,b\n", "expected a JSON object, got Expecting value in line 1"),
        ("a.jsonl", '{\n "text": "a"\n}\n', "expected a JSON object, got Expecting property name .* in line 1"),
        ("a.json", '{"text": ["a", "b"], "label": ["x", "y"]}', r"expected a list of objects, .*object of columns \(text, l"),
        ("a.json", '{"text": {"0": "a"}, "label": {"0": "x"}}', r'got an object of columns .*to_json\(orient="records"\)'),
        ("a.json", '[{"text": "a", "label": "b"},\n{"text": "a" "label": 1}]', "expected JSON, got Expecting ',' .* in line 2"),
        ("a.json", '[{"text": "a", "label": "b"}', "expected ',', got the end in line 1"),
        ("a.json", '[{"text": "a", "label": "b"}] [', "expected the end of the file, got"),
        ("a.json", '{"data": [{"text": "a", "label": "b"}], "x": }', "expected JSON, got Expecting value in line 1"),
        ("a.json", b'[{"text": "a", "label": "b"},\n{"text": "\xff"}]', "expected UTF-8, got byte 0xff in line 2"),
        ("a.json", '{"text": "a", "label": "b"}\n[1]', "expected a JSON object, got list in line 2"),
        ("a.json", '["a", "b"]', "expected a JSON object, got str in element 1"),
        ("a.json", '{"train": [{"text": "a"}], "n": 1}', "expected to find text and label among the columns .*, got train, n"),
        ("a.jsonl", '{"text": 1e999999999999, "label": ' + "9" * 5000 + "}", "expected a JSON object, got Exceeds the limit"),
        ("a.csv.gz", "text,label\na,b\n", r"expected a whole gzip file, got .* in .*a\.csv\.gz"),
        ("b.csv.gz", gzip.compress(b"text,label\na,b\n", mtime=0)[:-9], "expected a whole gzip file"),
        ("a.csv", gzip.compress(b"text,label\na,b\n", mtime=0), "expected UTF-8, got byte 0x8b in line 1"),
        ("a.csv", "text,label\na,b\n".encode("utf-16"), "expected UTF-8, got byte 0xff in line 1"),
    ],
)
def test_another_format_under_a_known_suffix_is_said(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as found:
        read_sentences(tmp_path / name)
    assert re.search(rf"{re.escape(name)}\b", str(found.value))


def test_json_is_not_read_as_conll(tmp_path, tokenizer):
    (tmp_path / "a.conll").write_text('{"tokens": ["a"], "tags": ["O"]}\n')
    with pytest.raises(InputError, match=r"expected CoNLL, a word a line, got JSON in .*: --format json or jsonl reads it"):
        read_tagged(tmp_path / "a.conll", tokenizer)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("id;text, raw;label\n1;a, b;x\n2;c;y\n", ["1", "a, b", "x"]),  # the comma would split rows unevenly
        ("id,text;raw,label\n1,a;b,x\n2,c,y\n", ["1", "a;b", "x"]),
        ('"text, raw";label\n"a;b";x\n', ["a;b", "x"]),
        ("text\tnote, long\tlabel\na\tb\tx\n", ["a", "b", "x"]),
        ("text,label\n a, x\n", [" a", " x"]),  # blanks that the header does not have are text
        ("text\na;\n", ["a;"]),
    ],
)
def test_the_delimiter_is_what_splits_all_rows(tmp_path, content, wanted):
    from fastbert.tasks.rows import read_table

    (tmp_path / "a.csv").write_text(content)
    assert list(read_table(tmp_path / "a.csv").rows[0].values.values()) == wanted


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "b.json", "c.json", "a.conll", "a.csv.gz", "a.txt"])
def test_a_file_is_never_in_memory_whole(tmp_path, name):
    from fastbert.tasks import conll, formats, rows

    text, count = "word " * 400, 2000
    unit = {"tsv": f"1\t{text}\n", "conll": f"{'word' * 100} O\n" * 5 + "\n", "txt": text + "\n"}
    values = json.dumps({"id": 1, "text": text})
    lines = {
        "a.csv": ["id,text\n", *[f"1,{text}\n"] * count],
        "a.tsv": ["id\ttext\n", *[unit["tsv"]] * count],
        "a.jsonl": [values + "\n"] * count,
        "a.json": ["[", *[values + ",\n"] * (count - 1), values + "]"],
        "b.json": ['{"data": [', *[values + ", "] * (count - 1), values + "]}"],  # a single line
        "c.json": [values + "\n"] * count,
        "a.conll": [unit["conll"]] * count,
        "a.csv.gz": ["id,text\n", *[f"1,{text}\n"] * count],
        "a.txt": [unit["txt"]] * count,
    }[name]
    with gzip.open(tmp_path / name, "wt", 1) if name.endswith(".gz") else (tmp_path / name).open("w") as handle:
        handle.writelines(lines)
    kind = formats.format_of(tmp_path / name, (*formats.TABLES, "text", "conll"))
    tracemalloc.start()
    found = conll.conll_rows(tmp_path / name) if kind == "conll" else rows.read_rows(tmp_path / name, kind)
    assert sum(1 for _ in found) == count
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20  # of 4 MB


@pytest.mark.parametrize(
    "lines",
    [
        ["1\tThe\tthe\tDET\t_", "2\tcat\tcat\tNOUN\t_", "3\tsat\tsit\tVERB\t_"],  # CoNLL-U
        ["doc/1 0 0 The O", "doc/1 0 1 cat O", "doc/1 0 2 sat O"],  # CoNLL-2012
    ],
)
def test_conll_whose_words_are_not_first_is_refused(tmp_path, tokenizer, lines):
    from fastbert.tasks.conll import conll_rows

    (tmp_path / "a.conll").write_text("\n".join(lines) + "\n\n")
    with pytest.raises(InputError, match=r"expected the words in the first column, got (1, 2, 3|doc/1, .*), \.\.\. in line 1"):
        list(conll_rows(tmp_path / "a.conll"))


def test_a_last_row_of_one_letter_behind_a_carriage_return(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,label\ra,b\rc,d")
    assert [(one.text, one.label) for one in read_sentences(tmp_path / "a.csv").examples] == [("a", "b"), ("c", "d")]
    (tmp_path / "b.csv").write_bytes(b"text\ra\rb")
    assert [one.text for one in read_sentences(tmp_path / "b.csv", labelled=False).examples] == ["a", "b"]


def damaged() -> st.SearchStrategy[bytes]:
    """Whole files of some kind with bytes cut out, doubled or changed, or anything at all."""
    rows = [{"id": "1", "text": 'a "b", c', "label": "x"}, {"id": "2", "text": "d\n\ne", "label": "y"}]
    whole = [render(rows).encode() for _, render in KINDS.values()]
    whole += [
        b"-DOCSTART- O\n\nthe DT O\ncat NN B-X\n\n",
        b'{"version": 1, "data": [{"paragraphs": [{"context": "a", "qas": []}]}]}',
    ]

    def damage(content: bytes, at: int, length: int, new: bytes) -> bytes:
        at %= len(content)
        return content[:at] + new + content[at + length :]

    pieces = st.one_of(
        st.binary(max_size=4), st.sampled_from([b'"', b"{", b"]", b",", b"\r", b"\n", b"\x00", b"NaN", b"\xef\xbb\xbf"])
    )
    changed = st.builds(damage, st.sampled_from(whole), st.integers(0, 500), st.integers(0, 40), pieces)
    packed = st.builds(gzip.compress, changed)
    cut = st.builds(lambda content, kept: content[: kept % len(content)], packed, st.integers(0, 500))
    return st.one_of(changed, packed, cut, st.binary(max_size=80))


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=damaged(), suffix=st.sampled_from(["csv", "tsv", "jsonl", "json", "txt", "conll", "csv.gz", "json.gz"]))
def test_damaged_files_are_read_or_refused(tmp_path, content, suffix):
    """Never anything else than rows or a line that names the file."""
    from fastbert.inference.inputs import ANSWER, CLASSIFY, TAG, Source

    file = tmp_path / f"a.{suffix}"
    file.write_bytes(content)
    refused = []
    for kind in (CLASSIFY, TAG, ANSWER):
        try:
            assert all(row.value is not None for row in Source.of(file, kind, say=lambda line: None))
        except InputError as error:
            refused.append(str(error))
    assert all(str(file) in message and "\n" not in message for message in refused)
