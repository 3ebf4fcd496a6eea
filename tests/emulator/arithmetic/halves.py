"""Operations on bfloat16 and float16, alone and in pairs: PTX ISA, "Half Precision Floating Point Instructions"."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .floats import maximum, maximum_nan, minimum, minimum_nan, rounded_to_odd32, sum_to_odd
from .formats import float_to_half, half_to_float, split_pair

Array = Any  # an array with one element for each thread, or a numpy scalar that all of them share

# In float64, where sums of two and products of 16-bit floats are exact as far as a rounding to 16 bits can see.
OPERATIONS: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "fma": lambda a, b, c: sum_to_odd(a * b, c),
    "min": minimum,
    "max": maximum,
    "min.NaN": minimum_nan,
    "max.NaN": maximum_nan,
}


def half_op(operation: str, kind: str, *operands: Array) -> Array:
    """An operation on bit patterns of `kind`: bf16 or f16 as uint16, or pairs as uint32 if it ends in x2. Rounded once."""
    if kind.endswith("x2"):
        lows, highs = zip(*(split_pair(operand) for operand in operands))
        high = half_op(operation, kind[:-2], *highs).astype(np.uint32) << np.uint32(16)
        return high | half_op(operation, kind[:-2], *lows)
    wide = (half_to_float(kind, operand).astype(np.float64) for operand in operands)
    return float_to_half(kind, rounded_to_odd32(OPERATIONS[operation](*wide)))
