"""What a kernel in PTX is to the emulator: parameters, registers, instructions and basic blocks.

Data alone. `parse` makes it from text, `blocks` cuts it into blocks, `translate` turns the blocks into numpy. Operands and ends
of blocks are named tuples whose first field says of which kind they are.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

# The numpy type in which a register of each type of PTX is kept: `p` are booleans, `u4` unsigned integers of four bytes.
REGISTER_CLASS = {
    "pred": "p",
    **dict.fromkeys(("b8",), "u1"),
    **dict.fromkeys(("b16", "s16", "u16", "f16"), "u2"),
    **dict.fromkeys(("b32", "s32", "u32", "f32"), "u4"),
    **dict.fromkeys(("b64", "s64", "u64", "f64"), "u8"),
    "b128": "u16",
}

# Bytes of a value of each type of PTX.
TYPE_SIZE = {
    **dict.fromkeys(("b8", "s8", "u8"), 1),
    **dict.fromkeys(("b16", "s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("b32", "s32", "u32", "f32", "f16x2", "bf16x2"), 4),
    **dict.fromkeys(("b64", "s64", "u64", "f64"), 8),
    "b128": 16,
}

SPECIAL_REGISTERS = frozenset(
    [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
    + ["%laneid", "%warpid", "%cluster_ctarank", "%cluster_ctaid.x"]
)


class UnknownInstruction(NotImplementedError):
    """PTX that the emulator does not execute: names the kernel, the line of its PTX and the instruction."""


class Register(NamedTuple):
    kind: Literal["reg"]
    number: int


class Negated(NamedTuple):
    """A predicate read as its opposite: `!%p1`."""

    kind: Literal["notreg"]
    number: int


class Immediate(NamedTuple):
    """A number as it is written: `-1`, `0x10`, `0f3F800000`. Its type is that of the instruction."""

    kind: Literal["imm"]
    text: str


class Special(NamedTuple):
    """A special register: `%tid.x`."""

    kind: Literal["special"]
    name: str


class Symbol(NamedTuple):
    """A label, a parameter, or a name of shared memory."""

    kind: Literal["sym"]
    name: str


class Sink(NamedTuple):
    """`_`: a result that nobody wants."""

    kind: Literal["sink"]


class Vector(NamedTuple):
    kind: Literal["vec"]
    items: "list[Operand]"


class Pair(NamedTuple):
    """Two results of one instruction: `%p1|%p2`."""

    kind: Literal["pair"]
    first: "Operand"
    second: "Operand"


class Address(NamedTuple):
    """`[base + offset]`, in bytes."""

    kind: Literal["mem"]
    base: "Operand"
    offset: int


class Box(NamedTuple):
    """Where a tile copy begins: `[descriptor, {coordinates}]`, the innermost coordinate first."""

    kind: Literal["tensor"]
    descriptor: "Operand"
    coordinates: "list[Operand]"


Operand = Register | Negated | Immediate | Special | Symbol | Sink | Vector | Pair | Address | Box


class Predicate(NamedTuple):
    """The guard of an instruction: it runs where the predicate is true, or where it is false if negated."""

    number: int
    negated: bool


@dataclass
class Instr:
    """One instruction.

    index: its place in the kernel. line: in the text, from 1. text: as written. op: `add.s32`. parts: `op` cut at its points.
    args: operands, results first. pred: its guard. loc: file and line of the source that it comes from.
    """

    index: int
    line: int
    text: str
    op: str
    parts: list[str]
    args: list[Operand]
    pred: Predicate | None
    loc: str = ""


class Fall(NamedTuple):
    """The block ends because another begins: somebody jumps there."""

    kind: Literal["fall"]
    next: int


class Branch(NamedTuple):
    kind: Literal["bra"]
    target: int
    pred: Predicate | None
    next: int


class Return(NamedTuple):
    kind: Literal["ret"]
    pred: Predicate | None
    next: int


class Barrier(NamedTuple):
    """Threads of the block of threads meet: `bar.sync`."""

    kind: Literal["bar"]
    instr: Instr
    next: int


class Wait(NamedTuple):
    """Threads wait for a barrier in shared memory: `mbarrier.try_wait`. Alone in its block, for it is repeated."""

    kind: Literal["wait"]
    instr: Instr
    next: int


Terminator = Fall | Branch | Return | Barrier | Wait


@dataclass
class Block:
    """Instructions that run one after the other, and what comes after. `next` of -1: nothing does."""

    index: int
    instrs: list[Instr]
    term: Terminator


@dataclass
class Param:
    """A parameter of the kernel: bytes, and where in the parameter space it lies."""

    name: str
    size: int
    offset: int
    align: int


@dataclass
class Kernel:
    """The one entry of a PTX module.

    threads: of a block of threads, where the PTX says so. shared_symbols: the addresses of names in shared memory. registers:
    the index of each name. reg_class: for each index, the numpy type. labels: the instruction that follows each.
    """

    name: str
    threads: int | None
    params: list[Param]
    shared_symbols: dict[str, int]
    registers: dict[str, int] = field(default_factory=dict)
    reg_class: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    instrs: list[Instr] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    def unknown(self, line: int, text: str, reason: object) -> UnknownInstruction:
        """The error for a line that the emulator does not execute."""
        return UnknownInstruction(f"{self.name}: PTX line {line}: unknown instruction `{text}` ({reason})")
