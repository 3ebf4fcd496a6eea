"""TMA: copies of whole tiles between global and shared memory by one thread, with a tensor map.

PTX ISA, Data Movement and Conversion Instructions: cp.async.bulk.tensor, cp.async.bulk.commit_group, cp.async.bulk.wait_group;
Tensors: Tiled mode, Swizzling modes.
"""

from typing import NamedTuple

import numpy as np

from .async_proxy import AsyncProxy
from .batch import Batch, Mask
from .compiled import PARAM_SPACE
from .global_memory import GlobalMemory
from .matrix_descriptor import swizzle
from .mbarrier import Mbarriers
from .memory import Allocation
from .races import granules
from .settings import settings
from .shared_memory import SharedMemory
from .tensor_map import TensorMap

ALIGNMENT = 128  # bytes, of a tile in shared memory


class Tile(NamedTuple):
    """A box of a matrix that one instruction copies.

    offset: [chunks of 16 bytes], absolute, in shared memory, row by row. size: rows, and bytes of a row.
    rows, columns: the rows and the bytes of each that lie within the matrix. address: [those rows], of their first byte.
    """

    offset: np.ndarray
    size: tuple[int, int]
    rows: slice
    columns: slice
    address: np.ndarray

    @property
    def row_bytes(self) -> int:
        """Of a row's part within the matrix."""
        return self.columns.stop - self.columns.start


class Store(NamedTuple):
    """A store that may still read shared memory: its number among asynchronous operations, and its thread's group."""

    thread: int
    number: int
    group: int


