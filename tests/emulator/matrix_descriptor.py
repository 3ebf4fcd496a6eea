"""Where an operand of wgmma lies in shared memory: the fields of a matrix descriptor, its swizzle, and the chunks of 16 bytes.

PTX ISA, Asynchronous Warpgroup Level Matrix Instructions: Matrix Descriptor Format; Strides; Shared Memory Matrix Layout. The
unit of every layout is a core matrix, 8 rows of 16 bytes.
"""

from dataclasses import dataclass

import numpy as np

SWIZZLED_BYTES = {0: 16, 1: 128, 2: 64, 3: 32}  # width of the pattern, by the descriptor's mode; 16: none


def swizzle(address: np.ndarray, width: int) -> np.ndarray:
    """The place of a chunk of 16 bytes in a pattern of this width: bits 4 and up of the address are flipped by bits 7 and up.

    The same function that a copy by TMA applies to where it writes.
    """
    return address ^ (address >> 3 & width - 16)


@dataclass
class MatrixDescriptor:
    """The fields of one descriptor a warpgroup: start, leading and stride in bytes, [warpgroups]; one width for all."""

    start: np.ndarray
    leading: np.ndarray
    stride: np.ndarray
    width: int

    @classmethod
    def decode(cls, words: np.ndarray) -> "MatrixDescriptor":
        """words: uint64 [warpgroups]. Raises NotImplementedError for swizzles that differ or a base offset."""
        fields = words.astype(np.int64)
        modes = np.unique((words >> np.uint64(62)).astype(np.int64))
        if len(modes) != 1:
            raise NotImplementedError(
                f"expected one swizzle in all wgmma descriptors of an instruction, got modes {modes.tolist()}"
            )
        if (fields >> 49 & 7).any():
            raise NotImplementedError("expected wgmma descriptors without a base offset, got one with it")
        start, leading, stride = ((fields >> bit & 0x3FFF) << 4 for bit in (0, 16, 32))
        return cls(start, leading, stride, SWIZZLED_BYTES[int(modes[0])])

    def chunks(self, rows: int, k: int, transposed: bool) -> np.ndarray:
        """Addresses of the operand's chunks of 16 bytes within shared memory.

        rows: of M or N. k: elements along K, 32 bytes of them. As it lies K-major: [warpgroups, rows, 2], two chunks of each
        row. transposed, for 16-bit operands that lie M- or N-major: [warpgroups, rows // 8, k], 8 rows of one k in each chunk.
        """
        start, leading, stride = (field[:, None, None] for field in (self.start, self.leading, self.stride))
        if transposed:
            group, column = np.arange(rows // 8)[None, :, None], np.arange(k)[None, None, :]
            if self.width == 16:
                address = start + group * stride + column % 8 * 16 + column // 8 * leading
            else:
                wide = self.width // 16
                address = start + group % wide * 16 + group // wide * leading + column % 8 * self.width + column // 8 * stride
        else:
            row, chunk = np.arange(rows)[None, :, None], np.arange(2)[None, None, :]
            across = leading if self.width == 16 else 16
            address = start + row % 8 * self.width + row // 8 * stride + chunk * across
        return swizzle(address, self.width)
