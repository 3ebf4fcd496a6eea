"""Backward of attention: dq, dk and dv, deterministic and without atomics, since each row of dqkv is written by one program.

Where a whole sequence fits a tile, one program computes dq, dk and dv of a head of it; short sequences share tiles where that
pays (`short`). Longer ones take two kernels: the first computes dq and delta = rowsum(out * dout), the second dk and dv.
dk and dv come from the transposed scores, so that both products take their left operand from registers.
"""

import torch
import triton
import triton.language as tl

from ..dropout import scale, threshold
from .blocks import (
    SCALARS,
    attention_mask,
    dout_strides,
    dropout_keep,
    grid,
    known_multiple,
    load_rows,
    locate,
    qkv_strides,
    store_rows,
)
from .config import LOG2_E, BackwardConfig, Problem
from .operands import aligned, with_aligned_rows
from .schedule import TILE_ROWS, packs_short_sequences
from .short import attention_bwd_short_kernel


@triton.jit(do_not_specialize=SCALARS)
def attention_bwd_whole_kernel(
    qkv_ptr, dout_ptr, lse_ptr, tiles_ptr, seed_ptr, dqkv_ptr,
    T, H, head_dim, stride_token, stride_part: tl.int64, stride_head: tl.int64, stride_dout_token, stride_dout_head: tl.int64,
    softmax_scale, scale_log2, keep_threshold, keep_scale, stream,
    BLOCK_D: tl.constexpr, IS_PADDED: tl.constexpr, BLOCK: tl.constexpr, MIN_SEQLEN: tl.constexpr, CAUSAL: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq, dk and dv of one head of a sequence of MIN_SEQLEN to BLOCK rows."""
    head, start, seqlen, num_keys, _ = locate(tiles_ptr, H, BLOCK, 1)
    if (seqlen < MIN_SEQLEN) | (seqlen > BLOCK):
        return
    head_dim = known_multiple(head_dim, 8) if IS_PADDED else BLOCK_D
    stride_token, stride_part, stride_head = qkv_strides(qkv_ptr, stride_token, stride_part, stride_head)
    stride_dout_token, stride_dout_head = dout_strides(dout_ptr, stride_dout_token, stride_dout_head)
    first_token = start.to(tl.int64)
    q_ptr = qkv_ptr + first_token * stride_token + head * stride_head
    k_ptr = q_ptr + stride_part
    v_ptr = k_ptr + stride_part
    do_ptr = dout_ptr + first_token * stride_dout_token + head * stride_dout_head
    q = load_rows(q_ptr, stride_token, seqlen, BLOCK, head_dim, BLOCK_D, True)  # [BLOCK, BLOCK_D]
    k = load_rows(k_ptr, stride_token, num_keys, BLOCK, head_dim, BLOCK_D, True)  # [BLOCK, BLOCK_D]
    v = load_rows(v_ptr, stride_token, num_keys, BLOCK, head_dim, BLOCK_D, True)  # [BLOCK, BLOCK_D]
    do = load_rows(do_ptr, stride_dout_token, seqlen, BLOCK, head_dim, BLOCK_D, True)  # [BLOCK, BLOCK_D]
    offs = tl.arange(0, BLOCK)
    # Rows past the end get lse = inf, so that their probabilities are 0.
    lse_ptr += head.to(tl.int64) * T
    lse = tl.load(lse_ptr + start + offs, mask=offs < seqlen, other=float("inf"))  # [BLOCK]

    # Scores are transposed: [keys, rows].
    s = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # [BLOCK, BLOCK]
    p = tl.exp2(s * scale_log2 - lse[None, :])  # [BLOCK, BLOCK]
    p = tl.where(attention_mask(offs[None, :], offs[:, None], num_keys, CAUSAL), p, 0.0)
    dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)  # [BLOCK, BLOCK]
    p_kept = p
    if HAS_DROPOUT:
        seed = tl.load(seed_ptr)  # scalar
        keep = dropout_keep(seed, stream, head, start, 0, keep_threshold, BLOCK, BLOCK)  # [rows, keys]
        keep = tl.trans(keep.to(tl.int8)) != 0
        p_kept = tl.where(keep, p, 0.0)
        dp = tl.where(keep, dp, 0.0)
    delta = tl.sum(p * dp, axis=0)  # [BLOCK]
    ds = (p * (dp - delta[None, :])).to(q.dtype)  # [BLOCK, BLOCK], without keep_scale
    dv = tl.dot(p_kept.to(do.dtype), do, input_precision=PRECISION) * keep_scale  # [BLOCK, BLOCK_D]
    dk = tl.dot(ds, q, input_precision=PRECISION) * (softmax_scale * keep_scale)  # [BLOCK, BLOCK_D]
    dq = tl.dot(tl.trans(ds), k, input_precision=PRECISION) * (softmax_scale * keep_scale)  # [BLOCK, BLOCK_D]

    dq_ptr = dqkv_ptr + (first_token * 3 * H + head) * head_dim
    store_rows(dq_ptr, dq, 3 * H * head_dim, seqlen, BLOCK, head_dim, BLOCK_D)
    store_rows(dq_ptr + H * head_dim, dk, 3 * H * head_dim, seqlen, BLOCK, head_dim, BLOCK_D)
    store_rows(dq_ptr + 2 * H * head_dim, dv, 3 * H * head_dim, seqlen, BLOCK, head_dim, BLOCK_D)


@triton.jit(do_not_specialize=SCALARS)
def attention_bwd_dq_kernel(
    qkv_ptr, out_ptr, dout_ptr, lse_ptr, tiles_ptr, seed_ptr, delta_ptr, dqkv_ptr,
    T, H, head_dim, stride_token, stride_part: tl.int64, stride_head: tl.int64, stride_dout_token, stride_dout_head: tl.int64,
    softmax_scale, scale_log2, keep_threshold, keep_scale, stream,
    BLOCK_D: tl.constexpr, IS_PADDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS_PER_TILE: tl.constexpr,
    MIN_SEQLEN: tl.constexpr, CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq and delta of BLOCK_M rows of one head of a sequence of at least MIN_SEQLEN rows."""
    head, start, seqlen, num_keys, first_row = locate(tiles_ptr, H, BLOCK_M, BLOCKS_PER_TILE)
    if (seqlen < MIN_SEQLEN) | (first_row >= seqlen):
        return
    head_dim = known_multiple(head_dim, 8) if IS_PADDED else BLOCK_D
    stride_token, stride_part, stride_head = qkv_strides(qkv_ptr, stride_token, stride_part, stride_head)
    stride_dout_token, stride_dout_head = dout_strides(dout_ptr, stride_dout_token, stride_dout_head)
    token = start + first_row
    token_64 = token.to(tl.int64)
    num_rows = seqlen - first_row
    seed = tl.load(seed_ptr) if HAS_DROPOUT else 0  # scalar
    q_ptr = qkv_ptr + head * stride_head
    k_ptr = q_ptr + stride_part
    v_ptr = k_ptr + stride_part
    o_ptr = out_ptr + (token_64 * H + head) * head_dim
    do_ptr = dout_ptr + token_64 * stride_dout_token + head * stride_dout_head
    q_ptr += token_64 * stride_token
    q = load_rows(q_ptr, stride_token, num_rows, BLOCK_M, head_dim, BLOCK_D, True)  # [BLOCK_M, BLOCK_D]
    o = load_rows(o_ptr, H * head_dim, num_rows, BLOCK_M, head_dim, BLOCK_D, True)  # [BLOCK_M, BLOCK_D]
    do = load_rows(do_ptr, stride_dout_token, num_rows, BLOCK_M, head_dim, BLOCK_D, True)  # [BLOCK_M, BLOCK_D]
    offs_m = tl.arange(0, BLOCK_M)
    index = head.to(tl.int64) * T + token + offs_m  # of lse and delta
    lse = tl.load(lse_ptr + index, mask=offs_m < num_rows, other=float("inf"))  # [BLOCK_M]
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), axis=1)  # [BLOCK_M]
    if HAS_DROPOUT:
        delta *= (65536 - keep_threshold) * (1.0 / 65536)
    tl.store(delta_ptr + index, delta, mask=offs_m < num_rows)

    # As in the forward: the last block of keys, which may need a mask, then the others.
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    last_key = tl.minimum(num_keys - 1, first_row + BLOCK_M - 1) if CAUSAL else num_keys - 1
    last = last_key // BLOCK_N * BLOCK_N
    if num_keys > 0:
        dq = _add_dq(
            dq, q, do, lse, delta, k_ptr, v_ptr, start, stride_token, first_row, last, num_keys,
            scale_log2, seed, stream, head, token, keep_threshold,
            head_dim, BLOCK_D, IS_PADDED, BLOCK_M, BLOCK_N, True, CAUSAL, HAS_DROPOUT, PRECISION,
        )  # fmt: skip
    if last > 0:
        for key in range(0, last, BLOCK_N):
            dq = _add_dq(
                dq, q, do, lse, delta, k_ptr, v_ptr, start, stride_token, first_row, key, num_keys,
                scale_log2, seed, stream, head, token, keep_threshold,
                head_dim, BLOCK_D, IS_PADDED, BLOCK_M, BLOCK_N, False, CAUSAL, HAS_DROPOUT, PRECISION,
            )  # fmt: skip

    dq *= softmax_scale * keep_scale
    dq_ptr = dqkv_ptr + (token_64 * 3 * H + head) * head_dim
    store_rows(dq_ptr, dq, 3 * H * head_dim, num_rows, BLOCK_M, head_dim, BLOCK_D)


