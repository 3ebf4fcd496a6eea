"""Builds the tile lists that the attention kernels read, on the device, so that the host does not wait for it.

Every program scans all sequences for those of its own tiles. That reads little, and the same for all programs; walking from
sequence to sequence would wait for one load after another.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import cdiv
from ..registration import register
from .operands import aligned
from .schedule import TILE_ROWS, num_tiles_bound

TILES, SEQUENCES, NUM_WARPS = 32, 256, 4


@triton.jit(do_not_specialize=["B", "low_bound", "high_bound"])  # no compilation for another batch size
def tile_lists_kernel(
    cu_seqlens_ptr, seqused_k_ptr, low_ptr, high_ptr, B, low_bound, high_bound,
    LOW_ROWS: tl.constexpr, HIGH_ROWS: tl.constexpr, HAS_UNUSED: tl.constexpr, TILES: tl.constexpr, SEQUENCES: tl.constexpr,
):  # fmt: skip
    """TILES entries of the list of tiles of LOW_ROWS rows, or of the list of tiles of HIGH_ROWS."""
    is_low = tl.program_id(1) == 0
    tile_rows = tl.where(is_low, LOW_ROWS, HIGH_ROWS)
    bound = tl.where(is_low, low_bound, high_bound)
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    sequence = tl.zeros([TILES], tl.int32)  # how many sequences end before the tile, which is the index of its sequence
    first_tile = tl.zeros([TILES], tl.int32)  # of that sequence
    total = 0  # tiles of the sequences so far
    for first in range(0, B, SEQUENCES):
        offs = first + tl.arange(0, SEQUENCES)
        is_live = offs < B
        begin = tl.load(cu_seqlens_ptr + offs, mask=is_live, other=0)  # [SEQUENCES]
        end = tl.load(cu_seqlens_ptr + offs + 1, mask=is_live, other=0)  # [SEQUENCES]
        count = (end - begin + (tile_rows - 1)) // tile_rows  # [SEQUENCES]
        ends = total + tl.cumsum(count, 0)  # [SEQUENCES]
        is_before = (ends[None, :] <= tile[:, None]) & is_live[None, :]  # [TILES, SEQUENCES]
        sequence += tl.sum(is_before.to(tl.int32), axis=1)
        first_tile = tl.maximum(first_tile, tl.max(tl.where(is_before, ends[None, :], 0), axis=1))
        total += tl.sum(count, axis=0)
    is_used = tile < total
    sequence = tl.where(is_used, sequence, 0)
    start = tl.load(cu_seqlens_ptr + sequence)  # [TILES]
    seqlen = tl.load(cu_seqlens_ptr + sequence + 1) - start  # [TILES]
    num_keys = tl.load(seqused_k_ptr + sequence) if HAS_UNUSED else seqlen  # [TILES]
    ptrs = tl.where(is_low, low_ptr, high_ptr) + tile * 4
    mask = tile < bound
    tl.store(ptrs, tl.where(is_used, start, 0), mask=mask)
    tl.store(ptrs + 1, tl.where(is_used, seqlen, 0), mask=mask)
    tl.store(ptrs + 2, tl.where(is_used, num_keys, 0), mask=mask)
    tl.store(ptrs + 3, tl.where(is_used, (tile - first_tile) * tile_rows, 0), mask=mask)


def _launch(cu_seqlens, seqused_k, total_tokens):
    low, high = _empty_lists(cu_seqlens, seqused_k, total_tokens)
    B = cu_seqlens.shape[0] - 1
    if B == 0:
        return low.zero_(), high.zero_()
    cu_seqlens = aligned(cu_seqlens)
    used = cu_seqlens if seqused_k is None else aligned(seqused_k)
    tile_lists_kernel[(cdiv(low.shape[0], TILES), 2)](
        cu_seqlens, used, low, high, B, low.shape[0], high.shape[0],
        LOW_ROWS=TILE_ROWS[0], HIGH_ROWS=TILE_ROWS[1], HAS_UNUSED=seqused_k is not None, TILES=TILES, SEQUENCES=SEQUENCES,
        num_warps=NUM_WARPS, num_stages=2,
    )  # fmt: skip
    return low, high


def _empty_lists(cu_seqlens, seqused_k, total_tokens):
    options: dict[str, Any] = {"dtype": torch.int32, "device": cu_seqlens.device}
    B = cu_seqlens.shape[0] - 1
    low, high = (torch.empty((num_tiles_bound(total_tokens, B, rows), 4), **options) for rows in TILE_ROWS)
    return low, high


_op = register(
    "attention_tile_lists(Tensor cu_seqlens, Tensor? seqused_k, SymInt total_tokens) -> (Tensor, Tensor)",
    _launch,
    fake=_empty_lists,
)


def attention_tile_lists(cu_seqlens: Tensor, seqused_k: Tensor | None, total_tokens: int) -> tuple[Tensor, Tensor]:
    """The tile lists of a packed batch, one for each of TILE_ROWS, on the device of cu_seqlens.

    cu_seqlens: int32 (batch_size + 1,). seqused_k: int32 (batch_size,) or None.
    Returns int32 lists of shape (num_tiles_bound, 4), whose columns are sequence start, rows, keys and the offset of the tile
    in its sequence, in batch order, with unused entries of zeros at the end.
    """
    return _op(cu_seqlens, seqused_k, total_tokens)
