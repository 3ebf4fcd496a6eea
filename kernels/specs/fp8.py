"""The spec of fp8.linear; the kernels that quantise rows are among its variants."""

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import fp8
from ..fp8_format import GROUP, num_groups
from ..limits import ACTIVATIONS
from . import baselines, matrix_unit
from .launches import COMPLETE, Point, cut, draws, rows
from .spec import Inputs, OperationSpec, Sample, Workload, generator, nbytes, normal


def _sample(name: str, M: int, K: int, N: int, *, bias: bool = True, grouped: bool = False, seed: int = 0) -> Sample:
    """grouped: q has a scale per GROUP columns."""

    def make(dtype: torch.dtype, device: torch.device) -> Inputs:
        g = generator(seed)
        q, scale = fp8.quantize_ref(normal((M, K), torch.float32, device, g), GROUP if grouped else None)
        weight_q, weight_scale = fp8.quantize_ref(normal((N, K), torch.float32, device, g, std=K**-0.5 if K else 1.0))
        inputs = {"q": q, "scale": scale, "weight_q": weight_q, "weight_scale": weight_scale[:, 0].contiguous()}
        return inputs | {"bias": normal((N,), dtype, device, g) if bias else None, "out_dtype": dtype}

    return Sample(name, make)


_SAMPLES = (
    _sample("ragged-everywhere", 70, 200, 130),
    _sample("scale-per-group", 70, 300, 40, grouped=True),
    _sample("one-row", 1, 256, 128, bias=False),
    _sample("smaller-than-a-tile", 3, 16, 7),
    _sample("no-rows", 0, 128, 128),
)


def _fuzz(rng: random.Random) -> Sample:
    M, K, N, grouped = rng.randint(1, 140), rng.randint(1, 300), rng.randint(1, 200), rng.random() < 0.5
    name = f"fuzz-{M}x{K}x{N}{'-grouped' * grouped}"
    return _sample(name, M, K, N, bias=rng.random() < 0.5, grouped=grouped, seed=rng.randint(0, 1 << 30))


def _reference(
    q: Tensor, scale: Tensor, weight_q: Tensor, weight_scale: Tensor, bias: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    return linear_ref(q, scale, weight_q, weight_scale, bias)


def linear_ref(q: Tensor, scale: Tensor, weight_q: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias in the dtype of scale; in float32 as this device's matrix unit adds fp8 products."""
    if scale.dtype != torch.float32 or not matrix_unit.adds_fp8_in_14_bits(q.device):
        return fp8.linear_ref(q, scale, weight_q, weight_scale, bias)
    y = matrix_unit.fp8_product(q, scale, weight_q) * weight_scale
    return y if bias is None else y + bias


def _workload(work: Workload, dtype: torch.dtype, device: torch.device) -> Inputs:
    return _sample("", work.tokens, work.hidden_size, work.intermediate_size).make(dtype, device)


def _flops(inputs: Inputs, backward: bool) -> int:
    return 2 * inputs["q"].numel() * inputs["weight_q"].shape[0]


def _bytes_moved(inputs: Inputs, backward: bool) -> int:
    out = inputs["q"].shape[0] * inputs["weight_q"].shape[0] * inputs["out_dtype"].itemsize
    return out + nbytes(*(value for value in inputs.values() if isinstance(value, Tensor)))


_TARGETS = ("sm_90", "sm_100")
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _rows_call(M, N, dtype, *, x_bias=True, layout="contiguous") -> None:
    """Quantises rows, alone and after a layer norm."""
    x, vector = cut((M, N), dtype, layout), torch.zeros(N, dtype=dtype)
    fp8.quantize(x)
    fp8.layer_norm(x, vector, vector, x, x_bias=vector if x_bias else None)


def _product_call(M, N, K, dtype, *, grouped=False, bias=True, activation=None) -> None:
    """activation: its result is quantised; without one the result is of `dtype`."""
    q, weight_q = torch.zeros(M, K, dtype=fp8.E4M3), torch.zeros(N, K, dtype=fp8.E4M3)
    scale, weight_scale = torch.zeros(M, num_groups(K) if grouped else 1), torch.zeros(N)
    vector = torch.zeros(N, dtype=dtype) if bias else None
    if activation is None:
        fp8.linear(q, scale, weight_q, weight_scale, vector, out_dtype=dtype)
    else:
        fp8.linear_activation(q, scale, weight_q, weight_scale, torch.zeros(N, dtype=dtype), activation=activation)


def _points(target: str) -> Iterator[Point]:
    bf16 = torch.bfloat16
    yield Point(partial(_rows_call, 2, 768, bf16), of_bert=True)
    for multiprocessors in (1, 1000):  # every product fills the first, none the second
        for case in (dict(), dict(grouped=True, bias=False), dict(activation="gelu_erf")):
            yield Point(partial(_product_call, 2, 768, 768, bf16, **case), of_bert=True, multiprocessors=multiprocessors)
    if target not in COMPLETE:
        return
    for N, dtype, drawn in draws(
        0,
        ((1, 16, 37, 128, 200, 256, 500, 512, 768, 1000), _DTYPES),
        2,
        x_bias=(False, True),
        layout=("contiguous", "unaligned"),
    ):
        yield Point(partial(_rows_call, 2, N, dtype, **drawn))
    options: dict[str, Any] = dict(grouped=(False, True), bias=(False, True), activation=(None, *ACTIVATIONS))
    for N, K, dtype, multiprocessors, drawn in draws(
        0, ((1, 37, 128), (1, 37, 128, 256, 272), _DTYPES, (1, 1000)), 2, **options
    ):
        yield Point(partial(_product_call, 2, N, K, dtype, **drawn), multiprocessors=multiprocessors)


SPECS = (
    OperationSpec(
        name="fp8_linear",
        function=fp8.linear,
        reference=_reference,
        differentiable=(),
        samples=_SAMPLES,
        fuzz=_fuzz,
        workload=_workload,
        flops=_flops,
        bytes_moved=_bytes_moved,
        variants=partial(rows, _points, _TARGETS),
        unsupported_reason=fp8.unsupported_reason,
        directions=("forward",),
        baseline=baselines.linear_without_quantization,
    ),
)
