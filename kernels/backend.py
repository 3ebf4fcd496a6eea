"""The choice between the Triton kernels and PyTorch. Imports no Triton, unless its interpreter is on.

`auto` (the default) runs the kernels on a GPU that Triton supports and PyTorch everywhere else. The environment variable
`FASTBERT_BACKEND` or the `use_backend` context forces one backend. A forced backend that cannot run raises; nothing falls back.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.torch_version import TorchVersion

from .device import is_gpu, is_pretending, too_old_reason

Backend = Literal["auto", "torch", "triton"]
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MIN_COMPUTE_CAPABILITY = (8, 0)  # first with bf16 tensor cores and cp.async, which every kernel is compiled for


def _checked(name: str, source: str) -> Backend:
    if name not in ("auto", "torch", "triton"):
        raise ValueError(f"{source} must be 'auto', 'torch' or 'triton', got {name!r}")
    return cast(Backend, name)


_choice = _checked(os.environ.get("FASTBERT_BACKEND", "auto"), "the environment variable FASTBERT_BACKEND")
_triton_installed = importlib.util.find_spec("triton") is not None
_interpreting = os.environ.get("TRITON_INTERPRET", "0") == "1"


def interpreter_unsupported_reason() -> str | None:
    """Why Triton's interpreter cannot run with the installed versions, or None where it can. Imports Triton."""
    import numpy
    import triton

    if TorchVersion(triton.__version__) >= "3.7" or TorchVersion(numpy.__version__) < "2.4":
        return None
    return (
        f"the interpreter of Triton {triton.__version__} does not work with NumPy {numpy.__version__}: install triton>=3.7 or "
        "numpy<2.4"
    )


_interpreter_reason = interpreter_unsupported_reason() if _interpreting and _triton_installed else None


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Forces the backend of every operation inside the `with` block, for the whole process.

    name: 'auto', 'torch' or 'triton'. 'triton' on CPU tensors needs Triton's interpreter (TRITON_INTERPRET=1, set before
        the first kernel is imported).
    Raises ValueError for another name.
    """
    global _choice
    before, _choice = _choice, _checked(name, "the backend")
    try:
        yield
    finally:
        _choice = before


def backend_reason(device: torch.device, dtype: torch.dtype) -> tuple[Literal["torch", "triton"], str]:
    """Which backend runs operations on tensors of this device and dtype, and why, as one short clause.

    Raises RuntimeError when 'triton' is forced where it cannot run.
    """
    reason = _unsupported_reason(device, dtype)
    if _choice == "torch":
        return "torch", "forced"
    if _choice == "triton":
        if reason is not None:
            raise RuntimeError(f"backend 'triton' is forced, but {reason}")
        return "triton", "forced"
    if device.type == "cpu":
        return "torch", "tensors are on the CPU"
    return ("triton", "a supported GPU") if reason is None else ("torch", reason)


def resolve_backend(*tensors: torch.Tensor | None) -> Literal["torch", "triton"]:
    """The backend for an operation on these tensors; the device and dtype of the first one decide."""
    first = next(tensor for tensor in tensors if tensor is not None)
    if records_portably():
        if _choice == "triton":
            raise RuntimeError("backend 'triton' is forced, but torch.jit.trace and ONNX record PyTorch's operations only")
        return "torch"
    # vmap, jvp and the like have no rule for our operators, but have one for PyTorch's.
    if _choice != "triton" and not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch"
    return backend_reason(first.device, first.dtype)[0]


def _unsupported_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    if dtype not in KERNEL_DTYPES:
        return f"the kernels take float32, float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if not _triton_installed:
        return "Triton is not installed"
    if is_pretending():
        return None
    if device.type == "cpu":
        if not _interpreting:
            return "the tensors are on the CPU and Triton's interpreter is off (TRITON_INTERPRET=1)"
        return _interpreter_reason
    if device.type != "cuda":
        return f"Triton does not support device type {device.type!r}"
    if torch.version.hip is not None:
        return None
    return too_old_reason(device, MIN_COMPUTE_CAPABILITY, "the kernels need")


def records_portably() -> bool:
    """Whether the graph being recorded must run without our operators: in C++, ONNX Runtime or OpenVINO."""
    return torch.jit.is_tracing() or (torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export())


def is_tracing() -> bool:
    """Whether a graph is being recorded, to be run with other values: torch.compile, torch.export, torch.jit.trace, ONNX."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def checks_values(tensor: torch.Tensor) -> bool:
    """Whether an operation may read the values of this tensor to reject bad ones.

    Always on the CPU. On a GPU only when FASTBERT_DEBUG=1, because reading waits for the device. Never while tracing, under
    vmap, or for fake and meta tensors.
    """
    if is_tracing() or isinstance(tensor, FakeTensor) or tensor.is_meta:
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return not is_gpu(tensor.device) or os.environ.get("FASTBERT_DEBUG", "0") == "1"


def autocast_dtype(tensor: torch.Tensor) -> torch.dtype | None:
    """The dtype that autocast gives matrix products on this tensor's device, or None where it is off."""
    device_type = tensor.device.type
    if not _has_autocast(device_type) or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def _has_autocast(device_type: str) -> bool:
    if torch.compiler.is_compiling():  # Dynamo of torch 2.11 cannot trace the call below; compiled code has a device
        return device_type != "meta"
    return torch.amp.is_autocast_available(device_type)
