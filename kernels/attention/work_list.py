"""The tile lists of a packed batch, which the attention kernels read: made on the device, without asking it anything.

Every program of the one launch looks through the sequences for those of its own tiles: what it reads is small and the same for
all, where a walk from sequence to sequence would wait for each.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import cdiv
from ..registration import register
from .schedule import TILE_ROWS, num_tiles_bound

TILES, SEQUENCES, NUM_WARPS = 32, 256, 4


@triton.jit(do_not_specialize=["B", "low_bound", "high_bound"])  # another batch is no reason to compile
def tile_lists_kernel(
    cu_seqlens_ptr, seqused_k_ptr, low_ptr, high_ptr, B, low_bound, high_bound,
    LOW_ROWS: tl.constexpr, HIGH_ROWS: tl.constexpr, HAS_UNUSED: tl.constexpr, TILES: tl.constexpr, SEQUENCES: tl.constexpr,
):  # fmt: skip
    """TILES entries of the list of low tiles, or of that of high ones."""
    is_low = tl.program_id(1) == 0
    tile_rows = tl.where(is_low, LOW_ROWS, HIGH_ROWS)
    bound = tl.where(is_low, low_bound, high_bound)
    tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
    sequence = tl.zeros([TILES], tl.int32)  # how many end before the tile: the tile's own
    first_tile = tl.zeros([TILES], tl.int32)  # of that sequence
    done = 0
    for first in range(0, B, SEQUENCES):
        offs = first + tl.arange(0, SEQUENCES)
        live = offs < B
        begin = tl.load(cu_seqlens_ptr + offs, mask=live, other=0)
        end = tl.load(cu_seqlens_ptr + offs + 1, mask=live, other=0)
        count = (end - begin + (tile_rows - 1)) // tile_rows
        ends = done + tl.cumsum(count, 0)
        before = (ends[None, :] <= tile[:, None]) & live[None, :]
        sequence += tl.sum(before.to(tl.int32), axis=1)
        first_tile = tl.maximum(first_tile, tl.max(tl.where(before, ends[None, :], 0), axis=1))
        done += tl.sum(count, axis=0)
    live = tile < done
    sequence = tl.where(live, sequence, 0)
    start = tl.load(cu_seqlens_ptr + sequence)
    rows = tl.load(cu_seqlens_ptr + sequence + 1) - start
    keys = tl.load(seqused_k_ptr + sequence) if HAS_UNUSED else rows
    ptrs = tl.where(is_low, low_ptr, high_ptr) + tile * 4
    mask = tile < bound
    tl.store(ptrs, tl.where(live, start, 0), mask=mask)
    tl.store(ptrs + 1, tl.where(live, rows, 0), mask=mask)
    tl.store(ptrs + 2, tl.where(live, keys, 0), mask=mask)
    tl.store(ptrs + 3, tl.where(live, (tile - first_tile) * tile_rows, 0), mask=mask)


def _tile_lists(cu_seqlens, seqused_k, total_tokens):
    low, high = _tile_lists_fake(cu_seqlens, seqused_k, total_tokens)
    B = cu_seqlens.shape[0] - 1
    if B == 0:
        return low.zero_(), high.zero_()
    cu_seqlens = cu_seqlens.contiguous()
    used = cu_seqlens if seqused_k is None else seqused_k.contiguous()
    tile_lists_kernel[(cdiv(low.shape[0], TILES), 2)](
        cu_seqlens, used, low, high, B, low.shape[0], high.shape[0],
        LOW_ROWS=TILE_ROWS[0], HIGH_ROWS=TILE_ROWS[1], HAS_UNUSED=seqused_k is not None, TILES=TILES, SEQUENCES=SEQUENCES,
        num_warps=NUM_WARPS,
    )  # fmt: skip
    return low, high


def _tile_lists_fake(cu_seqlens, seqused_k, total_tokens):
    options: dict[str, Any] = {"dtype": torch.int32, "device": cu_seqlens.device}
    B = cu_seqlens.shape[0] - 1
    low, high = (torch.empty((num_tiles_bound(total_tokens, B, rows), 4), **options) for rows in TILE_ROWS)
    return low, high


_op = register(
    "attention_tile_lists(Tensor cu_seqlens, Tensor? seqused_k, SymInt total_tokens) -> (Tensor, Tensor)",
    _tile_lists,
    fake=_tile_lists_fake,
)


def attention_tile_lists(cu_seqlens: Tensor, seqused_k: Tensor | None, total_tokens: int) -> tuple[Tensor, Tensor]:
    """The tile lists of a packed batch, one per entry of TILE_ROWS, on the device of cu_seqlens.

    cu_seqlens: int32 (batch_size + 1,). seqused_k: int32 (batch_size,) or None. Each list is int32 (num_tiles_bound, 4):
    sequence start, rows, keys, offset of the tile in its sequence, in batch order; unused entries at the end are zeros.
    """
    return _op(cu_seqlens, seqused_k, total_tokens)
