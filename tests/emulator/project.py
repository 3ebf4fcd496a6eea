"""Makes fastbert take its Triton side for CPU tensors, as on a GPU of a given architecture."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch

from .driver import activate
from .memory import POISON16

LARGEST_POISONED = 1 << 30  # bytes


def install(arch: int, multiprocessors: int = 3) -> ExitStack:
    """Kernels compile for this target and run in the emulator, fastbert makes the choices of that GPU, and torch.empty is
    poisoned.

    arch: 80 or 90. multiprocessors: of the GPU that fastbert believes in. Few of them make persistent kernels loop.
    Before fastbert and triton are imported the caller sets TRITON_INTERPRET=0, FASTBERT_BACKEND=triton and FASTBERT_TUNED=off.
    Returns a stack that undoes all of it when it is closed or when a `with` block over it ends.
    """
    from fastbert.kernels.device import pretend  # here, so that the emulator alone does not need the project

    stack = ExitStack()
    stack.enter_context(activate(arch))
    stack.enter_context(pretend(f"sm_{arch}", multiprocessors))
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty")):
        stack.enter_context(mock.patch.object(owner, name, _poisoned(getattr(owner, name))))
    return stack


def _poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The same function, with memory that holds POISON16 throughout: a NaN in every float type, and known to the emulator."""

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = allocate(*args, **kwargs)
        fake = isinstance(tensor, torch._subclasses.FakeTensor)
        if tensor.device.type == "cpu" and tensor.numel() and tensor.layout == torch.strided and not fake:
            storage = tensor.untyped_storage()
            if storage.nbytes() <= LARGEST_POISONED:
                even = storage.nbytes() // 2
                torch.tensor([], dtype=torch.int16).set_(storage, 0, (even,), (1,)).fill_(int(POISON16))
        return tensor

    return poisoned
