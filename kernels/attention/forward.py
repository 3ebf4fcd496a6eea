"""Forward of attention within each sequence of a packed batch: out = dropout(softmax(scale * q @ k.T)) @ v.

Short sequences share tiles where that pays (`short`). Where all keys of a longer sequence fit one block, the softmax needs one
pass; otherwise it is computed online, block by block (Milakov and Gimelshein 2018; Dao et al. 2022).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..batch_invariance import LONGEST, is_batch_invariant
from ..dropout import scale, threshold
from .blocks import (
    SCALARS,
    attention_mask,
    dropout_keep,
    grid,
    known_multiple,
    load_rows,
    locate,
    qkv_strides,
    softmax_numerator,
    store_rows,
)
from .config import LOG2_E, ForwardConfig, Problem
from .operands import aligned, with_aligned_rows
from .schedule import TILE_ROWS, packs_short_sequences
from .short import attention_fwd_short_kernel


@triton.jit(do_not_specialize=SCALARS)
def attention_fwd_kernel(
    qkv_ptr, tiles_ptr, seed_ptr, out_ptr, lse_ptr,
    T, H, head_dim, stride_token, stride_part: tl.int64, stride_head: tl.int64, scale_log2, keep_threshold, keep_scale, stream,
    min_seqlen, BLOCK_D: tl.constexpr, IS_PADDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCKS_PER_TILE: tl.constexpr, ONE_BLOCK: tl.constexpr, CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    SAVE_LSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out, and lse where SAVE_LSE, for BLOCK_M rows of one head of a sequence of at least min_seqlen rows."""
    head, start, seqlen, num_keys, first_row = locate(tiles_ptr, H, BLOCK_M, BLOCKS_PER_TILE)
    if (seqlen < min_seqlen) | (first_row >= seqlen):
        return
    head_dim = known_multiple(head_dim, 8) if IS_PADDED else BLOCK_D
    stride_token, stride_part, stride_head = qkv_strides(qkv_ptr, stride_token, stride_part, stride_head)
    token = start + first_row
    token_64 = token.to(tl.int64)
    num_rows = seqlen - first_row
    seed = tl.load(seed_ptr) if HAS_DROPOUT else 0  # scalar
    q_ptr = qkv_ptr + head * stride_head
    k_ptr = q_ptr + stride_part
    v_ptr = k_ptr + stride_part
    q_ptr += token_64 * stride_token
    q = load_rows(q_ptr, stride_token, num_rows, BLOCK_M, head_dim, BLOCK_D, True)  # [BLOCK_M, BLOCK_D]

    # m_i is the running maximum: of the raw scores in float32, which is more exact, else of the scores scaled for exp2.
    RAW_MAX: tl.constexpr = q.dtype == tl.float32
    score_to_m = 1.0 if RAW_MAX else scale_log2
    m_to_log2 = scale_log2 if RAW_MAX else 1.0
    m_i = tl.zeros([BLOCK_M], tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    # The last block of keys is the only one that may be ragged or cross the diagonal. It goes first, so that the loop needs no
    # mask. Both branches exist for wgmma: operands do not stay alive past them, and inside the second the loop is known to run.
    last_key = tl.minimum(num_keys - 1, first_row + BLOCK_M - 1) if CAUSAL else num_keys - 1
    last = last_key // BLOCK_N * BLOCK_N
    if num_keys > 0:
        row = first_row + tl.arange(0, BLOCK_M)[:, None]  # [BLOCK_M, 1]
        block = (start + last).to(tl.int64) * stride_token
        k = load_rows(k_ptr + block, stride_token, num_keys - last, BLOCK_N, head_dim, BLOCK_D, True)  # [BLOCK_N, BLOCK_D]
        v = load_rows(v_ptr + block, stride_token, num_keys - last, BLOCK_N, head_dim, BLOCK_D, True)  # [BLOCK_N, BLOCK_D]
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        column = last + tl.arange(0, BLOCK_N)[None, :]  # [1, BLOCK_N]
        s = tl.where(attention_mask(row, column, num_keys, CAUSAL), s, float("-inf"))
        m_i = tl.max(s, axis=1) * score_to_m  # [BLOCK_M]
        p = softmax_numerator(s, m_i, scale_log2, RAW_MAX)  # [BLOCK_M, BLOCK_N]
        l_i = tl.sum(p, axis=1)  # [BLOCK_M]
        if HAS_DROPOUT:
            p = tl.where(dropout_keep(seed, stream, head, token, last, keep_threshold, BLOCK_M, BLOCK_N), p, 0.0)
        acc = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)  # [BLOCK_M, BLOCK_D]

    if not ONE_BLOCK:
        if last > 0:
            for key in range(0, last, BLOCK_N):
                block = (start + key).to(tl.int64) * stride_token
                k = load_rows(k_ptr + block, stride_token, BLOCK_N, BLOCK_N, head_dim, BLOCK_D, IS_PADDED)  # [BLOCK_N, BLOCK_D]
                s = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
                m_new = tl.maximum(m_i, tl.max(s, axis=1) * score_to_m)  # [BLOCK_M]
                p = softmax_numerator(s, m_new, scale_log2, RAW_MAX)  # [BLOCK_M, BLOCK_N]
                alpha = tl.exp2((m_i - m_new) * m_to_log2)  # [BLOCK_M]
                l_i = l_i * alpha + tl.sum(p, axis=1)
                acc *= alpha[:, None]
                if HAS_DROPOUT:
                    p = tl.where(dropout_keep(seed, stream, head, token, key, keep_threshold, BLOCK_M, BLOCK_N), p, 0.0)
                v = load_rows(v_ptr + block, stride_token, BLOCK_N, BLOCK_N, head_dim, BLOCK_D, IS_PADDED)  # [BLOCK_N, BLOCK_D]
                acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)  # [BLOCK_M, BLOCK_D]
                m_i = m_new

    l_i = tl.where(num_keys > 0, l_i, 1.0)
    if RAW_MAX:
        acc = acc / l_i[:, None] * keep_scale
    else:
        acc *= (keep_scale / l_i)[:, None]
    out_ptr += (token_64 * H + head) * head_dim
    store_rows(out_ptr, acc, H * head_dim, num_rows, BLOCK_M, head_dim, BLOCK_D)
    if SAVE_LSE:
        offs_m = tl.arange(0, BLOCK_M)
        lse = tl.where(num_keys > 0, m_i * m_to_log2 + tl.log2(l_i), float("inf"))  # [BLOCK_M]
        tl.store(lse_ptr + head.to(tl.int64) * T + token + offs_m, lse, mask=offs_m < num_rows)


