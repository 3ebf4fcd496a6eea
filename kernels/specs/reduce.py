"""The kernels of primitives/reduce.py, for the codegen rows of the operations that launch them."""

from ..primitives.reduce import PARTIALS_TILE, PARTIALS_WARPS, SUM_TILE, SUM_WARPS, _column_sum_kernel, _sum_partials_kernel
from .spec import KernelVariant


def sum_partials_variant(N: int) -> KernelVariant:
    return KernelVariant(
        f"sum_partials N={N}", _sum_partials_kernel,
        dict(partial_ptr="*fp32", out_ptr="*fp32", P="i32", N="i32"), dict(PARTIALS_TILE),
        num_warps=PARTIALS_WARPS, divisible=("N",),
    )  # fmt: skip


def column_sum_variant(dtype: str) -> KernelVariant:
    """dtype: Triton's name of it, 'bf16', 'fp16' or 'fp32'."""
    return KernelVariant(
        f"column_sum {dtype}", _column_sum_kernel,
        dict(x_ptr=f"*{dtype}", partial_ptr="*fp32", M="i32", N="i32", stride_x_row="i32", rows_per_program="i32"),
        dict(SUM_TILE), num_warps=SUM_WARPS, divisible=("N", "stride_x_row"),
    )  # fmt: skip
