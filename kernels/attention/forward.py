"""Softmax attention within each sequence of a packed batch: out = dropout(softmax(scale * q @ k.T)) @ v.

qkv: (T, 3, H, D), D a multiple of 8 from 16 to 128; out: (T, H, D). Sequences of at most 64 rows share tiles
(`attention_short`). Where all keys of a longer one fit one block, the softmax is taken at once; others take it online, block
by block (Milakov and Gimelshein 2018; Dao et al. 2022).
Saved for the backward: out and lse, the log-sum-exp of the scaled scores in base 2, float32 (H, T); infinite for a
sequence without keys. The dropout mask is drawn again from its seed.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..batch_invariance import LONGEST, is_batch_invariant
from ..device import is_amd
from ..dropout import scale, threshold
from ..registration import register, wants_grad
from .backward import LOG2_E, attention_bwd
from .blocks import (
    EXACT_TILE,
    Problem,
    Tile,
    attends,
    grid,
    keep_scores,
    load_rows,
    locate,
    shares_tiles,
    store_rows,
    weights,
)
from .schedule import PACK_ROWS, TILE_ROWS
from .short import attention_fwd_short_kernel

MAX_STRIDE = (2**31 - 1) // 128  # offsets inside a tile are int32; those of the tile itself are int64


@triton.jit(do_not_specialize=["T", "keep_threshold", "stream", "more_than"])
def attention_fwd_kernel(
    qkv_ptr, tiles_ptr, seed_ptr, out_ptr, lse_ptr,
    T, H, stride_token, stride_part, stride_head, scale_log2, keep_threshold, keep_scale, stream, more_than,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PIECES: tl.constexpr,
    ONE_BLOCK: tl.constexpr, CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, SAVE_LSE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """out, and lse if asked for, of BLOCK_M rows of one head of a sequence of more than more_than rows."""
    head, start, rows, keys, first_row = locate(tiles_ptr, H, BLOCK_M, PIECES)
    if (rows <= more_than) | (first_row >= rows):
        return
    token = start + first_row
    token_64 = token.to(tl.int64)
    rows_left = rows - first_row
    seed = tl.load(seed_ptr) if HAS_DROPOUT else 0
    q_ptr = qkv_ptr + head * tl.cast(stride_head, tl.int64)
    k_ptr = q_ptr + tl.cast(stride_part, tl.int64)
    v_ptr = k_ptr + tl.cast(stride_part, tl.int64)
    q = load_rows(q_ptr + token_64 * stride_token, stride_token, rows_left, BLOCK_M, HEAD_DIM, BLOCK_D, True)

    # The last block may be ragged or cross the diagonal: it goes first and starts the sums, so that the loop needs no
    # mask. The branches are there for wgmma: its operands stay alive past neither, and the loop is known to run.
    RAW_MAX: tl.constexpr = q.dtype == tl.float32
    to_m = 1.0 if RAW_MAX else scale_log2
    from_m = scale_log2 if RAW_MAX else 1.0
    m_i = tl.zeros([BLOCK_M], tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    last = tl.minimum(keys - 1, first_row + BLOCK_M - 1) if CAUSAL else keys - 1
    last = last // BLOCK_N * BLOCK_N
    if keys > 0:
        row = first_row + tl.arange(0, BLOCK_M)[:, None]
        block = (start + last).to(tl.int64) * stride_token
        k = load_rows(k_ptr + block, stride_token, keys - last, BLOCK_N, HEAD_DIM, BLOCK_D, True)
        v = load_rows(v_ptr + block, stride_token, keys - last, BLOCK_N, HEAD_DIM, BLOCK_D, True)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s = tl.where(attends(row, last + tl.arange(0, BLOCK_N)[None, :], keys, CAUSAL), s, float("-inf"))
        m_i = tl.max(s, axis=1) * to_m
        p = weights(s, m_i, scale_log2, RAW_MAX)
        l_i = tl.sum(p, axis=1)
        if HAS_DROPOUT:
            p = tl.where(keep_scores(seed, stream, head, token, last, keep_threshold, BLOCK_M, BLOCK_N), p, 0.0)
        acc = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)

    if not ONE_BLOCK:
        if last > 0:
            for key in range(0, last, BLOCK_N):
                block = (start + key).to(tl.int64) * stride_token
                k = load_rows(k_ptr + block, stride_token, BLOCK_N, BLOCK_N, HEAD_DIM, BLOCK_D, False)
                s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
                m_new = tl.maximum(m_i, tl.max(s, axis=1) * to_m)
                p = weights(s, m_new, scale_log2, RAW_MAX)
                alpha = tl.exp2((m_i - m_new) * from_m)
                l_i = l_i * alpha + tl.sum(p, axis=1)
                acc *= alpha[:, None]
                if HAS_DROPOUT:
                    p = tl.where(keep_scores(seed, stream, head, token, key, keep_threshold, BLOCK_M, BLOCK_N), p, 0.0)
                v = load_rows(v_ptr + block, stride_token, BLOCK_N, BLOCK_N, HEAD_DIM, BLOCK_D, False)
                acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
                m_i = m_new

    l_i = tl.where(keys > 0, l_i, 1.0)
    if RAW_MAX:
        acc = acc / l_i[:, None] * keep_scale
    else:
        acc *= (keep_scale / l_i)[:, None]
    store_rows(out_ptr + (token_64 * H + head) * HEAD_DIM, acc, H * HEAD_DIM, rows_left, BLOCK_M, HEAD_DIM, BLOCK_D)
    if SAVE_LSE:
        offs_m = tl.arange(0, BLOCK_M)
        lse = tl.where(keys > 0, m_i * from_m + tl.log2(l_i), float("inf"))
        tl.store(lse_ptr + head.to(tl.int64) * T + token + offs_m, lse, mask=offs_m < rows_left)


SHORT_TILE = Tile(PACK_ROWS, PACK_ROWS)


@dataclass(frozen=True)
class ForwardConfig:
    """ONE_BLOCK: every sequence's keys fit one block, so that the kernel has no loop. short: the tile that sequences share.

    Compiled for sm_90 at head_dim 64 in bf16, without and with dropout, no spill: short 74 registers (six
    blocks of threads per multiprocessor), one block 64x128 127 and 112 (four); loop 64x64 106 and 132 (four and three),
    64x128 167 (three, a fifth fewer instructions per score than 64x64). Not yet timed.
    """

    tile: Tile
    ONE_BLOCK: bool
    short: Tile | None = SHORT_TILE

    @classmethod
    def choose(cls, problem: Problem) -> "ForwardConfig":
        if problem.is_exact:
            return cls(EXACT_TILE, ONE_BLOCK=False, short=None)
        if problem.is_float32 and problem.is_wide:
            return cls(Tile(64 if problem.multiplies_from_shared else 32, 32, num_warps=8), ONE_BLOCK=False, short=None)
        if problem.is_float32 and not problem.multiplies_from_shared and not is_amd(problem.target):
            return cls(Tile(32, 64), ONE_BLOCK=False)
        if problem.max_seqlen <= 128:
            return cls(Tile(64, 128), ONE_BLOCK=True)
        is_long = problem.max_seqlen >= 256 and problem.target in ("sm_90", "cpu")
        if is_long and not (problem.is_float32 or problem.is_wide or problem.has_dropout):
            return cls(Tile(64, 128), ONE_BLOCK=False)
        return cls(Tile(64, 64, num_stages=3 if problem.head_dim <= 32 and problem.target == "sm_80" else 2), ONE_BLOCK=False)


def _attention_fwd(qkv, tiles, max_seqlen, softmax_scale, causal, dropout_p, seed, stream, save):
    T, _, H, D = qkv.shape
    out, lse = _attention_fwd_fake(qkv, tiles, max_seqlen, softmax_scale, causal, dropout_p, seed, stream, save)
    if T == 0:
        return out, lse
    is_invariant = is_batch_invariant()
    problem = Problem.of(qkv, LONGEST if is_invariant else max_seqlen, dropout_p)
    config = ForwardConfig.choose(problem)
    scalars = (
        T, H, qkv.stride(0), qkv.stride(1), qkv.stride(2),
        softmax_scale * LOG2_E, threshold(dropout_p), scale(dropout_p), stream,
    )  # fmt: skip
    flags = dict(
        HEAD_DIM=D, BLOCK_D=triton.next_power_of_2(D), CAUSAL=causal, HAS_DROPOUT=dropout_p > 0, SAVE_LSE=save,
        PRECISION=problem.precision,
    )  # fmt: skip
    more_than = 0  # sequences of at most this many rows have their output
    if config.short is not None and not is_invariant and shares_tiles(tiles, T, max_seqlen):
        _, _, packs, spans = tiles
        attention_fwd_short_kernel[grid(packs, H, 1)](
            qkv, packs, spans, seed, out, lse, *scalars, **flags, BLOCK=config.short.BLOCK_M, **config.short.options
        )
        more_than = config.short.BLOCK_M
    if problem.max_seqlen <= more_than:
        return out, lse
    tile = config.tile.no_taller(causal)
    pieces = TILE_ROWS[0] // tile.BLOCK_M
    attention_fwd_kernel[grid(tiles[0], H, pieces)](
        qkv, tiles[0], seed, out, lse, *scalars, more_than, **flags,
        BLOCK_M=tile.BLOCK_M, BLOCK_N=tile.BLOCK_N, PIECES=pieces, ONE_BLOCK=config.ONE_BLOCK, **tile.options,
    )  # fmt: skip
    return out, lse


def _attention_fwd_fake(qkv, tiles, max_seqlen, softmax_scale, causal, dropout_p, seed, stream, save):
    T, _, H, D = qkv.shape
    out = torch.empty((T, H, D), dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty((H, T if save else 0), dtype=torch.float32, device=qkv.device)
    return out, lse


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
    if dout.stride(-1) != 1 or dout.stride(0) > MAX_STRIDE:
        dout = dout.contiguous()
    dqkv = attention_bwd(
        dout, qkv, out, lse, tiles, ctx.max_seqlen, ctx.softmax_scale, ctx.causal, ctx.dropout_p, seed, ctx.stream
    )
    return dqkv, *no_grads


attention_fwd = register(
    "attention_fwd(Tensor qkv, Tensor[] tiles, SymInt max_seqlen, float softmax_scale, bool causal, float dropout_p, "
    "Tensor? seed, int stream, bool save) -> (Tensor, Tensor)",
    _attention_fwd,
    fake=_attention_fwd_fake,
    setup_context=_setup_context,
    backward=_backward,
)


def attention(qkv, tiles, max_seqlen, softmax_scale, causal, dropout_p, seed, stream) -> Tensor:
    """The kernel behind `functional.attention`, which documents and checks the arguments."""
    if qkv.stride(-1) != 1 or qkv.stride(0) > MAX_STRIDE:
        qkv = qkv.contiguous()
    save = wants_grad(qkv)
    return attention_fwd(qkv, list(tiles), max_seqlen, softmax_scale, causal, dropout_p, seed, stream, save)[0]
