"""The structures of the forward beside the default one: descriptors of the hardware's tile copies, and sums split along K."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import gelu

from fastbert.kernels.batch_invariance import batch_invariant_kernels
from fastbert.kernels.device import architecture, has_wide_matrix_unit, pretend
from fastbert.kernels.matmul.config import (
    LARGE,
    PRODUCTS,
    SMALL,
    SPLIT,
    TMA,
    TMA_LARGE,
    TMA_WIDE,
    WIDE,
    GemmConfig,
    candidates,
    unsupported_reason,
)
from fastbert.kernels.matmul.pointers import gemm_dgrad, gemm_fwd, gemm_wgrad
from fastbert.kernels.specs.accuracy import OUT_FACTOR
from fastbert.kernels.specs.spec import generator, normal
from tests.kernels.harness import DTYPES, GPU, assert_error_within

HAS_TMA = not GPU or has_wide_matrix_unit(architecture(torch.device("cuda")))
DTYPE = torch.float16
STRUCTURES = [config for config in (*TMA, *SPLIT[:2]) if HAS_TMA or config.structure == "pointers"]
needs_tma = pytest.mark.skipif(not HAS_TMA, reason="this GPU has no tensor memory accelerator")
by_name = pytest.mark.parametrize("config", STRUCTURES, ids=lambda config: config.name)

# (M, N, K). The interpreter has three multiprocessors: persistent structures have three or six programs.
TMA_SHAPES = (
    (1, 8, 8),  # one row, narrower and shorter than any tile
    (130, 264, 200),  # a bit of a tile past each edge: four to six tiles
    (400, 264, 40),  # more tiles than programs, less than one step of the sum
    (64, 128, 256),  # whole steps
)
SPLIT_SHAPES = (
    (1, 8, 8),  # one split is left
    (66, 72, 600),  # the last step of the last split is half empty
    (5, 64, 1024),
)
CASES = [
    pytest.param(config, shape, id=f"{config.name}-{shape}")
    for config in STRUCTURES
    for shape in (TMA_SHAPES if config.splits is None else SPLIT_SHAPES)
]


def make(M, N, K, dtype=DTYPE, device="cpu", parts=1):
    g = generator()
    x = normal((M, K), dtype, device, g)
    weights = [normal((N, K), dtype, device, g, std=K**-0.5) for _ in range(parts)]
    return x, weights, [normal((N,), dtype, device, g, std=0.5) for _ in range(parts)]


def check(config, M, N, K, *, parts=1, activation=None, bias=True, device, dtype=DTYPE):
    """y and u of a config by the rule of accuracy.py, and whatever was not written is NaN (conftest.py)."""
    x, weights, biases = make(M, N, K, dtype, device, parts)
    y, u = gemm_fwd(x, weights, biases if bias else [None] * parts, activation, activation is not None, config=config)

    def plain(cast):
        u = cast(x) @ cast(torch.cat(weights)).t() + (cast(torch.cat(biases)) if bias else 0)
        return u, u if activation is None else gelu(u)

    same, exact = plain(lambda t: t), plain(torch.Tensor.double)
    assert_error_within("y", y, same[1], exact[1], OUT_FACTOR)
    if activation is None:
        assert u.shape == (0, parts * N)
    else:
        assert_error_within("u", u, same[0], exact[0], OUT_FACTOR)
    again = gemm_fwd(x, weights, biases if bias else [None] * parts, activation, activation is not None, config=config)
    assert torch.equal(y, again[0])
    assert torch.equal(u, again[1])
    return x, weights, biases, y, u


@pytest.mark.parametrize(("config", "shape"), CASES)
def test_matches_float64_and_repeats(config, shape, device):
    check(config, *shape, activation="gelu_erf", device=device)


@by_name
def test_other_epilogues(config, device):
    check(config, 33, 72, 24, bias=False, device=device)
    check(config, 33, 72, 24, bias=True, device=device)


@by_name
def test_three_weights(config, device):
    """Each ends with a tile, which the structures of descriptors ask for; split sums do not."""
    if config.splits is None:
        check(config, 130, 256, 136, parts=3, device=device)
    else:
        check(config, 33, 24, 300, parts=3, device=device)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != DTYPE], ids=str)
def test_split_sums_of_other_dtypes(dtype, device):
    check(replace(SPLIT[0], inner=16), 33, 72, 136, activation="gelu_erf", dtype=dtype, device=device)


@needs_tma
@pytest.mark.skipif(GPU, reason="a GPU's matrix instructions may add in another order within a step")
@pytest.mark.parametrize("pair", [(WIDE, TMA_WIDE), (LARGE, TMA_LARGE), (LARGE, TMA[-1])], ids=lambda pair: pair[1].name)
def test_bits_are_those_of_the_default_structure(pair, device):
    """The same tile adds in the same order, however its operands are copied."""
    x, weights, biases = make(150, 264, 136, device=device)
    pointers, copied = (gemm_fwd(x, weights, biases, "gelu_erf", True, config=config) for config in pair)
    assert torch.equal(pointers[0], copied[0])
    assert torch.equal(pointers[1], copied[1])


@by_name
def test_neighbours_in_memory_are_never_read(config, device):
    """Slices of wider buffers of NaN; the structures of descriptors want rows a multiple of 16 bytes apart."""

    def island(tensor):
        wide = torch.full((tensor.shape[0] + 2, tensor.shape[1] + 24), torch.nan, dtype=tensor.dtype, device=tensor.device)
        return wide[1:-1, 8:-16].copy_(tensor)

    x, (weight,), biases = make(70, 40, 136, device=device)
    expected = gemm_fwd(x, [weight], biases, None, False, config=config)[0]
    assert torch.equal(gemm_fwd(island(x), [island(weight)], biases, None, False, config=config)[0], expected)


@pytest.mark.parametrize("config", SPLIT, ids=lambda config: config.name)
def test_a_row_of_a_split_sum_does_not_depend_on_the_others(config, device):
    """The splits follow K alone, the tile is one: a row has the same bits alone and in any batch.

    Rows keep their position within a tile, where the interpreter's own product adds in an order that depends on it.
    """
    x, weights, biases = make(150, 40, 600, device=device)
    whole = gemm_fwd(x, weights, biases, None, False, config=config)[0]
    for rows in (slice(0, 1), slice(64, 66), slice(64, 150)):
        assert torch.equal(gemm_fwd(x[rows], weights, biases, None, False, config=config)[0], whole[rows])


def test_splits_cover_the_sum_in_whole_steps():
    for config, K in itertools.product(SPLIT, (1, 127, 128, 129, 768, 1000, 3072)):
        splits, per_split = config.splits_of(K)
        assert per_split % config.inner == 0
        assert (splits - 1) * per_split < K <= splits * per_split
        assert splits <= config.splits
    assert [config.splits_of(3072)[0] for config in SPLIT] == [2, 4, 8]


def test_what_is_chosen_without_a_measured_table(device):
    """Nothing was timed: pointers, unsplit, for every number of rows; in batch-invariant mode on one tile."""
    rows = (1, 64, 512, 4096, 65536)
    with pretend("sm_90"):
        chosen = {GemmConfig.for_shape("fwd", M, 768, torch.bfloat16, device) for M in rows}
    assert chosen == {WIDE, LARGE, SMALL}
    with pretend("sm_90"), batch_invariant_kernels():
        (one,) = {GemmConfig.for_shape("fwd", M, 768, torch.bfloat16, device) for M in rows}
    assert (one.structure, one.splits) == ("pointers", None)


KINDS = [(torch.bfloat16, "ieee"), (torch.float16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee")]


@pytest.mark.parametrize("product", PRODUCTS)
def test_every_candidate_is_found_by_its_name(product):
    for (dtype, precision), arch in itertools.product(KINDS, ("sm_90", "sm_80", "sm_100", "gfx942", "cpu", "unknown")):
        found = candidates(product, dtype, precision, arch)
        assert len({config.name for config in found}) == len(found)
        for config in found:
            assert GemmConfig.named(product, config.name) == config
        others = [config.structure for config in found if config.structure != "pointers"]
        expected = product == "fwd" and dtype != torch.float32 and arch in ("sm_90", "sm_100", "cpu")
        assert bool(others) == expected, (arch, dtype)


def test_names_and_what_has_none():
    assert TMA_WIDE.name == "tma_persistent 128x256x64 w8 s3"
    assert SPLIT[1].name == "pointers 64x64x128 w4 s4 k4"
    with pytest.raises(ValueError, match=r"expected a tile of dgrad among 'pointers .*got 'tma_persistent 128x256x64 w8 s3'"):
        GemmConfig.named("dgrad", TMA_WIDE.name)
    with pytest.raises(ValueError, match="expected a product among fwd, dgrad, dgrad_activation, wgrad, got 'linear'"):
        candidates("linear", torch.bfloat16, "ieee", "sm_90")


@needs_tma
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, w: (x.float(), [w.float()]), "for bfloat16 and float16, not torch.float32"),
        (lambda x, w: (x, [w[:60]]), "N = 60 is no multiple of 8"),
        (lambda x, w: (x, [w, w, w]), "each of three weights must end with a tile, and N = 64 is no multiple of 256"),
        (lambda x, w: (x[:, 1:], [w[:, 1:]]), "x must start at a multiple of 16 bytes"),
        (lambda x, w: (x[:, :20].contiguous(), [w[:, :20].contiguous()]), "rows a multiple of 16 bytes apart"),
        (lambda x, w: (x, [w.t().contiguous().t()]), "a weight must start"),
    ],
)
def test_what_descriptors_cannot_take_is_said(change, reason, device):
    x, (weight,), _ = make(16, 64, 64, device=device)
    assert unsupported_reason(TMA_WIDE, x, [weight]) is None
    x, weights = change(x, weight)
    assert reason in unsupported_reason(TMA_WIDE, x, weights)
    assert unsupported_reason(WIDE, x, weights) is None
    with pytest.raises(ValueError, match=r"a forward cannot take tma_persistent 128x256x64 w8 s3: "):
        gemm_fwd(x, weights, [None] * len(weights), None, False, config=TMA_WIDE)


def test_architectures_without_the_hardware_are_said(device):
    x, weights, _ = make(16, 64, 64, device=device)
    for arch in ("sm_80", "gfx942", "unknown"):
        with pretend(arch, 1):
            assert unsupported_reason(TMA_WIDE, x, weights) == f"{arch} has no hardware that copies tiles"
            assert unsupported_reason(SPLIT[0], x, weights) is None
    with pretend("sm_90"):
        assert "only pointers" in unsupported_reason(replace(TMA_WIDE, splits=2), x, weights)


def test_the_other_products_take_pointers(device):
    dy, (weight,), _ = make(33, 24, 24, device=device)
    for config in (TMA_WIDE, SPLIT[0]):
        with pytest.raises(ValueError, match=r"expected a tile for dgrad, .*got "):
            gemm_dgrad(dy, [weight], config=config)
    with pytest.raises(ValueError, match=r"expected a tile for wgrad, .*got tma_persistent"):
        gemm_wgrad(dy, dy, config=TMA_WIDE)
    for config in candidates("dgrad", DTYPE, "ieee", "cpu"):
        torch.testing.assert_close(gemm_dgrad(dy, [weight], config=config)[0], dy @ weight, rtol=1e-2, atol=1e-2)
    exact = dy.double().t() @ dy.double()
    for config in (*candidates("wgrad", DTYPE, "ieee", "cpu"), replace(SMALL, inner=16, splits=2)):
        torch.testing.assert_close(gemm_wgrad(dy, dy, config=config).double(), exact, rtol=2e-3, atol=2e-2)
