"""The spec of cross_entropy."""

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from .. import functional, reference
from ..cross_entropy import BLOCK_V
from ..matmul.choose import use_gemm
from . import baselines
from .launches import COMPLETE, Point, draws, rows
from .matmul import gradients_to_float32
from .spec import Inputs, OperationSpec, Sample, Workload, generator, nbytes, normal


def _sample(
    name: str,
    M: int,
    N: int,
    V: int,
    *,
    has_bias: bool = True,
    labelled: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    hidden_shift: float = 0.0,
    bias_shift: float = 0.0,
    huge: float = 0.0,
    row_pad: int = 0,
    seed: int = 0,
) -> Sample:
    """labelled: share of rows with a label. huge: added to the bias of one column."""

    def make(dtype: torch.dtype, device: torch.device) -> Inputs:
        g = generator(seed)
        labels = torch.randint(0, V, (M,), generator=g)
        labels[torch.rand(M, generator=g) >= labelled] = ignore_index
        bias = None
        if has_bias:
            bias = normal((V,), dtype, device, g, mean=bias_shift)
            bias[V // 2] += huge
        return {
            "hidden": normal((M, N + row_pad), dtype, device, g, mean=hidden_shift)[:, :N],
            "weight": normal((V, N), dtype, device, g, std=2 * N**-0.5 / (1 + hidden_shift)),
            "bias": bias,
            "labels": labels.to(device),
            "ignore_index": ignore_index,
            "reduction": reduction,
        }

    return Sample(name, make)


_SAMPLES = (
    _sample("several-chunks", 40, 24, 1003),  # V not a multiple of 8
    _sample("one-row", 1, 64, 50),
    _sample("tiny-vocabulary", 13, 33, 7),
    _sample("vocabulary-of-two-blocks", 9, 40, 4200, reduction="sum"),  # wide enough that the largest error is no luck
    _sample("one-class", 6, 24, 1),  # the loss is 0
    _sample("no-rows", 0, 96, 30, reduction="sum"),
    _sample("without-bias", 21, 100, 130, has_bias=False),
    _sample("ignored", 50, 64, 77, labelled=0.3),
    _sample("ignored-class", 50, 64, 9, ignore_index=3),
    _sample("shifted", 300, 16, 64, bias_shift=100.0),
    _sample("shifted-hidden", 60, 64, 300, hidden_shift=100.0),
    _sample("one-huge-logit", 17, 64, 300, huge=1000.0),
    _sample("padded-rows", 11, 160, 90, row_pad=24),
)


def _fuzz(rng: random.Random) -> Sample:
    """No bias_shift: logits of 100 are rounded so coarsely that with few rows either loss may be nearer by luck."""
    M, N, V = rng.randint(1, 40), rng.randint(1, 120), rng.choice((rng.randint(1, 40), rng.randint(40, 800)))
    return _sample(
        f"fuzz-{M}-{N}-{V}",
        M,
        N,
        V,
        has_bias=rng.random() < 0.8,
        reduction=rng.choice(("mean", "sum")),
        hidden_shift=rng.choice((0.0, 0.0, 0.0, 100.0)),
        huge=rng.choice((0.0, 0.0, 1000.0)),
        row_pad=rng.choice((0, 0, 1, 8)),
        seed=rng.randint(0, 1 << 30),
    )


def _workload(work: Workload, dtype: torch.dtype, device: torch.device) -> Inputs:
    return _sample("workload", work.tokens, work.hidden_size, work.vocab_size, labelled=0.15).make(dtype, device)


def _labelled(inputs: Inputs) -> int:
    return int((inputs["labels"] != inputs["ignore_index"]).sum())


def _flops(inputs: Inputs, backward: bool) -> int:
    """Of the products. Those of the gradients count as backward, although this forward already computes them."""
    V, N = inputs["weight"].shape
    return (4 if backward else 2) * _labelled(inputs) * V * N


def _bytes_moved(inputs: Inputs, backward: bool) -> int:
    """hidden at the labelled rows, the decoder and, backward, the gradients of both. Logits need not leave the chip."""
    N = inputs["weight"].shape[1]
    read = _labelled(inputs) * N * inputs["hidden"].element_size()
    once = read + nbytes(inputs["weight"], inputs["bias"], inputs["labels"])
    return 2 * once if backward else once


_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _call(M, V, dtype, *, ignore_index=-100, reduction="mean", bias=True, wanted=("hidden", "weight", "bias"), N=16) -> None:
    """Forward, and backward to what is wanted, with the products left to the library: theirs are rows of their own."""
    tensors: dict[str, Any] = {"hidden": torch.zeros(M, N, dtype=dtype), "weight": torch.zeros(V, N, dtype=dtype)}
    tensors |= {"bias": torch.zeros(V, dtype=dtype)} if bias else {}
    leaves = [tensor.requires_grad_() for name, tensor in tensors.items() if name in wanted]
    labels = torch.full((M,), V - 1 if ignore_index != V - 1 else 0)
    options: dict[str, Any] = dict(ignore_index=ignore_index, reduction=reduction, num_labelled=M)
    with use_gemm("library"):
        loss = functional.cross_entropy(**({"bias": None} | tensors), labels=labels, **options)
        if leaves:
            torch.autograd.grad(loss, leaves)


def _points(target: str) -> Iterator[Point]:
    for dtype in (torch.bfloat16, torch.float32):
        for wanted in ((), ("hidden", "weight", "bias")):
            yield Point(partial(_call, 2, 30522, dtype, wanted=wanted), of_bert=True)
    yield from gradients_to_float32(target)
    if target not in COMPLETE:
        return
    powers = [1 << exponent for exponent in range(6, BLOCK_V.bit_length())]
    options: dict[str, Any] = dict(
        M=(1, 2),
        ignore_index=(-100, -1, 0, 1, 16),
        reduction=("mean", "sum"),
        bias=(False, True),
        wanted=((), ("hidden",), ("weight",), ("bias",), ("hidden", "weight", "bias")),
        N=(1, 16, 7),
    )
    for V, dtype, drawn in draws(0, ((1, 37, *powers, *(V - 5 for V in powers), 2 * BLOCK_V), _DTYPES), 3, **options):
        yield Point(partial(_call, drawn.pop("M"), V, dtype, **drawn))


SPECS = (
    OperationSpec(
        name="cross_entropy",
        function=functional.cross_entropy,
        reference=reference.cross_entropy_ref,
        differentiable=("hidden", "weight", "bias"),
        samples=_SAMPLES,
        fuzz=_fuzz,
        workload=_workload,
        flops=_flops,
        bytes_moved=_bytes_moved,
        variants=partial(rows, _points),
        directions=("forward", "both"),  # the forward of a training step also computes the gradients
        baseline=baselines.cross_entropy_of_labelled_rows,
    ),
)
