"""The spec of cross_entropy."""

import random
from dataclasses import replace

import torch

from .. import functional, reference
from ..cross_entropy import (
    BLOCK_V,
    LOSS_BLOCK,
    LOSS_WARPS,
    ROW_WARPS,
    SCALE_BLOCK,
    SCALE_WARPS,
    cross_entropy_rows_kernel,
    loss_kernel,
    scale_kernel,
)
from . import baselines
from .matmul import dgrad_variants, wgrad_variants
from .reduce import column_sum_variant
from .spec import Inputs, KernelVariant, OperationSpec, Sample, Workload, generator, nbytes, normal
from .variants import signature


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
    _sample("vocabulary-of-two-blocks", 2, 16, 4200, reduction="sum"),
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
    rows = _labelled(inputs) * N * inputs["hidden"].element_size()
    once = rows + nbytes(inputs["weight"], inputs["bias"], inputs["labels"])
    return 2 * once if backward else once


def _rows_variant(dtype: str, with_gradient: bool) -> KernelVariant:
    constexprs = dict(WRITE_GRADIENT=with_gradient, BLOCK_V=BLOCK_V)
    return KernelVariant(
        f"cross_entropy rows {dtype}{' with gradient' if with_gradient else ''}",
        cross_entropy_rows_kernel,
        signature(cross_entropy_rows_kernel, constexprs, dtype, labels_ptr="*i64", losses_ptr="*fp32"),
        constexprs,
        num_warps=ROW_WARPS,
        divisible=("pitch",),
    )


def _scale_variant(dtype: str) -> KernelVariant:
    constexprs = dict(BLOCK=SCALE_BLOCK)
    return KernelVariant(
        f"scaled {dtype}",
        scale_kernel,
        signature(scale_kernel, constexprs, "fp32", scale_ptr="*fp64", out_ptr=f"*{dtype}"),
        constexprs,
        num_warps=SCALE_WARPS,
        divisible=("numel",),
    )


def _loss_variant() -> KernelVariant:
    constexprs = dict(IS_MEAN=True, BLOCK_M=LOSS_BLOCK)
    return KernelVariant(
        "loss",
        loss_kernel,
        signature(loss_kernel, constexprs, "fp32", labels_ptr="*i64", scale_ptr="*fp64"),
        constexprs,
        num_warps=LOSS_WARPS,
    )


def _to_float32(variant: KernelVariant) -> KernelVariant:
    """The same product with a float32 result."""
    out = "dx_ptr" if "dx_ptr" in variant.signature else "dweight_ptr"
    return replace(variant, name=f"{variant.name} to fp32", signature={**variant.signature, out: "*fp32"})


def _variants() -> list[KernelVariant]:
    variants = []
    for dtype in ("bf16", "fp32"):
        variants += [_rows_variant(dtype, False), _rows_variant(dtype, True), column_sum_variant(dtype), _scale_variant(dtype)]
    products = (*dgrad_variants(), *wgrad_variants())
    return [
        *variants,
        *(_to_float32(variant) for variant in products if variant.signature["dy_ptr"] != "*fp32"),
        _loss_variant(),
    ]


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
        variants=_variants,
        directions=("forward", "both"),  # the forward of a training step also computes the gradients
        baseline=baselines.cross_entropy_of_labelled_rows,
    ),
)
