"""Lamb and the original BERT's Adam: against float64 by hand, against torch, across a checkpoint."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from fastbert.pretraining.optimizers import AdamWithoutBiasCorrection, Lamb

STEPS = 25
SHAPES = {"matrix": (6, 5), "vector": (7,), "scalar": (), "zero weights": (3, 4), "zero gradients": (4, 3), "zero": (2, 2)}
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6}  # of the largest weight; float32: a few roundings a step
OPTIMIZERS = [AdamWithoutBiasCorrection, Lamb]

both_paths = pytest.mark.parametrize("foreach", [False, True], ids=["per-tensor", "foreach"])
both_dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
of_both = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.__name__)


def problem(seed=0, steps=STEPS):
    """Weights, and the gradients of every step, float64 arrays by name. "vector" has zero gradients in every third step."""
    random = np.random.default_rng(seed)
    weights = {name: np.array(random.normal(size=shape)) for name, shape in SHAPES.items()}
    weights["zero weights"][...] = weights["zero"][...] = 0
    gradients = []
    for step in range(steps):
        grads = {name: np.array(random.normal(size=shape)) * 10.0 ** random.integers(-3, 2) for name, shape in SHAPES.items()}
        grads["zero gradients"][...] = grads["zero"][...] = 0
        if step % 3 == 0:
            grads["vector"][...] = 0
        gradients.append(grads)
    return weights, gradients


def parameters_of(weights, dtype=torch.float64):
    return {name: nn.Parameter(torch.tensor(weight, dtype=dtype)) for name, weight in weights.items()}


def train(optimizer, parameters, gradients):
    for grads in gradients:
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(grads[name], dtype=parameter.dtype)
        optimizer.step()


def reference(
    weights,
    gradients,
    *,
    lr,
    beta1=0.9,
    beta2=0.999,
    eps=1e-6,
    weight_decay=0.01,
    corrected=True,
    trusted=True,
    clip=None,
    normalized=False,
):
    """Devlin et al.'s code (not corrected, not trusted) and You et al.'s Algorithm 2, written out in float64."""
    weights = {name: weight.copy() for name, weight in weights.items()}
    m = {name: np.zeros_like(weight) for name, weight in weights.items()}
    v = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for step, grads in enumerate(gradients, start=1):
        norm = math.sqrt(sum((grad**2).sum() for grad in grads.values())) if normalized else 1.0
        for name, weight in weights.items():
            grad = grads[name] / norm
            m[name] = beta1 * m[name] + (1 - beta1) * grad
            v[name] = beta2 * v[name] + (1 - beta2) * grad * grad
            m_hat = m[name] / (1 - beta1**step) if corrected else m[name]
            v_hat = v[name] / (1 - beta2**step) if corrected else v[name]
            update = m_hat / (np.sqrt(v_hat) + eps) + weight_decay * weight
            ratio = 1.0
            if trusted:
                weight_norm, update_norm = np.sqrt((weight**2).sum()), np.sqrt((update**2).sum())
                if weight_norm > 0 and update_norm > 0:
                    ratio = weight_norm / update_norm
                if clip is not None:
                    ratio = min(ratio, clip)
            weights[name] = weight - lr * ratio * update
    return weights


def assert_equal_to(expected, parameters, dtype):
    for name, parameter in parameters.items():
        bound = TOLERANCE[dtype] * max(1.0, float(np.abs(expected[name]).max()))
        np.testing.assert_allclose(parameter.detach().double().numpy(), expected[name], rtol=0, atol=bound, err_msg=name)


# ---- Lamb --------------------------------------------------------------------------------------------------------------


@both_dtypes
@both_paths
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("corrected", [True, False], ids=["corrected", "uncorrected"])
def test_lamb_is_algorithm_2(corrected, seed, foreach, dtype):
    weights, gradients = problem(seed)
    parameters = parameters_of(weights, dtype)
    train(Lamb(parameters.values(), 0.01, bias_correction=corrected, foreach=foreach), parameters, gradients)
    assert_equal_to(reference(weights, gradients, lr=0.01, corrected=corrected), parameters, dtype)
    assert not parameters["zero"].any()


@both_paths
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"trust_clip": 0.3}, {"clip": 0.3}),
        ({"trust_ratio": "none"}, {"trusted": False}),
        ({"weight_decay": 0.0}, {"weight_decay": 0.0, "trusted": False}),
        ({"weight_decay": 0.0, "trust_ratio": "all"}, {"weight_decay": 0.0}),
        ({"normalize_gradients": True}, {"normalized": True}),
        ({"betas": (0.8, 0.95)}, {"beta1": 0.8, "beta2": 0.95}),
        ({"eps": 1e-3, "weight_decay": 0.3}, {"eps": 1e-3, "weight_decay": 0.3}),
    ],
    ids=lambda options: " ".join(options),
)
def test_lamb_options(options, expected, foreach):
    weights, gradients = problem()
    parameters = parameters_of(weights)
    train(Lamb(parameters.values(), 0.01, foreach=foreach, **options), parameters, gradients)
    assert_equal_to(reference(weights, gradients, lr=0.01, **expected), parameters, torch.float64)


def test_an_option_of_lamb_moves_the_weights():
    """Every case above differs from the default, or it tested nothing."""
    weights, gradients = problem()
    default = reference(weights, gradients, lr=0.01)
    for options in ({"clip": 0.3}, {"trusted": False}, {"normalized": True}, {"corrected": False}, {"weight_decay": 0.0}):
        other = reference(weights, gradients, lr=0.01, **options)
        assert np.abs(other["matrix"] - default["matrix"]).max() > 1e-6, options


@both_paths
def test_one_step_of_lamb_moves_a_weight_by_the_rate_times_its_norm(foreach):
    parameter = nn.Parameter(torch.tensor([3.0, 4.0]))
    parameter.grad = torch.tensor([1.0, -1.0])
    Lamb([parameter], 0.1, weight_decay=0.0, trust_ratio="all", foreach=foreach).step()
    torch.testing.assert_close(parameter.data, torch.tensor([3.0, 4.0]) - 0.1 * 5 / math.sqrt(2) * torch.tensor([1.0, -1.0]))


@both_paths
def test_lamb_scales_the_group_that_decays_and_not_the_other(foreach):
    weights, gradients = problem()
    parameters = parameters_of(weights)
    scaled, plain = ["matrix", "zero weights"], ["vector", "scalar"]
    groups = [{"params": [parameters[name] for name in scaled]}]
    groups += [{"params": [parameters[name] for name in plain], "weight_decay": 0.0}]
    train(Lamb(groups, 0.01, foreach=foreach), parameters, gradients)
    expected = reference(weights, gradients, lr=0.01)
    expected |= {
        name: weight
        for name, weight in reference(weights, gradients, lr=0.01, weight_decay=0.0, trusted=False).items()
        if name in plain
    }
    assert_equal_to(expected, {name: parameters[name] for name in scaled + plain}, torch.float64)


@both_paths
def test_lamb_without_trust_ratio_is_adamw(foreach):
    weights, gradients = problem()
    tested, by_torch = parameters_of(weights), parameters_of(weights)
    options = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}
    train(Lamb(tested.values(), trust_ratio="none", foreach=foreach, **options), tested, gradients)
    train(torch.optim.AdamW(by_torch.values(), **options), by_torch, gradients)
    for name in SHAPES:
        torch.testing.assert_close(tested[name], by_torch[name], rtol=1e-13, atol=1e-13, msg=name)


@both_paths
def test_a_norm_that_float16_cannot_hold_still_scales(foreach):
    parameter = nn.Parameter(torch.full((64, 64), 2000.0, dtype=torch.float16))  # |w| = 128000
    parameter.grad = torch.ones_like(parameter)
    Lamb([parameter], 0.5, foreach=foreach).step()
    assert (parameter == parameter[0, 0]).all()
    assert parameter[0, 0].item() == pytest.approx(1000, rel=2e-3)


# ---- the original Adam -------------------------------------------------------------------------------------------------


@both_dtypes
@both_paths
@pytest.mark.parametrize("seed", [0, 1])
def test_adam_without_bias_correction_is_the_original_update(seed, foreach, dtype):
    weights, gradients = problem(seed)
    parameters = parameters_of(weights, dtype)
    train(AdamWithoutBiasCorrection(parameters.values(), 0.01, foreach=foreach), parameters, gradients)
    assert_equal_to(reference(weights, gradients, lr=0.01, corrected=False, trusted=False), parameters, dtype)


@pytest.mark.parametrize(("step", "times"), [(1, 3.16), (12, 6.57), (1000, 1.26)])
def test_early_updates_are_as_much_larger_than_adamws_as_documented(step, times):
    tested, by_torch = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
    without = AdamWithoutBiasCorrection([tested], 1e-3, eps=1e-12, weight_decay=0.0)
    adamw = torch.optim.AdamW([by_torch], 1e-3, eps=1e-12, weight_decay=0.0)
    for _ in range(step):
        before = tested.item(), by_torch.item()
        tested.grad, by_torch.grad = torch.ones_like(tested), torch.ones_like(by_torch)
        without.step()
        adamw.step()
    assert (tested.item() - before[0]) / (by_torch.item() - before[1]) == pytest.approx(times, abs=0.01)


# ---- both --------------------------------------------------------------------------------------------------------------


@both_dtypes
@of_both
def test_foreach_and_per_tensor_agree_bitwise_on_a_cpu(optimizer, dtype):
    weights, gradients = problem()
    plain, foreach = parameters_of(weights, dtype), parameters_of(weights, dtype)
    train(optimizer(plain.values(), 0.01, foreach=False), plain, gradients)
    train(optimizer(foreach.values(), 0.01, foreach=True), foreach, gradients)
    for name in SHAPES:
        assert torch.equal(plain[name], foreach[name]), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@both_paths
@of_both
def test_on_a_gpu(optimizer, foreach):
    weights, gradients = problem()
    parameters = {name: nn.Parameter(parameter.detach().cuda()) for name, parameter in parameters_of(weights).items()}
    optimized = optimizer(parameters.values(), 0.01, foreach=foreach)
    for grads in gradients:
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(grads[name], device="cuda")
        optimized.step()
    lamb = optimizer is Lamb
    expected = reference(weights, gradients, lr=0.01, corrected=lamb, trusted=lamb)
    assert_equal_to(expected, {name: parameter.cpu() for name, parameter in parameters.items()}, torch.float64)


@both_paths
@of_both
def test_mixed_dtypes_in_one_group(optimizer, foreach):
    weights, gradients = problem()
    parameters = parameters_of(weights)
    parameters["matrix"] = nn.Parameter(parameters["matrix"].detach().float())
    train(optimizer(parameters.values(), 0.01, foreach=foreach), parameters, gradients)
    lamb = optimizer is Lamb
    expected = reference(weights, gradients, lr=0.01, corrected=lamb, trusted=lamb)
    assert parameters["matrix"].dtype == torch.float32
    assert_equal_to(expected, parameters, torch.float32)


@both_paths
@of_both
def test_state_round_trip_continues_bit_for_bit(optimizer, foreach):
    weights, gradients = problem()
    through, parameters = parameters_of(weights, torch.float32), parameters_of(weights, torch.float32)
    train(optimizer(through.values(), 0.01, foreach=foreach), through, gradients)

    before = optimizer(parameters.values(), 0.01, foreach=foreach)
    train(before, parameters, gradients[:11])
    file = io.BytesIO()
    torch.save({"weights": parameters, "optimizer": before.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    parameters = {name: nn.Parameter(weight.detach()) for name, weight in saved["weights"].items()}
    after = optimizer(parameters.values(), 0.5, foreach=foreach)  # the rate is of the checkpoint
    after.load_state_dict(saved["optimizer"])
    for old, new in zip(before.state_dict()["state"].values(), after.state_dict()["state"].values()):
        assert old.keys() == new.keys()
        assert all(torch.equal(old[key], new[key]) and old[key].dtype == new[key].dtype for key in old)
    train(after, parameters, gradients[11:])
    for name in SHAPES:
        assert torch.equal(parameters[name], through[name]), name


@of_both
def test_a_copy_continues_bit_for_bit(optimizer):
    weights, gradients = problem()
    parameters = parameters_of(weights)
    original = optimizer(parameters.values(), 0.01)
    train(original, parameters, gradients[:5])
    copied_parameters, copied = copy.deepcopy((parameters, original))
    train(original, parameters, gradients[5:])
    train(copied, copied_parameters, gradients[5:])
    for name in SHAPES:
        assert torch.equal(parameters[name], copied_parameters[name]), name


@both_paths
@of_both
def test_a_parameter_without_gradient_stays_and_keeps_no_state(optimizer, foreach):
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    used.grad = torch.ones(3)
    optimized = optimizer([used, unused], 0.01, foreach=foreach)
    optimized.step()
    assert torch.equal(unused.data, torch.ones(3))
    assert not torch.equal(used.data, torch.ones(3))
    assert unused not in optimized.state


@of_both
def test_gradients_are_left_as_they_came(optimizer):
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.tensor([1.0, 2.0, 3.0])
    options = {"normalize_gradients": True} if optimizer is Lamb else {}
    optimizer([parameter], 0.01, foreach=True, **options).step()
    assert torch.equal(parameter.grad, torch.tensor([1.0, 2.0, 3.0]))


@of_both
def test_closure_is_called_with_gradients_enabled(optimizer):
    parameter = nn.Parameter(torch.ones(3))
    optimized = optimizer([parameter], 0.01)

    def closure():
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    assert optimized.step(closure).item() == 3
    assert (parameter < 1).all()


def test_normalizing_gradients_that_are_all_zero_divides_by_nothing():
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.zeros(3)
    Lamb([parameter], 0.01, weight_decay=0.0, normalize_gradients=True).step()
    assert torch.equal(parameter.data, torch.ones(3))


# ---- bad input ---------------------------------------------------------------------------------------------------------


@of_both
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -1e-3}, ValueError, "lr to be a finite number of at least 0, got -0.001"),
        ({"lr": math.nan}, ValueError, "lr .* got nan"),
        ({"lr": math.inf}, ValueError, "lr .* got inf"),
        ({"lr": torch.tensor(1e-3)}, TypeError, "lr .* got tensor"),
        ({"lr": "fast"}, TypeError, "lr .* got 'fast'"),
        ({"eps": 0.0}, ValueError, "eps to be a finite number above 0, got 0.0"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay .* got -0.1"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] .* below 1, got 1.0"),
        ({"betas": (-0.1, 0.9)}, ValueError, r"betas\[0\] .* got -0.1"),
        ({"betas": 0.9}, TypeError, "betas to be two numbers, got 0.9"),
        ({"betas": (0.9,)}, TypeError, "betas to be two numbers"),
        ({"foreach": "yes"}, TypeError, "foreach .* got 'yes'"),
    ],
)
def test_rejects_options(optimizer, options, error, message):
    parameter = nn.Parameter(torch.ones(2))
    with pytest.raises(error, match=message):
        optimizer([parameter], **{"lr": 1e-3, **options})
    with pytest.raises(error, match=message):
        optimizer([{"params": [parameter], **options}], lr=1e-3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"trust_ratio": "always"}, ValueError, "trust_ratio to be one of decayed, all, none, got 'always'"),
        ({"trust_clip": 0}, ValueError, "trust_clip .* above 0, got 0"),
        ({"bias_correction": 1}, TypeError, "bias_correction to be True or False, got 1"),
        ({"normalize_gradients": None}, TypeError, "normalize_gradients to be True or False, got None"),
    ],
)
def test_lamb_rejects_options(options, error, message):
    with pytest.raises(error, match=message):
        Lamb([nn.Parameter(torch.ones(2))], 1e-3, **options)


@of_both
def test_rejects_sparse_gradients_and_complex_parameters(optimizer):
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"expected dense gradients, got torch\.sparse_coo"):
        optimizer(embedding.parameters(), 1e-3).step()
    parameter = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(TypeError, match=r"expected real floating-point parameters, got torch\.complex64"):
        optimizer([parameter], 1e-3).step()
