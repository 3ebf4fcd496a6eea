"""The modifiers of an instruction: whatever stands between its name and its type. One that is not known is an error."""

import re
from collections.abc import Callable, Iterable

from ..ptx import Instr, UnknownInstruction
from .source import ELEMENT, Source, unsigned

Translation = Callable[[Source, Instr, str | None], list[str]]  # source, instruction and mask to statements


def only(given: Iterable[str], allowed: str = "") -> set[str]:
    """The modifiers given, all of which are among those allowed: words, or patterns."""
    given = set(given)
    unknown = {name for name in given if not any(re.fullmatch(pattern, name) for pattern in allowed.split())}
    if unknown:
        raise UnknownInstruction(f"modifier {', '.join(sorted(unknown))}")
    return given


def one_of(given: set[str], choices: str) -> str:
    """The one modifier of several that must be there."""
    found = given & set(choices.split())
    if len(found) != 1:
        raise UnknownInstruction(f"expected one modifier of {choices}, got {', '.join(sorted(found)) or 'none'}")
    return found.pop()


def elementwise(template: str, allowed: str = "", as_bits: bool = False) -> Translation:
    """An instruction that computes each thread's result from its operands alone, all of its own type.

    template: source with `{}` for each operand and `{code}` for their type. as_bits: the type's sign does not matter.
    """

    def translate(source: Source, instr: Instr, mask: str | None) -> list[str]:
        only(instr.parts[1:-1], allowed)
        code = unsigned(ELEMENT[instr.parts[-1]]) if as_bits else ELEMENT[instr.parts[-1]]
        target, *operands = instr.args
        values = source.values(operands, [code] * template.count("{}"))
        return [source.store(target, template.format(*values, code=code), code, mask)]

    return translate
