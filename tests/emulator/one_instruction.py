"""Runs a few PTX instructions on given registers: no compiled kernel, no memory, no machine."""

from typing import Any

import numpy as np

from tests.emulator.parse import parse
from tests.emulator.ptx import Kernel
from tests.emulator.translate import Translator


class Threads:
    """What translated code asks of the machine for its own threads; calls of anything else are kept in `calls`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.calls: list[tuple[Any, ...]] = []

    def const(self, value: Any) -> np.ndarray:
        return np.full(self.count, value)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments))


def kernel_of(body: str, declarations: str = "") -> Kernel:
    """A kernel without parameters."""
    return parse(f".version 8.7\n.target sm_90a\n.visible .entry one_kernel()\n{{\n{declarations}\n{body}\nret;\n}}\n")


def execute(body: str, mask: np.ndarray | None = None, state: Any = None, **registers: Any) -> Any:
    """What the instructions leave in registers.

    registers: by name without %. An array is what a register holds, floats by their bits; a type of PTX, such as "b32", names a
    register of zeros, which is returned: alone, or in a tuple if there are several.
    """
    arrays = {name: np.asarray(value) for name, value in registers.items() if not isinstance(value, str)}
    kinds = {name: "pred" if array.dtype == bool else f"b{8 * array.itemsize}" for name, array in arrays.items()}
    results = {name: kind for name, kind in registers.items() if isinstance(kind, str)}
    count = max((array.size for array in arrays.values()), default=1)
    kernel = kernel_of(body, "".join(f".reg .{kind} %{name};\n" for name, kind in (kinds | results).items()))
    values: list[Any] = [np.zeros(count, bool if kind == "p" else kind) for kind in kernel.reg_class]
    for name, array in arrays.items():
        place = kernel.registers[f"%{name}"]
        values[place] = np.broadcast_to(array, (count,)).copy().view(values[place].dtype)
    with np.errstate(all="ignore"):
        block = Translator(kernel).block(0, mask is not None)
        block(state or Threads(count), values, *(() if mask is None else (mask,)))
    found = tuple(values[kernel.registers[f"%{name}"]] for name in results)
    return found[0] if len(found) == 1 else found
