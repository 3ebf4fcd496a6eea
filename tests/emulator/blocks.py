"""Basic blocks, so numbered that threads which took different ways meet again where the hardware's do.

The schedule runs those threads first whose block has the lowest number. So a block where paths meet must be numbered after all
of them, and a loop must be numbered in one piece, before what follows it: then nobody goes on while others are still inside.
"""

from bisect import bisect_right

from .ptx import Barrier, Block, Branch, Fall, Instr, Kernel, Return, Symbol, Terminator, Wait

Graph = list[list[int]]  # the blocks that may follow each


def basic_blocks(kernel: Kernel) -> list[Block]:
    """The kernel's instructions in blocks, numbered in the order of `reconvergence_order`; unreachable ones last."""
    starts = _starts(kernel)
    raw = []
    for place, (start, stop) in enumerate(zip(starts, [*starts[1:], len(kernel.instrs)])):
        body, after = kernel.instrs[start:stop], place + 1
        if ends_block(body[-1]):
            raw.append(Block(place, body[:-1], _terminator(kernel, starts, body[-1], after)))
        else:
            raw.append(Block(place, body, Fall("fall", after)))
    order = reconvergence_order(successors(raw))
    order += sorted(set(range(len(raw))) - set(order))
    number = {place: index for index, place in enumerate(order)}
    number[len(raw)] = -1
    return [Block(index, raw[place].instrs, _renumbered(raw[place].term, number)) for index, place in enumerate(order)]


def ends_block(instr: Instr) -> bool:
    """Whether threads may part or wait after this instruction."""
    op = instr.parts
    if op[0] in ("bar", "barrier"):
        return "sync" in op and "warp" not in op and "cluster" not in op
    return op[0] in ("bra", "ret", "exit") or _waits(instr)


def _waits(instr: Instr) -> bool:
    return instr.parts[0] == "mbarrier" and instr.parts[1] in ("try_wait", "test_wait")


def _starts(kernel: Kernel) -> list[int]:
    """Instructions with which a block begins: the first, targets of jumps, what follows an end, and waits."""
    starts = {0}
    for instr in kernel.instrs:
        if instr.parts[0] == "bra":
            starts.add(_target(kernel, instr))
        if ends_block(instr):
            starts.add(instr.index + 1)
        if _waits(instr):
            starts.add(instr.index)
    return sorted(start for start in starts if start < len(kernel.instrs))


def _target(kernel: Kernel, instr: Instr) -> int:
    label = instr.args[0]
    if not isinstance(label, Symbol) or label.name not in kernel.labels:
        raise kernel.unknown(instr.line, instr.text, "a jump to no label of the kernel")
    return kernel.labels[label.name]


def _terminator(kernel: Kernel, starts: list[int], instr: Instr, after: int) -> Terminator:
    if instr.parts[0] == "bra":
        return Branch("bra", bisect_right(starts, _target(kernel, instr)) - 1, instr.pred, after)
    if instr.parts[0] in ("ret", "exit"):
        return Return("ret", instr.pred, after)
    if _waits(instr):
        if "parity" not in instr.parts or instr.pred is not None:
            raise kernel.unknown(instr.line, instr.text, "a wait for a state, or under a predicate")
        return Wait("wait", instr, after)
    return Barrier("bar", instr, after)


def _renumbered(term: Terminator, number: dict[int, int]) -> Terminator:
    if isinstance(term, Branch):
        term = term._replace(target=number[term.target])
    return term._replace(next=number[term.next])


def successors(blocks: list[Block]) -> Graph:
    """The blocks to which threads can go from each; one past the last is none."""
    graph: Graph = []
    for block in blocks:
        term = block.term
        following = [] if isinstance(term, (Branch, Return)) and term.pred is None else [term.next]
        if isinstance(term, Branch):
            following.insert(0, term.target)
        graph.append([place for place in following if place < len(blocks)])
    return graph


def reconvergence_order(graph: Graph) -> list[int]:
    """The blocks that can be reached from block 0, each after those that lead to it, and each loop in one piece.

    Edges back to the head of a loop do not count. Raises NotImplementedError where a loop has two heads, which compilers of
    structured code never make.
    """
    nodes = _reachable(graph)
    before = {node: [other for other in nodes if node in graph[other]] for node in nodes}
    return _arranged(graph, _loops(graph, nodes, before), set(nodes), None)


def _reachable(graph: Graph) -> list[int]:
    seen: set[int] = set()
    stack = [0]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack += graph[node]
    return sorted(seen)


def _dominators(nodes: list[int], before: dict[int, list[int]]) -> dict[int, set[int]]:
    """For each block, those through which every way from block 0 to it goes, itself included."""
    dominators = {node: set(nodes) for node in nodes} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for node in nodes[1:]:
            found = set.intersection(*(dominators[other] for other in before[node])) | {node}
            changed |= found != dominators[node]
            dominators[node] = found
    return dominators


def _loops(graph: Graph, nodes: list[int], before: dict[int, list[int]]) -> dict[int, set[int]]:
    """The natural loops: for each head, the blocks from which it is reached again without leaving what it dominates."""
    dominators = _dominators(nodes, before)
    loops: dict[int, set[int]] = {}
    for node in nodes:
        for head in graph[node]:
            if head in dominators[node]:
                body, todo = loops.setdefault(head, {head}), [node]
                while todo:
                    member = todo.pop()
                    if member not in body:
                        body.add(member)
                        todo += before[member]
    return loops


def _arranged(graph: Graph, loops: dict[int, set[int]], region: set[int], head: int | None) -> list[int]:
    """The blocks of a region in topological order, its outermost loops as one unit each, and within each likewise."""
    inner = {first: body for first, body in loops.items() if first in region and first != head and body <= region}
    outermost = {first: body for first, body in inner.items() if not any(body < other for other in inner.values())}
    unit = {node: node for node in region} | {node: first for first, body in outermost.items() for node in body}
    edges: dict[int, set[int]] = {name: set() for name in unit.values()}
    for node in region:
        for following in graph[node]:
            if following in region and following != head and unit[node] != unit[following]:
                edges[unit[node]].add(unit[following])
    open_edges = dict.fromkeys(edges, 0)
    for targets in edges.values():
        for name in targets:
            open_edges[name] += 1
    order: list[int] = []
    ready = sorted(name for name, number in open_edges.items() if number == 0)
    while ready:
        name = ready.pop(0)
        order += _arranged(graph, loops, outermost[name], name) if name in outermost else [name]
        for following in edges[name]:
            open_edges[following] -= 1
            if open_edges[following] == 0:
                ready.append(following)
        ready.sort()
    if len(order) != len(region):
        raise NotImplementedError("a loop with two heads")
    return order
