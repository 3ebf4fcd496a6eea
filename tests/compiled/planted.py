"""Kernels that are wrong on sm_90 as Triton 3.7 compiles them, kept so that the checks which must find it are seen to find it.

The fault: an operand that wgmma reads from shared memory is summed in the same loop, so Triton loads it into registers too and
gives it one slot fewer than the loop has stages. wgmma runs on while the loop goes ahead, so the copy that is issued then
overwrites the slot that the product still reads. Copies by pointers and whole tiles (TMA) are alike. Nothing is wrong on sm_80,
whose products read registers.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastbert.kernels.device import architecture, dot_precision
from fastbert.kernels.matmul.config import GROUP_ROWS, GemmConfig
from fastbert.kernels.primitives.tiles import offsets, tile_position

RowSum = Literal["none", "of the operand", "before the product", "by ones", "of a second load"]
RACING: tuple[RowSum, ...] = ("of the operand", "before the product")
SOUND: tuple[RowSum, ...] = ("none", "by ones", "of a second load")


@triton.jit(do_not_specialize=["M"])
def wgrad_summing_its_operand_kernel(
    dy_ptr,
    x_ptr,
    dweight_ptr,
    dbias_ptr,
    M,
    N,
    K,
    stride_dy_row,
    stride_x_row,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
):
    """What the wgrad once was: dweight = dy.T @ x, and dbias, the sum of dy over its rows, from the same load of dy."""
    pid_n, pid_k = tile_position(tl.program_id(0), tl.cdiv(N, BLOCK_N), tl.cdiv(K, BLOCK_K), GROUP_ROWS)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = pid_k * BLOCK_K + tl.arange(0, BLOCK_K)
    offs_m = tl.arange(0, BLOCK_M)
    mask_n, mask_k = offs_n < N, offs_k < K
    tl.assume(M > 0)
    dy_ptrs = dy_ptr + offsets(offs_m, offs_n, stride_dy_row)
    x_ptrs = x_ptr + offsets(offs_m, offs_k, stride_x_row)
    zero_64 = tl.zeros([], tl.int64)
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    row_sum = tl.zeros([BLOCK_N], tl.float32)
    for m in range(0, M, BLOCK_M):
        mask_m = (offs_m < M - m)[:, None]
        dy = tl.load(dy_ptrs + (zero_64 + m) * stride_dy_row, mask=mask_m & mask_n[None, :], other=0.0)  # [BLOCK_M, BLOCK_N]
        x = tl.load(x_ptrs + (zero_64 + m) * stride_x_row, mask=mask_m & mask_k[None, :], other=0.0)  # [BLOCK_M, BLOCK_K]
        acc = tl.dot(tl.trans(dy), x, acc, input_precision=PRECISION)  # [BLOCK_N, BLOCK_K]
        row_sum += tl.sum(dy.to(tl.float32), axis=0)  # [BLOCK_N]
    out = dweight_ptr + offsets(offs_n, offs_k, K)
    tl.store(out, acc.to(dweight_ptr.dtype.element_ty), mask=mask_n[:, None] & mask_k[None, :])
    if pid_k == 0:
        tl.store(dbias_ptr + offs_n, row_sum, mask=mask_n)


def wgrad_summing_its_operand(dy: Tensor, x: Tensor, config: GemmConfig) -> tuple[Tensor, Tensor]:
    """(dy.T @ x in dy's dtype, the sum of dy over its rows in float32), by a tile of pointers, unsplit."""
    (M, N), K = dy.shape, x.shape[1]
    dweight = torch.empty((N, K), dtype=dy.dtype, device=dy.device)
    dbias = torch.empty(N, dtype=torch.float32, device=dy.device)
    wgrad_summing_its_operand_kernel[(config.num_tiles(N, K),)](
        dy,
        x,
        dweight,
        dbias,
        M,
        N,
        K,
        dy.stride(0),
        x.stride(0),
        PRECISION=dot_precision(dy.dtype, architecture(dy.device)),
        BLOCK_N=config.rows,
        BLOCK_K=config.columns,
        BLOCK_M=config.inner,
        GROUP_ROWS=GROUP_ROWS,
        **config.launch,
    )
    return dweight, dbias


@triton.jit
def product_and_row_sum_kernel(
    a_ptr,
    b_ptr,
    product_ptr,
    sum_ptr,
    M,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ROW_SUM: tl.constexpr,
):
    """The least that shows it: a.T @ b of one tile, and the sum of a over its rows in one of the ways of `RowSum`."""
    offs_m, offs_n, offs_k = tl.arange(0, BLOCK_M), tl.arange(0, N), tl.arange(0, K)
    acc = tl.zeros([N, K], tl.float32)
    row_sum = tl.zeros([N], tl.float32)
    ones = tl.full([BLOCK_M, 16], 1.0, a_ptr.dtype.element_ty)
    sixteen_sums = tl.zeros([N, 16], tl.float32)
    for m in range(0, M, BLOCK_M):
        a = tl.load(a_ptr + (m + offs_m)[:, None] * N + offs_n[None, :])  # [BLOCK_M, N]
        b = tl.load(b_ptr + (m + offs_m)[:, None] * K + offs_k[None, :])  # [BLOCK_M, K]
        if ROW_SUM == "before the product":
            row_sum += tl.sum(a.to(tl.float32), axis=0)
        acc = tl.dot(tl.trans(a), b, acc)  # [N, K]
        if ROW_SUM == "of the operand":
            row_sum += tl.sum(a.to(tl.float32), axis=0)
        if ROW_SUM == "by ones":
            sixteen_sums = tl.dot(tl.trans(a), ones, sixteen_sums)  # [N, 16]
        if ROW_SUM == "of a second load":  # another cache, or the compiler makes one load of the two
            again = tl.load(a_ptr + (m + offs_m)[:, None] * N + offs_n[None, :], cache_modifier=".cg")  # [BLOCK_M, N]
            row_sum += tl.sum(again.to(tl.float32), axis=0)
    tl.store(product_ptr + offs_n[:, None] * K + offs_k[None, :], acc)
    if ROW_SUM == "by ones":
        row_sum = tl.sum(sixteen_sums, axis=1) / 16
    tl.store(sum_ptr + offs_n, row_sum)


def product_and_row_sum(a: Tensor, b: Tensor, row_sum: RowSum) -> tuple[Tensor, Tensor]:
    """(a.T @ b, the sum of a over its rows; zeros where 'none'), both float32. a: (M, N), b: (M, K), M a multiple of 64."""
    (M, N), K, block = a.shape, b.shape[1], 64
    if M % block:
        raise ValueError(f"expected a multiple of {block} rows, got {M}")
    product = torch.empty((N, K), dtype=torch.float32, device=a.device)
    sums = torch.empty(N, dtype=torch.float32, device=a.device)
    product_and_row_sum_kernel[(1,)](a, b, product, sums, M, N, K, block, row_sum, num_warps=4, num_stages=4)
    return product, sums


@triton.jit
def tile_product_and_row_sum_kernel(
    a_desc,
    b_desc,
    product_desc,
    sum_ptr,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SUM: tl.constexpr,
):
    """The same with whole tiles: a @ b.T of one tile and, where SUM, the sum of a over its columns."""
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    for k in range(0, K, BLOCK_K):
        a = a_desc.load([0, k])  # [BLOCK_M, BLOCK_K]
        b = b_desc.load([0, k])  # [BLOCK_N, BLOCK_K]
        acc = tl.dot(a, tl.trans(b), acc)  # [BLOCK_M, BLOCK_N]
        if SUM:
            row_sum += tl.sum(a.to(tl.float32), axis=1)
    product_desc.store([0, 0], acc)
    tl.store(sum_ptr + tl.arange(0, BLOCK_M), row_sum)


def tile_product_and_row_sum(a: Tensor, b: Tensor, with_sum: bool) -> tuple[Tensor, Tensor]:
    """(a @ b.T, the sum of a over its columns, or zeros), both float32. a: (64, K), b: (64, K), K a multiple of 64."""
    (M, K), N, block = a.shape, b.shape[0], 64
    if M != block or N != block or K % block:
        raise ValueError(
            f"expected two matrices of ({block}, a multiple of {block}), got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    product = torch.empty((M, N), dtype=torch.float32, device=a.device)
    sums = torch.empty(M, dtype=torch.float32, device=a.device)
    tile_product_and_row_sum_kernel[(1,)](
        TensorDescriptor(a, [M, K], [K, 1], [M, block]),
        TensorDescriptor(b, [N, K], [K, 1], [N, block]),
        TensorDescriptor(product, [M, N], [N, 1], [M, N]),
        sums,
        K,
        M,
        N,
        block,
        with_sum,
        num_warps=4,
        num_stages=4,
    )
    return product, sums
