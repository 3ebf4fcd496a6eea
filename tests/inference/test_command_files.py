"""Every command on every kind of file, through the command line: the texts, their ids beside the results, what is refused."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from seqeval.metrics.sequence_labeling import get_entities
from typer.testing import CliRunner

from fastbert.inference import engine
from fastbert.inference.embedding import Embedding
from fastbert.tasks.sentences import read_sentences
from fastbert.tasks.squad import read_squad
from fastbert.tasks.tagged import read_tagged
from tests.file_kinds import KINDS, texts_for, write_kind
from tests.inference.tiny_checkpoints import save

TEXTS = ['the cat, "sat" down; a', "a dog\n\nin\tthe park", "red \u2028 ball", "{["]
HEADS = {
    "embed": "BertModel",
    "fill-mask": "BertForPreTraining",
    "classify": "BertForSequenceClassification",
    "next": "BertForPreTraining",
    "tag": "BertForTokenClassification",
    "answer": "BertForQuestionAnswering",
}
SOME_KINDS = ("semicolon", "mark", "tsv", "json of data", "lines in json", "gzip csv")


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.split("\n") if line]  # not splitlines: JSON may hold U+2028


@pytest.fixture
def call(app, checkpoints):
    def run(name: str, *arguments, model: str | None = None, status: int = 0, stdin: str | None = None):
        folder = model or checkpoints[HEADS[name]]
        done = CliRunner().invoke(app, [name, "--model", folder, "--precision", "float32", *map(str, arguments)], input=stdin)
        assert done.exit_code == status, done.output + repr(done.exception)
        return done

    return run


def written(folder: Path, name: str, content: str | bytes) -> Path:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


# What is read


@pytest.mark.parametrize("kind", KINDS)
def test_classify_reads_what_fine_tuning_reads(call, tmp_path, kind):
    texts = texts_for(kind, TEXTS)
    file = write_kind(tmp_path, kind, [{"id": f"0{n}", "Sentence": text, "label": "x"} for n, text in enumerate(texts)])
    trained = [one.text for one in read_sentences(file).examples]
    done = call("classify", "--file", file)
    rows = lines(done.stdout)
    assert [row["text"] for row in rows] == trained == texts
    assert [(row["id"], row["label"]) for row in rows] == [(f"0{number}", "x") for number in range(len(texts))]
    assert done.stderr.count(f"{file}: Sentence read as text") == 1
    stdin = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    alone = lines(call("classify", "--format", "jsonl", stdin=stdin).stdout)
    assert [row["labels"][0]["score"] for row in rows] == pytest.approx([row["labels"][0]["score"] for row in alone], abs=1e-5)


@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.parametrize("name", ["embed", "fill-mask", "tag"])
def test_commands_of_a_text_read_every_kind(call, tmp_path, name, kind):
    texts = [f"{text} [MASK]" for text in texts_for(kind, TEXTS)]
    file = write_kind(tmp_path, kind, [{"key": str(n), "text": text, "label": "x"} for n, text in enumerate(texts)])
    rows = lines(call(name, "--file", file).stdout)
    assert [(row["key"], row["text"], row["label"]) for row in rows] == [(str(n), text, "x") for n, text in enumerate(texts)]


@pytest.mark.parametrize("kind", SOME_KINDS)
@pytest.mark.parametrize("name", ["next", "classify"])
def test_commands_of_pairs_read_every_kind(call, tmp_path, name, kind):
    texts = texts_for(kind, TEXTS)
    file = write_kind(tmp_path, kind, [{"uid": str(n), "premise": a, "hypothesis": f"not {a}"} for n, a in enumerate(texts)])
    trained = [(one.text, one.pair) for one in read_sentences(file, pair=True, labelled=False).examples]
    done = call(name, *(["--pairs"] if name == "classify" else []), "--file", file)
    rows = lines(done.stdout)
    assert [(row["first"], row["second"]) for row in rows] == trained
    assert [row["uid"] for row in rows] == [str(number) for number in range(len(texts))]
    assert "premise and hypothesis read as first and second" in done.stderr


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_answer_reads_tables_of_questions(call, tmp_path, kind):
    answers = json.dumps({"text": ["cat"], "answer_start": [4]})
    contexts = [f"the cat {text}" for text in texts_for(kind, TEXTS)]
    common = {"question": "who?", "answers": answers}
    file = write_kind(tmp_path, kind, [{"id": f"q{n}", "context": one, **common} for n, one in enumerate(contexts)])
    trained = [(one.key, one.question, one.context) for one in read_squad(file).examples]
    done = call("answer", "--file", file)
    rows = lines(done.stdout)
    assert [(row["id"], row["question"], row["context"]) for row in rows] == trained
    assert all(row["input_answers"] == answers and row["answers"][0]["answer"] for row in rows)
    assert done.stderr.count("its answers is written as input_answers") == 1


@pytest.mark.parametrize("name", ["dev.json", "dev.json.gz"])
def test_answer_reads_squad_of_both_versions(call, tmp_path, name):
    answer = {"text": "the cat", "answer_start": 0}
    questions = [
        {"id": "1", "question": "who sat?", "answers": [answer], "is_impossible": False},
        {"id": "2", "question": "why?", "answers": [], "is_impossible": True, "plausible_answers": [answer]},
    ]
    articles = [
        {"title": "Cats", "paragraphs": [{"context": "the cat sat down", "qas": questions}]},
        {"paragraphs": [{"context": "a dog", "qas": [{"question": "what?", "answers": [{"text": "a", "answer_start": 0}]}]}]},
    ]
    content = json.dumps({"version": "v2.0", "data": articles}).encode()
    file = written(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
    rows = lines(call("answer", "--file", file).stdout)
    trained = read_squad(file, labelled=False).examples
    assert [(row["question"], row["context"]) for row in rows] == [(one.question, one.context) for one in trained]
    assert [row.get("id") for row in rows] == ["1", "2", None]
    assert [row.get("title") for row in rows] == ["Cats", "Cats", None]
    assert rows[1]["plausible_answers"] == [answer]
    assert rows[0]["input_answers"] == [answer]
    done = call("embed", "--file", file, status=2)
    assert "expected rows with text, got SQuAD's articles in" in done.stderr
    articles[0]["paragraphs"][0]["context"] = None
    done = call("answer", "--file", written(tmp_path, "b.json", json.dumps({"data": articles})), status=2)
    assert "expected text as context, got NoneType in article 1, paragraph 1, question 1 of" in done.stderr
    del articles[0]["paragraphs"][0]["qas"]
    done = call("answer", "--file", written(tmp_path, "c.json", json.dumps({"data": articles})), status=2)
    assert "expected a list qas, got NoneType in article 1, paragraph 1 of" in done.stderr


CONLL = """-DOCSTART- -X- O O

