"""Runs a few lines of PTX on arrays, by the emulator alone: no Triton, no tensors."""

import numpy as np

from tests.emulator.compiled import Compiled
from tests.emulator.machine import launch
from tests.emulator.memory import Allocation
from tests.emulator.report import KernelStats, Report
from tests.emulator.settings import settings

REGISTERS = ".reg .pred %p<8>;\n.reg .b16 %h<8>;\n.reg .b32 %r<32>;\n.reg .f32 %f<8>;\n.reg .b64 %a<16>;"
# %r0 is the thread, %r1 four times as much, %r2 the thread among those of all blocks; %a0 and so on point to the arrays,
# %a8 and so on to the thread's word in them.
START = """mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, 2;
mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mad.lo.s32 %r2, %r2, %r3, %r0;"""


def run(
    body: str, *arrays: np.ndarray, threads: int = 64, blocks: int = 1, shared: int = 1024, at_once: int = 8192
) -> tuple[KernelStats, Report]:
    """Runs the body on arrays of 32-bit words, which it may read and write in place.

    threads: of a block. shared: bytes of shared memory a block. at_once: threads that run in lock step.
    Returns what the kernel did and what was noted. Raises what the emulator raises.
    """
    names = [chr(ord("a") + i) for i in range(len(arrays))]
    parameters = ",\n".join(f".param .u64 .ptr .global .align 1 {name}" for name in names)
    pointers = "".join(
        f"ld.param.b64 %a{i}, [{name}];\nmul.wide.u32 %a{i + 8}, %r2, 4;\nadd.s64 %a{i + 8}, %a{i + 8}, %a{i};\n"
        for i, name in enumerate(names)
    )
    ptx = (
        f".version 8.7\n.target sm_90a\n.address_size 64\n.visible .entry tiny(\n{parameters}\n)\n.reqntid {threads}\n"
        f"{{\n{REGISTERS}\n{START}\n{pointers}{body}\nret;\n}}\n"
    )
    places = [(array.ctypes.data, array.nbytes) for array in arrays]
    allocations = [Allocation(base, size, name, (base, base + size)) for (base, size), name in zip(places, names, strict=True)]
    stats, report = KernelStats(), Report()
    packed = b"".join(base.to_bytes(8, "little") for base, _ in places)
    with settings.changed(threads_at_once=at_once):
        launch(Compiled(ptx, threads), (blocks, 1, 1), packed, allocations, shared, {}, stats, report)
    return stats, report


def words(count: int = 64) -> np.ndarray:
    """0, 1, 2 and so on."""
    return np.arange(count, dtype=np.uint32)
