"""What launches need to know about a device: its architecture, how float32 is multiplied, how many programs fill it.

The only file that tells devices apart. Imports no Triton. `pretend` lets tests and tools act as if a GPU were there.
"""

import importlib.metadata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch.torch_version import TorchVersion

# The first Triton that puts a fence between asynchronous copies and products from shared memory: of Hopper and of Blackwell
# (triton-lang/triton#9610; wrong results were seen on B200, and by 3.6.0 and 3.7.0 on B300).
FENCED_COPIES = "3.7.1"
MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148}  # of an A100, an H100 SXM and a B200


@dataclass(frozen=True)
class PretendedDevice:
    """architecture: as `architecture` gives it. multiprocessors: how many programs run at once, one on each."""

    architecture: str
    multiprocessors: int


_pretended: PretendedDevice | None = None


@contextmanager
def pretend(architecture: str, multiprocessors: int | None = None) -> Iterator[None]:
    """Within the `with` block, every device counts as a GPU of this architecture, for the whole process.

    For a CPU tensor the same choices are then made as on that GPU: tiles, Triton or the library for a product, no check of
    values, no measured table. It does not make a kernel run where it cannot.
    architecture: as `architecture` gives it, 'sm_90' for instance. multiprocessors: those of the usual card where None.
    Raises ValueError for an architecture that MULTIPROCESSORS does not have, where multiprocessors is None.
    """
    global _pretended
    if multiprocessors is None:
        if architecture not in MULTIPROCESSORS:
            known = ", ".join(MULTIPROCESSORS)
            raise ValueError(f"expected an architecture among {known}, or a number of multiprocessors, got {architecture!r}")
        multiprocessors = MULTIPROCESSORS[architecture]
    before = _pretended
    _pretended = PretendedDevice(architecture, multiprocessors)
    try:
        yield
    finally:
        _pretended = before


def is_pretending() -> bool:
    return _pretended is not None


def is_gpu(device: torch.device) -> bool:
    """Whether the choices for tensors on this device are those of a GPU."""
    return device.type == "cuda" or _pretended is not None


def architecture(device: torch.device) -> str:
    """'sm_90', 'gfx942' and the like; 'cpu'; 'unknown' for another device or a GPU that this machine does not have."""
    if _pretended is not None:
        return _pretended.architecture
    if device.type == "cpu":
        return "cpu"
    return "unknown" if device.type != "cuda" else _architecture(index_of(device))


@cache
def _architecture(index: int) -> str:
    if not torch.cuda.is_available():
        return "unknown"
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    found = f"sm_{properties.major}{properties.minor}"
    if (fault := compiler_fault(found)) is not None:
        warnings.warn(f"fastbert on {properties.name}: {fault}", UserWarning, stacklevel=2)
    return found


def compiler_fault(arch: str) -> str | None:
    """What the installed Triton is known to compile wrongly for this architecture, and what to do; None where nothing is."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # not installed, or under another name, which brings its own version
        return None
    if not (is_nvidia(arch) and has_wide_matrix_unit(arch)) or TorchVersion(version) >= FENCED_COPIES:
        return None
    return (
        f"triton {version} leaves out the fence between asynchronous copies and matrix products of {arch}, which may so read "
        f"old data: install triton {FENCED_COPIES} or newer, which comes with torch 2.13"
    )


def has_wide_matrix_unit(arch: str) -> bool:
    """Whether products read operands from shared memory and TMA copies whole tiles there, which leaves registers free.

    True for Hopper (wgmma) and data-centre Blackwell (tcgen05), and for the interpreter.
    """
    return arch == "cpu" or arch.startswith(("sm_90", "sm_10", "sm_11"))


def is_amd(arch: str) -> bool:
    return arch.startswith("gfx")


def is_nvidia(arch: str) -> bool:
    return arch.startswith("sm_")


def dot_precision(dtype: torch.dtype, arch: str) -> Literal["ieee", "tf32"]:
    """The input_precision of tl.dot: tf32 for float32 tensors where PyTorch allows it and the hardware has it, else ieee.

    tf32 on an NVIDIA GPU cuts operands to 10 bits after the point: Triton compiles no conversion that rounds, and the matrix
    unit ignores the lower bits. Errors are 2.5 to 4.5 times those of operands rounded to the nearest (measured by emulating
    the compiled kernels, not on a GPU).
    """
    if dtype != torch.float32 or not (is_nvidia(arch) or arch == "gfx942"):
        return "ieee"
    # The older name, allow_tf32, raises where the user has set this newer one.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def num_programs(device: torch.device, per_multiprocessor: int) -> int:
    """How many programs fill the device; three under the interpreter, so that it too adds partial sums."""
    if _pretended is not None:
        return _pretended.multiprocessors * per_multiprocessor
    if device.type != "cuda":
        return 3
    return _multiprocessors(index_of(device)) * per_multiprocessor


@cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def too_old_reason(device: torch.device, minimum: tuple[int, int], what: str) -> str | None:
    """Why an NVIDIA GPU below the minimum compute capability cannot be used, as one clause; None for other GPUs.

    what: the subject and verb of the clause, 'the kernels need' for instance.
    """
    if device.index is None or torch.compiler.is_compiling():  # Dynamo does not trace a cached function
        return _too_old(torch.cuda.get_device_properties(device), minimum, what)
    return _cached_too_old(device.index, minimum, what)


@cache
def _cached_too_old(index: int, minimum: tuple[int, int], what: str) -> str | None:
    return _too_old(torch.cuda.get_device_properties(index), minimum, what)


def _too_old(properties: Any, minimum: tuple[int, int], what: str) -> str | None:
    if (properties.major, properties.minor) >= minimum:
        return None
    needed = ".".join(map(str, minimum))
    return f"{properties.name} has compute capability {properties.major}.{properties.minor}, {what} {needed}"


def index_of(device: torch.device) -> int:
    if device.index is not None:
        return device.index
    return torch.cuda.current_device() if torch.cuda.is_available() else 0


def cdiv(x: int, y: int) -> int:
    """x / y rounded up. triton.cdiv costs ten times as much: it unwraps its arguments, because kernels call it too."""
    return -(-x // y)
