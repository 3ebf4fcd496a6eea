"""What follows the sum of a product inside its kernel: the activation or its derivative, and the stores."""

import triton
import triton.language as tl

from ..primitives.gelu import activate, activation_derivative
from ..primitives.tiles import halves, offsets


@triton.jit
def store_activated(
    acc, y_ptr, u_ptr, out, mask,
    ACTIVATION: tl.constexpr, SAVE_U: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """y = ACTIVATION(acc), and acc itself, rounded, as u, at the offsets `out`."""
    if ACTIVATION is not None:
        u = acc.to(y_ptr.dtype.element_ty)
        if SAVE_U:
            tl.store(u_ptr + out, u, mask=mask)
        acc = activate(u.to(tl.float32), ACTIVATION, FULL)  # of the rounded u, which is what the backward sees
    tl.store(y_ptr + out, acc.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def store_dx(
    acc, offs_m, offs_k, pid_m, pointers, M, K, stride_u_row,
    ACTIVATION: tl.constexpr, WRITE_H: tl.constexpr, WRITE_PARTIAL: tl.constexpr, FULL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dx = acc * ACTIVATION'(u), its sum over these rows as one row of partial sums, and h = ACTIVATION(u).

    pointers: to u, dx, h and the partial sums.
    """
    u_ptr, dx_ptr, h_ptr, partial_ptr = pointers
    mask_k = offs_k < K
    mask = (offs_m < M)[:, None] & mask_k[None, :]
    if ACTIVATION is not None:
        u = tl.load(u_ptr + offsets(offs_m, offs_k, stride_u_row), mask=mask, other=0.0)  # [BLOCK_M, BLOCK_K]
        u = u.to(tl.float32)
        if WRITE_H:
            h = activate(u, ACTIVATION, FULL)
            tl.store(h_ptr + offsets(offs_m, offs_k, K), h.to(h_ptr.dtype.element_ty), mask=mask)
        acc *= activation_derivative(u, ACTIVATION, FULL)
    tl.store(dx_ptr + offsets(offs_m, offs_k, K), acc.to(dx_ptr.dtype.element_ty), mask=mask)
    if WRITE_PARTIAL:
        acc = tl.where(mask, acc, 0.0)
        if FULL and PRECISION == "ieee":  # nothing else rounds: two levels lose less than one, in whatever order tl.sum adds
            acc = tl.sum(tl.reshape(acc, (acc.shape[0] // 8, 8, acc.shape[1])), axis=1)  # [BLOCK_M // 8, BLOCK_K]
        tl.store(partial_ptr + pid_m.to(tl.int64) * K + offs_k, tl.sum(acc, axis=0), mask=mask_k)


@triton.jit
def store_half_dx(
    acc, offs_m, first, pid_m, pointers, M, K, stride_u_row,
    ACTIVATION: tl.constexpr, WRITE_H: tl.constexpr, WRITE_PARTIAL: tl.constexpr, FULL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`store_dx` for columns from `first` on; in two steps where h is written too."""
    columns: tl.constexpr = acc.shape[1]
    if WRITE_H:
        left, right = halves(acc)  # [BLOCK_M, columns // 2] each
        offs_k = first + tl.arange(0, columns // 2)
        store_dx(left, offs_m, offs_k, pid_m, pointers, M, K, stride_u_row, ACTIVATION, WRITE_H, WRITE_PARTIAL, FULL, PRECISION)
        offs_k += columns // 2
        store_dx(
            right, offs_m, offs_k, pid_m, pointers, M, K, stride_u_row, ACTIVATION, WRITE_H, WRITE_PARTIAL, FULL, PRECISION
        )
    else:
        offs_k = first + tl.arange(0, columns)
        store_dx(acc, offs_m, offs_k, pid_m, pointers, M, K, stride_u_row, ACTIVATION, WRITE_H, WRITE_PARTIAL, FULL, PRECISION)
