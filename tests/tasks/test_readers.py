"""Task files as they are in the wild, and the place of what is wrong in one."""

import json
from pathlib import Path

import pytest

from fastbert.tasks.choices import read_choices
from fastbert.tasks.sentences import read_sentences
from fastbert.tasks.squad import read_squad
from fastbert.tasks.tagged import read_tagged, split_characters
from fastbert.tasks.tags import spans
from fastbert.tasks.windows import answer_tokens, best_windows, question_windows, word_windows
from fastbert.utils.errors import InputError

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data in {DATA}")


def write(file: Path, content: bytes | str) -> Path:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def pairs_of(file: Path, **options) -> list[tuple]:
    return [(one.text, one.label) for one in read_sentences(file, **options).examples]


# Tables


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
def test_bad_tables_are_errors_with_their_place(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read_sentences(write(tmp_path / name, content))


# Choices


def test_choices_come_as_a_list_or_in_numbered_columns(tmp_path):
    file = write(tmp_path / "a.jsonl", json.dumps({"question": "who?", "choices": ["ann", "bob"], "answer": "B"}))
    (one,) = read_choices(file).examples
    assert (one.prompt, one.endings, one.label) == ("who?", ("ann", "bob"), 1)
    header = "sent1,sent2,ending0,ending1,ending2,label\n"
    (one,) = read_choices(write(tmp_path / "a.csv", header + "He ran.,She,sat,stood,lay,2\n")).examples
    assert (one.prompt, one.endings, one.label) == ("He ran.", ("She sat", "She stood", "She lay"), 2)
    (one,) = read_choices(
        write(tmp_path / "b.csv", "premise,choice1,choice2,question,label\nIt rained,wet,dry,effect,0\n")
    ).examples
    assert (one.prompt, one.endings, one.label) == ("It rained", ("effect wet", "effect dry"), 0)
    named = {"prompt": "p", "choices": "x, y", "label": "l"}
    (one,) = read_choices(write(tmp_path / "c.csv", "p,x,y,l\nq,one,two,1\n"), columns=named).examples
    assert (one.prompt, one.endings, one.label) == ("q", ("one", "two"), 1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"context": "a", "choices": ["x", "y"], "label": 2}], "expected a number from 0 to 1 or a letter as label, got '2'"),
        ([{"context": "a", "choices": ["x"], "label": 0}], "expected at least two texts as choices"),
        ([{"context": "a", "choices": ["x", ""], "label": 0}], "expected at least two texts as choices"),
        (
            [{"context": "a", "choices": ["x", "y"], "label": 0}, {"context": "a", "choices": ["x", "y", "z"], "label": 0}],
            "expected 2 endings as before, got 3 in line 2 of .*",
        ),
        ([{"context": "a", "label": 0}], "expected to find choices among the columns"),
    ],
)
def test_bad_choices_are_errors_with_their_place(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        read_choices(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines))))


# Questions


def squad(file: Path, *questions: dict) -> Path:
    return write(file, json.dumps({"data": [{"paragraphs": [{"context": "Anna was born in Paris.", "qas": list(questions)}]}]}))


GOOD = {"id": "1", "question": "Where?", "answers": [{"text": "Paris", "answer_start": 17}]}


def test_squad_of_both_versions(tmp_path):
    found = read_squad(squad(tmp_path / "a.json", GOOD))
    assert (found.examples[0].answers, found.some_unanswerable) == ((("Paris", 17),), False)
    impossible = {"id": "2", "question": "Why?", "answers": [], "is_impossible": True, "plausible_answers": []}
    found = read_squad(squad(tmp_path / "b.json", GOOD, impossible))
    assert (found.examples[1].answers, found.some_unanswerable) == ((), True)
    asked = read_squad(squad(tmp_path / "c.json", {"question": "Where?"}), labelled=False)
    assert asked.examples[0].key == "article 1, paragraph 1, question 1"


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (
            {**GOOD, "answers": [{"text": "Paris", "answer_start": 16}]},
            r"expected the answer 'Paris' at answer_start 16 of the context, got ' Pari' in article 1, paragraph 1, question 1 "
            r"\(id 1\) of .*a\.json",
        ),
        ({**GOOD, "answers": [{"text": "Paris", "answer_start": -6}]}, "expected the answer 'Paris' at answer_start -6"),
        ({**GOOD, "answers": [{"text": "", "answer_start": 0}]}, "expected text as text, got an empty one"),
        ({**GOOD, "answers": []}, "expected answers, or is_impossible as in SQuAD 2.0, got neither"),
        ({**GOOD, "answers": [], "is_impossible": False}, "expected answers where is_impossible is false, got none"),
        ({**GOOD, "question": " "}, "expected text as question, got an empty one"),
        ({"id": "1", "question": "Where?"}, "expected a list answers, got NoneType"),
    ],
)
def test_bad_questions_are_errors_with_their_place(tmp_path, question, message):
    with pytest.raises(InputError, match=message):
        read_squad(squad(tmp_path / "a.json", question))


