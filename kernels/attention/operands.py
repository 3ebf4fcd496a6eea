"""Tensors as the attention kernels can read them. Imports no Triton.

The kernels move 16 bytes at a time and are compiled for that alone: what cannot be read so is copied first. A copy costs one
read and one write of the tensor; reading element by element would cost eight loads for one, no asynchronous copies, and spills.
"""

import torch
from torch import Tensor

VECTOR_BYTES = 16
MAX_STRIDE = 2**31 // 128 - 8  # of tokens, a multiple of 8: offsets inside a tile are int32; those of the tile itself are int64


def with_aligned_rows(x: Tensor) -> Tensor:
    """x of shape (T, ..., D), or a contiguous copy of it where its rows of D elements cannot be read in place.

    They can where they start at multiples of 16 bytes, hold their elements side by side and are at most MAX_STRIDE elements
    from token to token. Packed qkv always can, because D is a multiple of 8.
    """
    *strides, innermost = x.stride()
    per_vector = VECTOR_BYTES // x.element_size()
    if (
        innermost == 1
        and strides[0] <= MAX_STRIDE
        and _starts_aligned(x)
        and all(stride % per_vector == 0 for stride in strides)
    ):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def aligned(x: Tensor) -> Tensor:
    """x, or a copy of it where it is not contiguous or does not start at a multiple of 16 bytes."""
    return x if x.is_contiguous() and _starts_aligned(x) else x.clone(memory_format=torch.contiguous_format)


def _starts_aligned(x: Tensor) -> bool:
    return x.data_ptr() % VECTOR_BYTES == 0
