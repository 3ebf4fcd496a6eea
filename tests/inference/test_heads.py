"""Masked words, labels and next sentences against transformers' pipelines and models; checkpoints that cannot do them."""

import json
import shutil

import pytest
import torch
import transformers

import fastbert
from fastbert.inference.classification import classify
from fastbert.inference.embedding import embed
from fastbert.inference.masked_words import fill_mask
from fastbert.inference.next_sentence import next_sentence
from fastbert.inference.tagging import tag
from fastbert.utils.checkpoints import small_checkpoint
from fastbert.utils.errors import InputError
from tests.inference.tiny_checkpoints import save

FP32 = {"dtype": torch.float32}


def load_original(class_name: str, folder: str):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return getattr(transformers, class_name).from_pretrained(folder).eval(), tokenizer


def load_swapped(class_name: str, folder: str):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return getattr(fastbert, class_name).from_pretrained(folder).eval(), tokenizer


@pytest.mark.parametrize("class_name", ["BertForMaskedLM", "BertForPreTraining"])
def test_masks_are_filled_as_by_the_pipeline(checkpoints, class_name):
    model, tokenizer = load_original("BertForMaskedLM", checkpoints[class_name])
    pipe = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=4)
    texts = ["the [MASK] sat on the mat.", "[MASK]", "a [MASK] plays [MASK] in the park", "the man with red [MASK]"]
    found = fill_mask(texts, checkpoints[class_name], top=4, **FP32)
    for text, masks, expected in zip(texts, found, pipe(texts)):
        expected = [expected] if isinstance(expected[0], dict) else expected
        assert len(masks) == text.count("[MASK]")
        for fills, wanted in zip(masks, expected):
            assert [fill["token"] for fill in fills] == [one["token"] for one in wanted]
            assert [fill["token_str"] for fill in fills] == [one["token_str"] for one in wanted]
            assert [fill["score"] for fill in fills] == pytest.approx([one["score"] for one in wanted], abs=1e-5)


def test_a_filled_mask_leaves_the_text_as_it_was(checkpoints):
    first, second = fill_mask("The  CAT [MASK] on [MASK]!", checkpoints["BertForMaskedLM"], top=10**6)
    by_token = {fill["token_str"]: fill["sequence"] for fill in first}
    assert by_token["dog"] == "The  CAT dog on [MASK]!"
    assert by_token["##ing"] == "The  CATing on [MASK]!"
    assert {fill["token_str"]: fill["sequence"] for fill in second}["mat"] == "The  CAT [MASK] on mat!"


def test_more_tokens_than_there_are_is_all_of_them(checkpoints):
    ((fills,),) = fill_mask(["the [MASK]"], checkpoints["BertForMaskedLM"], top=10**6)
    assert sum(fill["score"] for fill in fills) == pytest.approx(1.0, abs=1e-3)


def test_a_long_text_is_read_around_each_mask(checkpoints):
    """The window around a mask is what the text would be if it were only that."""
    folder = checkpoints["BertForMaskedLM"]
    words = [f"{'cat' if index % 3 else 'dog'}" for index in range(150)]
    words[0] = words[75] = words[149] = "[MASK]"
    with pytest.warns(UserWarning, match="texts longer than 64 tokens, read in a window around each mask: 1"):
        found = fill_mask(" ".join(words), folder, **FP32)
    assert len(found) == 3
    for fills, (start, mask) in zip(found, [(0, 0), (44, 75), (88, 149)]):
        alone = " ".join(word if index == mask or word != "[MASK]" else "x" for index, word in enumerate(words))
        (expected,) = fill_mask(" ".join(alone.split()[start : start + 62]), folder, **FP32)
        assert [fill["token"] for fill in fills] == [fill["token"] for fill in expected]
        assert fills[0]["score"] == pytest.approx(expected[0]["score"], abs=1e-5)


def test_a_text_without_a_mask_is_named(checkpoints):
    for text in ("the cat", "", "the [mask]"):
        with pytest.raises(InputError, match=r"expected \[MASK\] in the text, got none in row 2"):
            fill_mask(["a [MASK]", text], checkpoints["BertForMaskedLM"])
    with pytest.raises(InputError, match="expected a text, got tuple in row 1"):
        fill_mask([("a [MASK]", "b")], checkpoints["BertForMaskedLM"])


