"""Formats of fewer bits than float32, as bit patterns: bfloat16, float16, tf32 and e4m3.

PTX ISA, "Alternate Floating-Point Data Formats" and "cvt". Rounded to nearest even; a NaN becomes the format's canonical one.
"""

from typing import Any

import numpy as np

Array = Any  # an array with one element for each thread, or a numpy scalar that all of them share

HALF_NAN = np.uint16(0x7FFF)
E4M3_NAN = np.uint8(0x7F)
TF32_BITS = np.uint32(0xFFFFE000)  # sign, eight of exponent, ten of mantissa


def _bits(x: Array) -> Array:
    return np.ascontiguousarray(x, np.float32).view(np.uint32).reshape(np.shape(x))


def half_to_float(kind: str, bits: Array) -> Array:
    """bf16 or f16, as uint16, to float32: exact."""
    if kind == "bf16":
        return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.asarray(bits).view(np.float16).astype(np.float32)


def float_to_half(kind: str, x: Array) -> Array:
    """Float32 to bf16 or f16, as uint16."""
    x = np.asarray(x)
    if kind == "bf16":
        bits = _bits(x)
        even = (bits >> np.uint32(16)) & np.uint32(1)
        half = ((bits + (np.uint32(0x7FFF) + even)) >> np.uint32(16)).astype(np.uint16)
    else:
        half = x.astype(np.float16).view(np.uint16)
    nan = np.isnan(x)
    return np.where(nan, HALF_NAN, half) if nan.any() else half


def pack_halves(kind: str, high: Array, low: Array) -> Array:
    """Two float32 to a pair of bf16 or f16 in 32 bits."""
    upper = float_to_half(kind, high).astype(np.uint32) << np.uint32(16)
    return upper | float_to_half(kind, low).astype(np.uint32)


def split_pair(pair: Array) -> tuple[Array, Array]:
    """The low and the high 16 bits of 32."""
    pair = np.asarray(pair)
    return pair.astype(np.uint16), (pair >> np.uint32(16)).astype(np.uint16)


def float_to_tf32(x: Array, rounding: str) -> Array:
    """Float32 to the float32 of eleven bits of precision next to it: `rn` to nearest even, `rna` ties away from zero."""
    bits = _bits(x)
    half = np.uint32(0x1000)
    if rounding == "rn":
        half = half - np.uint32(1) + ((bits >> np.uint32(13)) & np.uint32(1))
    return np.where(np.isnan(x), np.uint32(0x7FFFFFFF), (bits + half) & TF32_BITS).view(np.float32)


def _e4m3_value(code: int) -> float:
    """One sign bit, four of exponent with a bias of 7, three of mantissa; no infinities, one NaN of either sign."""
    exponent, mantissa = code >> 3 & 15, code & 7
    if code & 0x7F == E4M3_NAN:
        return float("nan")
    magnitude = (8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9
    return -magnitude if code >> 7 else magnitude


E4M3 = np.array([_e4m3_value(code) for code in range(256)], np.float32)
_TIES = (E4M3[1:127].astype(np.float64) + E4M3[:126]) / 2  # between neighbours from 0 to 448


def float_to_e4m3(x: Array) -> Array:
    """Float32 to e4m3, as uint8; 448, the largest, for all that is larger: the modifier .satfinite."""
    x = np.asarray(x)
    magnitude = np.abs(x)
    below = np.searchsorted(_TIES, magnitude, side="left")  # ties less than it: the code, if a tie rounds down
    above = np.searchsorted(_TIES, magnitude, side="right")
    code = np.where(below % 2, above, below).astype(np.uint8)  # where both differ, x is a tie: take the even one
    code |= np.signbit(x).astype(np.uint8) << np.uint8(7)
    return np.where(np.isnan(x), E4M3_NAN, code)


def pack_e4m3(high: Array, low: Array) -> Array:
    """Two float32 to a pair of e4m3 in 16 bits."""
    return (float_to_e4m3(high).astype(np.uint16) << np.uint16(8)) | float_to_e4m3(low).astype(np.uint16)


def unpack_e4m3(pair: Array) -> Array:
    """A pair of e4m3 in 16 bits to a pair of f16 in 32: exact."""
    return pack_halves("f16", E4M3[pair >> np.uint16(8)], E4M3[pair & np.uint16(0xFF)])
