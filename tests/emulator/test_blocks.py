"""Basic blocks, and the order that lets threads meet again."""

import random

import pytest

from tests.emulator.blocks import reconvergence_order, successors
from tests.emulator.one_instruction import kernel_of
from tests.emulator.ptx import UnknownInstruction

REGISTERS = ".reg .pred %p<9>;\n.reg .b32 %r<9>;"


def blocks(body):
    return kernel_of(body, REGISTERS).blocks


def labelled(body):
    """For each label, the number of the block that begins there."""
    kernel = kernel_of(body, REGISTERS)
    first = {block.instrs[0].index: block.index for block in kernel.blocks if block.instrs}
    return {label: first[place] for label, place in kernel.labels.items()}


def test_a_straight_line_is_one_block():
    (block,) = blocks("mov.b32 %r1, 0;\nmov.b32 %r2, 0;")
    assert [instr.op for instr in block.instrs] == ["mov.b32", "mov.b32"]
    assert block.term == ("ret", None, -1)


def test_a_diamond_meets_after_both_sides():
    """The text puts one side behind the place where both meet, as compilers do with what is rare."""
    at = labelled(
        """
        top: mov.b32 %r0, 0; @%p1 bra rare;
        common: mov.b32 %r1, 1;
        meet: mov.b32 %r2, 2; ret;
        rare: mov.b32 %r1, 3; bra meet;
        """
    )
    assert at["top"] == 0
    assert at["meet"] > max(at["rare"], at["common"])


def test_what_follows_a_loop_comes_after_all_of_it():
    at = labelled(
        """
        top: mov.b32 %r0, 0; bra head;
        done: mov.b32 %r1, 0; ret;
        head: mov.b32 %r2, 0; @%p1 bra done;
        body: mov.b32 %r3, 0; @%p2 bra head;
        more: mov.b32 %r4, 0; bra head;
        """
    )
    assert at["top"] < at["head"] < at["body"] < at["more"] < at["done"]


def test_an_inner_loop_lies_in_one_piece_inside_the_outer():
    at = labelled(
        """
        outer: mov.b32 %r0, 0;
        inner: mov.b32 %r1, 0; @%p1 bra leave;
        body: mov.b32 %r2, 0; bra inner;
        leave: mov.b32 %r3, 0; @%p2 bra outer;
        done: mov.b32 %r4, 0;
        """
    )
    assert at == {"outer": 0, "inner": 1, "body": 2, "leave": 3, "done": 4}


def test_ends_of_blocks():
    one, two, three, four, five = blocks(
        """
        mov.b32 %r0, 0; bar.sync 0;
        mov.b32 %r1, 0; @!%p2 ret;
        mov.b32 %r2, 0;
        mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], %r2;
        mov.b32 %r3, 0; bar.warp.sync -1; mov.b32 %r4, 0;
        """
    )
    assert (one.term.kind, one.term.instr.op, one.term.next) == ("bar", "bar.sync", 1)
    assert two.term == ("ret", (2, True), 2)
    assert three.term == ("fall", 3)  # a wait is repeated, so nothing may stand before it in its block
    assert (four.instrs, four.term.kind, four.term.instr.op[:8]) == ([], "wait", "mbarrier")
    assert len(five.instrs) == 3


def test_blocks_that_nothing_reaches_come_last():
    one, two, three = blocks("bra end;\nmov.b32 %r1, 0;\nend: mov.b32 %r2, 0;")
    assert one.term == ("bra", 1, None, 2)
    assert two.instrs[0].text == "mov.b32 %r2, 0"
    assert three.term == ("fall", 1)


def test_a_wait_for_a_state_is_unknown():
    with pytest.raises(UnknownInstruction, match=r"mbarrier\.test_wait\.shared::cta\.b64 %p1, \[%r1\], %r2"):
        blocks("mbarrier.test_wait.shared::cta.b64 %p1, [%r1], %r2;")


def test_a_loop_with_two_heads_is_refused():
    with pytest.raises(NotImplementedError, match="a loop with two heads"):
        reconvergence_order([[1, 2], [2], [1, 3], []])


class Program:
    """A random program of sequences, choices and loops, as a graph, with the blocks of each loop."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.graph: list[list[int]] = [[]]
        self.loops: list[set[int]] = []
        self.backward: set[tuple[int, int]] = set()
        self.end = self.part(0, 4)

    def block(self, *before: int) -> int:
        self.graph.append([])
        for block in before:
            self.graph[block].append(len(self.graph) - 1)
        return len(self.graph) - 1

    def part(self, start: int, depth: int) -> int:
        """Goes on from a block; returns the block where all ways of the part meet."""
        for _ in range(self.random.randint(1, 2)):
            kind = self.random.choice(["choice", "sides", "while", "repeat"]) if depth else "straight"
            if kind == "straight":
                start = self.block(start)
            elif kind == "choice":
                start = self.block(self.part(self.block(start), depth - 1), start)
            elif kind == "sides":
                start = self.block(*(self.part(self.block(start), depth - 1) for _ in range(2)))
            else:
                head = self.block(start)
                last = self.part(self.block(head), depth - 1)
                self.loops.append(set(range(head, len(self.graph))))
                self.graph[last].append(head)
                self.backward.add((last, head))
                start = self.block(head if kind == "while" else last)
        return start


@pytest.mark.parametrize("seed", range(60))
def test_every_structured_program_is_in_order(seed):
    program = Program(seed)
    names = list(range(1, len(program.graph)))
    random.Random(seed).shuffle(names)  # the text may hold blocks in any order
    names.insert(0, 0)
    graph: list[list[int]] = [[] for _ in names]
    for block, following in enumerate(program.graph):
        graph[names[block]] = [names[other] for other in following]
    order = reconvergence_order(graph)
    place = {block: order.index(names[block]) for block in range(len(names))}
    for block, following in enumerate(program.graph):
        for other in following:
            assert (place[block] < place[other]) == ((block, other) not in program.backward)
    for loop in program.loops:
        assert max(place[block] for block in loop) - min(place[block] for block in loop) == len(loop) - 1


def test_successors_follow_the_terminators():
    graph = successors(blocks("@%p1 bra end;\nmov.b32 %r1, 0;\nend: @%p2 ret;\nbra end;"))
    assert graph == [[2, 1], [2], [3], [2], []]  # the last is the `ret` that every kernel ends in
