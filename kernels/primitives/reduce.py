"""Sums over the rows of a matrix in one fixed order: every program adds its own rows, a second kernel adds the programs'.

Kernels that read a tensor for another reason leave their partial sums to `sum_partials`; `column_sum` is for tensors that
nothing else reads. No atomics: the same inputs give the same bits on one device.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import cdiv, num_programs
from .tiles import offsets

SUM_TILE = dict(BLOCK_M=16, BLOCK_N=256)  # a row of the tile is one 512-byte read of 16-bit elements
SUM_WARPS = 4
PARTIALS_TILE = dict(BLOCK_P=32, BLOCK_N=64)
PARTIALS_WARPS = 4


@triton.jit(do_not_specialize=["M", "rows_per_program"])
def column_sum_kernel(
    x_ptr, partial_ptr,
    M, N, stride_x_row, rows_per_program,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """partial[program, n] = sum of x[row, n] over the rows of the program."""
    program = tl.program_id(0)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = program * rows_per_program
    last = tl.minimum(first + rows_per_program, M)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(first, last, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)
        mask = (offs_m < last)[:, None] & (offs_n < N)[None, :]
        acc += tl.load(x_ptr + offsets(offs_m, offs_n, stride_x_row), mask=mask, other=0.0)  # [BLOCK_M, BLOCK_N]
    tl.store(partial_ptr + program.to(tl.int64) * N + offs_n, tl.sum(acc, axis=0), mask=offs_n < N)


@triton.jit(do_not_specialize=["P"])
def sum_partials_kernel(partial_ptr, out_ptr, P, N, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    """out[n] = sum over p of partial[p, n], always in the same order."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_p = tl.arange(0, BLOCK_P)
    acc = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
    for start in range(0, P, BLOCK_P):
        rows = start + offs_p
        mask = (rows < P)[:, None] & (offs_n < N)[None, :]
        acc += tl.load(partial_ptr + offsets(rows, offs_n, N), mask=mask, other=0.0)  # [BLOCK_P, BLOCK_N]
    tl.store(out_ptr + offs_n, tl.sum(acc, axis=0).to(out_ptr.dtype.element_ty), mask=offs_n < N)


def column_sum(x: Tensor, out_dtype: torch.dtype) -> Tensor:
    """The sum of x (M, N) over its rows, added in float32: (N,) in out_dtype. The last axis of x is contiguous."""
    M, N = x.shape
    if M * N == 0:
        return torch.zeros(N, dtype=out_dtype, device=x.device)
    columns = cdiv(N, SUM_TILE["BLOCK_N"])
    programs = cdiv(num_programs(x.device, 8), columns)
    rows_per_program = cdiv(cdiv(M, programs), SUM_TILE["BLOCK_M"]) * SUM_TILE["BLOCK_M"]
    programs = cdiv(M, rows_per_program)
    partial = torch.empty((programs, N), dtype=torch.float32, device=x.device)
    column_sum_kernel[(programs, columns)](
        x, partial,
        M, N, x.stride(0), rows_per_program,
        **SUM_TILE, num_warps=SUM_WARPS,
    )  # fmt: skip
    return sum_partials(partial, out_dtype)


def sum_partials(partial: Tensor, out_dtype: torch.dtype) -> Tensor:
    """partial: float32 (P, ...), contiguous. Returns its sum over the first axis in a fixed order, in out_dtype."""
    P, N = partial.shape[0], partial[0].numel()
    out = torch.empty(partial.shape[1:], dtype=out_dtype, device=partial.device)
    sum_partials_kernel[(cdiv(N, PARTIALS_TILE["BLOCK_N"]),)](
        partial, out, P, N, **PARTIALS_TILE, num_warps=PARTIALS_WARPS
    )  # fmt: skip
    return out
