"""Which short sequences share a tile: against plain Python, bounds, and what sharing saves on real lengths."""

import random

import pytest
import torch

from benchmarks.harness.lengths import draw
from fastbert.kernels.attention.packing import LANES, attention_packs
from fastbert.kernels.attention.schedule import CHUNK, PACK_ROWS, TILE_ROWS, num_packs_bound
from fastbert.kernels.attention.work_list import attention_tile_lists
from tests.kernels.attention.batches import bounds_of


def greedy(seqlens, chunk=CHUNK):
    """(first token, rows) of each tile: the next sequence joins where it fits, and a chunk starts with an empty tile."""
    packs, start, first = [], 0, 0
    for i, seqlen in enumerate(seqlens):
        if i % chunk == 0 or start + seqlen - first > PACK_ROWS:
            packs.append((first, start - first))
            first = start
        start += seqlen
        if seqlen > PACK_ROWS:
            first = start
    packs.append((first, start - first))
    return [pack for pack in packs if pack[1]]


def check(seqlens, device, chunk=CHUNK):
    total = sum(seqlens)
    packs, spans = attention_packs(bounds_of(seqlens, device), None, total)
    expected = greedy(seqlens, chunk)
    assert packs.shape == (num_packs_bound(total, len(seqlens)), 2)
    assert len(expected) <= packs.shape[0]
    assert packs.tolist() == [list(pack) for pack in expected] + [[0, 0]] * (packs.shape[0] - len(expected))
    start = 0
    for seqlen in seqlens:
        if seqlen <= PACK_ROWS:
            assert (spans[:, start : start + seqlen].t() == torch.tensor([start, seqlen], device=device)).all()
        start += seqlen
    return expected


@pytest.mark.parametrize(
    "seqlens",
    [
        (),
        (0, 0),
        (64,),
        (65,),
        (63, 1, 1),
        (33, 33, 31, 1, 64),
        (1, 0, 0, 63, 0, 1),
        (10, 500, 10, 65, 0, 10, 54),
        (1,) * 200,
        (32, 33) * 70,  # no tile holds two: as near to the bound as tiles come
        (0,) * 130 + (5, 60),
    ],
    ids=lambda seqlens: f"{len(seqlens)}-of-{sum(seqlens)}",
)
def test_fills_tiles_as_a_plain_packer_does(seqlens, device):
    check(seqlens, device)


@pytest.mark.parametrize("seed", range(12))
def test_random_batches_are_packed_as_by_a_plain_packer(seed, device):
    rng = random.Random(seed)
    longest = rng.choice((2, 20, 40, 64, 70, 200))
    expected = check([rng.randint(0, longest) for _ in range(rng.choice((3, 17, 60, 140)))], device)
    assert all(rows <= PACK_ROWS for _, rows in expected)


def test_more_sequences_than_lanes_lengthen_the_chunks(device, monkeypatch):
    """With 4 lanes, 600 sequences are 150 to a lane."""
    monkeypatch.setattr("fastbert.kernels.attention.packing.LANES", 4)
    rng = random.Random(0)
    check([rng.randint(0, 30) for _ in range(600)], device, chunk=150)
    assert LANES * CHUNK >= 16384


def test_the_bound_is_never_exceeded():
    for seed in range(300):
        rng = random.Random(seed)
        longest = rng.choice((1, 5, 33, 64, 66, 130))
        seqlens = [rng.randint(rng.choice((0, longest // 2)), longest) for _ in range(rng.choice((1, 7, 129, 400)))]
        assert len(greedy(seqlens)) <= num_packs_bound(sum(seqlens), len(seqlens)), seqlens


def test_spans_hold_the_used_keys(device):
    seqlens, used = (3, 70, 0, 20), (2, 70, 0, 0)
    _, spans = attention_packs(bounds_of(seqlens, device), torch.tensor(used, dtype=torch.int32, device=device), 93)
    assert spans[:, :3].tolist() == [[0] * 3, [2] * 3]
    assert spans[:, 73:].tolist() == [[73] * 20, [0] * 20]


def elements_per_token(seqlens, device="cpu"):
    """Score elements computed per token and head: with a tile to each sequence, and with shared tiles."""
    total, bounds = sum(seqlens), bounds_of(seqlens, device)
    tiles = attention_tile_lists(bounds, None, total)[TILE_ROWS.index(PACK_ROWS)]
    alone = sum(-(-keys // PACK_ROWS) for _, rows, keys, _ in tiles.tolist() if rows)
    shared = int((attention_packs(bounds, None, total)[0][:, 1] > 0).sum())
    shared += sum(-(-keys // PACK_ROWS) for _, rows, keys, _ in tiles.tolist() if rows > PACK_ROWS)
    return alone * PACK_ROWS**2 / total, shared * PACK_ROWS**2 / total


def test_recorded_lengths_leave_tiles_nearly_full(device):
    alone, shared = elements_per_token(draw("snips", 700, 512), device)
    assert alone > 300
    assert shared < 75
