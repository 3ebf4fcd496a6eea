"""Variants of the kernels in matmul/, for the specs of the operations that launch them.

Rare epilogues are compiled for sm_90 only; their tiles are those of the common ones.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..limits import ACTIVATIONS
from ..matmul import activation_backward
from ..matmul.config import GROUP_ROWS, SPLIT, TMA, GemmConfig, configs
from ..matmul.pointers import gemm_dgrad_kernel, gemm_fwd_kernel, gemm_wgrad_kernel
from ..matmul.split_k import ADD_TILE, ADD_WARPS, add_splits_kernel, gemm_fwd_split_kernel
from ..matmul.tma import blocks, constants, gemm_fwd_tma_kernel
from .spec import KernelVariant
from .variants import signature

IEEE_LABEL = "fp32 (no tensor cores)"
# Label, dtype and precision of a product.
NUMBERS = (
    ("bf16", torch.bfloat16, "ieee"),
    ("fp16", torch.float16, "ieee"),
    ("tf32", torch.float32, "tf32"),
    (IEEE_LABEL, torch.float32, "ieee"),
)


def forward_variants(
    *,
    parts: int = 1,
    bias: bool = True,
    activation: str | None = None,
    save_u: bool = False,
    even: bool = True,
    main_target_only: bool = False,
) -> list[KernelVariant]:
    """parts: weights side by side. even: K is a multiple of the step of the sum. main_target_only: no target but sm_90."""
    epilogue = dict(PARTS=parts, HAS_BIAS=bias, ACTIVATION=activation, SAVE_U=save_u)
    prefix = f"fwd{' qkv' * (parts == 3)}"
    name = f"{prefix}{' bias' * bias} {activation or ''}{'+u' * save_u}"
    variants = _pointers_variants(
        f"{name}{'' if even else ' odd K'}",
        "fwd",
        gemm_fwd_kernel,
        ("BLOCK_M", "BLOCK_N", "BLOCK_K"),
        epilogue | dict(EVEN_K=even),
        main_target_only,
    )
    if even:  # the hardware zeroes what is past an odd K
        variants += _tma_variants(name, epilogue, main_target_only)
    if bias and activation is None:  # one kernel sums for every epilogue
        variants += _split_variants(f"{prefix}{'' if even else ' odd K'}", parts, even)
    if even:
        variants.append(_add_splits_variant(name, epilogue))
    return variants


def dgrad_variants(
    *,
    parts: int = 1,
    activation: str | None = None,
    want_h: bool = False,
    even: bool = True,
    main_target_only: bool = False,
) -> list[KernelVariant]:
    """even: N is a multiple of the step of the sum. The others as in `forward_variants`."""
    want_sum = activation is not None
    return _pointers_variants(
        f"dgrad{' qkv' * (parts == 3)} {activation or ''}{'+sum' * want_sum}{'+h' * want_h}{'' if even else ' odd N'}",
        "dgrad" if activation is None else "dgrad_activation",
        gemm_dgrad_kernel,
        ("BLOCK_M", "BLOCK_K", "BLOCK_N"),
        dict(PARTS=parts, ACTIVATION=activation, WRITE_H=want_h, WRITE_PARTIAL=want_sum, EVEN_N=even),
        main_target_only,
    )


def wgrad_variants() -> list[KernelVariant]:
    return _pointers_variants("wgrad", "wgrad", gemm_wgrad_kernel, ("BLOCK_N", "BLOCK_K", "BLOCK_M"), {}, False)


def activation_backward_variants() -> list[KernelVariant]:
    kernel = activation_backward.activation_backward_kernel
    variants = []
    for dtype in ("bf16", "fp16", "fp32"):
        for activation, want_h in (("gelu_erf", False), *((name, True) for name in ACTIVATIONS)):
            flags = dict(ACTIVATION=activation, WRITE_H=want_h, WRITE_PARTIAL=True, FULL=dtype == "fp32")
            constexprs = flags | activation_backward.TILE
            variants.append(
                KernelVariant(
                    f"{activation}{'+h' * want_h} backward {dtype}",
                    kernel,
                    signature(kernel, constexprs, dtype, partial_ptr="*fp32"),
                    constexprs,
                    num_warps=activation_backward.NUM_WARPS,
                    divisible=("N", "stride_dh_row"),
                )
            )
    return variants


def _pointers_variants(
    name: str,
    product: str,
    kernel: Any,
    block_names: tuple[str, str, str],
    flags: Mapping[str, Any],
    main_target_only: bool,
) -> list[KernelVariant]:
    """Every tile of a product of config.PRODUCTS. block_names: of its rows, columns and the step of its sum."""
    variants = []
    for label, dtype, precision in NUMBERS:
        targets: dict[GemmConfig, list[str]] = {}
        for arch in ("sm_90",) if main_target_only or label == "fp16" else ("sm_90", "sm_80", "sm_100", "gfx942"):
            for config in configs(product, dtype, precision, arch):
                targets.setdefault(config, []).append(arch)
        for config, archs in targets.items():
            tile = (config.rows, config.columns, config.inner)
            constexprs = {**flags, **dict(zip(block_names, tile)), "PRECISION": precision, "GROUP_ROWS": GROUP_ROWS}
            if "FULL" in kernel.arg_names:
                constexprs["FULL"] = dtype == torch.float32
            types = signature(kernel, constexprs, "fp32" if dtype == torch.float32 else label, partial_ptr="*fp32")
            variants.append(
                KernelVariant(
                    f"{name} {label} {'x'.join(map(str, tile))}",
                    kernel,
                    types,
                    constexprs,
                    num_warps=config.num_warps,
                    num_stages=config.num_stages,
                    maxnreg=config.max_registers,
                    unit="scalar" if label == IEEE_LABEL else "tensor",
                    divisible=tuple(argument for argument in types if argument in ("N", "K") or argument.startswith("stride_")),
                    targets=tuple(archs),
                )
            )
    return variants


def _tma_variants(name: str, epilogue: Mapping[str, Any], main_target_only: bool) -> list[KernelVariant]:
    variants = []
    for dtype in ("bf16",) if main_target_only else ("bf16", "fp16"):
        for config in TMA:
            x, w, y = (f"tensordesc<{dtype}{block}>" for block in blocks(config))
            descriptors = dict(x_desc=x, w0_desc=w, w1_desc=w, w2_desc=w, y_desc=y, u_desc=y)
            constexprs = {**epilogue, **constants(config)}
            variants.append(
                KernelVariant(
                    f"{name} {dtype} {config.name}",
                    gemm_fwd_tma_kernel,
                    signature(gemm_fwd_tma_kernel, constexprs, dtype, **descriptors),
                    constexprs,
                    num_warps=config.num_warps,
                    num_stages=config.num_stages,
                    unit="tensor",
                    divisible=("N", "K"),
                    targets=("sm_90",) if main_target_only or dtype == "fp16" else ("sm_90", "sm_100"),
                )
            )
    return variants


def _split_variants(name: str, parts: int, even: bool) -> list[KernelVariant]:
    config = SPLIT[0]
    tile = dict(BLOCK_M=config.rows, BLOCK_N=config.columns, BLOCK_K=config.inner)
    constexprs = dict(PARTS=parts, PRECISION="ieee", EVEN_K=even, GROUP_ROWS=GROUP_ROWS) | tile
    return [
        KernelVariant(
            f"{name} {dtype} split {config.rows}x{config.columns}x{config.inner}",
            gemm_fwd_split_kernel,
            signature(gemm_fwd_split_kernel, constexprs, dtype, partial_ptr="*fp32"),
            constexprs,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            unit="tensor",
            divisible=("N", "K", "stride_x_row", "stride_w_row", "K_per_split"),
            targets=("sm_90",) if dtype == "fp16" or not even else ("sm_90", "sm_80", "sm_100"),
        )
        for dtype in ("bf16", "fp16")
    ]


def _add_splits_variant(name: str, epilogue: Mapping[str, Any]) -> KernelVariant:
    constexprs = {**epilogue, "FULL": False, **ADD_TILE}
    return KernelVariant(
        f"{name} bf16 added splits",
        add_splits_kernel,
        signature(add_splits_kernel, constexprs, "bf16", partial_ptr="*fp32"),
        constexprs,
        num_warps=ADD_WARPS,
        divisible=("N",),
        targets=("sm_90",),
    )
