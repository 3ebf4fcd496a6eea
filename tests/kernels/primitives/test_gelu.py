"""Activations and their derivatives against float64, value by value."""

import math

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from fastbert.kernels.limits import ACTIVATIONS
from fastbert.kernels.primitives.gelu import activate, activation_derivative

EVERY_FLOAT16 = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
FINITE_FLOAT16 = EVERY_FLOAT16[EVERY_FLOAT16.isfinite()]
SWEEP = torch.cat([torch.linspace(-14, 14, 200_001), *(sign * torch.logspace(-30, 30, 4_001) for sign in (1, -1))])


@triton.jit
def _apply(x_ptr, y_ptr, slope_ptr, N, ACTIVATION: tl.constexpr, FULL: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < N, other=0.0)
    tl.store(y_ptr + offs, activate(x, ACTIVATION, FULL), mask=offs < N)
    tl.store(slope_ptr + offs, activation_derivative(x, ACTIVATION, FULL), mask=offs < N)


def run_kernel(x, activation, full, device):
    x = x.float().to(device)
    y, slope = torch.empty_like(x), torch.empty_like(x)
    _apply[(triton.cdiv(x.numel(), 8192),)](x, y, slope, x.numel(), ACTIVATION=activation, FULL=full, BLOCK=8192)
    return y.cpu(), slope.cpu()


def run_torch(x, activation, dtype):
    x = x.to(dtype).requires_grad_()
    y = F.relu(x) if activation == "relu" else F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


def error_in_last_places(rounded, exact):
    """Largest error of 16-bit numbers in units of the last place of the exact value."""
    exponent = exact.abs().clamp(min=torch.finfo(rounded.dtype).smallest_normal).log2().floor()
    return ((rounded.double() - exact).abs() / (torch.finfo(rounded.dtype).eps * exponent.exp2())).max().item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_exact_gelu_rounds_to_the_nearest_16_bit_number(dtype, device):
    x = FINITE_FLOAT16 if dtype == torch.float16 else FINITE_FLOAT16.float().bfloat16()
    exact_y, exact_slope = run_torch(x, "gelu_erf", torch.float64)
    y, slope = run_kernel(x, "gelu_erf", False, device)
    near = x.double() > -5  # further out the value is below 2e-6, and what counts is its absolute error
    assert error_in_last_places(y[near].to(dtype), exact_y[near]) < 0.56
    assert (y.double() - exact_y)[~near].abs().max() < 1e-9
    assert (slope.to(dtype).double() - exact_slope).abs().max() <= 0.51 * torch.finfo(dtype).eps


@pytest.mark.parametrize("full", [False, True], ids=["16-bit", "float32"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_matches_float64(activation, full, device):
    """In float32 at most twice PyTorch's error; the short polynomial as its docstring says."""
    exact = run_torch(SWEEP, activation, torch.float64)
    same_dtype = run_torch(SWEEP, activation, torch.float32)
    for name, got, same, truth in zip(("value", "slope"), run_kernel(SWEEP, activation, full, device), same_dtype, exact):
        within = SWEEP.abs() <= 14  # beyond, PyTorch's own float32 overflows in the tanh's cube
        error = (got - truth).abs()
        assert torch.isfinite(got).all()
        limit = 2 * (same - truth)[within].abs().max().item()
        if not full and activation == "gelu_erf":
            limit = {"value": 2.6e-7, "slope": 1.2e-6}[name]
        assert error[within].max() <= limit, f"{name}: {error[within].max():.2e} > {limit:.2e}"
        far = SWEEP.abs() > 16  # both are 0 or the identity there, to the last bit
        assert torch.equal(got[far], truth[far].float() + 0.0)


@pytest.mark.parametrize("full", [False, True], ids=["16-bit", "float32"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity(activation, full, device):
    y, slope = run_kernel(torch.tensor([math.nan, math.inf, -math.inf]), activation, full, device)
    assert y[0].isnan()
    assert y[1] == math.inf
    assert y[2] == 0 or y[2].isnan()  # PyTorch's exact GELU has NaN, its ReLU 0
    # PyTorch's ReLU lets the gradient of a NaN pass; its GELUs make it NaN.
    assert slope[0] == 1 if activation == "relu" else slope[0].isnan()
    assert slope[1:].tolist() == [1.0, 0.0]
