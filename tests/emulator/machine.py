"""The machine that translated kernels run on: one object with every operation that they call, and the launch of a grid."""

from collections.abc import Sequence

import numpy as np

from .async_copy import AsyncCopies
from .async_proxy import AsyncProxy
from .batch import Batch, Mask
from .compiled import Compiled
from .global_memory import GlobalMemory
from .matrix import Matrices
from .mbarrier import Mbarriers
from .memory import POISON8, POISON16, POISON32, POISON64, Allocation, Memory
from .report import KernelStats, Report
from .schedule import Schedule
from .settings import settings
from .shared_memory import SharedMemory
from .tensor_map import TensorMap
from .tma import TileCopies
from .warps import Warps
from .wgmma import Wgmma

SHARED_AT_ONCE = 64 << 20  # bytes of shared memory of one batch of blocks
UNSET = {
    "u1": POISON8,
    "u2": POISON16,
    "u4": POISON32,
    "u8": POISON64,
    "p": np.bool_(False),
}  # registers before the first write


class State:
    """A batch of blocks in the middle of a kernel. Translated code calls it S, and its operations by the names below."""

    def __init__(self, batch: Batch, memory: Memory, shared_bytes: int, maps: dict[int, TensorMap]) -> None:
        self.batch = batch
        self.const, self.param, self.param_at, self.special = batch.const, batch.param, batch.param_at, batch.special
        registers = [self.const(UNSET[kind]) if kind in UNSET else None for kind in batch.kernel.reg_class]

        global_memory = GlobalMemory(batch, memory)
        self.ldg, self.ldg_m, self.stg = global_memory.load, global_memory.load_masked, global_memory.store
        self.atom_add = global_memory.atomic_add

        shared = SharedMemory(batch, shared_bytes)
        self.lds, self.lds_m, self.sts = shared.load, shared.load_masked, shared.store

        warps = Warps(batch)
        self.shfl, self.redux, self.vote, self.elect = warps.shuffle, warps.reduce, warps.vote, warps.elect
        self.activemask, self.warp_sync = warps.active_mask, warps.synchronise

        matrices = Matrices(batch, shared)
        self.ldmatrix, self.stmatrix, self.mma = matrices.load, matrices.store, matrices.multiply

        copies = AsyncCopies(batch, global_memory, shared)
        self.cp_async, self.cp_commit, self.cp_wait = copies.copy, copies.commit, copies.wait

        self._ends = [copies.end]
        barriers = None
        if batch.compiled.uses_async_proxy:
            shared.proxy = proxy = AsyncProxy(batch, shared)
            self.proxy_fence = proxy.fence

            wgmma = Wgmma(batch, shared, proxy, registers)
            self.wgmma, self.wg_fence, self.wg_commit, self.wg_wait = wgmma.multiply, wgmma.fence, wgmma.commit, wgmma.wait
            self.wg_regs, self.wg_touch, self.wg_dirty, self.wg_check = wgmma.own, wgmma.touch, wgmma.dirty, wgmma.check

            barriers = Mbarriers(batch, shared)
            self.mbar_init, self.mbar_inval, self.mbar_arrive = barriers.initialise, barriers.invalidate, barriers.arrive

            tiles = TileCopies(batch, global_memory, shared, proxy, barriers, maps)
            self.tma_load, self.tma_store, self.bulk_commit, self.bulk_wait = tiles.load, tiles.store, tiles.commit, tiles.wait
            self._ends += [barriers.end, tiles.end, wgmma.end]

        self.schedule = Schedule(self, batch, registers, barriers)

    def run(self) -> None:
        """To the end of all threads; what is then still on its way is noted."""
        self.schedule.run()
        for end in self._ends:
            end()

    def fence(self, mask: Mask, instruction: int) -> None:
        """membar and fence: nothing to do, since every access here is seen by all at once."""

    def trap(self, mask: Mask, instruction: int) -> None:
        """trap: what a failed tl.device_assert executes."""
        threads = self.batch.active(mask)
        if len(threads):
            self.batch.fault("trap", instruction, threads[0])


def launch(
    compiled: Compiled,
    grid: tuple[int, int, int],
    parameters: bytes,
    allocations: Sequence[Allocation],
    shared_bytes: int,
    maps: dict[int, TensorMap],
    kernel_stats: KernelStats,
    report: Report,
) -> None:
    """Runs all blocks of a grid, some at once, the batches one after the other.

    parameters: the bytes that the kernel reads as its parameters; maps: the tensor maps among them, by offset. allocations: the
    storages that it may touch. Raises Fault for what a GPU punishes, and NotImplementedError for what is not modelled.
    """
    memory = Memory(allocations)
    for allocation in memory.allocations:
        allocation.begin_launch(compiled.global_granule)
    total = grid[0] * grid[1] * grid[2]
    at_once = max(1, min(settings.threads_at_once // compiled.threads, SHARED_AT_ONCE // max(shared_bytes, 1)))
    with np.errstate(all="ignore"):
        for first in range(0, total, at_once):
            numbers = range(first, min(first + at_once, total))
            batch = Batch(compiled, grid, numbers, parameters, kernel_stats, report)
            State(batch, memory, shared_bytes, maps).run()
