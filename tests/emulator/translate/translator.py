"""The function of each block: one for when all threads run it, and one with a mask of those that do."""

from collections.abc import Callable

from ..ptx import Instr, Kernel, Predicate, UnknownInstruction
from . import bits, comparisons, conversions, copies, floats, halves, integers, memory, products, values, warps
from .modifiers import Translation
from .source import Source

# Arithmetic goes by the type, which an instruction names last; everything else by its name alone.
BY_TYPE: dict[str, dict[str, Translation]] = {
    **{f"{sign}{bits}": integers.TABLE for sign in "su" for bits in (8, 16, 32, 64)},
    **dict.fromkeys(("f32", "f64"), floats.TABLE),
    **dict.fromkeys(("f16", "bf16", "f16x2", "bf16x2"), halves.TABLE),
}
BY_NAME: dict[str, Translation] = {
    **values.TABLE,
    **bits.TABLE,
    **comparisons.TABLE,
    **conversions.TABLE,
    **memory.TABLE,
    **warps.TABLE,
    **copies.TABLE,
    **products.TABLE,
}


class Translator:
    """Compiles the blocks of a kernel, each when it is first asked for."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.source = Source(kernel)
        self._wgmma = products.WgmmaRegisters(kernel)
        self._compiled: dict[tuple[int, bool], Callable[..., None]] = {}

    def block(self, index: int, masked: bool) -> Callable[..., None]:
        """A function of the machine's state, its registers and, if masked, a mask: runs the block's instructions.

        Raises UnknownInstruction, with the kernel, the line and the instruction, for what the emulator does not execute.
        """
        key = (index, masked)
        if key not in self._compiled:
            parameters = "S, R, m" if masked else "S, R"
            body = "\n  ".join(self.statements(index, masked) or ["pass"])
            name = f"<{self.kernel.name} block {index}{' masked' if masked else ''}>"
            scope: dict[str, Callable[..., None]] = {}
            exec(compile(f"def block({parameters}):\n  {body}", name, "exec"), self.source.environment, scope)
            self._compiled[key] = scope["block"]
        return self._compiled[key]

    def statements(self, index: int, masked: bool) -> list[str]:
        """The source of a block's function, line by line."""
        instrs, lines, place = self.kernel.blocks[index].instrs, [], 0
        while place < len(instrs):
            instr, number = instrs[place], 1
            try:
                if instr.parts[0] == "mma":
                    number = products.independent(instrs[place:])
                guard, mask = _mask(instr.pred, masked)
                lines += guard + self._translated(instrs[place : place + number], mask)
            except (UnknownInstruction, KeyError, IndexError, ValueError) as error:
                raise self.kernel.unknown(instr.line, instr.text, f"{error}") from error
            place += number
        return lines

    def _translated(self, group: list[Instr], mask: str | None) -> list[str]:
        instr = group[0]
        if instr.parts[0] == "mma":
            return products.mma(self.source, group, mask)
        name = instr.parts[0]
        translate = BY_TYPE.get(instr.parts[-1], {}).get(name) or BY_NAME.get(name)
        if translate is None:
            raise UnknownInstruction(name)
        return self._wgmma.around(instr, mask, translate(self.source, instr, mask))


def _mask(pred: Predicate | None, masked: bool) -> tuple[list[str], str | None]:
    """Statements, and the mask that they give: the guard is read before the instruction can write it."""
    if pred is None:
        return [], "m" if masked else None
    guard = f"{'~' if pred.negated else ''}R[{pred.number}]"
    return [f"g = m & {guard}" if masked else f"g = {guard}"], "g"
