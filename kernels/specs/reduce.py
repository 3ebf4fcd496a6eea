"""Variants of the kernels in primitives/reduce.py, for the specs of the operations that launch them."""

from ..primitives.reduce import PARTIALS_TILE, PARTIALS_WARPS, SUM_TILE, SUM_WARPS, column_sum_kernel, sum_partials_kernel
from .spec import KernelVariant
from .variants import signature


def sum_partials_variant(N: int) -> KernelVariant:
    return KernelVariant(
        f"sum_partials N={N}",
        sum_partials_kernel,
        signature(sum_partials_kernel, PARTIALS_TILE, "fp32"),
        PARTIALS_TILE,
        num_warps=PARTIALS_WARPS,
        divisible=("N",),
    )


def column_sum_variant(dtype: str) -> KernelVariant:
    """dtype: Triton's name of it, 'bf16', 'fp16' or 'fp32'."""
    return KernelVariant(
        f"column_sum {dtype}",
        column_sum_kernel,
        signature(column_sum_kernel, SUM_TILE, dtype, partial_ptr="*fp32"),
        SUM_TILE,
        num_warps=SUM_WARPS,
        divisible=("N", "stride_x_row"),
    )
