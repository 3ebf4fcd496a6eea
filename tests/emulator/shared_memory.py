"""Shared memory: loads and stores of all blocks of a batch, with bounds, alignment, races, and bytes that are not there yet.

PTX ISA, Data Movement and Conversion Instructions: ld, st; State Spaces: Shared State Space.
"""

import numpy as np

from .async_proxy import AsyncProxy
from .batch import Batch, Mask
from .memory import POISON32, differ, typed_views
from .races import IN_FLIGHT, UNWRITTEN, first_of, granules, other_warp, record_readers, warp_of
from .settings import settings


class SharedMemory:
    """The shared memory of all blocks, one behind the other. It holds poison at first, as on a GPU what was there before.

    views: see `typed_views`. base: [threads], where a thread's own block begins. writers, readers: stamps of granules, see
    `races`. proxy: the records of what wgmma and TMA do, for a kernel that has them.
    Addresses are those of the kernel; offsets are absolute, as `locate` gives them. `active`: threads of an access, None for
    all.
    """

    def __init__(self, batch: Batch, declared: int) -> None:
        self.batch, self.declared = batch, declared
        self.granule = batch.compiled.shared_granule
        self.bytes_per_block = -(-max(declared, 16) // 1024) * 1024
        self.views = typed_views(np.full(batch.blocks * self.bytes_per_block // 4, POISON32).view(np.uint8))
        self.base = batch.block_of.astype(np.int64) * self.bytes_per_block
        self.granules_per_block = self.bytes_per_block // self.granule
        self.writers = np.full(batch.blocks * self.granules_per_block, UNWRITTEN)
        self.readers = np.zeros(batch.blocks * self.granules_per_block, np.uint64)
        self.proxy: AsyncProxy | None = None

    # ---- instructions

    def load(self, address: np.ndarray, size: int, vector: int, instruction: int) -> list[np.ndarray]:
        """ld.shared by all threads: `vector` words of `size` bytes at the addresses [threads].

        Returns the words, each as unsigned integers [threads].
        """
        return self._load(address, size, vector, self.batch.every, instruction)

    def load_masked(
        self, address: np.ndarray, size: int, vector: int, mask: np.ndarray, instruction: int
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """ld.shared by some threads: their numbers, and the words of these threads only."""
        active = np.flatnonzero(mask)
        if not len(active):
            return active, [np.empty(0, f"u{size}")] * vector
        return active, self._load(address[active], size, vector, active, instruction)

    def _load(self, address: np.ndarray, size: int, vector: int, threads: np.ndarray, instruction: int) -> list[np.ndarray]:
        total = size * vector
        offset = self.locate(address, total, threads, instruction, "read")
        self.record_read(offset, total, self.batch.shared_stamps[threads], threads, instruction)
        if vector == 1:
            return [self.views[size][offset // size]]
        rows = self.views[total][offset // total]
        rows = (rows if total == 16 else rows[:, None]).view(f"u{size}")
        return [np.ascontiguousarray(rows[:, j]) for j in range(vector)]

    def store(self, address: np.ndarray, size: int, values: list[np.ndarray], mask: Mask, instruction: int) -> None:
        """st.shared: words of `size` bytes one behind the other, at the addresses [threads]."""
        threads = self.batch.active(mask)
        if mask is not None:
            if not len(threads):
                return
            address, values = address[threads], [value[threads] for value in values]
        total = size * len(values)
        offset = self.locate(address, total, threads, instruction, "write")
        rows = np.ascontiguousarray(np.stack(values, axis=1)) if len(values) > 1 else np.ascontiguousarray(values[0])[:, None]
        self.write(offset, rows, total, threads, instruction)

    # ---- what instructions are made of

    def locate(self, address: np.ndarray, total: int, threads: np.ndarray, instruction: int, what: str) -> np.ndarray:
        """Absolute offsets of accesses of `total` bytes. A fault for a misaligned one, or one past the end."""
        inside = address.astype(np.int64)
        misaligned = inside & (total - 1)
        if misaligned.any():
            j = np.flatnonzero(misaligned)[0]
            self.batch.fault(f"misaligned shared {what} of {total} bytes at {inside[j]}", instruction, threads[j])
        if len(inside) and inside.max() + total > self.declared:
            j = inside.argmax()
            text = f"out-of-bounds shared {what} of {total} bytes at {inside[j]}, {self.declared} are there"
            self.batch.fault(text, instruction, threads[j])
        return inside + self.base[threads]

    def put(self, offset: np.ndarray, rows: np.ndarray, size: int) -> None:
        """Writes rows of `size` bytes, in any dtype, without a record."""
        self.views[size][offset // size] = rows.view(np.uint32) if size == 16 else rows.view(f"u{size}")[:, 0]

    def write(self, offset: np.ndarray, rows: np.ndarray, total: int, threads: np.ndarray, instruction: int) -> None:
        """Writes rows of `total` bytes, in any dtype, for these threads, with all checks and records."""
        words = rows.view(np.uint32) if total == 16 else rows.view(f"u{total}")[:, 0]
        view, where = self.views[total], offset // total
        if settings.checks_shared:
            same = ~differ(view[where], words)
            self.record_write(offset, total, self.batch.shared_stamps[threads], threads, instruction, same=same)
        view[where] = words
        lost = differ(view[where], words)
        if lost.any():
            what = "shared race: two threads write different values to one address in one instruction"
            self.batch.fault(what, instruction, threads[np.flatnonzero(lost)[0]])
        if self.proxy is not None:
            self.proxy.generic_write(granules(offset, total, self.granule), threads)

    def record_read(self, offset: np.ndarray, total: int, stamps: np.ndarray, threads: np.ndarray, instruction: int) -> None:
        """Leaves the stamps [n] of reads of `total` bytes at the offsets [n].

        A fault where nothing is there, where it has not arrived, and where another warp wrote it since the last barrier.
        """
        if not settings.checks_shared:
            return
        where, own = granules(offset, total, self.granule), stamps[:, None]
        writer = self.writers[where]
        absent = writer >= UNWRITTEN
        if absent.any():
            access, granule = first_of(absent)
            what = (
                "read of uninitialised shared memory"
                if writer[access, granule] == UNWRITTEN
                else "shared memory read while an asynchronous copy into it has not been waited for"
            )
            self.batch.fault(what, instruction, threads[access])
        race = other_warp(writer, own)
        if race.any():
            access, granule = first_of(race)
            what = f"shared race: reads what {warp_of(writer[access, granule])} wrote, with no barrier between"
            self.batch.fault(what, instruction, threads[access])
        record_readers(self.readers, where, own)

    def record_write(
        self,
        offset: np.ndarray,
        total: int,
        stamps: np.ndarray,
        threads: np.ndarray,
        instruction: int,
        *,
        same: np.ndarray | None = None,
        in_flight: bool = False,
    ) -> None:
        """The same for writes. same: [n], where the bytes written are those that are there. in_flight: they arrive later.

        A fault where another warp wrote or read since the last barrier, or where an asynchronous operation still writes or
        reads.
        """
        if not settings.checks_shared:
            return
        where, own = granules(offset, total, self.granule), stamps[:, None]
        writer = self.writers[where]
        if (writer == IN_FLIGHT).any():
            access, _ = first_of(writer == IN_FLIGHT)
            self.batch.fault(
                "shared memory written while an asynchronous copy into it is in flight", instruction, threads[access]
            )
        for before, verb in ((writer, "wrote another value"), (self.readers[where], "read")):
            race = other_warp(before, own)
            if same is not None:
                race &= ~same[:, None]
            if race.any():
                access, granule = first_of(race)
                what = f"shared race: writes where {warp_of(before[access, granule])} {verb}, with no barrier between"
                self.batch.fault(what, instruction, threads[access])
        if self.proxy is not None:
            self.proxy.check_write(where, instruction, threads)
        self.writers[where] = IN_FLIGHT if in_flight else own
