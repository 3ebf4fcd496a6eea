"""Integers and bits against Python's integers, by the definitions of the PTX ISA."""

import itertools
import random

import numpy as np
import pytest

from tests.emulator.one_instruction import execute

TYPES = [f"{sign}{bits}" for bits in (16, 32, 64) for sign in "us"]
WIDE = [f"{sign}{bits}" for bits in (32, 64) for sign in "us"]


def edges(bits, more=6):
    """Bit patterns of interest, and some at random."""
    top = 1 << (bits - 1)
    known = [0, 1, 2, 3, 7, top - 1, top, top + 1, 2 * top - 2, 2 * top - 1]
    return known + [random.Random(bits).getrandbits(bits) for _ in range(more)]


def valued(pattern, kind):
    """The number that a bit pattern is to a type."""
    bits = int(kind[1:])
    pattern %= 1 << bits
    return pattern - (1 << bits) if kind[0] == "s" and pattern >> (bits - 1) else pattern


def columns(rows, *kinds):
    """The columns of a table as registers."""
    for column, kind in zip(zip(*rows), kinds):
        yield np.array(column, f"u{int(kind[1:]) // 8}")


def check(instruction, kind, function, counts=2, result=None):
    """All combinations of the edges in each operand; `function` of numbers gives the result, of whatever size."""
    rows = list(itertools.product(edges(int(kind[1:])), repeat=counts))
    registers = dict(zip("abc", columns(rows, *[kind] * counts)))
    result = result or kind
    got = execute(f"{instruction} %d, {', '.join(f'%{name}' for name in registers)};", d=f"b{result[1:]}", **registers)
    want = [function(*(valued(each, kind) for each in row)) % (1 << int(result[1:])) for row in rows]
    assert got.tolist() == want


def towards_zero(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


@pytest.mark.parametrize("kind", TYPES)
def test_arithmetic_wraps_around(kind):
    check(f"add.{kind}", kind, lambda a, b: a + b)
    check(f"sub.{kind}", kind, lambda a, b: a - b)
    check(f"mul.lo.{kind}", kind, lambda a, b: a * b)
    check(f"min.{kind}", kind, min)
    check(f"max.{kind}", kind, max)
    check(f"neg.{kind}", kind, lambda a: -a, 1)


@pytest.mark.parametrize("kind", TYPES)
def test_high_and_wide_products(kind):
    bits = int(kind[1:])
    check(f"mul.hi.{kind}", kind, lambda a, b: a * b >> bits)
    if bits < 64:
        check(f"mul.wide.{kind}", kind, lambda a, b: a * b, result=f"{kind[0]}{2 * bits}")


@pytest.mark.parametrize("kind", TYPES)
def test_division_is_towards_zero(kind):
    check(f"div.{kind}", kind, lambda a, b: towards_zero(a, b) if b else -1)
    check(f"rem.{kind}", kind, lambda a, b: a - b * towards_zero(a, b) if b else a - b * -1)


@pytest.mark.parametrize("kind", WIDE)
def test_products_with_a_sum(kind):
    check(f"mad.lo.{kind}", kind, lambda a, b, c: a * b + c, 3)
    check(f"mad.hi.{kind}", kind, lambda a, b, c: (a * b >> int(kind[1:])) + c, 3)


def test_wide_products_with_a_sum():
    a, b = np.array(edges(32), np.uint32), np.array(edges(32)[::-1], np.uint32)
    c = np.array(edges(64), np.uint64)
    for kind in ("u32", "s32"):
        got = execute(f"mad.wide.{kind} %d, %a, %b, %c;", d="b64", a=a, b=b, c=c)
        assert got.tolist() == [
            (valued(x, kind) * valued(y, kind) + z) % (1 << 64) for x, y, z in zip(a.tolist(), b.tolist(), c.tolist())
        ]


def test_immediates_take_the_type_of_the_instruction():
    a = np.array(edges(32), np.uint32)
    for kind, factor in (("s32", -1), ("u32", (1 << 32) - 1)):
        got = execute(f"mul.wide.{kind} %d, %a, -1;", d="b64", a=a)
        assert got.tolist() == [valued(x, kind) * factor % (1 << 64) for x in a.tolist()]
        assert execute(f"mul.wide.{kind} %d, -1, %a;", d="b64", a=a).tolist() == got.tolist()


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_magnitude(kind):
    check(f"abs.{kind}", kind, abs, 1)


@pytest.mark.parametrize("kind", ["b16", "b32", "b64"])
def test_logic(kind):
    check(f"and.{kind}", kind, lambda a, b: a & b)
    check(f"or.{kind}", kind, lambda a, b: a | b)
    check(f"xor.{kind}", kind, lambda a, b: a ^ b)
    check(f"not.{kind}", kind, lambda a: ~a, 1)


def test_logic_of_predicates():
    p, q = np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)
    assert execute("and.pred %d, %p, %q;", d="pred", p=p, q=q).tolist() == [False, False, False, True]
    assert execute("xor.pred %d, %p, %q;", d="pred", p=p, q=q).tolist() == [False, True, True, False]
    assert execute("or.pred %d, %p, !%q;", d="pred", p=p, q=q).tolist() == [True, False, True, True]
    assert execute("not.pred %d, %p;", d="pred", p=p).tolist() == [True, True, False, False]


SHIFTS = [0, 1, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 1 << 31, (1 << 32) - 1]


