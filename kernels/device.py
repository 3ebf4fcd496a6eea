"""What a launch asks of the hardware: architecture, how float32 is multiplied, how many programs fill the device.

The only file that knows devices apart. Imports no Triton. `pretend` stands for a GPU that is not there, for tests and tools.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch

MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148}  # of an A100, an H100 SXM and a B200


@dataclass(frozen=True)
class PretendedDevice:
    """architecture: as `architecture` gives it. multiprocessors: how many programs run at once, one on each."""

    architecture: str
    multiprocessors: int


_pretended: PretendedDevice | None = None


@contextmanager
def pretend(architecture: str, multiprocessors: int | None = None) -> Iterator[None]:
    """Inside, every device answers as a GPU of this architecture, for the whole process.

    A CPU tensor then takes the decisions of a GPU's: tiles, sides of products, no look at values, nothing measured. Whether a
    kernel can run there is another matter. multiprocessors: those of the architecture's usual card where None.
    Raises ValueError for an architecture without a usual card, where multiprocessors is None.
    """
    global _pretended
    if multiprocessors is None and architecture not in MULTIPROCESSORS:
        known = ", ".join(MULTIPROCESSORS)
        raise ValueError(f"expected an architecture among {known}, or a number of multiprocessors, got {architecture!r}")
    before = _pretended
    _pretended = PretendedDevice(architecture, multiprocessors or MULTIPROCESSORS[architecture])
    try:
        yield
    finally:
        _pretended = before


def is_pretending() -> bool:
    return _pretended is not None


def is_gpu(device: torch.device) -> bool:
    """Whether decisions are those of a GPU."""
    return device.type == "cuda" or _pretended is not None


def architecture(device: torch.device) -> str:
    """'sm_90', 'gfx942' and the like; 'cpu'; 'unknown' for a GPU that this machine does not have."""
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
    return f"sm_{properties.major}{properties.minor}"


def has_wide_matrix_unit(arch: str) -> bool:
    """Whether products read their operands from shared memory (wgmma on Hopper, tcgen05 on data-centre Blackwell), which
    leaves registers free, and hardware copies whole tiles there (TMA). The interpreter counts as such a device."""
    return arch == "cpu" or arch.startswith(("sm_90", "sm_10", "sm_11"))


def is_amd(arch: str) -> bool:
    return arch.startswith("gfx")


def is_nvidia(arch: str) -> bool:
    return arch.startswith("sm_")


def dot_precision(dtype: torch.dtype, arch: str) -> Literal["ieee", "tf32"]:
    """How a kernel multiplies: float32 is rounded to tf32 only where PyTorch allows it and the hardware has it."""
    if dtype != torch.float32 or not (is_nvidia(arch) or arch == "gfx942"):
        return "ieee"
    # Read through the newer name: the older one raises where the user set this one.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def num_programs(device: torch.device, per_multiprocessor: int) -> int:
    """How many programs fill the device; a few under the interpreter, so that partial sums are exercised there too."""
    if _pretended is not None:
        return _pretended.multiprocessors * per_multiprocessor
    if device.type != "cuda":
        return 3
    return _multiprocessors(index_of(device)) * per_multiprocessor


@cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def compute_capability_obstacle(device: torch.device, minimum: tuple[int, int], what: str) -> str | None:
    """Why an NVIDIA GPU is too old for `what`, as one clause; None where it is not."""
    if device.index is None or torch.compiler.is_compiling():  # a trace has no use for a cache
        return _too_old(torch.cuda.get_device_properties(device), minimum, what)
    return _cached_obstacle(device.index, minimum, what)


@cache
def _cached_obstacle(index: int, minimum: tuple[int, int], what: str) -> str | None:
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
    """x / y rounded up. triton.cdiv serves kernels too, for which it unwraps its arguments: ten times the cost."""
    return -(-x // y)
