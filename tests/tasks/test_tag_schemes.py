"""Every kind of tags against seqeval: entities of random and of well-formed sequences, and their scores."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities

from fastbert.tasks.metrics import entity_metrics
from fastbert.tasks.tagged import read_tagged, with_offsets
from fastbert.tasks.tags import all_tags, is_tag, scheme_of, spans, word_tags
from fastbert.utils.errors import InputError

MARKS = {"BIO": "BI", "BIOES": "BIES", "BILOU": "BILU"}
TYPES = ["", "-PER", "-LOC", "-A-B"]
TO_BIOES = {"L": "E", "U": "S"}
EXAMPLES = settings(max_examples=300, deadline=None)


def random_tags(scheme: str) -> st.SearchStrategy[list[str]]:
    """Whatever a model may say, well-formed or not."""
    return st.lists(st.sampled_from(["O", *(mark + kind for mark in MARKS[scheme] for kind in TYPES)]), max_size=12)


def found_by_us(tags: list[str]) -> list[tuple[str, int, int]]:
    """(type, first word, last word) of each entity."""
    words = [f"w{number}" for number in range(len(tags))]
    text, offsets = with_offsets(words)
    starts, ends = ({offset[side]: word for word, offset in enumerate(offsets)} for side in (0, 1))
    return [(one.label, starts[one.start], ends[one.end]) for one in spans(tags, offsets, text)]


def bioes(tags: list[str]) -> list[str]:
    return [TO_BIOES.get(tag[0], tag[0]) + tag[1:] for tag in tags]


@pytest.mark.parametrize("scheme", MARKS)
@EXAMPLES
@given(data=st.data())
def test_entities_of_any_tags_are_seqevals(scheme, data):
    tags = data.draw(random_tags(scheme))
    assert found_by_us(tags) == get_entities(bioes(tags))


# (type, length, a gap before it)
ENTITIES = st.lists(st.tuples(st.sampled_from(["_", "PER", "LOC"]), st.integers(1, 4), st.booleans()), max_size=6)


def well_formed(entities: list[tuple[str, int, bool]], scheme: type) -> list[str]:
    tags: list[str] = []
    for kind, length, gap in entities:
        tags += ["O"] * gap
        ending = "" if kind == "_" else f"-{kind}"
        if scheme is IOB1:
            first = "B" if tags and tags[-1] != "O" and tags[-1][1:] == ending else "I"
            marks = first + "I" * (length - 1)
        elif scheme is IOB2:
            marks = "B" + "I" * (length - 1)
        else:
            single, last = ("S", "E") if scheme is IOBES else ("U", "L")
            marks = single if length == 1 else "B" + "I" * (length - 2) + last
        tags += [mark + ending for mark in marks]
    return tags


@pytest.mark.parametrize("scheme", [IOB1, IOB2, IOBES, BILOU])
@EXAMPLES
@given(entities=ENTITIES)
def test_entities_of_well_formed_tags_are_those_of_the_scheme(scheme, entities):
    tags = well_formed(entities, scheme)
    strict = [(one.tag, one.start, one.end - 1) for one in Entities([tags], scheme).entities[0]]
    assert found_by_us(tags) == strict
    assert [(kind, last - first + 1) for kind, first, last in strict] == [(kind, length) for kind, length, _ in entities]


@pytest.mark.parametrize("scheme", MARKS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_scores_of_any_tags_are_seqevals(scheme, data):
    tags = data.draw(st.lists(random_tags(scheme), min_size=1, max_size=4).filter(any))
    guessed = [data.draw(st.lists(st.sampled_from([*one, "O", "B-PER"]), min_size=len(one), max_size=len(one))) for one in tags]
    right, guesses = [bioes(one) for one in tags], [bioes(one) for one in guessed]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = {
            "f1": f1_score(right, guesses, zero_division=0),
            "precision": precision_score(right, guesses, zero_division=0),
            "recall": recall_score(right, guesses, zero_division=0),
            "accuracy": accuracy_score(right, guesses),
        }
    assert entity_metrics(guessed, tags) == pytest.approx(wanted)
    assert entity_metrics(guessed, tags)["accuracy"] == pytest.approx(accuracy_score(tags, guessed))


@pytest.mark.parametrize("scheme", [IOBES, BILOU])
@settings(max_examples=60, deadline=None)
@given(right=ENTITIES.filter(len), other=ENTITIES)
def test_scores_of_well_formed_tags_are_those_of_the_strict_mode(scheme, right, other):
    tags, guessed = well_formed(right, scheme), well_formed(other, scheme)
    guessed = (guessed + ["O"] * len(tags))[: len(tags)]
    if guessed[-1][0] in "BI":  # cut inside of an entity: no longer well-formed
        guessed[-1] = "O"
        for word in range(len(guessed) - 2, -1, -1):
            if guessed[word][0] not in "BI":
                break
            guessed[word] = "O"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = f1_score([tags], [guessed], mode="strict", scheme=scheme, zero_division=0)
    assert entity_metrics([guessed], [tags])["f1"] == pytest.approx(wanted)


def test_neighbours_of_bilou_are_two_entities():
    """seqeval's lenient count, which does not know U, takes them for one."""
    assert found_by_us(["U-PER", "U-PER", "B-PER", "L-PER", "U-LOC"]) == [
        ("PER", 0, 0),
        ("PER", 1, 1),
        ("PER", 2, 3),
        ("LOC", 4, 4),
    ]
    assert entity_metrics([["U-PER", "O"]], [["U-PER", "U-PER"]])["recall"] == 0.5


