"""Views of arguments as the kernels read them: rows whose elements are adjacent. Imports no Triton."""

from torch import Tensor


def as_rows(x: Tensor) -> Tensor:
    """x of shape (..., K) as (M, K), without a copy where its last axis is contiguous."""
    return last_contiguous(x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2))


def last_contiguous(x: Tensor) -> Tensor:
    """x itself where its last axis is contiguous, else a contiguous copy."""
    return x if x.stride(-1) == 1 else x.contiguous()
