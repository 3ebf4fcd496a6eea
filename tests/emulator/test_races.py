"""Races in shared and global memory, and what is none: barriers between, one warp alone, the very same value."""

import numpy as np
import pytest

from tests.emulator.faults import Fault
from tests.emulator.memory import POISON32
from tests.emulator.settings import settings
from tests.emulator.tiny_kernels import run, words

OWN = "st.shared.b32 [%r1], %r0;\n"  # each thread its own word
OTHER = "xor.b32 %r4, %r1, 128;\nld.shared.b32 %r5, [%r4];\n"  # the word of the same lane of the other warp
NEIGHBOUR = "xor.b32 %r4, %r1, 4;\nld.shared.b32 %r5, [%r4];\n"  # of the next lane
BARRIER = "bar.sync 0;\n"
RESULT = "st.global.b32 [%a8], %r5;\n"


def test_shared_read_after_a_barrier() -> None:
    out = words()
    run(OWN + BARRIER + OTHER + RESULT, out)
    assert (out == words() ^ 32).all()


def test_shared_read_within_a_warp_needs_no_barrier() -> None:
    out = words()
    run(OWN + NEIGHBOUR + RESULT, out)
    assert (out == words() ^ 1).all()


def test_shared_read_without_a_barrier() -> None:
    with pytest.raises(Fault, match=r"shared race: reads what warp 1 wrote, with no barrier between: tiny: .* thread 0"):
        run(OWN + OTHER)
    with settings.changed(shared_races=False):
        run(OWN + OTHER)


@pytest.mark.parametrize("readers", [OTHER, OTHER + NEIGHBOUR], ids=["one warp", "two warps"])
def test_shared_write_where_another_reads(readers: str) -> None:
    again = "add.u32 %r6, %r0, 1;\nst.shared.b32 [%r1], %r6;\n"
    run(OWN + BARRIER + readers + BARRIER + again)
    with pytest.raises(Fault, match=r"shared race: writes where (warp 1|several warps) read, with no barrier between"):
        run(OWN + BARRIER + readers + again)


def test_shared_writes_of_two_warps() -> None:
    place = "and.b32 %r4, %r1, 124;\n"
    run(place + "st.shared.b32 [%r4], 7;\n" + BARRIER)  # the same value: no order shows
    with pytest.raises(Fault, match="shared race: two threads write different values to one address in one instruction"):
        run(place + "st.shared.b32 [%r4], %r0;\n")
    by_turns = "setp.lt.u32 %p0, %r0, 32;\n@%p0 st.shared.b32 [%r4], %r0;\n{}@!%p0 st.shared.b32 [%r4], %r0;\n"
    run(place + by_turns.format(BARRIER))
    with pytest.raises(Fault, match="shared race: writes where warp 0 wrote another value, with no barrier between"):
        run(place + by_turns.format(""))


def test_shared_memory_that_is_not_there() -> None:
    with pytest.raises(Fault, match="read of uninitialised shared memory"):
        run("ld.shared.b32 %r5, [%r1];\n")
    with pytest.raises(Fault, match="out-of-bounds shared write of 4 bytes at 1052, 1024 are there"):
        run("st.shared.b32 [%r1+800], %r0;\n")
    with pytest.raises(Fault, match="misaligned shared write of 4 bytes at 2"):
        run("st.shared.b32 [%r1+2], %r0;\n")


def test_global_words_of_another_warp() -> None:
    store, load = "st.global.b32 [%a8], %r0;\n", "xor.b32 %r4, %r1, 128;\ncvt.u64.u32 %a4, %r4;\nadd.s64 %a4, %a4, %a0;\n"
    load += "ld.global.b32 %r5, [%a4];\n"
    run(store + BARRIER + load, words())
    with pytest.raises(Fault, match=r"global race: reads what another warp wrote in this launch without a barrier \(a\)"):
        run(store + load, words())
    with pytest.raises(Fault, match=r"global race: writes where another warp read in this launch \(a\)"):
        run(load + "add.u32 %r6, %r0, 1;\nst.global.b32 [%a8], %r6;\n", words())


@pytest.mark.parametrize("at_once", [32, 8192])
def test_global_words_of_another_block(at_once: int) -> None:
    own = "st.global.b32 [%a8], 5;\n"
    run(own, words(), threads=32, blocks=2, at_once=at_once)
    with pytest.raises(Fault, match="global race: "):
        run("st.global.b32 [%a0], %r2;\n", words(), threads=32, blocks=2, at_once=at_once)
    run("st.global.b32 [%a0], 9;\n", words(), threads=32, blocks=2, at_once=at_once)  # the same value
    with settings.changed(global_races=False, shared_races=False), pytest.raises(Fault, match="two threads write different"):
        run("st.global.b32 [%a0], %r2;\n", words(), threads=32, blocks=2)


def test_atomic_additions_do_not_race() -> None:
    total = np.zeros(1, np.float32)
    run("mov.b32 %f0, 0f3F800000;\natom.global.add.f32 %f1, [%a0], %f0;\n", total, blocks=3)
    assert total[0] == 192


def test_global_words_that_nobody_wrote() -> None:
    x = np.full(64, POISON32)
    _, report = run("ld.global.b32 %r4, [%a8];\n", x)
    (finding,) = report.unwritten.values()
    assert finding.startswith("read of memory that nobody wrote (a): tiny: PTX line ")
    with settings.changed(unwritten_reads="fault"), pytest.raises(Fault, match="read of memory that nobody wrote"):
        run("ld.global.b32 %r4, [%a8];\n", x)
    with settings.changed(unwritten_reads="off"):
        assert not run("ld.global.b32 %r4, [%a8];\n", x)[1].unwritten


def test_tensors_too_large_for_records_are_noted() -> None:
    with settings.changed(largest_shadow=64):
        _, report = run("st.global.b32 [%a0], 9;\n", words(), threads=32, blocks=2)
    assert list(report.notes) == ["tiny: no race detection in tensors of more than 64 bytes"]
