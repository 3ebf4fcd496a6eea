"""Integers: PTX ISA, "Integer Arithmetic Instructions" and "Logic and Shift Instructions"."""

from typing import Any

import numpy as np

Array = Any  # an array with one element for each thread, or a numpy scalar that all of them share

BYTE = np.uint32(0xFF)  # positions and lengths of bit fields are read from the lowest byte of a register


def merge(old: Array, places: Array, values: Array) -> Array:
    """A copy of `old` with `values` at `places`."""
    new = old.copy()
    new[places] = values
    return new


def mulhi64(a: Array, b: Array) -> Array:
    """The upper 64 of the 128 bits of a product; signed if the operands are."""
    a = np.asarray(a)
    product = a.astype(object) * np.asarray(b).astype(object)
    return np.asarray(product // (1 << 64)).astype(a.dtype)


def idiv(a: Array, b: Array) -> Array:
    """The quotient towards zero. By zero: all bits set, as the hardware does; PTX leaves it open."""
    a, b = np.asarray(a), np.asarray(b)
    by_zero = b == 0
    b = np.where(by_zero, b.dtype.type(1), b)
    quotient = a // b
    if a.dtype.kind == "i":  # numpy rounds down
        quotient += (a - quotient * b != 0) & ((a < 0) != (b < 0))
    return np.where(by_zero, ~a.dtype.type(0), quotient)


def irem(a: Array, b: Array) -> Array:
    """What the quotient towards zero leaves: of the sign of `a`."""
    return np.asarray(a) - idiv(a, b) * np.asarray(b)


def shl(x: Array, n: Array) -> Array:
    """`x << n`: zero where n is the width of x or more."""
    bits = 8 * x.dtype.itemsize
    shifted = np.left_shift(x, np.minimum(n, np.uint32(bits - 1)).astype(x.dtype))
    return np.where(n >= bits, x.dtype.type(0), shifted)


def shr(x: Array, n: Array) -> Array:
    """`x >> n`: where n is the width of x or more, zero, or the sign in all bits if x is signed."""
    bits = 8 * x.dtype.itemsize
    shifted = np.right_shift(x, np.minimum(n, np.uint32(bits - 1)).astype(x.dtype))
    return np.where(n >= bits, x.dtype.type(0), shifted) if x.dtype.kind == "u" else shifted


def _both(low: Array, high: Array) -> Array:
    """Two 32-bit registers as one of 64 bits."""
    return (np.asarray(high).astype(np.uint64) << np.uint64(32)) | np.asarray(low).astype(np.uint64)


def shf(direction: str, mode: str, low: Array, high: Array, n: Array) -> Array:
    """Funnel shift: the upper half of `high:low << n`, or the lower half of `high:low >> n`."""
    n = np.asarray(n & np.uint32(31) if mode == "wrap" else np.minimum(n, np.uint32(32))).astype(np.uint64)
    both = _both(low, high)
    return (((both << n) >> np.uint64(32)) if direction == "l" else (both >> n)).astype(np.uint32)


def bfe(a: Array, position: Array, length: Array) -> Array:
    """The `length` bits of `a` from `position` on, as a number with or without a sign like `a` itself."""
    wide = a.astype(f"{a.dtype.kind}8")
    length = np.asarray(length & BYTE)
    shifted = wide >> np.asarray(position & BYTE).astype(wide.dtype)  # numpy, too, shifts in zeros or the sign past the width
    spare = np.uint32(64) - np.clip(length, np.uint32(1), np.uint32(64))
    spare = spare.astype(wide.dtype)
    return np.where(length == 0, a.dtype.type(0), ((shifted << spare) >> spare).astype(a.dtype))


def bfi(a: Array, b: Array, position: Array, length: Array) -> Array:
    """`b` with the lowest `length` bits of `a` at `position`."""
    a, b = np.broadcast_arrays(a, b)
    position, length = position & BYTE, length & BYTE
    one = np.ones_like(b)
    mask = shl(shl(one, length) - one, position)
    return (b & ~mask) | (shl(a, position) & mask)


def prmt(a: Array, b: Array, selector: Array) -> Array:
    """Four bytes out of the eight of `b:a`, each named by a nibble of the selector, whose top bit asks for the byte's sign."""
    both = _both(a, b)
    result = np.zeros(np.broadcast(both, selector).shape, np.uint32)
    for place in range(4):
        nibble = np.asarray(selector) >> np.uint32(4 * place)
        start = (nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8)
        byte = (both >> start).astype(np.uint32) & np.uint32(0xFF)
        sign = np.where(byte & np.uint32(0x80), np.uint32(0xFF), np.uint32(0))
        result |= np.where(nibble & np.uint32(8), sign, byte) << np.uint32(8 * place)
    return result


def lop3(a: Array, b: Array, c: Array, table: int) -> Array:
    """Any function of three bits: bit `4a + 2b + c` of `table`."""
    result = np.zeros(np.broadcast(a, b, c).shape, np.uint32)
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result


def clz(x: Array) -> Array:
    """Zeros above the highest set bit."""
    bits = 8 * x.dtype.itemsize
    zeros = np.full(np.shape(x), bits, np.uint32)
    for place in range(bits):
        zeros = np.where((x >> x.dtype.type(place)) & x.dtype.type(1), np.uint32(bits - 1 - place), zeros)
    return zeros
