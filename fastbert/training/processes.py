"""What training on several processes (torchrun) has in common: the first decides for all, and they end together."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from transformers import TrainerCallback

from fastbert.data.shards import DataError
from fastbert.utils.errors import InputError

T = TypeVar("T")


def agreed(decide: Callable[[], T]) -> T:
    """What the first process decides, in every process, which wait for it; alone, the decision. Every process calls it.

    An InputError, DataError or OSError of the first is raised in all.
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
    """Around a whole training: the processes wait for each other at its end, and their group ends with it or its error."""
    try:
        yield
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
    finally:
        if torch.distributed.is_initialized():
            gc.collect()  # a process group whose last owner dies with the interpreter aborts it: its threads still run
            torch.distributed.destroy_process_group()


class OwnDropout(TrainerCallback):
    """Every process draws its own dropout masks. A resumed run loads the states of its checkpoint after this."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.manual_seed(args.seed + args.process_index)
