"""Kernel launches on a machine without a GPU, up to the start of the kernel."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastbert.kernels import use_backend
from fastbert.kernels.device import pretend

ARCHITECTURE = "sm_90"


class _Kernel:
    """A compiled kernel that does nothing when it is started."""

    function = packed_metadata = 0

    def __init__(self, started: list[str], name: str) -> None:
        self.started, self.name = started, name

    def launch_metadata(self, grid: Any, stream: Any, *args: Any) -> None:
        return None

    def run(self, *args: Any) -> None:
        self.started.append(self.name)


class _Driver:
    """The part of Triton's driver that a launch calls."""

    def __init__(self) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", int(ARCHITECTURE.removeprefix("sm_")), 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target


@contextmanager
def without_launches() -> Iterator[list[str]]:
    """CPU tensors run the code of a GPU's launches; the name of each kernel is added to the list instead of starting it."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    started: list[str] = []

    def do_compile(self: Any, key: Any, signature: Any, device: int, *_: Any) -> Any:
        _ = self.cache_key  # a real compilation records here the globals that every launch compares
        kernel = self.device_caches[device][0][key] = _Kernel(started, self.fn.__name__)
        return kernel

    compile_kernel = JITFunction._do_compile
    driver.set_active(_Driver())
    JITFunction._do_compile = do_compile
    try:
        with pretend(ARCHITECTURE), use_backend("triton"):
            yield started
    finally:
        JITFunction._do_compile = compile_kernel
        driver._active = None
