"""Tables of multiple choices."""

import json

import pytest

from fastbert.tasks.choices import read_choices
from fastbert.utils.errors import InputError
from tests.tasks.published import write


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
def test_bad_choices_are_errors_with_their_location(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        read_choices(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines))))
