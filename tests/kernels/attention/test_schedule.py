"""What attention derives from the sequence lengths without kernels."""

import pytest
import torch

from fastbert.kernels.attention.schedule import TILE_ROWS, equal_runs, num_tiles_bound, packs_short_sequences
from tests.kernels.attention.batches import bounds_of


@pytest.mark.parametrize(
    ("seqlens", "used", "expected"),
    [
        ((), None, ()),
        ((7,), None, ((1, 7, 7),)),
        ((7, 7, 3, 7), None, ((2, 7, 7), (1, 3, 3), (1, 7, 7))),
        ((7, 7, 7), (7, 5, 5), ((1, 7, 7), (2, 7, 5))),
        ((0, 0, 4), None, ((2, 0, 0), (1, 4, 4))),
    ],
)
def test_runs_merge_neighbours_of_equal_length(seqlens, used, expected):
    seqused_k = None if used is None else torch.tensor(used, dtype=torch.int32)
    assert equal_runs(bounds_of(seqlens), seqused_k) == expected


@pytest.mark.parametrize(
    ("batch_size", "total_tokens", "max_seqlen", "expected"),
    [
        (4, 256, 64, True),  # all are short
        (4, 256, 65, True),  # 64 tokens a sequence: some must be short
        (4, 257, 65, False),
        (1, 512, 512, False),
        (100, 900, 512, True),
    ],
)
def test_short_sequences_are_packed_where_all_are_short_or_many_must_be(batch_size, total_tokens, max_seqlen, expected):
    tiles = [torch.empty(num_tiles_bound(total_tokens, batch_size, TILE_ROWS[0]), 4, dtype=torch.int32)]
    assert packs_short_sequences(tiles, total_tokens, max_seqlen) is expected
