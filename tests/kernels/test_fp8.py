"""fp8: numbers of the kernels against the emulation and float64, layouts, limits. `fp8_linear` is in test_specs.py too."""

import pytest
import torch

from fastbert.kernels import fp8, functional, reference, use_backend
from fastbert.kernels.batch_invariance import batch_invariant_kernels
from fastbert.kernels.device import architecture, pretend
from fastbert.kernels.fp8_format import E4M3, GROUP, LARGEST, num_groups
from fastbert.kernels.fp8_kernels import linear_activation_op, linear_op, quantize_op
from fastbert.kernels.specs.fp8 import linear_ref
from fastbert.kernels.specs.matrix_unit import adds_fp8_in_14_bits
from fastbert.kernels.specs.spec import generator, normal
from tests.kernels.harness import DTYPES, assert_error_within

if fp8.unsupported_reason(torch.device("cuda" if torch.cuda.is_available() else "cpu")):
    pytest.skip(fp8.unsupported_reason(torch.device("cuda")), allow_module_level=True)
GPU = torch.cuda.is_available()


def assert_same(quantized, emulated):
    """On a GPU a scale may differ in its last bits, and a number beside a tie then rounds the other way."""
    (q, scale), (q_ref, scale_ref) = quantized, emulated
    torch.testing.assert_close(scale, scale_ref, rtol=1e-6, atol=0)
    different = (q.float() != q_ref.float()).sum().item()
    assert different <= (q.numel() // 1000 if GPU else 0), f"{different} of {q.numel()} differ"


def product(M, K, N, device, *, grouped=False, dtype=torch.float32):
    g = generator()
    q, scale = fp8.quantize_ref(normal((M, K), torch.float32, device, g), GROUP if grouped else None)
    weight_q, weight_scale = fp8.quantize_ref(normal((N, K), torch.float32, device, g, std=0.1))
    return q, scale, weight_q, weight_scale[:, 0].contiguous(), normal((N,), dtype, device, g)


def assert_product(got, inputs):
    """Within 1e-5 of the exact product; where a matrix unit adds in 14 bits, within twice what such sums lose (matrix_unit)."""
    exact = fp8.linear_ref(*(t.double() for t in inputs))
    if adds_fp8_in_14_bits(got.device):
        assert_error_within("fp8 product", got, linear_ref(*inputs), exact, 2.0)
    else:
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 16), (7, 200), (4, 768)])
def test_quantize_is_the_emulation_bit_for_bit(shape, dtype, device):
    x = normal(shape, dtype, device, generator(), std=3.0)
    x[0, :5] *= torch.tensor([0.0, 1e-3, 3e-4, 100.0, -100.0], device=device)  # subnormals, and one that sets the scale
    assert_same(fp8.quantize(x), fp8.quantize_ref(x))


def test_every_number_of_the_format_and_every_tie_between_two(device):
    """448 sets the scale to 1, so the numbers are rounded as they are: to the nearest, ties to even."""
    numbers = torch.arange(127, dtype=torch.uint8).view(E4M3).float()  # 0 to 448, upwards
    between = (numbers[1:] + numbers[:-1]) / 2
    x = torch.cat([numbers, between, between * (1 - 2**-20), between * (1 + 2**-20)])
    x = torch.cat([x, -x]).to(device)[None]
    q, scale = fp8.quantize(x)
    assert scale.item() == 1.0
    assert torch.equal(q.float(), x.to(E4M3).float())


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's, of 0 * inf
def test_zeros_nan_and_infinity(device):
    x = torch.zeros(4, 20, device=device)
    x[1, 3], x[2, 3], x[3] = float("nan"), float("inf"), 1e-30
    q, scale = fp8.quantize(x)
    dequantized = fp8.dequantize(q, scale)
    assert torch.equal(dequantized[0], x[0])
    assert dequantized[1, 3].isnan()
    assert not dequantized[2].isfinite().all(), "an infinity is not a number any more"
    assert dequantized[3].abs().max() <= 1e-12


