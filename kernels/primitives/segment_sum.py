"""Sums of rows that share an id: out[i] = sum of rows[t] over ids[t] == i, in one fixed order. The gradient of a gather.

The ids are sorted, stably. Sorted places are cut into pieces where the id changes and at every multiple of CHUNK, so that
an id that every token has costs no more than ids that are all different. One program sums one piece: a piece that is all
of its id goes straight to the output, the others leave one float32 row each, and a second kernel joins those in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import cdiv

CHUNK = 64  # sorted places; a piece is at most that long


@triton.jit(do_not_specialize=["M"])
def _segment_pieces_kernel(
    rows_ptr, ids_ptr, order_ptr, out_ptr, partial_ptr,
    M, N, stride_rows_row, num_segments, skip,
    CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program (place, columns) sums the piece that begins at that sorted place, where one does.

    Pieces of ids that continue past an end of the chunk go to partial[chunk, 0] if they begin the chunk, else to
    partial[chunk, 1].
    """
    place = tl.program_id(0)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    this_id = tl.load(ids_ptr + place)
    begins_segment = tl.load(ids_ptr + place - 1, mask=place > 0, other=-1) != this_id
    begins_chunk = place % CHUNK == 0
    if (begins_segment | begins_chunk) & (this_id >= 0) & (this_id < num_segments) & (this_id != skip):
        chunk = place // CHUNK
        offs = place + tl.arange(0, CHUNK)
        inside = offs < tl.minimum((chunk + 1) * CHUNK, M)
        same = inside & (tl.load(ids_ptr + offs, mask=inside, other=-1) == this_id)
        end = place + tl.sum(same.to(tl.int32), axis=0)
        ends_segment = tl.load(ids_ptr + end, mask=end < M, other=-1) != this_id

        acc = tl.zeros([BLOCK_N], tl.float32)
        for start in range(place, end, BLOCK_M):
            offs_m = start + tl.arange(0, BLOCK_M)
            row = tl.load(order_ptr + offs_m, mask=offs_m < end, other=0).to(tl.int64)
            mask = (offs_m < end)[:, None] & mask_n[None, :]
            piece = tl.load(rows_ptr + row[:, None] * stride_rows_row + offs_n[None, :], mask=mask, other=0.0)
            acc += tl.sum(piece.to(tl.float32), axis=0)

        if begins_segment & ends_segment:
            tl.store(out_ptr + this_id.to(tl.int64) * N + offs_n, acc.to(out_ptr.dtype.element_ty), mask=mask_n)
        else:
            slot = 2 * chunk.to(tl.int64) + (1 - begins_chunk.to(tl.int32))
            tl.store(partial_ptr + slot * N + offs_n, acc, mask=mask_n)


@triton.jit(do_not_specialize=["num_chunks"])
def _segment_joins_kernel(
    ids_ptr, partial_ptr, out_ptr, N, num_chunks, num_segments, skip,
    CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program (chunk, columns) joins the pieces of the id that crosses the end of the chunk, where it began in it."""
    chunk = tl.program_id(0)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    first = chunk * CHUNK
    this_id = tl.load(ids_ptr + first + CHUNK - 1)
    crosses = tl.load(ids_ptr + first + CHUNK) == this_id
    whole_chunk = tl.load(ids_ptr + first) == this_id
    began_before = whole_chunk & (tl.load(ids_ptr + first - 1, mask=first > 0, other=-1) == this_id)
    if crosses & (began_before == 0) & (this_id >= 0) & (this_id < num_segments) & (this_id != skip):
        offs_c = tl.arange(0, BLOCK_C)
        count = tl.zeros([BLOCK_C], tl.int32)
        for start in range(chunk + 1, num_chunks, BLOCK_C):
            later = start + offs_c
            later_id = tl.load(ids_ptr + later * CHUNK, mask=later < num_chunks, other=-1)
            count += ((later < num_chunks) & (later_id == this_id)).to(tl.int32)
        end = chunk + 1 + tl.sum(count, axis=0)

        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(chunk + 1, end, BLOCK_M):
            slot = 2 * (start + tl.arange(0, BLOCK_M)).to(tl.int64)
            mask = (slot < 2 * end)[:, None] & mask_n[None, :]
            acc += tl.load(partial_ptr + slot[:, None] * N + offs_n[None, :], mask=mask, other=0.0)
        slot = 2 * chunk.to(tl.int64) + (1 - whole_chunk.to(tl.int32))
        total = tl.load(partial_ptr + slot * N + offs_n, mask=mask_n, other=0.0) + tl.sum(acc, axis=0)
        tl.store(out_ptr + this_id.to(tl.int64) * N + offs_n, total.to(out_ptr.dtype.element_ty), mask=mask_n)


def segment_sum(rows: Tensor, ids: Tensor, num_segments: int, skip: int | None, out_dtype: torch.dtype) -> Tensor:
    """Returns (num_segments, N) in out_dtype, accumulated in float32.

    rows: (M, N), last axis contiguous. ids: int32 or int64, (M,). skip: an id whose sum is left zero, or None. Ids outside
    [0, num_segments) are left out.
    """
    M, N = rows.shape
    out = torch.zeros((num_segments, N), dtype=out_dtype, device=rows.device)
    if M == 0:
        return out
    sorted_ids, order = torch.sort(ids.to(torch.int32), stable=True)
    skip = -1 if skip is None else skip
    num_chunks = cdiv(M, CHUNK)
    partial = torch.empty((num_chunks, 2, N), dtype=torch.float32, device=rows.device)
    BLOCK_N = min(triton.next_power_of_2(N), 1024)
    _segment_pieces_kernel[(M, cdiv(N, BLOCK_N))](
        rows, sorted_ids, order, out, partial, M, N, rows.stride(0), num_segments, skip,
        CHUNK=CHUNK, BLOCK_M=4, BLOCK_N=BLOCK_N, num_warps=4,
    )  # fmt: skip
    if num_chunks > 1:
        BLOCK_N = min(BLOCK_N, 64)
        _segment_joins_kernel[(num_chunks - 1, cdiv(N, BLOCK_N))](
            sorted_ids, partial, out, N, num_chunks, num_segments, skip,
            CHUNK=CHUNK, BLOCK_C=256, BLOCK_M=32, BLOCK_N=BLOCK_N, num_warps=4,
        )  # fmt: skip
    return out
