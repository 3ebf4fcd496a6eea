"""What the tests of compiled operations run: the kinds of numbers, which samples of an operation in which kind, which kernels.

Without --full each sample runs once, in one kind of numbers on one target: most of the time is the compiler's, and what a
sample is hostile with, lengths and strides and shapes, is hostile in every kind. What of an operation's kernels these samples
leave out is reached by further ones.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch

from fastbert.kernels.specs.spec import KernelVariant, OperationSpec

T = TypeVar("T")
# Kernels that no sample of a spec launches: those of test_products.py, which only a measured table selects, and of test_fp8.py.
TARGETS = (80, 90)
ELSEWHERE = {"gemm_fwd_tma_kernel", "gemm_fwd_split_kernel", "add_splits_kernel", "quantize_kernel", "layer_norm_kernel"}


@dataclass(frozen=True)
class Kind:
    """How numbers are kept and multiplied. precision: of products, as `torch.backends.cuda.matmul.fp32_precision` takes it."""

    name: str
    dtype: torch.dtype
    precision: str = "ieee"

    def __str__(self) -> str:
        return self.name

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Within the `with` block float32 is multiplied in this precision."""
        before = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = self.precision
        try:
            yield
        finally:
            torch.backends.cuda.matmul.fp32_precision = before


KINDS = (
    Kind("bf16", torch.bfloat16),
    Kind("fp16", torch.float16),
    Kind("fp32", torch.float32),
    Kind("tf32", torch.float32, "tf32"),
)


@cache
def variants_of(spec: OperationSpec) -> list[KernelVariant]:
    return spec.variants()


def kinds_of(spec: OperationSpec) -> tuple[Kind, ...]:
    """tf32 is left out where no kernel multiplies matrices in a precision of its choice."""
    multiplies = any("PRECISION" in variant.constexprs for variant in variants_of(spec))
    return KINDS if multiplies else KINDS[:3]


def targets_of(spec: OperationSpec) -> list[int]:
    """Those that any kernel of it ships for."""
    return [target for target in TARGETS if any(kernels_of(spec, kind, target) for kind in KINDS)]


def share(items: Sequence[T], places: Sequence[Any], place: Any) -> list[T]:
    """Every so many-th of the items, so that the places have all of them together and each its own."""
    return list(items[places.index(place) :: len(places)])


def kernels_of(spec: OperationSpec, kind: Kind, target: int) -> set[str]:
    """The names of the kernels that ship for this target and take numbers of this kind."""
    variants = (variant for variant in variants_of(spec) if not variant.targets or f"sm_{target}" in variant.targets)
    return {variant.kernel.fn.__name__ for variant in variants if _takes(variant, kind)}


def _takes(variant: KernelVariant, kind: Kind) -> bool:
    types = " ".join(variant.signature.values())
    if kind.dtype == torch.float32:
        of_kind = "bf16" not in types and "fp16" not in types  # float32 alone, or integers
        return of_kind and variant.constexprs.get("PRECISION", kind.precision) == kind.precision
    # What is compiled for bf16 ships for fp16 too; the codegen table leaves the twin out.
    return "bf16" in types or "fp16" in types or "fp32" not in types
