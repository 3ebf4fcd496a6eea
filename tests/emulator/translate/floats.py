"""Float32 and float64: PTX ISA, "Floating Point Instructions"."""

from ..ptx import Instr, UnknownInstruction
from .modifiers import Translation, one_of, only
from .source import ELEMENT, Source


def _computed(source: Source, instr: Instr, mask: str | None, template: str) -> list[str]:
    """The template on the operands; with .ftz, subnormal operands and results become zeros."""
    code = ELEMENT[instr.parts[-1]]
    target, *operands = instr.args
    values = source.values(operands, [code] * template.count("{}"))
    if "ftz" in instr.parts[1:-1]:
        if code != "f4":
            raise UnknownInstruction(".ftz of another type than f32")
        values = [f"flush({value})" for value in values]
        template = f"flush({template})"
    return [source.store(target, template.format(*values), code, mask)]


def _float(template: str, allowed: str = "ftz") -> Translation:
    def translate(source: Source, instr: Instr, mask: str | None) -> list[str]:
        only(instr.parts[1:-1], allowed)
        return _computed(source, instr, mask, template)

    return translate


def fma(source: Source, instr: Instr, mask: str | None) -> list[str]:
    only(instr.parts[1:-1], "rn ftz")
    return _computed(source, instr, mask, "fused64({}, {}, {})" if instr.parts[-1] == "f64" else "fused32({}, {}, {})")


def div(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """.full and .approx differ in the range of divisors only: both as ptxas makes the first."""
    method = one_of(only(instr.parts[1:-1], "rn full approx ftz"), "rn full approx")
    return _computed(source, instr, mask, "({} / {})" if method == "rn" else f"{_of_float32(instr, 'div_full')}({{}}, {{}})")


def _of_float32(instr: Instr, function: str) -> str:
    if instr.parts[-1] != "f32":
        raise UnknownInstruction(f"approximation of {instr.parts[-1]}")
    return function


def _approximation(function: str, exact: str | None = None) -> Translation:
    """A function of one operand, approximate or, where there is such an instruction, rounded to nearest."""

    def translate(source: Source, instr: Instr, mask: str | None) -> list[str]:
        modifiers = only(instr.parts[1:-1], "approx ftz rn" if exact else "approx ftz")
        if exact and one_of(modifiers, "approx rn") == "rn":
            return _computed(source, instr, mask, exact)
        one_of(modifiers, "approx")
        return _computed(source, instr, mask, f"{_of_float32(instr, function)}({{}})")

    return translate


def _extreme(which: str) -> Translation:
    """`min` or `max`. One NaN gives the other operand, or NaN with .NaN."""

    def translate(source: Source, instr: Instr, mask: str | None) -> list[str]:
        modifiers = only(instr.parts[1:-1], "NaN ftz xorsign abs")
        function = which + "_nan" if "NaN" in modifiers else which
        if not modifiers & {"xorsign", "abs"}:
            return _computed(source, instr, mask, f"{function}({{}}, {{}})")
        if not {"xorsign", "abs"} <= modifiers:
            raise UnknownInstruction(".xorsign and .abs apart")
        return _computed(source, instr, mask, f"{_of_float32(instr, 'with_xor_of_signs')}({function}, {{}}, {{}})")

    return translate


def copysign(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """The second operand with the sign of the first."""
    only(instr.parts[1:-1])
    code = ELEMENT[instr.parts[-1]]
    target, sign, magnitude = instr.args
    return [source.store(target, f"np.copysign({source.array(magnitude, code)}, {source.value(sign, code)})", code, mask)]


TABLE: dict[str, Translation] = {
    "add": _float("({} + {})", "rn ftz"),
    "sub": _float("({} - {})", "rn ftz"),
    "mul": _float("({} * {})", "rn ftz"),
    "fma": fma,
    "div": div,
    "neg": _float("(-{})"),
    "abs": _float("np.abs({})"),
    "min": _extreme("minimum"),
    "max": _extreme("maximum"),
    "copysign": copysign,
    "ex2": _approximation("ex2"),
    "lg2": _approximation("lg2"),
    "rcp": _approximation("rcp", "(1 / {})"),
    "sqrt": _approximation("np.sqrt", "np.sqrt({})"),
    "rsqrt": _approximation("rsqrt"),
    "tanh": _approximation("tanh"),
    "sin": _approximation("sin"),
    "cos": _approximation("cos"),
}