@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("shl", f"b{bits}") for bits in (16, 32, 64)), *(("shr", kind) for kind in [*TYPES, "b16", "b32", "b64"])],
)
def test_shifts_past_the_width(name, kind):
    bits = int(kind[1:])
    rows = list(itertools.product(edges(bits), SHIFTS))
    a, n = columns(rows, kind, "u32")
    got = execute(f"{name}.{kind} %d, %a, %n;", d=f"b{bits}", a=a, n=n)
    if name == "shl":
        assert got.tolist() == [(x << min(k, bits)) % (1 << bits) for x, k in rows]
    else:
        assert got.tolist() == [(valued(x, kind) >> min(k, bits)) % (1 << bits) for x, k in rows]
    for k in SHIFTS[:5]:
        by_number = execute(f"{name}.{kind} %d, %a, {k};", d=f"b{bits}", a=a)
        assert by_number.tolist() == execute(f"{name}.{kind} %d, %a, %n;", d=f"b{bits}", a=a, n=np.uint32(k)).tolist()


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
@pytest.mark.parametrize("direction", ["l", "r"])
def test_funnel_shifts(direction, mode):
    rows = list(itertools.product(edges(32, 2), edges(32, 2), SHIFTS))
    low, high, n = columns(rows, "b32", "b32", "b32")
    got = execute(f"shf.{direction}.{mode}.b32 %d, %low, %high, %n;", d="b32", low=low, high=high, n=n)
    for (x, y, k), result in zip(rows, got.tolist()):
        k = k % 32 if mode == "wrap" else min(k, 32)
        both = y << 32 | x
        assert result == ((both << k >> 32 if direction == "l" else both >> k) & 0xFFFFFFFF)


FIELDS = [0, 1, 4, 16, 31, 32, 40, 63, 64, 100, 255, 256 + 4]


def extracted(a, position, length, kind):
    """The definition of `bfe`, bit by bit."""
    bits = int(kind[1:])
    position, length = position & 255, length & 255
    sign = 0 if kind[0] == "u" or length == 0 else a >> min(position + length - 1, bits - 1) & 1
    chosen = (a >> (position + i) & 1 if i < length and position + i < bits else sign for i in range(bits))
    return sum(bit << i for i, bit in enumerate(chosen))


@pytest.mark.parametrize("kind", WIDE)
def test_extraction_of_bit_fields(kind):
    rows = list(itertools.product(edges(int(kind[1:]), 4), FIELDS, FIELDS))
    a, position, length = columns(rows, kind, "u32", "u32")
    got = execute(f"bfe.{kind} %d, %a, %p, %l;", d=f"b{kind[1:]}", a=a, p=position, l=length)
    assert got.tolist() == [extracted(*row, kind) for row in rows]


def inserted(a, b, position, length, bits):
    """The definition of `bfi`, bit by bit."""
    position, length = position & 255, length & 255
    for i in range(length):
        if position + i < bits:
            b = b & ~(1 << (position + i)) | (a >> i & 1) << (position + i)
    return b


@pytest.mark.parametrize("bits", [32, 64])
def test_insertion_of_bit_fields(bits):
    rows = list(itertools.product(edges(bits, 1)[-4:], edges(bits, 1)[-4:], FIELDS, FIELDS))
    a, b, position, length = columns(rows, f"b{bits}", f"b{bits}", "u32", "u32")
    got = execute(f"bfi.b{bits} %d, %a, %b, %p, %l;", d=f"b{bits}", a=a, b=b, p=position, l=length)
    assert got.tolist() == [inserted(*row, bits) for row in rows]


def test_permutation_of_bytes():
    rows = list(itertools.product(edges(32, 2), edges(32, 2), [0x3210, 0x7654, 0x0123, 0xFEDC, 0x8888, 0x1F0A, 0xABCD3210]))
    a, b, selector = columns(rows, "b32", "b32", "b32")
    got = execute("prmt.b32 %d, %a, %b, %s;", d="b32", a=a, b=b, s=selector)
    for (x, y, s), result in zip(rows, got.tolist()):
        both = (y << 32 | x).to_bytes(8, "little")
        want = b""
        for place in range(4):
            byte = both[s >> 4 * place & 7]
            want += bytes([(255 if byte >> 7 else 0) if s >> 4 * place & 8 else byte])
        assert result == int.from_bytes(want, "little")
    assert execute("prmt.b32 %d, 0x04030201, %b, 0x7320;", d="b32", b=np.uint32(0x08070605)).tolist() == [0x08040301]


@pytest.mark.parametrize("table", [0x00, 0x01, 0x96, 0xCA, 0xE8, 0xFE, 0xFF])
def test_functions_of_three_bits(table):
    rows = list(itertools.product(edges(32, 3), repeat=3))
    a, b, c = columns(rows, "b32", "b32", "b32")
    got = execute(f"lop3.b32 %d, %a, %b, %c, {table:#x};", d="b32", a=a, b=b, c=c)
    for (x, y, z), result in zip(rows, got.tolist()):
        assert result == sum((table >> ((x >> i & 1) * 4 + (y >> i & 1) * 2 + (z >> i & 1)) & 1) << i for i in range(32))


@pytest.mark.parametrize("bits", [32, 64])
def test_counts_of_bits(bits):
    a = np.array(edges(bits), f"u{bits // 8}")
    assert execute(f"popc.b{bits} %d, %a;", d="b32", a=a).tolist() == [bin(x).count("1") for x in a.tolist()]
    assert execute(f"clz.b{bits} %d, %a;", d="b32", a=a).tolist() == [bits - x.bit_length() for x in a.tolist()]
