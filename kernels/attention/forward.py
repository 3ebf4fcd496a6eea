"""Softmax attention within each sequence of a packed batch: out = dropout(softmax(scale * q @ k.T)) @ v.

qkv: (T, 3, H, D), D a multiple of 8 from 16 to 128; out: (T, H, D). Sequences of at most 64 rows share tiles
(`attention_short`). Where all keys of a longer one fit one block, the softmax is taken at once; others take it online, block
by block (Milakov and Gimelshein 2018; Dao et al. 2022).
Saved for the backward: out and lse, the log-sum-exp of the scaled scores in base 2, float32 (H, T); infinite for a
sequence without keys. The dropout mask is drawn again from its seed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..batch_invariance import LONGEST, is_batch_invariant
from ..dropout import scale, threshold
from .blocks import attends, grid, keep_scores, load_rows, locate, store_rows, weights
from .config import LOG2_E, ForwardConfig, Problem
from .schedule import TILE_ROWS, packs_short_sequences
from .short import attention_fwd_short_kernel


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


def launch_forward(qkv, tiles, max_seqlen, softmax_scale, causal, dropout_p, seed, stream, save):
    """(out, lse) of the operator `attention_fwd`."""
    T, _, H, D = qkv.shape
    out, lse = empty_outputs(qkv, save)
    if T == 0:
        return out, lse
    is_invariant = is_batch_invariant()
    problem = Problem.of(qkv, LONGEST if is_invariant else max_seqlen, dropout_p)
    config = ForwardConfig.choose(problem)
    scalars = (T, H, *qkv.stride()[:3], softmax_scale * LOG2_E, threshold(dropout_p), scale(dropout_p), stream)
    flags = dict(
        HEAD_DIM=D, BLOCK_D=triton.next_power_of_2(D), CAUSAL=causal, HAS_DROPOUT=dropout_p > 0, PRECISION=problem.precision
    )
    more_than = 0  # sequences of at most this many rows have their output
    if config.short is not None and not is_invariant and packs_short_sequences(tiles, T, max_seqlen):
        _, _, packs, spans = tiles
        attention_fwd_short_kernel[grid(packs, H, 1)](
            qkv, packs, spans, seed, out, lse, *scalars, **flags, SAVE_LSE=save, BLOCK=config.short.BLOCK_M,
            **config.short.options,
        )  # fmt: skip
        more_than = config.short.BLOCK_M
    if problem.max_seqlen <= more_than:
        return out, lse
    tile = config.tile.capped_for_causal(causal)
    pieces = TILE_ROWS[0] // tile.BLOCK_M
    attention_fwd_kernel[grid(tiles[0], H, pieces)](
        qkv, tiles[0], seed, out, lse, *scalars, more_than, **flags, SAVE_LSE=save,
        BLOCK_M=tile.BLOCK_M, BLOCK_N=tile.BLOCK_N, PIECES=pieces, ONE_BLOCK=config.ONE_BLOCK, **tile.options,
    )  # fmt: skip
    return out, lse


def empty_outputs(qkv: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    """out (T, H, D) and lse, float32 (H, T), or (H, 0) where it is not saved."""
    T, _, H, D = qkv.shape
    out = torch.empty((T, H, D), dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty((H, T if save else 0), dtype=torch.float32, device=qkv.device)
    return out, lse
