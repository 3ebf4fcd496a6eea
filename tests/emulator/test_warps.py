"""Shuffles, votes and reductions of a warp, against their definitions in the PTX ISA lane by lane."""

import numpy as np
import pytest

from tests.emulator.faults import Fault
from tests.emulator.tiny_kernels import run, words

LOAD = "ld.global.b32 %r4, [%a8];\n"
STORE = "\nst.global.b32 [%a9], %r5;"


def shuffled(values: np.ndarray, mode: str, lane: int, width: int) -> np.ndarray:
    """What `__shfl_sync` documents: segments of `width` lanes, and the own value where the source is outside of them.

    By 'bfly' a lane may read an earlier segment, not a later one.
    """
    out = values.copy()
    for i in range(len(values)):
        own, first = i % 32, i - i % width
        source = {"up": own - lane, "down": own + lane, "bfly": own ^ lane, "idx": own - own % width + lane % width}[mode]
        inside = source < first % 32 + width and (mode == "bfly" or source >= first % 32)
        out[i] = values[i - own + source] if inside else values[i]
    return out


@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize(("mode", "lane"), [("up", 1), ("up", 5), ("down", 3), ("bfly", 4), ("bfly", 9), ("idx", 6)])
def test_shuffle(mode: str, lane: int, width: int) -> None:
    x, y = words() * 3, words()
    clamp = 32 - width << 8 | (0 if mode == "up" else 31)
    run(f"{LOAD}shfl.sync.{mode}.b32 %r5, %r4, {lane}, {clamp}, -1;{STORE}", x, y)
    expected = shuffled(x, mode, lane, width)
    assert (y == expected).all()


def test_shuffle_by_lanes_that_differ() -> None:
    x, y = words() * 3, words()
    run(f"{LOAD}xor.b32 %r6, %r0, 31;\nshfl.sync.idx.b32 %r5, %r4, %r6, 31, -1;{STORE}", x, y)
    assert (y == x.reshape(2, 32)[:, ::-1].reshape(-1)).all()


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("add.u32", np.add),
        ("min.u32", np.minimum),
        ("max.u32", np.maximum),
        ("and.b32", np.bitwise_and),
        ("or.b32", np.bitwise_or),
        ("xor.b32", np.bitwise_xor),
    ],
)
def test_reduction(kind: str, function: np.ufunc) -> None:
    x, y = np.random.default_rng(0).integers(0, 1 << 32, 64, np.uint32), words()
    run(f"{LOAD}redux.sync.{kind} %r5, %r4, -1;{STORE}", x, y)
    assert (y == np.repeat(function.reduce(x.reshape(2, 32), axis=1, dtype=np.uint32), 32)).all()


def test_ballot_holds_a_bit_of_each_lane() -> None:
    x, y = words(), words()
    run(f"setp.lt.u32 %p0, %r0, 5;\nvote.sync.ballot.b32 %r5, %p0, -1;{STORE}", x, y)
    assert (y == np.repeat(np.array([31, 0], np.uint32), 32)).all()


def test_shuffle_by_a_part_of_its_members() -> None:
    half = "and.b32 %r6, %r0, 31;\nsetp.lt.u32 %p0, %r6, 16;\n"
    run(f"{LOAD}{half}@%p0 shfl.sync.idx.b32 %r5, %r4, 3, 31, 65535;", words(), words())
    with pytest.raises(
        Fault, match="member mask of a warp instruction names other threads than those that take part: tiny: PTX"
    ):
        run(f"{LOAD}{half}@%p0 shfl.sync.idx.b32 %r5, %r4, 3, 31, -1;", words(), words())
    with pytest.raises(Fault, match="shuffle reads a thread that does not take part"):
        run(f"{LOAD}{half}@%p0 shfl.sync.idx.b32 %r5, %r4, 20, 31, 65535;", words(), words())
