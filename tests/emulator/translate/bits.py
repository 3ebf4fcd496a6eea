"""Logic, shifts and bit fields: PTX ISA, "Logic and Shift Instructions", `bfe`, `bfi`, `popc`, `clz`, `prmt`."""

from ..ptx import Instr
from .modifiers import Translation, elementwise, only
from .source import ELEMENT, Source, immediate


def _call(function: str, kinds: str, result: str | None = None) -> Translation:
    """A call of `function`. kinds: for each operand, `t` for the instruction's type, else a numpy type."""

    def translate(source: Source, instr: Instr, mask: str | None) -> list[str]:
        only(instr.parts[1:-1])
        code = ELEMENT[instr.parts[-1]]
        target, *operands = instr.args
        values = source.values(operands, [code if kind == "t" else kind for kind in kinds.split()])
        return [source.store(target, f"{function}({', '.join(values)})", result or code, mask)]

    return translate


def shf(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """Funnel shift of two registers by a third."""
    direction, mode, kind = instr.parts[1:]
    only([direction, mode, kind], "l r wrap clamp b32")
    target, *operands = instr.args
    low, high, distance = (source.value(operand, "u4") for operand in operands)
    return [source.store(target, f"shf({direction!r}, {mode!r}, {low}, {high}, {distance})", "u4", mask)]


def lop3(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """Any function of three bits, given by its table."""
    only(instr.parts[1:], "b32")
    target, *operands, table = instr.args
    a, b, c = (source.array(operand, "u4") for operand in operands)
    return [source.store(target, f"lop3({a}, {b}, {c}, {immediate(table)})", "u4", mask)]


TABLE: dict[str, Translation] = {
    "and": elementwise("({} & {})"),
    "or": elementwise("({} | {})"),
    "xor": elementwise("({} ^ {})"),
    "not": elementwise("(~{})"),
    "shl": _call("shl", "t u4"),
    "shr": _call("shr", "t u4"),
    "shf": shf,
    "bfe": _call("bfe", "t u4 u4"),
    "bfi": _call("bfi", "t t u4 u4"),
    "prmt": _call("prmt", "t t t"),
    "lop3": lop3,
    "popc": _call("np.bitwise_count", "t", "u1"),
    "clz": _call("clz", "t", "u4"),
}
