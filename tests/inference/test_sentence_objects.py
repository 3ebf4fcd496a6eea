"""Objects of sentence-transformers that are loaded already: their own vectors and scores."""

import numpy as np
import pytest
import torch

import fastbert
from fastbert.utils.errors import InputError
from tests.inference.sentence_folders import PAIRS, PROMPTS, CrossEncoder, SentenceTransformer, build, models
from tests.inference.test_cross_encoder import cross_encoder

TEXTS = ["The CAT sat", "a dog plays guitar in the park", "who was that man ?"]


@pytest.fixture
def sentence_model(checkpoints, tmp_path):
    """With prompts, a limit, two modes of pooling, a Dense module and fewer dimensions."""
    dense = models.Dense(64, 24, activation_function=torch.nn.Tanh())
    folder = build(
        checkpoints["BertModel"], tmp_path / "a", dense, models.Normalize(), pooling=models.Pooling(32, ("cls", "mean"))
    )
    options = {"prompts": PROMPTS, "default_prompt_name": "query", "truncate_dim": 16}
    model = SentenceTransformer(folder, device="cpu", **options)
    model.max_seq_length = 10
    return model


@pytest.mark.filterwarnings("ignore:texts cut")
def test_vectors_of_a_sentence_transformer(sentence_model):
    fastbert.accelerate(sentence_model)
    expected = sentence_model.encode(TEXTS)
    before = sentence_model.tokenizer.model_max_length
    encoder = fastbert.Encoder(sentence_model)
    for found in (encoder.embed(TEXTS), fastbert.embed(TEXTS, sentence_model)):
        assert found.shape == (3, 16)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    found = encoder.embed(TEXTS, prompt_name="passage", truncate_dim=24)
    np.testing.assert_allclose(found, sentence_model.encode(TEXTS, prompt_name="passage", truncate_dim=24), atol=1e-5)
    assert sentence_model.tokenizer.model_max_length == before
    assert all(parameter.requires_grad for parameter in sentence_model.parameters())
    with pytest.raises(InputError, match="got a SentenceTransformer: embed makes its vectors"):
        encoder.classify(TEXTS)


@pytest.mark.parametrize("activation", [None, torch.nn.Identity(), torch.nn.LeakyReLU(0.5)])
def test_scores_of_a_cross_encoder(tmp_path, activation):
    model = CrossEncoder(cross_encoder(tmp_path / "a", 1), device="cpu", activation_fn=activation)
    fastbert.accelerate(model)
    encoder = fastbert.Encoder(model)
    found = [labels[0]["score"] for labels in encoder.classify(PAIRS)]
    np.testing.assert_allclose(found, model.predict(PAIRS), rtol=0, atol=1e-5)
    ranked = encoder.rank("the cat", TEXTS)
    assert [one["index"] for one in ranked] == [one["corpus_id"] for one in model.rank("the cat", TEXTS)]
    with pytest.raises(InputError, match="got a CrossEncoder: classify scores its pairs"):
        encoder.embed(TEXTS)


def test_what_cannot_be_followed_says_what_to_do(sentence_model, checkpoints, tmp_path):
    message = r"expected a SentenceTransformer on fastbert's classes, .* transformers' BertModel: swap it with fastbert\.accel"
    with pytest.raises(InputError, match=message):
        fastbert.Encoder(sentence_model)
    fastbert.accelerate(sentence_model)
    with pytest.raises(InputError, match="expected no device or dtype beside a loaded model"):
        fastbert.Encoder(sentence_model, device="cpu")
    sentence_model.train()
    with pytest.raises(InputError, match=r"in training mode: call model\.eval\(\)"):
        fastbert.Encoder(sentence_model)
    sentence_model.eval()
    sentence_model.append(models.CNN(16, 8))
    with pytest.raises(InputError, match=r"expected modules among Transformer, Pooling, .* got CNN") as error:
        fastbert.Encoder(sentence_model)
    assert "/tmp" not in str(error.value).replace(str(tmp_path), "")
