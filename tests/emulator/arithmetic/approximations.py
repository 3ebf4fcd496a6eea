"""Approximate functions of float32: PTX ISA, "ex2", "lg2", "rcp", "rsqrt", "div", with the largest errors stated there.

What a GPU returns within those bounds is known to NVIDIA alone. Here: the exact value, rounded; or, where WORST is set, a value
as wrong as PTX allows, up or down by a hash of the argument.
"""

from typing import Any

import numpy as np

Array = Any  # an array with one element for each thread, or a numpy scalar that all of them share

WORST = False


def _approximated(x: Array, exact: Array, bound: float) -> Array:
    """`exact`, a float64, as float32; off by the relative `bound` if WORST is set, unless it is a float32 itself."""
    rounded = exact.astype(np.float32)
    if not WORST:
        return rounded
    error = bound - 2.0**-24  # what the last rounding may add
    up = np.ascontiguousarray(x, np.float32).view(np.uint32).reshape(np.shape(x)) * np.uint32(2654435761) >> np.uint32(31)
    return np.where(rounded == exact, rounded, exact * (1 + np.where(up, error, -error))).astype(np.float32)


def _wide(x: Array) -> Array:
    return np.asarray(x).astype(np.float64)


def ex2(x: Array) -> Array:
    """2 to the power of x."""
    return _approximated(x, np.exp2(_wide(x)), 2.0**-22)


def lg2(x: Array) -> Array:
    """The logarithm to base 2."""
    return _approximated(x, np.log2(_wide(x)), 2.0**-22)


def rcp(x: Array) -> Array:
    """1 / x."""
    return _approximated(x, 1 / _wide(x), 2.0**-23)


def rsqrt(x: Array) -> Array:
    """1 / sqrt(x)."""
    return _approximated(x, 1 / np.sqrt(_wide(x)), 2.0**-22.4)


def div_full(x: Array, y: Array) -> Array:
    """x / y as ptxas makes it of div.full: x times the reciprocal of y, both rounded, scaled where y is huge."""
    scale = np.where(np.abs(y) > np.float32(2.0**126), np.float32(0.25), np.float32(1))
    return (np.asarray(x) * scale * rcp(np.asarray(y) * scale)).astype(np.float32)


def tanh(x: Array) -> Array:
    return np.tanh(_wide(x)).astype(np.float32)


def sin(x: Array) -> Array:
    return np.sin(_wide(x)).astype(np.float32)


def cos(x: Array) -> Array:
    return np.cos(_wide(x)).astype(np.float32)
