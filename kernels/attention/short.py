"""Attention of sequences of at most 64 rows, several to a tile: forward, and backward in one program.

A tile holds neighbouring whole sequences, so it is a run of consecutive rows of the packed batch, and a row attends to the
columns of its own sequence (`packing` builds both lists).
A probability of zero would not keep NaN or inf of one sequence from the others of its tile (0 * NaN is NaN). Rows that are not
finite are therefore zeroed before products that sum over tokens, and their own sequence gets NaN back.
The position of a sequence in its tile, and so the order of its sums, depends on its neighbours: batch-invariant mode does not
use these kernels.
"""

import triton
import triton.language as tl

from .blocks import (
    SCALARS,
    dout_strides,
    dropout_keep_packed,
    known_multiple,
    load_rows,
    qkv_strides,
    softmax_numerator,
    store_rows,
)


@triton.jit(do_not_specialize=SCALARS)
def attention_fwd_short_kernel(
    qkv_ptr, packs_ptr, spans_ptr, seed_ptr, out_ptr, lse_ptr,
    T, H, head_dim, stride_token, stride_part: tl.int64, stride_head: tl.int64, scale_log2, keep_threshold, keep_scale, stream,
    BLOCK_D: tl.constexpr, IS_PADDED: tl.constexpr, BLOCK: tl.constexpr, CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    SAVE_LSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out, and lse where SAVE_LSE, of one head of a tile."""
    head, start, num_rows = _locate_pack(packs_ptr, H)
    if num_rows == 0:
        return
    head_dim = known_multiple(head_dim, 8) if IS_PADDED else BLOCK_D
    stride_token, stride_part, stride_head = qkv_strides(qkv_ptr, stride_token, stride_part, stride_head)
    first_token = start.to(tl.int64)
    q_ptr = qkv_ptr + first_token * stride_token + head * stride_head
    k_ptr = q_ptr + stride_part
    v_ptr = k_ptr + stride_part
    q = load_rows(q_ptr, stride_token, num_rows, BLOCK, head_dim, BLOCK_D, True)  # [BLOCK, BLOCK_D]
    k = load_rows(k_ptr, stride_token, num_rows, BLOCK, head_dim, BLOCK_D, True)  # [BLOCK, BLOCK_D]
    v = load_rows(v_ptr, stride_token, num_rows, BLOCK, head_dim, BLOCK_D, True)  # [BLOCK, BLOCK_D]
    first_column, num_keys = _load_spans(spans_ptr, T, start, num_rows, BLOCK)  # [BLOCK]
    v, nan = _zero_nonfinite_rows(v)

    # m_i is the maximum: of the raw scores in float32, which is more exact, else of the scores scaled for exp2.
    RAW_MAX: tl.constexpr = q.dtype == tl.float32
    score_to_m = 1.0 if RAW_MAX else scale_log2
    m_to_log2 = scale_log2 if RAW_MAX else 1.0
    offs = tl.arange(0, BLOCK)
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK, BLOCK]
    mask = _pack_mask(offs[:, None], offs[None, :], first_column[:, None], num_keys[:, None], CAUSAL)
    s = tl.where(mask, s + nan[None, :], float("-inf"))
    m_i = tl.where(num_keys > 0, tl.max(s, axis=1) * score_to_m, 0.0)  # [BLOCK]
    p = softmax_numerator(s, m_i, scale_log2, RAW_MAX)  # [BLOCK, BLOCK]
    l_i = tl.where(num_keys > 0, tl.sum(p, axis=1), 1.0)  # [BLOCK]
    if HAS_DROPOUT:
        seed = tl.load(seed_ptr)  # scalar
        p = tl.where(dropout_keep_packed(seed, stream, head, start, first_column, keep_threshold, BLOCK), p, 0.0)
    acc = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)  # [BLOCK, BLOCK_D]
    if RAW_MAX:
        acc = acc / l_i[:, None] * keep_scale
    else:
        acc *= (keep_scale / l_i)[:, None]
    store_rows(out_ptr + (first_token * H + head) * head_dim, acc, H * head_dim, num_rows, BLOCK, head_dim, BLOCK_D)
    if SAVE_LSE:
        lse = tl.where(num_keys > 0, m_i * m_to_log2 + tl.log2(l_i), float("inf"))  # [BLOCK]
        tl.store(lse_ptr + head.to(tl.int64) * T + start + offs, lse, mask=offs < num_rows)


@triton.jit(do_not_specialize=SCALARS)
def attention_bwd_short_kernel(
    qkv_ptr, dout_ptr, lse_ptr, packs_ptr, spans_ptr, seed_ptr, dqkv_ptr,
    T, H, head_dim, stride_token, stride_part: tl.int64, stride_head: tl.int64, stride_dout_token, stride_dout_head: tl.int64,
    softmax_scale, scale_log2, keep_threshold, keep_scale, stream,
    BLOCK_D: tl.constexpr, IS_PADDED: tl.constexpr, BLOCK: tl.constexpr, CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dq, dk and dv of one head of a tile. No product sums v over tokens, so its NaN stay in their sequence."""
    head, start, num_rows = _locate_pack(packs_ptr, H)
    if num_rows == 0:
        return
    head_dim = known_multiple(head_dim, 8) if IS_PADDED else BLOCK_D
    stride_token, stride_part, stride_head = qkv_strides(qkv_ptr, stride_token, stride_part, stride_head)
    stride_dout_token, stride_dout_head = dout_strides(dout_ptr, stride_dout_token, stride_dout_head)
    first_token = start.to(tl.int64)
    q_ptr = qkv_ptr + first_token * stride_token + head * stride_head
    k_ptr = q_ptr + stride_part
    v_ptr = k_ptr + stride_part
    do_ptr = dout_ptr + first_token * stride_dout_token + head * stride_dout_head
    q = load_rows(q_ptr, stride_token, num_rows, BLOCK, head_dim, BLOCK_D, True)  # [BLOCK, BLOCK_D]
    k = load_rows(k_ptr, stride_token, num_rows, BLOCK, head_dim, BLOCK_D, True)  # [BLOCK, BLOCK_D]
    v = load_rows(v_ptr, stride_token, num_rows, BLOCK, head_dim, BLOCK_D, True)  # [BLOCK, BLOCK_D]
    do = load_rows(do_ptr, stride_dout_token, num_rows, BLOCK, head_dim, BLOCK_D, True)  # [BLOCK, BLOCK_D]
    first_column, num_keys = _load_spans(spans_ptr, T, start, num_rows, BLOCK)  # [BLOCK]
    offs = tl.arange(0, BLOCK)
    lse_ptr += head.to(tl.int64) * T
    lse = tl.load(lse_ptr + start + offs, mask=offs < num_rows, other=float("inf"))  # [BLOCK]
    q, nan_q = _zero_nonfinite_rows(q)
    k, nan_k = _zero_nonfinite_rows(k)
    do, nan_do = _zero_nonfinite_rows(do)
    lse += nan_q + nan_do

    # Scores are transposed: [keys, rows].
    mask = _pack_mask(offs[None, :], offs[:, None], first_column[None, :], num_keys[None, :], CAUSAL)
    s = tl.dot(k, tl.trans(q), input_precision=PRECISION) + nan_k[:, None]  # [BLOCK, BLOCK]
    p = tl.where(mask, tl.exp2(s * scale_log2 - lse[None, :]), 0.0)
    dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)  # [BLOCK, BLOCK]
    p_kept = p
    if HAS_DROPOUT:
        seed = tl.load(seed_ptr)  # scalar
        keep = dropout_keep_packed(seed, stream, head, start, first_column, keep_threshold, BLOCK)  # [rows, keys]
        keep = tl.trans(keep.to(tl.int8)) != 0
        p_kept = tl.where(keep, p, 0.0)
    # Only where p is positive: dp and delta of other sequences may be NaN. Testing p rather than mask saves registers.
    p_dp = tl.where(p_kept > 0.0, p_kept * dp, p_kept)
    delta = tl.sum(p_dp, axis=0)  # [BLOCK]
    ds = tl.where(p > 0.0, p_dp - p * delta[None, :], p).to(q.dtype)  # [BLOCK, BLOCK], without keep_scale
    dv = tl.dot(p_kept.to(do.dtype), do, input_precision=PRECISION) * keep_scale  # [BLOCK, BLOCK_D]
    dk = tl.dot(ds, q, input_precision=PRECISION) * (softmax_scale * keep_scale)  # [BLOCK, BLOCK_D]
    dq = tl.dot(tl.trans(ds), k, input_precision=PRECISION) * (softmax_scale * keep_scale)  # [BLOCK, BLOCK_D]

    dq_ptr = dqkv_ptr + (first_token * 3 * H + head) * head_dim
    store_rows(dq_ptr, dq, 3 * H * head_dim, num_rows, BLOCK, head_dim, BLOCK_D)
    store_rows(dq_ptr + H * head_dim, dk, 3 * H * head_dim, num_rows, BLOCK, head_dim, BLOCK_D)
    store_rows(dq_ptr + 2 * H * head_dim, dv, 3 * H * head_dim, num_rows, BLOCK, head_dim, BLOCK_D)


