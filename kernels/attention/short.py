"""Attention of sequences of at most 64 rows, several to a tile: forward, and backward in one program.

A tile holds whole neighbouring sequences, so it is a plain run of rows of the packed batch; a row attends to the columns of its
own sequence (`attention_packing` makes both lists). Nothing of one sequence reaches another of its tile: what is not finite is
taken out of the products over tokens, where a probability of zero would not stop it, and put back into its own sequence as
NaN. Where a sequence lies in its tile, and so the order of its sums, depends on its neighbours: batch-invariant mode does
without these kernels.
"""

import triton
import triton.language as tl

from .blocks import keep_packed, load_rows, store_rows, weights


@triton.jit(do_not_specialize=["T", "keep_threshold", "stream"])
def attention_fwd_short_kernel(
    qkv_ptr, packs_ptr, spans_ptr, seed_ptr, out_ptr, lse_ptr,
    T, H, stride_token, stride_part, stride_head, scale_log2, keep_threshold, keep_scale, stream,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    SAVE_LSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out, and lse if asked for, of one head of a tile."""
    head, start, rows = _locate(packs_ptr, H)
    if rows == 0:
        return
    first_token = start.to(tl.int64)
    q_ptr = qkv_ptr + first_token * stride_token + head * tl.cast(stride_head, tl.int64)
    k_ptr = q_ptr + tl.cast(stride_part, tl.int64)
    v_ptr = k_ptr + tl.cast(stride_part, tl.int64)
    q = load_rows(q_ptr, stride_token, rows, BLOCK, HEAD_DIM, BLOCK_D, True)
    k = load_rows(k_ptr, stride_token, rows, BLOCK, HEAD_DIM, BLOCK_D, True)
    v = load_rows(v_ptr, stride_token, rows, BLOCK, HEAD_DIM, BLOCK_D, True)
    first_key, keys = _spans(spans_ptr, T, start, rows, BLOCK)
    v, nan = _without_nan(v)

    RAW_MAX: tl.constexpr = q.dtype == tl.float32
    to_m = 1.0 if RAW_MAX else scale_log2
    from_m = scale_log2 if RAW_MAX else 1.0
    offs = tl.arange(0, BLOCK)
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    sees = _attends(offs[:, None], offs[None, :], first_key[:, None], keys[:, None], CAUSAL)
    s = tl.where(sees, s + nan[None, :], float("-inf"))
    m_i = tl.where(keys > 0, tl.max(s, axis=1) * to_m, 0.0)
    p = weights(s, m_i, scale_log2, RAW_MAX)
    l_i = tl.where(keys > 0, tl.sum(p, axis=1), 1.0)
    if HAS_DROPOUT:
        p = tl.where(keep_packed(tl.load(seed_ptr), stream, head, start, first_key, keep_threshold, BLOCK), p, 0.0)
    acc = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
    if RAW_MAX:
        acc = acc / l_i[:, None] * keep_scale
    else:
        acc *= (keep_scale / l_i)[:, None]
    store_rows(out_ptr + (first_token * H + head) * HEAD_DIM, acc, H * HEAD_DIM, rows, BLOCK, HEAD_DIM, BLOCK_D)
    if SAVE_LSE:
        lse = tl.where(keys > 0, m_i * from_m + tl.log2(l_i), float("inf"))
        tl.store(lse_ptr + head.to(tl.int64) * T + start + offs, lse, mask=offs < rows)


@triton.jit(do_not_specialize=["T", "keep_threshold", "stream"])
def attention_bwd_short_kernel(
    qkv_ptr, dout_ptr, lse_ptr, packs_ptr, spans_ptr, seed_ptr, dqkv_ptr,
    T, H, stride_token, stride_part, stride_head, stride_dout_token, stride_dout_head,
    softmax_scale, scale_log2, keep_threshold, keep_scale, stream,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dq, dk and dv of one head of a tile. v is in no product over tokens, so its NaN stay in their sequence by themselves."""
    head, start, rows = _locate(packs_ptr, H)
    if rows == 0:
        return
    first_token = start.to(tl.int64)
    q_ptr = qkv_ptr + first_token * stride_token + head * tl.cast(stride_head, tl.int64)
    k_ptr = q_ptr + tl.cast(stride_part, tl.int64)
    v_ptr = k_ptr + tl.cast(stride_part, tl.int64)
    do_ptr = dout_ptr + first_token * stride_dout_token + head * tl.cast(stride_dout_head, tl.int64)
    q = load_rows(q_ptr, stride_token, rows, BLOCK, HEAD_DIM, BLOCK_D, True)
    k = load_rows(k_ptr, stride_token, rows, BLOCK, HEAD_DIM, BLOCK_D, True)
    v = load_rows(v_ptr, stride_token, rows, BLOCK, HEAD_DIM, BLOCK_D, True)
    do = load_rows(do_ptr, stride_dout_token, rows, BLOCK, HEAD_DIM, BLOCK_D, True)
    first_key, keys = _spans(spans_ptr, T, start, rows, BLOCK)
    offs = tl.arange(0, BLOCK)
    lse = tl.load(lse_ptr + head.to(tl.int64) * T + start + offs, mask=offs < rows, other=float("inf"))
    q, nan_q = _without_nan(q)
    k, nan_k = _without_nan(k)
    do, nan_do = _without_nan(do)
    lse += nan_q + nan_do

    # Transposed scores and what follows from them: [keys, rows].
    sees = _attends(offs[None, :], offs[:, None], first_key[None, :], keys[None, :], CAUSAL)
    s = tl.dot(k, tl.trans(q), input_precision=PRECISION) + nan_k[:, None]
    p = tl.where(sees, tl.exp2(s * scale_log2 - lse[None, :]), 0.0)
    dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
    p_kept = p
    if HAS_DROPOUT:
        keep = keep_packed(tl.load(seed_ptr), stream, head, start, first_key, keep_threshold, BLOCK)
        keep = tl.trans(keep.to(tl.int8)) != 0
        p_kept = tl.where(keep, p, 0.0)
    # Only where p is positive: dp and delta of other sequences may hold NaN. Asking p rather than `sees` saves registers.
    p_dp = tl.where(p_kept > 0.0, p_kept * dp, p_kept)
    delta = tl.sum(p_dp, axis=0)
    ds = tl.where(p > 0.0, p_dp - p * delta[None, :], p).to(q.dtype)  # keep_scale waits for the last step
    dv = tl.dot(p_kept.to(do.dtype), do, input_precision=PRECISION) * keep_scale
    dk = tl.dot(ds, q, input_precision=PRECISION) * (softmax_scale * keep_scale)
    dq = tl.dot(tl.trans(ds), k, input_precision=PRECISION) * (softmax_scale * keep_scale)

    dq_ptr = dqkv_ptr + (first_token * 3 * H + head) * HEAD_DIM
    store_rows(dq_ptr, dq, 3 * H * HEAD_DIM, rows, BLOCK, HEAD_DIM, BLOCK_D)
    store_rows(dq_ptr + H * HEAD_DIM, dk, 3 * H * HEAD_DIM, rows, BLOCK, HEAD_DIM, BLOCK_D)
    store_rows(dq_ptr + 2 * H * HEAD_DIM, dv, 3 * H * HEAD_DIM, rows, BLOCK, HEAD_DIM, BLOCK_D)


@triton.jit
def _locate(packs_ptr, H):
    """(head, first token, rows) of this program's tile. Heads run fastest."""
    program = tl.program_id(0)
    pack_ptr = packs_ptr + program // H * 2
    return program % H, tl.load(pack_ptr), tl.load(pack_ptr + 1)


@triton.jit
def _spans(spans_ptr, T, start, rows, BLOCK: tl.constexpr):
    """The first column of each row's sequence and the number of its keys, int32 [BLOCK]; no keys past the last row."""
    offs = tl.arange(0, BLOCK)
    first = tl.load(spans_ptr + start + offs, mask=offs < rows, other=0) - start
    keys = tl.load(spans_ptr + T + start + offs, mask=offs < rows, other=0)
    return tl.where(offs < rows, first, 0), keys


@triton.jit
def _attends(row, column, first_key, keys, CAUSAL: tl.constexpr):
    """Whether a row sees a column of its tile, all broadcast against each other."""
    mask = (column - first_key).to(tl.uint32, bitcast=True) < keys.to(tl.uint32, bitcast=True)
    if CAUSAL:
        mask = mask & (column <= row)
    return mask


@triton.jit
def _without_nan(x):
    """x with zeros in the rows that hold anything not finite, and NaN for each such row, 0 for the others."""
    nan = tl.sum((x - x).to(tl.float32), axis=1)
    return tl.where((nan == 0.0)[:, None], x, 0.0), nan
