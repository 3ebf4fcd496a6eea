"""mbarrier: barriers in shared memory that count arrivals and the bytes of copies.

PTX ISA, Parallel Synchronization and Communication Instructions: mbarrier.init, .inval, .arrive.expect_tx, .try_wait.parity.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .batch import Batch, Mask
from .races import granules
from .settings import settings
from .shared_memory import SharedMemory

Key = tuple[int, int]  # block within the batch, address


@dataclass
class Barrier:
    """One barrier.

    count: arrivals that end a phase. missing: of these in this phase. bytes: still to come. phase: parity of the current one.
    """

    count: int
    missing: int
    bytes: int = 0
    phase: int = 0

    def turn(self) -> None:
        """Begins the next phase where nothing is missing."""
        if self.missing == 0 and self.bytes == 0:
            self.phase ^= 1
            self.missing = self.count


class Mbarriers:
    """The barriers of all blocks. asleep: [threads], those that wait for one.

    A copy that completes on a barrier lands as late as it may: when the barrier is next waited for.
    """

    def __init__(self, batch: Batch, shared: SharedMemory) -> None:
        self.batch, self.shared = batch, shared
        self.barriers: dict[Key, Barrier] = {}
        self.copies: dict[Key, list[Callable[[], int]]] = defaultdict(list)  # each lands and returns its bytes
        self.asleep = np.zeros(batch.threads, bool)
        self._events = self._seen = 0  # arrivals and copies, and how many there were when the last thread fell asleep

    def _find(self, thread: int, address: np.ndarray, instruction: int) -> Key:
        """The barrier at this thread's address. A fault where there is none, or where its initialisation may come later."""
        key = int(self.batch.block_of[thread]), int(address[thread])
        if key not in self.barriers:
            self.batch.fault("mbarrier that is not initialised", instruction, thread)
        if settings.checks_shared:
            one = np.array([thread])
            offset = np.array([key[1] + self.shared.base[thread]])
            self.shared.record_read(offset, 8, self.batch.shared_stamps[one], one, instruction)
            self.shared.readers[granules(offset, 8, self.shared.granule)] = 0  # any thread may use a barrier at any time
        return key

    def initialise(self, address: np.ndarray, count: int, mask: Mask, instruction: int) -> None:
        """mbarrier.init: a phase ends with `count` arrivals."""
        for thread in self.batch.active(mask):
            one = np.array([thread])
            key = int(self.batch.block_of[thread]), int(address[thread])
            offset = self.shared.locate(address[one], 8, one, instruction, "write")
            if key in self.barriers:
                self.batch.fault("mbarrier initialised twice", instruction, thread)
            self.shared.record_write(offset, 8, self.batch.shared_stamps[one], one, instruction)
            self.barriers[key] = Barrier(count, count)

    def invalidate(self, address: np.ndarray, mask: Mask, instruction: int) -> None:
        """mbarrier.inval: the memory is free for other use."""
        for thread in self.batch.active(mask):
            key = self._find(thread, address, instruction)
            if self.copies.get(key):
                self.batch.fault("mbarrier invalidated while copies are on their way", instruction, thread)
            del self.barriers[key]

    def arrive(self, address: np.ndarray, num_bytes: np.ndarray | None, mask: Mask, instruction: int) -> None:
        """mbarrier.arrive: one arrival of each thread; with .expect_tx the phase also waits for num_bytes [threads]."""
        for thread in self.batch.active(mask):
            barrier = self.barriers[self._find(thread, address, instruction)]
            if barrier.missing == 0:
                self.batch.fault("too many arrivals at an mbarrier", instruction, thread)
            if num_bytes is not None:
                barrier.bytes += int(num_bytes[thread])
            barrier.missing -= 1
            barrier.turn()
            self._events += 1

    def expect_copy(self, thread: int, address: np.ndarray, land: Callable[[], int], instruction: int) -> None:
        """A copy completes on this thread's barrier: `land` writes what it copied and returns its bytes."""
        self.copies[self._find(thread, address, instruction)].append(land)
        self._events += 1

    def try_wait(self, address: np.ndarray, parity: np.ndarray, mask: np.ndarray, instruction: int) -> np.ndarray:
        """mbarrier.try_wait.parity: for which of the threads the phase of this parity is over, [threads] of bool."""
        ready = np.zeros(self.batch.threads, bool)
        threads = np.flatnonzero(mask)
        parities = parity[threads] & np.uint32(1)
        cases = self.batch.block_of[threads] << 32 | address[threads].astype(np.int64) << 1 | parities
        for case in np.unique(cases):
            same = threads[cases == case]
            key = self._find(int(same[0]), address, instruction)
            barrier = self.barriers[key]
            for land in self.copies.pop(key, []):
                barrier.bytes -= land()
                barrier.turn()
            ready[same] = barrier.phase != case & 1
        return ready

    def sleep(self, threads: np.ndarray) -> None:
        """These threads [threads] of bool wait until something arrives."""
        self.asleep |= threads
        self._seen = self._events

    def wake(self, waiting: np.ndarray, live: np.ndarray) -> bool:
        """Lets the threads that sleep look again, if anything arrived since; whether it did. Clears them in `waiting`."""
        if not (self.asleep & live).any() or self._events == self._seen:
            return False
        waiting[self.asleep] = False
        self.asleep[:] = False
        return True

    def end(self) -> None:
        if any(self.copies.values()):
            self.batch.note("ends with tile copies that nobody waited for")
