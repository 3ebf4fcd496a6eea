"""What the emulator checks and which of the behaviours that PTX allows it shows: one object, for the whole process."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any


@dataclass(slots=True)  # a misspelt name is an error
class Settings:
    """Switches of the emulator. Each finding is 'fault' (an exception where it happens), 'note' (kept in the report) or 'off'.

    shared_races: accesses of two warps to one place of shared memory, one of them a write, with no barrier between;
        asynchronous copies used before their wait; operands written over while a wgmma or a bulk store may still read them.
    global_races: the same for blocks and warps in global memory, within one launch.
    unwritten_reads: reads of global memory that still holds POISON, that is, memory that nobody wrote.
    overwritten_operands: shared memory written while a wgmma in flight may read it.
    product_registers: registers of a wgmma used before wgmma.wait_group, or written after wgmma.fence. ptxas sees these whole
        and puts a missing wait there (its message C7517), so that it costs time and not the answer.
    truncated_sums: matrix units round their float32 sums towards zero, as NVIDIA's do. Off: to nearest.
    late_products: the schedule least kind to a kernel. cp.async and TMA land at once, and wgmma reads its operands only when it
        is waited for; PTX allows both. Detectors of shared memory, which would stop the kernel first, are off: the answer
        itself has to be right.
    largest_shadow: bytes of the largest tensor whose accesses are recorded; a note says where races were not looked for.
    threads_at_once: threads of one batch of blocks that run in lock step.
    longest_run: basic blocks that a batch may run before it counts as endless.
    most_blocks: a launch of more blocks is a fault, so that no test runs for hours. None: any number.
    """

    shared_races: bool = True
    global_races: bool = True
    unwritten_reads: str = "note"
    overwritten_operands: str = "fault"
    product_registers: str = "note"
    truncated_sums: bool = True
    late_products: bool = False
    largest_shadow: int = 1 << 29
    threads_at_once: int = 8192
    longest_run: int = 3_000_000
    most_blocks: int | None = None

    @property
    def checks_shared(self) -> bool:
        return self.shared_races and not self.late_products

    @contextmanager
    def changed(self, **values: Any) -> Iterator[None]:
        """Within the `with` block these settings have these values."""
        names = {field.name for field in fields(self)}
        if unknown := set(values) - names:
            raise ValueError(f"expected settings among {sorted(names)}, got {sorted(unknown)}")
        before = {name: getattr(self, name) for name in values}
        for name, value in values.items():
            setattr(self, name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)


settings = Settings()
