"""The spec of layer_norm, and the dropout mask that it and the embedding apply."""

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import functional, reference
from ..device import cdiv
from ..dropout import scale, threshold
from ..limits import MAX_NORM_SIZE
from ..primitives.philox import keep_adjacent
from .launches import COMPLETE, Point, cut, draws, rows
from .spec import Inputs, OperationSpec, Sample, Workload, generator, nbytes, normal, seed_tensor

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
    _sample("axis-in-blocks", (4, 4500), dropout_p=0.1),  # longer than a backward holds at once
    _sample("axis-in-blocks-plain", (2, 8192), fused=False, row_pad=8),
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


def _summand_scale(inputs: Inputs, dy: Tensor) -> dict[str, float]:
    """dx is rstd * (g - mean(g) - xhat * mean(g * xhat)) with g = weight * dy, which vanishes on an axis of one element.

    The bias before the norm gets the sum of dx over the rows, each rounded on its own: their root sum of squares.
    """
    x, mask = inputs["x"] + inputs.get("x_bias", 0.0), inputs.get("dropout_mask", 1.0)
    z = x * mask + inputs.get("residual", 0.0)
    rstd = (z.var(-1, unbiased=False, keepdim=True) + inputs["eps"]).rsqrt()
    dz = (rstd * inputs["weight"] * dy).abs()
    dx = dz * mask
    rows = dx.flatten(0, -2).square().sum(0).sqrt()
    return {"dx": dx.max().item(), "dresidual": dz.max().item(), "dx_bias": rows.max().item()}


def _workload(work: Workload, dtype: torch.dtype, device: torch.device) -> Inputs:
    return _sample("workload", (work.tokens, work.hidden_size)).make(dtype, device)


def _flops(inputs: Inputs, backward: bool) -> int:
    return (14 if backward else 9) * inputs["x"].numel()


def _bytes_moved(inputs: Inputs, backward: bool) -> int:
    read = nbytes(inputs["x"], inputs.get("residual"))
    if backward:  # dy and xhat in, dx (shared with dresidual unless elements were dropped) out
        return nbytes(inputs["x"]) * (4 if inputs.get("dropout_p") else 3)
    return read + nbytes(inputs["x"])


# Types of x, residual and the parameters, and autocast: those of a model in one dtype, and of one under autocast.
_HALVES = (torch.bfloat16, torch.float16)
_TYPINGS = (
    *((dtype, dtype, dtype, None) for dtype in (torch.bfloat16, torch.float16, torch.float32)),
    *((x, residual, torch.float32, half) for half in _HALVES for x, residual in ((half, half), (half, torch.float32))),
    *((torch.float32, residual, torch.float32, half) for half in _HALVES for residual in (half, torch.float32)),
)


def _call(M, N, typing, *, x_bias=True, residual=True, dropout=False, wanted="all", layout="contiguous") -> None:
    """Forward, and backward to the inputs that are wanted: 'all', 'none', or those named."""
    x_dtype, residual_dtype, dtype, half = typing
    tensors: dict[str, Any] = {
        "x": cut((M, N), x_dtype, layout),
        "weight": torch.zeros(N, dtype=dtype),
        "bias": torch.zeros(N, dtype=dtype),
        "residual": cut((M, N), residual_dtype, layout) if residual else None,
        "x_bias": torch.zeros(N, dtype=dtype) if x_bias else None,
    }
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    leaves = [tensor.requires_grad_() for name, tensor in given.items() if wanted in ("all", name)]
    options: dict[str, Any] = dict(dropout_p=0.1, seed=seed_tensor(1, torch.device("cpu"))) if dropout else {}
    with torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None):
        y = functional.layer_norm(**given, **options)
    if leaves:
        torch.autograd.grad(y, leaves, cut((M, N), y.dtype, layout))


def _points(target: str) -> Iterator[Point]:
    """BERT's own: after attention and feed-forward, and alone in the head of the language model; for inference and training."""
    bf16, fp32 = torch.bfloat16, torch.float32
    for typing in (_TYPINGS[0], _TYPINGS[2], (bf16, fp32, fp32, bf16)):
        for dropout, wanted, fused in (
            (False, "none", True),
            (False, "all", True),
            (True, "all", True),
            (False, "none", False),
            (False, "all", False),
        ):
            case = dict(dropout=dropout, wanted=wanted, x_bias=fused, residual=fused)
            yield Point(partial(_call, 2, 768, typing, **case), of_bert=True)
    if target not in COMPLETE:
        return
    sizes = [size for exponent in range(6, MAX_NORM_SIZE.bit_length()) for size in (1 << exponent, (1 << exponent) - 3)]
    options: dict[str, Any] = dict(
        x_bias=(False, True),
        residual=(False, True),
        dropout=(False, True),
        wanted=("all", "all", "all", "none", "x", "weight", "residual", "x_bias"),
        layout=("contiguous", "contiguous", "padded", "far", "unaligned"),
    )
    for N, typing, drawn in draws(0, ((1, *sizes), _TYPINGS), 4, **options):
        yield Point(partial(_call, 2, N, typing, **drawn))


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
        variants=partial(rows, _points),
        reference_inputs=_reference_inputs,
        summand_scale=_summand_scale,
    ),
)
