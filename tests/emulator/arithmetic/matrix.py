"""Operands of matrix units: PTX ISA, "Matrix multiply-accumulate operation using mma instruction"."""

from typing import Any

import numpy as np

from .formats import E4M3, TF32_BITS, half_to_float

Array = Any  # an array of 32-bit words

# The shapes of mma.sync that are known, and the type of their operands.
MMA_SHAPES = {
    ("m16n8k16", "bf16"),
    ("m16n8k16", "f16"),
    ("m16n8k8", "bf16"),
    ("m16n8k8", "f16"),
    ("m16n8k8", "tf32"),
    ("m16n8k4", "tf32"),
    ("m16n8k32", "e4m3"),
}


def decode(kind: str, words: Array) -> Array:
    """[..., 32-bit words] of packed operands to [..., words, operands in a word] in float64. Tf32 is cut, as the units do."""
    if kind == "tf32":
        return (words & TF32_BITS).view(np.float32).astype(np.float64)[..., None]
    words = np.ascontiguousarray(words)[..., None]
    values = E4M3[words.view(np.uint8)] if kind == "e4m3" else half_to_float(kind, words.view(np.uint16))
    return values.astype(np.float64)
