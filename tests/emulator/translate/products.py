"""Matrix units: PTX ISA, "Warp Level" and "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions"."""

import re
from collections.abc import Iterable

from ..arithmetic import MMA_SHAPES
from ..ptx import Instr, Kernel, Negated, Operand, Pair, Register, UnknownInstruction, Vector
from .modifiers import Translation, only
from .source import Source, immediate, items


def independent(instrs: list[Instr]) -> int:
    """How many of these `mma`, from the first on, are of one kind and read nothing that those before them write."""
    written: set[int] = set()
    for number, instr in enumerate(instrs):
        if instr.op != instrs[0].op or instr.pred != instrs[0].pred or registers(instr.args[1:]) & written:
            return number
        written |= registers(instr.args[:1])
    return len(instrs)


def mma(source: Source, group: list[Instr], mask: str | None) -> list[str]:
    """Independent products of one kind, computed in one call. Operands that several share are given once.

    Operands are given as lists of registers, one list for each distinct A and B and one for each C; then, for each product,
    which A and which B it takes.
    """
    kind, shape, *layout = group[0].parts[1:3], group[0].parts[3], *group[0].parts[4:]
    if kind != ["sync", "aligned"] or layout[:2] != ["row", "col"] or len(layout) != 6:
        raise UnknownInstruction("expected mma.sync.aligned with A by rows and B by columns")
    result, a_kind, b_kind, addend = layout[2:]
    if (result, addend) != ("f32", "f32") or a_kind != b_kind or (shape, a_kind) not in MMA_SHAPES:
        raise UnknownInstruction("shape or types of the product")
    a_lists: dict[str, int] = {}
    b_lists: dict[str, int] = {}
    c_lists, a_of, b_of, stores = [], [], [], []
    for number, instr in enumerate(group):
        d, a, b, c = instr.args
        a_of.append(a_lists.setdefault(_words(source, a), len(a_lists)))
        b_of.append(b_lists.setdefault(_words(source, b), len(b_lists)))
        c_lists.append(_words(source, c))
        stores += [source.store(each, f"v[{number}][{index}]", "u4", mask) for index, each in enumerate(items(d))]
    lists = ", ".join(f"[{', '.join(each)}]" for each in (a_lists, b_lists, c_lists))
    return [f"v = S.mma({shape!r}, {a_kind!r}, {lists}, {a_of}, {b_of}, {mask}, {group[0].index})", *stores]


def _words(source: Source, operand: Operand) -> str:
    return f"[{', '.join(source.array(each, 'u4') for each in items(operand))}]"


def wgmma(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """`wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 d, a, b, scale-d, scale-a, scale-b, trans-a, trans-b`; waits."""
    kind = instr.parts[1]
    if kind != "mma_async":
        only(instr.parts[2:], "sync aligned")
        if kind == "fence":
            return [f"S.wg_fence({mask}, {instr.index})"]
        if kind == "commit_group":
            return [f"S.wg_commit({mask}, {instr.index})"]
        if kind == "wait_group":
            return [f"S.wg_wait({immediate(instr.args[0])}, {mask}, {instr.index})"]
        raise UnknownInstruction(f"wgmma.{kind}")
    *_, shape, result, a_kind, b_kind = instr.parts
    size = re.fullmatch(r"m64n(\d+)k(\d+)", shape)
    if size is None or len(instr.parts) != 8 or result != "f32" or a_kind != b_kind:
        raise UnknownInstruction("shape or types of the product")
    d, a, b, scale_d, *flags = instr.args
    accumulators = [each.number for each in items(d) if isinstance(each, Register)]
    in_registers = isinstance(a, Vector)
    first = _words(source, a) if in_registers else source.array(a, "u8")
    touched = (*accumulators, *sorted(registers([a]))) if in_registers else tuple(accumulators)
    operands = f"{_words(source, d)}, {first}, {source.array(b, 'u8')}, {source.value(scale_d, 'p')}"
    sizes = f"{size[1]}, {size[2]}, {a_kind!r}"
    return [
        f"S.wg_check({touched}, {instr.index})",
        f"v = S.wgmma({sizes}, {operands}, {[immediate(flag) for flag in flags]}, {mask}, {instr.index})",
        *(source.store(each, f"v[{index}]", "u4", mask) for index, each in enumerate(items(d))),
        f"S.wg_regs({tuple(accumulators)}, {mask})",
    ]


def registers(operands: Iterable[Operand]) -> set[int]:
    """All registers of some operands."""
    found: set[int] = set()
    for operand in operands:
        if isinstance(operand, (Register, Negated)):
            found.add(operand.number)
        elif isinstance(operand, Vector):
            found |= registers(operand.items)
        elif isinstance(operand, Pair):
            found |= registers([operand.first, operand.second])
        elif operand.kind == "mem":
            found |= registers([operand.base])
    return found


class WgmmaRegisters:
    """The registers that wgmma reads and writes while threads go on: what else touches them tells the machine so."""

    def __init__(self, kernel: Kernel) -> None:
        products = [instr for instr in kernel.instrs if instr.parts[:2] == ["wgmma", "mma_async"]]
        self.accumulators = registers(instr.args[0] for instr in products)
        self.operands = registers(instr.args[1] for instr in products if isinstance(instr.args[1], Vector))

    def around(self, instr: Instr, mask: str | None, statements: list[str]) -> list[str]:
        """The statements of an instruction, with what the machine has to know before and after."""
        if not self.accumulators or instr.parts[0] == "wgmma":
            return statements
        touched = sorted(registers(instr.args) & self.accumulators)
        written = sorted(registers(_results(instr)) & (self.accumulators | self.operands))
        before = [f"S.wg_touch({tuple(touched)}, {instr.parts[0] == 'mov'}, {mask}, {instr.index})"] if touched else []
        return [*before, *statements, *([f"S.wg_dirty({tuple(written)})"] if written else [])]


def _results(instr: Instr) -> list[Operand]:
    return [] if not instr.args or instr.args[0].kind == "mem" else instr.args[:1]


TABLE: dict[str, Translation] = {"wgmma": wgmma}