def test_the_scheme_follows_from_the_marks():
    assert [is_tag(one) for one in ("O", "B", "I-x", "S-A-B", "U", "L-x")] == [True] * 6
    assert [is_tag(one) for one in ("", "o", "B-", "BPER", "B_PER", "PER", "M-x", "O-x", "-x")] == [False] * 9
    assert scheme_of(["O"]) == scheme_of(["I-x", "O", "B-x"]) == "BIO"
    assert scheme_of(["S-x", "O"]) == scheme_of(["E", "I"]) == "BIOES"
    assert scheme_of(["B-x", "L-x"]) == scheme_of(["U"]) == "BILOU"
    with pytest.raises(ValueError, match="expected tags of one scheme, BIO, BIOES, BILOU, got the marks E, U"):
        scheme_of(["E-x", "U-x"])
    with pytest.raises(ValueError, match=r"expected tags .*, got 'NN'"):
        scheme_of(["O", "NN"])


def test_the_labels_of_a_model_are_all_of_its_scheme():
    assert all_tags(["O", "I-b", "B-a"]) == ["O", "B-a", "I-a", "B-b", "I-b"]
    assert all_tags(["S-a"]) == ["O", "B-a", "I-a", "E-a", "S-a"]
    assert all_tags(["U-a", "O"]) == ["O", "B-a", "I-a", "L-a", "U-a"]
    assert all_tags(["B", "I", "O"]) == ["O", "B", "I"]


@pytest.mark.parametrize(
    ("labels", "known", "wanted"),
    [
        (["O", "B-x", "I-x", "E-x", "S-x"], ["B-x", None, "E-x", None, "S-x", None], ["B-x", "I-x", "E-x", "O", "S-x", "O"]),
        (["O", "B-x", "I-x", "L-x", "U-x"], ["I-x", None, "L-x", "U-x", None, "L-x"], ["I-x", "I-x", "L-x", "U-x", "O", "L-x"]),
        (["O", "B", "I"], ["B", None, "I", "O", None, "I"], ["B", "I", "I", "O", "O", "I"]),
        (["IN", "NN", "B"], ["IN", None, "IN"], ["IN", "O", "IN"]),  # parts of speech are no entities
    ],
)
def test_words_without_pieces_within_an_entity_of_any_scheme(labels, known, wanted):
    logits = np.full((len(known), len(labels)), np.nan)
    for row, tag in zip(logits, known):
        if tag is not None:
            row[:] = 0.0
            row[labels.index(tag)] = 3.0
    assert word_tags(logits, labels)[0] == wanted


@pytest.mark.parametrize(
    "tags", [["B", "I", "O"], ["I-x", "I-x", "B-x"], ["B-x", "E-x", "S-y"], ["B-x", "L-x", "U-y"], ["B", "E", "S"], ["O", "O"]]
)
def test_files_with_tags_of_every_scheme_are_read(tmp_path, tokenizer, tags):
    (tmp_path / "a.conll").write_text("".join(f"w{number} {tag}\n" for number, tag in enumerate(tags)))
    assert read_tagged(tmp_path / "a.conll", tokenizer).examples[0].tags == tuple(tags)


def test_tags_of_two_schemes_are_refused(tmp_path, tokenizer):
    (tmp_path / "a.conll").write_text("a S-x\n\nb L-x\n")
    with pytest.raises(InputError, match=r"expected tags of one scheme, .*, got the marks L, S in .*a\.conll"):
        read_tagged(tmp_path / "a.conll", tokenizer)
