"""The accuracy rule itself: what it allows where a sum cancels, and what it compares with where the hardware drops bits."""

from dataclasses import replace

import pytest
import torch

from fastbert.kernels import reference
from fastbert.kernels.device import pretend
from fastbert.kernels.specs import attention, layer_norm, linear
from fastbert.kernels.specs.accuracy import check_operation, compare_with_float64
from fastbert.kernels.specs.matrix_unit import tf32_products

CPU = torch.device("cpu")
EPS = torch.finfo(torch.float32).eps
SPECS = {spec.name: spec for spec in (*attention.SPECS, *layer_norm.SPECS, *linear.SPECS)}


def sample(name, sample_name, dtype=torch.float32):
    spec = SPECS[name]
    return spec, {one.name: one for one in spec.samples}[sample_name].make(dtype, CPU)


def judged(spec, inputs, function):
    """The accuracies of `function`, which takes what the reference takes, by name."""
    spec = replace(spec, function=lambda **given: function(**spec.reference_inputs(given)))
    return {accuracy.name: accuracy for accuracy in check_operation(spec, inputs, torch.float32)}


class _ChangedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, dx):
        return ctx.change(dx), None


def with_gradient(function, name, change):
    """function, but the gradient of its argument `name` is passed through `change`."""
    return lambda **inputs: function(**inputs | {name: _ChangedGradient.apply(inputs[name], change)})


def test_a_cancelling_sum_may_leave_half_a_unit_of_its_summands():
    zero = torch.zeros(3)
    allowed = compare_with_float64("dx", zero, zero, zero.double(), 2.0, float32_scale=100.0).allowed
    assert allowed == pytest.approx(50 * EPS)
    assert compare_with_float64("dx", zero + 49 * EPS, zero, zero.double(), 2.0, float32_scale=100.0).passed
    assert not compare_with_float64("dx", zero + 51 * EPS, zero, zero.double(), 2.0, float32_scale=100.0).passed
    assert not compare_with_float64("dx", zero + EPS, zero, zero.double(), 2.0).passed


def test_summands_do_not_add_to_an_error_of_pytorch():
    """Where PyTorch errs by more, the limit is what it was without the summands."""
    exact = torch.ones(3, dtype=torch.float64)
    same = torch.full((3,), 1 + 64 * EPS)
    plain, scaled = (compare_with_float64("dx", same, same, exact, 2.0, float32_scale=scale) for scale in (0.0, 200.0))
    assert plain.allowed == scaled.allowed


def test_summands_of_float32_say_nothing_of_16_bits():
    """They are added in float32 there too: the store's half unit of the result is all that 16 bits add."""
    exact, zero = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float16)
    assert compare_with_float64("dx", zero, zero, exact, 2.0, float32_scale=1.0).allowed == pytest.approx(0.5 * EPS)


@pytest.mark.parametrize(
    ("name", "sample_name", "argument"),
    [
        ("layer_norm", "axis-of-one", "x"),
        ("layer_norm", "axis-of-one", "x_bias"),
        ("attention", "one-token", "qkv"),
        ("attention", "shared-by-many-one-token-sequences", "qkv"),
    ],
)
def test_roundings_of_an_exact_zero_pass_and_a_wrong_gradient_fails(name, sample_name, argument):
    spec, inputs = sample(name, sample_name)
    key = f"d{argument}"
    assert judged(spec, inputs, spec.reference)[key].passed
    limit = judged(spec, inputs, spec.reference)[key].allowed
    assert 0 < limit < 1e-4
    for change, passes in ((0.9 * limit, True), (1.1 * limit, False), (1e-3, False)):
        changed = with_gradient(spec.reference, argument, lambda dx: dx + change)  # noqa: B023 (called at once)
        assert judged(spec, inputs, changed)[key].passed is passes


def test_a_layer_norm_that_forgets_a_mean_fails():
    """dx = rstd * (g - mean(g) - ...) without the mean leaves all of rstd * g, which is the summand itself."""
    spec, inputs = sample("layer_norm", "axis-of-one")

    def forgetful(x, weight, bias, residual, x_bias, eps):
        z = x + x_bias + residual
        centred = z - z.mean(-1, keepdim=True).detach()
        return centred / (centred.detach().square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias

    accuracies = judged(spec, inputs, forgetful)
    assert accuracies["out"].passed
    assert not any(accuracies[name].passed for name in ("dx", "dresidual", "dx_bias"))


def test_an_attention_that_forgets_delta_fails():
    """The scores' gradient p * (dp - delta) without delta."""
    spec, inputs = sample("attention", "one-token")

    def forgetful(qkv, cu_seqlens, softmax_scale, causal):
        q, k, v = qkv.permute(1, 2, 0, 3)
        scores = q.shape[-1] ** -0.5 * (q @ k.transpose(-1, -2))
        p = (scores - scores.logsumexp(-1, keepdim=True).detach()).exp()
        return (p @ v).transpose(0, 1)

    accuracies = judged(spec, inputs, forgetful)
    assert accuracies["out"].passed
    assert not accuracies["dqkv"].passed


@pytest.mark.parametrize(("name", "sample_name"), [("attention", "shared"), ("layer_norm", "padded-rows")])
def test_ordinary_samples_are_judged_as_without_summands(name, sample_name):
    spec, inputs = sample(name, sample_name)
    with_scale, without = (judged(one, inputs, spec.reference) for one in (spec, replace(spec, summand_scale=None)))
    for key, accuracy in with_scale.items():
        assert accuracy.allowed == without[key].allowed


@pytest.fixture
def tf32():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def rounded(x, bits):
    """float32 with that many bits after the point of its mantissa, to the nearest."""
    step = torch.exp2(torch.frexp(x).exponent - 1.0 - bits)
    return (x / step).round() * step


@pytest.mark.parametrize("sample_name", ["bias", "shifted"])
def test_tf32_is_compared_with_operands_that_are_cut(sample_name, tf32):
    """A kernel on cut operands passes where PyTorch may use tf32, one with three bits fewer does not; without tf32 neither."""
    spec, inputs = sample("linear", sample_name)

    def cut(**given):
        with tf32_products():
            return reference.linear_ref(**given)

    def coarse(x, weight, bias=None, activation=None):
        return reference.linear_ref(rounded(x, 7), rounded(weight, 7), bias, activation=activation)

    with pretend("sm_80"):
        assert judged(spec, inputs, cut)["out"].passed
        assert judged(spec, inputs, reference.linear_ref)["out"].passed
        assert not judged(spec, inputs, coarse)["out"].passed
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert not judged(spec, inputs, cut)["out"].passed
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert not judged(spec, inputs, cut)["out"].passed, "a CPU has no tf32, whatever PyTorch allows"
