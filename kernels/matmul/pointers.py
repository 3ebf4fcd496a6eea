"""The three matrix products of a linear layer: kernels that run everywhere, and their launchers. config.py has the tiles.

x: (M, K), weight: (N, K), y, dy: (M, N).  Forward y = x @ weight.T, dgrad dx = dy @ weight, wgrad dweight = dy.T @ x.
Forward and dgrad take one weight or three of one shape side by side (query, key, value): N is then the rows of one of them,
and y and dy have 3 * N columns. Products accumulate in float32 and are rounded once, in the epilogue. A wgrad split along M
keeps one float32 slot per split; slots are added in order, so the bits depend on nothing but the shapes, the dtype and the
device (operands.py). Rows past M are read as copies of the last one, and never stored or summed.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import architecture, cdiv, dot_precision
from ..primitives.reduce import sum_partials
from ..primitives.tiles import halves, offsets, tile_position
from .config import GROUP_ROWS, GemmConfig, unsupported_reason, wgrad_splits
from .epilogue import store_activated, store_dx, store_half_dx
from .operands import have_whole_vectors, readable, readable_weights
from .split_k import gemm_fwd_split
from .tma import gemm_fwd_tma


@triton.jit(do_not_specialize=["M"])
def gemm_fwd_kernel(
    x_ptr, w0_ptr, w1_ptr, w2_ptr, b0_ptr, b1_ptr, b2_ptr, y_ptr, u_ptr,
    M, N, K, stride_x_row, stride_w_row,
    PARTS: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, SAVE_U: tl.constexpr, FULL: tl.constexpr,
    PRECISION: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
):  # fmt: skip
    tl.assume(K > 0)  # a loop that may run zero times makes Triton 3.6 emit wgmma that ptxas serialises
    num_n = tl.cdiv(N, BLOCK_N)
    pid_m, pid_n = tile_position(tl.program_id(0), tl.cdiv(M, BLOCK_M), PARTS * num_n, GROUP_ROWS)
    w_ptr, b_ptr, part = w0_ptr, b0_ptr, 0
    if PARTS == 3:
        part = pid_n // num_n
        w_ptr = tl.where(part == 0, w0_ptr, tl.where(part == 1, w1_ptr, w2_ptr))
        if HAS_BIAS:
            b_ptr = tl.where(part == 0, b0_ptr, tl.where(part == 1, b1_ptr, b2_ptr))
        pid_n = pid_n % num_n
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + offsets(tl.minimum(offs_m, M - 1), offs_k, stride_x_row)
    w_ptrs = w_ptr + offsets(tl.minimum(offs_n, N - 1), offs_k, stride_w_row)

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, K, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs)  # [BLOCK_M, BLOCK_K]
            w = tl.load(w_ptrs)  # [BLOCK_N, BLOCK_K]
        else:
            mask_k = (offs_k < K - k)[None, :]
            x = tl.load(x_ptrs, mask=mask_k, other=0.0)  # [BLOCK_M, BLOCK_K]
            w = tl.load(w_ptrs, mask=mask_k, other=0.0)  # [BLOCK_N, BLOCK_K]
        acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K

    mask_n = offs_n < N
    mask = (offs_m < M)[:, None] & mask_n[None, :]
    out = offsets(offs_m, part * N + offs_n, PARTS * N)
    if HAS_BIAS:
        bias = tl.load(b_ptr + offs_n, mask=mask_n, other=0.0)  # [BLOCK_N]
        acc += bias.to(tl.float32)[None, :]
    store_activated(acc, y_ptr, u_ptr, out, mask, ACTIVATION, SAVE_U, FULL)


@triton.jit(do_not_specialize=["M"])
def gemm_dgrad_kernel(
    dy_ptr, w0_ptr, w1_ptr, w2_ptr, u_ptr, dx_ptr, h_ptr, partial_ptr,
    M, N, K, stride_dy_row, stride_w_row, stride_u_row,
    PARTS: tl.constexpr, ACTIVATION: tl.constexpr, WRITE_H: tl.constexpr, WRITE_PARTIAL: tl.constexpr, FULL: tl.constexpr,
    PRECISION: tl.constexpr, EVEN_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
):  # fmt: skip
    tl.assume(N > 0)
    pid_m, pid_k = tile_position(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(K, BLOCK_K), GROUP_ROWS)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_k = pid_k * BLOCK_K + tl.arange(0, BLOCK_K)
    offs_n = tl.arange(0, BLOCK_N)
    mask_k = offs_k < K
    dy_offsets = offsets(tl.minimum(offs_m, M - 1), offs_n, stride_dy_row)
    w_offsets = offsets(offs_n, offs_k, stride_w_row)
    zero_64 = tl.zeros([], tl.int64)

    acc = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    steps = tl.cdiv(N, BLOCK_N)
    tl.assume(steps > 0)
    for step in range(0, PARTS * steps):
        w_ptr, first, n = w0_ptr, 0, step * BLOCK_N
        if PARTS == 3:
            part = step // steps
            w_ptr = tl.where(part == 0, w0_ptr, tl.where(part == 1, w1_ptr, w2_ptr))
            first, n = part * N, step % steps * BLOCK_N
        dy_ptrs = dy_ptr + (first + n) + dy_offsets
        w_ptrs = w_ptr + (zero_64 + n) * stride_w_row + w_offsets
        if EVEN_N:
            dy = tl.load(dy_ptrs)  # [BLOCK_M, BLOCK_N]
            w = tl.load(w_ptrs, mask=mask_k[None, :], other=0.0)  # [BLOCK_N, BLOCK_K]
        else:
            mask_n = offs_n < N - n
            dy = tl.load(dy_ptrs, mask=mask_n[None, :], other=0.0)  # [BLOCK_M, BLOCK_N]
            w = tl.load(w_ptrs, mask=mask_n[:, None] & mask_k[None, :], other=0.0)  # [BLOCK_N, BLOCK_K]
        acc = tl.dot(dy, w, acc, input_precision=PRECISION)  # [BLOCK_M, BLOCK_K]

    pointers = (u_ptr, dx_ptr, h_ptr, partial_ptr)
    if ACTIVATION is None or BLOCK_K < 128:
        store_dx(acc, offs_m, offs_k, pid_m, pointers, M, K, stride_u_row, ACTIVATION, WRITE_H, WRITE_PARTIAL, FULL, PRECISION)
    else:
        # A part of a wide tile at a time leaves registers for two programs on a multiprocessor.
        left, right = halves(acc)  # [BLOCK_M, BLOCK_K // 2] each
        first = pid_k * BLOCK_K
        store_half_dx(
            left, offs_m, first, pid_m, pointers, M, K, stride_u_row, ACTIVATION, WRITE_H, WRITE_PARTIAL, FULL, PRECISION
        )
        first += BLOCK_K // 2
        store_half_dx(
            right, offs_m, first, pid_m, pointers, M, K, stride_u_row, ACTIVATION, WRITE_H, WRITE_PARTIAL, FULL, PRECISION
        )


@triton.jit(do_not_specialize=["M", "rows_per_split"])
def gemm_wgrad_kernel(
    dy_ptr, x_ptr, dweight_ptr,
    M, N, K, stride_dy_row, stride_x_row, rows_per_split,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, GROUP_ROWS: tl.constexpr,
):  # fmt: skip
    """dweight[split] = dy.T @ x over the rows of the split. Nothing else may read a loaded tile of dy or x: Triton would then
    give it fewer slots in shared memory than stages, and on Hopper a copy would overwrite what a product still reads."""
    split = tl.program_id(1)
    pid_n, pid_k = tile_position(tl.program_id(0), tl.cdiv(N, BLOCK_N), tl.cdiv(K, BLOCK_K), GROUP_ROWS)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = pid_k * BLOCK_K + tl.arange(0, BLOCK_K)
    offs_m = tl.arange(0, BLOCK_M)
    mask_n, mask_k = offs_n < N, offs_k < K
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, M)
    tl.assume(first < last)
    dy_ptrs = dy_ptr + offsets(offs_m, offs_n, stride_dy_row)
    x_ptrs = x_ptr + offsets(offs_m, offs_k, stride_x_row)
    zero_64 = tl.zeros([], tl.int64)
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for m in range(first, last, BLOCK_M):
        mask_m = (offs_m < last - m)[:, None]
        dy = tl.load(dy_ptrs + (zero_64 + m) * stride_dy_row, mask=mask_m & mask_n[None, :], other=0.0)  # [BLOCK_M, BLOCK_N]
        x = tl.load(x_ptrs + (zero_64 + m) * stride_x_row, mask=mask_m & mask_k[None, :], other=0.0)  # [BLOCK_M, BLOCK_K]
        acc = tl.dot(tl.trans(dy), x, acc, input_precision=PRECISION)  # [BLOCK_N, BLOCK_K]
    out = dweight_ptr + split.to(tl.int64) * N * K + offsets(offs_n, offs_k, K)
    tl.store(out, acc.to(dweight_ptr.dtype.element_ty), mask=mask_n[:, None] & mask_k[None, :])


# config: one of `candidates`, for example a measured one; None leaves it to `GemmConfig.for_shape`.


def gemm_fwd(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activation: str | None,
    save_u: bool,
    config: GemmConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """(activation(x @ weight.T + bias) for each weight side by side, the same before the activation or an empty tensor).

    Raises ValueError where `unsupported_reason` says that a config that the caller chose cannot be taken.
    """
    (M, K), N, parts = x.shape, weights[0].shape[0], len(weights)
    y = torch.empty((M, parts * N), dtype=x.dtype, device=x.device)
    u = torch.empty((M if save_u else 0, parts * N), dtype=x.dtype, device=x.device)
    config = config or GemmConfig.for_shape("fwd", M, parts * N, x.dtype, x.device, have_whole_vectors(N, K))
    if (reason := unsupported_reason(config, x, weights)) is not None:
        raise ValueError(f"a forward cannot take {config.name}: {reason}")
    (x,), weights = readable(N, K, x), readable_weights(N, K, weights)
    if config.structure != "pointers":
        gemm_fwd_tma(x, weights, biases, y, u, activation, config)
        return y, u
    if config.splits is not None:
        gemm_fwd_split(x, weights, biases, y, u, activation, config)
        return y, u
    w0, w1, w2 = _three(weights)
    b0, b1, b2 = _three(biases)
    gemm_fwd_kernel[(cdiv(M, config.rows) * cdiv(N, config.columns) * parts,)](
        x, w0, w1, w2, b0, b1, b2, y, u,
        M, N, K, x.stride(0), w0.stride(0),
        PARTS=parts, HAS_BIAS=b0 is not None, ACTIVATION=activation, SAVE_U=save_u, FULL=x.dtype == torch.float32,
        PRECISION=dot_precision(x.dtype, architecture(x.device)), EVEN_K=K % config.inner == 0,
        BLOCK_M=config.rows, BLOCK_N=config.columns, BLOCK_K=config.inner, GROUP_ROWS=GROUP_ROWS,
        **config.launch,
    )  # fmt: skip
    return y, u


def gemm_dgrad(
    dy: Tensor,
    weights: Sequence[Tensor],
    u: Tensor | None = None,
    activation: str | None = None,
    want_sum: bool = False,
    want_h: bool = False,
    out_dtype: torch.dtype | None = None,
    config: GemmConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dy @ weight summed over the weights, times activation'(u) where given; its sum over the rows; activation(u)).

    What is not wanted is empty. out_dtype: dy's where None.
    """
    M, (N, K), parts, out_dtype = dy.shape[0], weights[0].shape, len(weights), out_dtype or dy.dtype
    dx = torch.empty((M, K), dtype=out_dtype, device=dy.device)
    product = "dgrad" if activation is None else "dgrad_activation"
    (dy,), weights = readable(N, K, dy), readable_weights(N, K, weights)
    u = None if u is None else readable(N, K, u)[0]
    config = config or GemmConfig.for_shape(product, M, K, dy.dtype, dy.device, have_whole_vectors(N, K))
    _check_for_pointers(product, config)
    row_tiles = cdiv(M, config.rows)
    partial = torch.empty((row_tiles if want_sum else 0, K), dtype=torch.float32, device=dy.device)
    h = torch.empty((M if want_h else 0, K), dtype=dy.dtype, device=dy.device)
    w0, w1, w2 = _three(weights)
    gemm_dgrad_kernel[(config.num_tiles(M, K),)](
        dy, w0, w1, w2, u, dx, h, partial,
        M, N, K, dy.stride(0), w0.stride(0), 0 if u is None else u.stride(0),
        PARTS=parts, ACTIVATION=activation, WRITE_H=want_h, WRITE_PARTIAL=want_sum, FULL=dy.dtype == torch.float32,
        PRECISION=dot_precision(dy.dtype, architecture(dy.device)), EVEN_N=N % config.inner == 0,
        BLOCK_M=config.rows, BLOCK_K=config.columns, BLOCK_N=config.inner, GROUP_ROWS=GROUP_ROWS,
        **config.launch,
    )  # fmt: skip
    return dx, sum_partials(partial, out_dtype) if want_sum else dx.new_empty(0), h


