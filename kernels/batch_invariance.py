"""Whether a result may depend on what else is in the batch. Imports no Triton.

By default it may, in its last bits: tiles and algorithms are chosen by the number of rows and the longest sequence. In
batch-invariant mode the forward of every operation chooses by neither (He et al. 2025, "Defeating Nondeterminism in LLM
Inference").
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

LONGEST = 1 << 30  # stands for the longest sequence where tiles may not follow it
_active: ContextVar[bool] = ContextVar("fastbert_batch_invariant", default=False)


def is_batch_invariant() -> bool:
    """Whether this thread is inside `batch_invariant_kernels`. While tracing it is False: a graph serves other calls too."""
    return not torch.compiler.is_compiling() and _active.get()


@contextmanager
def batch_invariant_kernels() -> Iterator[None]:
    """Makes each row of every forward operation, and each sequence of attention, independent of the others to the bit.

    For this thread; matrix products go to the Triton kernels, on one tile for every number of rows. Users want
    `fastbert.batch_invariant`, which covers the modules around the operations too.
    """
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)
