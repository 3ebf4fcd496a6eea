"""wgmma: products of a warpgroup that read shared memory by descriptors and end when they are waited for.

PTX ISA, Asynchronous Warpgroup Level Matrix Instructions: wgmma.mma_async, wgmma.fence, wgmma.commit_group, wgmma.wait_group.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import arithmetic
from .async_proxy import AsyncProxy
from .batch import Batch, Mask
from .matrix import fp8_sums, rounded, stacked
from .matrix_descriptor import MatrixDescriptor
from .settings import settings
from .shared_memory import SharedMemory

ELEMENT_BYTES = {"bf16": 2, "f16": 2, "tf32": 4, "e4m3": 1}
WARPGROUP = 128  # threads

Operand = list[np.ndarray] | np.ndarray  # registers, or descriptors [threads]


class Product(NamedTuple):
    """One wgmma.mma_async: m64 n k of an operand type, its operands, and where its results go.

    keeps: [threads] or a number, whether the accumulators are added to ('scale-d'). targets: their register numbers.
    """

    n: int
    k: int
    kind: str
    a: Operand
    b: np.ndarray
    keeps: np.ndarray | np.bool_
    flags: list[int]
    targets: list[int]
    instruction: int

    @property
    def transposes(self) -> tuple[bool, bool]:
        """Whether A and B lie M- and N-major. Raises NotImplementedError for a negated operand."""
        scale_a, scale_b, *transposed = self.flags
        if (scale_a, scale_b) != (1, 1):
            raise NotImplementedError("expected wgmma operands that are not negated")
        if isinstance(self.a, list):
            return False, bool(transposed and transposed[0])
        return (bool(transposed[0]), bool(transposed[1])) if transposed else (False, False)


class Postponed(NamedTuple):
    """A product that has not read its operands yet: its number, its warpgroups, and itself."""

    number: int
    groups: np.ndarray
    product: Product


class Wgmma:
    """The products in flight of all warpgroups of a batch.

    latest: of each warpgroup, the number of its last product. committed: of each, the number of the last product of each group
    that is open. in_flight: register -> for each warpgroup the number of the product that owns it; touched: registers of
    products that something else wrote since the last wgmma.fence. registers: those of the running program.
    """

    def __init__(self, batch: Batch, shared: SharedMemory, proxy: AsyncProxy, registers: list[np.ndarray]) -> None:
        self.batch, self.shared, self.proxy, self.registers = batch, shared, proxy, registers
        self.groups_per_block = batch.threads_per_block // WARPGROUP
        self.num_groups = batch.threads // WARPGROUP if batch.threads_per_block % WARPGROUP == 0 else 0
        self.latest = [0] * self.num_groups
        self.committed: list[list[int]] = [[] for _ in range(self.num_groups)]
        self.in_flight: dict[int, np.ndarray] = {}
        self.touched: set[int] = set()
        self.postponed: list[Postponed] = []

    # ---- instructions

    def fence(self, mask: Mask, instruction: int) -> None:
        """wgmma.fence: registers that were written before it may be used by the products after it."""
        self.touched.clear()

    def commit(self, mask: Mask, instruction: int) -> None:
        """wgmma.commit_group: the products since the last one are a group."""
        for group in self._groups(mask, instruction):
            self.committed[group].append(self.latest[group])

    def wait(self, num_groups: int, mask: Mask, instruction: int) -> None:
        """wgmma.wait_group: all but the last num_groups of the warpgroup's groups are over."""
        for group in self._groups(mask, instruction):
            open_groups = self.committed[group]
            if len(open_groups) > num_groups:
                block, queue = divmod(int(group), self.groups_per_block)
                self.proxy.finish(queue, block, open_groups[-1 - num_groups])
                self.committed[group] = open_groups[len(open_groups) - num_groups :]
        if self.postponed:
            self._catch_up()

    def multiply(
        self,
        n: int,
        k: int,
        kind: str,
        c: list[np.ndarray],
        a: Operand,
        b: np.ndarray,
        keeps: np.ndarray | np.bool_,
        flags: list[int],
        mask: Mask,
        instruction: int,
    ) -> list[np.ndarray] | np.ndarray:
        """wgmma.mma_async: D = A B + C of [64, k] and [k, n]. Returns the n // 2 registers of D, [threads] of uint32 each.

        It is computed here and counts as in flight until it is waited for, or, by the late schedule, it is computed then.
        """
        targets = [register.number for register in self.batch.kernel.instrs[instruction].args[0].items]
        product = Product(n, k, kind, a, b, keeps, flags, targets, instruction)
        groups = self._groups(mask, instruction)
        unchanged = [register.view(np.uint32) for register in c]
        if not len(groups):
            return unchanged
        number = self.proxy.issue()
        for group in groups:
            self.latest[group] = number
        if settings.late_products:
            self.postponed.append(Postponed(number, groups, product))
            return unchanged
        return self._compute(product, c, groups, number)

    def end(self) -> None:
        if (np.array(self.latest, int) > self._done()).any():
            self.batch.note("ends with wgmma in flight")

    # ---- registers of products in flight

    def own(self, registers: tuple[int, ...], mask: Mask) -> None:
        """These registers are a product's, just issued, until it is waited for."""
        number = np.full(self.num_groups, self.proxy.issued)
        if mask is not None:
            number *= mask.reshape(-1, WARPGROUP).any(axis=1)
        if registers[0] in self.in_flight:
            number = np.maximum(number, self.in_flight[registers[0]])
        for register in registers:
            self.in_flight[register] = number

    def touch(self, registers: tuple[int, ...], moves: bool, mask: Mask, instruction: int) -> None:
        """Another instruction reads or writes these registers; where it only moves them, ptxas may keep them where they are."""
        if not self.in_flight:
            return
        owners = {id(self.in_flight[r]): self.in_flight[r] for r in registers if r in self.in_flight}
        for numbers in owners.values():
            early = numbers > self._done()
            if not early.any():
                self.in_flight = {r: owner for r, owner in self.in_flight.items() if owner is not numbers}
                continue
            if mask is not None:
                early = early & mask.reshape(-1, WARPGROUP).any(axis=1)
            if early.any():
                what = f"accumulator of a wgmma in flight is {'moved' if moves else 'used'} before wgmma.wait_group"
                self._misused(what, instruction, int(np.flatnonzero(early)[0]) * WARPGROUP, harmless=moves)

    def dirty(self, registers: tuple[int, ...]) -> None:
        """Another instruction wrote these registers, of accumulators or of A."""
        self.touched.update(registers)

    def check(self, registers: tuple[int, ...], instruction: int) -> None:
        """Finds a product that uses registers that were written since the last wgmma.fence."""
        if not self.touched.isdisjoint(registers):
            self._misused("registers written after wgmma.fence and used by wgmma", instruction, 0)

    def _misused(self, what: str, instruction: int, thread: int, harmless: bool = False) -> None:
        if settings.product_registers == "fault" and not harmless:
            self.batch.fault(what, instruction, thread)
        if settings.product_registers != "off":
            self.batch.note(what)

    # ---- what they are made of

    def _done(self) -> np.ndarray:
        """[warpgroups]: all products up to this number are over."""
        return self.proxy.done[: self.groups_per_block].T.reshape(-1) if self.num_groups else np.zeros(0, np.int32)

    def _groups(self, mask: Mask, instruction: int) -> np.ndarray:
        """The warpgroups that take part. A fault where only a part of one does."""
        if mask is None:
            return np.arange(self.num_groups)
        groups = mask.reshape(-1, WARPGROUP)
        some, every = groups.any(axis=1), groups.all(axis=1)
        if (some != every).any():
            torn = int(np.flatnonzero(some != every)[0])
            self.batch.fault("wgmma instruction by a part of a warpgroup", instruction, torn * WARPGROUP)
        return np.flatnonzero(every)

    def _uniform(self, values: np.ndarray, groups: np.ndarray, instruction: int) -> np.ndarray:
        """The one value of each of the warpgroups. A fault where its threads have several."""
        values = values.reshape(-1, WARPGROUP)[groups]
        if (values != values[:, :1]).any():
            self.batch.fault("wgmma: the descriptor differs within a warpgroup", instruction, int(groups[0]) * WARPGROUP)
        return values[:, 0]

    def _catch_up(self) -> None:
        """Computes the postponed products that are over now, from what their operands hold by now."""
        done, left = self._done(), []
        for number, groups, product in self.postponed:
            over = done[groups] >= number
            if over.any():
                results = self._compute(product, [self.registers[r] for r in product.targets], groups[over], number)
                for register, result in zip(product.targets, results, strict=True):
                    self.registers[register] = result
            if not over.all():
                left.append(Postponed(number, groups[~over], product))
        self.postponed = left

    def _compute(self, product: Product, c: list[np.ndarray], groups: np.ndarray, number: int) -> np.ndarray:
        """The registers of D [n // 2, threads]; those of other warpgroups hold what they held in c."""
        n, k, kind = product.n, product.k, product.kind
        if k * ELEMENT_BYTES[kind] != 32:
            raise NotImplementedError(f"expected a wgmma of 32 bytes along k, got k{k} of {kind}")
        transposed_a, transposed_b = product.transposes
        threads, chosen = self.batch.threads, len(groups)
        if isinstance(product.a, list):
            # warpgroup, warp, row in half, thread in row, half of k, half of the rows, elements of a word
            a = arithmetic.decode(kind, stacked(product.a, threads).reshape(-1, 4, 8, 4, 2, 2)[groups])
            a = a.transpose(0, 1, 5, 2, 4, 3, 6).reshape(chosen, 64, k)
        else:
            a = self._operand(product, product.a, 64, transposed_a, groups, number, "A")
        b = self._operand(product, product.b, n, transposed_b, groups, number, "B")
        registers = np.stack([np.broadcast_to(register, (threads,)) for register in c]).view(np.float32)
        # eight columns, half of the rows, pair of columns, warpgroup, warp, row in half, thread in row
        sums = registers.reshape(n // 8, 2, 2, -1, 4, 8, 4).transpose(3, 4, 1, 5, 0, 6, 2).reshape(-1, 64, n)[groups]
        keeps = (
            self._uniform(product.keeps, groups, product.instruction)
            if np.ndim(product.keeps)
            else np.full(chosen, product.keeps)
        )
        sums = np.where(keeps[:, None, None], sums, np.float32(0)).astype(np.float64)
        exact = kind == "e4m3" and settings.truncated_sums
        d = rounded(fp8_sums(a, b, sums) if exact else np.matmul(a, b.transpose(0, 2, 1)) + sums)
        d = d.reshape(chosen, 4, 2, 8, n // 8, 4, 2).transpose(4, 2, 6, 0, 1, 3, 5).reshape(n // 2, chosen, WARPGROUP)
        results = registers.reshape(n // 2, -1, WARPGROUP).copy()
        results[:, groups] = d
        how = " A in registers" if isinstance(product.a, list) else " A transposed" if transposed_a else ""
        self.batch.count(f"wgmma m64n{n}k{k} {kind}{how}{' B transposed' if transposed_b else ''}", chosen)
        return results.reshape(n // 2, threads).view(np.uint32)

    def _operand(
        self, product: Product, descriptor: np.ndarray, rows: int, transposed: bool, groups: np.ndarray, number: int, name: str
    ) -> np.ndarray:
        """A or B as float64 [warpgroups, rows, k], read from shared memory by the async proxy."""
        kind, k, instruction = product.kind, product.k, product.instruction
        if transposed and ELEMENT_BYTES[kind] != 2:
            raise NotImplementedError(f"expected a transposed wgmma operand of 16 bits, got {kind}")
        address = MatrixDescriptor.decode(self._uniform(descriptor, groups, instruction)).chunks(rows, k, transposed)
        first = groups * WARPGROUP  # a thread of each warpgroup
        if address.max() + 16 > self.shared.declared:
            what = f"wgmma ({name}) reads shared memory at {address.max()}, {self.shared.declared} are there"
            self.batch.fault(what, instruction, first[address.max(axis=(1, 2)).argmax()])
        offset = address + self.shared.base[first][:, None, None]
        queues = groups % self.groups_per_block
        for queue in np.unique(queues):
            here = queues == queue
            threads = np.repeat(first[here], address[0].size)
            self.proxy.read(offset[here].reshape(-1), threads, instruction, f"wgmma ({name})", int(queue), number)
        data = self.shared.views[16][offset >> 4]
        if transposed:  # 8 rows of one k in each chunk
            halves = np.ascontiguousarray(data).view(np.uint16).reshape(len(groups), rows // 8, k, 8)
            data = np.ascontiguousarray(halves.swapaxes(2, 3)).reshape(len(groups), rows, k).view(np.uint32)
        return arithmetic.decode(kind, data.reshape(len(groups), rows, 8)).reshape(len(groups), rows, k)
