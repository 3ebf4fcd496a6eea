"""The forward for few rows: several programs share the sum over K, because few tiles leave most multiprocessors idle.

Each split of K owns one float32 slot, (splits, M, N) in all, and a second kernel adds the slots in index order, then the
bias, and applies the activation: no atomics, and the bits depend on the config and K alone, not on M.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device import architecture, cdiv, dot_precision
from ..primitives.tiles import offsets, tile_position
from .config import GROUP_ROWS, GemmConfig
from .epilogue import store_activated

ADD_TILE = dict(BLOCK_M=4, BLOCK_N=256)
ADD_WARPS = 4


@triton.jit(do_not_specialize=["M"])
def gemm_fwd_split_kernel(
    x_ptr, w0_ptr, w1_ptr, w2_ptr, partial_ptr,
    M, N, K, stride_x_row, stride_w_row, K_per_split,
    PARTS: tl.constexpr, PRECISION: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP_ROWS: tl.constexpr,
):  # fmt: skip
    """partial[split] = x[:, of this split] @ weight[:, of this split].T, unrounded."""
    split = tl.program_id(1)
    num_n = tl.cdiv(N, BLOCK_N)
    pid_m, pid_n = tile_position(tl.program_id(0), tl.cdiv(M, BLOCK_M), PARTS * num_n, GROUP_ROWS)
    w_ptr, part = w0_ptr, 0
    if PARTS == 3:
        part = pid_n // num_n
        w_ptr = tl.where(part == 0, w0_ptr, tl.where(part == 1, w1_ptr, w2_ptr))
        pid_n = pid_n % num_n
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    first = split * K_per_split
    last = tl.minimum(first + K_per_split, K)
    tl.assume(first < last)
    x_ptrs = x_ptr + first + offsets(tl.minimum(offs_m, M - 1), offs_k, stride_x_row)
    w_ptrs = w_ptr + first + offsets(tl.minimum(offs_n, N - 1), offs_k, stride_w_row)

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(first, last, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs)  # [BLOCK_M, BLOCK_K]
            w = tl.load(w_ptrs)  # [BLOCK_N, BLOCK_K]
        else:
            mask_k = (offs_k < last - k)[None, :]
            x = tl.load(x_ptrs, mask=mask_k, other=0.0)  # [BLOCK_M, BLOCK_K]
            w = tl.load(w_ptrs, mask=mask_k, other=0.0)  # [BLOCK_N, BLOCK_K]
        acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K

    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    slot = partial_ptr + split.to(tl.int64) * M * (PARTS * N)
    tl.store(slot + offsets(offs_m, part * N + offs_n, PARTS * N), acc, mask=mask)


@triton.jit(do_not_specialize=["M"])
def add_splits_kernel(
    partial_ptr, b0_ptr, b1_ptr, b2_ptr, y_ptr, u_ptr,
    M, N, splits,
    PARTS: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, SAVE_U: tl.constexpr, FULL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y = ACTIVATION(the slots in index order + bias), and the same before the activation as u."""
    part = tl.program_id(2)
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    mask = (offs_m < M)[:, None] & mask_n[None, :]
    out = offsets(offs_m, part * N + offs_n, PARTS * N)
    per_slot = tl.zeros([], tl.int64) + M
    per_slot *= PARTS * N
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for split in range(0, splits):
        acc += tl.load(partial_ptr + split * per_slot + out, mask=mask, other=0.0)  # [BLOCK_M, BLOCK_N]
    if HAS_BIAS:
        b_ptr = b0_ptr
        if PARTS == 3:
            b_ptr = tl.where(part == 0, b0_ptr, tl.where(part == 1, b1_ptr, b2_ptr))
        bias = tl.load(b_ptr + offs_n, mask=mask_n, other=0.0)  # [BLOCK_N]
        acc += bias.to(tl.float32)[None, :]
    store_activated(acc, y_ptr, u_ptr, out, mask, ACTIVATION, SAVE_U, FULL)


def gemm_fwd_split(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    y: Tensor,
    u: Tensor,
    activation: str | None,
    config: GemmConfig,
) -> None:
    """Writes y, and u unless it is empty, as `pointers.gemm_fwd` describes them."""
    (M, K), N, parts = x.shape, weights[0].shape[0], len(weights)
    w0, w1, w2 = weights if parts == 3 else list(weights) * 3
    b0, b1, b2 = biases if parts == 3 else list(biases) * 3
    splits, per_split = config.splits_of(K)
    partial = torch.empty((splits, M, parts * N), dtype=torch.float32, device=x.device)
    gemm_fwd_split_kernel[(config.num_tiles(M, N) * parts, splits)](
        x, w0, w1, w2, partial,
        M, N, K, x.stride(0), w0.stride(0), per_split,
        PARTS=parts, PRECISION=dot_precision(x.dtype, architecture(x.device)), EVEN_K=K % config.inner == 0,
        BLOCK_M=config.rows, BLOCK_N=config.columns, BLOCK_K=config.inner, GROUP_ROWS=GROUP_ROWS, **config.launch,
    )  # fmt: skip
    add_splits_kernel[(cdiv(M, ADD_TILE["BLOCK_M"]), cdiv(N, ADD_TILE["BLOCK_N"]), parts)](
        partial, b0, b1, b2, y, u,
        M, N, splits,
        PARTS=parts, HAS_BIAS=b0 is not None, ACTIVATION=activation, SAVE_U=u.shape[0] > 0, FULL=x.dtype == torch.float32,
        **ADD_TILE, num_warps=ADD_WARPS,
    )  # fmt: skip