def test_an_id_comes_once_and_the_file_is_squads(tmp_path):
    with pytest.raises(InputError, match=r"expected an id once, got '1' again in .*question 2 \(id 1\) of .*a\.json"):
        read_squad(squad(tmp_path / "a.json", GOOD, GOOD))
    with pytest.raises(InputError, match=r"expected text as context, got only version in element 1 of .*b\.json"):
        read_squad(write(tmp_path / "b.json", '[{"version": "1.1"}]'))
    with pytest.raises(InputError, match=r"expected questions in .*c\.json, got none"):
        read_squad(write(tmp_path / "c.json", '{"data": []}'))


# Tags


@pytest.mark.parametrize("separator", ["\t", " "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_conll_with_tabs_or_blanks_and_more_columns(tmp_path, tokenizer, separator, end):
    rows = ["-DOCSTART- -X- O O", "", "Anna NNP x B-PER", "# NN x O", "", "", "# id 5", "# NN x B-LOC", "in IN x O"]
    content = end.join(row.replace(" ", separator) if len(row.split()) == 4 else row for row in rows)
    found = read_tagged(write(tmp_path / "a.conll", b"\xef\xbb\xbf" + content.encode()), tokenizer)
    assert [(one.words, one.tags, one.line) for one in found.examples] == [
        (("Anna", "#"), ("B-PER", "O"), 3),
        (("#", "in"), ("B-LOC", "O"), 8),
    ]
    assert found.examples[0].text == "Anna #"
    assert found.examples[0].offsets == ((0, 4), (5, 6))


def test_conll_of_characters_keeps_blanks_as_words(tmp_path, tokenizer):
    file = write(tmp_path / "a.tsv", "## columns : CHAR\tNE_TAG\n## text 1\n서\tB-LC\n울\tI-LC\n \tO\n비\tO\n")
    found = read_tagged(file, tokenizer)
    assert found.characters
    assert found.examples[0].text == "서울 비"
    assert found.examples[0].words == ("서", "울", " ", "비")
    assert (list(found.examples[0].words), list(found.examples[0].offsets)) == split_characters("서울 비")


def test_spans_of_jsonl_come_in_lists_or_objects(tmp_path, tokenizer):
    rows = [
        {"text": "Play Anna's song", "slots": [[5, 9, "artist"]]},
        {"text": "in New York!", "slots": [{"start": 3, "end": 11, "label": "city"}]},
        {"text": "unbelievable", "slots": [[2, 9, "x"]]},
    ]
    found = read_tagged(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))), tokenizer)
    first, second, third = found.examples
    assert first.words == ("Play", "Anna", "'", "s", "song")
    assert first.tags == ("O", "B-artist", "O", "O", "O")
    assert [(one.text, one.label) for one in spans(second.tags, second.offsets, second.text)] == [("New York", "city")]
    assert third.tags == ("B-x",)
    assert found.mixed_words == 1


