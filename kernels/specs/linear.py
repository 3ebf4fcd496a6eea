"""The specs of linear, qkv_linear and feed_forward."""

import random
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from .. import functional, reference
from ..limits import ACTIVATIONS
from .launches import Point, rows
from .matmul import any_points, forward_points, gradient_points, pass_points
from .spec import Inputs, OperationSpec, Sample, Workload, generator, nbytes, normal


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
    """Axes long enough that the largest error is not a matter of luck: one row and one column are among the samples."""
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


def _qkv_reference(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | Sequence[None] = (None,) * 3) -> Tensor:
    """`reference.qkv_linear_ref` with one product at every size: three, for small inputs, give x a gradient of shorter sums."""
    given = [bias for bias in biases if bias is not None]
    return reference.linear_ref(x, torch.cat(list(weights)), torch.cat(given) if given else None)


def _linear_workload(work: Workload, dtype: torch.dtype, device: torch.device) -> Inputs:
    return _linear_sample("workload", (work.tokens, work.hidden_size), work.hidden_size).make(dtype, device)


def _qkv_workload(work: Workload, dtype: torch.dtype, device: torch.device) -> Inputs:
    return _qkv_sample("workload", (work.tokens, work.hidden_size), work.hidden_size).make(dtype, device)


def _feed_forward_workload(work: Workload, dtype: torch.dtype, device: torch.device) -> Inputs:
    sample = _feed_forward_sample("workload", (work.tokens, work.hidden_size), work.intermediate_size, work.hidden_size)
    return sample.make(dtype, device)


def _flops(inputs: Inputs, backward: bool) -> int:
    """Two per multiplication; the backward has two products for each one of the forward."""
    x, *weights = _x_and_weights(inputs)
    return (4 if backward else 2) * x.shape[:-1].numel() * sum(weight.numel() for weight in weights)


def _bytes_moved(inputs: Inputs, backward: bool) -> int:
    """Forward: x, weights, biases in, y out. Backward: dy, x, weights in, their gradients out. With an activation both
    also pass the inner state once: u and h, or du."""
    x, *weights = _x_and_weights(inputs)
    M, element = x.shape[:-1].numel(), x.element_size()
    last = weights[-1:] if "weight_out" in inputs else weights
    y = M * sum(weight.shape[0] for weight in last) * element
    inner = M * weights[0].shape[0] * element if inputs.get("activation") else 0
    parameters = nbytes(*weights)
    return 2 * (nbytes(x) + parameters) + y + 2 * inner if backward else nbytes(x) + parameters + y + inner


def _x_and_weights(inputs: Inputs) -> tuple[Tensor, ...]:
    single = (inputs[name] for name in ("weight", "weight_in", "weight_out") if name in inputs)
    return (inputs["x"], *inputs.get("weights", ()), *single)


def _linear_points(target: str) -> Iterator[Point]:
    """Those of the other two operations too: the kernels are the same."""
    yield from forward_points(target, bert=((True, None, False), (False, None, False)))
    yield from gradient_points(target)
    yield from pass_points(target)
    yield from any_points(target)


def _qkv_points(target: str) -> Iterator[Point]:
    yield from forward_points(target, parts=3, bert=((True, None, False),))
    yield from gradient_points(target, parts=3)


def _feed_forward_points(target: str) -> Iterator[Point]:
    yield from forward_points(target, bert=((True, "gelu_erf", False), (True, "gelu_erf", True)))
    yield from gradient_points(target, activation="gelu_erf")


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
        variants=partial(rows, _linear_points),
    ),
    OperationSpec(
        name="qkv_linear",
        function=functional.qkv_linear,
        reference=_qkv_reference,
        differentiable=("x", "weights", "biases"),
        samples=_QKV_SAMPLES,
        fuzz=_qkv_fuzz,
        workload=_qkv_workload,
        flops=_flops,
        bytes_moved=_bytes_moved,
        variants=partial(rows, _qkv_points),
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
        variants=partial(rows, _feed_forward_points),
    ),
)
