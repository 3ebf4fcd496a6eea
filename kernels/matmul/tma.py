"""The forward for 16-bit tensors on Hopper and later: the tensor memory accelerator (TMA) copies whole tiles.

It reads through descriptors that the host builds at each launch: the loop computes no address and keeps no mask; what lies
past an edge is read as zero and never stored. `tma` has one program for each tile. `tma_persistent` has as many programs as
fit the device at once, each walking the tiles in the order of `tile_position`; `tma_flattened` makes one loop of the walk
and the sum, so that the next tile is being read while this one is stored. Their epilogue takes a tile in halves of its
columns: half the shared memory for the store, and fewer registers.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..device import num_programs
from ..primitives.gelu import activate
from ..primitives.tiles import halves, tile_position
from .config import GROUP_ROWS, GemmConfig


@triton.jit
def _store(
    acc, b_ptr, y_desc, u_desc, row, column, first_column, N,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, SAVE_U: tl.constexpr,
):  # fmt: skip
    """The epilogue of a tile whose left column is `column` of one weight, `first_column` after the first of the result."""
    if HAS_BIAS:
        offs_n = column + tl.arange(0, acc.shape[1])
        bias = tl.load(b_ptr + offs_n, mask=offs_n < N, other=0.0)  # [BLOCK_N], of the whole tile or of its half
        acc += bias.to(tl.float32)[None, :]
    if ACTIVATION is not None:
        u = acc.to(y_desc.dtype)
        if SAVE_U:
            u_desc.store([row, first_column + column], u)
        acc = activate(u.to(tl.float32), ACTIVATION, False)  # of the rounded u, which is what the backward sees
    y_desc.store([row, first_column + column], acc.to(y_desc.dtype))


@triton.jit
def _compute_tile(
    tile, tensors, M, N, K,
    PARTS: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, SAVE_U: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HALVES: tl.constexpr, GROUP_ROWS: tl.constexpr,
):  # fmt: skip
    """One tile of the result. tensors: the arguments of `gemm_fwd_tma_kernel` that are no numbers."""
    x_desc, w0_desc, w1_desc, w2_desc, b0_ptr, b1_ptr, b2_ptr, y_desc, u_desc = tensors
    num_n = tl.cdiv(N, BLOCK_N)
    pid_m, pid_n = tile_position(tile, tl.cdiv(M, BLOCK_M), PARTS * num_n, GROUP_ROWS)
    w_desc, b_ptr, part = w0_desc, b0_ptr, 0
    if PARTS == 3:
        part = pid_n // num_n
        if part == 1:
            w_desc = w1_desc
        elif part == 2:
            w_desc = w2_desc
        if HAS_BIAS:
            b_ptr = tl.where(part == 0, b0_ptr, tl.where(part == 1, b1_ptr, b2_ptr))
        pid_n = pid_n % num_n
    row, column = pid_m * BLOCK_M, pid_n * BLOCK_N

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, K, BLOCK_K):
        x = x_desc.load([row, k])  # [BLOCK_M, BLOCK_K]
        w = w_desc.load([column, k])  # [BLOCK_N, BLOCK_K]
        acc = tl.dot(x, tl.trans(w), acc)  # [BLOCK_M, BLOCK_N]

    if HALVES:
        left, right = halves(acc)  # [BLOCK_M, BLOCK_N // 2] each
        _store(left, b_ptr, y_desc, u_desc, row, column, part * N, N, HAS_BIAS, ACTIVATION, SAVE_U)
        _store(right, b_ptr, y_desc, u_desc, row, column + BLOCK_N // 2, part * N, N, HAS_BIAS, ACTIVATION, SAVE_U)
    else:
        _store(acc, b_ptr, y_desc, u_desc, row, column, part * N, N, HAS_BIAS, ACTIVATION, SAVE_U)


@triton.jit(do_not_specialize=["M"])
def gemm_fwd_tma_kernel(
    x_desc, w0_desc, w1_desc, w2_desc, b0_ptr, b1_ptr, b2_ptr, y_desc, u_desc,
    M, N, K,
    PARTS: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, SAVE_U: tl.constexpr, PERSISTENT: tl.constexpr,
    FLATTEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HALVES: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
):  # fmt: skip
    tl.assume(K > 0)  # a loop that may run zero times makes Triton 3.6 emit wgmma that ptxas serialises
    tensors = (x_desc, w0_desc, w1_desc, w2_desc, b0_ptr, b1_ptr, b2_ptr, y_desc, u_desc)
    if PERSISTENT:
        tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N) * PARTS
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
            _compute_tile(
                tile, tensors, M, N, K, PARTS, HAS_BIAS, ACTIVATION, SAVE_U, BLOCK_M, BLOCK_N, BLOCK_K, HALVES, GROUP_ROWS
            )
    else:
        tile = tl.program_id(0)
        _compute_tile(
            tile, tensors, M, N, K, PARTS, HAS_BIAS, ACTIVATION, SAVE_U, BLOCK_M, BLOCK_N, BLOCK_K, HALVES, GROUP_ROWS
        )


def constants(config: GemmConfig) -> dict[str, int | bool]:
    """The constants of the kernel that a config decides."""
    persistent = config.structure != "tma"
    return dict(
        PERSISTENT=persistent,
        FLATTEN=config.structure == "tma_flattened",
        HALVES=persistent or config.columns > 128,
        BLOCK_M=config.rows,
        BLOCK_N=config.columns,
        BLOCK_K=config.inner,
        GROUP_ROWS=GROUP_ROWS,
    )


def blocks(config: GemmConfig) -> tuple[list[int], list[int], list[int]]:
    """The shapes that one copy moves of x, of a weight, and of the result."""
    columns = config.columns // 2 if constants(config)["HALVES"] else config.columns
    return [config.rows, config.inner], [config.columns, config.inner], [config.rows, columns]


def gemm_fwd_tma(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    y: Tensor,
    u: Tensor,
    activation: str | None,
    config: GemmConfig,
) -> None:
    """Writes y, and u unless it is empty, as `pointers.gemm_fwd` describes them. `unsupported_reason` must have found none."""
    (M, K), N, parts, save_u = x.shape, weights[0].shape[0], len(weights), u.shape[0] > 0
    x_block, w_block, y_block = blocks(config)
    w_descs = [TensorDescriptor(w, [N, K], list(w.stride()), w_block) for w in weights]
    y_desc = TensorDescriptor(y, [M, parts * N], [parts * N, 1], y_block)
    programs = config.num_tiles(M, N) * parts
    if config.structure != "tma":
        programs = min(programs, num_programs(x.device, config.programs))
    gemm_fwd_tma_kernel[(programs,)](
        TensorDescriptor(x, [M, K], list(x.stride()), x_block), *(w_descs if parts == 3 else w_descs * 3),
        *(biases if parts == 3 else list(biases) * 3), y_desc,
        TensorDescriptor(u, [M, parts * N], [parts * N, 1], y_block) if save_u else y_desc,
        M, N, K,
        PARTS=parts, HAS_BIAS=biases[0] is not None, ACTIVATION=activation, SAVE_U=save_u, **constants(config), **config.launch,
    )  # fmt: skip
