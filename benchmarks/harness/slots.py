"""Whether a copy into shared memory may overwrite what a matrix product in flight still reads.

On Hopper and data-centre Blackwell a product reads its operands from shared memory while the program goes on. A pipelined
loop keeps each operand in a ring of slots; the slot that a copy writes must not be one that a product not yet waited for
still reads. The ring needs as many slots as copies run ahead, and one more for each product left in flight. This file does
not count them: it plays the loops of Triton's TTGIR, with the slot numbers as they are computed there, and watches. Copies are
taken to land at once and products to read as late as their wait allows.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

ROUNDS = 3  # around the longest ring, and for loops that hold a loop
_LOCATION = re.compile(r" loc\((?:[^()]|\([^()]*\))*\)")
_OPERATION = re.compile(
    r'^(?:(?P<results>%[\w.$-]+(?::\d+)?(?:, %[\w.$-]+)*) = )?(?P<name>"?[a-z_]+\.[a-z_.0-9]+"?)(?P<rest>.*)$'
)
_VALUE = re.compile(r"%[\w.$-]+(?:#\d+)?")
_VIEWS = ("memdesc_trans", "memdesc_reshape", "memdesc_reinterpret", "memdesc_subslice", "tmem_subslice")
_INTEGERS: dict[str, Callable[[int, int], int]] = {
    "addi": lambda a, b: a + b,
    "subi": lambda a, b: a - b,
    "muli": lambda a, b: a * b,
    "xori": lambda a, b: a ^ b,
    "andi": lambda a, b: a & b,
    "ori": lambda a, b: a | b,
    "remsi": lambda a, b: a % b,
    "remui": lambda a, b: a % b,
    "divsi": lambda a, b: a // b,
    "divui": lambda a, b: a // b,
    "minsi": min,
    "maxsi": max,
}
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "slt": lambda a, b: a < b,
    "sle": lambda a, b: a <= b,
    "sgt": lambda a, b: a > b,
    "sge": lambda a, b: a >= b,
    "ult": lambda a, b: a < b,
    "uge": lambda a, b: a >= b,
}


@dataclass
class _Operation:
    """One line of TTGIR, with the regions it opens."""

    name: str
    results: list[str]
    rest: str
    regions: list[list["_Operation"]] = field(default_factory=list)

    @property
    def operands(self) -> list[str]:
        """The values before the types."""
        return _VALUE.findall(self.rest.split(" : ")[0])


@dataclass(frozen=True)
class _Memory:
    """A view of an allocation. slot: the index into it, None for all of it, -1 where it is not known."""

    ring: str
    slot: int | None = None

    def meets(self, other: "_Memory") -> bool:
        """Whether both may be the same bytes."""
        slots = (self.slot, other.slot)
        return self.ring == other.ring and (self.slot == other.slot or None in slots or -1 in slots)


@dataclass
class _Product:
    """A product in flight. barrier, phase: of the barrier that tells its end, and how often that has told one before."""

    reads: tuple[_Memory, ...]
    barrier: _Memory | None = None
    phase: int = 0


def overwritten_operands(ttgir: str) -> list[str]:
    """One sentence for each allocation that a copy may overwrite under a product; and for what cannot be followed."""
    player = _Player(max((int(slots) for slots in re.findall(r"memdesc<(\d+)x", ttgir) if int(slots) <= 16), default=1))
    player.play(_parse(ttgir), {})
    if player.started == 0 and re.search(r"ttng\.(warp_group_dot |tc_gen5_mma)", ttgir):
        player.found["no product is found where there is one"] = None
    return list(player.found)


def _parse(ttgir: str) -> list[_Operation]:
    """The operations of the kernel, functions and modules flattened; regions of reductions are left out."""
    text = re.sub(r"(?m)^#.*$", "", ttgir)
    while (shorter := _LOCATION.sub("", text)) != text:
        text = shorter
    top: list[_Operation] = []
    stack: list[list[_Operation]] = [top]
    owners: list[_Operation | None] = []
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("}"):
            owner = owners.pop()
            stack.pop()
            if line.endswith("{"):  # } else {, } do {
                owners.append(owner)
                stack.append([])
                if owner is not None:
                    owner.regions.append(stack[-1])
            continue
        match = _OPERATION.match(line)
        operation = None
        if match is not None:
            operation = _Operation(match["name"].strip('"'), _names(match["results"]), match["rest"])
            stack[-1].append(operation)
        if line.endswith("{"):
            owners.append(operation)
            stack.append(stack[-1] if operation is None else [])  # a module's region is no region of its own
            if operation is not None:
                operation.regions.append(stack[-1])
    return top


def _names(results: str | None) -> list[str]:
    """'%x:2' stands for %x#0 and %x#1."""
    names: list[str] = []
    for name in (results or "").split(", ") if results else ():
        base, _, count = name.partition(":")
        names += [f"{base}#{i}" for i in range(int(count))] if count else [base]
    return names


