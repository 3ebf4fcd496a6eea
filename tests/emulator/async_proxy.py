"""What wgmma and TMA do to shared memory behind the back of loads and stores: reads that last, and writes they do not see.

PTX ISA, Memory Consistency Model: Proxies. Loads and stores go through the generic proxy; wgmma and TMA through the async
proxy, which sees what the other wrote only after fence.proxy.async. And their reads go on after the instruction, until
something waits for them: wgmma.wait_group, cp.async.bulk.wait_group. Until then nobody may write there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .batch import Batch, Mask
from .races import EPOCH, SEVERAL_WARPS, first_of, granules
from .settings import settings

if TYPE_CHECKING:
    from .shared_memory import SharedMemory


class AsyncProxy:
    """Reads of shared memory that are not over, and writes that no proxy fence followed.

    Each asynchronous operation has a number, in the order of issue. It belongs to a queue: that of its warpgroup within the
    block, or `bulk_queue` for stores by TMA. Operations of one queue end in their order.

    last_read: [queues, granules], number of the last operation that reads a granule. done: [queues, blocks], all operations up
    to this one are over. unfenced: [granules], 1 + the thread that wrote there, where no fence followed; 0 elsewhere.
    """

    def __init__(self, batch: Batch, shared: SharedMemory) -> None:
        self.batch, self.shared = batch, shared
        self.bulk_queue = max(1, batch.threads_per_block // 128)
        self.last_read = np.zeros((self.bulk_queue + 1, len(shared.writers)), np.int32)
        self.done = np.zeros((self.bulk_queue + 1, batch.blocks), np.int32)
        self.issued = 0
        self.unfenced = np.zeros(len(shared.writers), np.int64)
        self.has_unfenced = False

    def issue(self) -> int:
        """The number of a new operation."""
        self.issued += 1
        return self.issued

    def finish(self, queue: int, block: int, number: int) -> None:
        """The operations of this queue of this block up to this number are over."""
        self.done[queue, block] = max(self.done[queue, block], number)

    def check_write(self, where: np.ndarray, instruction: int, threads: np.ndarray) -> None:
        """A fault where threads write to granules [n, k] that an operation may still read."""
        if self.issued == 0:
            return
        block = where // self.shared.granules_per_block
        for queue in range(self.bulk_queue + 1):
            pending = self.last_read[queue][where] > self.done[queue][block]
            if not pending.any():
                continue
            if queue == self.bulk_queue:
                self.batch.fault(
                    "shared memory written while a bulk store may still read it", instruction, threads[first_of(pending)[0]]
                )
            if settings.overwritten_operands == "fault":
                what = f"shared memory written while wgmma of warpgroup {queue} may still read it"
                self.batch.fault(what, instruction, threads[first_of(pending)[0]])
            if settings.overwritten_operands == "note":
                self.batch.note("shared memory written while a wgmma in flight may read it", instruction)

    def generic_write(self, where: np.ndarray, threads: np.ndarray) -> None:
        """Threads [n] wrote granules [n, k] by the generic proxy."""
        self.unfenced[where] = (threads + 1)[:, None]
        self.has_unfenced = True

    def fence(self, mask: Mask, instruction: int) -> None:
        """fence.proxy.async: orders the writes of the threads that execute it, and those that a barrier ordered before them."""
        if not self.has_unfenced:
            return
        batch = self.batch
        where = np.flatnonzero(self.unfenced)
        ordered = np.ones(len(where), bool)
        if mask is not None:
            own = mask[self.unfenced[where] - 1]
            block = where // self.shared.granules_per_block
            fences = mask.reshape(batch.blocks, -1).any(axis=1)[block]
            ordered = own | fences & (self.shared.writers[where] // EPOCH < batch.epoch[block])
        self.unfenced[where[ordered]] = 0
        self.has_unfenced = not ordered.all()

    def arrived(self, where: np.ndarray) -> None:
        """An asynchronous copy wrote granules [n, k] and was waited for: all may read them, by either proxy."""
        self.shared.writers[where] = 0
        self.unfenced[where] = 0

    def read(self, offset: np.ndarray, threads: np.ndarray, instruction: int, what: str, queue: int, number: int) -> None:
        """Operation `number` of a queue reads 16 bytes at each of these offsets [n], for threads [n], until it is over.

        A fault where they were written without a proxy fence. what: the operation, in words.
        """
        self.shared.record_read(offset, 16, self.batch.shared_stamps[threads] | SEVERAL_WARPS, threads, instruction)
        where = granules(offset, 16, self.shared.granule)
        if self.has_unfenced and settings.checks_shared:
            unfenced = self.unfenced[where] != 0
            if unfenced.any():
                self.batch.fault(
                    f"{what} reads what was written without fence.proxy.async", instruction, threads[first_of(unfenced)[0]]
                )
        self.last_read[queue][where] = number
