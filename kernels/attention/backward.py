"""The gradients of attention, deterministic and without atomics: each row of dqkv has one writer.

Where whole sequences fit a tile, one program makes dq, dk and dv of a sequence and head, or of the short sequences that share
the tile (`attention_short`). Longer ones take two kernels: the first makes dq and, on the way, delta = rowsum(out * dout); the
second makes dk and dv.
dk and dv are formed from the transposed scores, so that both products take their left operand from registers.
"""

import torch
import triton
import triton.language as tl

from ..dropout import scale, threshold
from .blocks import attends, grid, keep_scores, load_rows, locate, store_rows
from .config import LOG2_E, BackwardConfig, Problem
from .schedule import TILE_ROWS, packs_short_sequences
from .short import attention_bwd_short_kernel


@triton.jit(do_not_specialize=["T", "keep_threshold", "stream"])
def attention_bwd_whole_kernel(
    qkv_ptr, dout_ptr, lse_ptr, tiles_ptr, seed_ptr, dqkv_ptr,
    T, H, stride_token, stride_part, stride_head, stride_dout_token, stride_dout_head,
    softmax_scale, scale_log2, keep_threshold, keep_scale, stream,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, MORE_THAN: tl.constexpr, CAUSAL: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq, dk and dv of one head of a sequence of more than MORE_THAN and at most BLOCK rows."""
    head, start, rows, keys, _ = locate(tiles_ptr, H, BLOCK, 1)
    if (rows <= MORE_THAN) | (rows > BLOCK):
        return
    first_token = start.to(tl.int64)
    q_ptr = qkv_ptr + first_token * stride_token + head * tl.cast(stride_head, tl.int64)
    k_ptr = q_ptr + tl.cast(stride_part, tl.int64)
    v_ptr = k_ptr + tl.cast(stride_part, tl.int64)
    do_ptr = dout_ptr + first_token * stride_dout_token + head * tl.cast(stride_dout_head, tl.int64)
    q = load_rows(q_ptr, stride_token, rows, BLOCK, HEAD_DIM, BLOCK_D, True)
    k = load_rows(k_ptr, stride_token, keys, BLOCK, HEAD_DIM, BLOCK_D, True)
    v = load_rows(v_ptr, stride_token, keys, BLOCK, HEAD_DIM, BLOCK_D, True)
    do = load_rows(do_ptr, stride_dout_token, rows, BLOCK, HEAD_DIM, BLOCK_D, True)
    offs = tl.arange(0, BLOCK)
    # Rows past the end get lse = inf, so that their probabilities are 0.
    lse = tl.load(lse_ptr + head.to(tl.int64) * T + start + offs, mask=offs < rows, other=float("inf"))

    # Transposed scores and what follows from them: [keys, rows].
    s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    p = tl.exp2(s * scale_log2 - lse[None, :])
    p = tl.where(attends(offs[None, :], offs[:, None], keys, CAUSAL), p, 0.0)
    dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
    p_kept = p
    if HAS_DROPOUT:
        keep = keep_scores(tl.load(seed_ptr), stream, head, start, 0, keep_threshold, BLOCK, BLOCK)
        keep = tl.trans(keep.to(tl.int8)) != 0
        p_kept = tl.where(keep, p, 0.0)
        dp = tl.where(keep, dp, 0.0)
    delta = tl.sum(p * dp, axis=0)
    ds = (p * (dp - delta[None, :])).to(q.dtype)  # keep_scale waits for the last step
    dv = tl.dot(p_kept.to(do.dtype), do, input_precision=PRECISION) * keep_scale
    dk = tl.dot(ds, q, input_precision=PRECISION) * (softmax_scale * keep_scale)
    dq = tl.dot(tl.trans(ds), k, input_precision=PRECISION) * (softmax_scale * keep_scale)

    dq_ptr = dqkv_ptr + (first_token * 3 * H + head) * HEAD_DIM
    store_rows(dq_ptr, dq, 3 * H * HEAD_DIM, rows, BLOCK, HEAD_DIM, BLOCK_D)
    store_rows(dq_ptr + H * HEAD_DIM, dk, 3 * H * HEAD_DIM, rows, BLOCK, HEAD_DIM, BLOCK_D)
    store_rows(dq_ptr + 2 * H * HEAD_DIM, dv, 3 * H * HEAD_DIM, rows, BLOCK, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=["T", "keep_threshold", "stream"])
def attention_bwd_dq_kernel(
    qkv_ptr, out_ptr, dout_ptr, lse_ptr, tiles_ptr, seed_ptr, delta_ptr, dqkv_ptr,
    T, H, stride_token, stride_part, stride_head, stride_dout_token, stride_dout_head,
    softmax_scale, scale_log2, keep_threshold, keep_scale, stream,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PIECES: tl.constexpr,
    MORE_THAN: tl.constexpr, CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq and delta of BLOCK_M rows of one head of a sequence of more than MORE_THAN rows."""
    head, start, rows, keys, first_row = locate(tiles_ptr, H, BLOCK_M, PIECES)
    if (rows <= MORE_THAN) | (first_row >= rows):
        return
    token = start + first_row
    token_64 = token.to(tl.int64)
    rows_left = rows - first_row
    seed = tl.load(seed_ptr) if HAS_DROPOUT else 0
    q_ptr = qkv_ptr + head * tl.cast(stride_head, tl.int64)
    k_ptr = q_ptr + tl.cast(stride_part, tl.int64)
    v_ptr = k_ptr + tl.cast(stride_part, tl.int64)
    o_ptr = out_ptr + (token_64 * H + head) * HEAD_DIM
    do_ptr = dout_ptr + token_64 * stride_dout_token + head * tl.cast(stride_dout_head, tl.int64)
    q = load_rows(q_ptr + token_64 * stride_token, stride_token, rows_left, BLOCK_M, HEAD_DIM, BLOCK_D, True)
    o = load_rows(o_ptr, H * HEAD_DIM, rows_left, BLOCK_M, HEAD_DIM, BLOCK_D, True)
    do = load_rows(do_ptr, stride_dout_token, rows_left, BLOCK_M, HEAD_DIM, BLOCK_D, True)
    offs_m = tl.arange(0, BLOCK_M)
    place = head.to(tl.int64) * T + token + offs_m
    lse = tl.load(lse_ptr + place, mask=offs_m < rows_left, other=float("inf"))
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), axis=1)
    if HAS_DROPOUT:
        delta *= (65536 - keep_threshold) * (1.0 / 65536)
    tl.store(delta_ptr + place, delta, mask=offs_m < rows_left)

    # As in the forward: the last block, which may need a mask, then whole ones.
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    last = tl.minimum(keys - 1, first_row + BLOCK_M - 1) if CAUSAL else keys - 1
    last = last // BLOCK_N * BLOCK_N
    if keys > 0:
        dq = _add_dq(
            dq, q, do, lse, delta, k_ptr, v_ptr, start, stride_token, first_row, last, keys,
            scale_log2, seed, stream, head, token, keep_threshold,
            HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, True, CAUSAL, HAS_DROPOUT, PRECISION,
        )  # fmt: skip
    if last > 0:
        for key in range(0, last, BLOCK_N):
            dq = _add_dq(
                dq, q, do, lse, delta, k_ptr, v_ptr, start, stride_token, first_row, key, keys,
                scale_log2, seed, stream, head, token, keep_threshold,
                HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, False, CAUSAL, HAS_DROPOUT, PRECISION,
            )  # fmt: skip

    dq *= softmax_scale * keep_scale
    dq_ptr = dqkv_ptr + (token_64 * 3 * H + head) * HEAD_DIM
    store_rows(dq_ptr, dq, 3 * H * HEAD_DIM, rows_left, BLOCK_M, HEAD_DIM, BLOCK_D)


