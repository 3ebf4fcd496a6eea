"""Who touched which bytes last: the stamps by which races are found, and the orders in which they may lie.

Between two barriers the warps of a block run in any order, and the blocks of a launch do so from beginning to end. An access is
a race where another warp, or another block, touched the same bytes in that stretch and one of the two wrote. The emulator runs
all threads in lock step, so that it sees one order only; therefore it records, for every granule of memory (the smallest access
of the kernel), the stamp of its last writer and of its last reader, and compares them at each access.

    bits 40 and up   block + 1, in global memory; 0 in shared memory, which each block has for itself
    bits 10 to 39    epoch: one more than the barriers that the block has passed
    bits 0 to 9      warp within the block, or SEVERAL_WARPS
    0                nobody yet, or so long ago that the order is clear
    SEVERAL_BLOCKS   readers of several blocks
    UNWRITTEN        shared memory that holds nothing yet (writer)
    IN_FLIGHT        shared memory that an asynchronous copy writes: to be read or written only after its wait (writer)

Two stamps that differ in the lowest ten bits alone are of two warps in one epoch: no barrier is between them. Their exclusive
or is then below EPOCH and not 0; where the blocks differ it is at least BLOCK. A warp's accesses to its own bytes are in
program order, and threads of one warp count as one. A write of the very value that is there harms in no order and is allowed:
Triton lets lanes that hold copies of a value store it more than once.
"""

import numpy as np

EPOCH = np.uint64(1 << 10)
BLOCK = np.uint64(1 << 40)
SEVERAL_WARPS = EPOCH - np.uint64(1)
SEVERAL_BLOCKS = np.uint64((1 << 64) - 1)
UNWRITTEN, IN_FLIGHT = np.uint64(1 << 62), np.uint64((1 << 62) + 1)


def granules(offsets: np.ndarray, total: int, granule: int) -> np.ndarray:
    """The granules [n, total // granule or 1] that accesses of `total` bytes at these offsets [n] touch."""
    first = (offsets // granule)[:, None]
    return first + np.arange(total // granule) if total > granule else first


def first_of(found: np.ndarray) -> tuple[int, int]:
    """Access and granule of the first True."""
    access, granule = np.argwhere(found)[0]
    return int(access), int(granule)


def other_warp(stamps: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Which stamps are of another warp of the same block in the same epoch."""
    difference = stamps ^ own
    return (difference != 0) & (difference < EPOCH)


def other_warp_or_block(stamps: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Which stamps are of another block, or of another warp of the same block in the same epoch."""
    difference = stamps ^ own
    return (stamps != 0) & (difference != 0) & ((difference >= BLOCK) | (difference < EPOCH))


def warp_of(stamp: np.uint64) -> str:
    warp = stamp & SEVERAL_WARPS
    return "several warps" if warp == SEVERAL_WARPS else f"warp {warp}"


def rival(stamp: np.uint64, own: np.uint64) -> str:
    return "block" if stamp ^ own >= BLOCK else "warp"


def record_readers(readers: np.ndarray, where: np.ndarray, own: np.ndarray) -> None:
    """Leaves the stamps own [n, 1] at the granules where [n, k], merged with those of others that no barrier made old."""
    before = readers[where]
    difference = before ^ own
    stamps = np.where((difference != 0) & (difference < EPOCH), own | SEVERAL_WARPS, own)
    foreign = difference >= BLOCK
    if foreign.any():
        stamps = np.where(foreign & (before != 0), SEVERAL_BLOCKS, stamps)
    readers[where] = stamps
    kept = readers[where]  # of two accesses of this instruction to one granule only one remains
    lost = kept != stamps
    if lost.any():
        both = np.where(kept ^ stamps >= BLOCK, SEVERAL_BLOCKS, stamps | SEVERAL_WARPS)
        readers[where[lost]] = both[lost]
