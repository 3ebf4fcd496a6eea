"""Tiles of every architecture: which are chosen, and that numbers and dropout mask do not depend on them."""

from collections.abc import Iterator

import pytest
import torch

from fastbert.kernels.attention.config import BackwardConfig, ForwardConfig, Problem, Tile
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


def choices(problem: Problem) -> tuple:
    """What the kernels do differently in the interpreter, which knows no warps and no stages."""
    forward, backward = ForwardConfig.choose(problem), BackwardConfig.choose(problem)
    tiles = (forward.tile, forward.short, backward.dq, backward.dkdv, backward.short, *backward.whole)
    return forward.ONE_BLOCK, tuple(tile and (tile.BLOCK_M, tile.BLOCK_N) for tile in tiles)


def problem_of(inputs: dict, *, precision: str, target: str) -> Problem:
    qkv, dropout_p = inputs["qkv"], inputs.get("dropout_p", 0.0)
    return Problem(inputs["max_seqlen"], qkv.shape[-1], qkv.dtype, precision, dropout_p > 0, inputs["causal"], target)


def cases_that_differ() -> Iterator:
    """Of the samples, those for which a target chooses what no target before it chose, nor the CPU, whose are in test_specs."""
    both = ("up-to-64-causal-dropout", "tokens-inside-heads", "unused-keys-up-to-64", "head-dim-80-dropout")
    names = {torch.float32: (*both, "head-dim-40-causal"), torch.float16: (*both, "head-dim-128", "up-to-128-causal")}
    for dtype, name in [(dtype, name) for dtype, chosen in names.items() for name in chosen]:
        sample = next(sample for sample in SPEC.samples if sample.name == name)
        inputs = sample.make(dtype, torch.device("cpu"))
        seen = {choices(problem_of(inputs, precision="ieee", target="cpu"))}
        for target, precision in TARGETS:
            chosen = choices(problem_of(inputs, precision=precision, target=target))
            if chosen not in seen:
                seen.add(chosen)
                yield pytest.param(target, precision, dtype, sample, id=f"{target}-{precision}-{dtype}-{name}")


@pytest.mark.skipif(GPU, reason="tiles chosen for another card need not fit this one")
@pytest.mark.parametrize(("target", "precision", "dtype", "sample"), list(cases_that_differ()))
def test_tiles_of_every_target_match_float64(target, precision, dtype, sample, device, monkeypatch):
    """The interpreter computes with the tiles that each architecture would get; numbers and dropout mask must not move."""
    chosen = set()

    def of(qkv, max_seqlen, dropout_p, causal):
        problem = Problem(max_seqlen, qkv.shape[-1], qkv.dtype, precision, dropout_p > 0, causal, target)
        chosen.add(problem)
        return problem

    monkeypatch.setattr(Problem, "of", of)
    compare(SPEC, sample.make(dtype, device), dtype)
    assert {problem.target for problem in chosen} == {target}
