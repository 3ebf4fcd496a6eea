"""Which kernels are pipelined, read from their PTX, and how often a loop of one ran."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from tests.emulator import stats
from tests.emulator.launcher import Launcher

ASYNCHRONOUS_COPY = r"\bcp\.async\.c[ag]\."
TILE_COPY = r"\bcp\.async\.bulk\.tensor\.\dd\.shared"  # into shared memory
ASYNCHRONOUS_PRODUCT = r"\bwgmma\.mma_async\."
PRODUCT = r"\b(?:wgmma\.mma_async|mma\.sync)\."


def loops(ptx: str) -> str:
    """The lines between a label and the last jump back to it, for every such label."""
    lines = ptx.splitlines()
    labels = {match[1]: number for number, line in enumerate(lines) if (match := re.match(r"\s*(\$\w+):", line))}
    inside: set[int] = set()
    for number, line in enumerate(lines):
        match = re.search(r"\bbra(?:\.uni)?\s+(\$\w+);", line)
        if match and labels[match[1]] <= number:
            inside.update(range(labels[match[1]], number + 1))
    return "\n".join(lines[number] for number in sorted(inside))


def is_asynchronous(ptx: str) -> bool:
    """Whether anything in it goes on while the kernel goes ahead: a copy to shared memory or a product."""
    return re.search("|".join((ASYNCHRONOUS_COPY, TILE_COPY, ASYNCHRONOUS_PRODUCT)), ptx) is not None


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel. counts: what the emulator counted in it."""

    kernel: str
    ptx: str
    num_stages: int
    num_warps: int
    blocks: int
    counts: Counter[str]

    @property
    def is_pipelined(self) -> bool:
        """Whether a loop copies ahead."""
        return re.search(f"{ASYNCHRONOUS_COPY}|{TILE_COPY}", loops(self.ptx)) is not None

    @property
    def steps(self) -> float:
        """How often the loop with the asynchronous work ran, the mean over the thread blocks; a bound from below.

        From products, or from copies where there are none; of copies a loop issues some ahead of its first step.
        """
        loop = loops(self.ptx)
        if re.search(PRODUCT, loop):
            warps = self.num_warps // 4 if "wgmma" in loop else self.num_warps
            done = sum(count for what, count in self.counts.items() if what.startswith(("mma ", "wgmma "))) / warps
            in_loop, everywhere = (len(re.findall(PRODUCT, text)) for text in (loop, self.ptx))
            return (done / self.blocks - (everywhere - in_loop)) / in_loop
        done = sum(count for what, count in self.counts.items() if what.startswith("cp.async ")) / (32 * self.num_warps)
        return done / self.blocks / len(re.findall(ASYNCHRONOUS_COPY, loop)) - (self.num_stages - 1)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Every launch within the `with` block."""
    launches: list[Launch] = []
    launch = Launcher.__call__

    def recording(self: Launcher, x: int, y: int, z: int, *rest: Any) -> None:
        metadata, total = self.metadata, stats.kernel(self.metadata.name).counts
        before = total.copy()
        launch(self, x, y, z, *rest)
        ptx, blocks = self.kernel.asm["ptx"], x * y * z
        launches.append(Launch(metadata.name, ptx, metadata.num_stages, metadata.num_warps, blocks, total - before))

    with mock.patch.object(Launcher, "__call__", recording):
        yield launches
