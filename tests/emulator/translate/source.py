"""Operands and results of instructions as Python source.

The registers of all threads are arrays in a list, `R`, and are never changed in place. A register of 32 bits is an array of
uint32 whatever it holds; an operation on another type of that size takes a view. Types are numpy's: `u4` is uint32, `i4` int32,
`f4` float32, `p` boolean. A mask is the source of a boolean array, or None where all threads take part.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import arithmetic
from ..ptx import Address, Immediate, Kernel, Negated, Operand, Register, Sink, Special, Symbol, UnknownInstruction, Vector

PARAM_SPACE = 1 << 60  # where the addresses of parameters lie: far from those of tensors

NUMPY = {
    "u1": np.uint8,
    "i1": np.int8,
    "u2": np.uint16,
    "i2": np.int16,
    "u4": np.uint32,
    "i4": np.int32,
    "u8": np.uint64,
    "i8": np.int64,
    "f4": np.float32,
    "f8": np.float64,
    "p": np.bool_,
}
# The type in which each type of PTX is computed. Floats of 16 bits are bit patterns to numpy.
ELEMENT = {
    "pred": "p",
    **{f"b{8 * size}": f"u{size}" for size in (1, 2, 4, 8)},
    **{f"u{8 * size}": f"u{size}" for size in (1, 2, 4, 8)},
    **{f"s{8 * size}": f"i{size}" for size in (1, 2, 4, 8)},
    "f32": "f4",
    "f64": "f8",
    **dict.fromkeys(("f16", "bf16"), "u2"),
    **dict.fromkeys(("f16x2", "bf16x2"), "u4"),
}
SIZE = {code: np.dtype(numpy_type).itemsize for code, numpy_type in NUMPY.items()}


def unsigned(code: str) -> str:
    """The type of the same size in which a register is kept."""
    return code if code == "p" else f"u{SIZE[code]}"


class Source:
    """Writes source for one kernel; `environment` holds the names that it uses."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.environment: dict[str, Any] = {"np": np, "where": np.where}
        self.environment.update({f"T{code}": numpy_type for code, numpy_type in NUMPY.items()})
        self.environment.update({name: getattr(arithmetic, name) for name in arithmetic.__all__})
        self._constants: dict[tuple[str, str], str] = {}

    def constant(self, text: str, code: str) -> str:
        """The name of a numpy scalar."""
        name = self._constants.setdefault((text, code), f"K{len(self._constants)}")
        if name not in self.environment:
            self.environment[name] = number(text, code)
        return name

    def value(self, operand: Operand, code: str) -> str:
        """An operand read as a type: an array, or a scalar if it is an immediate or an address that all threads share."""
        if isinstance(operand, Register):
            return self._register(operand.number, code)
        if isinstance(operand, Negated) and code == "p":
            return f"(~{self._register(operand.number, 'p')})"
        if isinstance(operand, Immediate):
            return self.constant(operand.text, code)
        if isinstance(operand, Special):
            array = f"S.special({operand.name!r})"
            return array if code == "u4" else f"{array}.view(T{code})" if SIZE[code] == 4 else f"{array}.astype(T{code})"
        if isinstance(operand, Symbol):
            return self.constant(str(self._address_of(operand.name)), code)
        raise UnknownInstruction(f"operand {operand}")

    def array(self, operand: Operand, code: str) -> str:
        """Like `value`, but an array in any case."""
        value = self.value(operand, code)
        return f"S.const({value})" if isinstance(operand, (Immediate, Symbol)) else value

    def values(self, operands: Sequence[Operand], codes: Sequence[str]) -> list[str]:
        """Operands read as a type each, the first as an array, so that whatever is computed of them is one."""
        if len(operands) != len(codes):
            raise UnknownInstruction(f"expected {len(codes)} operands, got {len(operands)}")
        return [self.array(operands[0], codes[0]), *map(self.value, operands[1:], codes[1:])]

    def widened(self, operand: Operand, code: str, wide: str) -> str:
        """An operand of one type, as another of more bytes: a scalar if it is an immediate."""
        value = self.value(operand, code)
        return f"T{wide}({value})" if isinstance(operand, Immediate) else f"{value}.astype(T{wide})"

    def address(self, operand: Operand, code: str) -> str:
        """The array of addresses of a memory operand."""
        if not isinstance(operand, Address):
            raise UnknownInstruction(f"expected an address, got {operand}")
        base = self.array(operand.base, code)
        return base if operand.offset == 0 else f"({base} + {self.constant(str(operand.offset), code)})"

    def of_parameters(self, address: str) -> str:
        """The address of a parameter, from its lower 32 bits or from all: Triton 3.9 keeps such addresses in 32 bits."""
        return f"({address} | {self.constant(str(PARAM_SPACE), 'u8')})"

    def store(self, target: Operand, expression: str, code: str, mask: str | None) -> str:
        """The statement that puts a value into a register, in the threads of the mask."""
        if isinstance(target, Sink):
            return f"_ = {expression}"
        register, expression = self._fitted(target, expression, code)
        return f"{register} = {expression}" if mask is None else f"{register} = where({mask}, {expression}, {register})"

    def store_at(self, target: Operand, expression: str, code: str, places: str) -> str:
        """The statement that puts values into a register of the threads at these places alone: one value for each of them."""
        if isinstance(target, Sink):
            return f"_ = {expression}"
        register, expression = self._fitted(target, expression, code)
        return f"{register} = merge({register}, {places}, {expression})"

    def _register(self, index: int, code: str) -> str:
        kept, name = self.kernel.reg_class[index], f"R[{index}]"
        if kept == code:
            return name
        if "p" in (kept, code) or kept not in SIZE or SIZE[kept] < SIZE[code]:
            raise UnknownInstruction(f"a register of type {kept} read as {code}")
        if SIZE[kept] > SIZE[code]:
            name = f"{name}.astype(T{unsigned(code)})"
        return name if code == unsigned(code) else f"{name}.view(T{code})"

    def _fitted(self, target: Operand, expression: str, code: str) -> tuple[str, str]:
        """A register, and the expression as it is kept there. A narrower result is extended, by its sign if it has one."""
        if not isinstance(target, Register):
            raise UnknownInstruction(f"expected a register for the result, got {target}")
        kept = self.kernel.reg_class[target.number]
        if code != kept:
            fits = SIZE[code] == SIZE.get(kept) if code[0] == "f" else SIZE[code] <= SIZE.get(kept, 0)
            if "p" in (kept, code) or not fits:
                raise UnknownInstruction(f"a result of type {code} for a register of type {kept}")
            if SIZE[code] < SIZE[kept]:
                code = f"{code[0]}{SIZE[kept]}"
                expression = f"({expression}).astype(T{code})"
            if code != kept:
                expression = f"({expression}).view(T{kept})"
        return f"R[{target.number}]", expression

    def _address_of(self, name: str) -> int:
        """The address of a name in shared memory or of a parameter."""
        if name in self.kernel.shared_symbols:
            return self.kernel.shared_symbols[name]
        return PARAM_SPACE + self.parameter(name)

    def parameter(self, name: str) -> int:
        """Where a parameter lies."""
        for param in self.kernel.params:
            if param.name == name:
                return param.offset
        raise UnknownInstruction(f"symbol {name}")


def number(text: str, code: str) -> Any:
    """An immediate as a numpy scalar of a type: `0f` and `0d` begin the bits of a float."""
    if code == "p":
        return np.bool_(integer(text) != 0)
    if text[:2].lower() in ("0f", "0d"):
        bits = (np.uint32 if text[1] in "fF" else np.uint64)(int(text[2:], 16))
        if bits.itemsize != SIZE[code]:
            raise UnknownInstruction(f"the float {text} read as {code}")
        return bits.view(NUMPY[code])
    return NUMPY[unsigned(code)](integer(text) % (1 << 8 * SIZE[code])).view(NUMPY[code])


def integer(text: str) -> int:
    return int(text.rstrip("U"), 0)


def immediate(operand: Operand) -> int:
    """An operand that must be a number in the text."""
    if not isinstance(operand, Immediate):
        raise UnknownInstruction(f"expected a number, got {operand}")
    return integer(operand.text)


def items(operand: Operand) -> list[Operand]:
    """The registers of a vector operand, or the one that stands for itself."""
    return operand.items if isinstance(operand, Vector) else [operand]
