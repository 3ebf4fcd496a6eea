"""Every matrix product of a linear layer: selects who computes it, then runs the Triton kernel or the library.

x: (M, K); weight: (N, K); y, dy: (M, N); u: the value before an activation, rounded to y's dtype; h = activation(u).
In the qkv products three weights of one shape are side by side, and y and dy have 3 * N columns. The last axis of every
operand is contiguous. Both sides give the same up to rounding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..primitives.reduce import column_sum
from .activation_backward import activation_backward
from .choose import select_gemm
from .pointers import gemm_dgrad, gemm_fwd, gemm_wgrad


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, save_u: bool) -> tuple[Tensor, Tensor]:
    """(activation(x @ weight.T + bias), the same before the activation or an empty tensor)."""
    (M, K), N = x.shape, weight.shape[0]
    operation = "linear" if activation is None else "linear_activation"
    choice = select_gemm(operation, M, N, K, x.dtype, x.device, x, (weight,))
    if choice.side == "triton":
        return gemm_fwd(x, [weight], [bias], activation, save_u, config=choice.config)
    u = _library(torch.mm, x, weight.t()) if bias is None else _library(torch.addmm, bias, x, weight.t())
    empty = u.new_empty(0, N)
    return (u, empty) if activation is None else (reference.activate(u, activation), u if save_u else empty)


def qkv_forward(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """x @ weight.T + bias of three weights side by side: (M, 3 * N)."""
    (M, K), N = x.shape, weights[0].shape[0]
    choice = select_gemm("qkv_linear", M, 3 * N, K, x.dtype, x.device, x, weights)
    if choice.side == "triton":
        return gemm_fwd(x, weights, biases, None, False, config=choice.config)[0]
    y = x.new_empty(M, 3 * N)
    for out, weight, bias in zip(y.split(N, dim=1), weights, biases):
        if bias is None:
            _library(torch.mm, x, weight.t(), out=out)
        else:
            _library(torch.addmm, bias, x, weight.t(), out=out)
    return y


def dgrad(dy: Tensor, weight: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    """dy @ weight, in dy's dtype or out_dtype."""
    (M, N), K = dy.shape, weight.shape[1]
    choice = select_gemm("dgrad", M, N, K, dy.dtype, dy.device, dy, (weight,))
    if choice.side == "triton":
        return gemm_dgrad(dy, [weight], out_dtype=out_dtype, config=choice.config)[0]
    return _library_mm(dy, weight, out_dtype)


def dgrad_activation(
    dy: Tensor, weight: Tensor, u: Tensor, activation: str, want_sum: bool, want_h: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(du = (dy @ weight) * activation'(u), its sum over the rows, activation(u)); what is not wanted is empty."""
    (M, N), K = dy.shape, weight.shape[1]
    choice = select_gemm("dgrad_activation", M, N, K, dy.dtype, dy.device, dy, (weight, u))
    if choice.side == "triton":
        return gemm_dgrad(dy, [weight], u, activation, want_sum, want_h, config=choice.config)
    return activation_backward(_library(torch.mm, dy, weight), u, activation, want_sum, want_h)


def qkv_dgrad(dy: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """dy @ weight, summed over three weights, each with its third of dy's columns."""
    (M, N), K = dy.shape, weights[0].shape[1]
    choice = select_gemm("qkv_dgrad", M, N, K, dy.dtype, dy.device, dy, weights)
    if choice.side == "triton":
        return gemm_dgrad(dy, weights, config=choice.config)[0]
    return _library(torch.mm, dy, torch.cat(tuple(weights)))  # one product rounds once, a sum of three products three times


def wgrad(dy: Tensor, x: Tensor, want_sum: bool, out_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """(dy.T @ x, the sum of dy over the rows or an empty tensor), in dy's dtype or out_dtype."""
    (M, N), K = dy.shape, x.shape[1]
    choice = select_gemm("wgrad", M, N, K, dy.dtype, dy.device, dy, (x,))
    if choice.side == "triton":
        dweight = gemm_wgrad(dy, x, out_dtype=out_dtype, config=choice.config)
    else:
        dweight = _library_mm(dy.t(), x, out_dtype)
    return dweight, column_sum(dy, dweight.dtype) if want_sum else dweight.new_empty(0)


def _library(product: Callable[..., Tensor], *operands: Tensor, **options: Any) -> Tensor:
    """A product of PyTorch's own, in the dtype of its operands even under autocast."""
    device_type = operands[0].device.type
    if not torch.is_autocast_enabled(device_type):
        return product(*operands, **options)
    with torch.autocast(device_type, enabled=False):
        return product(*operands, **options)


def _library_mm(a: Tensor, b: Tensor, out_dtype: torch.dtype | None) -> Tensor:
    if out_dtype is None or out_dtype == a.dtype:
        return _library(torch.mm, a, b)
    if a.is_cuda:
        return _library(torch.mm, a, b, out_dtype=out_dtype)
    return _library(torch.mm, a.to(out_dtype), b.to(out_dtype))
