"""The derivative of an activation as a separate kernel, for gradients that no product's epilogue can multiply by it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import cdiv, num_programs
from ..primitives.gelu import activate, activation_derivative
from ..primitives.reduce import sum_partials
from ..primitives.tiles import offsets

TILE = dict(BLOCK_M=16, BLOCK_N=256)  # a row of the tile is one 512-byte read of 16-bit elements
NUM_WARPS = 8


@triton.jit(do_not_specialize=["M", "rows_per_program"])
def activation_backward_kernel(
    dh_ptr, u_ptr, du_ptr, h_ptr, partial_ptr,
    M, N, stride_dh_row, rows_per_program,
    ACTIVATION: tl.constexpr, WRITE_H: tl.constexpr, WRITE_PARTIAL: tl.constexpr, FULL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """du = dh * ACTIVATION'(u), its sum over each program's rows, and h = ACTIVATION(u)."""
    program = tl.program_id(0)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    first = program * rows_per_program
    last = tl.minimum(first + rows_per_program, M)
    column_sum = tl.zeros([BLOCK_N], tl.float32)
    for row in range(first, last, BLOCK_M):
        offs_m = row + tl.arange(0, BLOCK_M)
        mask = (offs_m < last)[:, None] & mask_n[None, :]
        du = tl.load(dh_ptr + offsets(offs_m, offs_n, stride_dh_row), mask=mask, other=0.0)  # [BLOCK_M, BLOCK_N]
        du = du.to(tl.float32)
        out = offsets(offs_m, offs_n, N)
        u = tl.load(u_ptr + out, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_M, BLOCK_N]
        du *= activation_derivative(u, ACTIVATION, FULL)
        tl.store(du_ptr + out, du.to(du_ptr.dtype.element_ty), mask=mask)
        if WRITE_H:
            tl.store(h_ptr + out, activate(u, ACTIVATION, FULL).to(h_ptr.dtype.element_ty), mask=mask)
        if WRITE_PARTIAL:
            column_sum += tl.sum(du, axis=0)  # [BLOCK_N]
    if WRITE_PARTIAL:
        tl.store(partial_ptr + program.to(tl.int64) * N + offs_n, column_sum, mask=mask_n)


def activation_backward(
    dh: Tensor, u: Tensor, activation: str, want_sum: bool, want_h: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(du = dh * activation'(u), its sum over the rows, h = activation(u)); what is not wanted is empty.

    dh, u: (M, N), the last axis contiguous, u's rows too.
    """
    M, N = dh.shape
    du = torch.empty((M, N), dtype=dh.dtype, device=dh.device)
    h = torch.empty((M if want_h else 0, N), dtype=dh.dtype, device=dh.device)
    if M * N == 0:
        return du, dh.new_zeros(N if want_sum else 0), h
    columns = cdiv(N, TILE["BLOCK_N"])
    programs = cdiv(num_programs(dh.device, 8), columns)
    rows_per_program = cdiv(cdiv(M, programs), TILE["BLOCK_M"]) * TILE["BLOCK_M"]
    programs = cdiv(M, rows_per_program)
    partial = torch.empty((programs if want_sum else 0, N), dtype=torch.float32, device=dh.device)
    activation_backward_kernel[(programs, columns)](
        dh, u, du, h, partial,
        M, N, dh.stride(0), rows_per_program,
        ACTIVATION=activation, WRITE_H=want_h, WRITE_PARTIAL=want_sum, FULL=dh.dtype == torch.float32,
        **TILE, num_warps=NUM_WARPS,
    )  # fmt: skip
    return du, sum_partials(partial, dh.dtype) if want_sum else dh.new_empty(0), h
