"""The memory that a launch may touch: storages of tensors, what lies where, and the pattern of memory that nobody wrote."""

import ctypes
from collections.abc import Sequence

import numpy as np

POISON8 = np.uint8(0xA5)
POISON16 = np.uint16(0x7FA5)  # a NaN in float32, bfloat16 and float16
POISON32 = np.uint32(0x7FA57FA5)
POISON64 = np.uint64(0x7FA57FA57FA57FA5)
POISON = {1: POISON8, 2: POISON16, 4: POISON32, 8: POISON64}  # by size; a byte alone says nothing


def typed_views(raw: np.ndarray) -> dict[int, np.ndarray]:
    """The same bytes as words of 1, 2, 4 and 8 bytes and as rows of four words, by size. Their number is a multiple of 16."""
    words = {size: raw.view(f"u{size}") for size in (1, 2, 4, 8)}
    return {**words, 16: words[4].reshape(-1, 4)}


def differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which stored words [n], or rows of words [n, 4], differ.

    Two NaNs of float32 count as the same: the hardware makes one NaN only, numpy keeps payloads.
    """
    different = a != b
    if different.any():
        if a.dtype == np.uint64:
            return differ(a.view(np.uint32).reshape(-1, 2), b.view(np.uint32).reshape(-1, 2))
        if a.dtype == np.uint32:
            magnitude, infinity = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)
            different &= ~(((a & magnitude) > infinity) & ((b & magnitude) > infinity))
    return different.any(axis=1) if different.ndim == 2 else different


class Allocation:
    """The storage of a tensor that a kernel was given, read and written in place.

    base, size: its address and bytes. name: of the parameter, or of several. viewed: the first byte of the tensors themselves
    and the one after their last, as addresses, where they are a part of the storage.
    """

    def __init__(self, base: int, size: int, name: str, viewed: tuple[int, int]) -> None:
        self.base, self.size, self.name = base, size, name
        self.low = base & ~15  # views of 16 bytes begin at such an address
        padded = (base + size + 15 & ~15) - self.low
        self.bytes = np.frombuffer((ctypes.c_uint8 * padded).from_address(self.low), np.uint8)
        self.views = typed_views(self.bytes)
        self.viewed = viewed[0] - self.low, viewed[1] - self.low
        self.granule = 1
        self._stamps: tuple[np.ndarray, np.ndarray] | None = None

    def begin_launch(self, granule: int) -> None:
        """Forgets who wrote and read in the launch before. granule: bytes that one record stands for."""
        self.granule = granule
        self._stamps = None

    def stamps(self) -> tuple[np.ndarray, np.ndarray]:
        """Who wrote and who read each granule last in this launch, as stamps: see `races`."""
        if self._stamps is None:
            granules = len(self.bytes) // self.granule
            self._stamps = np.zeros(granules, np.uint64), np.zeros(granules, np.uint64)
        return self._stamps


class Memory:
    """All storages of a launch, by address."""

    def __init__(self, allocations: Sequence[Allocation]) -> None:
        self.allocations = sorted((a for a in allocations if a.size), key=lambda a: a.base)
        self._bases = np.array([a.base for a in self.allocations], np.uint64)

    def find(self, address: np.ndarray | np.uint64) -> np.ndarray:
        """The index of the last storage that begins at or before each address; -1 before the first."""
        return np.searchsorted(self._bases, address, side="right").astype(np.int64) - 1

    def neighbours(self, address: int, total: int) -> str:
        """A sentence about an access of `total` bytes that no storage contains; '' where one does."""
        which = int(self.find(np.uint64(address)))
        before = self.allocations[which] if which >= 0 else None
        after = self.allocations[which + 1] if which + 1 < len(self.allocations) else None
        if before is not None and address + total <= before.base + before.size:
            return ""
        text = "in no tensor of this launch"
        if before is not None:
            text += f"; {address - before.base - before.size} bytes past the end of {before.name} of {before.size} bytes"
        if after is not None:
            text += f"; {after.base - address} bytes before {after.name} of {after.size} bytes"
        return text