class _Player:
    """Executes operations on what is known: small integers and views of memory. Everything else is None."""

    def __init__(self, most_slots: int) -> None:
        self.iterations = ROUNDS * most_slots + 4
        self.products: list[_Product] = []
        self.barriers: dict[_Memory, list[int]] = {}  # products posted to a barrier, and known to have ended
        self.found: dict[str, None] = {}
        self.started = 0

    def play(self, operations: Sequence[_Operation], values: dict[str, Any]) -> list[Any]:
        """Runs a region; returns what it yields."""
        for operation in operations:
            kind = operation.name.split(".", 1)[1]
            if kind in ("yield", "condition"):
                return [values.get(name) for name in operation.operands]
            results = self._step(kind, operation, values)
            for i, name in enumerate(operation.results):
                values[name] = results[i] if i < len(results) else None
        return []

    def _step(self, kind: str, operation: _Operation, values: dict[str, Any]) -> list[Any]:
        operands = [values.get(name) for name in operation.operands]
        if operation.name == "tt.func":
            return self.play(operation.regions[0], values)
        if operation.name.startswith("scf."):
            return self._control(kind, operation, operands, values)
        if operation.name.startswith("arith."):
            return [_arithmetic(kind, operation, operands)]
        if kind in ("local_alloc", "tmem_alloc"):
            memory = _Memory(operation.results[0])
            if operation.operands:
                self._write(memory)
            return [memory]
        if kind == "memdesc_index":
            whole, index = operands[0], operands[1]
            if not isinstance(whole, _Memory) or whole.slot is not None:
                return [whole]
            return [_Memory(whole.ring, -1 if index is None else int(index))]
        if kind in _VIEWS:
            return [operands[0]]
        if kind in ("async_copy_global_to_local", "local_store"):
            self._write(operands[1])
        elif kind in ("async_tma_copy_global_to_local", "async_tma_gather"):
            self._write(values.get(_VALUE.findall(operation.rest.split("]", 1)[1])[0]))
        elif kind == "warp_group_dot":
            self._start(operands[:2], operation, "isAsync = true" in operation.rest)
        elif kind == "warp_group_dot_wait":
            pending = int(re.search(r"pendings = (\d+)", operation.rest)[1])  # type: ignore[index]
            del self.products[: max(len(self.products) - pending, 0)]
            return operands
        elif kind.startswith("tc_gen5_mma"):
            self._start_with_barrier(operation, values)
        elif kind == "init_barrier":
            self.barriers = {barrier: count for barrier, count in self.barriers.items() if barrier != operands[0]}
        elif kind == "wait_barrier":
            self._wait(operands[0], operands[1])
        return []

    def _control(self, kind: str, operation: _Operation, operands: list[Any], values: dict[str, Any]) -> list[Any]:
        if kind == "for":
            return self._loop(operation, values)
        if kind == "if":
            condition, regions = operands[0], operation.regions
            if condition is not None:
                return self.play(regions[0] if condition else regions[1] if len(regions) > 1 else [], dict(values))
            either = [self.play(region, dict(values)) for region in regions]  # one after the other: both may have run
            return [a if a == b else None for a, b in zip(either[0], either[-1])]
        if kind == "while":
            carried = [values.get(name) for name in _VALUE.findall(operation.rest.split(" : ")[0])[1::2]]
            for _ in range(ROUNDS):
                before, after = operation.regions
                carried = self.play(before, dict(values))[1:]
                self.play(after, dict(values))
            return carried
        return []

    def _loop(self, operation: _Operation, values: dict[str, Any]) -> list[Any]:
        head, _, carried_text = operation.rest.partition("iter_args(")
        variable, first, _, step = _VALUE.findall(head.split(" : ")[0])[:4]
        pairs = re.findall(r"(%[\w.$-]+) = (%[\w.$-]+(?:#\d+)?)", carried_text.split(")", 1)[0])
        carried = [values.get(start) for _, start in pairs]
        start, step_size = values.get(first), values.get(step)
        has_loop = any(inner.name in ("scf.for", "scf.while") for inner in operation.regions[0])
        for iteration in range(ROUNDS if has_loop else self.iterations):
            inside = dict(values)
            inside |= {name: value for (name, _), value in zip(pairs, carried)}
            inside[variable] = None if start is None or step_size is None else start + iteration * step_size
            carried = self.play(operation.regions[0], inside)
        return carried

    def _write(self, memory: Any) -> None:
        for product in self.products:
            for read in product.reads:
                if not isinstance(memory, _Memory):
                    self._tell("a copy goes to memory that cannot be followed")
                elif memory.meets(read):
                    self._tell(f"a copy overwrites {memory.ring}, which a product in flight still reads")

    def _start(self, operands: Sequence[Any], operation: _Operation, is_async: bool) -> None:
        reads = tuple(memory for memory in operands if isinstance(memory, _Memory))
        kinds = operation.rest.split(" : ", 1)[1].split(" -> ")[0]
        if len(reads) < kinds.count("memdesc<"):
            self._tell("a product reads memory that cannot be followed")
        self.started += 1
        if is_async:
            self.products.append(_Product(reads))
        else:
            self.products.clear()

    def _start_with_barrier(self, operation: _Operation, values: dict[str, Any]) -> None:
        text = operation.rest.split(" : ")[0]
        operands = [values.get(name) for name in _VALUE.findall(text)[:2]]
        reads = tuple(memory for memory in operands if isinstance(memory, _Memory))
        self.started += 1
        if len(reads) < 2:
            self._tell("a product reads memory that cannot be followed")
            return
        product = _Product(reads)
        for name in re.findall(r"(%[\w.$-]+(?:#\d+)?)\[%", text):
            barrier = values.get(name)
            if not isinstance(barrier, _Memory) or barrier.slot == -1:
                self._tell("a product ends at a barrier that cannot be followed")
                return
            count = self.barriers.setdefault(barrier, [0, 0])
            count[0] += 1
            product.barrier, product.phase = barrier, count[0]
        self.products.append(product)

    def _wait(self, barrier: Any, parity: Any) -> None:
        """Products end in order: with the one that was waited for, all before it."""
        if not isinstance(barrier, _Memory) or barrier not in self.barriers or parity is None:
            return  # not a product's, or one that cannot be told: nothing has ended for certain
        count = self.barriers[barrier]
        ended = max(count[1], 1)
        ended += (ended - 1) % 2 != parity
        if ended > count[0]:
            return
        count[1] = ended
        for i, product in enumerate(self.products):
            if product.barrier == barrier and product.phase == ended:
                del self.products[: i + 1]
                return

    def _tell(self, sentence: str) -> None:
        self.found[sentence] = None


def _arithmetic(kind: str, operation: _Operation, operands: list[Any]) -> Any:
    if kind == "constant":
        number = re.match(r" (-?\d+|true|false)(?: :|$)", operation.rest)
        return None if number is None else number[1] == "true" if number[1].isalpha() else int(number[1])
    if kind == "select":
        condition, yes, no = operands[:3]
        return (yes if yes == no else None) if condition is None else yes if condition else no
    if kind in ("extsi", "extui", "trunci", "index_cast"):
        return operands[0]
    known = len(operands) == 2 and all(isinstance(value, int) for value in operands)
    if kind == "cmpi":
        compare = _COMPARISONS.get(operation.rest.split(",")[0].strip())
        return compare(*operands) if known and compare is not None else None
    return _INTEGERS[kind](*operands) if known and kind in _INTEGERS else None
