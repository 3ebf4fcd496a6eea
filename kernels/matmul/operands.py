"""Tensors as the products read them best: 16 bytes at a time where the sizes allow it. Imports no Triton.

The tile of a product, and with it the order of its sums, then follows from sizes alone, and not from where a tensor lies.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

DIVISIBILITY = 16  # elements of a row, bytes of an address: what Triton must know of them to load 16 bytes at a time


def have_whole_vectors(N: int, K: int) -> bool:
    """Whether rows of both sizes are whole vectors, wherever contiguous tensors of them start at one."""
    return N % DIVISIBILITY == 0 and K % DIVISIBILITY == 0


def readable(N: int, K: int, *tensors: Tensor) -> list[Tensor]:
    """The operands of a product with weights (N, K); where these sizes are whole vectors, those that start elsewhere copied.

    A copy costs a read and a write of the tensor; reading it element by element costs spills and every asynchronous copy.
    """
    if not have_whole_vectors(N, K):
        return list(tensors)
    return [tensor if _starts_at_vectors(tensor) else tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors]


def readable_weights(N: int, K: int, weights: Sequence[Tensor]) -> list[Tensor]:
    """The same of weights side by side, which a kernel reads with one stride."""
    found = readable(N, K, *weights)
    if all(weight.stride() == found[0].stride() for weight in found):
        return found
    return [weight.contiguous() for weight in found]


def _starts_at_vectors(tensor: Tensor) -> bool:
    return tensor.stride(0) % DIVISIBILITY == 0 and tensor.data_ptr() % DIVISIBILITY == 0
