"""Whether a result may depend on what else is in the batch. Imports no Triton.

By default it may, in its last bits, because the number of rows and the longest sequence decide on tiles and algorithms. In
batch-invariant mode neither does, in the forward of any operation (He et al. 2025, "Defeating Nondeterminism in LLM
Inference").
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

LONGEST = 1 << 30  # the length of the longest sequence, where the choice of tiles must not depend on it
_active: ContextVar[bool] = ContextVar("fastbert_batch_invariant", default=False)


def is_batch_invariant() -> bool:
    """Whether this thread is inside `batch_invariant_kernels`. False while tracing, because other calls use the graph too."""
    return not torch.compiler.is_compiling() and _active.get()


@contextmanager
def batch_invariant_kernels() -> Iterator[None]:
    """Makes the bits of each row of a forward, and of each sequence of attention, independent of the rest of the batch.

    For this thread. Matrix products are Triton kernels with one tile shape for every number of rows. The public context is
    `fastbert.batch_invariant`, which also covers the modules around the operations.
    """
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)