@pytest.mark.parametrize(
    ("options", "apply"),
    [
        ({"num_labels": 3}, "softmax"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "sigmoid"),
        ({"num_labels": 1}, "sigmoid"),
        ({"num_labels": 1, "problem_type": "regression"}, "none"),
    ],
)
def test_labels_are_those_of_the_pipeline(tmp_path, sentences, options, apply):
    folder = save(tmp_path, "BertForSequenceClassification", **options)
    model, tokenizer = load_original("BertForSequenceClassification", folder)
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    for found, expected in zip(classify(sentences[:10], folder, top=None, **FP32), pipe(sentences[:10]), strict=True):
        assert [one["label"] for one in found] == [one["label"] for one in expected]
        assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-5)
    assert [len(labels) for labels in classify(sentences[:2], folder)] == [1, 1]
    scores = [one["score"] for one in classify(sentences[0], folder, top=None, **FP32)]
    assert apply != "softmax" or sum(scores) == pytest.approx(1.0)


def test_pairs_are_classified_as_by_transformers(checkpoints, sentences):
    folder = checkpoints["BertForSequenceClassification"]
    model, tokenizer = load_original("BertForSequenceClassification", folder)
    pairs = [(first[:60], second[:60]) for first, second in zip(sentences[:8], sentences[8:16])]
    for pair, found in zip(pairs, classify(pairs, folder, top=None, **FP32), strict=True):
        with torch.no_grad():
            scores = model(**tokenizer(*pair, return_tensors="pt")).logits[0].softmax(-1)
        assert {one["label"]: one["score"] for one in found} == pytest.approx(
            {model.config.id2label[number]: score for number, score in enumerate(scores.tolist())}, abs=1e-5
        )
    assert classify(pairs[0], folder, **FP32)[0]["label"] == classify(pairs[:1], folder, **FP32)[0][0]["label"]
    mixed = classify([pairs[0], "the cat", pairs[1]], folder, **FP32)
    for found, value in zip(mixed, [pairs[0], "the cat", pairs[1]], strict=True):
        assert found[0]["score"] == pytest.approx(classify(value, folder, **FP32)[0]["score"], abs=1e-5)


def test_long_pairs_lose_the_end_of_the_longer_text(checkpoints):
    folder = checkpoints["BertForSequenceClassification"]
    with pytest.warns(UserWarning, match=r"texts cut at 64 tokens: 1 \(row 1\)"):
        (found,) = classify([("the cat", "dog " * 100)], folder, top=None, **FP32)
    (expected,) = classify([("the cat", "dog " * 59)], folder, top=None, **FP32)
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-6)


@pytest.mark.parametrize("class_name", ["BertForPreTraining", "BertForNextSentencePrediction"])
def test_next_sentences_are_scored_as_by_transformers(checkpoints, sentences, class_name):
    folder = checkpoints[class_name]
    model, tokenizer = load_original("BertForNextSentencePrediction", folder)
    pairs = [(first[:60], second[:60]) for first, second in zip(sentences[:8], sentences[8:16])]
    expected = []
    for pair in pairs:
        with torch.no_grad():
            expected.append(model(**tokenizer(*pair, return_tensors="pt")).logits[0].softmax(-1)[0].item())
    assert next_sentence(pairs, folder, **FP32) == pytest.approx(expected, abs=1e-5)
    assert next_sentence(pairs[0], folder, **FP32) == pytest.approx(expected[0], abs=1e-5)
    with pytest.raises(InputError, match="expected a pair of texts, got str in row 1"):
        next_sentence(["the cat"], folder)


def test_a_loaded_pair_stays_as_it_is(checkpoints):
    pair = load_swapped("BertForPreTraining", checkpoints["BertForPreTraining"])
    assert fill_mask("the [MASK]", pair)[0] == fill_mask("the [MASK]", checkpoints["BertForPreTraining"], **FP32)[0]
    assert next_sentence(("the cat", "sat"), pair) == next_sentence(
        ("the cat", "sat"), checkpoints["BertForPreTraining"], **FP32
    )
    assert not pair[0].training
    assert all(parameter.requires_grad for parameter in pair[0].parameters())


