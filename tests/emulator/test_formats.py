"""Conversions between formats, against exact fractions and against torch's own types."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.emulator.arithmetic import E4M3 as E4M3_VALUES
from tests.emulator.arithmetic import decode, float_to_e4m3, float_to_half, float_to_tf32, half_to_float
from tests.emulator.exact import BF16, E4M3, F16, FLOAT32, TF32, exactly, same
from tests.emulator.one_instruction import execute

HALVES = {"bf16": (BF16, torch.bfloat16), "f16": (F16, torch.float16)}


@pytest.fixture(autouse=True)
def _no_warnings():
    """As when kernels run: NaN and overflow are what is looked at."""
    with np.errstate(all="ignore"):
        yield


def floats(form):
    """Float32 on, next to and between the numbers of a format, over all of its range and past its ends."""
    random = np.random.default_rng(0)
    scale = 2.0 ** random.integers(max(form.lowest - 3, -149), min(int(math.log2(form.largest)) + 3, 127), 3000).astype(float)
    on_grid = np.round(random.uniform(-1, 1, 3000) * 2 ** (form.precision + 1)) / 2 ** (form.precision + 1) * scale
    values = on_grid.astype(np.float32)
    beside = [np.nextafter(values, np.float32(side)) for side in (-np.inf, np.inf)]
    ends = np.float32([0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 3.4e38, -3.4e38, 1e-45, -1e-45, form.largest])
    return np.concatenate([values, *beside, ends])


@pytest.mark.parametrize("kind", HALVES)
def test_halves_from_float32(kind):
    form, dtype = HALVES[kind]
    values = floats(form)
    got = execute(f"cvt.rn.{kind}.f32 %d, %a;", d="b16", a=values)
    assert same(half_to_float(kind, got), exactly(lambda x: x, form, values))
    ours, theirs = torch.from_numpy(got.view(np.int16)).view(dtype), torch.from_numpy(values).to(dtype)
    assert torch.equal(ours[ours == ours], theirs[theirs == theirs])
    assert set(got[np.isnan(values)].tolist()) == {0x7FFF}


@pytest.mark.parametrize("kind", HALVES)
def test_halves_to_float32(kind):
    every = np.arange(1 << 16).astype(np.uint16)
    got = execute(f"cvt.f32.{kind} %d, %a;", d="b32", a=every).view(np.float32)
    assert same(got, torch.from_numpy(every.view(np.int16)).view(HALVES[kind][1]).float().numpy())
    back = execute(f"cvt.rn.{kind}.f32 %d, %a;", d="b16", a=got)
    assert np.array_equal(back, np.where(np.isnan(got), np.uint16(0x7FFF), every))


@pytest.mark.parametrize("kind", HALVES)
def test_the_first_operand_of_a_pair_is_its_upper_half(kind):
    a, b = np.float32([1.0, -2.0]), np.float32([3.0, math.nan])
    got = execute(f"cvt.rn.{kind}x2.f32 %d, %a, %b;", d="b32", a=a, b=b)
    assert same(half_to_float(kind, (got >> np.uint32(16)).astype(np.uint16)), a)
    assert same(half_to_float(kind, got.astype(np.uint16)), b)


@pytest.mark.parametrize("rounding", ["rn", "rna"])
def test_tf32(rounding):
    values = floats(TF32)
    got = execute(f"cvt.{rounding}.tf32.f32 %d, %a;", d="b32", a=values)
    want = exactly(lambda x: x, TF32, values)
    if rounding == "rna":  # ties away from zero: half a unit further out, then cut
        finite = np.isfinite(values)
        bits = values[finite].view(np.uint32).astype(np.uint64) + 0x1000 & 0xFFFFE000
        want = np.array(want)
        want[finite] = bits.astype(np.uint32).view(np.float32)
    assert same(got.view(np.float32), want)
    assert set(got[np.isnan(values)].tolist()) == {0x7FFFFFFF}


def test_ties_of_tf32():
    tie = np.float32([1 + 2.0**-11, -1 - 2.0**-11, 1 + 3 * 2.0**-11])
    assert float_to_tf32(tie, "rn").tolist() == [1.0, -1.0, 1 + 2.0**-9]
    assert float_to_tf32(tie, "rna").tolist() == [1 + 2.0**-10, -1 - 2.0**-10, 1 + 2.0**-9]


def test_all_values_of_e4m3():
    theirs = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    assert same(E4M3_VALUES, theirs)
    assert E4M3_VALUES[0x7E] == 448
    codes = np.arange(256).astype(np.uint8)
    assert np.array_equal(float_to_e4m3(E4M3_VALUES), np.where(np.isnan(theirs), np.uint8(0x7F), codes))


def test_e4m3_from_float32():
    """To nearest even, the largest for what is larger."""
    values = floats(E4M3)
    want = np.array(exactly(lambda x: x, E4M3, values))
    want = np.where(np.isinf(want), np.copysign(448, want), want)
    assert same(E4M3_VALUES[float_to_e4m3(values)], want)
    small = values[np.abs(values) <= 448]
    theirs = torch.from_numpy(small).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(float_to_e4m3(small), theirs)


def test_pairs_of_e4m3():
    a, b = np.float32([1.0, 1000.0]), np.float32([-0.5, math.nan])
    packed = execute("cvt.rn.satfinite.e4m3x2.f32 %d, %a, %b;", d="b16", a=a, b=b)
    assert packed.tolist() == [0x38B0, 0x7E7F]
    halves = execute("cvt.rn.f16x2.e4m3x2 %d, %a;", d="b32", a=packed)
    assert same(half_to_float("f16", (halves >> np.uint32(16)).astype(np.uint16)), [1.0, 448.0])
    assert (halves & 0xFFFF).tolist() == [0xB800, 0x7FFF]


SOURCES = {"f32": (np.float32, "u4"), "f64": (np.float64, "u8")}
ROUNDINGS = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


@pytest.mark.parametrize("to", [f"{sign}{bits}" for bits in (16, 32, 64) for sign in "us"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("of", SOURCES)
def test_floats_to_integers_saturate(of, rounding, to):
    bits = int(to[1:])
    low, high = (0, (1 << bits) - 1) if to[0] == "u" else (-(1 << bits - 1), (1 << bits - 1) - 1)
    small = np.array([*np.arange(-4, 4.25, 0.25), 1e-40, -1e-40])
    powers = [2.0**power * near for power in (15, 16, 31, 32, 63, 64) for near in (1 - 2.0**-24, 1, 1 + 2.0**-23)]
    values = np.array([*small, *powers, *(-x for x in powers), math.inf, -math.inf, math.nan]).astype(SOURCES[of][0])
    got = execute(f"cvt.{rounding}.{to}.{of} %d, %a;", d=f"b{bits}", a=values)
    for x, result in zip(values.tolist(), got.tolist()):
        if math.isnan(x):
            want = 1 << bits - 1 if of == "f64" or bits == 64 else 0
        elif math.isinf(x):
            want = high if x > 0 else low
        else:
            want = min(max(ROUNDINGS[rounding](Fraction(x)), low), high)
        assert result == want % (1 << bits)


def test_subnormals_are_no_reason_to_round_up_if_flushed():
    a = np.float32([1e-40, -1e-40])
    assert execute("cvt.rpi.s32.f32 %d, %a;", d="b32", a=a).tolist() == [1, 0]
    assert execute("cvt.rpi.ftz.s32.f32 %d, %a;", d="b32", a=a).tolist() == [0, 0]


@pytest.mark.parametrize("of", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_integers_to_floats_round_to_even(of):
    bits = int(of[1:])
    random = np.random.default_rng(0)
    patterns = np.concatenate([random.integers(0, 1 << 63, 500), (1 << 63) - 1 - np.arange(300), np.arange(300)]).astype(
        np.uint64
    )
    patterns = np.concatenate([patterns, ~patterns]).astype(f"u{bits // 8}")
    numbers = patterns.view(f"{'i' if of[0] == 's' else 'u'}{bits // 8}").tolist()
    for to, form, dtype in (("f32", FLOAT32, np.float32), ("f64", None, np.float64)):
        got = execute(f"cvt.rn.{to}.{of} %d, %a;", d=f"b{8 * np.dtype(dtype).itemsize}", a=patterns).view(dtype)
        want = [float(x) for x in numbers] if form is None else [_nearest_float32(x) for x in numbers]
        assert same(got, want)


def _nearest_float32(number: int) -> float:
    if number.bit_length() <= 24:
        return float(number)
    unit = 1 << (abs(number).bit_length() - 24)
    return float(round(Fraction(number, unit)) * unit)


def test_between_float32_and_float64():
    wide = np.array([1 + 2.0**-24, 1 + 3 * 2.0**-24, 1e-46, 1e300, -1e-310, math.nan, 1 / 3])
    narrow = execute("cvt.rn.f32.f64 %d, %a;", d="b32", a=wide).view(np.float32)
    assert same(narrow, exactly(lambda x: x, FLOAT32, wide))
    assert same(execute("cvt.f64.f32 %d, %a;", d="b64", a=narrow).view(np.float64), narrow)
    flushed = execute("cvt.rn.ftz.f32.f64 %d, %a;", d="b32", a=np.array([1e-40, -1e-40, 1e-30])).view(np.float32)
    assert same(flushed, [0.0, -0.0, np.float32(1e-30)])


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_floats_without_their_fraction(rounding):
    values = np.float32([*np.arange(-3, 3.25, 0.25), 1e10, math.inf, math.nan])
    got = execute(f"cvt.{rounding}.f32.f32 %d, %a;", d="b32", a=values).view(np.float32)
    function = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rounding]
    assert same(got, function(values))


def test_integers_change_their_width():
    a = np.array([0, 1, 0x7F, 0x80, 0xFF, 0x17F, 0xFF80], np.uint16)
    assert execute("cvt.s16.s8 %d, %a;", d="b16", a=a).tolist() == [0, 1, 0x7F, 0xFF80, 0xFFFF, 0x7F, 0xFF80]
    assert execute("cvt.u32.u8 %d, %a;", d="b32", a=a).tolist() == [0, 1, 0x7F, 0x80, 0xFF, 0x7F, 0x80]
    assert execute("cvt.s32.s16 %d, %a;", d="b32", a=a).tolist() == [0, 1, 0x7F, 0x80, 0xFF, 0x17F, 0xFFFFFF80]
    assert execute("cvt.u64.s16 %d, %a;", d="b64", a=a)[-1] == (1 << 64) - 0x80
    assert execute("cvt.u16.u32 %d, %a;", d="b16", a=np.array([0x12345678], np.uint32)).tolist() == [0x5678]
    assert execute("cvt.u32.u64 %d, %a;", d="b32", a=np.array([1 << 40 | 5], np.uint64)).tolist() == [5]


def test_operands_of_matrix_units():
    """The lowest bits of a word are its first operand; tf32 is cut, not rounded."""
    assert decode("bf16", np.array([0x40003F80], np.uint32)).tolist() == [[1.0, 2.0]]
    assert decode("f16", np.array([0x40003C00], np.uint32)).tolist() == [[1.0, 2.0]]
    assert decode("e4m3", np.array([0x7EB83840], np.uint32)).tolist() == [[2.0, 1.0, -1.0, 448.0]]
    cut = np.float32([1 + 2.0**-10 + 2.0**-11 + 2.0**-20])
    assert decode("tf32", cut.view(np.uint32)).tolist() == [[1 + 2.0**-10]]
    assert float_to_half("f16", np.float32(65520)) == 0x7C00
