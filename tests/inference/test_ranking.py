"""Texts in the order of a cross-encoder's scores: that of sentence-transformers' own `rank`."""

import pytest
import torch

import fastbert
from fastbert.utils.errors import InputError
from tests.inference.sentence_folders import FP32, CrossEncoder
from tests.inference.test_cross_encoder import cross_encoder

QUERY = "who plays guitar ?"


@pytest.mark.filterwarnings("ignore:texts cut")
@pytest.mark.parametrize("activation", [None, torch.nn.Identity()])
@pytest.mark.parametrize("options", [{}, {"prompts": {"ask": "please "}, "default_prompt_name": "ask", "max_length": 24}])
def test_the_order_and_scores_are_those_of_sentence_transformers(tmp_path, sentences, activation, options):
    folder = cross_encoder(tmp_path / "a", 1, activation, **options)
    texts = [*sentences, sentences[0]]  # equal scores keep their order
    expected = CrossEncoder(folder, device="cpu").rank(QUERY, texts, return_documents=True)
    found = fastbert.rank(QUERY, texts, folder, **FP32)
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-5)
    assert sorted(one["index"] for one in found) == list(range(len(texts)))
    assert all(texts[one["index"]] == one["text"] for one in found)
    places = [one["index"] for one in found]
    assert places.index(0) + 1 == places.index(len(texts) - 1)
    by_score = {one["corpus_id"]: one["score"] for one in expected}
    assert [by_score[place] for place in places] == pytest.approx(sorted(by_score.values(), reverse=True), abs=1e-5)
    assert fastbert.rank(QUERY, iter(texts), folder, top=5, **FP32) == found[:5]
    assert fastbert.Encoder(folder, **FP32).rank(QUERY, texts, top=1000) == found
    assert fastbert.rank(QUERY, [], folder) == []


def test_what_cannot_be_ranked(checkpoints, tmp_path):
    folder = cross_encoder(tmp_path / "a", 1)
    three = checkpoints["BertForSequenceClassification"]
    with pytest.raises(
        InputError, match="expected a cross-encoder, which gives a pair one score, got 3 labels in .*: classify"
    ):
        fastbert.rank(QUERY, ["a"], three)
    with pytest.raises(InputError, match="expected a text as query and several texts to rank, got str and str"):
        fastbert.rank(QUERY, "a", folder)
    with pytest.raises(InputError, match="expected top of at least 1 or None, got 0"):
        fastbert.rank(QUERY, ["a"], folder, top=0)
    with pytest.raises(InputError, match="expected text, got int in row 2"):
        fastbert.rank(QUERY, ["a", 3], folder)
