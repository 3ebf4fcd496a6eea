"""What NVIDIA GPUs make of tf32, float32 and fp8 products, as matrix_unit writes it out. Needs neither a GPU nor Triton."""

import pytest
import torch

from fastbert.kernels import fp8
from fastbert.kernels.device import pretend
from fastbert.kernels.fp8_format import GROUP
from fastbert.kernels.specs import matrix_unit
from fastbert.kernels.specs.accuracy import compare_with_float64
from fastbert.kernels.specs.fp8 import linear_ref
from fastbert.kernels.specs.spec import generator, normal

CPU = torch.device("cpu")
ULP = 2.0**-10  # of tf32, at 1


@pytest.fixture
def tf32():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def test_an_operand_is_cut_towards_zero():
    x = torch.tensor([1.0, 1 + ULP, 1 + ULP * 0.999, -(1 + ULP * 0.999), 1 - ULP / 4, 0.0, float("inf")])
    expected = [1.0, 1 + ULP, 1.0, -1.0, 1 - ULP / 2, 0.0, float("inf")]
    assert matrix_unit.cut_to_tf32(x).tolist() == expected
    assert matrix_unit.cut_to_tf32(torch.tensor([float("nan")])).isnan().all()


@pytest.mark.parametrize("product", ["mm", "bmm", "addmm", "baddbmm", "linear", "matmul of vectors"])
def test_both_operands_of_every_product_are_cut_forward_and_backward(product):
    """Operands that differ from 1 by what is cut: every product with them, and no sum, is as if they were 1."""
    just_above = 1 + ULP * 0.75
    left, right = (torch.full((3, 4, 4), just_above).requires_grad_() for _ in range(2))
    added = torch.full((3, 4, 4), just_above)
    calls = {
        "mm": lambda: left[0] @ right[0],
        "bmm": lambda: left @ right,
        "addmm": lambda: torch.addmm(added[0], left[0], right[0], alpha=2.0) - added[0],
        "baddbmm": lambda: torch.baddbmm(added, left, right) - added,
        "linear": lambda: torch.nn.functional.linear(left, right[0], added[0, 0]) - added[0, 0],
        "matmul of vectors": lambda: left[0] @ right[0, :, :2],
    }
    with matrix_unit.tf32_products():
        out = calls[product]()
        out.backward(torch.full_like(out, just_above))
    factor = 2.0 if product == "addmm" else 1.0
    torch.testing.assert_close(out.detach(), torch.full_like(out, 4 * factor), rtol=1e-6, atol=0)
    gradient = left.grad[0]
    torch.testing.assert_close(gradient, torch.full_like(gradient, out.shape[-1] * factor), rtol=1e-6, atol=0)


def test_a_product_that_cannot_be_cut_is_refused():
    q = torch.ones(1, 1, 4, 8)
    with matrix_unit.tf32_products(), pytest.raises(NotImplementedError, match="scaled_dot_product"):
        torch.nn.functional.scaled_dot_product_attention(q, q, q)


def test_the_setting_of_the_library_comes_back(tf32):
    with matrix_unit.tf32_products():
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_hardware_products_are_those_of_the_device(tf32):
    x = torch.full((2, 2), 1 + ULP * 0.75)
    with matrix_unit.hardware_products(torch.float32, CPU):
        assert torch.equal(x @ x, 2 * x * x), "a CPU has no tf32"
    with pretend("sm_80"), matrix_unit.hardware_products(torch.float32, CPU):
        assert (x @ x).unique().tolist() == [2.0]
    with pretend("sm_80"), matrix_unit.hardware_products(torch.float64, CPU):
        assert torch.equal(x.double() @ x.double(), 2 * x.double() * x.double())


def test_running_sums_are_rounded_after_every_product():
    """2^24 + 1 is 2^24 in float32, so ones after it are lost one by one; a library that adds them apart keeps them."""
    left = torch.cat([torch.tensor([2.0**24]), torch.ones(64)])[None]
    with pretend("sm_80"), matrix_unit.hardware_products(torch.float32, CPU):
        assert (left @ torch.ones(65, 1)).item() == 2.0**24
        out = torch.empty(1, 1)
        torch.mm(left, torch.ones(65, 1), out=out)
    assert out.item() == 2.0**24


def test_an_fp8_sum_keeps_14_bits_of_the_largest_product():
    """Ones beside 2^14: 2^14 is the top bit of 15, so 1 is below what is kept; beside 2^13 it is kept."""
    weight = torch.ones(1, GROUP)
    for largest, kept in ((2.0**14, 0.0), (2.0**13, 31.0)):
        q = torch.ones(1, GROUP)
        q[0, 32:] = 0.0  # one instruction
        q[0, 0] = largest  # not of e4m3, but its product with 1 is one that e4m3 can have
        assert matrix_unit.fp8_product(q, torch.ones(1, 1), weight).item() == largest + kept


def test_groups_of_an_fp8_sum_are_added_in_float32():
    q = torch.zeros(1, 2 * GROUP)
    q[0, 0], q[0, GROUP] = 2.0**14, 1.0
    weight = torch.ones(1, 2 * GROUP)
    assert matrix_unit.fp8_product(q, torch.ones(1, 1), weight).item() == 2.0**14 + 1
    assert matrix_unit.fp8_product(q, torch.tensor([[2.0, 3.0]]), weight).item() == 2.0**15 + 3


def fp8_inputs(grouped):
    g = generator()
    q, scale = fp8.quantize_ref(normal((20, 300), torch.float32, CPU, g), GROUP if grouped else None)
    weight_q, weight_scale = fp8.quantize_ref(normal((30, 300), torch.float32, CPU, g))
    return q, scale, weight_q, weight_scale[:, 0].contiguous(), normal((30,), torch.float32, CPU, g)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_reference_of_an_fp8_product_is_the_units_on_hopper_alone(grouped):
    inputs = fp8_inputs(grouped)
    plain = fp8.linear_ref(*inputs)
    assert torch.equal(linear_ref(*inputs), plain)
    for arch in ("sm_80", "sm_100"):
        with pretend(arch):
            assert torch.equal(linear_ref(*inputs), plain)
    exact = fp8.linear_ref(*(t.double() for t in inputs))
    with pretend("sm_90"):
        cut = linear_ref(*inputs)
        assert torch.equal(linear_ref(*(t.double() for t in inputs)), exact), "float64 is the exact run on every device"
    error = (cut - exact).abs().max().item()
    assert 1e-5 < error / exact.abs().max().item() < 2.0**-10


def test_an_fp8_kernel_that_leaves_out_a_column_is_caught():
    """The rule with 14 bits still sees one product of 300, and one scale that belongs to the next group."""
    q, scale, *rest = fp8_inputs(grouped=True)
    exact = fp8.linear_ref(*(t.double() for t in (q, scale, *rest)))
    with pretend("sm_90"):
        same_dtype = linear_ref(q, scale, *rest)
        short = q.clone()
        short[:, 7] = 0.0
        wrong = [linear_ref(short, scale, *rest), linear_ref(q, scale.roll(1, 1), *rest)]
    assert compare_with_float64("right", same_dtype, same_dtype, exact, 2.0).passed
    for result in wrong:
        assert not compare_with_float64("wrong", result, same_dtype, exact, 2.0).passed
