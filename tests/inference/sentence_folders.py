"""Folders that sentence-transformers saves, and what its own classes make of texts.

Importing this skips the tests of a file where sentence-transformers is not installed.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from fastbert.inference.embedding import embed

sentence_transformers = pytest.importorskip("sentence_transformers", reason="it saves the folders and says what is right")

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from sentence_transformers import CrossEncoder as CrossEncoder
    from sentence_transformers import SentenceTransformer as SentenceTransformer
    from sentence_transformers import models as models

FP32 = {"dtype": torch.float32, "device": "cpu"}
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
OLD = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
PROMPTS = {"query": "the question: ", "passage": "a long answer "}
PAIRS = [("the cat", "sat down on the mat"), ("A dog!", "who plays guitar"), ("the man", "the man")]


def build(base: str, folder: Path, *modules, pooling="mean", transformer=None, **options) -> str:
    """A folder of sentence-transformers over a checkpoint: Transformer, Pooling (None for none) and `modules`."""
    chain = [models.Transformer(base, **(transformer or {}))]
    if pooling is not None:
        chain.append(pooling if isinstance(pooling, torch.nn.Module) else models.Pooling(32, pooling))
    torch.manual_seed(1)
    model = SentenceTransformer(modules=[*chain, *modules], device="cpu", **options)
    model.save_pretrained(str(folder))
    return str(folder)


def compare(folder: str, texts: list[str], options: dict | None = None, **expected_options) -> np.ndarray:
    """Asserts that the vectors are those of `SentenceTransformer(folder).encode`, and returns them."""
    expected = SentenceTransformer(folder, device="cpu").encode(texts, **expected_options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # texts that are cut and empty
        found = embed(texts, folder, **FP32, **(expected_options if options is None else options))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    return found


def edit(file: Path, **values) -> None:
    """Sets keys of a JSON file; None as a value is kept, ... takes the key away."""
    content = json.loads(file.read_text()) if file.exists() else {}
    content.update(values)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
