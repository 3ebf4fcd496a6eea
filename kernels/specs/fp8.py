"""The spec of fp8.linear; the kernels that quantise rows are among its variants."""

import random

import torch
from torch import Tensor

from .. import fp8
from ..fp8_format import GROUP
from ..fp8_kernels import LARGE, NORM_ROWS, QUANTIZE_ROWS, ROW_WARPS, SMALL, fp8_gemm_kernel, layer_norm_kernel, quantize_kernel
from ..matmul.config import GROUP_ROWS
from . import baselines
from .spec import Inputs, KernelVariant, OperationSpec, Sample, Workload, generator, nbytes, normal
from .variants import signature


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
    return fp8.linear_ref(q, scale, weight_q, weight_scale, bias)


def _workload(work: Workload, dtype: torch.dtype, device: torch.device) -> Inputs:
    return _sample("", work.tokens, work.hidden_size, work.intermediate_size).make(dtype, device)


def _flops(inputs: Inputs, backward: bool) -> int:
    return 2 * inputs["q"].numel() * inputs["weight_q"].shape[0]


def _bytes_moved(inputs: Inputs, backward: bool) -> int:
    out = inputs["q"].shape[0] * inputs["weight_q"].shape[0] * inputs["out_dtype"].itemsize
    return out + nbytes(*(value for value in inputs.values() if isinstance(value, Tensor)))


_TARGETS = ("sm_90", "sm_100")


def _row_variants() -> list[KernelVariant]:
    types = {"q_ptr": "*fp8e4nv", "scale_ptr": "*fp32", "eps": "fp32"}
    quantize = {"BLOCK_M": QUANTIZE_ROWS, "BLOCK_N": 1024}
    norm = {"HAS_X_BIAS": True, "BLOCK_M": NORM_ROWS, "BLOCK_N": 1024}
    return [
        KernelVariant(
            "fp8 quantize bf16",
            quantize_kernel,
            signature(quantize_kernel, quantize, "bf16", **types),
            quantize,
            num_warps=ROW_WARPS,
            divisible=("N", "stride_x_row"),
            targets=_TARGETS,
        ),
        KernelVariant(
            "fp8 layer norm bf16",
            layer_norm_kernel,
            signature(layer_norm_kernel, norm, "bf16", **types),
            norm,
            num_warps=ROW_WARPS,
            divisible=("N", "stride_x_row", "stride_residual_row"),
            targets=_TARGETS,
        ),
    ]


def _gemm_variants(label: str, activation: str | None, grouped: bool) -> list[KernelVariant]:
    """activation: its result is quantised; without one the result is bfloat16."""
    types = {"x_ptr": "*fp8e4nv", "w_ptr": "*fp8e4nv", "scale_ptr": "*fp32", "w_scale_ptr": "*fp32", "y_scale_ptr": "*fp32"}
    if activation is not None:
        types["y_ptr"] = "*fp8e4nv"
    variants = []
    for config in (LARGE, SMALL):
        flags = {
            "HAS_BIAS": True,
            "ACTIVATION": activation,
            "GROUPED": grouped,
            "QUANTIZE": activation is not None,
            "EVEN_K": True,
            "BLOCK_M": config.rows,
            "BLOCK_N": GROUP,
            "BLOCK_K": GROUP,
            "GROUP_ROWS": GROUP_ROWS,
            **({"y_scale_ptr": None} if activation is None else {}),
        }
        variants.append(
            KernelVariant(
                f"fp8 linear{label} {config.rows}x{GROUP}x{GROUP}",
                fp8_gemm_kernel,
                signature(fp8_gemm_kernel, flags, "bf16", **types),
                flags,
                num_warps=config.num_warps,
                num_stages=config.num_stages,
                unit="tensor",
                divisible=("N", "K"),
                targets=_TARGETS,
            )
        )
    return variants


def _variants() -> list[KernelVariant]:
    return [
        *_row_variants(),
        *_gemm_variants("", None, False),
        *_gemm_variants(" gelu_erf+quantize", "gelu_erf", False),
        *_gemm_variants(" grouped", None, True),
    ]


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
        variants=_variants,
        unsupported_reason=fp8.unsupported_reason,
        directions=("forward",),
        baseline=baselines.linear_without_quantization,
    ),
)
