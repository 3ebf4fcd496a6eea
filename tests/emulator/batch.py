"""The threads of a batch of blocks: where they stand, what they are given at the start, and how a fault names them."""

from collections.abc import Sequence
from functools import cached_property
from typing import NoReturn

import numpy as np

from .compiled import PARAM_SPACE, Compiled
from .faults import Fault
from .races import BLOCK, EPOCH
from .report import KernelStats, Report

Mask = np.ndarray | None  # [threads] of bool; None: all threads


class Batch:
    """Blocks of one launch that run in lock step. Every array of threads holds those of the first block, then of the next.

    mask, instruction: in every signature here and in the files built on it, the threads that take part and the index of the PTX
    instruction that they execute.
    numbers: of the blocks within the grid. threads, warps: of the whole batch; threads_per_block of each block.
    block_of: [threads], index within the batch. warp_of: [threads], within the block. lane: [threads], within the warp.
    shared_stamps, global_stamps: [threads], what a thread leaves behind in memory now; see `races`.
    """

    def __init__(
        self,
        compiled: Compiled,
        grid: tuple[int, int, int],
        numbers: Sequence[int],
        parameters: bytes,
        kernel_stats: KernelStats,
        report: Report,
    ) -> None:
        self.compiled, self.grid, self.parameters, self.stats, self.report = compiled, grid, parameters, kernel_stats, report
        self.kernel = compiled.kernel
        self.name = compiled.kernel.name
        self.numbers = np.asarray(numbers, np.int64)
        self.blocks = len(numbers)
        self.threads_per_block = compiled.threads
        self.threads = self.blocks * self.threads_per_block
        self.warps = self.threads // 32
        thread = np.arange(self.threads_per_block)
        self.every = np.arange(self.threads)
        self.thread_of = np.tile(thread, self.blocks).astype(np.uint32)
        self.block_of = np.repeat(np.arange(self.blocks), self.threads_per_block)
        self.warp_of = np.tile(thread // 32, self.blocks).astype(np.uint64)
        self.lane = np.tile(np.arange(32), self.warps)
        self.epoch = np.ones(self.blocks, np.uint64)
        self._block_bits = (self.numbers.astype(np.uint64) + np.uint64(1))[self.block_of] * BLOCK
        self._full: dict[tuple, np.ndarray] = {}
        self._stamp()

    def pass_barrier(self, blocks: np.ndarray | slice) -> None:
        """These blocks are past a barrier: what they do from now on is ordered after what they did before."""
        self.epoch[blocks] += np.uint64(1)
        self._stamp()

    def _stamp(self) -> None:
        self.shared_stamps = self.epoch[self.block_of] * EPOCH + self.warp_of
        self.global_stamps = self._block_bits | self.shared_stamps

    # ---- threads

    def active(self, mask: Mask) -> np.ndarray:
        """The numbers of the threads that take part."""
        return self.every if mask is None else np.flatnonzero(mask)

    def whole_warps(self, mask: Mask, instruction: int) -> np.ndarray | None:
        """The warps that take part in an instruction that a warp executes as one (.sync.aligned); None: all of them.

        A fault where only a part of a warp does.
        """
        if mask is None:
            return None
        warps = mask.reshape(-1, 32)
        some, every = warps.any(axis=1), warps.all(axis=1)
        if (some != every).any():
            torn = int(np.flatnonzero(some != every)[0])
            self.fault("convergent instruction by a part of a warp", instruction, torn * 32 + int(warps[torn].argmax()))
        return np.flatnonzero(every)

    # ---- what a kernel is given

    def const(self, value: np.generic) -> np.ndarray:
        """The value in every thread."""
        key = (value.dtype.char, value.tobytes())
        if key not in self._full:
            self._full[key] = np.full(self.threads, value)
        return self._full[key]

    def param(self, offset: int, dtype: type) -> np.ndarray:
        """ld.param at a fixed address (PTX ISA, State Spaces: Parameter)."""
        return self.const(np.frombuffer(self.parameters, dtype, 1, offset)[0])

    def param_at(self, address: np.ndarray, extra: int, dtype: type, mask: Mask, instruction: int) -> np.ndarray:
        """ld.param at addresses that the kernel computed, plus a constant."""
        offset = (address - np.uint64(PARAM_SPACE)).astype(np.int64) + extra
        size = np.dtype(dtype).itemsize
        bad = (offset < 0) | (offset + size > len(self.parameters)) | (offset % size != 0)
        if mask is not None:
            bad &= mask
        if bad.any():
            self.fault("load outside of the parameters", instruction, np.flatnonzero(bad)[0])
        table = np.frombuffer(self.parameters[: len(self.parameters) // size * size], dtype)
        return table[np.clip(offset, 0, len(self.parameters) - size) // size]

    def special(self, name: str) -> np.ndarray:
        """A special register in every thread, as uint32 (PTX ISA, Special Registers)."""
        return self._specials[name]

    @cached_property
    def _specials(self) -> dict[str, np.ndarray]:
        x, y, z = self.grid
        block = self.numbers[self.block_of]
        values = {
            "%tid.x": self.thread_of,
            "%tid.y": 0,
            "%tid.z": 0,
            "%ntid.x": self.threads_per_block,
            "%ntid.y": 1,
            "%ntid.z": 1,
            "%ctaid.x": block % x,
            "%ctaid.y": block // x % y,
            "%ctaid.z": block // (x * y),
            "%nctaid.x": x,
            "%nctaid.y": y,
            "%nctaid.z": z,
            "%laneid": self.lane,
            "%warpid": self.warp_of,
            "%cluster_ctarank": 0,
            "%cluster_ctaid.x": 0,
        }
        return {k: np.broadcast_to(np.asarray(v).astype(np.uint32), (self.threads,)).copy() for k, v in values.items()}

    # ---- what happened

    def count(self, what: str, times: int = 1) -> None:
        self.stats.counts[what] += times

    def note(self, what: str, instruction: int | None = None) -> None:
        """Keeps a sentence in the report, with the kernel and the source line of the instruction."""
        self.report.note(f"{self.name}: {what}" + ("" if instruction is None else f" ({self.kernel.instrs[instruction].loc})"))

    def fault(self, what: str, instruction: int, thread: int) -> NoReturn:
        """Raises a Fault that names the instruction, its source line, the block and the thread."""
        raise Fault(f"{what}: {self.where(instruction, int(thread))}")

    def where(self, instruction: int, thread: int) -> str:
        executed = self.kernel.instrs[instruction]
        block = int(self.numbers[thread // self.threads_per_block])
        x, y, _ = self.grid
        place = f"block ({block % x}, {block // x % y}, {block // (x * y)}) thread {thread % self.threads_per_block}"
        return f"{self.name}: PTX line {executed.line} `{executed.text}` ({executed.loc}), {place}"