class TileCopies:
    """The tile copies of a batch.

    maps: parameter offset -> tensor map. committed: [threads], groups of stores that a thread closed.
    """

    def __init__(
        self,
        batch: Batch,
        global_memory: GlobalMemory,
        shared: SharedMemory,
        proxy: AsyncProxy,
        barriers: Mbarriers,
        maps: dict[int, TensorMap],
    ) -> None:
        self.batch, self.global_memory, self.shared, self.proxy, self.barriers = batch, global_memory, shared, proxy, barriers
        self.maps = maps
        self.committed = np.zeros(batch.threads, np.int64)
        self.stores: list[Store] = []

    # ---- instructions

    def load(
        self,
        target: np.ndarray,
        map_: np.ndarray,
        origin: list[np.ndarray],
        barrier: np.ndarray,
        rank: int,
        mask: Mask,
        instruction: int,
    ) -> None:
        """cp.async.bulk.tensor to shared memory: zeros outside of the matrix. It completes on the mbarrier.

        target, map_, barrier: addresses [threads]. origin: [threads] for each axis, the contiguous one first.
        """
        for thread in self.batch.active(mask):
            tile = self._tile(map_, origin, target, thread, instruction)
            data = np.zeros(tile.size, np.uint8)
            if tile.row_bytes:
                allocation, where = self._storage(tile, thread, instruction, "read")
                data[tile.rows, tile.columns] = inside = allocation.bytes[where]
                if tile.row_bytes % 2 == 0:
                    words = inside.view(np.uint16).reshape(-1)
                    self.global_memory.check_written(allocation, words, np.full(len(words), thread), instruction)
                readers = np.full(len(where), thread)
                stamps, span = self.batch.global_stamps[readers], self._span(tile, allocation)
                self.global_memory.record_read(allocation, where[:, 0], span, stamps, readers, instruction)
            writers = np.full(len(tile.offset), thread)
            self.shared.record_write(tile.offset, 16, self.batch.shared_stamps[writers], writers, instruction, in_flight=True)
            if settings.late_products:
                self.shared.put(tile.offset, data.reshape(-1, 16), 16)

            def land(offset: np.ndarray = tile.offset, data: np.ndarray = data) -> int:
                self.shared.put(offset, data.reshape(-1, 16), 16)
                self.proxy.arrived(granules(offset, 16, self.shared.granule))
                return data.size

            self.barriers.expect_copy(thread, barrier, land, instruction)
            self.batch.count("tma load")

    def store(
        self, source: np.ndarray, map_: np.ndarray, origin: list[np.ndarray], rank: int, mask: Mask, instruction: int
    ) -> None:
        """cp.async.bulk.tensor to global memory: what lies within the matrix. It reads its source until it is waited for."""
        for thread in self.batch.active(mask):
            tile = self._tile(map_, origin, source, thread, instruction)
            number = self.proxy.issue()
            readers = np.full(len(tile.offset), thread)
            self.proxy.read(tile.offset, readers, instruction, "a tile store", self.proxy.bulk_queue, number)
            self.stores.append(Store(int(thread), number, int(self.committed[thread])))
            if tile.row_bytes:
                data = self.shared.views[16][tile.offset >> 4].view(np.uint8).reshape(tile.size)[tile.rows, tile.columns]
                allocation, where = self._storage(tile, thread, instruction, "write")
                same = (allocation.bytes[where] == data).all(axis=1)
                writers = np.full(len(where), thread)
                stamps, span = self.batch.global_stamps[writers], self._span(tile, allocation)
                self.global_memory.record_write(allocation, where[:, 0], span, stamps, writers, instruction, same)
                allocation.bytes[where] = data
            self.batch.count("tma store")

    def commit(self, mask: Mask, instruction: int) -> None:
        """cp.async.bulk.commit_group: closes the group of each thread's stores."""
        self.committed[slice(None) if mask is None else mask] += 1

    def wait(self, num_groups: int, read: bool, mask: Mask, instruction: int) -> None:
        """cp.async.bulk.wait_group: all but the last num_groups have read their sources; the memory may be used again."""
        left = []
        for store in self.stores:
            if (mask is None or mask[store.thread]) and store.group < self.committed[store.thread] - num_groups:
                self.proxy.finish(self.proxy.bulk_queue, int(self.batch.block_of[store.thread]), store.number)
            else:
                left.append(store)
        self.stores = left

    def end(self) -> None:
        if self.stores:
            self.batch.note("ends while tile stores may still read shared memory")

    # ---- what they are made of

    def _tile(self, map_: np.ndarray, origin: list[np.ndarray], address: np.ndarray, thread: int, instruction: int) -> Tile:
        """The box that a thread copies. A fault where its shared memory is misaligned or past the end."""
        parameter = int(map_[thread]) - PARAM_SPACE
        if parameter not in self.maps:
            self.batch.fault(f"tensor map at {int(map_[thread]):#x} is not one of the parameters", instruction, thread)
        tensor = self.maps[parameter]
        if len(tensor.block) != 2 or len(origin) != 2:
            raise NotImplementedError(f"{self.batch.name}: expected tile copies of two axes, got {len(tensor.block)}")
        start, column, row = int(address[thread]), int(origin[0][thread]), int(origin[1][thread])
        num_rows, num_columns = tensor.block
        width = num_columns * tensor.element_bytes
        if start % ALIGNMENT:
            self.batch.fault(
                f"tile copy: expected a multiple of {ALIGNMENT} as the shared address, got {start}", instruction, thread
            )
        if tensor.swizzle and start % (8 * tensor.width):
            self.batch.note("tile copy to a place that is not a multiple of its swizzle's pattern", instruction)
        chunks = swizzle(start + np.arange(num_rows * width // 16) * 16, tensor.width)
        if chunks.max() + 16 > self.shared.declared:
            what = f"tile copy of shared memory at {chunks.max()}, {self.shared.declared} are there"
            self.batch.fault(what, instruction, thread)
        first_row, last_row = max(0, -row), min(num_rows, tensor.shape[0] - row)
        first, last = max(0, -column), min(num_columns, tensor.shape[1] - column)
        if last_row <= first_row or last <= first:
            first_row = last_row = first = last = 0
        elements = (row + np.arange(first_row, last_row)) * tensor.strides[0] + column + first
        return Tile(
            chunks + self.shared.base[thread],
            (num_rows, width),
            slice(first_row, last_row),
            slice(first * tensor.element_bytes, last * tensor.element_bytes),
            tensor.base + elements * tensor.element_bytes,
        )

    def _storage(self, tile: Tile, thread: int, instruction: int, verb: str) -> tuple[Allocation, np.ndarray]:
        """The storage that holds a tile, and the index of each byte in it, [rows, bytes of a row].

        A fault where there is none, or for a write beside the tensor given inside its storage; a read there is noted.
        """
        allocation = self.global_memory.contains(tile.address, tile.row_bytes)
        if allocation is None:
            self.batch.fault("tile copy outside of the tensors of this launch", instruction, thread)
        offset = tile.address - allocation.low
        self.global_memory.check_viewed(allocation, offset, tile.row_bytes, np.full(len(offset), thread), instruction, verb)
        return allocation, offset[:, None] + np.arange(tile.row_bytes)

    @staticmethod
    def _span(tile: Tile, allocation: Allocation) -> int:
        """Bytes of the granules that a row touches."""
        return -(-tile.row_bytes // allocation.granule) * allocation.granule
