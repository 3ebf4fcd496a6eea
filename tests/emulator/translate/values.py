"""Values as they are: PTX ISA, "Data Movement and Conversion Instructions", and `selp`."""

from ..ptx import Instr, Sink, Vector
from .modifiers import Translation, only
from .source import ELEMENT, SIZE, Source, unsigned


def mov(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """A copy; or a register cut into a vector of smaller ones, or put together from them, the lowest bits first."""
    only(instr.parts[1:-1])
    code = ELEMENT[instr.parts[-1]]
    target, operand = instr.args
    if isinstance(target, Vector):
        size = SIZE[code] // len(target.items)
        statements = [f"whole = {source.array(operand, code)}"]
        for place, part in enumerate(target.items):
            if not isinstance(part, Sink):
                bits = f"(whole >> T{code}({8 * size * place})).astype(Tu{size})"
                statements.append(source.store(part, bits, f"u{size}", mask))
        return statements
    if isinstance(operand, Vector):
        size = SIZE[code] // len(operand.items)
        parts = [f"{source.array(part, f'u{size}')}.astype(T{code})" for part in operand.items]
        shifted = [f"({part} << T{code}({8 * size * place}))" if place else part for place, part in enumerate(parts)]
        return [source.store(target, f"({' | '.join(shifted)})", code, mask)]
    return [source.store(target, source.array(operand, code), code, mask)]


def selp(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """The first operand where the predicate is true, else the second."""
    only(instr.parts[1:-1])
    code = unsigned(ELEMENT[instr.parts[-1]])
    target, yes, no, predicate = instr.args
    chosen = f"where({source.value(predicate, 'p')}, {source.value(yes, code)}, {source.value(no, code)})"
    return [source.store(target, chosen, code, mask)]


def cvta(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """An address of one state space as a generic one, or back: here they are the same."""
    only(instr.parts[1:], "to global param u64")
    target, operand = instr.args
    address = source.array(operand, "u8")
    if "param" in instr.parts and "to" not in instr.parts:
        address = source.of_parameters(address)
    return [source.store(target, address, "u8", mask)]


def createpolicy(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """A policy for the cache, which does not change what is computed."""
    return [source.store(instr.args[0], "S.const(Tu8(0))", "u8", mask)]


TABLE: dict[str, Translation] = {"mov": mov, "selp": selp, "cvta": cvta, "createpolicy": createpolicy}
