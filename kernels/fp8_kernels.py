"""The kernels of fp8.py: quantising rows, layer norm followed by quantising, and products of quantised tensors.

x, residual, y: (M, N); q: (M, K) float8_e4m3fn with scale (M, 1) or (M, ceil(K / GROUP)); weight_q: (N, K) with one scale per
row; all scales float32. A tile of a product is GROUP columns wide, so that one program sees every value under a scale of a
quantised result. Hopper's matrix unit keeps about 14 bits of an fp8 sum: after every GROUP columns of K the sum is added to a
float32 accumulator, times the scale of these columns where there is one. Rows past M are read as copies of the last row.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .batch_invariance import is_batch_invariant
from .device import cdiv, num_programs
from .fp8_format import E4M3, GROUP, LARGEST, SMALLEST, num_groups
from .matmul.config import GROUP_ROWS
from .primitives.gelu import activate
from .primitives.layout import last_contiguous
from .primitives.tiles import offsets, tile_position
from .registration import register

assert (LARGEST, SMALLEST) == (448.0, 1e-12)  # literals below: the interpreter cannot divide a constexpr by a tensor

# The interpreter's conversion to e4m3 loses the carry of a rounding (125 becomes 64) and drops subnormals. It is right for
# numbers that e4m3 has, so they are rounded before.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _nearest_e4m3(x):
    """float32 x, at most 448 in magnitude, rounded to the nearest number of e4m3, ties to even."""
    power = (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)  # the largest power of two up to |x|
    shift = tl.maximum(power * 0.125, 0.001953125) * 12582912.0  # 1.5 * 2^23 steps of e4m3: adding it rounds to whole steps
    nan = tl.full([], 0x7FF00000, tl.int32).to(tl.float32, bitcast=True)  # its leading bits are e4m3's only NaN
    return tl.where(x == x, (x + shift) - shift, nan)


@triton.jit
def _row_scales(x):
    """(x as fp8 [R, C], scale [R]) of float32 x [R, C]. A NaN stays a NaN."""
    largest = tl.maximum(tl.max(tl.abs(x), axis=1), 1e-12)  # [R]
    q = x * (448.0 / largest)[:, None]
    q = tl.clamp(q, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    if INTERPRETED:
        q = _nearest_e4m3(q)
    return q.to(tl.float8e4nv), largest / 448.0


@triton.jit(do_not_specialize=["M"])
def quantize_kernel(x_ptr, q_ptr, scale_ptr, M, N, stride_x_row, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    x = tl.load(x_ptr + offsets(offs_m, offs_n, stride_x_row), mask=mask, other=0.0).to(tl.float32)  # [BLOCK_M, BLOCK_N]
    q, scale = _row_scales(x)  # [BLOCK_M, BLOCK_N], [BLOCK_M]
    tl.store(q_ptr + offsets(offs_m, offs_n, N), q, mask=mask)
    tl.store(scale_ptr + offs_m, scale, mask=offs_m < M)


@triton.jit(do_not_specialize=["M"])
def layer_norm_kernel(
    x_ptr, x_bias_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, q_ptr, scale_ptr,
    M, N, stride_x_row, stride_residual_row, eps,
    HAS_X_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    mask = (offs_m < M)[:, None] & mask_n[None, :]
    z = tl.load(x_ptr + offsets(offs_m, offs_n, stride_x_row), mask=mask, other=0.0).to(tl.float32)  # [BLOCK_M, BLOCK_N]
    if HAS_X_BIAS:
        z += tl.load(x_bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]  # [1, BLOCK_N]
    residual_ptrs = residual_ptr + offsets(offs_m, offs_n, stride_residual_row)
    z += tl.load(residual_ptrs, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_M, BLOCK_N]

    mean = tl.sum(z, axis=1) / N  # [BLOCK_M]
    centred = tl.where(mask_n[None, :], z - mean[:, None], 0.0)  # [BLOCK_M, BLOCK_N]
    rstd = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, axis=1) / N + eps)  # [BLOCK_M]
    weight = tl.load(weight_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)  # [BLOCK_N]
    bias = tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)  # [BLOCK_N]
    y = (centred * rstd[:, None] * weight[None, :] + bias[None, :]).to(y_ptr.dtype.element_ty)  # [BLOCK_M, BLOCK_N]
    q, scale = _row_scales(y.to(tl.float32))  # [BLOCK_M, BLOCK_N], [BLOCK_M]
    out = offsets(offs_m, offs_n, N)
    tl.store(y_ptr + out, y, mask=mask)
    tl.store(q_ptr + out, q, mask=mask)
    tl.store(scale_ptr + offs_m, scale, mask=offs_m < M)


@triton.jit(do_not_specialize=["M"])
def fp8_gemm_kernel(
    x_ptr, scale_ptr, w_ptr, w_scale_ptr, b_ptr, y_ptr, y_scale_ptr,
    M, N, K,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, GROUPED: tl.constexpr, QUANTIZE: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_ROWS: tl.constexpr,
):  # fmt: skip
    """y = ACTIVATION(x @ w.T + b). GROUPED: x has a scale per BLOCK_K columns. QUANTIZE: y is stored as fp8 with a scale per
    BLOCK_N columns."""
    tl.assume(K > 0)
    pid_m, pid_n = tile_position(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_ROWS)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    rows = tl.minimum(offs_m, M - 1)
    x_ptrs = x_ptr + offsets(rows, offs_k, K)
    w_ptrs = w_ptr + offsets(tl.minimum(offs_n, N - 1), offs_k, K)
    groups = tl.cdiv(K, BLOCK_K) if GROUPED else 1
    scale_ptrs = scale_ptr + rows.to(tl.int64) * groups

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, K, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs)  # [BLOCK_M, BLOCK_K]
            w = tl.load(w_ptrs)  # [BLOCK_N, BLOCK_K]
        else:
            mask_k = (offs_k < K - k)[None, :]
            x = tl.load(x_ptrs, mask=mask_k, other=0.0)  # [BLOCK_M, BLOCK_K]
            w = tl.load(w_ptrs, mask=mask_k, other=0.0)  # [BLOCK_N, BLOCK_K]
        # Each BLOCK_K columns have their own sum: with acc as the operand and max_num_imprecise_acc, Triton adds before
        # it waits on Hopper, and the assembler puts in a wait that serialises. Elsewhere Triton makes acc the operand again.
        sums = tl.dot(x, tl.trans(w))  # [BLOCK_M, BLOCK_N]
        if GROUPED:
            sums *= tl.load(scale_ptrs)[:, None]  # [BLOCK_M, 1]
            scale_ptrs += 1
        acc += sums
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K

    mask_n = offs_n < N
    mask = (offs_m < M)[:, None] & mask_n[None, :]
    if not GROUPED:
        acc *= tl.load(scale_ptrs)[:, None]  # [BLOCK_M, 1]
    acc *= tl.load(w_scale_ptr + offs_n, mask=mask_n, other=0.0)[None, :]  # [1, BLOCK_N]
    if HAS_BIAS:
        acc += tl.load(b_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]  # [1, BLOCK_N]
    if ACTIVATION is not None:
        acc = activate(acc, ACTIVATION, False)
    out = offsets(offs_m, offs_n, N)
    if QUANTIZE:
        q, scale = _row_scales(tl.where(mask_n[None, :], acc, 0.0))  # [BLOCK_M, BLOCK_N], [BLOCK_M]
        tl.store(y_ptr + out, q, mask=mask)
        tl.store(y_scale_ptr + offs_m.to(tl.int64) * tl.cdiv(N, BLOCK_N) + pid_n, scale, mask=offs_m < M)
    else:
        tl.store(y_ptr + out, acc.to(y_ptr.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class Fp8Config:
    """A tile of rows x GROUP columns; K is summed GROUP columns at a time."""

    rows: int
    num_warps: int
    num_stages: int

    @classmethod
    def for_shape(cls, M: int, N: int, device: torch.device) -> "Fp8Config":
        """The larger tile where that gives every multiprocessor one; the smaller always in batch-invariant mode."""
        if is_batch_invariant():
            return SMALL
        tiles = cdiv(M, LARGE.rows) * cdiv(N, GROUP)
        return LARGE if tiles >= num_programs(device, 1) else SMALL


VECTOR = 16  # bytes of a load
LARGE = Fp8Config(128, num_warps=8, num_stages=3)
SMALL = Fp8Config(64, num_warps=4, num_stages=4)
# Rows per program of the kernels that hold whole rows, and their warps. Four rows of the layer norm spill on sm_90.
QUANTIZE_ROWS, NORM_ROWS, ROW_WARPS = 4, 2, 4


def _quantize(x):
    q, scale = _quantize_fake(x)
    M, N = x.shape
    if M * N:
        quantize_kernel[(cdiv(M, QUANTIZE_ROWS),)](
            x, q, scale, M, N, x.stride(0), BLOCK_M=QUANTIZE_ROWS, BLOCK_N=triton.next_power_of_2(N), num_warps=ROW_WARPS
        )
    return q, scale


def _quantize_fake(x):
    return torch.empty_like(x, dtype=E4M3, memory_format=torch.contiguous_format), _scales(x, x.shape[0], 1)


def _scales(like, M, groups):
    return torch.empty((M, groups), dtype=torch.float32, device=like.device)


def _layer_norm(x, weight, bias, residual, x_bias, eps):
    y, q, scale = _layer_norm_fake(x, weight, bias, residual, x_bias, eps)
    M, N = x.shape
    if M:
        layer_norm_kernel[(cdiv(M, NORM_ROWS),)](
            x, x_bias, residual, weight, bias, y, q, scale, M, N, x.stride(0), residual.stride(0), eps,
            HAS_X_BIAS=x_bias is not None, BLOCK_M=NORM_ROWS, BLOCK_N=triton.next_power_of_2(N), num_warps=ROW_WARPS,
        )  # fmt: skip
    return y, q, scale


def _layer_norm_fake(x, weight, bias, residual, x_bias, eps):
    return torch.empty_like(x, memory_format=torch.contiguous_format), *_quantize_fake(x)


def _gemm(q, scale, weight_q, weight_scale, bias, activation, y, y_scale):
    (M, K), N = q.shape, weight_q.shape[0]
    if M * N == 0:
        return
    if missing := -K % VECTOR:  # zeros, which add nothing: bytes read one by one would spill registers
        q, weight_q = (F.pad(x.view(torch.uint8), (0, missing)).view(E4M3) for x in (q, weight_q))
        K += missing
    config = Fp8Config.for_shape(M, N, q.device)
    fp8_gemm_kernel[(cdiv(M, config.rows) * cdiv(N, GROUP),)](
        q, scale, weight_q, weight_scale, bias, y, y_scale, M, N, K,
        HAS_BIAS=bias is not None, ACTIVATION=activation, GROUPED=scale.shape[1] > 1, QUANTIZE=y_scale is not None,
        EVEN_K=K % GROUP == 0, BLOCK_M=config.rows, BLOCK_N=GROUP, BLOCK_K=GROUP, GROUP_ROWS=GROUP_ROWS,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def _linear(q, scale, weight_q, weight_scale, bias, out_dtype):
    y = _linear_fake(q, scale, weight_q, weight_scale, bias, out_dtype)
    _gemm(q, scale, weight_q, weight_scale, bias, None, y, None)
    return y


def _linear_fake(q, scale, weight_q, weight_scale, bias, out_dtype):
    return torch.empty((q.shape[0], weight_q.shape[0]), dtype=out_dtype, device=q.device)


def _linear_activation(q, scale, weight_q, weight_scale, bias, activation):
    y, y_scale = _linear_activation_fake(q, scale, weight_q, weight_scale, bias, activation)
    _gemm(q, scale, weight_q, weight_scale, bias, activation, y, y_scale)
    return y, y_scale


def _linear_activation_fake(q, scale, weight_q, weight_scale, bias, activation):
    M, N = q.shape[0], weight_q.shape[0]
    return torch.empty((M, N), dtype=E4M3, device=q.device), _scales(q, M, num_groups(N))


quantize_op = register("fp8_quantize(Tensor x) -> (Tensor, Tensor)", _quantize, fake=_quantize_fake)
layer_norm_op = register(
    "fp8_layer_norm(Tensor x, Tensor weight, Tensor bias, Tensor residual, Tensor? x_bias, float eps) "
    "-> (Tensor, Tensor, Tensor)",
    _layer_norm,
    fake=_layer_norm_fake,
)
linear_op = register(
    "fp8_linear(Tensor q, Tensor scale, Tensor weight_q, Tensor weight_scale, Tensor? bias, ScalarType out_dtype) -> Tensor",
    _linear,
    fake=_linear_fake,
)
linear_activation_op = register(
    "fp8_linear_activation(Tensor q, Tensor scale, Tensor weight_q, Tensor weight_scale, Tensor bias, str activation) "
    "-> (Tensor, Tensor)",
    _linear_activation,
    fake=_linear_activation_fake,
)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel of `fp8.quantize`. The functions of fp8.py document and check the arguments, here and below."""
    return quantize_op(last_contiguous(x))


def layer_norm(x, weight, bias, residual, x_bias, eps) -> tuple[Tensor, Tensor, Tensor]:
    return layer_norm_op(last_contiguous(x), weight, bias, last_contiguous(residual), x_bias, eps)


def linear(q, scale, weight_q, weight_scale, bias, out_dtype) -> Tensor:
    return linear_op(q.contiguous(), scale.contiguous(), weight_q.contiguous(), weight_scale, bias, out_dtype)


def linear_activation(q, scale, weight_q, weight_scale, bias, activation) -> tuple[Tensor, Tensor]:
    return linear_activation_op(q.contiguous(), scale.contiguous(), weight_q.contiguous(), weight_scale, bias, activation)
