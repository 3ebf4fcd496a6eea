"""cp.async by groups: what has arrived when, and who may see it."""

import numpy as np
import pytest

from tests.emulator.faults import Fault
from tests.emulator.settings import settings
from tests.emulator.tiny_kernels import run, words

COPY = "cp.async.ca.shared.global [%r1], [%a8], 4;\n"
NEXT = "add.u32 %r4, %r1, 256;\ncp.async.ca.shared.global [%r4], [%a8], 4;\n"  # beside it
COMMIT, BARRIER = "cp.async.commit_group;\n", "bar.sync 0;\n"
READ, READ_NEXT = "ld.shared.b32 %r5, [%r1];\n", "ld.shared.b32 %r5, [%r4];\n"
READ_OTHER = "xor.b32 %r6, %r1, 128;\nld.shared.b32 %r5, [%r6];\n"  # what the other warp copied
RESULT = "st.global.b32 [%a9], %r5;\n"


def wait(groups: int) -> str:
    return f"cp.async.wait_group {groups};\n"


def test_copy_that_is_waited_for() -> None:
    x, y = words() * 5, words()
    stats, report = run(COPY + COMMIT + wait(0) + READ + RESULT, x, y)
    assert (y == x).all()
    assert stats.features == {"cp.async"}
    assert not report.notes


def test_copy_that_is_not_waited_for() -> None:
    message = "shared memory read while an asynchronous copy into it has not been waited for"
    run(COPY + COMMIT + NEXT + COMMIT + wait(1) + READ, words())
    with pytest.raises(Fault, match=message):
        run(COPY + COMMIT + READ, words())
    with pytest.raises(Fault, match=message):
        run(COPY + COMMIT + NEXT + COMMIT + wait(1) + READ_NEXT, words())
    with pytest.raises(Fault, match=message):  # never committed: in no group
        run(COPY + wait(0) + READ, words())
    run(COPY + "cp.async.wait_all;\n" + READ, words())


def test_copy_of_another_warp_is_seen_after_a_barrier() -> None:
    x, y = words() * 5, words()
    run(COPY + COMMIT + wait(0) + BARRIER + READ_OTHER + RESULT, x, y)
    assert (y == x[words() ^ 32]).all()
    with pytest.raises(Fault, match="shared race: reads what warp 1 wrote, with no barrier between"):
        run(COPY + COMMIT + wait(0) + READ_OTHER, words())


def test_write_over_a_copy_in_flight() -> None:
    with pytest.raises(Fault, match="shared memory written while an asynchronous copy into it is in flight"):
        run(COPY + COMMIT + "st.shared.b32 [%r1], %r0;\n", words())


@pytest.mark.parametrize("taken", [0, 4, 7, 16])
def test_rest_of_a_copy_is_zeros(taken: int) -> None:
    x, y = words(4) + np.uint32(0x01010101), words(4)
    load = "ld.shared.v4.b32 {%r8, %r9, %r10, %r11}, [0];\nst.global.v4.b32 [%a1], {%r8, %r9, %r10, %r11};\n"
    one = "setp.eq.u32 %p0, %r0, 0;\n@!%p0 ret;\n"
    run(f"{one}cp.async.cg.shared.global [0], [%a0], 16, {taken};\n{COMMIT}{wait(0)}{load}", x, y, threads=32)
    assert y.tobytes() == x.tobytes()[:taken] + bytes(16 - taken)


def test_copy_that_nobody_waits_for_is_noted() -> None:
    _, report = run(COPY + COMMIT, words())
    assert list(report.notes) == ["tiny: ends with asynchronous copies in flight (never waited for)"]


def test_late_schedule_lands_copies_at_once() -> None:
    x, y = words() * 5, words()
    with settings.changed(late_products=True):
        run(COPY + COMMIT + READ + RESULT, x, y)
    assert (y == x).all()
