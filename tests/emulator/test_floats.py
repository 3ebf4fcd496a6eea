"""Float32 and float64 against exact fractions: one rounding, NaN, signed zeros, subnormals."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from tests.emulator.arithmetic import approximations
from tests.emulator.exact import FLOAT32, FLOAT64, exactly, same
from tests.emulator.one_instruction import execute

KINDS = {"f32": (np.float32, "b32", FLOAT32), "f64": (np.float64, "b64", FLOAT64)}
SPECIAL = [0.0, -0.0, 1.0, -1.5, 3.0, math.inf, -math.inf, math.nan]


def numbers(kind, count=60):
    """Special values, the ends of the range, and random numbers near and far."""
    dtype, _, form = KINDS[kind]
    tiny, smallest = 2.0 ** (form.lowest + form.precision - 1), 2.0**form.lowest
    ends = [smallest, -3 * smallest, tiny - smallest, tiny, -tiny, form.largest, -form.largest, 1 + 2.0 ** (1 - form.precision)]
    random = np.random.default_rng(0)
    near = random.standard_normal(count) * 2.0 ** random.integers(-3, 4, count)
    far = random.standard_normal(count) * 2.0 ** random.integers(form.lowest // 2, -form.lowest // 2, count).astype(float)
    return np.array([*SPECIAL, *ends, *near, *far]).astype(dtype)


def pairs(kind, count=20):
    values = numbers(kind, count)
    rows = list(itertools.product(values, values))
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])


def run(instruction, *operands):
    """The result of an instruction on floats, as floats of the same type."""
    registers = dict(zip("abc", operands))
    dtype = operands[0].dtype
    got = execute(f"{instruction} %d, {', '.join(f'%{name}' for name in registers)};", d=f"b{8 * dtype.itemsize}", **registers)
    return got.view(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "function"),
    [("add", lambda a, b: a + b), ("sub", lambda a, b: a - b), ("mul", lambda a, b: a * b), ("div.rn", lambda a, b: a / b)],
)
def test_arithmetic_rounds_once(name, function, kind):
    a, b = pairs(kind)
    assert same(run(f"{name}.{kind}", a, b), exactly(function, KINDS[kind][2], a, b))


@pytest.mark.parametrize("kind", KINDS)
def test_fused_multiply_add_rounds_once(kind):
    values = numbers(kind, 30)
    a, b, c = (np.random.default_rng(seed).choice(values, 2000) for seed in range(3))
    assert same(run(f"fma.rn.{kind}", a, b, c), exactly(lambda a, b, c: a * b + c, KINDS[kind][2], a, b, c))


def test_ties_of_fused_multiply_add_are_seen():
    """(1 + 2^-12)^2 = 1 + 2^-11 + 2^-24 is a tie of float32; 2^-80, of which float64 sees nothing beside it, decides."""
    a = np.full(3, 1 + 2.0**-12, np.float32)
    c = np.float32([2.0**-80, 0, -(2.0**-80)])
    even = 1 + 2.0**-11
    assert run("fma.rn.f32", a, a, c).tolist() == [even + 2.0**-23, even, even]
    b = np.full(3, 1 + 3 * 2.0**-12, np.float32)  # a * b = 1 + 2^-10 + 3 * 2^-24: here the even neighbour lies above
    below = 1 + 2.0**-10 + 2.0**-23
    assert run("fma.rn.f32", a, b, c).tolist() == [below + 2.0**-23, below + 2.0**-23, below]
    a, b = np.float32([2.0**-75 * (1 + 2.0**-23)]), np.float32([2.0**-75 * (1 - 2.0**-23)])
    c = np.float32([2.0**-127 + 2.0**-149])  # subnormal and odd; the product is just less than half of its last bit
    assert run("fma.rn.f32", a, b, c).tolist() == c.tolist()


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div.rn", "fma.rn", "neg", "abs", "min", "max"])
def test_flush_to_zero(name):
    """Subnormals are zeros of their sign, in operands and in the result."""

    def flushed(x):
        return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)

    a, b = pairs("f32", 4)
    operands = {"neg": (a,), "abs": (a,), "fma.rn": (a, b, a)}.get(name, (a, b))
    got = run(f"{name}.ftz.f32", *operands)
    assert same(got, flushed(run(f"{name}.f32", *map(flushed, operands))))
    assert not same(got, run(f"{name}.f32", *operands))


@pytest.mark.parametrize("kind", KINDS)
def test_signs(kind):
    a, b = pairs(kind, 2)
    assert same(run(f"neg.{kind}", a), -a)
    assert same(run(f"abs.{kind}", a), np.abs(a))
    assert same(run(f"copysign.{kind}", a, b), np.copysign(b, a))


def extreme(name, a, b, nan):
    """The definition of `min` and `max`."""
    if math.isnan(a) or math.isnan(b):
        return math.nan if nan or (math.isnan(a) and math.isnan(b)) else b if math.isnan(a) else a
    return (min if name == "min" else max)(a, b, key=lambda x: (x, math.copysign(1, x)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nan", ["", ".NaN"])
@pytest.mark.parametrize("name", ["min", "max"])
def test_minimum_and_maximum(name, nan, kind):
    a, b = pairs(kind, 4)
    want = [extreme(name, x, y, nan) for x, y in zip(a.tolist(), b.tolist())]
    assert same(run(f"{name}{nan}.{kind}", a, b), want)


@pytest.mark.parametrize("nan", ["", ".NaN"])
@pytest.mark.parametrize("name", ["min", "max"])
def test_minimum_and_maximum_of_magnitudes(name, nan):
    a, b = pairs("f32", 4)
    got = run(f"{name}{nan}.xorsign.abs.f32", a, b)
    want = [
        math.copysign(extreme(name, abs(x), abs(y), nan), math.copysign(1, x) * math.copysign(1, y))
        for x, y in zip(a.tolist(), b.tolist())
    ]
    assert same(got, want)
    assert set(got.view(np.uint32)[np.isnan(got)].tolist()) == {0x7FFFFFFF}


ORDERED = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


def compare(operator, a, b):
    """The definition of `setp` on floats."""
    nan = math.isnan(a) or math.isnan(b)
    if operator in ("nan", "num"):
        return nan == (operator == "nan")
    if operator in ORDERED:
        return not nan and ORDERED[operator](a, b)
    return nan or ORDERED[operator[:-1]](a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operator", [*ORDERED, *(f"{name}u" for name in ORDERED), "nan", "num"])
def test_comparisons(operator, kind):
    a, b = pairs(kind, 2)
    want = [compare(operator, x, y) for x, y in zip(a.tolist(), b.tolist())]
    p, q = execute(f"setp.{operator}.{kind} %p|%q, %a, %b;", a=a, b=b, p="pred", q="pred")
    assert p.tolist() == want
    assert q.tolist() == [not each for each in want]


def test_comparisons_flush_subnormals_where_asked():
    a = np.float32([1e-40, -1e-40, 1e-30])
    for operator in ("eq", "equ"):
        assert execute(f"setp.{operator}.f32 %p, %a, 0f00000000;", a=a, p="pred").tolist() == [False, False, False]
        assert execute(f"setp.{operator}.ftz.f32 %p, %a, 0f00000000;", a=a, p="pred").tolist() == [True, True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_exact_roots_and_reciprocals(kind):
    values = numbers(kind)
    dtype, _, form = KINDS[kind]
    assert same(run(f"rcp.rn.{kind}", values), exactly(lambda x: 1 / x, form, values))
    roots = run(f"sqrt.rn.{kind}", values)
    for x, root in zip(values.tolist(), roots.tolist()):
        if x > 0 and math.isfinite(x):  # the nearest: the middles on its two sides are on the two sides of the exact root
            below, above = (float(np.nextafter(dtype(root), dtype(side))) for side in (0, math.inf))
            below, above = ((Fraction(each) + Fraction(root)) / 2 for each in (below, above))
            assert below**2 <= Fraction(x) <= above**2
        else:
            assert same(root, x if x == 0 or x == math.inf else math.nan)


@pytest.mark.parametrize(
    ("name", "function", "bound"),
    [
        ("ex2", np.exp2, 2.0**-22),
        ("lg2", np.log2, 2.0**-22),
        ("rcp", np.reciprocal, 2.0**-23),
        ("rsqrt", lambda x: 1 / np.sqrt(x), 2.0**-22.4),
    ],
)
def test_approximations_keep_their_bounds(name, function, bound, monkeypatch):
    """The exact value rounded; with WORST set, almost as wrong as PTX allows and no more."""
    x = np.random.default_rng(0).uniform(1.01, 30, 500).astype(np.float32)
    exact = function(x.astype(np.float64))
    for worst, least, most in ((False, 0, 2.0**-24), (True, 0.8 * bound, bound)):
        monkeypatch.setattr(approximations, "WORST", worst)
        assert least <= np.max(np.abs(run(f"{name}.approx.f32", x) / exact - 1)) <= most


@pytest.mark.parametrize("name", ["ex2", "lg2", "rcp", "rsqrt", "sqrt", "tanh", "sin", "cos"])
def test_approximations_of_special_values(name):
    x = np.float32([0, -0.0, math.inf, -math.inf, math.nan, 1e-40])
    functions = {"ex2": np.exp2, "lg2": np.log2, "rcp": np.reciprocal, "rsqrt": lambda x: 1 / np.sqrt(x)}
    function = functions.get(name) or getattr(np, name)
    with np.errstate(all="ignore"):
        assert same(run(f"{name}.approx.f32", x), function(x.astype(np.float64)).astype(np.float32))
        flushed = np.float32([0, -0.0, math.inf, -math.inf, math.nan, 0])
        assert same(run(f"{name}.approx.ftz.f32", x), function(flushed.astype(np.float64)).astype(np.float32))


def test_approximate_quotients():
    """Within two units in the last place, also where the reciprocal of the divisor is subnormal."""
    a = np.random.default_rng(0).uniform(1, 30, 500).astype(np.float32)
    for name in ("div.full", "div.approx"):
        assert np.max(np.abs(run(f"{name}.f32", a, a[::-1].copy()) / (a.astype(np.float64) / a[::-1]) - 1)) < 2.0**-22
    a, b = np.float32([2.0**127, 3e38]), np.float32([2.0**127, 3e38])
    assert run("div.full.f32", a, b).tolist() == [1.0, 1.0]