def gemm_wgrad(dy: Tensor, x: Tensor, out_dtype: torch.dtype | None = None, config: GemmConfig | None = None) -> Tensor:
    """dy.T @ x. out_dtype: dy's where None."""
    (M, N), K, out_dtype = dy.shape, x.shape[1], out_dtype or dy.dtype
    dy, x = readable(N, K, dy, x)
    config = config or GemmConfig.for_shape("wgrad", N, K, dy.dtype, dy.device, have_whole_vectors(N, K))
    _check_for_pointers("wgrad", config)
    splits = config.splits or wgrad_splits(config, M, N, K, dy.device)
    rows_per_split = cdiv(cdiv(M, splits), config.inner) * config.inner
    splits = cdiv(M, rows_per_split)
    dweight = torch.empty((splits, N, K), dtype=out_dtype if splits == 1 else torch.float32, device=dy.device)
    gemm_wgrad_kernel[(config.num_tiles(N, K), splits)](
        dy, x, dweight,
        M, N, K, dy.stride(0), x.stride(0), rows_per_split,
        PRECISION=dot_precision(dy.dtype, architecture(dy.device)),
        BLOCK_N=config.rows, BLOCK_K=config.columns, BLOCK_M=config.inner, GROUP_ROWS=GROUP_ROWS,
        **config.launch,
    )  # fmt: skip
    return dweight[0] if splits == 1 else sum_partials(dweight, out_dtype)


def _check_for_pointers(product: str, config: GemmConfig) -> None:
    if config.structure != "pointers" or (config.splits is not None and product != "wgrad"):
        raise ValueError(f"expected a tile for {product}, which has one structure, pointers, unsplit; got {config.name}")


_T = TypeVar("_T", Tensor, Tensor | None)


def _three(tensors: Sequence[_T]) -> Sequence[_T]:
    return tensors if len(tensors) == 3 else [tensors[0]] * 3
