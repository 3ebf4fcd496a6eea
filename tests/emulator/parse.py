"""The text of a PTX module to a `Kernel`. Grammar: PTX ISA, "Syntax" and "State Spaces, Types, and Variables"."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from .blocks import basic_blocks
from .ptx import (
    REGISTER_CLASS,
    SPECIAL_REGISTERS,
    TYPE_SIZE,
    Address,
    Box,
    Immediate,
    Instr,
    Kernel,
    Negated,
    Operand,
    Pair,
    Param,
    Predicate,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)

ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)")
FUNCTION = re.compile(r"^\s*(?:\.visible\s+|\.extern\s+|\.weak\s+)?\.func\b", re.M)
SHARED = re.compile(r"\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\d*\]")
PARAMETER = re.compile(r"\.(\w+)(?: \.ptr(?: \.\w+)*(?: \.align \d+)?)? ([\w$]+)(?:\[(\d+)\])?$")
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?|0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}")
GUARD = re.compile(r"@(!?)\s*([%\w$]+)\s+")
ADDRESS = re.compile(r"(\S+?)\s*(?:\+\s*(-?\w+))?")
BOX = re.compile(r"(.*?),\s*\{(.*)\}")
TOKEN = re.compile(
    r"""(?P<space>\s+)
    | (?P<location>\.loc\b[^\n]*)
    | (?P<ignored>\.(?:file|section)\b[^\n]*)
    | (?P<open>\{) | (?P<close>\})
    | (?P<label>[A-Za-z_$][\w$]*)\s*:(?!:)
    | (?P<statement>[^;]*);""",
    re.X,
)


@dataclass
class _Scope:
    """What a pair of braces declares: its labels and registers are known inside it alone."""

    number: int
    parent: "_Scope | None"
    names: dict[str, str] = field(default_factory=dict)

    def declare(self, name: str) -> str:
        """The name by which the kernel knows this one."""
        self.names[name] = name if self.parent is None else f"{name}@{self.number}"
        return self.names[name]

    def resolve(self, name: str) -> str:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return name


@dataclass
class _Token:
    kind: str
    text: str
    line: int
    scope: _Scope


def parse(text: str) -> Kernel:
    """The kernel of a module with exactly one entry and no other functions.

    Raises ValueError where there is another number of entries, UnknownInstruction for what the emulator does not execute.
    """
    entries = list(ENTRY.finditer(text))
    if len(entries) != 1:
        raise ValueError(f"expected one .entry in the PTX, got {len(entries)}: {[entry[1] for entry in entries]}")
    name, params = entries[0].groups()
    shared = set(SHARED.findall(text))
    threads = re.search(r"\.reqntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", text)
    kernel = Kernel(name, int(threads[1]) if threads else None, _parameters(params), dict.fromkeys(shared, 0))
    if threads and {threads[2], threads[3]} - {None, "1"}:
        raise kernel.unknown(_line(text, threads.start()), threads[0], "threads in more than one dimension")
    if len(shared) > 1:
        raise kernel.unknown(1, ", ".join(sorted(shared)), "several arrays in shared memory")
    if function := FUNCTION.search(text):
        raise kernel.unknown(_line(text, function.end()), ".func", "functions")
    _read_body(kernel, text, text.index("{", entries[0].end()))
    kernel.blocks = basic_blocks(kernel)
    return kernel


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _parameters(text: str) -> list[Param]:
    """Parameters with their places: one behind the other, each at a multiple of its alignment."""
    params: list[Param] = []
    end = 0
    for entry in filter(None, (" ".join(part.split()) for part in COMMENT.sub("", text).split(","))):
        found = PARAMETER.search(entry)
        if found is None or found[1] not in TYPE_SIZE:
            raise ValueError(f"expected a parameter of the kernel, got `{entry}`")
        align = size = TYPE_SIZE[found[1]]
        if stated := re.match(r"\.param \.align (\d+)", entry):  # after .ptr, it is that of what the pointer points to
            align = max(align, int(stated[1]))
        if found[3]:
            size *= int(found[3])
        offset = -(-end // align) * align
        params.append(Param(found[2], size, offset, align))
        end = offset + size
    return params


def _read_body(kernel: Kernel, text: str, start: int) -> None:
    """Registers, labels and instructions from the brace that opens the body to the one that closes it."""
    location = ""
    for token in list(_tokens(kernel, text, start)):  # a jump may precede its label, so declare all first
        if token.kind == "location":
            _, comment, place = token.text.partition("//")
            location = place.strip() if comment else token.text
        elif token.kind == "label":
            kernel.labels[token.scope.resolve(token.text)] = len(kernel.instrs)
        elif token.kind == "statement":
            kernel.instrs.append(_instruction(kernel, token, location))


def _tokens(kernel: Kernel, text: str, position: int) -> Iterator[_Token]:
    """Locations, labels and instructions of the body; labels and registers are declared on the way."""
    numbers = count(1)
    scope = _Scope(0, None)
    line = _line(text, position)
    text = re.sub(r"^(?!\s*\.loc).*$", lambda match: COMMENT.sub("", match[0]), text[position + 1 :], flags=re.M)
    position = 0
    while True:
        match = TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            rest = " ".join(text[position : position + 40].split())
            raise kernel.unknown(line, rest, "expected an instruction that ends in a semicolon")
        kind, words = match.lastgroup, " ".join(match[match.lastgroup].split())
        if kind == "open":
            scope = _Scope(next(numbers), scope)
        elif kind == "close":
            if scope.parent is None:
                return
            scope = scope.parent
        elif kind == "statement" and words.startswith(".reg"):
            _declare_registers(kernel, words, scope)
        elif kind == "statement" and words.startswith("."):
            if not words.startswith(".pragma"):
                raise kernel.unknown(line, words, "directive")
        elif kind in ("location", "label", "statement"):
            if kind == "label":
                scope.declare(words)
            yield _Token(kind, words, line, scope)
        line += text.count("\n", position, match.end())
        position = match.end()


def _declare_registers(kernel: Kernel, statement: str, scope: _Scope) -> None:
    """`.reg .b32 %r<486>` or `.reg .pred p, q`."""
    _, kind, names = statement.split(maxsplit=2)
    for name in names.split(","):
        several = re.fullmatch(r"(\S+?)<(\d+)>", name.strip())
        for each in [f"{several[1]}{i}" for i in range(int(several[2]))] if several else [name.strip()]:
            kernel.registers[scope.declare(each)] = len(kernel.reg_class)
            kernel.reg_class.append(REGISTER_CLASS[kind.removeprefix(".")])


def _instruction(kernel: Kernel, token: _Token, location: str) -> Instr:
    statement, pred = token.text, None
    try:
        if guard := GUARD.match(statement):
            pred = Predicate(kernel.registers[token.scope.resolve(guard[2])], bool(guard[1]))
            statement = statement[guard.end() :]
        op, _, rest = statement.partition(" ")
        args = [_operand(kernel, each, token.scope) for each in _split(rest)]
    except (KeyError, ValueError) as error:
        raise kernel.unknown(token.line, token.text, error) from None
    return Instr(len(kernel.instrs), token.line, token.text, op, op.split("."), args, pred, location)


def _split(text: str) -> list[str]:
    """Cut at the commas outside of brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "{[(") - (char in "}])")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def _operand(kernel: Kernel, text: str, scope: _Scope) -> Operand:
    def inner(part: str) -> Operand:
        return _operand(kernel, part.strip(), scope)

    if text.startswith("{"):
        return Vector("vec", [inner(part) for part in _split(text[1:-1])])
    if text.startswith("["):
        return _address(text[1:-1].strip(), inner)
    if "|" in text:
        first, second = text.split("|")
        return Pair("pair", inner(first), inner(second))
    if text.startswith("!"):
        return Negated("notreg", kernel.registers[scope.resolve(text[1:].strip())])
    name = scope.resolve(text)
    if name in kernel.registers:
        return Register("reg", kernel.registers[name])
    if name == "_":
        return Sink("sink")
    if NUMBER.fullmatch(name):
        return Immediate("imm", name)
    if name.startswith("%"):
        if name not in SPECIAL_REGISTERS:
            raise ValueError(f"register {name}")
        return Special("special", name)
    if re.fullmatch(r"[\w$@]+", name):
        return Symbol("sym", name)
    raise ValueError(f"operand {text}")


def _address(text: str, inner: Callable[[str], Operand]) -> Operand:
    """What stands between square brackets; `inner` reads the operands within."""
    if box := BOX.fullmatch(text):
        return Box("tensor", inner(box[1]), [inner(part) for part in box[2].split(",")])
    found = ADDRESS.fullmatch(text)
    if found is None:
        raise ValueError(f"address {text}")
    return Address("mem", inner(found[1]), int(found[2], 0) if found[2] else 0)
