"""The compiled kernels that quantise rows, alone and after a norm or an activation, against their emulation in PyTorch."""

import pytest
import torch

from fastbert.kernels import fp8, functional, reference
from fastbert.kernels.fp8_format import GROUP, LARGEST
from fastbert.kernels.specs.accuracy import OUT_FACTOR
from fastbert.kernels.specs.matrix_unit import fp8_product
from fastbert.kernels.specs.spec import generator, normal
from tests.compiled.plan import KINDS
from tests.kernels.test_fp8 import product

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _hopper_has_fp8(target):
    if target < 90:
        pytest.skip(f"fp8 does not ship for sm_{target}")


def assert_same(quantized, expected):
    """A scale may differ in its last bits, and a number beside a tie then rounds the other way."""
    (q, scale), (expected_q, expected_scale) = quantized, expected
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
    different = (q.float() != expected_q.float()).sum().item()
    assert different <= q.numel() // 1000, f"{different} of {q.numel()} differ"


@pytest.mark.parametrize("kind", KINDS[:3], ids=str)
def test_rows(kind, emulator):
    wide = normal((9, 300), kind.dtype, CPU, generator(), std=3.0)
    for x in (wide, wide[:, 17:217]):
        assert_same(fp8.quantize(x), fp8.quantize_ref(x))
    assert set(emulator.stats.kernels) == {"quantize_kernel"}


@pytest.mark.parametrize("kind", KINDS[:3], ids=str)
def test_norm_and_then_its_rows(kind, emulator):
    g = generator()
    x, residual = (normal((7, 200), kind.dtype, CPU, g, mean=5.0) for _ in range(2))
    weight, bias, x_bias = (normal((200,), kind.dtype, CPU, g) for _ in range(3))
    y, *quantized = fp8.layer_norm(x, weight, bias, residual, x_bias=x_bias)
    expected = functional.layer_norm(x, weight, bias, residual, x_bias=x_bias)
    assert (y != expected).float().mean() < 0.01  # two kernels, one rounding of the last place here and there
    torch.testing.assert_close(y, expected, rtol=torch.finfo(kind.dtype).eps, atol=1e-6)
    assert_same(quantized, fp8.quantize_ref(y))
    assert set(emulator.stats.kernels) == {"layer_norm_kernel", "layer_norm_fwd_kernel"}


@pytest.mark.parametrize("activation", ["gelu_erf", "gelu_tanh", "relu"])
def test_activation_and_then_its_groups(activation, emulator):
    """Of sums as the matrix unit keeps them, in 14 bits: within float32's rounding of these, and half a step of the format."""
    q, scale, weight_q, weight_scale, bias = product(70, 200, 130, CPU)
    got, got_scale = fp8.linear_activation(q, scale, weight_q, weight_scale, bias, activation=activation)
    sums = fp8_product(q, scale, weight_q) * weight_scale + bias
    expected = reference.activate(sums.double(), activation)
    _, expected_scale = fp8.quantize_ref(expected, GROUP)
    rounding = OUT_FACTOR * torch.finfo(torch.float32).eps * sums.abs().max()
    assert (LARGEST * (got_scale - expected_scale)).abs().max() <= rounding
    half_a_step = expected.abs() / 16 + fp8.dequantize(torch.ones_like(got), expected_scale, torch.float64) * 2**-10
    error = (fp8.dequantize(got, got_scale, torch.float64) - expected).abs()
    assert (error <= half_a_step * (1 + 1e-3) + rounding).all(), (error - half_a_step).max() / rounding
    assert set(emulator.stats.kernels) == {"fp8_gemm_kernel"}