@triton.jit
def _add_dq(
    dq, q, do, lse, delta, k_ptr, v_ptr, start, stride_token, first_row, key, num_keys,
    scale_log2, seed, stream, head, token, keep_threshold,
    head_dim, BLOCK_D: tl.constexpr, IS_PADDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq [BLOCK_M, BLOCK_D] plus the contribution of the BLOCK_N keys from `key`."""
    block = (start + key).to(tl.int64) * stride_token
    rows = num_keys - key if MASKED else BLOCK_N
    k = load_rows(k_ptr + block, stride_token, rows, BLOCK_N, head_dim, BLOCK_D, MASKED or IS_PADDED)  # [BLOCK_N, BLOCK_D]
    v = load_rows(v_ptr + block, stride_token, rows, BLOCK_N, head_dim, BLOCK_D, MASKED or IS_PADDED)  # [BLOCK_N, BLOCK_D]
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
    p = tl.exp2(s * scale_log2 - lse[:, None])  # [BLOCK_M, BLOCK_N]
    if MASKED:
        row = first_row + tl.arange(0, BLOCK_M)[:, None]  # [BLOCK_M, 1]
        column = key + tl.arange(0, BLOCK_N)[None, :]  # [1, BLOCK_N]
        p = tl.where(attention_mask(row, column, num_keys, CAUSAL), p, 0.0)
    dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
    if HAS_DROPOUT:
        dp = tl.where(dropout_keep(seed, stream, head, token, key, keep_threshold, BLOCK_M, BLOCK_N), dp, 0.0)
    ds = (p * (dp - delta[:, None])).to(k.dtype)  # [BLOCK_M, BLOCK_N]
    return tl.dot(ds, k, dq, input_precision=PRECISION)  # [BLOCK_M, BLOCK_D]


@triton.jit(do_not_specialize=SCALARS)
def attention_bwd_dkdv_kernel(
    qkv_ptr, dout_ptr, lse_ptr, delta_ptr, tiles_ptr, seed_ptr, dqkv_ptr,
    T, H, head_dim, stride_token, stride_part: tl.int64, stride_head: tl.int64, stride_dout_token, stride_dout_head: tl.int64,
    softmax_scale, scale_log2, keep_threshold, keep_scale, stream,
    BLOCK_D: tl.constexpr, IS_PADDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS_PER_TILE: tl.constexpr,
    MIN_SEQLEN: tl.constexpr, CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of BLOCK_N rows of one head of a sequence of at least MIN_SEQLEN rows; zeros for rows that are not keys."""
    head, start, seqlen, num_keys, first_key = locate(tiles_ptr, H, BLOCK_N, BLOCKS_PER_TILE)
    if (seqlen < MIN_SEQLEN) | (first_key >= seqlen):
        return
    head_dim = known_multiple(head_dim, 8) if IS_PADDED else BLOCK_D
    stride_token, stride_part, stride_head = qkv_strides(qkv_ptr, stride_token, stride_part, stride_head)
    stride_dout_token, stride_dout_head = dout_strides(dout_ptr, stride_dout_token, stride_dout_head)
    seed = tl.load(seed_ptr) if HAS_DROPOUT else 0  # scalar
    first_token = start.to(tl.int64) + first_key
    q_ptr = qkv_ptr + head * stride_head
    k_ptr = q_ptr + first_token * stride_token + stride_part
    v_ptr = k_ptr + stride_part
    do_ptr = dout_ptr + head * stride_dout_head
    lse_ptr += head.to(tl.int64) * T
    delta_ptr += head.to(tl.int64) * T

    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if first_key < num_keys:
        k = load_rows(k_ptr, stride_token, num_keys - first_key, BLOCK_N, head_dim, BLOCK_D, True)  # [BLOCK_N, BLOCK_D]
        v = load_rows(v_ptr, stride_token, num_keys - first_key, BLOCK_N, head_dim, BLOCK_D, True)  # [BLOCK_N, BLOCK_D]
        last = (seqlen - 1) // BLOCK_M * BLOCK_M
        dk, dv = _add_dkdv(
            dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, start, stride_token, stride_dout_token,
            last, seqlen, first_key, scale_log2, seed, stream, head, keep_threshold,
            head_dim, BLOCK_D, IS_PADDED, BLOCK_M, BLOCK_N, True, CAUSAL, HAS_DROPOUT, PRECISION,
        )  # fmt: skip
        first = first_key // BLOCK_M * BLOCK_M if CAUSAL else 0
        if first < last:
            for row in range(first, last, BLOCK_M):
                dk, dv = _add_dkdv(
                    dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, start, stride_token, stride_dout_token,
                    row, seqlen, first_key, scale_log2, seed, stream, head, keep_threshold,
                    head_dim, BLOCK_D, IS_PADDED, BLOCK_M, BLOCK_N, False, CAUSAL, HAS_DROPOUT, PRECISION,
                )  # fmt: skip

    # A row of dk and dv depends on its own key alone: rows that are not keys are zeroed here rather than masked above.
    is_key = (first_key + tl.arange(0, BLOCK_N) < num_keys)[:, None]  # [BLOCK_N, 1]
    dk = tl.where(is_key, dk * (softmax_scale * keep_scale), 0.0)
    dv = tl.where(is_key, dv * keep_scale, 0.0)
    dk_ptr = dqkv_ptr + (first_token * 3 * H + H + head) * head_dim
    store_rows(dk_ptr, dk, 3 * H * head_dim, seqlen - first_key, BLOCK_N, head_dim, BLOCK_D)
    store_rows(dk_ptr + H * head_dim, dv, 3 * H * head_dim, seqlen - first_key, BLOCK_N, head_dim, BLOCK_D)


@triton.jit
def _add_dkdv(
    dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, start, stride_token, stride_dout_token,
    row, seqlen, first_key, scale_log2, seed, stream, head, keep_threshold,
    head_dim, BLOCK_D: tl.constexpr, IS_PADDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv [BLOCK_N, BLOCK_D] plus the contribution of the BLOCK_M rows from `row`, MASKED where some may not exist."""
    token = start + row
    token_64 = token.to(tl.int64)
    offs_m = tl.arange(0, BLOCK_M)
    q_ptr += token_64 * stride_token
    do_ptr += token_64 * stride_dout_token
    rows = seqlen - row if MASKED else BLOCK_M
    q = load_rows(q_ptr, stride_token, rows, BLOCK_M, head_dim, BLOCK_D, MASKED or IS_PADDED)  # [BLOCK_M, BLOCK_D]
    do = load_rows(do_ptr, stride_dout_token, rows, BLOCK_M, head_dim, BLOCK_D, MASKED or IS_PADDED)  # [BLOCK_M, BLOCK_D]
    if MASKED:
        lse = tl.load(lse_ptr + token + offs_m, mask=offs_m < rows, other=float("inf"))  # [BLOCK_M]
        delta = tl.load(delta_ptr + token + offs_m, mask=offs_m < rows, other=0.0)  # [BLOCK_M]
    else:
        lse = tl.load(lse_ptr + token + offs_m)  # [BLOCK_M]
        delta = tl.load(delta_ptr + token + offs_m)  # [BLOCK_M]
    s = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # [BLOCK_N, BLOCK_M]
    p = tl.exp2(s * scale_log2 - lse[None, :])  # [BLOCK_N, BLOCK_M]
    if CAUSAL:
        p = tl.where(first_key + tl.arange(0, BLOCK_N)[:, None] <= row + offs_m[None, :], p, 0.0)
    dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)  # [BLOCK_N, BLOCK_M]
    p_kept = p
    if HAS_DROPOUT:
        keep = dropout_keep(seed, stream, head, token, first_key, keep_threshold, BLOCK_M, BLOCK_N)  # [BLOCK_M, BLOCK_N]
        keep = tl.trans(keep.to(tl.int8)) != 0  # eight-bit: the transposition goes through shared memory
        p_kept = tl.where(keep, p, 0.0)
        dp = tl.where(keep, dp, 0.0)
    dv = tl.dot(p_kept.to(do.dtype), do, dv, input_precision=PRECISION)  # [BLOCK_N, BLOCK_D]
    ds = (p * (dp - delta[None, :])).to(q.dtype)  # [BLOCK_N, BLOCK_M]
    dk = tl.dot(ds, q, dk, input_precision=PRECISION)  # [BLOCK_N, BLOCK_D]
    return dk, dv


def launch_backward(dout, qkv, out, lse, tiles, max_seqlen, softmax_scale, causal, dropout_p, seed, stream):
    """dqkv of the operator `attention_bwd`, contiguous."""
    T, _, H, D = qkv.shape
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    if T == 0:
        return dqkv
    dout, qkv, out, lse = with_aligned_rows(dout), with_aligned_rows(qkv), aligned(out), aligned(lse)
    seed = aligned(seed) if dropout_p > 0 else None
    problem = Problem.of(qkv, max_seqlen, dropout_p, causal)
    config = BackwardConfig.choose(problem)
    strides = (*qkv.stride()[:3], *dout.stride()[:2])
    scalars = (T, H, D, *strides, softmax_scale, softmax_scale * LOG2_E, threshold(dropout_p), scale(dropout_p), stream)
    BLOCK_D = triton.next_power_of_2(D)
    flags = dict(BLOCK_D=BLOCK_D, IS_PADDED=D < BLOCK_D, CAUSAL=causal, HAS_DROPOUT=dropout_p > 0, PRECISION=problem.precision)
    min_seqlen = 1  # shorter sequences have their gradients
    if config.short is not None and packs_short_sequences(tiles, T, max_seqlen):
        _, _, packs, spans = tiles
        tile = config.short
        attention_bwd_short_kernel[grid(packs, H, 1)](
            qkv, dout, lse, packs, spans, seed, dqkv, *scalars, **flags, BLOCK=tile.BLOCK_M, **tile.options
        )
        min_seqlen = tile.BLOCK_M + 1
    for tile in config.whole_tiles_for(max_seqlen):
        if tile.BLOCK_M < min_seqlen:
            continue
        tile_list = tiles[TILE_ROWS.index(tile.BLOCK_M)]
        attention_bwd_whole_kernel[grid(tile_list, H, 1)](
            qkv, dout, lse, tile_list, seed, dqkv, *scalars, **flags, BLOCK=tile.BLOCK_M, MIN_SEQLEN=min_seqlen, **tile.options
        )
        min_seqlen = tile.BLOCK_M + 1
    if max_seqlen < min_seqlen:
        return dqkv
    delta = torch.empty_like(lse)
    tile_list, flags["MIN_SEQLEN"] = tiles[0], min_seqlen
    tile = config.dq.capped_for_causal(causal)
    blocks_per_tile = TILE_ROWS[0] // tile.BLOCK_M
    attention_bwd_dq_kernel[grid(tile_list, H, blocks_per_tile)](
        qkv, out, dout, lse, tile_list, seed, delta, dqkv, *scalars, **flags,
        BLOCK_M=tile.BLOCK_M, BLOCK_N=tile.BLOCK_N, BLOCKS_PER_TILE=blocks_per_tile, **tile.options,
    )  # fmt: skip
    tile = config.dkdv
    blocks_per_tile = TILE_ROWS[0] // tile.BLOCK_N
    attention_bwd_dkdv_kernel[grid(tile_list, H, blocks_per_tile)](
        qkv, dout, lse, delta, tile_list, seed, dqkv, *scalars, **flags,
        BLOCK_M=tile.BLOCK_M, BLOCK_N=tile.BLOCK_N, BLOCKS_PER_TILE=blocks_per_tile, **tile.options,
    )  # fmt: skip
    return dqkv
