"""Which basic block runs next and for which threads: branches, exits, barriers, and threads that wait for one another for ever.

PTX ISA, Control Flow Instructions: bra, ret, exit; Parallel Synchronization and Communication Instructions: bar.sync,
mbarrier.try_wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from .batch import Batch
from .faults import Fault
from .mbarrier import Mbarriers
from .ptx import Address, Barrier, Immediate, Instr, Operand, Predicate, Register, Wait
from .settings import settings

if TYPE_CHECKING:
    from .machine import State

ZERO = Immediate("imm", "0")
BARRIERS = {"bar.sync", "barrier.sync", "barrier.sync.aligned"}


class Schedule:
    """Runs all threads of a batch from the first block to the last.

    Threads at the same block run it together. Where they part, those at the block of the lowest number go first; `parse` has
    ordered the blocks so that they then meet again where the hardware's threads do.

    live: [threads], those that have not returned; waiting: [threads], those before a barrier. place: [threads], the block where
    each is, or `nowhere`; None while all live threads are at the block `at`. index, mask: the block that runs and the threads
    that run it.
    """

    def __init__(self, state: State, batch: Batch, registers: list[Any], barriers: Mbarriers | None) -> None:
        self.state, self.batch, self.registers, self.barriers = state, batch, registers, barriers
        self.blocks = batch.kernel.blocks
        self.nowhere = len(self.blocks) + 1
        self.live = np.ones(batch.threads, bool)
        self.num_live = batch.threads
        self.waiting = np.zeros(batch.threads, bool)
        self.place: np.ndarray | None = None
        self.at = self.index = 0
        self.mask: np.ndarray | None = None
        self.ends = {"fall": self._go, "bra": self._branch, "ret": self._return, "bar": self._barrier, "wait": self._wait}

    def run(self) -> None:
        """Until every thread has returned. A fault for a deadlock, and for a kernel that does not end."""
        steps = 0
        while self._choose():
            steps += 1
            if steps > settings.longest_run:
                raise Fault(f"{self.batch.name}: does not end after {steps} blocks")
            block = self.blocks[self.index]
            if block.instrs:
                run = self.batch.compiled.code.block(self.index, self.mask is not None)
                if self.mask is None:
                    run(self.state, self.registers)
                else:
                    run(self.state, self.registers, self.mask)
            kind, *end = block.term
            self.ends[kind](*end)

    def _choose(self) -> bool:
        """Sets the next block and its threads; False when all have returned."""
        if self.place is None:
            self.index = self.at
            self.mask = None if self.num_live == self.batch.threads else self.live
            return self.num_live > 0
        if self.num_live == 0:
            return False
        runnable = self.live & ~self.waiting
        while not runnable.any():
            if self.barriers is None or not self.barriers.wake(self.waiting, self.live):
                self._deadlock()
            runnable = self.live & ~self.waiting
        place = np.where(runnable, self.place, self.nowhere)
        self.index = int(place.min())
        self.mask = place == self.index
        if (self.mask == self.live).all():  # all are together again
            self.place, self.at = None, self.index
            self.mask = None if self.num_live == self.batch.threads else self.live
        return True

    # ---- the ends of a block

    def _here(self) -> np.ndarray:
        return self.live if self.mask is None else self.mask

    def _part(self) -> np.ndarray:
        """The place of each thread, from now on recorded one by one."""
        if self.place is None:
            self.place = np.where(self.live, self.at, self.nowhere)
        return self.place

    def _go(self, target: int) -> None:
        if self.place is None:
            self.at = target
        else:
            self.place[self.mask] = target

    def _holds(self, predicate: Predicate) -> np.ndarray:
        register, negated = predicate
        return ~self.registers[register] if negated else self.registers[register]

    def _branch(self, target: int, predicate: Predicate | None, after: int) -> None:
        if predicate is None:
            self._go(target)
            return
        here, taken = self._here(), self._holds(predicate)
        jump, stay = here & taken, here & ~taken
        if not stay.any():
            self._go(target)
        elif not jump.any():
            self._go(after)
        else:
            place = self._part()
            place[jump], place[stay] = target, after

    def _return(self, predicate: Predicate | None, after: int) -> None:
        here = self._here()
        gone = here if predicate is None else here & self._holds(predicate)
        if predicate is not None:
            self._go(after)
        if self.place is not None:
            self.place[gone] = self.nowhere
        self.live = self.live & ~gone
        self.num_live = int(self.live.sum())
        self._release()

    def _barrier(self, instruction: Instr, after: int) -> None:
        """bar.sync 0: all threads of a block that have not returned. Any other barrier is an error that names it."""
        if instruction.op not in BARRIERS or instruction.args != [ZERO] or instruction.pred is not None:
            raise self.batch.kernel.unknown(instruction.line, instruction.text, "expected bar.sync 0 without a predicate")
        if self.place is None and self.mask is None:
            self.batch.pass_barrier(slice(None))
            self.at = after
            return
        here = self._here()
        self._part()[here] = after
        self.waiting |= here
        self.batch.whole_warps(here | ~self.live, instruction.index)
        self._release()

    def _release(self) -> None:
        """Lets the blocks whose live threads all wait for bar.sync go on."""
        if not self.waiting.any():
            return
        stopped = self.waiting if self.barriers is None else self.waiting & ~self.barriers.asleep
        stopped_of = stopped.reshape(self.batch.blocks, -1).sum(axis=1)
        live_of = self.live.reshape(self.batch.blocks, -1).sum(axis=1)
        complete = (stopped_of == live_of) & (stopped_of > 0)
        if complete.any():
            self.batch.pass_barrier(complete)
            self.waiting[np.repeat(complete, self.batch.threads_per_block)] = False

    def _wait(self, instruction: Instr, after: int) -> None:
        """mbarrier.try_wait: threads whose phase is over go on with a true predicate; the rest try again later."""
        result, address, parity = instruction.args[:3]
        here = self._here().copy()
        ready = here & self.barriers.try_wait(self._value(address), self._value(parity), here, instruction.index)
        self.registers[result.number] = np.where(ready, True, self.registers[result.number])
        asleep = here & ~ready
        if not asleep.any():
            self._go(after)
            return
        place = self._part()
        place[ready], place[asleep] = after, self.index
        self.waiting |= asleep
        self.barriers.sleep(asleep)

    def _value(self, operand: Operand) -> np.ndarray:
        """An operand of 32 bits; of an address, where it points."""
        if isinstance(operand, Register):
            return self.registers[operand.number]
        if isinstance(operand, Immediate):
            return self.state.const(np.uint32(int(operand.text.rstrip("U"), 0) & 0xFFFFFFFF))
        if isinstance(operand, Address):
            return self._value(operand.base) + np.uint32(operand.offset)
        raise NotImplementedError(f"{self.batch.name}: expected a register, a number or an address, got {operand}")

    def _deadlock(self) -> NoReturn:
        """The fault names the barrier in shared memory at which a thread waits, or the first instruction after bar.sync."""
        thread = int(np.flatnonzero(self.live)[0])
        block = self.blocks[self._part()[thread]]
        if isinstance(block.term, Wait) and self.barriers is not None and self.barriers.asleep[thread]:
            what = "deadlock: every thread waits, this one for a barrier in shared memory"
            self.batch.fault(what, block.term.instr.index, thread)
        after = block.instrs[0] if block.instrs else block.term.instr if isinstance(block.term, Barrier | Wait) else None
        where = f"{self.batch.name}, thread {thread}" if after is None else self.batch.where(after.index, thread)
        raise Fault(f"deadlock: every thread waits, this one at the barrier before: {where}")
