"""A Triton driver whose device is the emulator: kernels are specialised, compiled and launched by Triton as on a GPU."""

from contextlib import ExitStack
from typing import Any, NoReturn
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.backends.nvidia import driver as nvidia
from triton.compiler import CompiledKernel

from .launcher import Launcher, loading
from .tensor_map import TensorMap

MOST_SHARED = {
    80: 166912,
    86: 101376,
    89: 101376,
    90: 232448,
}  # bytes a block may ask for; CUDA C++ Programming Guide, Compute Capabilities


class Utils:
    """The functions of Triton's C module that ask a device."""

    fill_tma_descriptor_tiled = TensorMap
    fill_tma_descriptor = TensorMap  # its name in Triton 3.6

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple:
        """Module, function, registers, spilled bytes, most threads: ptxas's numbers are not known here."""
        return "module", name, 0, 0, 1024

    def unload_module(self, module: tuple) -> None:
        """Triton calls it from 3.9 on."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": MOST_SHARED[self.arch],
            "max_num_regs": 65536,
            "multiprocessor_count": 3,
            "warpSize": 32,
            "sm_clock_rate": 1410000,
            "mem_clock_rate": 1215000,
            "mem_bus_width": 5120,
        }


class EmulatorDriver(DriverBase):
    """What Triton asks about its device."""

    launcher_cls = Launcher

    def __init__(self, arch: int) -> None:
        super().__init__()
        self.arch = arch
        self.utils = Utils(arch)

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # Triton keeps compiled kernels by device: those of two targets stay apart

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        return divmod(self.arch, 10)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def map_python_to_cpp_type(self, kind: str) -> str:
        return nvidia.ty_to_cpp(kind)

    def get_benchmarker(self) -> NoReturn:
        raise NotImplementedError("expected no measurement: the emulator has no time")

    def get_empty_cache_for_benchmark(self) -> NoReturn:
        self.get_benchmarker()

    def clear_cache(self, cache: Any) -> None:
        pass


def _remembering_init_handles(self: CompiledKernel) -> None:
    """Triton's own, with the kernel where its launcher finds it."""
    loading.append(self)
    try:
        _init_handles(self)
    finally:
        loading.pop()


_init_handles = CompiledKernel._init_handles


def activate(arch: int) -> ExitStack:
    """Makes Triton compile kernels for this target and run them here. Closing the stack that it returns undoes that.

    arch: 80 or 90; 86 and 89 also compile. Raises ValueError for another, RuntimeError where Triton interprets kernels.
    """
    if arch not in MOST_SHARED:
        raise ValueError(f"expected an architecture among {', '.join(map(str, MOST_SHARED))}, got {arch}")
    if triton.knobs.runtime.interpret:
        raise RuntimeError("expected TRITON_INTERPRET=0, got the interpreter, which compiles nothing")
    stack = ExitStack()
    stack.enter_context(mock.patch.object(triton.runtime.driver, "_active", EmulatorDriver(arch)))
    stack.enter_context(mock.patch.object(CompiledKernel, "_init_handles", _remembering_init_handles))
    return stack
