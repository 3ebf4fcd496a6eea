"""`setp`: PTX ISA, "Comparison and Selection Instructions" and "Floating Point Comparisons"."""

from ..ptx import Instr, Pair, UnknownInstruction
from .modifiers import Translation, only
from .source import ELEMENT, Source, unsigned

SIGN = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
OF_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
COMBINE = {"and": "&", "or": "|", "xor": "^"}
HALVES = ("bf16", "f16")
PAIRS = ("bf16x2", "f16x2")


def setp(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """`setp.lt.and.f32 p|q, a, b, c`: p is `(a < b) and c`, q is `not (a < b) and c`. On pairs of halves, p is of the low."""
    operator, *modifiers, kind = instr.parts[1:]
    only(modifiers, "ftz and or xor")
    target, *operands = instr.args
    if kind in PAIRS:
        return _of_pairs(source, instr, mask)
    combine = [name for name in modifiers if name in COMBINE]
    if len(operands) != 2 + len(combine):
        raise UnknownInstruction(f"expected {2 + len(combine)} operands, got {len(operands)}")
    if kind in HALVES and "ftz" not in modifiers:
        x, y = (f"half_to_float({kind!r}, {source.array(operand, 'u2')})" for operand in operands[:2])
    else:
        code = ELEMENT[kind]
        if operator in OF_UNSIGNED:
            operator, code = OF_UNSIGNED[operator], unsigned(code)
        x, y = source.array(operands[0], code), source.value(operands[1], code)
        if "ftz" in modifiers:
            if kind != "f32":
                raise UnknownInstruction(f".ftz of {kind}")
            x, y = f"flush({x})", f"flush({y})"
    statements = [f"holds = {_comparison(operator, x, y, kind in ('f32', 'f64', *HALVES))}"]
    result, opposite = "holds", "~holds"
    if combine:
        statements.append(f"other = {source.value(operands[2], 'p')}")
        result, opposite = (f"({part} {COMBINE[combine[0]]} other)" for part in (result, opposite))
    if isinstance(target, Pair):
        return [*statements, source.store(target.first, result, "p", mask), source.store(target.second, opposite, "p", mask)]
    return [*statements, source.store(target, result, "p", mask)]


def _of_pairs(source: Source, instr: Instr, mask: str | None) -> list[str]:
    operator, *modifiers, kind = instr.parts[1:]
    only(modifiers)
    target, a, b = instr.args
    if not isinstance(target, Pair):
        raise UnknownInstruction("expected two predicates for a comparison of pairs")
    statements = []
    for half, predicate in enumerate(("low", "high")):
        x, y = (f"half_to_float({kind[:-2]!r}, split_pair({source.array(operand, 'u4')})[{half}])" for operand in (a, b))
        statements.append(f"{predicate} = {_comparison(operator, x, y, True)}")
    return [*statements, source.store(target.first, "low", "p", mask), source.store(target.second, "high", "p", mask)]


def _comparison(operator: str, x: str, y: str, floats: bool) -> str:
    """A comparison of NaN is false, but true of the unordered operators, which end in u."""
    if operator in SIGN:
        compared = f"({x} {SIGN[operator]} {y})"
        return f"({compared} & ~(np.isnan({x}) | np.isnan({y})))" if floats and operator == "ne" else compared
    if floats and operator in ("nan", "num"):
        return f"{'~' if operator == 'num' else ''}(np.isnan({x}) | np.isnan({y}))"
    if floats and operator == "neu":
        return f"({x} != {y})"
    if floats and operator.endswith("u") and operator[:-1] in SIGN:
        return f"(({x} {SIGN[operator[:-1]]} {y}) | np.isnan({x}) | np.isnan({y}))"
    raise UnknownInstruction(f"comparison {operator}")


TABLE: dict[str, Translation] = {"setp": setp}
