"""Packs short sequences into shared tiles of attention, on the device, so that the host does not wait for it.

Neighbouring sequences go into one tile of PACK_ROWS rows as long as the next one fits whole; a longer sequence goes into none.
The batch is divided into runs of at least CHUNK sequences that are packed in parallel and share no tile, which costs half a
tile per run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import cdiv
from ..registration import register
from .operands import aligned
from .schedule import CHUNK, PACK_ROWS, num_packs_bound

LANES = 128  # runs, all packed by one program; runs are longer where there are more than LANES * CHUNK sequences
SPAN_SEQUENCES = 16


@triton.jit(do_not_specialize=["B", "chunk"])  # no compilation for another batch size
def packs_kernel(cu_seqlens_ptr, packs_ptr, B, chunk, LANES: tl.constexpr, ROWS: tl.constexpr):
    """One lane per run of `chunk` sequences: the first pass counts its tiles, the second writes them."""
    count = _fill_tiles(cu_seqlens_ptr, packs_ptr, tl.zeros([LANES], tl.int32), B, chunk, LANES, ROWS, False)  # [LANES]
    _fill_tiles(cu_seqlens_ptr, packs_ptr, tl.cumsum(count, 0) - count, B, chunk, LANES, ROWS, True)


@triton.jit
def _fill_tiles(
    cu_seqlens_ptr, packs_ptr, slot, B, chunk, LANES: tl.constexpr, ROWS: tl.constexpr, WRITE: tl.constexpr
):  # fmt: skip
    """The slot after each lane's last tile, int32 [LANES]. The open tile holds the tokens from `first` to `begin`."""
    sequence = tl.arange(0, LANES) * chunk
    begin = tl.load(cu_seqlens_ptr + tl.minimum(sequence, B))  # [LANES]
    first = begin
    for step in range(0, chunk):
        is_live = sequence + step < B
        end = tl.load(cu_seqlens_ptr + sequence + step + 1, mask=is_live, other=0)  # [LANES]
        end = tl.where(is_live, end, begin)
        is_full = end - first > ROWS
        closes = is_full & (begin > first)
        if WRITE:
            tl.store(packs_ptr + slot * 2, first, mask=closes)
            tl.store(packs_ptr + slot * 2 + 1, begin - first, mask=closes)
        slot += closes.to(tl.int32)
        first = tl.where(is_full, begin, first)
        first = tl.where(end - begin > ROWS, end, first)
        begin = end
    closes = begin > first
    if WRITE:
        tl.store(packs_ptr + slot * 2, first, mask=closes)
        tl.store(packs_ptr + slot * 2 + 1, begin - first, mask=closes)
    return slot + closes.to(tl.int32)


@triton.jit(do_not_specialize=["B", "T"])
def spans_kernel(
    cu_seqlens_ptr, seqused_k_ptr, spans_ptr, B, T, HAS_UNUSED: tl.constexpr, SEQUENCES: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """(first token, number of keys) of the sequence of each token, for sequences of at most ROWS tokens."""
    sequence = tl.program_id(0) * SEQUENCES + tl.arange(0, SEQUENCES)
    is_live = sequence < B
    begin = tl.load(cu_seqlens_ptr + sequence, mask=is_live, other=0)  # [SEQUENCES]
    seqlen = tl.load(cu_seqlens_ptr + sequence + 1, mask=is_live, other=0) - begin  # [SEQUENCES]
    num_keys = tl.load(seqused_k_ptr + sequence, mask=is_live, other=0) if HAS_UNUSED else seqlen  # [SEQUENCES]
    row = tl.arange(0, ROWS)[None, :]
    mask = (row < seqlen[:, None]) & (seqlen <= ROWS)[:, None]  # [SEQUENCES, ROWS]
    ptrs = spans_ptr + begin[:, None] + row
    tl.store(ptrs, begin[:, None] + row * 0, mask=mask)
    tl.store(ptrs + T, num_keys[:, None] + row * 0, mask=mask)


def _launch(cu_seqlens, seqused_k, total_tokens):
    packs, spans = _empty_packs(cu_seqlens, seqused_k, total_tokens)
    packs.zero_()
    B = cu_seqlens.shape[0] - 1
    if B == 0 or total_tokens == 0:
        return packs, spans
    cu_seqlens = aligned(cu_seqlens)
    chunk = min(max(CHUNK, cdiv(B, LANES)), B)
    packs_kernel[(1,)](cu_seqlens, packs, B, chunk, LANES=LANES, ROWS=PACK_ROWS, num_warps=4, num_stages=2)
    used = cu_seqlens if seqused_k is None else aligned(seqused_k)
    spans_kernel[(cdiv(B, SPAN_SEQUENCES),)](
        cu_seqlens, used, spans, B, total_tokens,
        HAS_UNUSED=seqused_k is not None, SEQUENCES=SPAN_SEQUENCES, ROWS=PACK_ROWS, num_warps=4, num_stages=2,
    )  # fmt: skip
    return packs, spans


def _empty_packs(cu_seqlens, seqused_k, total_tokens):
    bound = num_packs_bound(total_tokens, cu_seqlens.shape[0] - 1)
    options: dict[str, Any] = {"dtype": torch.int32, "device": cu_seqlens.device}
    return torch.empty((bound, 2), **options), torch.empty((2, total_tokens), **options)


_op = register(
    "attention_packs(Tensor cu_seqlens, Tensor? seqused_k, SymInt total_tokens) -> (Tensor, Tensor)",
    _launch,
    fake=_empty_packs,
)


def attention_packs(cu_seqlens: Tensor, seqused_k: Tensor | None, total_tokens: int) -> tuple[Tensor, Tensor]:
    """Tiles shared by short sequences, and the columns that each of their rows attends to, on the device of cu_seqlens.

    cu_seqlens: int32 (batch_size + 1,). seqused_k: int32 (batch_size,) or None.
    Returns packs, int32 (num_packs_bound, 2), the first token and the number of rows of each tile, in batch order, with unused
    entries of zero rows at the end; and spans, int32 (2, total_tokens), the first token and the number of keys of each token's
    sequence, undefined for tokens of longer sequences.
    """
    return _op(cu_seqlens, seqused_k, total_tokens)
