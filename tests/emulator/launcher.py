"""A launch as Triton's C launcher does it: arguments to the bytes of the parameters, and the storages that they point to."""

import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from triton.compiler import CompiledKernel

from . import descriptor, machine
from .compiled import Compiled
from .faults import Fault
from .memory import Allocation
from .report import stats
from .settings import settings
from .tensor_map import TensorMap

LARGEST_GRID = (1 << 31) - 1, 65535, 65535
HIDDEN_PARAMETERS = 2  # scratch memory and profiler, which Triton adds to every kernel

loading: list[
    CompiledKernel
] = []  # the kernels whose handles are being made, innermost last: Triton does not tell the launcher
_compiled: dict[str, Compiled] = {}  # by PTX


@dataclass
class Storage:
    """A tensor's storage: its bytes, the parameters that lie in it, and the first and last address of these tensors."""

    size: int
    names: list[str] = field(default_factory=list)
    first: int = 1 << 63
    end: int = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        span = 0 if tensor.numel() == 0 else 1
        span += sum((n - 1) * abs(stride) for n, stride in zip(tensor.shape, tensor.stride(), strict=True)) if span else 0
        self.names += [name] if name not in self.names else []
        self.first = min(self.first, tensor.data_ptr())
        self.end = max(self.end, tensor.data_ptr() + span * tensor.element_size())


class Launcher:
    """What Triton calls to launch one compiled kernel.

    Raises NotImplementedError for a kernel with scratch memory or clusters.
    """

    def __init__(self, source: Any, metadata: Any) -> None:
        self.kernel, self.metadata = loading[-1], metadata
        self.names = list(source.fn.arg_names)
        self.signature = list(source.signature.values())
        self.tensor_meta = list(getattr(metadata, "tensordesc_meta", None) or [])
        if metadata.global_scratch_size or metadata.profile_scratch_size:
            raise NotImplementedError(f"{metadata.name}: expected a kernel without scratch memory")
        if metadata.num_ctas != 1 or tuple(getattr(metadata, "cluster_dims", (1, 1, 1))) != (1, 1, 1):
            raise NotImplementedError(f"{metadata.name}: expected a kernel without clusters")

    def __call__(self, x: int, y: int, z: int, *rest: Any) -> None:
        """rest: stream, function, packed metadata, launch metadata, two hooks, then the arguments of the kernel."""
        grid, arguments = (x, y, z), rest[6:]
        started = time.perf_counter()
        compiled = self._compile()
        self._check_grid(grid)
        storages: dict[int, Storage] = {}
        values = list(self._flatten(arguments, storages))
        parameters, maps = self._pack(compiled, values)
        allocations = [Allocation(base, s.size, "/".join(s.names), (s.first, s.end)) for base, s in storages.items()]
        entry = stats.kernel(compiled.kernel.name)
        machine.launch(compiled, grid, parameters, allocations, self.metadata.shared, maps, entry, stats.report)
        seconds, blocks = time.perf_counter() - started, x * y * z
        for total in (stats, entry):
            total.launches += 1
            total.blocks += blocks
            total.seconds += seconds
        entry.versions.add(self.kernel.hash)

    def _compile(self) -> Compiled:
        ptx = self.kernel.asm["ptx"]
        threads = self.metadata.num_warps * 32
        if ptx not in _compiled:
            _compiled[ptx] = Compiled(ptx, threads)
        if _compiled[ptx].threads != threads:
            what = f"expected blocks of {threads} threads, as the metadata says, got {_compiled[ptx].threads} in PTX"
            raise Fault(f"{self.metadata.name}: {what}")
        return _compiled[ptx]

    def _check_grid(self, grid: tuple[int, int, int]) -> None:
        name, blocks = self.metadata.name, grid[0] * grid[1] * grid[2]
        if blocks == 0:
            raise Fault(f"{name}: launch of an empty grid {grid}, which CUDA refuses")
        if any(size > largest for size, largest in zip(grid, LARGEST_GRID, strict=True)):
            raise Fault(f"{name}: expected a grid of at most {LARGEST_GRID} blocks, got {grid}")
        if settings.most_blocks is not None and blocks > settings.most_blocks:
            raise Fault(f"{name}: expected at most {settings.most_blocks} blocks, as the settings say, got {blocks}")

    def _flatten(self, arguments: Sequence[Any], storages: dict[int, Storage]) -> Iterator[tuple[str, Any]]:
        """Types and values, every tensor descriptor taken apart, without constants; notes what they point to."""
        meta = iter(self.tensor_meta)
        for name, kind, argument in zip(self.names, self.signature, arguments, strict=True):
            if kind == "constexpr":
                continue
            if not isinstance(kind, str):
                raise NotImplementedError(f"{self.metadata.name}: expected no tuple as argument {name}")
            is_descriptor = kind.startswith("tensordesc")
            tensor = argument.base if is_descriptor else argument
            if isinstance(tensor, torch.Tensor):
                whole = tensor.untyped_storage()
                storages.setdefault(whole.data_ptr(), Storage(whole.nbytes())).add(name, tensor)
            if is_descriptor:
                parts = descriptor.parts(argument, next(meta, None))
                yield from zip(descriptor.kinds(kind, parts), parts, strict=True)
            else:
                yield kind, argument

    def _pack(self, compiled: Compiled, values: list[tuple[str, Any]]) -> tuple[bytes, dict[int, TensorMap]]:
        """The bytes of the parameters, and the tensor maps by their offset among them."""
        name, parameters = compiled.kernel.name, compiled.kernel.params
        if len(parameters) != len(values) + HIDDEN_PARAMETERS:
            raise Fault(
                f"{name}: expected {len(values)} parameters and {HIDDEN_PARAMETERS} hidden ones, got {len(parameters)} in PTX"
            )
        packed = bytearray(parameters[-1].offset + parameters[-1].size + 8)
        maps = {}
        for parameter, (kind, value) in zip(parameters, values, strict=False):
            if isinstance(value, TensorMap):
                if refusal := value.refusal():
                    raise Fault(f"{name}: {refusal}")
                maps[parameter.offset] = value
                continue
            data = self._encode(kind, value, parameter.size)
            if len(data) != parameter.size:
                raise Fault(
                    f"{name}: expected {parameter.size} bytes for parameter {parameter.name}, got {len(data)} of {kind}"
                )
            packed[parameter.offset : parameter.offset + parameter.size] = data
        return bytes(packed), maps

    def _encode(self, kind: str, value: Any, size: int) -> bytes:
        if kind[0] == "*" or kind == "nvTmaDesc":
            return struct.pack("<Q", 0 if value is None else value.data_ptr() if hasattr(value, "data_ptr") else int(value))
        if kind in ("fp32", "f32"):
            return np.float32(value).tobytes()
        if kind == "fp64":
            return np.float64(value).tobytes()
        if kind[0] not in "iu":
            raise NotImplementedError(f"{self.metadata.name}: expected no argument of {kind}")
        bits, value = int(kind[1:]), int(value)
        if not (-(1 << bits - 1) if bits > 1 else 0) <= value < 1 << bits:  # Triton hands signed numbers to unsigned parameters
            raise Fault(f"{self.metadata.name}: expected an argument that fits {kind}, got {value}")
        return (value & (1 << 8 * size) - 1).to_bytes(size, "little")
