"""The emulator on small kernels whose answers are known, to float64 or to the bit, and what it says that it executed."""

import re
from types import ModuleType

import pytest
import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel

from tests.compiled import small_kernels
from tests.compiled.small_kernels import Tile, add_kernel, edited, product, replaced, softmax_kernel, tile_copy_product

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
# M, N, K and a tile; the sizes that no tile divides need every mask.
PRODUCTS: list[tuple[Tile, Tile]] = [
    ((64, 64, 64), (64, 64, 32)),
    ((128, 128, 96), (64, 64, 32)),
    ((70, 45, 50), (32, 32, 16)),
    ((16, 8, 128), (16, 16, 32)),
]
WIDE_PRODUCT = ((256, 128, 256), (128, 128, 64))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n", [1, 1000, 1024, 5000])
def test_addition_is_exact(n: int, dtype: torch.dtype, emulator: ModuleType) -> None:
    x, y = torch.randn(n).to(dtype), torch.randn(n).to(dtype)
    z = torch.full_like(x, float("nan"))
    add_kernel[(triton.cdiv(n, 1024),)](x, y, z, n, 1024, True)
    assert torch.equal(z, x + y)


def test_addition_of_a_view_that_is_aligned_to_four_bytes(emulator: ModuleType) -> None:
    x, y, z = torch.randn(1025)[1:], torch.randn(1024), torch.empty(1024)
    add_kernel[(1,)](x, y, z, 1024, 1024, True)
    assert torch.equal(z, x + y)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-7), (torch.bfloat16, 2e-3)], ids=str)
def test_softmax(dtype: torch.dtype, allowed: float, emulator: ModuleType) -> None:
    x = torch.randn(9, 700).to(dtype)
    y = torch.full_like(x, float("nan"))
    softmax_kernel[(9,)](x, y, 700, 700, 1024)
    assert (y.double() - x.double().softmax(1)).abs().max() < allowed


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize(("sizes", "tile"), PRODUCTS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "precision", "allowed"),
    [
        (torch.bfloat16, "ieee", 1e-4),
        (torch.float16, "ieee", 1e-4),
        (torch.float32, "ieee", 1e-4),
        (torch.float32, "tf32", 0.1),  # operands are cut to 10 bits
    ],
    ids=str,
)
def test_product(
    dtype: torch.dtype, precision: str, allowed: float, sizes: Tile, tile: Tile, stages: int, emulator: ModuleType
) -> None:
    M, N, K = sizes
    a, b = torch.randn(M, K).to(dtype), torch.randn(K, N).to(dtype)
    c, _ = product(a, b, tile, precision, stages)
    assert (c.double() - a.double() @ b.double()).abs().max() < allowed


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_product_of_wide_tiles(dtype: torch.dtype, stages: int, emulator: ModuleType) -> None:
    (M, N, K), tile = WIDE_PRODUCT
    a, b = torch.randn(M, K).to(dtype), torch.randn(K, N).to(dtype)
    c, _ = product(a, b, tile, stages=stages)
    assert (c.double() - a.double() @ b.double()).abs().max() < 1e-4


def test_product_of_fp8_keeps_fourteen_bits_of_its_sums(target: int, emulator: ModuleType) -> None:
    if target < 90:
        pytest.skip("sm_80 has no fp8")
    a, b = torch.rand(64, 128).to(torch.float8_e4m3fn), torch.rand(128, 64).to(torch.float8_e4m3fn)
    exact = a.double() @ b.double()
    cut, _ = product(a, b, (64, 64, 32))
    assert 2e-5 < ((cut.double() - exact).abs() / exact).max() < 32 * 2**-14
    with emulator.settings.changed(truncated_sums=False):
        whole, _ = product(a, b, (64, 64, 32))
    assert ((whole.double() - exact).abs() / exact).max() < 1e-6


def test_sums_of_the_matrix_unit_are_cut_as_the_settings_say(emulator: ModuleType) -> None:
    a, b = torch.rand(64, 512).bfloat16(), torch.rand(512, 64).bfloat16()
    exact = a.double() @ b.double()
    cut, _ = product(a, b, (64, 64, 32))
    with emulator.settings.changed(truncated_sums=False):
        nearest, _ = product(a, b, (64, 64, 32))
    assert (cut.double() <= exact).all()
    assert (nearest.double() > exact).any()
    assert (nearest.double() - exact).abs().mean() < (cut.double() - exact).abs().mean()