@triton.jit
def _add_dq(
    dq, q, do, lse, delta, k_ptr, v_ptr, start, stride_token, first_row, key, keys,
    scale_log2, seed, stream, head, token, keep_threshold,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq plus what the BLOCK_N keys from `key` add to it."""
    block = (start + key).to(tl.int64) * stride_token
    k = load_rows(k_ptr + block, stride_token, keys - key, BLOCK_N, HEAD_DIM, BLOCK_D, MASKED)
    v = load_rows(v_ptr + block, stride_token, keys - key, BLOCK_N, HEAD_DIM, BLOCK_D, MASKED)
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    p = tl.exp2(s * scale_log2 - lse[:, None])
    if MASKED:
        row = first_row + tl.arange(0, BLOCK_M)[:, None]
        p = tl.where(attends(row, key + tl.arange(0, BLOCK_N)[None, :], keys, CAUSAL), p, 0.0)
    dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
    if HAS_DROPOUT:
        dp = tl.where(keep_scores(seed, stream, head, token, key, keep_threshold, BLOCK_M, BLOCK_N), dp, 0.0)
    ds = (p * (dp - delta[:, None])).to(k.dtype)
    return tl.dot(ds, k, dq, input_precision=PRECISION)


@triton.jit(do_not_specialize=["T", "keep_threshold", "stream"])
def attention_bwd_dkdv_kernel(
    qkv_ptr, dout_ptr, lse_ptr, delta_ptr, tiles_ptr, seed_ptr, dqkv_ptr,
    T, H, stride_token, stride_part, stride_head, stride_dout_token, stride_dout_head,
    softmax_scale, scale_log2, keep_threshold, keep_scale, stream,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PIECES: tl.constexpr,
    MORE_THAN: tl.constexpr, CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of BLOCK_N rows of one head of such a sequence; zeros for rows that are not keys."""
    head, start, rows, keys, first_key = locate(tiles_ptr, H, BLOCK_N, PIECES)
    if (rows <= MORE_THAN) | (first_key >= rows):
        return
    seed = tl.load(seed_ptr) if HAS_DROPOUT else 0
    first_token = start.to(tl.int64) + first_key
    q_ptr = qkv_ptr + head * tl.cast(stride_head, tl.int64)
    k_ptr = q_ptr + first_token * stride_token + tl.cast(stride_part, tl.int64)
    v_ptr = k_ptr + tl.cast(stride_part, tl.int64)
    do_ptr = dout_ptr + head * tl.cast(stride_dout_head, tl.int64)
    lse_ptr += head.to(tl.int64) * T
    delta_ptr += head.to(tl.int64) * T

    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if first_key < keys:
        k = load_rows(k_ptr, stride_token, keys - first_key, BLOCK_N, HEAD_DIM, BLOCK_D, True)
        v = load_rows(v_ptr, stride_token, keys - first_key, BLOCK_N, HEAD_DIM, BLOCK_D, True)
        last = (rows - 1) // BLOCK_M * BLOCK_M
        dk, dv = _add_dkdv(
            dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, start, stride_token, stride_dout_token,
            last, rows, first_key, scale_log2, seed, stream, head, keep_threshold,
            HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, True, CAUSAL, HAS_DROPOUT, PRECISION,
        )  # fmt: skip
        first = first_key // BLOCK_M * BLOCK_M if CAUSAL else 0
        if first < last:
            for row in range(first, last, BLOCK_M):
                dk, dv = _add_dkdv(
                    dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, start, stride_token, stride_dout_token,
                    row, rows, first_key, scale_log2, seed, stream, head, keep_threshold,
                    HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, False, CAUSAL, HAS_DROPOUT, PRECISION,
                )  # fmt: skip

    # A row of dk and dv depends on its own key alone: rows that are no keys are wiped here rather than masked above.
    is_key = (first_key + tl.arange(0, BLOCK_N) < keys)[:, None]
    dk = tl.where(is_key, dk * (softmax_scale * keep_scale), 0.0)
    dv = tl.where(is_key, dv * keep_scale, 0.0)
    dk_ptr = dqkv_ptr + (first_token * 3 * H + H + head) * HEAD_DIM
    store_rows(dk_ptr, dk, 3 * H * HEAD_DIM, rows - first_key, BLOCK_N, HEAD_DIM, BLOCK_D)
    store_rows(dk_ptr + H * HEAD_DIM, dv, 3 * H * HEAD_DIM, rows - first_key, BLOCK_N, HEAD_DIM, BLOCK_D)


@triton.jit
def _add_dkdv(
    dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, start, stride_token, stride_dout_token,
    row, rows, first_key, scale_log2, seed, stream, head, keep_threshold,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv plus what the BLOCK_M rows from `row` add to them. MASKED: some of these rows may lie past the end."""
    token = start + row
    token_64 = token.to(tl.int64)
    offs_m = tl.arange(0, BLOCK_M)
    q_ptr += token_64 * stride_token
    do_ptr += token_64 * stride_dout_token
    q = load_rows(q_ptr, stride_token, rows - row, BLOCK_M, HEAD_DIM, BLOCK_D, MASKED)
    do = load_rows(do_ptr, stride_dout_token, rows - row, BLOCK_M, HEAD_DIM, BLOCK_D, MASKED)
    if MASKED:
        lse = tl.load(lse_ptr + token + offs_m, mask=offs_m < rows - row, other=float("inf"))
        delta = tl.load(delta_ptr + token + offs_m, mask=offs_m < rows - row, other=0.0)
    else:
        lse = tl.load(lse_ptr + token + offs_m)
        delta = tl.load(delta_ptr + token + offs_m)
    s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    p = tl.exp2(s * scale_log2 - lse[None, :])
    if CAUSAL:
        p = tl.where(first_key + tl.arange(0, BLOCK_N)[:, None] <= row + offs_m[None, :], p, 0.0)
    dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
    p_kept = p
    if HAS_DROPOUT:
        keep = keep_scores(seed, stream, head, token, first_key, keep_threshold, BLOCK_M, BLOCK_N)
        keep = tl.trans(keep.to(tl.int8)) != 0  # eight-bit: the transposition goes through shared memory
        p_kept = tl.where(keep, p, 0.0)
        dp = tl.where(keep, dp, 0.0)
    dv = tl.dot(p_kept.to(do.dtype), do, dv, input_precision=PRECISION)
    ds = (p * (dp - delta[None, :])).to(q.dtype)
    dk = tl.dot(ds, q, dk, input_precision=PRECISION)
    return dk, dv


def launch_backward(dout, qkv, out, lse, tiles, max_seqlen, softmax_scale, causal, dropout_p, seed, stream):
    """dqkv of the operator `attention_bwd`, contiguous."""
    T, _, H, D = qkv.shape
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    if T == 0:
        return dqkv
    problem = Problem.of(qkv, max_seqlen, dropout_p)
    config = BackwardConfig.choose(problem)
    strides = (*qkv.stride()[:3], *dout.stride()[:2])
    scalars = (T, H, *strides, softmax_scale, softmax_scale * LOG2_E, threshold(dropout_p), scale(dropout_p), stream)
    flags = dict(
        HEAD_DIM=D, BLOCK_D=triton.next_power_of_2(D), CAUSAL=causal, HAS_DROPOUT=dropout_p > 0, PRECISION=problem.precision
    )
    done = 0  # sequences of at most this many rows have their gradients
    short = config.short if packs_short_sequences(tiles, T, max_seqlen) else None
    if short is not None:
        _, _, packs, spans = tiles
        attention_bwd_short_kernel[grid(packs, H, 1)](
            qkv, dout, lse, packs, spans, seed, dqkv, *scalars, **flags, BLOCK=short.BLOCK_M, **short.options
        )
        done = short.BLOCK_M
    for tile in config.whole_tiles_for(max_seqlen):
        if tile.BLOCK_M <= done:
            continue
        tile_list = tiles[TILE_ROWS.index(tile.BLOCK_M)]
        attention_bwd_whole_kernel[grid(tile_list, H, 1)](
            qkv, dout, lse, tile_list, seed, dqkv, *scalars, **flags, BLOCK=tile.BLOCK_M, MORE_THAN=done, **tile.options
        )
        done = tile.BLOCK_M
    if max_seqlen <= done:
        return dqkv
    delta = torch.empty_like(lse)
    tile_list, flags["MORE_THAN"] = tiles[0], done
    tile = config.dq.capped_for_causal(causal)
    pieces = TILE_ROWS[0] // tile.BLOCK_M
    attention_bwd_dq_kernel[grid(tile_list, H, pieces)](
        qkv, out, dout, lse, tile_list, seed, delta, dqkv, *scalars, **flags,
        BLOCK_M=tile.BLOCK_M, BLOCK_N=tile.BLOCK_N, PIECES=pieces, **tile.options,
    )  # fmt: skip
    tile, pieces = config.dkdv, TILE_ROWS[0] // config.dkdv.BLOCK_N
    attention_bwd_dkdv_kernel[grid(tile_list, H, pieces)](
        qkv, dout, lse, delta, tile_list, seed, dqkv, *scalars, **flags,
        BLOCK_M=tile.BLOCK_M, BLOCK_N=tile.BLOCK_N, PIECES=pieces, **tile.options,
    )  # fmt: skip
    return dqkv
