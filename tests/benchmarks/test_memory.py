"""Activation memory: what a layer keeps, to the byte, and what that leaves beside transformers."""

import pytest
import torch

from benchmarks.memory import FASTBERT, PRECISIONS, TRANSFORMERS, Case, bytes_per_token
from fastbert.utils.sizes import SIZES

D, HEADS = 1024, 16
LARGE = SIZES["bert-large"]


@pytest.mark.parametrize(
    ("weights", "states"),
    [
        # x, qkv 3, attention's output, the feed-forward's x and its inner state 4 before the activation, in bf16; of each
        # layer norm the normalised state, in the dtype of its output.
        (torch.bfloat16, 1 + 3 + 1 + 1 + 4 + 2),
        (torch.float32, 1 + 3 + 1 + 1 + 4 + 2 * 2),
    ],
)
def test_what_a_layer_keeps(weights, states, interpreted):
    per_token = [bytes_per_token(FASTBERT, Case({**LARGE, "num_hidden_layers": layers}, 512, weights)) for layers in (2, 3)]
    statistics = 2 * 2 * 4 + HEADS * 4  # mean and rstd of two norms, log-sum-exp of each head
    assert per_token[1] - per_token[0] == 2 * D * states + statistics


@pytest.mark.parametrize("precision", PRECISIONS)
def test_half_as_many_tokens_again_fit_where_transformers_fits_its_own(precision, interpreted):
    case = Case(LARGE, 512, PRECISIONS[precision])
    transformers, fastbert = (bytes_per_token(name, case) for name in (TRANSFORMERS, FASTBERT))
    assert transformers > 1.5 * fastbert


@pytest.fixture
def interpreted(triton_device):
    if torch.cuda.is_available():
        pytest.skip("counted with the interpreter's process; on a GPU `python -m benchmarks.memory` measures")
