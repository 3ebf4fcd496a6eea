"""What attention derives from the sequence lengths of a packed batch, once for all layers. Imports no Triton.

A GPU kernel reads a tile list: one row (sequence start, rows, keys, offset of the tile in its sequence) per tile of
`TILE_ROWS` rows, empty rows last (`work_list`). Its length is an upper bound that is known without waiting for the device.
Sequences of at most PACK_ROWS rows can share a tile (`packing`). PyTorch reads runs of sequences of equal length instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TILE_ROWS = (64, 128)  # tile heights that kernels use
PACK_ROWS = 64  # height of a tile that whole sequences share
CHUNK = 128  # sequences that are packed together; no tile holds sequences of two chunks


@dataclass(frozen=True)
class AttentionSchedule:
    """The lengths of a packed batch and what the backend that computes its attention reads.

    cu_seqlens: int32 (batch_size + 1,). seqused_k: int32 (batch_size,), keys per sequence, or None for all.
    uniform: whether every sequence has max_seqlen rows.
    runs: for PyTorch, `equal_runs`, or None where values of the device were not read.
    tiles: for the kernels, one int32 (bound, 4) list per entry of TILE_ROWS, then the two results of `attention_packs`; None
    where PyTorch computes the attention.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    seqused_k: Tensor | None
    uniform: bool
    runs: tuple[tuple[int, int, int], ...] | None
    tiles: tuple[Tensor, ...] | None


def num_tiles_bound(total_tokens: int, batch_size: int, tile_rows: int) -> int:
    """An upper bound on the number of tiles: each sequence has at most one that is not full."""
    return total_tokens // tile_rows + batch_size


def num_packs_bound(total_tokens: int, batch_size: int) -> int:
    """An upper bound on the number of shared tiles.

    A tile that is not the last of its chunk and the sequence after it have more than PACK_ROWS tokens together, and no token
    counts more than twice.
    """
    chunks = (batch_size + CHUNK - 1) // CHUNK
    return torch.sym_min(batch_size, 2 * total_tokens // (PACK_ROWS + 1) + chunks)


def packs_short_sequences(tiles: Sequence[Tensor], total_tokens: int, max_seqlen: int) -> bool:
    """Whether short sequences get their own launch, several to a tile: where all are short, or many must be.

    Decided from the sizes of the lists, so that neither the device is waited for nor a traced graph holds a guard.
    """
    batch_size = tiles[0].shape[0] - total_tokens // TILE_ROWS[0]
    return max_seqlen <= PACK_ROWS or total_tokens <= PACK_ROWS * batch_size


def equal_runs(cu_seqlens: Tensor, seqused_k: Tensor | None) -> tuple[tuple[int, int, int], ...]:
    """(number of sequences, rows of each, keys of each) per run of neighbours of equal length. Reads the values."""
    bounds = cu_seqlens.tolist()
    seqlens = [end - start for start, end in zip(bounds, bounds[1:])]
    keys = seqlens if seqused_k is None else seqused_k.tolist()
    runs: list[tuple[int, int, int]] = []
    for seqlen, num_keys in zip(seqlens, keys):
        if runs and runs[-1][1:] == (seqlen, num_keys):
            runs[-1] = (runs[-1][0] + 1, seqlen, num_keys)
        else:
            runs.append((1, seqlen, num_keys))
    return tuple(runs)
