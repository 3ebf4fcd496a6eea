"""Branches, barriers, and threads that wait for ever."""

import numpy as np
import pytest

from tests.emulator.faults import Fault
from tests.emulator.settings import settings
from tests.emulator.tiny_kernels import run, words

RESULT = "st.global.b32 [%a8], %r5;\n"


def test_threads_that_part_meet_again() -> None:
    out = words()
    run(
        "and.b32 %r4, %r0, 1;\nsetp.eq.u32 %p0, %r4, 0;\nmov.u32 %r5, 10;\n@%p0 bra EVEN;\n"
        "activemask.b32 %r5;\nbra.uni JOIN;\nEVEN:\nadd.u32 %r5, %r5, 1;\nJOIN:\nactivemask.b32 %r6;\n"
        "add.u32 %r5, %r5, %r6;\n" + RESULT,
        out,
    )
    everybody = -1  # modulo 2**32: all lanes
    assert (out == np.where(words() % 2 == 0, 11 + everybody, 0xAAAAAAAA + everybody)).all()


def test_loops_of_different_length() -> None:
    out = words()
    run("mov.u32 %r5, 0;\nLOOP:\nadd.u32 %r5, %r5, 2;\nsetp.le.u32 %p0, %r5, %r0;\n@%p0 bra LOOP;\n" + RESULT, out)
    assert (out == words() // 2 * 2 + 2).all()


def test_barrier_that_some_threads_do_not_reach() -> None:
    one_warp_gone = "setp.ge.u32 %p0, %r0, 32;\n@%p0 ret;\nbar.sync 0;\nmov.u32 %r5, 1;\n" + RESULT
    out = np.zeros(64, np.uint32)
    run(one_warp_gone, out)  # those that have returned are not waited for
    assert (out == (words() < 32)).all()
    with pytest.raises(Fault, match="convergent instruction by a part of a warp: tiny: PTX line"):
        run("setp.ge.u32 %p0, %r0, 40;\n@%p0 bra PAST;\nbar.sync 0;\nPAST:\nmov.u32 %r5, 1;\nbar.sync 0;\n")


def test_kernel_that_does_not_end() -> None:
    with settings.changed(longest_run=50), pytest.raises(Fault, match="tiny: does not end after 51 blocks"):
        run("LOOP:\nadd.u32 %r5, %r5, 1;\nbra.uni LOOP;\n")


INIT = "setp.eq.u32 %p0, %r0, 0;\nmov.u32 %r4, 64;\n@%p0 mbarrier.init.shared::cta.b64 [%r4], {};\nbar.sync 0;\n"
WAIT = (
    "{{\n.reg .pred complete;\nwaitLoop:\nmbarrier.try_wait.parity.shared::cta.b64 complete, [%r4], {};\n"
    "@!complete bra.uni waitLoop;\n}}\n"
)
ARRIVE = "mbarrier.arrive.shared::cta.b64 _, [%r4];\n"


def test_barrier_in_shared_memory() -> None:
    run(INIT.format(64) + ARRIVE + WAIT.format(0) + ARRIVE + WAIT.format(1))
    run(INIT.format(1) + "@%p0 " + ARRIVE + WAIT.format(0))
    run(INIT.format(1) + WAIT.format(1))  # the phase before the first counts as over


def test_barrier_in_shared_memory_that_nobody_completes() -> None:
    with pytest.raises(Fault, match="deadlock: every thread waits, this one for a barrier in shared memory: tiny: PTX line"):
        run(INIT.format(65) + ARRIVE + WAIT.format(0))
    with pytest.raises(Fault, match="deadlock"):
        run(
            INIT.format(1) + "mov.u32 %r5, 16;\n@%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r4], 16;\n" + WAIT.format(0)
        )


def test_misuse_of_a_barrier_in_shared_memory() -> None:
    with pytest.raises(Fault, match="mbarrier that is not initialised"):
        run("mov.u32 %r4, 64;\n" + ARRIVE)
    with pytest.raises(Fault, match="mbarrier initialised twice"):
        run("mov.u32 %r4, 64;\nmbarrier.init.shared::cta.b64 [%r4], 1;\n")
    with pytest.raises(Fault, match="shared race"):  # no barrier between initialisation and use
        run(INIT.format(64).replace("bar.sync 0;\n", "") + ARRIVE)
