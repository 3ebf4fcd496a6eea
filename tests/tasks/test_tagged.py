"""Tagged sentences in CoNLL and JSON."""

import json

import pytest

from fastbert.tasks.tagged import read_tagged, split_characters
from fastbert.tasks.tags import spans
from fastbert.tasks.windows import best_windows, word_windows
from fastbert.utils.errors import InputError
from tests.tasks.published import DATA, needs_data, write


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
def test_bad_tags_are_errors_with_their_location(tmp_path, tokenizer, name, content, message):
    with pytest.raises(InputError, match=message):
        read_tagged(write(tmp_path / name, content), tokenizer)


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
        positions = best_windows([window for window in windows if window.example == number], len(one.words))
        for word, position in zip(one.words, positions):
            assert (position is None) == (not tokenizer(word, add_special_tokens=False)["input_ids"])