@triton.jit
def _locate_pack(packs_ptr, H):
    """(head, first token, rows) of this program's tile, all scalars. Consecutive programs take consecutive heads."""
    program = tl.program_id(0)
    pack_ptr = packs_ptr + program // H * 2
    return program % H, tl.load(pack_ptr), tl.load(pack_ptr + 1)  # scalars


@triton.jit
def _load_spans(spans_ptr, T, start, num_rows, BLOCK: tl.constexpr):
    """(first column, number of keys) of the sequence of each row, int32 [BLOCK]; no keys past the last row."""
    offs = tl.arange(0, BLOCK)
    first = tl.load(spans_ptr + start + offs, mask=offs < num_rows, other=0) - start  # [BLOCK]
    num_keys = tl.load(spans_ptr + T + start + offs, mask=offs < num_rows, other=0)  # [BLOCK]
    return tl.where(offs < num_rows, first, 0), num_keys


@triton.jit
def _pack_mask(row, column, first_column, num_keys, CAUSAL: tl.constexpr):
    """Whether a row attends to a column of its tile, all arguments broadcast against each other."""
    mask = (column - first_column).to(tl.uint32, bitcast=True) < num_keys.to(tl.uint32, bitcast=True)
    if CAUSAL:
        mask = mask & (column <= row)
    return mask


@triton.jit
def _zero_nonfinite_rows(x):
    """x [M, N] with zeros in rows that hold NaN or inf, and float32 [M]: NaN for each such row, 0 for the others."""
    nan = tl.sum((x - x).to(tl.float32), axis=1)  # [M]
    return tl.where((nan == 0.0)[:, None], x, 0.0), nan
