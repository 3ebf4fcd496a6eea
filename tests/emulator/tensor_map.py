"""A tensor map: what cuTensorMapEncodeTiled would encode, with its rules (CUDA Driver API, Tensor Map Object Management)."""

from collections.abc import Sequence
from dataclasses import dataclass

SWIZZLED_BYTES = {0: 16, 1: 32, 2: 64, 3: 128}  # width of the pattern, by CUtensorMapSwizzle; 16: none


@dataclass
class TensorMap:
    """A matrix in global memory and the box of it that one instruction copies; the fields as Triton hands them over.

    base: address. swizzle: a key of SWIZZLED_BYTES. element_bytes: size of one. element_type, padding: as the driver numbers
    them. block, shape, strides: in elements, the contiguous axis last.
    """

    base: int
    swizzle: int
    element_bytes: int
    element_type: int
    block: Sequence[int]
    shape: Sequence[int]
    strides: Sequence[int]
    padding: int

    @property
    def width(self) -> int:
        return SWIZZLED_BYTES[self.swizzle]

    def refusal(self) -> str | None:
        """Why the driver would refuse it, or None."""
        inner = self.block[-1] * self.element_bytes
        if self.base % 16:
            return f"expected a multiple of 16 as the address of a tensor map, got {self.base:#x}"
        for stride in (stride * self.element_bytes for stride in self.strides[:-1]):
            if stride % 16 or stride >= 1 << 40:
                return f"expected a multiple of 16 below 2**40 as the stride of a tensor map in bytes, got {stride}"
        for size in self.shape:
            if not 0 < size <= 1 << 32:
                return f"expected sizes of a tensor map from 1 to 2**32, got {size}"
        for size in self.block:
            if not 0 < size <= 256:
                return f"expected a box of 1 to 256 elements an axis, got {size}"
        if inner % 16:
            return f"expected rows of a box to be a multiple of 16 bytes, got {inner}"
        if self.swizzle and inner > self.width:
            return f"expected rows of a box to fit the swizzle of {self.width} bytes, got {inner}"
        return None
