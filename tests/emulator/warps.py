"""Instructions that a warp executes together: shuffles, votes, reductions, elections.

PTX ISA, Data Movement and Conversion Instructions: shfl.sync; Parallel Synchronization and Communication Instructions:
vote.sync, redux.sync, activemask, elect.sync, bar.warp.sync.
"""

import numpy as np

from .batch import Batch, Mask

BITS = 1 << np.arange(32, dtype=np.int64)  # of the lanes in a member mask
REDUCTIONS = {
    "add": (np.add, 0),
    "min": (np.minimum, None),
    "max": (np.maximum, None),
    "and": (np.bitwise_and, -1),
    "or": (np.bitwise_or, 0),
    "xor": (np.bitwise_xor, 0),
}  # with the value of a lane that does not take part; None: the extreme of the type


class Warps:
    """The warps of a batch. Values are arrays [threads]; a member mask is one number or [threads]."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def _mask(self, mask: Mask) -> np.ndarray:
        return np.ones((self.batch.warps, 32), bool) if mask is None else mask.reshape(-1, 32)

    def shuffle(
        self,
        mode: str,
        value: np.ndarray,
        lane: np.ndarray | int,
        clamp: np.ndarray | int,
        member: np.ndarray | np.uint32 | None,
        mask: Mask,
        instruction: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """shfl.sync.b32: the value of another lane, or the own one where that is outside of the segment, and whether it is
        inside.

        mode: 'up', 'down', 'bfly' or 'idx'. lane, clamp: the operands b and c of the instruction.
        """
        if mask is not None:
            self._check_members(member, mask, instruction)
        own = np.arange(32)
        values = value.reshape(-1, 32)
        step, limits = (x if isinstance(x, int) else x.reshape(-1, 32).astype(np.int64) for x in (lane, clamp))
        step, last, segment = step & 31, limits & 31, limits >> 8 & 31
        low = own & segment
        high = low | last & ~segment
        if mode == "up":
            source = own - step
            inside = source >= high
        else:
            source = {"down": own + step, "bfly": own ^ step, "idx": low | step & ~segment}[mode]
            inside = source <= high
        source = np.where(inside, source, own)
        if mask is not None:
            takes_part = np.take_along_axis(mask.reshape(-1, 32), np.broadcast_to(source, values.shape), 1).reshape(-1)
            if (mask & ~takes_part).any():
                self.batch.fault(
                    "shuffle reads a thread that does not take part", instruction, np.flatnonzero(mask & ~takes_part)[0]
                )
        moved = values[:, source] if source.ndim == 1 else np.take_along_axis(values, source, 1)
        return np.ascontiguousarray(moved).reshape(-1), np.broadcast_to(inside, values.shape).reshape(-1)

    def _check_members(self, member: np.ndarray | np.uint32 | None, mask: np.ndarray, instruction: int) -> None:
        """The member mask must name the active threads of each warp, all and no other."""
        if member is None:
            return
        warps = mask.reshape(-1, 32)
        active = (warps @ BITS).astype(np.uint32)
        named = member if np.ndim(member) == 0 else member.reshape(-1, 32)[np.arange(len(warps)), warps.argmax(axis=1)]
        wrong = (active != 0) & (active != named)
        if wrong.any():
            what = "member mask of a warp instruction names other threads than those that take part"
            self.batch.fault(what, instruction, int(np.flatnonzero(wrong)[0]) * 32)

    def reduce(self, kind: str, value: np.ndarray, member: np.ndarray | np.uint32, mask: Mask, instruction: int) -> np.ndarray:
        """redux.sync: the sum, extreme or bitwise combination of the values of a warp, in all its lanes."""
        active = self._mask(mask)
        self._check_members(member, active.reshape(-1), instruction)
        if kind not in REDUCTIONS:
            raise NotImplementedError(f"{self.batch.name}: expected a reduction among {', '.join(REDUCTIONS)}, got {kind}")
        function, neutral = REDUCTIONS[kind]
        if neutral is None:
            limits = np.iinfo(value.dtype)
            neutral = limits.min if kind == "max" else limits.max
        values = np.where(active, value.reshape(-1, 32), np.array(neutral).astype(value.dtype))
        return np.repeat(function.reduce(values, axis=1).astype(value.dtype), 32)

    def vote(self, kind: str, predicate: np.ndarray, mask: Mask, instruction: int) -> np.ndarray:
        """vote.sync: 'ballot' gives one bit of each lane, as uint32; 'any' and 'all' a predicate."""
        active = self._mask(mask)
        votes = np.broadcast_to(predicate, (self.batch.threads,)).reshape(-1, 32) & active
        if kind == "ballot":
            result = (votes @ BITS).astype(np.uint32)
        elif kind == "any":
            result = votes.any(axis=1)
        elif kind == "all":
            result = (votes | ~active).all(axis=1)
        else:
            raise NotImplementedError(f"{self.batch.name}: expected a vote by ballot, any or all, got {kind}")
        return np.repeat(result, 32)

    def active_mask(self, mask: Mask) -> np.ndarray:
        """activemask: one bit of each lane that is here."""
        return np.repeat((self._mask(mask) @ BITS).astype(np.uint32), 32)

    def elect(self, mask: Mask, instruction: int) -> tuple[np.ndarray, np.ndarray]:
        """elect.sync: the number of the first active lane, and whether a thread is that lane."""
        active = self._mask(mask)
        leader = active.argmax(axis=1)
        chosen = (np.arange(32) == leader[:, None]) & active
        return np.repeat(leader.astype(np.uint32), 32), chosen.reshape(-1)

    def synchronise(self, mask: Mask, instruction: int) -> None:
        """bar.warp.sync: nothing to wait for, since a warp runs in lock step, but all of it must be here."""
        self.batch.whole_warps(mask, instruction)
