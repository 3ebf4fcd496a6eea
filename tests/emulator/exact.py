"""The oracle of the tests of floats: arithmetic by fractions, rounded once."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np


class Format(NamedTuple):
    """Bits of precision, the exponent of the smallest number, the largest number."""

    precision: int
    lowest: int
    largest: float


FLOAT64 = Format(53, -1074, float(np.finfo(np.float64).max))
FLOAT32 = Format(24, -149, float(np.finfo(np.float32).max))
TF32 = Format(11, -136, (2 - 2**-10) * 2.0**127)
BF16 = Format(8, -133, (2 - 2**-7) * 2.0**127)
F16 = Format(11, -24, 65504.0)
E4M3 = Format(4, -9, 448.0)


def nearest(value: Fraction, form: Format) -> float:
    """The number of a format next to a value that is not zero; of two the even one; infinity past the largest."""
    top, bottom = abs(value.numerator), value.denominator
    exponent = top.bit_length() - bottom.bit_length()
    exponent -= Fraction(top, bottom) < Fraction(2) ** exponent
    quantum = Fraction(2) ** max(exponent - form.precision + 1, form.lowest)
    rounded = round(abs(value) / quantum) * quantum  # Python rounds a fraction to even
    return math.copysign(math.inf if rounded > Fraction(form.largest) else float(rounded), 1 if value > 0 else -1)


def exactly(function: Callable[..., Any], form: Format, *operands: Any) -> list[float]:
    """A function of each row of operands as fractions, rounded. What is not finite, and the sign of zero, is as in float64."""
    results = []
    for row in zip(*(np.asarray(operand, np.float64).tolist() for operand in operands)):
        with np.errstate(all="ignore"):
            rough = float(function(*map(np.float64, row)))
        try:
            exact = function(*map(Fraction, row))
        except (OverflowError, ValueError, ZeroDivisionError):  # an operand is not finite, or a divisor is zero
            results.append(rough)
        else:
            results.append(nearest(exact, form) if exact else rough if rough == 0 else 0.0)
    return results


def same(got: Any, want: Any) -> bool:
    """Whether two arrays of floats hold the same numbers, zeros by their sign; all NaN are one."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return bool(np.all((np.isnan(got) & np.isnan(want)) | ((got == want) & (np.signbit(got) == np.signbit(want)))))
