"""transformers' flash attention path on a CPU: its own code, with the package's two functions written in plain PyTorch."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from transformers import modeling_flash_attention_utils as flash


def attention(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None, causal: bool) -> Tensor:
    """q, k, v: (T, heads, head_dim)."""
    scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
    return torch.stack([attention(*one, softmax_scale, causal) for one in zip(q, k, v)])


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
):
    bounds = cu_seqlens_q.tolist()
    assert bounds == cu_seqlens_k.tolist()
    assert max_seqlen_q >= max(b - a for a, b in zip(bounds, bounds[1:]))
    return torch.cat([attention(q[a:b], k[a:b], v[a:b], softmax_scale, causal) for a, b in zip(bounds, bounds[1:])])


@contextmanager
def flash_on_cpu() -> Iterator[None]:
    """Lets models whose config says flash_attention_2 call the functions above."""
    functions = (flash_attn_func, flash_attn_varlen_func, None, flash._pad_input, flash._unpad_input)
    process = flash._lazy_define_process_function(flash_attn_varlen_func)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash, "lazy_import_flash_attention", lambda *args, **kwargs: (functions, process))
        yield


def use_flash(*models: nn.Module) -> None:
    """What loading with attn_implementation="flash_attention_2" sets where the package is installed."""
    for model in models:
        model.config._attn_implementation = "flash_attention_2"
