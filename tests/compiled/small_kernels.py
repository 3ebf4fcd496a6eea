"""Small kernels with known answers, on which the emulator itself is tested, and the means to plant faults in their PTX."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.tools.tensor_descriptor import TensorDescriptor

Tile = tuple[int, int, int]  # rows and columns of the output, and the inner dimension
Edit = Callable[[str], str]  # of a kernel's PTX


def replaced(pattern: str, new: str | Callable[[re.Match[str]], str], count: int = 0) -> Edit:
    """What puts `new` in the place of every match, or of the first `count`."""
    return lambda ptx: re.sub(pattern, new, ptx, count=count)


@contextmanager
def edited(kernel: CompiledKernel, edit: Edit) -> Iterator[None]:
    """Within the `with` block every launch of this kernel runs its PTX as `edit` changes it. It has to change something."""
    ptx = kernel.asm["ptx"]
    changed = edit(ptx)
    assert changed != ptx, "the edit did not apply"
    kernel.asm["ptx"] = changed
    try:
        yield
    finally:
        kernel.asm["ptx"] = ptx


@triton.jit
def add_kernel(x, y, z, n, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if MASKED:
        tl.store(z + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)
    else:
        tl.store(z + i, tl.load(x + i) + tl.load(y + i))


@triton.jit
def softmax_kernel(x, y, n, stride, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    row = tl.program_id(0)
    v = tl.load(x + row * stride + i, mask=i < n, other=-float("inf")).to(tl.float32)
    v = tl.exp(v - tl.max(v, 0))
    tl.store(y + row * stride + i, (v / tl.sum(v, 0)).to(y.dtype.element_ty), mask=i < n)


@triton.jit
def product_kernel(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        x = tl.load(a + m[:, None] * K + k[None, :], mask=(m < M)[:, None] & (k < K)[None, :], other=0.0)  # [BM, BK]
        y = tl.load(b + k[:, None] * N + n[None, :], mask=(k < K)[:, None] & (n < N)[None, :], other=0.0)  # [BK, BN]
        acc = tl.dot(x, y, acc, input_precision=PRECISION)  # [BM, BN]
    tl.store(c + m[:, None] * N + n[None, :], acc, mask=(m < M)[:, None] & (n < N)[None, :])


def product(a: Tensor, b: Tensor, tile: Tile, precision: str = "ieee", stages: int = 3) -> tuple[Tensor, CompiledKernel]:
    """a @ b in float32 by tiles, and the kernel. a: (M, K), b: (K, N), both contiguous."""
    (M, K), N = a.shape, b.shape[1]
    c = torch.full((M, N), float("nan"))
    grid = (triton.cdiv(M, tile[0]), triton.cdiv(N, tile[1]))
    return c, product_kernel[grid](a, b, c, M, N, K, *tile, precision, num_stages=stages)


@triton.jit
def tile_copy_product_kernel(a, b, c, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m, n = tl.program_id(0) * BM, tl.program_id(1) * BN
    acc = tl.zeros([BM, BN], tl.float32)
    for k in range(0, K, BK):
        acc = tl.dot(a.load([m, k]), b.load([n, k]).T, acc)  # [BM, BK] by [BK, BN]
    c.store([m, n], acc.to(c.dtype))


def tile_copy_product(a: Tensor, b: Tensor, tile: Tile) -> tuple[Tensor, CompiledKernel]:
    """a @ b.T in their dtype, with tiles copied by TMA, and the kernel. a: (M, K), b: (N, K), both contiguous."""
    (M, K), N = a.shape, b.shape[0]
    BM, BN, BK = tile
    c = torch.full((M, N), float("nan"), dtype=a.dtype)
    kernel = tile_copy_product_kernel[(triton.cdiv(M, BM), triton.cdiv(N, BN))](
        TensorDescriptor(a, [M, K], [K, 1], [BM, BK]),
        TensorDescriptor(b, [N, K], [K, 1], [BN, BK]),
        TensorDescriptor(c, [M, N], [N, 1], [BM, BN]),
        K,
        *tile,
        num_stages=3,
    )
    return c, kernel


@triton.jit
def cumsum_kernel(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.cumsum(tl.load(x + i), 0))


@triton.jit
def sort_kernel(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.sort(tl.load(x + i)))


@triton.jit
def divergent_loops_kernel(x, y, BLOCK: tl.constexpr):
    """Block p sums the first p rows of x; odd ones then sum over the columns too."""
    p = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], tl.float32)
    for k in range(0, p):
        acc += tl.load(x + k * BLOCK + i)
    if p % 2 == 1:
        acc = tl.sum(acc, 0) + tl.zeros([BLOCK], tl.float32)
    tl.store(y + p * BLOCK + i, acc)


@triton.jit
def same_row_kernel(x, y, BLOCK: tl.constexpr):
    """Every block writes the same row, each another value."""
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i) + tl.program_id(0))


@triton.jit
def neighbour_kernel(x, BLOCK: tl.constexpr):
    """Reads the row of the next block, writes its own."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + i, tl.load(x + i + BLOCK) + 1.0)


@triton.jit
def ones_kernel(x, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x + i, 1.0, mask=i < n)
