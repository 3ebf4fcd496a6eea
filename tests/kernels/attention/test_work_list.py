"""Tile lists against plain Python."""

import random

import pytest
import torch

from fastbert.kernels.attention.schedule import TILE_ROWS, num_tiles_bound
from fastbert.kernels.attention.work_list import SEQUENCES, TILES, attention_tile_lists
from tests.kernels.attention.batches import bounds_of


def listed(seqlens, used, tile_rows):
    """(sequence start, rows, keys, offset) of each tile of each sequence, in order."""
    starts = [0, *torch.tensor(seqlens, dtype=torch.int64).cumsum(0).tolist()]
    return [
        [start, seqlen, keys, offset]
        for start, seqlen, keys in zip(starts, seqlens, used)
        for offset in range(0, seqlen, tile_rows)
    ]


RANDOM = random.Random(0)


@pytest.mark.parametrize(
    "seqlens",
    [
        (),
        (0,),
        (0, 0, 1),
        (64, 65, 0, 128, 129, 1),
        (0,) * 3 + (700,) + (0,) * 3,
        (64,) * (TILES + 1),
        tuple(RANDOM.choice((0, 1, RANDOM.randint(1, 150))) for _ in range(SEQUENCES + 5)),
    ],
    ids=lambda seqlens: f"{len(seqlens)}-sequences",
)
@pytest.mark.parametrize("with_unused", [False, True])
def test_tile_lists(seqlens, with_unused, device):
    used = [length // 2 for length in seqlens] if with_unused else list(seqlens)
    keys = torch.tensor(used, dtype=torch.int32, device=device) if with_unused else None
    lists = attention_tile_lists(bounds_of(seqlens, device), keys, sum(seqlens))
    for found, tile_rows in zip(lists, TILE_ROWS, strict=True):
        expected = listed(seqlens, used, tile_rows)
        assert found.shape == (num_tiles_bound(sum(seqlens), len(seqlens), tile_rows), 4)
        assert found.tolist() == expected + [[0] * 4] * (found.shape[0] - len(expected))


def test_tile_lists_of_a_bucket_with_free_tokens(device):
    """Tokens after the last sequence belong to no tile, and the lists keep the size that a graph was captured with."""
    low, high = attention_tile_lists(bounds_of((70, 3), device), None, 500)
    assert (low.shape[0], high.shape[0]) == (500 // 64 + 2, 500 // 128 + 2)
    assert low.tolist() == listed((70, 3), (70, 3), 64) + [[0] * 4] * (low.shape[0] - 3)


def test_tile_lists_opcheck(device):
    torch.library.opcheck(torch.ops.fastbert.attention_tile_lists, (bounds_of((70, 3), device), None, 73))
