"""cp.async: copies from global to shared memory that arrive when their group is waited for.

PTX ISA, Data Movement and Conversion Instructions: cp.async, cp.async.commit_group, cp.async.wait_group, cp.async.wait_all.
"""

from typing import NamedTuple

import numpy as np

from .batch import Batch, Mask
from .global_memory import GlobalMemory
from .races import granules
from .settings import settings
from .shared_memory import SharedMemory


class Copies(NamedTuple):
    """What threads [n] copy to the absolute offsets [n]: data [n, size] bytes, in the groups [n] of their threads."""

    threads: np.ndarray
    offset: np.ndarray
    data: np.ndarray
    size: int
    group: np.ndarray

    def of(self, chosen: np.ndarray) -> "Copies":
        return Copies(self.threads[chosen], self.offset[chosen], self.data[chosen], self.size, self.group[chosen])


class AsyncCopies:
    """The copies on their way. committed: [threads], groups that a thread has closed."""

    def __init__(self, batch: Batch, global_memory: GlobalMemory, shared: SharedMemory) -> None:
        self.batch, self.global_memory, self.shared = batch, global_memory, shared
        self.pending: list[Copies] = []
        self.committed = np.zeros(batch.threads, np.int64)

    def copy(
        self, target: np.ndarray, source: np.ndarray, size: int, num_bytes: np.ndarray | None, mask: Mask, instruction: int
    ) -> None:
        """cp.async: `size` bytes, of which num_bytes [threads] come from global memory and the rest are zeros.

        The source is read at once, since whoever writes it in this launch races with the copy; the target is written by `wait`.
        """
        threads = self.batch.active(mask)
        if not len(threads):
            return
        offset = self.shared.locate(target[threads], size, threads, instruction, "asynchronous write")
        data = np.zeros((len(threads), size), np.uint8)
        taken = np.full(len(threads), size) if num_bytes is None else num_bytes[threads].astype(np.int64)
        whole = np.flatnonzero(taken == size)
        if len(whole):
            words = self.global_memory.read(source[threads[whole]], 4, size // 4, threads[whole], instruction)
            data[whole] = np.ascontiguousarray(np.stack(words, axis=1)).view(np.uint8).reshape(len(whole), size)
        parts = np.flatnonzero((taken != 0) & (taken != size))
        for j in parts:
            for byte in range(taken[j]):
                address = source[threads[j : j + 1]] + np.uint64(byte)
                data[j, byte] = self.global_memory.read(address, 1, 1, threads[j : j + 1], instruction)[0][0]
        self.batch.count(f"cp.async of {size} bytes", len(threads))
        self.shared.record_write(offset, size, self.batch.shared_stamps[threads], threads, instruction, in_flight=True)
        if settings.late_products:
            self.shared.put(offset, data, size)
        self.pending.append(Copies(threads, offset, data, size, self.committed[threads]))

    def commit(self, mask: Mask, instruction: int) -> None:
        """cp.async.commit_group: closes the group of each thread."""
        self.committed[slice(None) if mask is None else mask] += 1

    def wait(self, num_groups: int, mask: Mask, instruction: int) -> None:
        """cp.async.wait_group: all but the last num_groups of a thread's groups arrive; wait_all (-1): all copies, committed or
        not.

        What arrives counts as written by the thread, now: others see it after a barrier.
        """
        left = []
        for copies in self.pending:
            arrives = np.ones(len(copies.threads), bool)
            if num_groups >= 0:
                arrives = copies.group < self.committed[copies.threads] - num_groups
            if mask is not None:
                arrives = arrives & mask[copies.threads]
            if arrives.any():
                self._land(copies.of(arrives))
            if not arrives.all():
                left.append(copies.of(~arrives))
        self.pending = left

    def _land(self, copies: Copies) -> None:
        shared = self.shared
        shared.put(copies.offset, copies.data, copies.size)
        where = granules(copies.offset, copies.size, shared.granule)
        if settings.checks_shared:
            shared.writers[where] = self.batch.shared_stamps[copies.threads][:, None]
        if shared.proxy is not None:
            shared.proxy.generic_write(where, copies.threads)

    def end(self) -> None:
        if self.pending:
            self.batch.note("ends with asynchronous copies in flight (never waited for)")