def launch_forward(qkv, tiles, max_seqlen, softmax_scale, causal, dropout_p, seed, stream, save):
    """(out, lse) of the operator `attention_fwd`."""
    T, _, H, D = qkv.shape
    out, lse = empty_outputs(qkv, save)
    if T == 0:
        return out, lse
    qkv, seed = with_aligned_rows(qkv), aligned(seed) if dropout_p > 0 else None
    is_invariant = is_batch_invariant()
    problem = Problem.of(qkv, LONGEST if is_invariant else max_seqlen, dropout_p, causal)
    config = ForwardConfig.choose(problem)
    scalars = (T, H, D, *qkv.stride()[:3], softmax_scale * LOG2_E, threshold(dropout_p), scale(dropout_p), stream)
    BLOCK_D = triton.next_power_of_2(D)
    flags = dict(BLOCK_D=BLOCK_D, IS_PADDED=D < BLOCK_D, CAUSAL=causal, HAS_DROPOUT=dropout_p > 0, PRECISION=problem.precision)
    min_seqlen = 1  # shorter sequences have their output
    if config.short is not None and not is_invariant and packs_short_sequences(tiles, T, max_seqlen):
        _, _, packs, spans = tiles
        tile = config.short
        attention_fwd_short_kernel[grid(packs, H, 1)](
            qkv, packs, spans, seed, out, lse, *scalars, **flags, SAVE_LSE=save, BLOCK=tile.BLOCK_M, **tile.options
        )
        min_seqlen = tile.BLOCK_M + 1
    if problem.max_seqlen < min_seqlen:
        return out, lse
    tile = config.tile.capped_for_causal(causal)
    blocks_per_tile = TILE_ROWS[0] // tile.BLOCK_M
    attention_fwd_kernel[grid(tiles[0], H, blocks_per_tile)](
        qkv, tiles[0], seed, out, lse, *scalars, min_seqlen, **flags, SAVE_LSE=save, ONE_BLOCK=config.ONE_BLOCK,
        BLOCK_M=tile.BLOCK_M, BLOCK_N=tile.BLOCK_N, BLOCKS_PER_TILE=blocks_per_tile, **tile.options,
    )  # fmt: skip
    return out, lse


def empty_outputs(qkv: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    """out (T, H, D), and lse float32 (H, T), or (H, 0) where it is not saved."""
    T, _, H, D = qkv.shape
    out = torch.empty((T, H, D), dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty((H, T if save else 0), dtype=torch.float32, device=qkv.device)
    return out, lse
