"""Tiles of every architecture: which are chosen, and that numbers and dropout mask do not depend on them."""

import pytest
import torch

from fastbert.kernels.attention.config import BackwardConfig, Problem, Tile
from fastbert.kernels.attention.schedule import TILE_ROWS
from fastbert.kernels.specs.attention import SPECS
from tests.kernels.harness import GPU, compare

SPEC = SPECS[0]
TARGETS = [("sm_80", "ieee"), ("sm_80", "tf32"), ("sm_90", "tf32"), ("sm_100", "ieee"), ("gfx942", "ieee")]


@pytest.mark.parametrize(
    ("tile", "causal", "expected"), [((64, 32), True, (32, 32)), ((64, 32), False, (64, 32)), ((32, 64), True, (32, 64))]
)
def test_causal_caps_the_rows(tile, causal, expected):
    """With more rows than keys, the diagonal would cross blocks that the loop does not mask."""
    assert Tile(*tile, num_warps=8).capped_for_causal(causal) == Tile(*expected, num_warps=8)


@pytest.mark.parametrize(
    ("max_seqlen", "expected"), [(1, [64]), (64, [64]), (65, [64, 128]), (128, [64, 128]), (129, [64]), (512, [64])]
)
def test_whole_sequence_tiles_worth_a_launch(max_seqlen, expected):
    config = BackwardConfig.choose(Problem(max_seqlen, 64, torch.bfloat16, "ieee", False, False, "sm_90"))
    assert [tile.BLOCK_M for tile in config.whole_tiles_for(max_seqlen)] == expected
    assert set(expected) <= set(TILE_ROWS)
    assert BackwardConfig((), Tile(64, 64), Tile(64, 64)).whole_tiles_for(max_seqlen) == ()


@pytest.mark.skipif(GPU, reason="tiles chosen for another card need not fit this one")
@pytest.mark.parametrize(("target", "precision"), TARGETS)
def test_tiles_of_every_target_match_float64(target, precision, device, monkeypatch):
    """The interpreter computes with the tiles that each architecture would get; numbers and dropout mask must not move."""
    chosen = set()

    def of(qkv, max_seqlen, dropout_p, causal):
        problem = Problem(max_seqlen, qkv.shape[-1], qkv.dtype, precision, dropout_p > 0, causal, target)
        chosen.add(problem)
        return problem

    monkeypatch.setattr(Problem, "of", of)
    short, long = "up-to-64-causal-dropout", "tokens-inside-heads"
    cases = [(dtype, name) for dtype in (torch.float32, torch.float16) for name in (short, long, "unused-keys-up-to-64")]
    cases += [(torch.float32, "head-dim-40-causal"), (torch.float32, "head-dim-80-dropout")]
    cases += [(torch.float16, name) for name in ("head-dim-80-dropout", "head-dim-128", "up-to-128-causal")]
    for dtype, name in cases:
        sample = next(sample for sample in SPEC.samples if sample.name == name)
        compare(SPEC, sample.make(dtype, device), dtype)
    assert {problem.target for problem in chosen} == {target}
