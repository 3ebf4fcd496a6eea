"""The spec of layer_norm, and the dropout mask that it and the embedding apply."""

import random

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import functional, reference
from ..device import cdiv
from ..dropout import scale, threshold
from ..layer_norm import LayerNormConfig, layer_norm_bwd_kernel, layer_norm_fwd_kernel
from ..primitives.philox import keep_adjacent
from .reduce import sum_partials_variant
from .spec import Inputs, KernelVariant, OperationSpec, Sample, Workload, generator, nbytes, normal, seed_tensor
from .variants import signature

BLOCK_M = 2  # rows of a program that writes the mask


@triton.jit
def _dropout_mask_kernel(
    seed_ptr, mask_ptr, M, N, keep_threshold, keep_scale, stream, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    keep = keep_adjacent(tl.load(seed_ptr), stream, offs_m, keep_threshold, BLOCK_M, BLOCK_N)  # [BLOCK_M, BLOCK_N]
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    tl.store(mask_ptr + offs_m.to(tl.int64)[:, None] * N + offs_n[None, :], tl.where(keep, keep_scale, 0.0), mask=mask)


def dropout_mask(shape: tuple[int, int], dropout_p: float, seed: Tensor, stream: int) -> Tensor:
    """The multiplier that layer_norm and embedding apply to each element: float32 (M, N), 0 or the scale."""
    M, N = shape
    mask = torch.empty(shape, dtype=torch.float32, device=seed.device)
    BLOCK_N = max(triton.next_power_of_2(N), 64)
    if M:
        _dropout_mask_kernel[(cdiv(M, BLOCK_M),)](
            seed, mask, M, N, threshold(dropout_p), scale(dropout_p), stream, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N
        )  # fmt: skip
    return mask


def _sample(
    name: str,
    shape: tuple[int, ...],
    *,
    fused: bool = True,
    dropout_p: float = 0.0,
    shift: float = 0.0,
    row_pad: int = 0,
    eps: float = 1e-12,
    seed: int = 0,
) -> Sample:
    """fused: with residual and x_bias. shift: the mean of x and residual. row_pad: columns of memory between their rows."""

    def make(dtype: torch.dtype, device: torch.device) -> Inputs:
        g = generator(seed)
        N = shape[-1]
        wide = normal((*shape[:-1], N + row_pad), dtype, device, g, mean=shift)
        inputs: Inputs = {
            "x": wide[..., :N],
            "weight": normal((N,), dtype, device, g, mean=1.0, std=0.2),
            "bias": normal((N,), dtype, device, g, std=0.2),
            "eps": eps,
        }
        if fused:
            inputs["residual"] = normal((*shape[:-1], N + row_pad), dtype, device, g, mean=shift)[..., :N]
            inputs["x_bias"] = normal((N,), dtype, device, g, std=0.2)
        if dropout_p:
            inputs |= {"dropout_p": dropout_p, "seed": seed_tensor(1234 + seed, device), "stream": 2}
        return inputs

    return Sample(name, make)


_SAMPLES = (
    _sample("one-row", (1, 768)),
    _sample("no-rows", (0, 96)),
    _sample("odd-rows-short-axis", (3, 7, 33)),  # N below the smallest block, M not a multiple of BLOCK_M
    _sample("axis-not-a-power-of-two", (17, 1000)),
    _sample("axis-of-one", (5, 1), eps=1e-5),  # at 1e-12, rstd = 1e6 overflows PyTorch's own float16
    _sample("plain", (19, 384), fused=False),
    _sample("plain-shifted", (13, 768), fused=False, shift=100.0),
    _sample("shifted", (13, 256), shift=100.0),
    _sample("padded-rows", (11, 160), row_pad=24),
    _sample("dropout", (23, 200), dropout_p=0.1),
    _sample("all-dropped", (5, 64), dropout_p=1.0),
    _sample("long-axis", (3, 2500), dropout_p=0.5),
)


def _fuzz(rng: random.Random) -> Sample:
    shape = (rng.randint(0, 40), rng.randint(1, 1200))
    return _sample(
        f"fuzz-{shape}",
        shape,
        fused=rng.random() < 0.7,
        dropout_p=rng.choice((0.0, 0.0, 0.1, 0.9)),
        shift=rng.choice((0.0, 0.0, 100.0)),
        row_pad=rng.choice((0, 0, 1, 8)),
        seed=rng.randint(0, 1 << 30),
    )


def _reference_inputs(inputs: Inputs) -> Inputs:
    inputs = dict(inputs)
    seed, stream = inputs.pop("seed", None), inputs.pop("stream", 0)
    if seed is not None:
        x = inputs["x"]
        shape = (x[..., 0].numel(), x.shape[-1])
        inputs["dropout_mask"] = dropout_mask(shape, inputs["dropout_p"], seed, stream).view(x.shape)
    return inputs


def _workload(work: Workload, dtype: torch.dtype, device: torch.device) -> Inputs:
    return _sample("workload", (work.tokens, work.hidden_size)).make(dtype, device)


def _flops(inputs: Inputs, backward: bool) -> int:
    return (14 if backward else 9) * inputs["x"].numel()


def _bytes_moved(inputs: Inputs, backward: bool) -> int:
    rows = nbytes(inputs["x"], inputs.get("residual"))
    if backward:  # dy and xhat in, dx (shared with dresidual unless elements were dropped) out
        return nbytes(inputs["x"]) * (4 if inputs.get("dropout_p") else 3)
    return rows + nbytes(inputs["x"])


_TYPES = {
    "seed_ptr": "*i64",
    "mean_ptr": "*fp32",
    "rstd_ptr": "*fp32",
    "partial_ptr": "*fp32",
    "eps": "fp32",
    "keep_scale": "fp32",
}


def _forward_variant(name: str, dtype: str, config: LayerNormConfig, dropout: bool) -> KernelVariant:
    flags = {
        "HAS_X_BIAS": True,
        "HAS_RESIDUAL": True,
        "HAS_DROPOUT": dropout,
        "SAVE_XHAT": True,
        "SAVE_STATISTICS": True,
        "BLOCK_M": config.BLOCK_M,
        "BLOCK_N": config.BLOCK_N,
    }
    return KernelVariant(
        f"layer_norm fwd {name}",
        layer_norm_fwd_kernel,
        signature(layer_norm_fwd_kernel, flags, dtype, **_TYPES),
        flags,
        num_warps=config.num_warps,
        divisible=("N", "stride_x_row", "stride_residual_row"),
    )


def _backward_variant(name: str, dtype: str, config: LayerNormConfig, dropout: bool) -> KernelVariant:
    flags = {
        "SAVED_IS_X": False,
        "HAS_DROPOUT": dropout,
        "WRITE_DX": dropout,
        "WRITE_DRESIDUAL": True,
        "WRITE_PARTIAL": True,
        "BLOCK_N": config.BLOCK_N,
    }
    return KernelVariant(
        f"layer_norm bwd {name}",
        layer_norm_bwd_kernel,
        signature(layer_norm_bwd_kernel, flags, dtype, **_TYPES),
        flags,
        num_warps=config.num_warps,
        divisible=("N", "stride_dy_row", "stride_saved_row"),
    )


def _variants() -> list[KernelVariant]:
    variants = []
    for N in (768, 1024):
        config = LayerNormConfig.for_size(N)
        for dtype in ("bf16", "fp32"):
            for dropout in (False, True):
                name = f"N={N} {dtype}{' dropout' if dropout else ''}"
                variants.append(_forward_variant(name, dtype, config, dropout))
                variants.append(_backward_variant(name, dtype, config, dropout))
        variants.append(sum_partials_variant(3 * N))
    return variants


SPECS = (
    OperationSpec(
        name="layer_norm",
        function=functional.layer_norm,
        reference=reference.layer_norm_ref,
        differentiable=("x", "weight", "bias", "residual", "x_bias"),
        samples=_SAMPLES,
        fuzz=_fuzz,
        workload=_workload,
        flops=_flops,
        bytes_moved=_bytes_moved,
        variants=_variants,
        reference_inputs=_reference_inputs,
    ),
)
