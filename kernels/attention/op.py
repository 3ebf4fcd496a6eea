"""Attention as PyTorch operators: schemas, shapes, autograd, and the entry that `functional.attention` calls.

qkv: (T, 3, H, D), D a multiple of 8 from 16 to 128. tiles: the tile lists of an `AttentionSchedule`. out: (T, H, D).
Saved for the backward: out and lse, the log-sum-exp of the scaled scores in base 2, float32 (H, T); infinite for a sequence
without keys. The backward recomputes the dropout mask from its seed.
"""

import torch
from torch import Tensor

from ..registration import register, wants_grad
from .backward import launch_backward
from .forward import empty_outputs, launch_forward


def attention(qkv, tiles, max_seqlen, softmax_scale, causal, dropout_p, seed, stream) -> Tensor:
    """The kernel behind `functional.attention`, which documents and checks the arguments."""
    save = wants_grad(qkv)
    return attention_fwd(qkv, list(tiles), max_seqlen, softmax_scale, causal, dropout_p, seed, stream, save)[0]


def _forward_fake(qkv, tiles, max_seqlen, softmax_scale, causal, dropout_p, seed, stream, save):
    return empty_outputs(qkv, save)


def _setup_context(ctx, inputs, output):
    qkv, tiles, ctx.max_seqlen, ctx.softmax_scale, ctx.causal, ctx.dropout_p, seed, ctx.stream, save = inputs
    out, lse = output
    if not save:
        raise RuntimeError("attention_fwd was asked for a gradient but called with save=False")
    ctx.save_for_backward(qkv, out, lse, seed, *tiles)
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, _):
    qkv, out, lse, seed, *tiles = ctx.saved_tensors
    no_grads = ([None] * len(tiles), *(None,) * 7)
    if dout is None:
        return None, *no_grads
    dqkv = attention_bwd(
        dout, qkv, out, lse, tiles, ctx.max_seqlen, ctx.softmax_scale, ctx.causal, ctx.dropout_p, seed, ctx.stream
    )
    return dqkv, *no_grads


def _backward_fake(dout, qkv, out, lse, tiles, max_seqlen, softmax_scale, causal, dropout_p, seed, stream):
    return torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)


attention_fwd = register(
    "attention_fwd(Tensor qkv, Tensor[] tiles, SymInt max_seqlen, float softmax_scale, bool causal, float dropout_p, "
    "Tensor? seed, int stream, bool save) -> (Tensor, Tensor)",
    launch_forward,
    fake=_forward_fake,
    setup_context=_setup_context,
    backward=_backward,
)
attention_bwd = register(
    "attention_bwd(Tensor dout, Tensor qkv, Tensor out, Tensor lse, Tensor[] tiles, SymInt max_seqlen, float softmax_scale, "
    "bool causal, float dropout_p, Tensor? seed, int stream) -> Tensor",
    launch_backward,
    fake=_backward_fake,
)
