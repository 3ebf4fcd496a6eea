"""Sums of rows that share an id: chunk boundaries, ids left out, wide rows, float32 sums."""

import pytest
import torch

from fastbert.kernels.primitives.segment_sum import CHUNK, segment_sum


def shuffled_ids(*counts):
    """Ids 0, 1, …, each repeated as often as its count, shuffled."""
    ids = torch.cat([torch.full((count,), i) for i, count in enumerate(counts)])
    return ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize(
    "counts",
    [
        (1,),
        (CHUNK,),
        (CHUNK - 1, 1, CHUNK + 1),  # an id that ends on a chunk's end, one that begins on it
        (CHUNK, 2 * CHUNK, 5),  # whole chunks of one id
        (3, 3 * CHUNK, 0, 7, 1),  # begins in one chunk, ends three later; an id without rows
        (7, 0, 0, CHUNK, 2, CHUNK - 9, 1),
        (1,) * (CHUNK + 5),
    ],
)
def test_segment_sum_at_chunk_boundaries(counts, device):
    ids = shuffled_ids(*counts).to(device)
    rows = torch.randn(len(ids), 21, device=device)
    expected = torch.zeros(len(counts) + 1, 21, dtype=torch.float64).index_add(0, ids.cpu(), rows.double().cpu())
    got = segment_sum(rows, ids, len(counts) + 1, None, torch.float32).double().cpu()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert not got[-1].any()  # no token has this id


def test_segment_sum_leaves_out_skipped_ids_and_ids_out_of_range(device):
    ids = torch.tensor([0, 2, -5, 1, 2, 9, 3], device=device).repeat_interleave(CHUNK)
    rows = torch.ones(len(ids), 8, device=device)
    got = segment_sum(rows, ids, 4, 1, torch.float32)
    assert got[:, 0].tolist() == [CHUNK, 0, 2 * CHUNK, CHUNK]


def test_segment_sum_of_wide_rows(device):
    """More columns than one program takes."""
    rows = torch.randn(5, 2500, device=device)
    got = segment_sum(rows, torch.tensor([1, 0, 1, 1, 0], device=device), 2, None, torch.float32)
    torch.testing.assert_close(got, torch.stack([rows[[1, 4]].sum(0), rows[[0, 2, 3]].sum(0)]))


def test_sums_are_kept_in_float32(device):
    """16-bit rows, many of one id: a 16-bit running sum would stop growing at 2048."""
    rows = torch.ones(3000, 8, dtype=torch.float16, device=device)
    got = segment_sum(rows, torch.zeros(3000, dtype=torch.int64, device=device), 1, None, torch.float16)
    assert got.unique().tolist() == [3000.0]
