"""Tags and answers of texts of any length: no word without a tag, no answer lost."""

import numpy as np
import pytest
import torch
import transformers

from fastbert.inference.answering import answer
from fastbert.inference.tagging import tag
from fastbert.utils.errors import InputError
from tests.inference.tiny_checkpoints import WORDS

FP32 = {"dtype": torch.float32}


def test_tags_are_those_of_transformers(checkpoints, sentences):
    folder = checkpoints["BertForTokenClassification"]
    model = transformers.BertForTokenClassification.from_pretrained(folder).eval()
    pipe = transformers.pipeline(
        "token-classification",
        model=model,
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        aggregation_strategy="first",
    )
    compared = 0
    for text, found in zip(sentences[:20], tag(sentences[:20], folder, **FP32), strict=True):
        groups = pipe(text)
        inside = [word for word, label in zip(found["words"], found["tags"]) if label != "O"]
        assert " ".join(inside) == " ".join(text[one["start"] : one["end"]] for one in groups if one["entity_group"] != "O")
        for one in found["entities"]:
            assert text[one["start"] : one["end"]] == one["word"]
        starts = {one["start"]: one["entity_group"] for one in groups if one["entity_group"] != "O"}
        for one in found["entities"]:
            if one["start"] in starts:
                assert one["entity_group"] == starts[one["start"]]
                compared += 1
    assert compared > 50


def test_words_and_their_positions(checkpoints):
    text = "  The man's  CAT, sat!\n"
    found = tag(text, checkpoints["BertForTokenClassification"], **FP32)
    assert found["words"] == ["The", "man", "'", "s", "CAT", ",", "sat", "!"]
    assert len(found["tags"]) == len(found["scores"]) == 8
    assert all(0 < score <= 1 for score in found["scores"])
    for one in found["entities"]:
        assert text[one["start"] : one["end"]] == one["word"] != ""


def test_every_word_of_a_long_text_has_the_tag_of_its_own_window(checkpoints):
    folder = checkpoints["BertForTokenClassification"]
    generator = torch.Generator().manual_seed(1)
    words = [WORDS[index] for index in torch.randint(30, (400,), generator=generator).tolist()]
    found = tag(" ".join(words), folder, stride=20, **FP32)
    assert found["words"] == words
    assert len(found["tags"]) == 400
    # Windows of 62 words, 42 apart; the word in the middle of one is read there.
    for number in range(1, 9):
        start = 42 * number
        alone = tag(" ".join(words[start : start + 62]), folder, **FP32)
        assert found["tags"][start + 25 : start + 35] == alone["tags"][25:35]
        np.testing.assert_allclose(found["scores"][start + 25 : start + 35], alone["scores"][25:35], atol=1e-5)


def test_an_empty_text_has_no_words(checkpoints):
    with pytest.warns(UserWarning, match=r"empty texts, without words to tag: 2 \(row 2, row 3\)"):
        found = tag(["the cat", "", " \n"], checkpoints["BertForTokenClassification"])
    assert found[1] == found[2] == {"words": [], "tags": [], "scores": [], "entities": []}
    assert found[0]["words"] == ["the", "cat"]
    with pytest.raises(InputError, match="expected a text, got tuple in row 1"):
        tag([("a", "b")], checkpoints["BertForTokenClassification"])


def test_answers_are_parts_of_the_context(checkpoints, sentences):
    context = "The man, a cat; and THE dog.  " + sentences[0]
    found = answer("who?", context, checkpoints["BertForQuestionAnswering"], top=3, **FP32)
    assert len(found) == 3
    assert found[0]["score"] >= found[1]["score"] >= found[2]["score"] > 0
    assert all(one["answer"] == context[one["start"] : one["end"]] for one in found)


def test_the_best_answer_is_the_best_over_all_spans(checkpoints):
    """By hand on a context that fits: the greatest sum of start and end logit of transformers' model."""
    folder = checkpoints["BertForQuestionAnswering"]
    model = transformers.BertForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    question, context = "what sat?", "the red cat and the dog sat down in the park with a ball"
    batch = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets, types = batch.pop("offset_mapping")[0], batch["token_type_ids"][0]
    with torch.no_grad():
        outputs = model(**batch)
    positions = [index for index in range(len(types) - 1) if types[index] == 1]
    scores = {
        (first, last): (outputs.start_logits[0, first] + outputs.end_logits[0, last]).item()
        for first in positions
        for last in positions
        if 0 <= last - first < 30
    }
    first, last = max(scores, key=scores.get)
    (found,) = answer(question, context, folder, **FP32)
    assert (found["start"], found["end"]) == (offsets[first][0].item(), offsets[last][1].item())


def test_no_part_of_a_long_context_is_lost(checkpoints):
    """Asked for all spans of one word, every word of a context of many windows is among them."""
    words = [WORDS[index % 30] for index in range(300)]
    found = answer(
        "who?", " ".join(words), checkpoints["BertForQuestionAnswering"], top=10**6, max_answer_length=1, stride=16, **FP32
    )
    assert len({one["start"] for one in found}) == 300


def test_a_model_may_say_that_there_is_no_answer(checkpoints):
    folder = checkpoints["BertForQuestionAnswering"]
    (always,) = answer("who?", "the cat sat", folder, **FP32)
    assert always["answer"]
    never = answer("who?", "the cat sat", folder, null_threshold=-1e9, top=2, **FP32)
    assert never[0]["answer"] == ""
    assert never[1]["answer"] == always["answer"]
    assert sum(one["score"] for one in never) <= 1 + 1e-6
    (given,) = answer("who?", "the cat sat", folder, null_threshold=1e9, **FP32)
    assert given["answer"] == always["answer"]


def test_what_is_empty_or_cut_is_counted(checkpoints):
    folder = checkpoints["BertForQuestionAnswering"]
    with pytest.warns(UserWarning, match="empty contexts") as caught:
        found = answer(["who?", "", "who " * 60], ["", "the cat", "the dog"], folder, **FP32)
    assert found[0] == []
    assert found[1]
    messages = sorted(str(warning.message) for warning in caught)
    assert messages[:2] == ["empty contexts: 1 (row 1)", "empty questions: 1 (row 2)"]
    assert "questions cut at" in messages[2]
    assert "(row 3)" in messages[2]


def test_questions_and_contexts_belong_together(checkpoints):
    folder = checkpoints["BertForQuestionAnswering"]
    with pytest.raises(InputError, match="got one and several"):
        answer("who?", ["the cat"], folder)
    with pytest.raises(InputError, match="as many contexts as questions"):
        answer(["who?", "what?"], ["the cat"], folder)
    with pytest.raises(InputError, match="expected a stride well below max_length"):
        answer("who?", "the cat", folder, stride=64)
