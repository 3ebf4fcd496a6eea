"""`cvt`: PTX ISA, "Data Movement and Conversion Instructions: cvt"."""

from ..arithmetic.floats import ROUND_TO_INTEGER
from ..ptx import Instr, UnknownInstruction
from .modifiers import Translation, one_of, only
from .source import ELEMENT, Source

HALVES = ("bf16", "f16")
TO_INTEGER = "rni rzi rmi rpi"


def cvt(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """A value of the last type as one of the last but one."""
    *modifiers, to, of = instr.parts[1:]
    target, *operands = instr.args
    packed = PACKED.get((to, of))
    if packed:
        allowed, template, wide, code = packed
        if only(modifiers, allowed) != set(allowed.split()):
            raise UnknownInstruction(f"expected the modifiers {allowed}, got {', '.join(modifiers) or 'none'}")
        if len(operands) != template.count("{}"):
            raise UnknownInstruction(f"expected {template.count('{}')} operands, got {len(operands)}")
        values = (source.array(operand, wide) for operand in operands)
        return [source.store(target, template.format(*values), code, mask)]
    if (to, of) == ("tf32", "f32"):
        rounding = one_of(only(modifiers, "rn rna"), "rn rna")
        return [source.store(target, f"float_to_tf32({source.array(operands[0], 'f4')}, {rounding!r})", "f4", mask)]
    if to in HALVES or of in HALVES or len(operands) != 1:
        raise UnknownInstruction(f"conversion of {of} to {to}")
    value, code = _converted(source.array(operands[0], ELEMENT[of]), ELEMENT[to], ELEMENT[of], modifiers)
    return [source.store(target, value, code, mask)]


def _converted(value: str, to: str, of: str, modifiers: list[str]) -> tuple[str, str]:
    """Between integers, float32 and float64. Integers of fewer bits keep the low ones."""
    if to[0] != "f" and of[0] != "f":
        only(modifiers)
        return f"{value}.astype(T{to})", to
    given = only(modifiers, f"rn ftz {TO_INTEGER}")
    if "ftz" in given:
        if "f4" not in (to, of):
            raise UnknownInstruction(".ftz without f32")
        value = f"flush({value})" if of == "f4" else value
    if to[0] != "f":
        return f"float_to_int({value}, {one_of(given - {'ftz'}, TO_INTEGER)!r}, T{to})", to
    whole = given & set(TO_INTEGER.split())
    if whole:  # a float without its fraction
        if to != of:
            raise UnknownInstruction("rounding to an integer between floats of two sizes")
        return f"np.{ROUND_TO_INTEGER[one_of(whole, TO_INTEGER)].__name__}({value})", to
    value = f"{value}.astype(T{to})"
    return (f"flush({value})" if "ftz" in given and to == "f4" else value), to


# For a pair of types: the modifiers, the conversion, the type that its operands are read as, and that of its result.
PACKED = {
    **{(f"{kind}x2", "f32"): ("rn", f"pack_halves({kind!r}, {{}}, {{}})", "f4", "u4") for kind in HALVES},
    **{(kind, "f32"): ("rn", f"float_to_half({kind!r}, {{}})", "f4", "u2") for kind in HALVES},
    **{("f32", kind): ("", f"half_to_float({kind!r}, {{}})", "u2", "f4") for kind in HALVES},
    ("e4m3x2", "f32"): ("rn satfinite", "pack_e4m3({}, {})", "f4", "u2"),
    ("f16x2", "e4m3x2"): ("rn", "unpack_e4m3({})", "u2", "u4"),
}

TABLE: dict[str, Translation] = {"cvt": cvt}
