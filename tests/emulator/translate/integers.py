"""Integer arithmetic: PTX ISA, "Integer Arithmetic Instructions". Sums and low products wrap around, whatever the sign."""

from ..ptx import Immediate, Instr, UnknownInstruction
from .modifiers import Translation, elementwise, one_of, only
from .source import ELEMENT, SIZE, Source, unsigned


def _product(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """`mul` and `mad`: the low or the high half of a product, or all of it in twice the width; `mad` adds a third operand."""
    half = one_of(only(instr.parts[1:-1], "lo hi wide"), "lo hi wide")
    code = ELEMENT[instr.parts[-1]]
    target, a, b, *addend = instr.args
    if len(addend) != (instr.parts[0] == "mad"):
        raise UnknownInstruction(f"got {len(instr.args)} operands")
    if isinstance(a, Immediate):
        a, b = b, a
    wide = f"{code[0]}{2 * SIZE[code]}"
    if half == "lo":
        code = unsigned(code)
        product = f"({source.array(a, code)} * {source.value(b, code)})"
    elif half == "hi" and SIZE[code] == 8:
        product = f"mulhi64({source.array(a, code)}, {source.value(b, code)})"
    else:
        product = f"({source.widened(a, code, wide)} * {source.widened(b, code, wide)})"
        if half == "hi":
            product = f"({product} >> T{wide}({8 * SIZE[code]})).astype(T{code})"
        else:
            code = wide
    if addend:
        product = f"({product} + {source.value(addend[0], code)})"
    return [source.store(target, product, code, mask)]


TABLE: dict[str, Translation] = {
    "add": elementwise("({} + {})", as_bits=True),
    "sub": elementwise("({} - {})", as_bits=True),
    "neg": elementwise("(T{code}(0) - {})", as_bits=True),
    "mul": _product,
    "mad": _product,
    "div": elementwise("idiv({}, {})"),
    "rem": elementwise("irem({}, {})"),
    "abs": elementwise("np.abs({})"),
    "min": elementwise("np.minimum({}, {})"),
    "max": elementwise("np.maximum({}, {})"),
}