def test_tokens_of_jsonl_come_with_their_tags(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl", json.dumps({"tokens": ["in", "Rome"], "ner_tags": ["O", "B-LOC"]}))
    (one,) = read_tagged(file, tokenizer).examples
    assert (one.words, one.tags, one.text) == (("in", "Rome"), ("O", "B-LOC"), "in Rome")
    assert read_tagged(file, tokenizer, labelled=False).examples[0].tags is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.conll", "Anna\tB-PER\nin\n", r"expected 2 columns, got 1 in 'in' in line 2 of .*a\.conll"),
        ("a.conll", "Anna B-PER\nin x O\n", r"expected 2 columns, got 3 in 'in x O' in line 2 of .*a\.conll"),
        ("a.conll", "Anna\nin\n", "expected a word and a tag, got 1 in 'Anna' in line 1 of .*"),
        ("a.conll", "\tO\n", "expected 2 columns|expected a word"),
        ("a.conll", "Anna\tPER\n", r"expected a tag \(O, or B, I, E, S, L or U, alone or as B-TYPE\), got 'PER' in line 1"),
        ("a.conll", "Anna\tB-\n", "expected a tag"),
        ("a.conll", "\n\n", "expected sentences in .*, got none"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}', "expected 2 tags, one per word, got 1 in line 1 of .*"),
        ("a.jsonl", '{"tokens": ["a", ""], "tags": ["O", "O"]}', "expected a list of words as tokens"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [1]}', "expected a list of tags, as text, as tags"),
        ("a.jsonl", '{"text": "ab", "spans": [[0, 3, "X"]]}', "expected a span inside of the text, 0 to 2, got 0 to 3"),
        ("a.jsonl", '{"text": "ab", "spans": [[1, 1, "X"]]}', "expected a span inside of the text"),
        ("a.jsonl", '{"text": "abc", "spans": [[0, 2, "X"], [1, 3, "Y"]]}', "expected spans that do not overlap"),
        ("a.jsonl", '{"text": "abc", "spans": [[0, "2", "X"]]}', r"expected spans as \[start, end, label\]"),
        ("a.jsonl", '{"text": " ", "spans": []}', "expected text, got an empty one in line 1 of .*"),
        ("a.jsonl", '{"body": "x"}', "expected text, or tokens, got body"),
        ("a.jsonl", '{"text": "x"}', "expected spans as one of slots"),
    ],
)
def test_bad_tags_are_errors_with_their_place(tmp_path, tokenizer, name, content, message):
    with pytest.raises(InputError, match=message):
        read_tagged(write(tmp_path / name, content), tokenizer)


# Published files


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


@needs_data
@pytest.mark.parametrize(
    ("name", "sentences", "words", "types"),
    [
        ("wnut17_dev.conll", 1009, 15733, 6),
        ("klue-ner-v1.1_dev.tsv", 5000, 285929, 6),
        ("snips_validate.jsonl", 700, None, 39),
    ],
)
def test_published_tags_all_have_a_place_in_some_window(tokenizer, name, sentences, words, types):
    found = read_tagged(DATA / "tag" / name, tokenizer)
    assert len(found.examples) == sentences
    assert words is None or sum(len(one.words) for one in found.examples) == words
    assert len({tag[2:] for one in found.examples for tag in one.tags} - {""}) == types
    some = found.examples[:200]
    windows = list(word_windows(tokenizer, [one.words for one in some], max_length=32, stride=8))
    for number, one in enumerate(some):
        assert all(one.text[start:end] == word for word, (start, end) in zip(one.words, one.offsets))
        places = best_windows([window for window in windows if window.example == number], len(one.words))
        for word, place in zip(one.words, places):
            assert (place is None) == (not tokenizer(word, add_special_tokens=False)["input_ids"])


@needs_data
def test_published_answers_are_all_in_some_window(tokenizer):
    found = read_squad(DATA / "qa" / "xquad.en.json")
    assert (len(found.examples), found.some_unanswerable) == (1190, False)
    some = found.examples[:150]
    windows = list(question_windows(tokenizer, [one.question for one in some], [one.context for one in some]))
    assert len(windows) > len(some)
    for number, one in enumerate(some):
        text, start = one.answers[0]
        spans = [(window, answer_tokens(window, start, start + len(text))) for window in windows if window.example == number]
        window, (first, last) = next((window, span) for window, span in spans if span)
        assert one.context[window.offsets[first, 0] : window.offsets[last, 1]].strip() != ""
        assert window.offsets[first, 0] <= start < start + len(text) <= window.offsets[last, 1]
