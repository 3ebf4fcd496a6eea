"""The modules of folders that sentence-transformers saves: vectors are those of its own classes."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch

from fastbert.inference.embedding import embed
from fastbert.utils.errors import InputError
from tests.inference.sentence_folders import FP32, MODES, OLD, build, compare, models


@pytest.mark.parametrize("pooling", [*MODES, ("cls", "mean"), ("max", "mean_sqrt_len_tokens", "weightedmean"), ("mean",)])
def test_every_pooling_mode_and_several_side_by_side(checkpoints, texts, tmp_path, pooling):
    folder = build(checkpoints["BertModel"], tmp_path / "a", pooling=pooling)
    found = compare(folder, texts)
    modes = [pooling] if isinstance(pooling, str) else pooling
    assert found.shape[1] == 32 * len(modes)
    # as versions before 5.4 spell it; they put several in an order of their own
    config = {"word_embedding_dimension": 32, **{OLD[mode]: mode in modes for mode in MODES}}
    (tmp_path / "a" / "1_Pooling" / "config.json").write_text(json.dumps(config))
    compare(folder, texts)
    (tmp_path / "a" / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 32}))
    compare(folder, texts)


def test_old_pooling_with_no_mode_set_is_the_mean(checkpoints, texts, tmp_path):
    folder = build(checkpoints["BertModel"], tmp_path / "a")
    config = {"word_embedding_dimension": 32, **dict.fromkeys(OLD.values(), False)}
    (tmp_path / "a" / "1_Pooling" / "config.json").write_text(json.dumps(config))
    compare(folder, texts)


def test_pooling_can_be_chosen_in_the_place_of_the_folders(checkpoints, texts, tmp_path):
    folder = build(checkpoints["BertModel"], tmp_path / "a", models.Normalize(), pooling=("cls", "mean"))
    other = build(checkpoints["BertModel"], tmp_path / "b", models.Normalize(), pooling="lasttoken")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [embed(texts, folder, pooling="lasttoken", **FP32), embed(texts, other, **FP32)]
    np.testing.assert_array_equal(*found)


def test_normalize_and_the_choice_against_it(checkpoints, texts, tmp_path):
    folder = build(checkpoints["BertModel"], tmp_path / "a", models.Normalize())
    assert np.linalg.norm(compare(folder, texts), axis=1) == pytest.approx(1, abs=1e-5)
    shutil.rmtree(tmp_path / "a" / "2_Normalize")  # older versions leave nothing there
    compare(folder, texts)
    plain = build(checkpoints["BertModel"], tmp_path / "b")
    compare(plain, texts)
    compare(plain, texts, {"normalize": True}, normalize_embeddings=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(embed(texts, folder, normalize=False, **FP32), embed(texts, plain, **FP32))


@pytest.mark.parametrize(
    "make",
    [
        lambda: [models.Dense(32, 16)],
        lambda: [models.Dense(32, 48, bias=False, activation_function=torch.nn.Identity()), models.Normalize()],
        lambda: [models.Dense(32, 32, activation_function=torch.nn.GELU(), use_residual=True)],
        lambda: [models.Dense(32, 8, use_residual=True), models.LayerNorm(8), models.Dropout(0.5)],
        lambda: [models.Normalize(), models.Dense(32, 16, activation_function=torch.nn.PReLU()), models.Normalize()],
        lambda: [models.Dense(32, 16), models.Dense(16, 24, activation_function=torch.nn.ReLU())],
    ],
    ids=["tanh", "no-bias", "residual", "layer-norm", "prelu", "two"],
)
@pytest.mark.parametrize("old", [False, True], ids=["safetensors", "bin"])
def test_dense_and_the_modules_around_it(checkpoints, texts, tmp_path, make, old):
    folder = build(checkpoints["BertModel"], tmp_path / "a", *make())
    if old:
        for file in list((tmp_path / "a").glob("*_*/model.safetensors")):
            from safetensors.torch import load_file

            torch.save(load_file(file), file.with_name("pytorch_model.bin"))
            file.unlink()
    compare(folder, texts)


def test_dense_on_the_tokens(checkpoints, texts, tmp_path):
    dense = models.Dense(32, 16, module_input_name="token_embeddings")
    build(checkpoints["BertModel"], tmp_path / "a", dense, models.Pooling(16, "mean"), pooling=None)
    compare(str(tmp_path / "a"), texts)


def test_truncate_dim(checkpoints, texts, tmp_path):
    folder = build(checkpoints["BertModel"], tmp_path / "a", models.Normalize(), truncate_dim=8)
    assert compare(folder, texts).shape[1] == 8
    compare(folder, texts, {"normalize": True}, normalize_embeddings=True)
    compare(folder, texts, truncate_dim=5)
    assert compare(folder, texts, truncate_dim=100).shape[1] == 32
    with pytest.raises(InputError, match="expected truncate_dim of at least 1, got 0"):
        embed(texts, folder, truncate_dim=0)
