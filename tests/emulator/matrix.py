"""Matrix fragments of a warp: ldmatrix, stmatrix and mma.sync, and how NVIDIA's matrix units sum.

PTX ISA, Warp Level Matrix Multiply-Accumulate Instructions: mma.sync, ldmatrix, stmatrix.
"""

from collections.abc import Sequence

import numpy as np

from . import arithmetic
from .batch import Batch, Mask
from .settings import settings
from .shared_memory import SharedMemory

FP8_SUM_BITS = 14


def stacked(registers: Sequence[np.ndarray], threads: int) -> np.ndarray:
    """Registers, each [threads] or one number, as [threads, registers]."""
    return np.stack([np.broadcast_to(register, (threads,)) for register in registers], axis=-1)


def rounded(sums: np.ndarray) -> np.ndarray:
    """float64 sums of a matrix unit to float32: towards zero, as NVIDIA's units do, unless the settings ask for the nearest."""
    return arithmetic.truncate32(sums) if settings.truncated_sums else sums.astype(np.float32)


def fp8_sums(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a @ b^T + c as Hopper's fp8 unit sums: products and sum aligned to the largest exponent and cut to about 14 bits.

    a: [w, m, k], b: [w, n, k], c: [w, m, n] in float64, as is what is returned.
    """
    sums = np.empty_like(c)
    for w in range(len(a)):
        products = a[w][:, None, :] * b[w][None, :, :]
        largest = np.maximum(np.abs(products).max(axis=-1), np.abs(c[w]))
        _, exponent = np.frexp(largest)
        step = np.where(largest == 0, 1.0, np.exp2(exponent - float(FP8_SUM_BITS)))
        cut = (np.trunc(products / step[..., None]).sum(axis=-1) + np.trunc(c[w] / step)) * step
        sums[w] = np.where(np.isfinite(largest), cut, products.sum(axis=-1) + c[w])
    return sums


class Matrices:
    """The matrix instructions of warps."""

    def __init__(self, batch: Batch, shared: SharedMemory) -> None:
        self.batch, self.shared = batch, shared

    def _rows(self, address: np.ndarray, num: int, mask: Mask, instruction: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The warps that take part, the threads that name rows of their `num` matrices, and the addresses of these rows."""
        whole = self.batch.whole_warps(mask, instruction)
        warps = np.arange(self.batch.warps) if whole is None else whole
        threads = (warps[:, None] * 32 + np.arange(num * 8)).reshape(-1)
        return warps, threads, address[threads]

    def load(self, address: np.ndarray, num: int, transposed: bool, mask: Mask, instruction: int) -> list[np.ndarray]:
        """ldmatrix.m8n8.b16: `num` matrices of 8 rows of 16 bytes.

        address: [threads], of which the first 8 `num` lanes name a row each. Returns a word of each matrix, [threads].
        """
        warps, threads, rows = self._rows(address, num, mask, instruction)
        if not len(warps):
            return [np.zeros(self.batch.threads, np.uint32)] * num
        offset = self.shared.locate(rows, 16, threads, instruction, "read")
        self.shared.record_read(offset, 16, self.batch.shared_stamps[threads], threads, instruction)
        data = self.shared.views[16][offset >> 4]
        if transposed:
            data = np.ascontiguousarray(data.view(np.uint16).reshape(-1, 8, 8).swapaxes(1, 2)).view(np.uint32)
        words = np.zeros((num, self.batch.warps, 32), np.uint32)
        words[:, warps] = data.reshape(len(warps), num, 32).swapaxes(0, 1)
        return list(words.reshape(num, -1))

    def store(
        self, address: np.ndarray, num: int, transposed: bool, values: list[np.ndarray], mask: Mask, instruction: int
    ) -> None:
        """stmatrix.m8n8.b16: the converse of `load`."""
        warps, threads, rows = self._rows(address, num, mask, instruction)
        if not len(warps):
            return
        words = np.stack([value.reshape(-1, 32)[warps] for value in values], axis=1).reshape(-1, 4)
        if transposed:
            words = np.ascontiguousarray(words.view(np.uint16).reshape(-1, 8, 8).swapaxes(1, 2)).view(np.uint32).reshape(-1, 4)
        offset = self.shared.locate(rows, 16, threads, instruction, "write")
        self.shared.write(offset, np.ascontiguousarray(words), 16, threads, instruction)

    def multiply(
        self,
        shape: str,
        kind: str,
        a_registers: list[list[np.ndarray]],
        b_registers: list[list[np.ndarray]],
        c_registers: list[list[np.ndarray]],
        a_of: list[int],
        b_of: list[int],
        mask: Mask,
        instruction: int,
    ) -> np.ndarray:
        """Several independent mma.sync of one shape ('m16n8k16') and operand type ('bf16') at once: D = A B + C in float32.

        Product i takes fragment a_of[i] of A, b_of[i] of B and fragment i of C. Each sum is exact, then rounded once.
        Returns the registers of D: [products, 4, threads] of uint32.
        """
        self.batch.whole_warps(mask, instruction)
        k = int(shape.split("k")[1])
        threads, warps = self.batch.threads, self.batch.warps
        a = np.stack([stacked(registers, threads) for registers in a_registers])
        # fragment, warp, row in half, thread in row, half of k, half of the rows, elements of a word
        a = arithmetic.decode(kind, a.reshape(len(a_registers), warps, 8, 4, -1, 2))
        a = a.transpose(0, 1, 5, 2, 4, 3, 6).reshape(len(a_registers), warps, 16, k)
        b = np.stack([stacked(registers, threads) for registers in b_registers])
        # fragment, warp, column, thread in column, half of k, elements of a word
        b = arithmetic.decode(kind, b.reshape(len(b_registers), warps, 8, 4, -1))
        b = b.transpose(0, 1, 4, 3, 5, 2).reshape(len(b_registers), warps, k, 8)
        products = len(c_registers)
        c = np.stack([stacked(registers, threads) for registers in c_registers]).view(np.float32)
        # fragment, warp, row in half, thread in row, half of the rows, pair of columns
        c = c.reshape(products, warps, 8, 4, 2, 2).transpose(0, 1, 4, 2, 3, 5).reshape(products, warps, 16, 8)
        left, right = np.asarray(a_of), np.asarray(b_of)
        if len(a_registers) * len(b_registers) == products:  # every pair occurs: no fragment has to be copied
            product = np.matmul(a[:, None], b[None])[left, right]
        else:
            product = np.matmul(a[left], b[right])
        d = rounded(product + c).reshape(products, warps, 2, 8, 4, 2)
        self.batch.count(f"mma {shape} {kind}", products * warps)
        return d.transpose(0, 2, 5, 1, 3, 4).reshape(products, 4, threads).view(np.uint32)