@pytest.mark.parametrize(
    ("call", "class_name", "wanted", "missing"),
    [
        (lambda folder: fill_mask("the [MASK]", folder), "BertModel", "BertForMaskedLM", r"cls\.predictions"),
        (
            lambda folder: fill_mask("the [MASK]", folder),
            "BertForNextSentencePrediction",
            "BertForPreTraining",
            r"cls\.predictions",
        ),
        (
            lambda folder: next_sentence(("a", "b"), folder),
            "BertForMaskedLM",
            "BertForPreTraining",
            r"(bert\.pooler|cls\.seq_relationship)",
        ),
        (
            lambda folder: next_sentence(("a", "b"), folder),
            "BertModel",
            "BertForNextSentencePrediction",
            r"cls\.seq_relationship",
        ),
        (lambda folder: classify("a", folder), "BertForPreTraining", "BertForSequenceClassification", r"classifier\.bias"),
        (lambda folder: tag("a", folder), "BertForPreTraining", "BertForTokenClassification", r"classifier\.bias"),
    ],
)
def test_a_head_that_is_missing_is_never_random(checkpoints, tmp_path, call, class_name, wanted, missing):
    """Even where config.json names a class that has it."""
    folder = tmp_path / "a"
    shutil.copytree(checkpoints[class_name], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [wanted]}))
    with pytest.raises(InputError, match=rf"expected .* got {wanted} without .*{missing}.* in {folder}"):
        call(str(folder))


def test_models_that_cannot_be_taken_are_named(checkpoints, tmp_path):
    folder = checkpoints["BertForMaskedLM"]
    with pytest.raises(InputError, match=r"got transformers' BertForMaskedLM.*fastbert\.accelerate"):
        fill_mask("the [MASK]", load_original("BertForMaskedLM", folder))
    model, tokenizer = load_swapped("BertForMaskedLM", folder)
    with pytest.raises(InputError, match="expected a model of class BertForSequenceClassification, got BertForMaskedLM"):
        classify("a", (model, tokenizer))
    with pytest.raises(InputError, match="no device or dtype beside a loaded model"):
        fill_mask("the [MASK]", (model, tokenizer), device="cpu")
    with pytest.raises(InputError, match="in training mode"):
        fill_mask("the [MASK]", (model.train(), tokenizer))
    with pytest.raises(InputError, match="got a tuple of 1"):
        fill_mask("the [MASK]", (model,))
    with pytest.raises(InputError, match=r"expected the tokenizer that .*, got none"):
        fill_mask("the [MASK]", (model.eval(), None))
    transformers.RobertaConfig(vocab_size=20, hidden_size=16).save_pretrained(tmp_path / "roberta")
    with pytest.raises(InputError, match="model type 'bert', got 'roberta'"):
        embed("a", str(tmp_path / "roberta"))
    causal = save(tmp_path / "causal", "BertForMaskedLM", is_decoder=True)
    with pytest.raises(InputError, match="expected a bidirectional encoder"):
        fill_mask("the [MASK]", causal)


def test_a_checkpoint_that_does_not_fit_itself_is_an_error(checkpoints, tmp_path):
    shutil.copytree(checkpoints["BertForMaskedLM"], tmp_path / "a")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    tokenizer.add_tokens(["unheard", "of"])
    tokenizer.save_pretrained(tmp_path / "a")
    with pytest.raises(InputError, match="got one of 99 entries, ids to 98, for a vocab_size of 97"):
        fill_mask("the [MASK]", str(tmp_path / "a"))
    shutil.copytree(checkpoints["BertForMaskedLM"], tmp_path / "b")
    config = transformers.BertConfig.from_pretrained(tmp_path / "b")
    config.vocab_size += 8
    config.save_pretrained(tmp_path / "b")
    with pytest.raises(InputError, match=r"expected weights of the shapes that config\.json names"):
        fill_mask("the [MASK]", str(tmp_path / "b"))


def test_the_small_checkpoint_is_the_default(checkpoints, monkeypatch):
    from fastbert.inference import masked_words
    from fastbert.inference import next_sentence as module

    for file in (masked_words, module):
        monkeypatch.setattr(file, "small_checkpoint", lambda: checkpoints["BertForPreTraining"])
    assert len(fill_mask("the [MASK]")[0]) == 5
    assert 0 < next_sentence(("a", "b")) < 1


def test_the_small_checkpoint_is_named_where_it_is_absent(monkeypatch, tmp_path):
    from fastbert.utils import checkpoints

    monkeypatch.setattr(checkpoints, "__file__", str(tmp_path / "utils" / "checkpoints.py"))
    with pytest.raises(InputError, match=r"no checkpoint was named, and the small one is not in .*small"):
        small_checkpoint()
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text("{}")
    assert small_checkpoint() == str(tmp_path / "small")