# id 17 domain=en
the DT B-NP O
cat's NN I-NP B-PER
sat-down VB O O

-DOCSTART- -X- O O
paris NNP B-NP S-LOC
"""


@pytest.mark.parametrize("name", ["a.conll", "a.bio", "a.iob", "a.txt", "a.tsv", "a.conll.gz"])
@pytest.mark.parametrize("separator", [" ", "\t"])
def test_tag_reads_the_words_of_conll_and_no_tags(call, tmp_path, name, separator):
    text = "\n".join(line if line.startswith("#") else line.replace(" ", separator) for line in CONLL.split("\n"))
    file = written(tmp_path, name, gzip.compress(text.encode()) if name.endswith("gz") else text)
    trained = [list(one.words) for one in read_tagged(file, None).examples]
    done = call("tag", "--file", file)
    rows = lines(done.stdout)
    assert [row["words"] for row in rows] == trained == [["the", "cat's", "sat-down"], ["paris"]]
    assert [row["text"] for row in rows] == ["the cat's sat-down", "paris"]
    assert [len(row["tags"]) for row in rows] == [3, 1]
    assert [row["4"] for row in rows] == [["O", "B-PER", "O"], ["S-LOC"]]
    assert rows[0]["2"] == ["DT", "NN", "VB"]
    assert rows[0]["comments"] == ["# id 17 domain=en"]
    assert "comments" not in rows[1]
    assert done.stderr.count("CoNLL; the first column is read as words, the others are carried along") == 1
    assert "4 words tagged" in done.stderr
    for row in rows:
        assert all(row["text"][one["start"] : one["end"]] == one["word"] for one in row["entities"])


def test_tag_reads_lists_of_words(call, tmp_path):
    rows = [{"id": 1, "tokens": ["the", "cat's"], "ner_tags": ["O", "O"]}, {"id": 2, "tokens": ["[x]"], "ner_tags": ["O"]}]
    conll = written(tmp_path, "a.conll", "the O\ncat's O\n\n[x] O\n")
    expected = [(row["words"], row["tags"], row["scores"]) for row in lines(call("tag", "--file", conll).stdout)]
    for name, content in (("a.json", json.dumps(rows)), ("a.jsonl", "\n".join(map(json.dumps, rows)))):
        found = lines(call("tag", "--file", written(tmp_path, name, content)).stdout)
        assert [(row["words"], row["tags"], row["scores"]) for row in found] == expected
        assert [(row["id"], row["ner_tags"]) for row in found] == [(1, ["O", "O"]), (2, ["O"])]
    again = written(tmp_path, "again.jsonl", call("tag", "--file", conll).stdout)  # what it writes, it reads
    found = lines(call("tag", "--file", again).stdout)
    assert [(row["words"], row["tags"], row["scores"]) for row in found] == expected
    assert [row["input_tags"] for row in found] == [tags for _, tags, _ in expected]
    bad = written(tmp_path, "b.jsonl", json.dumps({"tokens": ["a", ""]}))
    assert "expected a list of words as tokens, got ['a', ''] in line 1 of" in call("tag", "--file", bad, status=2).stderr
    assert (
        "expected text as tokens, got list in line 1 of" in call("embed", "--file", bad, "--field", "tokens", status=2).stderr
    )


def test_tag_of_characters_reads_conll_of_characters(call, tmp_path):
    labels = ("O", "B-LC", "I-LC")
    options = {"id2label": dict(enumerate(labels)), "label2id": {one: number for number, one in enumerate(labels)}}
    folder = save(tmp_path / "model", "BertForTokenClassification", **options)
    file = written(tmp_path, "a.tsv", "## columns : CHAR\tTAG\n## text 1\na\tB-LC\n \tI-LC\nb\tO\n")
    (row,) = lines(call("tag", "--file", file, "--characters", model=folder).stdout)
    (plain,) = lines(call("tag", "a b", "--characters", model=folder).stdout)
    assert (row["text"], row["words"]) == ("a b", ["a", " ", "b"])
    assert {name: row[name] for name in plain} == plain
    assert row["comments"] == ["## columns : CHAR\tTAG", "## text 1"]


def test_tag_of_plain_texts_in_txt(call, tmp_path):
    texts = ["the cat sat", "", "in paris O", "O"]
    file = written(tmp_path, "a.txt", "\n".join(texts) + "\n")
    assert [row["text"] for row in lines(call("tag", "--file", file).stdout)] == texts
    words = written(tmp_path, "b.txt", "the\ncat\n\na\ndog\n")
    done = call("tag", "--file", words, status=2)
    assert "expected texts, one a line, got one word a line" in done.stderr
    assert "say --format conll or text" in done.stderr
    found = lines(call("tag", "--file", words, "--format", "conll").stdout)
    assert [row["words"] for row in found] == [["the", "cat"], ["a", "dog"]]
    assert len(lines(call("tag", "--file", words, "--format", "text").stdout)) == 5
    table = written(tmp_path, "c.tsv", "id\ttext\n1\tthe cat\n")
    assert [(row["id"], row["text"]) for row in lines(call("tag", "--file", table).stdout)] == [("1", "the cat")]


@pytest.mark.parametrize(
    "labels",
    [
        ("O", "B", "I"),
        ("O", "B-A", "I-A", "E-A", "S-A", "B-B", "I-B", "E-B", "S-B"),
        ("O", "B-A", "I-A", "L-A", "U-A"),
        ("O", "I-A", "B-A", "I-B"),
    ],
)
def test_entities_of_every_scheme_are_seqevals(call, tmp_path, sentences, labels):
    options = {"id2label": dict(enumerate(labels)), "label2id": {one: number for number, one in enumerate(labels)}}
    folder = save(tmp_path / "model", "BertForTokenClassification", **options)
    file = written(tmp_path, "a.txt", "\n".join(sentences[:20]) + "\n")
    rows = lines(call("tag", "--file", file, model=folder).stdout)
    count = 0
    for row in rows:
        lenient = [{"L": "E", "U": "S"}.get(tag[0], tag[0]) + tag[1:] for tag in row["tags"]]
        wanted = [(kind, " ".join(row["words"][first : last + 1])) for kind, first, last in get_entities(lenient)]
        assert [(one["entity_group"], " ".join(one["word"].split())) for one in row["entities"]] == wanted
        count += len(wanted)
    assert count


def test_labels_of_no_scheme_have_no_entities(call, tmp_path):
    labels = ("O", "NN", "IN", "B")
    options = {"id2label": dict(enumerate(labels)), "label2id": {one: number for number, one in enumerate(labels)}}
    folder = save(tmp_path / "model", "BertForTokenClassification", **options)
    (row,) = lines(call("tag", "the cat sat in the park", model=folder).stdout)
    assert row["entities"] == []


# What is carried


def test_all_that_a_row_has_comes_out_unchanged(call, tmp_path):
    values = {"id": 12345678901234567890, "x": None, "y": [1, {"z": 0.1}], "ü": "half \ud83d", "n": math.nan, "": False}
    file = written(tmp_path, "a.jsonl", json.dumps({"text": "the cat", **values}))
    (row,) = lines(call("classify", "--file", file).stdout)
    assert str({name: row[name] for name in values}) == str(values)
    assert list(row)[:2] == ["id", "x"]
    table = written(tmp_path, "b.csv", "id,text,\n007,the cat, x \n")
    (row,) = lines(call("classify", "--file", table).stdout)
    assert (row["id"], row[""]) == ("007", " x ")


@pytest.mark.parametrize(
    ("name", "taken"),
    [("embed", "embedding"), ("fill-mask", "masks"), ("classify", "labels"), ("tag", "entities"), ("tag", "scores")],
)
def test_a_name_that_the_results_have_gets_a_prefix(call, tmp_path, name, taken):
    file = written(tmp_path, "a.csv", f"{taken},body,text\none,the [MASK],two\n")
    done = call(name, "--file", file, "--field", "body")
    (row,) = lines(done.stdout)
    assert (row["text"], row["input_text"], row[f"input_{taken}"]) == ("the [MASK]", "two", "one")
    assert row[taken] != "one"
    assert f"{file}: its {taken} is written as input_{taken}, beside the {taken} of the results" in done.stderr
    both = written(tmp_path, "b.csv", f"{taken},input_{taken},text\none,two,the [MASK]\n")
    out = tmp_path / "out.jsonl"
    done = call(name, "--file", both, "--out", out, status=2)
    assert f"expected no input_{taken} beside {taken}, which is written as that, got both in line 2 of {both}" in done.stderr
    assert not out.exists()


def test_pairs_and_answers_have_prefixes_too(call, tmp_path):
    file = written(tmp_path, "a.csv", "score,sentence1,sentence2\n4.5,the cat,a dog\n")
    (row,) = lines(call("next", "--file", file).stdout)
    assert row["input_score"] == "4.5"
    assert isinstance(row["score"], float)


def test_an_array_says_what_it_leaves_out(call, tmp_path):
    file = written(tmp_path, "a.csv", "id,text,label\n1,the cat,x\n2,a dog,y\n")
    done = call("embed", "--file", file, "--out", tmp_path / "a.npy")
    kept = "vectors alone, in the order of the rows; --out FILE.jsonl keeps id, label beside them"
    assert done.stderr.count(f"{tmp_path / 'a.npy'}: {kept}") == 1
    call("embed", "--file", file, "--out", tmp_path / "a.jsonl")
    rows = lines((tmp_path / "a.jsonl").read_text())
    assert [(row["id"], row["label"]) for row in rows] == [("1", "x"), ("2", "y")]
    np.testing.assert_array_equal(np.float32([row["embedding"] for row in rows]), np.load(tmp_path / "a.npy"))
    plain = written(tmp_path, "b.csv", "text\nthe cat\n")
    assert "alone" not in call("embed", "--file", plain, "--out", tmp_path / "b.npy").stderr


# What is refused


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("suffix", ["xlsx", "dat", "parquet", "xml"])
def test_an_unknown_suffix_is_refused_by_naming_the_known(call, tmp_path, name, suffix):
    row = {"text": "the [MASK]", "first": "a", "second": "b", "question": "a", "context": "b"}
    file = written(tmp_path, f"a.{suffix}", json.dumps(row))
    done = call(name, "--file", file, status=2)
    assert "expected a file that ends in .csv, .tsv, .tab, .jsonl, .ndjson, .json" in done.stderr
    assert (".txt" in done.stderr) == (name not in ("next", "answer"))
    assert (".conll" in done.stderr) == (name == "tag")
    assert done.stdout == ""
    assert len(lines(call(name, "--file", file, "--format", "jsonl").stdout)) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", '{"text": "the cat"}\n{"text": "a dog"}\n', "expected texts, one a line, got JSON in"),
        ("a.txt", '[\n  {\n    "text": "the cat"\n  }\n]\n', "expected texts, one a line, got JSON in"),
        ("a.csv", '[{"text": "the cat", "x": 1}]', "expected CSV, got JSON in"),
        ("a.tsv", '{"text": "the cat"}\n', "expected TSV, got JSON in"),
        ("a.json", "the cat\na dog\n", "expected a list of objects, or objects, got 't' in line 1"),
        ("a.json", '{"text": ["the cat"], "id": [1]}', 'pandas writes a list with to_json(orient="records")'),
        ("a.jsonl", "id,text\n1,the cat\n", "expected a JSON object, got Expecting value in line 1"),
        ("a.json", '[{"id": 1, "body": "a", "more": "b"}]', "got id, body, more: name them with --field"),
        ("a.jsonl", '{"text": "a"}\n{"body": "b", "id": 1}', "expected a value for text, got only body, id in line 2"),
        ("a.conll", "the O\n", "expected a file that ends in .csv"),
        ("a.csv.gz", "text\nthe cat\n", "expected a whole gzip file"),
    ],
)
def test_another_format_under_a_known_suffix_is_refused(call, tmp_path, name, content, message):
    done = call("classify", "--file", written(tmp_path, name, content), status=2)
    assert message in done.stderr
    assert done.stderr.splitlines()[-1].startswith("fastbert: ")
    assert done.stdout == ""


def test_the_format_overrides_the_suffix(call, tmp_path):
    file = written(tmp_path, "a.txt", '{"text": "the cat"}\n')
    for name, text in (("jsonl", "the cat"), ("text", '{"text": "the cat"}')):
        assert [row["text"] for row in lines(call("classify", "--file", file, "--format", name).stdout)] == [text]


def test_rows_without_a_header(call, tmp_path):
    file = written(tmp_path, "a.tsv", "7\tthe cat\n8\ta dog\n")
    rows = lines(call("classify", "--file", file, "--no-header", "--field", "2").stdout)
    assert [(row["1"], row["text"]) for row in rows] == [("7", "the cat"), ("8", "a dog")]
    done = call("classify", "--file", written(tmp_path, "a.jsonl", '{"text": "a"}'), "--no-header", status=2)
    assert "expected csv or tsv beside --no-header, got jsonl" in done.stderr


def test_the_standard_input_is_lines_unless_it_is_named(call):
    assert [row["text"] for row in lines(call("classify", stdin='{"text": "a"}\n').stdout)] == ['{"text": "a"}']
    rows = lines(call("classify", "--format", "json", stdin='[{"id": 3, "text": "a"}]').stdout)
    assert [(row["id"], row["text"]) for row in rows] == [(3, "a")]
    rows = lines(call("tag", "--format", "conll", stdin="the O\ncat O\n").stdout)
    assert [(row["words"], row["2"]) for row in rows] == [(["the", "cat"], ["O", "O"])]


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.npz", "a.txt", "a.jsonl.gz"])
def test_results_do_not_get_the_name_of_another_format(call, tmp_path, name):
    file = written(tmp_path, "in.csv", "text\nthe cat\n")
    done = call("classify", "--file", file, "--out", tmp_path / name, status=2)
    assert f"expected --out to end in .jsonl (or .npy for embed), got {tmp_path / name}" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


# What is resumed


@pytest.mark.parametrize("kind", ["all quoted", "tsv", "jsonl", "indented json", "lines in json", "gzip csv", "list in jsonl"])
def test_a_run_over_any_kind_goes_on_where_it_was(call, tmp_path, sentences, monkeypatch, kind):
    monkeypatch.setattr(engine, "WINDOW_BATCHES", 4)
    monkeypatch.setattr(engine, "CHUNK_ROWS", 4)
    texts = texts_for(kind, [text.replace(" ", "\n", 1) for text in sentences])
    file = write_kind(tmp_path, kind, [{"id": str(number), "text": text} for number, text in enumerate(texts)])
    options = ["--file", file, "--batch-tokens", 64]
    call("embed", *options, "--out", tmp_path / "whole.jsonl")
    forward, calls = Embedding.forward, []

    def stopping(self, batch):
        calls.append(batch)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return forward(self, batch)

    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(Embedding, "forward", stopping)
    call("embed", *options, "--out", out, status=130)
    assert 0 < json.loads((tmp_path / "out.jsonl.partial.json").read_text())["rows"] < len(texts)
    done = call("embed", *options, "--out", out, "--resume")
    assert "continues after row" in done.stderr
    whole, found = (lines(one.read_text()) for one in (tmp_path / "whole.jsonl", out))
    assert [(row["id"], row["text"]) for row in found] == [(str(number), text) for number, text in enumerate(texts)]
    np.testing.assert_allclose([row["embedding"] for row in found], [row["embedding"] for row in whole], atol=1e-5)
