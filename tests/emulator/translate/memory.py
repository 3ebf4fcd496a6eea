"""Loads, stores and atomic additions: PTX ISA, "Data Movement and Conversion Instructions", `ldmatrix`, `stmatrix`, `atom`."""

import re

from ..ptx import Address, Instr, Operand, Register, Symbol, UnknownInstruction
from .modifiers import Translation, only
from .source import ELEMENT, SIZE, Source, items, unsigned

# Consistency, scope and cache hints: every access of the machine is the strongest there is.
ORDER = "nc relaxed weak volatile gpu cta sys ca cg cs cv wb wt level L1::.+ L2::.+"
ADDRESS_TYPE = {"global": "u8", "shared": "u4"}


def _where(instr: Instr) -> tuple[str, int]:
    """The state space and the number of elements of an access."""
    modifiers = only(instr.parts[1:-1], f"{ORDER} global shared shared::.+ param v2 v4 v8")
    spaces = {name.partition("::")[0] for name in modifiers} & {"global", "shared", "param"}
    lengths = [int(name[1:]) for name in modifiers if re.fullmatch(r"v\d", name)]
    if len(spaces) != 1:
        raise UnknownInstruction("expected one state space of global, shared and param")
    return spaces.pop(), lengths[0] if lengths else 1


def ld(source: Source, instr: Instr, mask: str | None) -> list[str]:
    space, length = _where(instr)
    code = ELEMENT[instr.parts[-1]]
    target, place = instr.args[:2]
    targets = items(target)
    if len(targets) != length or not isinstance(place, Address):
        raise UnknownInstruction(f"expected {length} registers and an address")
    if space == "param":
        values = _parameters(source, instr, place, code, mask)
        return [source.store(each, value, code, mask) for each, value in zip(targets, values)]
    address = source.address(place, ADDRESS_TYPE[space])
    access = f"{address}, {SIZE[code]}, {length}"
    values = [f"v[{index}]" if code == unsigned(code) else f"v[{index}].view(T{code})" for index in range(length)]
    function = "S.ldg" if space == "global" else "S.lds"
    if mask is None:
        loads = [source.store(each, value, code, None) for each, value in zip(targets, values)]
        return [f"v = {function}({access}, {instr.index})", *loads]
    loads = [source.store_at(each, value, code, "places") for each, value in zip(targets, values)]
    return [f"places, v = {function}_m({access}, {mask}, {instr.index})", *loads]


def _parameters(source: Source, instr: Instr, place: Address, code: str, mask: str | None) -> list[str]:
    offsets = [SIZE[code] * index for index in range(len(items(instr.args[0])))]
    if isinstance(place.base, Symbol):
        start = source.parameter(place.base.name) + place.offset
        return [f"S.param({start + offset}, T{code})" for offset in offsets]
    short = isinstance(place.base, Register) and SIZE[source.kernel.reg_class[place.base.number]] == 4
    address = source.of_parameters(source.address(place, "u4" if short else "u8"))
    return [f"S.param_at({address}, {offset}, T{code}, {mask}, {instr.index})" for offset in offsets]


def st(source: Source, instr: Instr, mask: str | None) -> list[str]:
    space, length = _where(instr)
    if space == "param":
        raise UnknownInstruction("a store to parameters")
    code = unsigned(ELEMENT[instr.parts[-1]])
    place, value = instr.args[:2]
    values = [source.array(each, code) for each in items(value)]
    if len(values) != length:
        raise UnknownInstruction(f"expected {length} values")
    address = source.address(place, ADDRESS_TYPE[space])
    function = "S.stg" if space == "global" else "S.sts"
    return [f"{function}({address}, {SIZE[code]}, [{', '.join(values)}], {mask}, {instr.index})"]


def _matrices(instr: Instr) -> int:
    """How many matrices of 8 by 8 elements of 16 bits are moved."""
    only(instr.parts[1:], "sync aligned m8n8 x[124] trans shared shared::cta b16")
    counts = [int(name[1]) for name in instr.parts if re.fullmatch("x[124]", name)]
    if len(counts) != 1 or "m8n8" not in instr.parts:
        raise UnknownInstruction("expected m8n8 and one of x1, x2, x4")
    return counts[0]


def ldmatrix(source: Source, instr: Instr, mask: str | None) -> list[str]:
    target, place = instr.args
    count, address = _matrices(instr), source.address(place, "u4")
    load = f"v = S.ldmatrix({address}, {count}, {'trans' in instr.parts}, {mask}, {instr.index})"
    return [load, *(source.store(each, f"v[{index}]", "u4", mask) for index, each in enumerate(items(target)))]


def stmatrix(source: Source, instr: Instr, mask: str | None) -> list[str]:
    place, value = instr.args
    count, address = _matrices(instr), source.address(place, "u4")
    values = ", ".join(source.array(each, "u4") for each in items(value))
    return [f"S.stmatrix({address}, {count}, {'trans' in instr.parts}, [{values}], {mask}, {instr.index})"]


def _addition(source: Source, instr: Instr, place: Operand, value: str, mask: str | None) -> str:
    only(instr.parts[1:], "global gpu cta sys relaxed acq_rel add f32")
    if "global" not in instr.parts or instr.parts[-2:] != ["add", "f32"]:
        raise UnknownInstruction("another atomic operation than the addition of f32 in global memory")
    return f"S.atom_add({source.address(place, 'u8')}, {value}, {mask}, {instr.index})"


def atom(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """An atomic addition; the result is what was there before."""
    target, place, value = instr.args
    return [source.store(target, _addition(source, instr, place, source.array(value, "f4"), mask), "f4", mask)]


def red(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """An atomic addition without a result."""
    place, value = instr.args
    return [_addition(source, instr, place, source.array(value, "f4"), mask)]


def prefetch(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """A hint to the cache, which does not change what is computed."""
    return []


TABLE: dict[str, Translation] = {
    "ld": ld,
    "st": st,
    "ldmatrix": ldmatrix,
    "stmatrix": stmatrix,
    "atom": atom,
    "red": red,
    "prefetch": prefetch,
}
