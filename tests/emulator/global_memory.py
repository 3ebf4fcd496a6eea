"""Global memory: loads, stores and additions on the storages of tensors, with their bounds, alignment, races and unwritten
bytes.

PTX ISA, Data Movement and Conversion Instructions: ld, st; Parallel Synchronization and Communication Instructions: atom, red.
"""

from collections.abc import Iterator

import numpy as np

from .batch import Batch, Mask
from .memory import POISON, Allocation, Memory, differ
from .races import first_of, granules, other_warp_or_block, record_readers, rival
from .settings import settings

WIDEST = 16  # bytes of one access


class GlobalMemory:
    """What the threads of a batch see of the memory of a launch. `active`: the threads of an access, None for all of them."""

    def __init__(self, batch: Batch, memory: Memory) -> None:
        self.batch, self.memory = batch, memory

    # ---- instructions

    def load(self, address: np.ndarray, size: int, vector: int, instruction: int) -> list[np.ndarray]:
        """ld.global by all threads: `vector` words of `size` bytes at the addresses [threads].

        Returns the words, each as unsigned integers [threads].
        """
        return self.read(address, size, vector, None, instruction)

    def load_masked(
        self, address: np.ndarray, size: int, vector: int, mask: np.ndarray, instruction: int
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """ld.global by some threads: their numbers, and the words of these threads only."""
        active = np.flatnonzero(mask)
        if not len(active):
            return active, [np.empty(0, f"u{size}")] * vector
        return active, self.read(address[active], size, vector, active, instruction)

    def store(self, address: np.ndarray, size: int, values: list[np.ndarray], mask: Mask, instruction: int) -> None:
        """st.global: words of `size` bytes one behind the other, at the addresses [threads]."""
        active = None
        if mask is not None:
            active = np.flatnonzero(mask)
            if not len(active):
                return
            address, values = address[active], [value[active] for value in values]
        total = size * len(values)
        self.batch.count(f"global store of {total} bytes", len(address))
        threads = self.batch.every if active is None else active
        rows = np.stack(values, axis=1) if len(values) > 1 else np.ascontiguousarray(values[0])[:, None]
        for allocation, part, offset in self._places(address, total, threads, instruction, "write"):
            data, writers = (rows, threads) if part is None else (rows[part], threads[part])
            words = data.view(np.uint32) if total == 16 else data.view(f"u{total}")[:, 0]
            view, where = allocation.views[total], offset // total
            same = ~differ(view[where], words)
            self.record_write(allocation, offset, total, self.batch.global_stamps[writers], writers, instruction, same)
            view[where] = words
            lost = differ(view[where], words)
            if lost.any():
                what = f"global race: two threads write different values to one address in one instruction ({allocation.name})"
                self.batch.fault(what, instruction, writers[np.flatnonzero(lost)[0]])

    def atomic_add(self, address: np.ndarray, value: np.ndarray, mask: Mask, instruction: int) -> np.ndarray:
        """atom.global.add.f32 and red: one addition after the other, in the order of threads. What was there before, [threads].

        Atomic additions do not race with one another; against plain accesses they are not checked.
        """
        threads = self.batch.active(mask)
        before = np.zeros(self.batch.threads, np.float32)
        if not len(threads):
            return before
        added = np.broadcast_to(value, (self.batch.threads,))[threads]
        self.batch.count("atomic addition", len(threads))
        for allocation, part, offset in self._places(address[threads], 4, threads, instruction, "write"):
            view = allocation.views[4].view(np.float32)
            adders, terms = (threads, added) if part is None else (threads[part], added[part])
            before[adders] = view[offset // 4]
            np.add.at(view, offset // 4, terms)
        return before

    # ---- what instructions and asynchronous copies are made of

    def read(
        self, address: np.ndarray, size: int, vector: int, active: np.ndarray | None, instruction: int
    ) -> list[np.ndarray]:
        """`vector` words of `size` bytes at each of the addresses [active threads]."""
        total = size * vector
        threads = self.batch.every if active is None else active
        self.batch.count(f"global load of {total} bytes", len(address))
        words: list[np.ndarray] = [np.empty(len(address), f"u{size}") for _ in range(vector)]
        for allocation, part, offset in self._places(address, total, threads, instruction, "read"):
            readers = threads if part is None else threads[part]
            columns = self._words(allocation, offset, size, vector)
            for column in columns:
                self.check_written(allocation, column, readers, instruction)
            self.record_read(allocation, offset, total, self.batch.global_stamps[readers], readers, instruction)
            if part is None:
                return columns
            for whole, column in zip(words, columns, strict=True):
                whole[part] = column
        return words

    def contains(self, address: np.ndarray, total: int) -> Allocation | None:
        """The storage that holds all accesses of `total` bytes at these addresses; None where there is none."""
        which = int(self.memory.find(np.uint64(address.min())))
        if which < 0:
            return None
        found = self.memory.allocations[which]
        return found if int(address.max()) + total <= found.base + found.size else None

    def check_viewed(
        self, allocation: Allocation, offset: np.ndarray, total: int, threads: np.ndarray, instruction: int, verb: str
    ) -> None:
        """Faults a write of `total` bytes at any of the offsets [n] beside the tensor given; notes a read there."""
        first, end = allocation.viewed
        beside = (offset < first) | (offset + total > end)
        if beside.any():
            what = f"{verb}s {allocation.name} outside of the tensor given, inside its storage"
            if verb == "write":
                self.batch.fault(what, instruction, threads[np.flatnonzero(beside)[0]])
            self.batch.note(what, instruction)

    def check_written(self, allocation: Allocation, words: np.ndarray, threads: np.ndarray, instruction: int) -> None:
        """Finds words that still hold the poison of memory that nobody wrote. Bytes alone are not looked at."""
        size = words.dtype.itemsize
        if settings.unwritten_reads == "off" or size == 1:
            return
        unwritten = words == POISON[size]
        if unwritten.any():
            self._unwritten(allocation, instruction, int(threads[np.flatnonzero(unwritten)[0]]))

    def record_read(
        self, allocation: Allocation, offset: np.ndarray, total: int, stamps: np.ndarray, threads: np.ndarray, instruction: int
    ) -> None:
        """Leaves the stamps [n] of reads of `total` bytes at the offsets [n]. A fault where another wrote in this launch."""
        if not self._is_recorded(allocation):
            return
        writers, readers = allocation.stamps()
        where, own = granules(offset, total, allocation.granule), stamps[:, None]
        writer = writers[where]
        race = other_warp_or_block(writer, own)
        if race.any():
            access, granule = first_of(race)
            who = rival(writer[access, granule], stamps[access])
            what = f"global race: reads what another {who} wrote in this launch without a barrier ({allocation.name})"
            self.batch.fault(what, instruction, threads[access])
        record_readers(readers, where, own)

    def record_write(
        self,
        allocation: Allocation,
        offset: np.ndarray,
        total: int,
        stamps: np.ndarray,
        threads: np.ndarray,
        instruction: int,
        same: np.ndarray,
    ) -> None:
        """The same for writes. same: [n], where the bytes written are those that are there: no order of such writes shows."""
        if not self._is_recorded(allocation):
            return
        writers, readers = allocation.stamps()
        where, own = granules(offset, total, allocation.granule), stamps[:, None]
        for before, verb in (
            (writers[where], "writes another value where another {} wrote"),
            (readers[where], "writes where another {} read"),
        ):
            race = other_warp_or_block(before, own) & ~same[:, None]
            if race.any():
                access, granule = first_of(race)
                who = rival(before[access, granule], stamps[access])
                self.batch.fault(
                    f"global race: {verb.format(who)} in this launch ({allocation.name})", instruction, threads[access]
                )
        writers[where] = own

    def _is_recorded(self, allocation: Allocation) -> bool:
        if settings.global_races and allocation.size > settings.largest_shadow:
            self.batch.note(f"no race detection in tensors of more than {settings.largest_shadow} bytes")
            return False
        return settings.global_races

    def _unwritten(self, allocation: Allocation, instruction: int, thread: int) -> None:
        what = f"read of memory that nobody wrote ({allocation.name})"
        if settings.unwritten_reads == "fault":
            self.batch.fault(what, instruction, thread)
        self.batch.report.unwritten.setdefault(
            (self.batch.name, instruction), f"{what}: {self.batch.where(instruction, thread)}"
        )

    @staticmethod
    def _words(allocation: Allocation, offset: np.ndarray, size: int, vector: int) -> list[np.ndarray]:
        if vector == 1:
            return [allocation.views[size][offset // size]]
        total = size * vector
        rows = allocation.views[total][offset // total]
        rows = (rows if total == 16 else rows[:, None]).view(f"u{size}")
        return [rows[:, j] for j in range(vector)]

    def _places(
        self, address: np.ndarray, total: int, threads: np.ndarray, instruction: int, verb: str
    ) -> Iterator[tuple[Allocation, np.ndarray | None, np.ndarray]]:
        """For each storage among the addresses [n]: which of them lie in it (None: all), and their offsets from its low end.

        A fault for an access that is misaligned, outside of every storage, or a write beside the tensor given inside its
        storage; a read there is noted.
        """
        if total > WIDEST:
            raise NotImplementedError(f"{self.batch.name}: expected global accesses of at most {WIDEST} bytes, got {total}")
        misaligned = address & np.uint64(total - 1) != 0
        if misaligned.any():
            j = np.flatnonzero(misaligned)[0]
            self.batch.fault(f"misaligned {verb} of {total} bytes at {int(address[j]):#x}", instruction, threads[j])
        which = self.memory.find(address)
        for number in [which[0]] if (which == which[0]).all() else np.unique(which):
            part = None if (which == number).all() else np.flatnonzero(which == number)
            here, users = (address, threads) if part is None else (address[part], threads[part])
            if number < 0:
                self._out_of_bounds(here, total, users, instruction, verb)
            allocation = self.memory.allocations[number]
            if (here + np.uint64(total) > np.uint64(allocation.base + allocation.size)).any():
                self._out_of_bounds(here, total, users, instruction, verb)
            offset = (here - np.uint64(allocation.low)).astype(np.int64)
            self.check_viewed(allocation, offset, total, users, instruction, verb)
            yield allocation, part, offset

    def _out_of_bounds(self, address: np.ndarray, total: int, threads: np.ndarray, instruction: int, verb: str) -> None:
        for one, thread in zip(address, threads, strict=True):
            if text := self.memory.neighbours(int(one), total):
                self.batch.fault(f"out-of-bounds {verb} of {total} bytes at {int(one):#x}, {text}", instruction, thread)
        raise AssertionError("expected an access outside of every storage, got none")
