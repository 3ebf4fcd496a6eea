"""Training on several processes (torchrun): rank 0 decides for all, and all end together."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from .errors import DataError, InputError

T = TypeVar("T")


def decide_on_rank0(decide: Callable[[], T]) -> T:
    """Calls `decide` on rank 0 alone and returns its result on every rank. Every rank must call this.

    Without a process group, it is a plain call. Raises the InputError, DataError or OSError of rank 0 on every rank.
    """
    if not torch.distributed.is_initialized():
        return decide()
    found: list[Any] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            found = [decide()]
        except (InputError, DataError, OSError) as error:
            found = [error]
    torch.distributed.broadcast_object_list(found, 0)
    if isinstance(found[0], (InputError, DataError, OSError)):
        raise found[0]
    return found[0]


@contextmanager
def ending_together() -> Iterator[None]:
    """Around a whole training: ranks wait for each other, then the process group is destroyed, after an error too."""
    try:
        yield
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
    finally:
        if torch.distributed.is_initialized():
            gc.collect()  # a process group whose last owner dies with the interpreter aborts it: its threads still run
            torch.distributed.destroy_process_group()
