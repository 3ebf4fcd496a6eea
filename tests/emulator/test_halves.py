"""Operations on 16-bit floats, alone and in pairs, against exact fractions."""

import itertools
import math

import numpy as np
import pytest

from tests.emulator.arithmetic import half_to_float
from tests.emulator.exact import BF16, F16, exactly, same
from tests.emulator.one_instruction import execute

FORMATS = {"bf16": BF16, "f16": F16}


@pytest.fixture(autouse=True)
def _no_warnings():
    """As when kernels run: NaN and overflow are what is looked at."""
    with np.errstate(all="ignore"):
        yield


def patterns(kind, more=24):
    """Zeros, subnormals, normal numbers, the largest, infinities and NaN of either sign, and some at random."""
    one = {"bf16": 0x3F80, "f16": 0x3C00}[kind]
    smallest, infinity = {"bf16": (0x80, 0x7F80), "f16": (0x400, 0x7C00)}[kind]
    known = [0, 1, 2, smallest - 1, smallest, one - 1, one, one + 1, infinity - 1, infinity, infinity + 1, 0x7FFF]
    random = np.random.default_rng(0).integers(0, 1 << 15, more).tolist()
    return np.array([sign | pattern for pattern in known + random for sign in (0, 0x8000)], np.uint16)


def run(instruction, kind, *operands):
    registers = dict(zip("abc", operands))
    names = ", ".join(f"%{name}" for name in registers)
    got = execute(f"{instruction}.{kind} %d, {names};", d="b16", **registers)
    high = execute(
        f"{instruction}.{kind}x2 %d, {names};", d="b32", **{k: v.astype(np.uint32) << 16 | 0x3C3C for k, v in registers.items()}
    )
    low = execute(
        f"{instruction}.{kind}x2 %d, {names};", d="b32", **{k: np.uint32(0x3C3C0000) | v for k, v in registers.items()}
    )
    assert np.array_equal((high >> 16).astype(np.uint16), got)  # a pair is two of them
    assert np.array_equal(low.astype(np.uint16), got)
    return half_to_float(kind, got)


def values(kind, *operands):
    return [half_to_float(kind, operand) for operand in operands]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("name", "function"), [("add", lambda a, b: a + b), ("sub", lambda a, b: a - b), ("mul", lambda a, b: a * b)]
)
def test_arithmetic_rounds_once(name, function, kind):
    a, b = np.array(list(itertools.product(patterns(kind), repeat=2))).T.copy()
    want = exactly(function, FORMATS[kind], *values(kind, a, b))
    assert same(run(name, kind, a, b), want)
    assert same(run(f"{name}.rn", kind, a, b), want)


@pytest.mark.parametrize("kind", FORMATS)
def test_fused_multiply_add_rounds_once(kind):
    a, b, c = np.array(list(itertools.product(patterns(kind, 2), repeat=3))).T.copy()
    assert same(run("fma.rn", kind, a, b, c), exactly(lambda a, b, c: a * b + c, FORMATS[kind], *values(kind, a, b, c)))


def test_ties_of_fused_multiply_add_are_seen():
    """(1 + 2^-4)^2 = 1 + 2^-3 + 2^-8 is a tie of bfloat16; 2^-100, of which float64 sees nothing beside it, decides."""
    a = np.array([0x3F88] * 3, np.uint16)
    c = np.array([0x0D80, 0x0000, 0x8D80], np.uint16)
    assert values("bf16", a[:1], c)[0] == 1 + 2**-4
    assert execute("fma.rn.bf16 %d, %a, %a, %c;", d="b16", a=a, c=c).tolist() == [0x3F91, 0x3F90, 0x3F90]


def extreme(name, a, b, nan):
    """The definition of `min` and `max`."""
    if math.isnan(a) or math.isnan(b):
        return math.nan if nan or (math.isnan(a) and math.isnan(b)) else b if math.isnan(a) else a
    return (min if name == "min" else max)(a, b, key=lambda x: (x, math.copysign(1, x)))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("nan", ["", ".NaN"])
@pytest.mark.parametrize("name", ["min", "max"])
def test_minimum_and_maximum(name, nan, kind):
    a, b = np.array(list(itertools.product(patterns(kind, 4), repeat=2))).T.copy()
    want = [extreme(name, x, y, nan) for x, y in zip(*(column.tolist() for column in values(kind, a, b)))]
    assert same(run(f"{name}{nan}", kind, a, b), want)


@pytest.mark.parametrize("kind", FORMATS)
def test_signs(kind):
    a = patterns(kind)
    assert execute(f"neg.{kind} %d, %a;", d="b16", a=a).tolist() == [x ^ 0x8000 for x in a.tolist()]
    assert execute(f"abs.{kind} %d, %a;", d="b16", a=a).tolist() == [x & 0x7FFF for x in a.tolist()]
    pair = a.astype(np.uint32) << 16 | a[::-1]
    assert execute(f"neg.{kind}x2 %d, %a;", d="b32", a=pair).tolist() == [x ^ 0x80008000 for x in pair.tolist()]
    assert execute(f"abs.{kind}x2 %d, %a;", d="b32", a=pair).tolist() == [x & 0x7FFF7FFF for x in pair.tolist()]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("operator", ["eq", "ne", "lt", "leu", "neu", "nan"])
def test_comparisons(operator, kind):
    a, b = np.array(list(itertools.product(patterns(kind, 2), repeat=2))).T.copy()
    x, y = values(kind, a, b)
    nan = np.isnan(x) | np.isnan(y)
    want = {"eq": x == y, "ne": (x != y) & ~nan, "lt": x < y, "leu": (x <= y) | nan, "neu": x != y, "nan": nan}[operator]
    assert np.array_equal(execute(f"setp.{operator}.{kind} %p, %a, %b;", a=a, b=b, p="pred"), want)
    pairs = (each.astype(np.uint32) << 16 | each[::-1] for each in (a, b))
    p, q = execute(f"setp.{operator}.{kind}x2 %p|%q, %a, %b;", **dict(zip("ab", pairs)), p="pred", q="pred")
    assert np.array_equal(p, want[::-1])
    assert np.array_equal(q, want)
