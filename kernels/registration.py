"""Registers a Triton launcher as an operator, `torch.ops.fastbert.<name>`.

The same Python launcher runs on CUDA (and ROCm) tensors and, under Triton's interpreter, on CPU tensors. The fake kernel
tells torch.compile and torch.export shapes and dtypes. Autograd is registered once, on the operator. At small batches the GPU
waits for the host, so little is done per call.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

LIBRARY = torch.library.Library("fastbert", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


def register(
    schema: str,
    launch: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Defines `fastbert::<schema>` and returns the callable operator.

    launch: allocates and launches on the device of its first tensor argument. fake: the same signature on fake tensors.
    setup_context, backward: as in torch.library.register_autograd.
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=_TAGS)

    @wraps(launch)
    def guarded(*args, **kwargs):
        device = next(arg for arg in args if isinstance(arg, torch.Tensor)).device
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return launch(*args, **kwargs)
        with torch.cuda.device(device):
            return launch(*args, **kwargs)

    for key in ("CUDA", "CPU"):
        LIBRARY.impl(name, guarded, key)
    torch.library.register_fake(f"fastbert::{name}", fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"fastbert::{name}", backward, setup_context=setup_context, lib=LIBRARY)
    return getattr(torch.ops.fastbert, name)


def wants_grad(*tensors: torch.Tensor | None) -> bool:
    """Whether a backward may follow, so that the forward must save tensors for it."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