def test_cumulated_sums_and_sorting(emulator: ModuleType) -> None:
    x = torch.randint(-50, 50, (512,), dtype=torch.int32)
    y = torch.empty_like(x)
    small_kernels.cumsum_kernel[(1,)](x, y, 512)
    assert torch.equal(y, x.cumsum(0).int())
    small_kernels.sort_kernel[(1,)](x, y, 512)
    assert torch.equal(y, x.sort().values)


def test_blocks_whose_loops_differ(emulator: ModuleType) -> None:
    x, y = torch.randn(20, 256), torch.full((20, 256), float("nan"))
    small_kernels.divergent_loops_kernel[(20,)](x, y, 256)
    sums = [x[:p].double().sum(0) for p in range(20)]
    expected = torch.stack([s if p % 2 == 0 else s.sum().expand(256) for p, s in enumerate(sums)])
    assert (y.double() - expected).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("sizes", "tile"),
    [
        ((64, 64, 64), (64, 64, 32)),
        ((200, 136, 104), (64, 64, 64)),
        ((130, 72, 200), (128, 64, 64)),
        ((64, 256, 64), (64, 128, 16)),
    ],
    ids=str,
)
def test_product_of_copied_tiles(dtype: torch.dtype, sizes: Tile, tile: Tile, target: int, emulator: ModuleType) -> None:
    if target < 90:
        pytest.skip("sm_80 has no tile copies")
    M, N, K = sizes
    a, b = torch.randn(M, K).to(dtype), torch.randn(N, K).to(dtype)
    c, _ = tile_copy_product(a, b, tile)
    expected = a.double() @ b.double().t()
    assert (c.double() - expected).abs().max() < 4e-3 * expected.abs().max()


def test_parameters_at_addresses_of_32_bits(target: int, emulator: ModuleType) -> None:
    """As Triton 3.9 addresses them, whatever release compiles here. %r0 is the one register that LLVM leaves unused."""
    x, y = torch.randn(1000), torch.randn(1000)

    def add() -> tuple[Tensor, CompiledKernel]:
        z = torch.full_like(x, float("nan"))
        return z, add_kernel[(1,)](x, y, z, 1000, 1024, True)

    short = replaced(r"(ld\.param\.b32\s+%r\d+), \[(\w+)\];", r"mov.b32 %r0, \2;\n\1, [%r0];")
    with edited(add()[1], short):
        assert torch.equal(add()[0], x + y)


def test_tensor_maps_at_addresses_of_32_bits(target: int, emulator: ModuleType) -> None:
    if target < 90:
        pytest.skip("sm_80 has no tile copies")
    a, b = torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16()
    expected, kernel = tile_copy_product(a, b, (64, 64, 64))
    if re.search(r"mov\.b32\s+%r\d+, \w+_param_\d+;", kernel.asm["ptx"]):
        pytest.skip("this Triton's own PTX has such addresses: the product of copied tiles tests them")
    short = replaced(r"mov\.b(?:32|64)\s+(%rd\d+), (\w+_param_\d+);", r"mov.b32 %r0, \2;\ncvt.u64.u32 \1, %r0;")
    with edited(kernel, short):
        assert torch.equal(tile_copy_product(a, b, (64, 64, 64))[0], expected)


def test_statistics_say_what_was_executed(target: int, emulator: ModuleType) -> None:
    a, b = torch.randn(128, 128).bfloat16(), torch.randn(128, 128).bfloat16()
    product(a, b, (64, 64, 32))
    product(a, b, (64, 64, 32))
    x = torch.randn(1000)
    add_kernel[(1,)](x, x, torch.empty(1000), 1000, 1024, True)
    stats = emulator.stats
    assert (stats.launches, stats.blocks) == (3, 9)
    assert set(stats.kernels) == {"product_kernel", "add_kernel"}
    assert (stats.kernels["product_kernel"].launches, stats.kernels["product_kernel"].blocks) == (2, 8)
    assert stats.kernels["product_kernel"].features == {"wgmma" if target == 90 else "mma", "cp.async"}
    assert stats.kernels["add_kernel"].features == set()
    if target == 90:
        tile_copy_product(a, b, (64, 64, 64))
        assert stats.kernels["tile_copy_product_kernel"].features == {"wgmma", "tma"}
    stats.reset()
    assert (stats.launches, stats.blocks, stats.kernels) == (0, 0, {})
