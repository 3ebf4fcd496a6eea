"""Float32 and float64: PTX ISA, "Floating Point Instructions". All is rounded once, to nearest even unless it says otherwise.

An operation is often computed in a wider format and rounded again. That is right where the first step was exact, or rounded
"to odd": towards zero, with the last bit set where something was lost, which tells the next rounding the side of a tie.
"""

from fractions import Fraction
from typing import Any

import numpy as np

Array = Any  # an array with one element for each thread, or a numpy scalar that all of them share

SMALLEST_NORMAL = 2.0**-126
CANONICAL_NAN = np.uint32(0x7FFFFFFF).view(np.float32)  # the NaN that instructions on float32 make


def flush(x: Array) -> Array:
    """Subnormal float32 become zeros of the same sign: the modifier .ftz."""
    x = np.asarray(x)
    small = np.abs(x) < np.float32(SMALLEST_NORMAL)
    return np.where(small, np.copysign(np.float32(0), x), x) if small.any() else x


def truncate32(x: Array) -> Array:
    """Float64 to float32 towards zero, as NVIDIA's matrix units round their sums."""
    rounded = x.astype(np.float32)
    over = np.abs(rounded.astype(np.float64)) > np.abs(x)
    if not over.any():
        return rounded
    bits = rounded.view(np.uint32)
    return np.where(over, bits - np.uint32(1), bits).view(np.float32)


def rounded_to_odd32(x: Array) -> Array:
    """Float64 to float32, rounded to odd."""
    rounded = truncate32(x)
    inexact = (rounded != x) & np.isfinite(x)
    return np.where(inexact, rounded.view(np.uint32) | np.uint32(1), rounded.view(np.uint32)).view(np.float32)


def sum_to_odd(a: Array, b: Array) -> Array:
    """The sum of two float64, rounded to odd. The error of the nearest is exact: Knuth, "Seminumerical Algorithms", 4.2.2."""
    total = np.asarray(a + b)
    part = total - a
    error = (a - (total - part)) + (b - part)
    inexact = (error != 0) & np.isfinite(total)
    bits = total.view(np.uint64)
    over = np.signbit(error) != np.signbit(total)
    odd = np.where(over, bits - np.uint64(1), bits) | np.uint64(1)
    return np.where(inexact, odd, bits).view(np.float64)


def fused32(a: Array, b: Array, c: Array) -> Array:
    """`a * b + c` of float32 with one rounding."""
    product = np.asarray(a).astype(np.float64) * b  # exact
    total = np.asarray(product + c)
    # Float64 lost something that matters only if what is left lies between two float32: at a tie, or among the subnormals.
    tie = (total.view(np.uint64) & np.uint64((1 << 29) - 1)) == np.uint64(1 << 28)
    subnormal = (np.abs(total) < SMALLEST_NORMAL) & (total != 0)
    if (tie | subnormal).any():
        total = sum_to_odd(product, np.asarray(c).astype(np.float64))
    return total.astype(np.float32)


def fused64(a: Array, b: Array, c: Array) -> Array:
    """`a * b + c` of float64 with one rounding. Slow: by fractions."""

    def one(a: float, b: float, c: float) -> float:
        rough = a * b + c
        if not np.isfinite([a, b, c]).all() or a == 0 or b == 0:
            return rough
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        try:
            return float(exact) if exact else 0.0
        except OverflowError:
            return np.inf if exact > 0 else -np.inf

    return np.vectorize(one, otypes=[np.float64])(a, b, c)


def _unsigned(x: Array) -> Array:
    return np.asarray(x).view(f"u{x.dtype.itemsize}")


def maximum(a: Array, b: Array) -> Array:
    """The larger; the number if one is NaN. +0 is larger than -0."""
    a, b = np.broadcast_arrays(a, b)
    return np.where(a == b, (_unsigned(a) & _unsigned(b)).view(a.dtype), np.fmax(a, b))


def minimum(a: Array, b: Array) -> Array:
    """The smaller; the number if one is NaN. -0 is smaller than +0."""
    a, b = np.broadcast_arrays(a, b)
    return np.where(a == b, (_unsigned(a) | _unsigned(b)).view(a.dtype), np.fmin(a, b))


def maximum_nan(a: Array, b: Array) -> Array:
    """The larger; NaN if one is NaN: the modifier .NaN."""
    return np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), maximum(a, b))


def minimum_nan(a: Array, b: Array) -> Array:
    """The smaller; NaN if one is NaN: the modifier .NaN."""
    return np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), minimum(a, b))


def with_xor_of_signs(choose: Any, a: Array, b: Array) -> Array:
    """`choose` of the magnitudes, with the product of the signs, unless it is NaN: the modifiers .xorsign.abs, of float32."""
    sign = (a.view(np.uint32) ^ b.view(np.uint32)) & np.uint32(0x80000000)
    chosen = choose(np.abs(a), np.abs(b))
    return np.where(np.isnan(chosen), CANONICAL_NAN, (chosen.view(np.uint32) | sign).view(np.float32))


ROUND_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def float_to_int(x: Array, rounding: str, to: Any) -> Array:
    """Floats to integers of numpy type `to`, the nearest there is if too large or too small.

    NaN becomes 0, but the top bit alone where float64 or a 64-bit integer takes part: PTX ISA, "cvt".
    """
    limits, wide = np.iinfo(to), x.dtype == np.float64 or np.dtype(to).itemsize == 8
    whole = ROUND_TO_INTEGER[rounding](x.astype(np.float64))
    above, below, nan = whole >= float(limits.max), whole <= float(limits.min), np.isnan(whole)
    result = np.where(above | below | nan, 0.0, whole).astype(to)
    result = np.where(above, limits.max, np.where(below, limits.min, result)).astype(to)
    top = to(limits.min if limits.min else 1 << (limits.bits - 1))
    return np.where(nan, top if wide else to(0), result)
