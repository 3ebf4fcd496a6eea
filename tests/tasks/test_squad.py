"""SQuAD files, published or as tables."""

import json
from pathlib import Path

import pytest

from fastbert.tasks.squad import read_squad
from fastbert.tasks.windows import answer_tokens, question_windows
from fastbert.utils.errors import InputError
from tests.tasks.published import DATA, needs_data, write


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
def test_bad_questions_are_errors_with_their_location(tmp_path, question, message):
    with pytest.raises(InputError, match=message):
        read_squad(squad(tmp_path / "a.json", question))


def test_an_id_comes_once_and_the_file_is_squads(tmp_path):
    with pytest.raises(InputError, match=r"expected an id once, got '1' again in .*question 2 \(id 1\) of .*a\.json"):
        read_squad(squad(tmp_path / "a.json", GOOD, GOOD))
    with pytest.raises(InputError, match=r"expected text as context, got only version in element 1 of .*b\.json"):
        read_squad(write(tmp_path / "b.json", '[{"version": "1.1"}]'))
    with pytest.raises(InputError, match=r"expected questions in .*c\.json, got none"):
        read_squad(write(tmp_path / "c.json", '{"data": []}'))


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