def test_strided_rows(device):
    wide = normal((9, 300), torch.float32, device, generator())
    x = wide[:, 17:217]
    assert_same(fp8.quantize(x), fp8.quantize_ref(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_layer_norm_is_the_norm_and_then_its_rows(dtype, with_bias, device):
    g = generator()
    x, residual = (normal((7, 200), dtype, device, g, mean=5.0) for _ in range(2))
    weight, bias, x_bias = (normal((200,), dtype, device, g) for _ in range(3))
    x_bias = x_bias if with_bias else None
    y, *quantized = fp8.layer_norm(x, weight, bias, residual, x_bias=x_bias)
    torch.testing.assert_close(y, functional.layer_norm(x, weight, bias, residual, x_bias=x_bias), rtol=1e-6, atol=1e-6)
    assert_same(quantized, fp8.quantize_ref(y))


@pytest.mark.parametrize("activation", ["gelu_erf", "gelu_tanh", "relu"])
@pytest.mark.parametrize(("M", "K", "N"), [(70, 200, 130), (3, 128, 256), (130, 16, 7)])
def test_activation_rounds_to_the_nearest(activation, M, K, N, device):
    """Against float64: never further off than half a step of the format, and the scales are those of the exact values."""
    inputs = product(M, K, N, device)
    q, scale = fp8.linear_activation(*inputs, activation=activation)
    assert scale.shape == (M, num_groups(N))
    wide = [t.double() for t in inputs]
    exact = fp8.linear_activation_ref(*wide, activation)
    _, exact_scale = fp8.quantize_ref(exact, GROUP)
    lost = 0.0
    if adds_fp8_in_14_bits(device):  # before the activation, which steepens by 1.13 at most
        lost = 2 * 1.13 * (linear_ref(*inputs).double() - fp8.linear_ref(*wide)).abs().max().item()
    torch.testing.assert_close(scale, exact_scale, rtol=1e-5, atol=1e-12 + lost / LARGEST)
    half_a_step = exact.abs() / 16 + fp8.dequantize(torch.ones_like(q), exact_scale, torch.float64) * 2**-10
    error = (fp8.dequantize(q, scale, torch.float64) - exact).abs()
    assert (error <= half_a_step * (1 + 1e-3) + 1e-6 + lost).all(), (error - half_a_step).max()


@pytest.mark.parametrize("activation", ["gelu_erf", "gelu_tanh", "relu"])
def test_linear_applies_an_activation_to_its_result(activation, device):
    inputs = product(6, 64, 40, device)
    plain = fp8.linear(*inputs, out_dtype=torch.bfloat16)
    activated = fp8.linear(*inputs, activation=activation, out_dtype=torch.bfloat16)
    assert torch.equal(activated, reference.activate(plain, activation))


@pytest.mark.parametrize("grouped", [False, True])
def test_linear_bits_do_not_depend_on_the_batch_in_invariant_mode(grouped, device):
    q, scale, *rest = product(200, 256, 130, device, grouped=grouped)
    with batch_invariant_kernels():
        together = fp8.linear(q, scale, *rest, out_dtype=torch.float32)
        for row in (0, 63, 64, 199):
            alone = fp8.linear(q[row : row + 1], scale[row : row + 1], *rest, out_dtype=torch.float32)
            assert torch.equal(alone[0], together[row])


def test_the_larger_tile(device):
    """More tiles than multiprocessors: what a large batch takes, with several rows and columns of tiles."""
    inputs = product(150, 136, 140, device)
    with pretend(architecture(device), 1):
        got = fp8.linear(*inputs, out_dtype=torch.float32)
    assert_product(got, inputs)


def test_opcheck(device):
    q, scale, weight_q, weight_scale, bias = product(5, 64, 40, device)
    torch.library.opcheck(quantize_op, (torch.ones(5, 64, device=device),), test_utils=("test_schema", "test_faketensor"))
    # PyTorch's check of a schema multiplies its inputs, which it cannot do with fp8.
    fake = ("test_faketensor",)
    torch.library.opcheck(linear_op, (q, scale, weight_q, weight_scale, bias, torch.float16), test_utils=fake)
    torch.library.opcheck(linear_activation_op, (q, scale, weight_q, weight_scale, bias, "relu"), test_utils=fake)


def test_the_emulation_is_the_other_backend(device):
    inputs = product(6, 300, 20, device, grouped=True)
    got = fp8.linear(*inputs, out_dtype=torch.float32)
    with use_backend("torch"):
        emulated = fp8.linear(*inputs, out_dtype=torch.float32)
    torch.testing.assert_close(emulated.double(), fp8.linear_ref(*(t.double() for t in inputs)), rtol=1e-5, atol=1e-5)
    assert_product(got, inputs)


def test_rejects_bad_input(device):
    q, scale, weight_q, weight_scale, bias = product(5, 64, 40, device)
    with pytest.raises(TypeError, match=r"float8_e4m3fn, got torch\.float32"):
        fp8.linear(q.float(), scale, weight_q, weight_scale, bias, out_dtype=torch.float32)
    with pytest.raises(ValueError, match=r"weight_q of shape \(N, 64\)"):
        fp8.linear(q, scale, weight_q[:, :32], weight_scale, bias, out_dtype=torch.float32)
    with pytest.raises(ValueError, match=r"scale of shape \(5, 1\)"):
        fp8.linear(q, scale[:3], weight_q, weight_scale, bias, out_dtype=torch.float32)
    with pytest.raises(ValueError, match="bias of shape"):
        fp8.linear(q, scale, weight_q, weight_scale, bias[:3], out_dtype=torch.float32)
    with pytest.raises(ValueError, match="'swish'"):
        fp8.linear_activation(q, scale, weight_q, weight_scale, bias, activation="swish")
    with pytest.raises(ValueError, match="'swish'"):
        fp8.linear(q, scale, weight_q, weight_scale, bias, activation="swish", out_dtype=torch.float32)
    with pytest.raises(TypeError, match=r"got torch\.float64"):
        fp8.quantize(torch.ones(2, 3, dtype=torch.float64, device=device))
    with pytest.raises(ValueError, match="residual like x"):
        fp8.layer_norm(torch.ones(2, 3), torch.ones(3), torch.ones(3), torch.ones(2, 4))
