"""The linear layers of BERT, forward and backward: a projection, the three of attention at once, and the feed-forward.

x: (M, K); weight: (N, K); y, dy: (M, N); u: the value before an activation, rounded to y's dtype; h = activation(u).
Each matrix product goes to a Triton kernel of gemm.py or to the library, as dispatch.py says; results differ by rounding
only. Saved for the backward: x, the weights, and u where there is an activation; h, for the feed-forward's second weight,
is made again where the backward reads u anyway. Bias gradients are float32 sums taken where a kernel reads the tensor
anyway: in the epilogue that makes it, in the wgrad, or with the activation's derivative; no atomics.
"""

import random
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import functional, reference
from .device import cdiv, num_programs
from .limits import ACTIVATIONS
from .matmul.pointers import dgrad_variants, fwd_variants, gemm_dgrad, gemm_fwd, gemm_wgrad, offsets, wgrad_variants
from .matmul.sides import side
from .primitives.gelu import activate, activation_derivative
from .primitives.reduce import sum_partials
from .registration import register, wants_grad
from .specs.spec import Inputs, KernelVariant, OperationSpec, Sample, Workload, generator, nbytes, normal


@triton.jit(do_not_specialize=["M", "rows_per_program"])
def _activation_bwd_kernel(
    dy_ptr, u_ptr, du_ptr, h_ptr, partial_ptr,
    M, N, stride_dy_row, rows_per_program,
    ACTIVATION: tl.constexpr, WRITE_H: tl.constexpr, WRITE_PARTIAL: tl.constexpr, FULL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """du = dy * ACTIVATION'(u), its sum over each program's rows, h = ACTIVATION(u); without ACTIVATION only the sum of dy."""
    program = tl.program_id(0)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    first = program * rows_per_program
    last = tl.minimum(first + rows_per_program, M)
    column_sum = tl.zeros([BLOCK_N], tl.float32)
    for row in range(first, last, BLOCK_M):
        offs_m = row + tl.arange(0, BLOCK_M)
        mask = (offs_m < last)[:, None] & mask_n[None, :]
        du = tl.load(dy_ptr + offsets(offs_m, offs_n, stride_dy_row), mask=mask, other=0.0).to(tl.float32)
        if ACTIVATION is not None:
            out = offsets(offs_m, offs_n, N)
            u = tl.load(u_ptr + out, mask=mask, other=0.0).to(tl.float32)
            du *= activation_derivative(u, ACTIVATION, FULL)
            tl.store(du_ptr + out, du.to(du_ptr.dtype.element_ty), mask=mask)
            if WRITE_H:
                tl.store(h_ptr + out, activate(u, ACTIVATION, FULL).to(h_ptr.dtype.element_ty), mask=mask)
        if WRITE_PARTIAL:
            column_sum += tl.sum(du, axis=0)
    if WRITE_PARTIAL:
        tl.store(partial_ptr + program.to(tl.int64) * N + offs_n, column_sum, mask=mask_n)


ACTIVATION_TILE = dict(BLOCK_M=16, BLOCK_N=256)  # a row of the tile is one 512-byte read of 16-bit elements
ACTIVATION_WARPS = 8


def _activation_bwd(
    dy: Tensor, u: Tensor | None, activation: str | None, want_sum: bool, want_h: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(dy * activation'(u), or dy itself without an activation; its sum over the rows; activation(u)); unwanted ones empty."""
    M, N = dy.shape
    du = dy if activation is None else torch.empty((M, N), dtype=dy.dtype, device=dy.device)
    h = torch.empty((M if want_h else 0, N), dtype=dy.dtype, device=dy.device)
    if activation is None and not want_sum:
        return du, dy.new_empty(0), h
    if M * N == 0:
        return du, dy.new_zeros(N if want_sum else 0), h
    columns = cdiv(N, ACTIVATION_TILE["BLOCK_N"])
    programs = cdiv(num_programs(dy.device, 8), columns)
    rows_per_program = cdiv(cdiv(M, programs), ACTIVATION_TILE["BLOCK_M"]) * ACTIVATION_TILE["BLOCK_M"]
    programs = cdiv(M, rows_per_program)
    partial = torch.empty((programs if want_sum else 0, N), dtype=torch.float32, device=dy.device)
    _activation_bwd_kernel[(programs, columns)](
        dy, u, None if activation is None else du, h, partial,
        M, N, dy.stride(0), rows_per_program,
        ACTIVATION=activation, WRITE_H=want_h, WRITE_PARTIAL=want_sum, FULL=dy.dtype == torch.float32,
        **ACTIVATION_TILE, num_warps=ACTIVATION_WARPS,
    )  # fmt: skip
    return du, sum_partials(partial, dy.dtype) if want_sum else dy.new_empty(0), h


def _library(product, *operands: Tensor, out: Tensor | None = None) -> Tensor:
    """A product of PyTorch's own; the operands have their dtype already."""
    device_type = operands[0].device.type
    if not torch.is_autocast_enabled(device_type):
        return product(*operands) if out is None else product(*operands, out=out)
    with torch.autocast(device_type, enabled=False):
        return product(*operands) if out is None else product(*operands, out=out)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, save_u: bool) -> tuple[Tensor, Tensor]:
    """(y, u or an empty tensor) of one weight."""
    operation = "linear" if activation is None else "linear_activation"
    on_triton, config = side(operation, x.shape[0], weight.shape, x, (weight,))
    if on_triton:
        return gemm_fwd(x, [weight], [bias], activation, save_u, config=config)
    u = _library(torch.mm, x, weight.t()) if bias is None else _library(torch.addmm, bias, x, weight.t())
    empty = u.new_empty(0, weight.shape[0])
    return (u, empty) if activation is None else (reference.activate(u, activation), u if save_u else empty)


def _dgrad(dy: Tensor, weight: Tensor) -> Tensor:
    on_triton, config = side("dgrad", dy.shape[0], weight.shape, dy)
    if on_triton:
        return gemm_dgrad(dy, [weight], config=config)[0]
    return _library(torch.mm, dy, weight)


def _dgrad_activation(
    dy: Tensor, weight: Tensor, u: Tensor, activation: str, want_sum: bool, want_h: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(du = (dy @ weight) * activation'(u), its sum over the rows, activation(u)); unwanted ones empty."""
    on_triton, config = side("dgrad_activation", dy.shape[0], weight.shape, dy)
    if on_triton:
        return gemm_dgrad(dy, [weight], u, activation, want_sum, want_h, config=config)
    return _activation_bwd(_library(torch.mm, dy, weight), u, activation, want_sum, want_h)


def _wgrad(dy: Tensor, x: Tensor, want_sum: bool) -> tuple[Tensor, Tensor]:
    """(dy.T @ x, the sum of dy over the rows or an empty tensor)."""
    on_triton, config = side("wgrad", dy.shape[0], (dy.shape[1], x.shape[1]), dy)
    if on_triton:
        return gemm_wgrad(dy, x, want_sum, config=config)
    return _library(torch.mm, dy.t(), x), _activation_bwd(dy, None, None, want_sum)[1]


def _column_sum(dy: Tensor) -> Tensor:
    return _activation_bwd(dy, None, None, True)[1]


# One weight. In every backward operator below, an input that is None was not saved because nothing asks for its use.


def _linear_fwd(x, weight, bias, activation, save):
    return _forward(x, weight, bias, activation, save and activation is not None)


def _linear_fwd_fake(x, weight, bias, activation, save):
    M, N = x.shape[0], weight.shape[0]
    return x.new_empty(M, N), x.new_empty(M if save and activation is not None else 0, N)


def _linear_bwd(dy, x, weight, u, activation, want_bias):
    dx, dweight, dbias = _linear_bwd_fake(dy, x, weight, u, activation, False)
    if activation is not None:
        dy, dbias, _ = _activation_bwd(dy, u, activation, want_bias)
    if x is not None:
        dweight, row_sum = _wgrad(dy, x, want_bias and activation is None)
        dbias = row_sum if activation is None else dbias
    elif want_bias and activation is None:
        dbias = _column_sum(dy)
    if weight is not None:
        dx = _dgrad(dy, weight)
    return dx, dweight, dbias


def _linear_bwd_fake(dy, x, weight, u, activation, want_bias):
    M, N = dy.shape
    return (
        dy.new_empty((0, 0) if weight is None else (M, weight.shape[1])),
        dy.new_empty((0, 0) if x is None else (N, x.shape[1])),
        dy.new_empty(N if want_bias else 0),
    )


linear_bwd = register(
    "linear_bwd(Tensor dy, Tensor? x, Tensor? weight, Tensor? u, str? activation, bool want_bias) -> (Tensor, Tensor, Tensor)",
    _linear_bwd,
    fake=_linear_bwd_fake,
)


def _linear_setup_context(ctx, inputs, output):
    x, weight, _, ctx.activation, save = inputs
    want_x, want_weight, ctx.want_bias = ctx.needs_input_grad[:3]
    if ctx.activation is not None and not save:
        raise RuntimeError("linear_fwd was asked for a gradient but called with save=False")
    u = None if ctx.activation is None else output[1]
    ctx.save_for_backward(x if want_weight else None, weight if want_x else None, u)
    ctx.set_materialize_grads(False)


def _linear_backward(ctx, dy, _):
    if dy is None:
        return (None,) * 5
    x, weight, u = ctx.saved_tensors
    dx, dweight, dbias = linear_bwd(_last_contiguous(dy), x, weight, u, ctx.activation, ctx.want_bias)
    return (
        None if weight is None else dx,
        None if x is None else dweight,
        dbias if ctx.want_bias else None,
        None,
        None,
    )


linear_fwd = register(
    "linear_fwd(Tensor x, Tensor weight, Tensor? bias, str? activation, bool save) -> (Tensor, Tensor)",
    _linear_fwd,
    fake=_linear_fwd_fake,
    setup_context=_linear_setup_context,
    backward=_linear_backward,
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """The kernel behind `functional.linear`, which documents and checks the arguments."""
    save = wants_grad(x, weight, bias)
    y = linear_fwd(_rows(x), _last_contiguous(weight), _bias(bias), activation, save)[0]
    return y.view(*x.shape[:-1], weight.shape[0])


# Three weights of one shape, side by side. Their gradients are views of one tensor, which one product makes.


def _qkv_fwd(x, w0, w1, w2, b0, b1, b2):
    weights, biases = (w0, w1, w2), (b0, b1, b2)
    M, (N, K) = x.shape[0], w0.shape
    on_triton, config = side("qkv_linear", M, (3 * N, K), x, weights)
    if on_triton:
        return gemm_fwd(x, _same_strides(weights), biases, None, False, config=config)[0]
    y = x.new_empty(M, 3 * N)
    for out, weight, bias in zip(y.split(N, dim=1), weights, biases):
        if bias is None:
            _library(torch.mm, x, weight.t(), out=out)
        else:
            _library(torch.addmm, bias, x, weight.t(), out=out)
    return y


def _qkv_fwd_fake(x, w0, w1, w2, b0, b1, b2):
    return x.new_empty(x.shape[0], 3 * w0.shape[0])


def _qkv_bwd(dy, x, w0, w1, w2, want_bias):
    dx, dweights, dbiases = _qkv_bwd_fake(dy, x, w0, w1, w2, want_bias)
    if x is not None:
        dweight, row_sum = _wgrad(dy, x, want_bias)
        dweights, dbiases = dweight.view(dweights.shape), row_sum.view(dbiases.shape)
    elif want_bias:
        dbiases = _column_sum(dy).view(dbiases.shape)
    if w0 is not None:
        dx = _qkv_dgrad(dy, (w0, w1, w2))
    return dx, dweights, dbiases


def _qkv_dgrad(dy, weights):
    on_triton, config = side("qkv_dgrad", dy.shape[0], (dy.shape[1], weights[0].shape[1]), dy)
    if on_triton:
        return gemm_dgrad(dy, _same_strides(weights), config=config)[0]
    return _library(torch.mm, dy, torch.cat(weights))  # one product rounds once; three that add to each other thrice


def _qkv_bwd_fake(dy, x, w0, w1, w2, want_bias):
    M, N = dy.shape[0], dy.shape[1] // 3
    return (
        dy.new_empty((0, 0) if w0 is None else (M, w0.shape[1])),
        dy.new_empty((3, 0, 0) if x is None else (3, N, x.shape[1])),
        dy.new_empty(3, N if want_bias else 0),
    )


qkv_linear_bwd = register(
    "qkv_linear_bwd(Tensor dy, Tensor? x, Tensor? w0, Tensor? w1, Tensor? w2, bool want_bias) -> (Tensor, Tensor, Tensor)",
    _qkv_bwd,
    fake=_qkv_bwd_fake,
)


def _qkv_setup_context(ctx, inputs, output):
    x, *weights = inputs[:4]
    want_x = ctx.needs_input_grad[0]
    ctx.want_weights, ctx.want_biases = ctx.needs_input_grad[1:4], ctx.needs_input_grad[4:7]
    ctx.save_for_backward(x if any(ctx.want_weights) else None, *(weight if want_x else None for weight in weights))
    ctx.set_materialize_grads(False)


def _qkv_backward(ctx, dy):
    if dy is None:
        return (None,) * 7
    x, *weights = ctx.saved_tensors
    dx, dweights, dbiases = qkv_linear_bwd(_last_contiguous(dy), x, *weights, any(ctx.want_biases))
    return (
        None if weights[0] is None else dx,
        *(dweight if want else None for dweight, want in zip(dweights.unbind(0), ctx.want_weights)),
        *(dbias if want else None for dbias, want in zip(dbiases.unbind(0), ctx.want_biases)),
    )


qkv_linear_fwd = register(
    "qkv_linear_fwd(Tensor x, Tensor w0, Tensor w1, Tensor w2, Tensor? b0, Tensor? b1, Tensor? b2) -> Tensor",
    _qkv_fwd,
    fake=_qkv_fwd_fake,
    setup_context=_qkv_setup_context,
    backward=_qkv_backward,
)


def qkv_linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """The kernel behind `functional.qkv_linear`, which documents and checks the arguments."""
    y = qkv_linear_fwd(_rows(x), *map(_last_contiguous, weights), *map(_bias, biases))
    return y.view(*x.shape[:-1], 3 * weights[0].shape[0])


# Two weights with an activation between.


def _feed_forward_fwd(x, weight_in, bias_in, weight_out, activation, save_u, save_h):
    h, u = _forward(x, weight_in, bias_in, activation, save_u)
    y, _ = _forward(h, weight_out, None, None, False)
    return y, u, h if save_h else h.new_empty(0, h.shape[1])


def _feed_forward_fwd_fake(x, weight_in, bias_in, weight_out, activation, save_u, save_h):
    M, F = x.shape[0], weight_in.shape[0]
    return x.new_empty(M, weight_out.shape[0]), x.new_empty(M if save_u else 0, F), x.new_empty(M if save_h else 0, F)


def _feed_forward_bwd(dy, x, weight_in, weight_out, u, h, activation, want_bias, want_weight_out):
    dx, dweight_in, dbias_in, dweight_out = _feed_forward_bwd_fake(
        dy, x, weight_in, weight_out, u, h, activation, want_bias, want_weight_out
    )
    makes_h = want_weight_out and h is None
    if weight_out is not None:
        du, dbias_in, made = _dgrad_activation(dy, weight_out, u, activation, want_bias, makes_h)
    elif makes_h:
        made = reference.activate(u, activation)
    if makes_h:
        dweight_out, _ = _wgrad(dy, made, False)
        del made  # the next products have its room
    elif want_weight_out:
        dweight_out, _ = _wgrad(dy, h, False)
    if weight_out is not None:
        if x is not None:
            dweight_in, _ = _wgrad(du, x, False)
        if weight_in is not None:
            dx = _dgrad(du, weight_in)
    return dx, dweight_in, dbias_in, dweight_out


def _feed_forward_bwd_fake(dy, x, weight_in, weight_out, u, h, activation, want_bias, want_weight_out):
    M, N = dy.shape
    F = (h if u is None else u).shape[1]
    return (
        dy.new_empty((0, 0) if weight_in is None else (M, weight_in.shape[1])),
        dy.new_empty((0, 0) if x is None else (F, x.shape[1])),
        dy.new_empty(F if want_bias else 0),
        dy.new_empty((N, F) if want_weight_out else (0, 0)),
    )


feed_forward_bwd = register(
    "feed_forward_bwd(Tensor dy, Tensor? x, Tensor? weight_in, Tensor? weight_out, Tensor? u, Tensor? h, str activation, "
    "bool want_bias, bool want_weight_out) -> (Tensor, Tensor, Tensor, Tensor)",
    _feed_forward_bwd,
    fake=_feed_forward_bwd_fake,
)


def _feed_forward_setup_context(ctx, inputs, output):
    x, weight_in, _, weight_out, ctx.activation, save_u, save_h = inputs
    _, u, h = output
    want_x, want_weight_in, ctx.want_bias, ctx.want_weight_out = ctx.needs_input_grad[:4]
    want_du = want_x or want_weight_in or ctx.want_bias
    if (want_du and not save_u) or (ctx.want_weight_out and not (save_u or save_h)):
        raise RuntimeError("feed_forward_fwd was asked for a gradient but called without saving for it")
    ctx.save_for_backward(
        x if want_weight_in else None,
        weight_in if want_x else None,
        weight_out if want_du else None,
        u if save_u else None,
        h if save_h else None,
    )
    ctx.set_materialize_grads(False)


def _feed_forward_backward(ctx, dy, *_):
    if dy is None:
        return (None,) * 7
    x, weight_in, weight_out, u, h = ctx.saved_tensors
    dx, dweight_in, dbias_in, dweight_out = feed_forward_bwd(
        _last_contiguous(dy), x, weight_in, weight_out, u, h, ctx.activation, ctx.want_bias, ctx.want_weight_out
    )
    return (
        None if weight_in is None else dx,
        None if x is None else dweight_in,
        dbias_in if ctx.want_bias else None,
        dweight_out if ctx.want_weight_out else None,
        *(None,) * 3,
    )


feed_forward_fwd = register(
    "feed_forward_fwd(Tensor x, Tensor weight_in, Tensor bias_in, Tensor weight_out, str activation, bool save_u, "
    "bool save_h) -> (Tensor, Tensor, Tensor)",
    _feed_forward_fwd,
    fake=_feed_forward_fwd_fake,
    setup_context=_feed_forward_setup_context,
    backward=_feed_forward_backward,
)


def feed_forward(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, activation: str, keep_inner: bool
) -> Tensor:
    """The kernel behind `functional.feed_forward`, which documents and checks the arguments."""
    want_du, want_weight_out = wants_grad(x, weight_in, bias_in), wants_grad(weight_out)
    save_u, save_h = want_du or (want_weight_out and not keep_inner), want_weight_out and keep_inner
    y = feed_forward_fwd(
        _rows(x), _last_contiguous(weight_in), _bias(bias_in), _last_contiguous(weight_out), activation, save_u, save_h
    )[0]
    return y.view(*x.shape[:-1], weight_out.shape[0])


def _rows(x: Tensor) -> Tensor:
    """x as (M, K), in place where its last axis is contiguous."""
    return _last_contiguous(x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2))


def _last_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _bias(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else _last_contiguous(bias)


def _same_strides(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    same = all(weight.stride() == weights[0].stride() for weight in weights)
    return weights if same else [weight.contiguous() for weight in weights]


# What the operations say of themselves: samples, costs, shipped variants.


def _strided(shape: tuple[int, ...], pad: int, dtype, device, g, *, mean=0.0, std=1.0) -> Tensor:
    """A normal tensor that is a slice of a wider one, `pad` columns on either side."""
    wide = normal((*shape[:-1], shape[-1] + 2 * pad), dtype, device, g, mean=mean, std=std)
    return wide[..., pad : pad + shape[-1]]


def _weight_std(K: int, shift: float = 0.0) -> float:
    """Keeps x @ weight.T near one for x of that shift, where an activation and its derivative have something to show."""
    return K**-0.5 / max(1.0, shift)


def _linear_sample(name, shape, N, *, bias=True, activation=None, shift=0.0, pad=0, seed=0) -> Sample:
    def make(dtype: torch.dtype, device: torch.device) -> Inputs:
        g = generator(seed)
        K = shape[-1]
        inputs: Inputs = {
            "x": _strided(shape, pad, dtype, device, g, mean=shift),
            "weight": _strided((N, K), pad, dtype, device, g, std=_weight_std(K, shift if activation else 0.0)),
        }
        if bias:
            inputs["bias"] = normal((N,), dtype, device, g, std=0.5)
        return inputs | ({} if activation is None else {"activation": activation})

    return Sample(name, make)


def _qkv_sample(name, shape, N, *, bias=True, shift=0.0, pad=0, seed=0) -> Sample:
    def make(dtype: torch.dtype, device: torch.device) -> Inputs:
        g = generator(seed)
        K = shape[-1]
        x = _strided(shape, pad, dtype, device, g, mean=shift)
        weights = tuple(_strided((N, K), pad, dtype, device, g, std=_weight_std(K)) for _ in range(3))
        biases = {"biases": tuple(normal((N,), dtype, device, g, std=0.5) for _ in range(3))} if bias else {}
        return {"x": x, "weights": weights, **biases}

    return Sample(name, make)


def _feed_forward_sample(name, shape, F, N, *, activation="gelu_erf", shift=0.0, pad=0, seed=0) -> Sample:
    def make(dtype: torch.dtype, device: torch.device) -> Inputs:
        g = generator(seed)
        K = shape[-1]
        return {
            "x": _strided(shape, pad, dtype, device, g, mean=shift),
            "weight_in": _strided((F, K), pad, dtype, device, g, std=_weight_std(K, shift)),
            "bias_in": normal((F,), dtype, device, g, std=0.5),
            "weight_out": _strided((N, F), pad, dtype, device, g, std=_weight_std(F)),
            "activation": activation,
        }

    return Sample(name, make)


# Under the interpreter a device has three multiprocessors, so that a hundred rows already take the larger tiles.
_LINEAR_SAMPLES = (
    _linear_sample("bias", (2, 35, 72), 136),  # 3-D; one tile and a bit in each direction
    _linear_sample("gelu-erf", (67, 48), 130, activation="gelu_erf"),
    _linear_sample("gelu-tanh-odd", (33, 37), 71, activation="gelu_tanh"),  # no axis a multiple of 8
    _linear_sample("relu-no-bias", (20, 64), 24, bias=False, activation="relu"),
    _linear_sample("no-bias-largest-tile", (300, 40), 300, bias=False),  # split wgrad
    _linear_sample("one-row", (96,), 16),
    _linear_sample("no-rows", (0, 16), 24, activation="gelu_erf"),
    _linear_sample("one-column", (12, 33), 1),
    _linear_sample("inner-of-one", (9, 1), 11, activation="gelu_erf"),
    _linear_sample("shifted", (40, 96), 48, activation="gelu_erf", shift=100.0),
    _linear_sample("slices", (3, 15, 80), 32, activation="gelu_tanh", pad=8),
    _linear_sample("slices-unaligned", (18, 50), 29, pad=3),
)
_QKV_SAMPLES = (
    _qkv_sample("plain", (2, 33, 72), 72),  # a column tile ends inside each weight
    _qkv_sample("largest-tile", (140, 24), 264),
    _qkv_sample("odd", (17, 37), 19),
    _qkv_sample("no-bias", (30, 64), 64, bias=False),
    _qkv_sample("one-row", (48,), 48),
    _qkv_sample("no-rows", (0, 24), 24),
    _qkv_sample("shifted", (21, 96), 40, shift=100.0),
    _qkv_sample("slices", (2, 11, 40), 40, pad=8),
)
_FEED_FORWARD_SAMPLES = (
    _feed_forward_sample("plain", (2, 35, 48), 136, 48),
    _feed_forward_sample("tanh", (33, 40), 70, 24, activation="gelu_tanh"),
    _feed_forward_sample("relu", (20, 37), 67, 19, activation="relu"),
    _feed_forward_sample("larger-tile", (260, 24), 140, 24),  # four tiles in the product with the derivative
    _feed_forward_sample("one-row", (64,), 128, 64),
    _feed_forward_sample("no-rows", (0, 16), 32, 16),
    _feed_forward_sample("shifted", (25, 64), 96, 32, shift=100.0),
    _feed_forward_sample("slices", (2, 9, 32), 64, 32, pad=8),
)


def _fuzz_shape(rng: random.Random) -> tuple[tuple[int, int], dict]:
    """Axes long enough that the largest error is no stroke of luck: one row and one column are among the samples."""
    shape = (rng.choice((0, 5, 63, 64, 65, 129)), rng.choice((7, 16, 33, 64, 65, 100, 128)))
    return shape, dict(shift=rng.choice((0.0, 0.0, 100.0)), pad=rng.choice((0, 0, 1, 8)), seed=rng.randint(0, 1 << 30))


def _linear_fuzz(rng: random.Random) -> Sample:
    shape, options = _fuzz_shape(rng)
    N, activation = rng.choice((8, 33, 64, 130)), rng.choice((None, *ACTIVATIONS))
    name = f"fuzz-{shape}-{N}-{activation}"
    return _linear_sample(name, shape, N, bias=rng.random() < 0.7, activation=activation, **options)


def _qkv_fuzz(rng: random.Random) -> Sample:
    shape, options = _fuzz_shape(rng)
    N = rng.choice((8, 33, 64, 70))
    return _qkv_sample(f"fuzz-{shape}-{N}", shape, N, bias=rng.random() < 0.7, **options)


def _feed_forward_fuzz(rng: random.Random) -> Sample:
    shape, options = _fuzz_shape(rng)
    F, N, activation = rng.choice((16, 65, 130)), rng.choice((8, 33, 64)), rng.choice(ACTIVATIONS)
    return _feed_forward_sample(f"fuzz-{shape}-{F}-{N}-{activation}", shape, F, N, activation=activation, **options)


def _linear_workload(work: Workload, dtype: torch.dtype, device: torch.device) -> Inputs:
    return _linear_sample("workload", (work.tokens, work.hidden_size), work.hidden_size).make(dtype, device)


def _qkv_workload(work: Workload, dtype: torch.dtype, device: torch.device) -> Inputs:
    return _qkv_sample("workload", (work.tokens, work.hidden_size), work.hidden_size).make(dtype, device)


def _feed_forward_workload(work: Workload, dtype: torch.dtype, device: torch.device) -> Inputs:
    sample = _feed_forward_sample("workload", (work.tokens, work.hidden_size), work.intermediate_size, work.hidden_size)
    return sample.make(dtype, device)


def _flops(inputs: Inputs, backward: bool) -> int:
    """Two per multiplication; the backward has two products for each of the forward's."""
    x, *weights = _products(inputs)
    return (4 if backward else 2) * x.shape[:-1].numel() * sum(weight.numel() for weight in weights)


def _bytes_moved(inputs: Inputs, backward: bool) -> int:
    """Forward: x, weights, biases in, y out. Backward: dy, x, weights in, their gradients out. With an activation both
    also pass the inner state once: u and h, or du."""
    x, *weights = _products(inputs)
    M, element = x.shape[:-1].numel(), x.element_size()
    last = weights[-1:] if "weight_out" in inputs else weights
    y = M * sum(weight.shape[0] for weight in last) * element
    inner = M * weights[0].shape[0] * element if inputs.get("activation") else 0
    parameters = nbytes(*weights)
    return 2 * (nbytes(x) + parameters) + y + 2 * inner if backward else nbytes(x) + parameters + y + inner


def _products(inputs: Inputs) -> tuple[Tensor, ...]:
    """x and the weights."""
    single = (inputs[name] for name in ("weight", "weight_in", "weight_out") if name in inputs)
    return (inputs["x"], *inputs.get("weights", ()), *single)


def _linear_variants() -> list[KernelVariant]:
    variants = [
        *fwd_variants(),
        *fwd_variants(activation="gelu_erf"),
        *fwd_variants(activation="gelu_tanh", main_target_only=True),
        *fwd_variants(activation="relu", main_target_only=True),
        *fwd_variants(bias=False, main_target_only=True),
        *fwd_variants(even=False, main_target_only=True),
        *dgrad_variants(),
        *dgrad_variants(even=False, main_target_only=True),
        *wgrad_variants(want_sum=True),
        *wgrad_variants(want_sum=False, main_target_only=True),
    ]
    for dtype in ("bf16", "fp16", "fp32"):
        for activation, want_h in ((None, False), ("gelu_erf", False), *((name, True) for name in ACTIVATIONS)):
            p = f"*{dtype}"
            variants.append(
                KernelVariant(
                    f"{activation or 'column sum'}{'+h' * want_h} backward {dtype}", _activation_bwd_kernel,
                    dict(dy_ptr=p, u_ptr=p, du_ptr=p, h_ptr=p, partial_ptr="*fp32", M="i32", N="i32", stride_dy_row="i32",
                         rows_per_program="i32"),
                    dict(ACTIVATION=activation, WRITE_H=want_h, WRITE_PARTIAL=True, FULL=dtype == "fp32", **ACTIVATION_TILE),
                    num_warps=ACTIVATION_WARPS, divisible=("N", "stride_dy_row"),
                )
            )  # fmt: skip
    return variants


def _qkv_variants() -> list[KernelVariant]:
    return [*fwd_variants(parts=3), *dgrad_variants(parts=3)]


def _feed_forward_variants() -> list[KernelVariant]:
    return [
        *fwd_variants(activation="gelu_erf", save_u=True),
        *fwd_variants(activation="gelu_tanh", save_u=True, main_target_only=True),
        *fwd_variants(activation="relu", save_u=True, main_target_only=True),
        *dgrad_variants(activation="gelu_erf", want_h=True),
        *dgrad_variants(activation="gelu_erf", main_target_only=True),
        *dgrad_variants(activation="gelu_tanh", want_h=True, main_target_only=True),
        *dgrad_variants(activation="relu", want_h=True, main_target_only=True),
    ]


SPECS = (
    OperationSpec(
        name="linear",
        function=functional.linear,
        reference=reference.linear_ref,
        differentiable=("x", "weight", "bias"),
        samples=_LINEAR_SAMPLES,
        fuzz=_linear_fuzz,
        workload=_linear_workload,
        flops=_flops,
        bytes_moved=_bytes_moved,
        variants=_linear_variants,
    ),
    OperationSpec(
        name="qkv_linear",
        function=functional.qkv_linear,
        reference=reference.qkv_linear_ref,
        differentiable=("x", "weights", "biases"),
        samples=_QKV_SAMPLES,
        fuzz=_qkv_fuzz,
        workload=_qkv_workload,
        flops=_flops,
        bytes_moved=_bytes_moved,
        variants=_qkv_variants,
    ),
    OperationSpec(
        name="feed_forward",
        function=functional.feed_forward,
        reference=reference.feed_forward_ref,
        differentiable=("x", "weight_in", "bias_in", "weight_out"),
        samples=_FEED_FORWARD_SAMPLES,
        fuzz=_feed_forward_fuzz,
        workload=_feed_forward_workload,
        flops=_flops,
        bytes_moved=_bytes_moved,
        variants=_feed_forward_variants,
    ),
)
