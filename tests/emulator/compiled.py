"""A kernel ready to run: its PTX parsed, a translator for its blocks, and what of PTX it uses."""

import re

from .parse import parse
from .ptx import TYPE_SIZE
from .translate import PARAM_SPACE, Translator

__all__ = ["PARAM_SPACE", "Compiled"]


class Compiled:
    """kernel: its parsed PTX. code: makes a Python function of each basic block. threads: of a block.

    shared_granule, global_granule: the smallest access of the kernel in bytes, 4 at most, for which one record is kept.
    uses_async_proxy: whether it has wgmma, mbarrier, TMA or its fence, which need records of their own.
    """

    def __init__(self, ptx: str, threads: int) -> None:
        self.kernel = parse(ptx)
        self.code = Translator(self.kernel)
        self.threads = self.kernel.threads or threads
        self.shared_granule = self._smallest_access("shared")
        self.global_granule = self._smallest_access("global")
        self.uses_async_proxy = any(
            instruction.parts[0] in ("wgmma", "mbarrier") or instruction.op.startswith(("cp.async.bulk", "fence.proxy"))
            for instruction in self.kernel.instrs
        )

    def _smallest_access(self, space: str) -> int:
        smallest = 4
        for instruction in self.kernel.instrs:
            parts = instruction.parts
            if parts[0] in ("ld", "st") and any(part.split("::")[0] == space for part in parts):
                vector = next((int(part[1]) for part in parts if re.fullmatch(r"v[248]", part)), 1)
                smallest = min(smallest, TYPE_SIZE[parts[-1]] * vector)
        return smallest
