"""`fastbert.batch_invariant`: an input gives the same bits alone and in any batch.

The kernels then use one tile for every number of rows. PyTorch's own matrix products choose an algorithm by the number of
rows, on a CPU and on a GPU: there each sequence runs through the layers alone, and each row through the linear layers of heads.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastbert.kernels import functional, resolve_backend
from fastbert.kernels.batch_invariance import batch_invariant_kernels, is_batch_invariant

_one_sequence: ContextVar[bool] = ContextVar("fastbert_one_sequence", default=False)


@contextmanager
def batch_invariant() -> Iterator[None]:
    """Inside, a forward of fastbert's models gives each input the bits it gets alone, whatever else is in its batch.

    For this thread, and for inference: gradients of weights are sums over the batch. It costs time. It holds for what
    fastbert's encoder computes and for the heads of transformers' classes; a call that needs transformers' own encoder
    raises RuntimeError, and a model from torch.compile runs uncompiled. Padding changes nothing either, where every sequence
    begins with a real token.
    """
    with torch.compiler.set_stance("force_eager"), batch_invariant_kernels(), _LinearByRow():
        yield


class _LinearByRow(TorchFunctionMode):
    """Linear layers outside the encoder, as in poolers and classifiers: on fastbert's kernels, or one row at a time."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        call = _linear if func is F.linear and not _one_sequence.get() else func
        return call(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if resolve_backend(input) == "triton":
        return functional.linear(input, weight, bias)
    rows = input.reshape(-1, input.shape[-1])
    found = [F.linear(row, weight, bias) for row in rows.split(1)] or [F.linear(rows, weight, bias)]
    return torch.cat(found).view(*input.shape[:-1], weight.shape[0])


@contextmanager
def one_sequence() -> Iterator[None]:
    """Inside, every linear layer sees the rows of one sequence, whose number no batch changes, and runs as usual."""
    token = _one_sequence.set(True)
    try:
        yield
    finally:
        _one_sequence.reset(token)


def refuse_where_invariant(why: str) -> None:
    """Raises RuntimeError in batch-invariant mode, which transformers' encoder does not support.

    why: why the call needs transformers' encoder.
    """
    if is_batch_invariant():
        raise RuntimeError(
            f"batch-invariant mode: expected a call for fastbert's encoder, got one that needs transformers' encoder: {why}"
        )
