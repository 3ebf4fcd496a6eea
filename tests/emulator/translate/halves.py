"""Floats of 16 bits, alone and in pairs: PTX ISA, "Half Precision Floating Point Instructions"."""

from ..ptx import Instr
from .modifiers import Translation, elementwise, only
from .source import ELEMENT, Source


def _half(operation: str, allowed: str = "rn") -> Translation:
    def translate(source: Source, instr: Instr, mask: str | None) -> list[str]:
        name = f"{operation}.NaN" if "NaN" in only(instr.parts[1:-1], allowed) else operation
        code = ELEMENT[instr.parts[-1]]
        target, *operands = instr.args
        values = source.values(operands, [code] * (3 if operation == "fma" else 2))
        return [source.store(target, f"half_op({name!r}, {instr.parts[-1]!r}, {', '.join(values)})", code, mask)]

    return translate


def _sign(template: str, bits: int) -> Translation:
    """An instruction on the sign of each half: `bits` of 16, once or twice."""

    def translate(source: Source, instr: Instr, mask: str | None) -> list[str]:
        pattern = bits * (0x10001 if instr.parts[-1].endswith("x2") else 1)
        return elementwise(template.replace("BITS", f"T{{code}}({pattern})"))(source, instr, mask)

    return translate


TABLE: dict[str, Translation] = {
    "add": _half("add"),
    "sub": _half("sub"),
    "mul": _half("mul"),
    "fma": _half("fma"),
    "min": _half("min", "NaN"),
    "max": _half("max", "NaN"),
    "neg": _sign("({} ^ BITS)", 0x8000),
    "abs": _sign("({} & BITS)", 0x7FFF),
}
