"""The arithmetic of PTX on numpy arrays, one element to a thread. In reading order:

integers          division, shifts, bit fields, bytes
floats            subnormals, fused multiply-add, minimum and maximum, conversion to integers
formats           bfloat16, float16, tf32 and e4m3, to and from float32
halves            operations on 16-bit floats, alone and in pairs
approximations    what the special function unit computes
matrix            operands and sums of matrix units

Functions take arrays, or a scalar for an operand that is the same in all threads, and wrap around without a warning only under
numpy.errstate(all="ignore"). What a comment calls the PTX ISA is NVIDIA's "Parallel Thread Execution ISA", by section name.
"""

from .approximations import cos, div_full, ex2, lg2, rcp, rsqrt, sin, tanh
from .floats import (
    float_to_int,
    flush,
    fused32,
    fused64,
    maximum,
    maximum_nan,
    minimum,
    minimum_nan,
    rounded_to_odd32,
    sum_to_odd,
    truncate32,
    with_xor_of_signs,
)
from .formats import (
    E4M3,
    float_to_e4m3,
    float_to_half,
    float_to_tf32,
    half_to_float,
    pack_e4m3,
    pack_halves,
    split_pair,
    unpack_e4m3,
)
from .halves import half_op
from .integers import bfe, bfi, clz, idiv, irem, lop3, merge, mulhi64, prmt, shf, shl, shr
from .matrix import MMA_SHAPES, decode

__all__ = [
    "E4M3",
    "MMA_SHAPES",
    "bfe",
    "bfi",
    "clz",
    "cos",
    "decode",
    "div_full",
    "ex2",
    "float_to_e4m3",
    "float_to_half",
    "float_to_int",
    "float_to_tf32",
    "flush",
    "fused32",
    "fused64",
    "half_op",
    "half_to_float",
    "idiv",
    "irem",
    "lg2",
    "lop3",
    "maximum",
    "maximum_nan",
    "merge",
    "minimum",
    "minimum_nan",
    "mulhi64",
    "pack_e4m3",
    "pack_halves",
    "prmt",
    "rcp",
    "rounded_to_odd32",
    "rsqrt",
    "shf",
    "shl",
    "shr",
    "sin",
    "split_pair",
    "sum_to_odd",
    "tanh",
    "truncate32",
    "unpack_e4m3",
    "with_xor_of_signs",
]
