"""Sums of rows that share an id, in a fixed order: out[i] = sum of rows[t] over t where ids[t] == i. A gather's gradient.

The ids are sorted, stably, so that the rows of one id (its segment) are neighbours. A run is the part of a segment inside one
chunk of CHUNK sorted rows. One program sums one run, so an id that every token has takes no longer than ids that are all
different. A run that is a whole segment is stored in the output; the sums of other runs are stored as float32 rows, and a
second kernel adds those of each segment in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import cdiv

CHUNK = 64  # sorted rows; the longest run
SEGMENT_ROWS, SEGMENT_WARPS = 4, 4
JOIN_TILE = dict(BLOCK_C=256, BLOCK_M=32, BLOCK_N=64)


@triton.jit(do_not_specialize=["M"])
def sum_runs_kernel(
    rows_ptr, ids_ptr, order_ptr, out_ptr, partial_ptr,
    M, N, stride_rows_row, num_segments, skip,
    CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program (i, columns) sums the run that begins at index i of the sorted ids, if one does.

    The sum of a run that is not a whole segment goes to partial[chunk, 0] if the run begins with the chunk, else to
    partial[chunk, 1]: it then ends with the chunk, so there is at most one.
    """
    i = tl.program_id(0)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    this_id = tl.load(ids_ptr + i)  # scalar
    begins_segment = tl.load(ids_ptr + i - 1, mask=i > 0, other=-1) != this_id  # scalar
    begins_chunk = i % CHUNK == 0
    if (begins_segment | begins_chunk) & (this_id >= 0) & (this_id < num_segments) & (this_id != skip):
        chunk = i // CHUNK
        offs = i + tl.arange(0, CHUNK)
        inside = offs < tl.minimum((chunk + 1) * CHUNK, M)
        same = inside & (tl.load(ids_ptr + offs, mask=inside, other=-1) == this_id)  # [CHUNK]
        end = i + tl.sum(same.to(tl.int32), axis=0)
        ends_segment = tl.load(ids_ptr + end, mask=end < M, other=-1) != this_id  # scalar

        acc = tl.zeros([BLOCK_N], tl.float32)
        for start in range(i, end, BLOCK_M):
            offs_m = start + tl.arange(0, BLOCK_M)
            row = tl.load(order_ptr + offs_m, mask=offs_m < end, other=0).to(tl.int64)  # [BLOCK_M]
            mask = (offs_m < end)[:, None] & mask_n[None, :]
            x = tl.load(rows_ptr + row[:, None] * stride_rows_row + offs_n[None, :], mask=mask, other=0.0)  # [BLOCK_M, BLOCK_N]
            acc += tl.sum(x.to(tl.float32), axis=0)  # [BLOCK_N]

        if begins_segment & ends_segment:
            tl.store(out_ptr + this_id.to(tl.int64) * N + offs_n, acc.to(out_ptr.dtype.element_ty), mask=mask_n)
        else:
            slot = 2 * chunk.to(tl.int64) + (1 - begins_chunk.to(tl.int32))
            tl.store(partial_ptr + slot * N + offs_n, acc, mask=mask_n)


@triton.jit(do_not_specialize=["num_chunks"])
def join_runs_kernel(
    ids_ptr, partial_ptr, out_ptr, N, num_chunks, num_segments, skip,
    CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program (chunk, columns) adds the runs of the segment that begins in the chunk and continues past it, if one does."""
    chunk = tl.program_id(0)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    first = chunk * CHUNK
    this_id = tl.load(ids_ptr + first + CHUNK - 1)  # scalar
    continues = tl.load(ids_ptr + first + CHUNK) == this_id  # scalar
    fills_chunk = tl.load(ids_ptr + first) == this_id  # scalar
    began_before = fills_chunk & (tl.load(ids_ptr + first - 1, mask=first > 0, other=-1) == this_id)  # scalar
    if continues & (began_before == 0) & (this_id >= 0) & (this_id < num_segments) & (this_id != skip):
        offs_c = tl.arange(0, BLOCK_C)
        count = tl.zeros([BLOCK_C], tl.int32)
        for start in range(chunk + 1, num_chunks, BLOCK_C):
            later = start + offs_c
            later_id = tl.load(ids_ptr + later * CHUNK, mask=later < num_chunks, other=-1)  # [BLOCK_C]
            count += ((later < num_chunks) & (later_id == this_id)).to(tl.int32)
        end = chunk + 1 + tl.sum(count, axis=0)

        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(chunk + 1, end, BLOCK_M):
            slot = 2 * (start + tl.arange(0, BLOCK_M)).to(tl.int64)
            mask = (slot < 2 * end)[:, None] & mask_n[None, :]
            acc += tl.load(partial_ptr + slot[:, None] * N + offs_n[None, :], mask=mask, other=0.0)  # [BLOCK_M, BLOCK_N]
        slot = 2 * chunk.to(tl.int64) + (1 - fills_chunk.to(tl.int32))
        total = tl.load(partial_ptr + slot * N + offs_n, mask=mask_n, other=0.0) + tl.sum(acc, axis=0)  # [BLOCK_N]
        tl.store(out_ptr + this_id.to(tl.int64) * N + offs_n, total.to(out_ptr.dtype.element_ty), mask=mask_n)


def segment_sum(rows: Tensor, ids: Tensor, num_segments: int, skip: int | None, out_dtype: torch.dtype) -> Tensor:
    """The sum of the rows of each id: (num_segments, N) in out_dtype, accumulated in float32.

    rows: (M, N), last axis contiguous. ids: int32 or int64, (M,); those outside [0, num_segments) are left out. skip: an id
    whose sum stays zero, or None.
    """
    M, N = rows.shape
    out = torch.zeros((num_segments, N), dtype=out_dtype, device=rows.device)
    if M == 0:
        return out
    if ids.dtype != torch.int32:  # whose lower half might name a row
        ids = ids.clamp(-1, num_segments).to(torch.int32)
    sorted_ids, order = torch.sort(ids, stable=True)
    skip = -1 if skip is None else skip
    num_chunks = cdiv(M, CHUNK)
    partial = torch.empty((num_chunks, 2, N), dtype=torch.float32, device=rows.device)
    BLOCK_N = min(max(triton.next_power_of_2(N), 64), 1024)
    sum_runs_kernel[(M, cdiv(N, BLOCK_N))](
        rows, sorted_ids, order, out, partial, M, N, rows.stride(0), num_segments, skip,
        CHUNK=CHUNK, BLOCK_M=SEGMENT_ROWS, BLOCK_N=BLOCK_N, num_warps=SEGMENT_WARPS,
    )  # fmt: skip
    if num_chunks > 1:
        BLOCK_N = min(BLOCK_N, JOIN_TILE["BLOCK_N"])
        join_runs_kernel[(num_chunks - 1, cdiv(N, BLOCK_N))](
            sorted_ids, partial, out, N, num_chunks, num_segments, skip,
            CHUNK=CHUNK, BLOCK_C=JOIN_TILE["BLOCK_C"], BLOCK_M=JOIN_TILE["BLOCK_M"], BLOCK_N=BLOCK_N, num_warps=SEGMENT_WARPS,
        )  # fmt: skip
    return out
