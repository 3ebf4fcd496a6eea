"""What threads of a warp do together, and fences: PTX ISA, "Parallel Synchronization and Communication Instructions"."""

from ..ptx import Immediate, Instr, Operand, Pair, UnknownInstruction
from .modifiers import Translation, one_of, only
from .source import ELEMENT, Source, immediate


def _lanes(source: Source, operand: Operand) -> str:
    return str(immediate(operand)) if isinstance(operand, Immediate) else source.value(operand, "u4")


def shfl(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """Each thread's value from another lane; the predicate says whether that lane is in range."""
    if (instr.parts[1], instr.parts[-1]) != ("sync", "b32"):
        raise UnknownInstruction("expected shfl.sync.b32")
    mode = one_of(only(instr.parts[2:-1], "up down bfly idx"), "up down bfly idx")
    target, value, lane, clamp, member = instr.args
    arguments = f"{source.array(value, 'u4')}, {_lanes(source, lane)}, {_lanes(source, clamp)}, {source.value(member, 'u4')}"
    statement = f"found, in_range = S.shfl({mode!r}, {arguments}, {mask}, {instr.index})"
    if isinstance(target, Pair):
        results = [source.store(target.first, "found", "u4", mask), source.store(target.second, "in_range", "p", mask)]
        return [statement, *results]
    return [statement, source.store(target, "found", "u4", mask)]


def redux(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """A reduction over the warp."""
    operation = one_of(only(instr.parts[1:-1], "sync add min max and or xor") - {"sync"}, "add min max and or xor")
    target, value, member = instr.args
    code = ELEMENT[instr.parts[-1]]
    if code not in ("u4", "i4"):
        raise UnknownInstruction(f"reduction of {instr.parts[-1]}")
    reduced = f"S.redux({operation!r}, {source.array(value, code)}, {source.value(member, 'u4')}, {mask}, {instr.index})"
    return [source.store(target, reduced, code, mask)]


def vote(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """Whether a predicate is true in any or all of the warp's threads, or in which."""
    kind = one_of(only(instr.parts[1:-1], "sync any all ballot") - {"sync"}, "any all ballot")
    target, predicate, _ = instr.args
    voted = f"S.vote({kind!r}, {source.value(predicate, 'p')}, {mask}, {instr.index})"
    return [source.store(target, voted, "u4" if kind == "ballot" else "p", mask)]


def activemask(source: Source, instr: Instr, mask: str | None) -> list[str]:
    return [source.store(instr.args[0], f"S.activemask({mask})", "u4", mask)]


def elect(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """One thread of the warp: its lane, and a predicate that is true in it alone."""
    only(instr.parts[1:], "sync")
    target, _ = instr.args
    if not isinstance(target, Pair):
        raise UnknownInstruction("expected two results")
    results = [source.store(target.first, "leader", "u4", mask), source.store(target.second, "elected", "p", mask)]
    return [f"leader, elected = S.elect({mask}, {instr.index})", *results]


def bar(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """`bar.warp.sync`; barriers of the block end a basic block and are the schedule's."""
    if instr.parts[1:] != ["warp", "sync"]:
        raise UnknownInstruction("barrier")
    return [f"S.warp_sync({mask}, {instr.index})"]


def fence(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """`fence` and `membar` order memory, which the machine does anyway; `fence.proxy.async` is what it checks."""
    if instr.parts[:3] == ["fence", "proxy", "async"]:
        only(instr.parts[3:], "global shared::cta shared::cluster")
        return [f"S.proxy_fence({mask}, {instr.index})"]
    only(instr.parts[1:], "acq_rel sc mbarrier_init release cluster cta gpu sys gl")
    return [f"S.fence({mask}, {instr.index})"]


def trap(source: Source, instr: Instr, mask: str | None) -> list[str]:
    return [f"S.trap({mask}, {instr.index})"]


def nothing(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """Time, registers, and the order of kernels: not modelled."""
    return []


TABLE: dict[str, Translation] = {
    "shfl": shfl,
    "redux": redux,
    "vote": vote,
    "activemask": activemask,
    "elect": elect,
    "bar": bar,
    "fence": fence,
    "membar": fence,
    "trap": trap,
    "nanosleep": nothing,
    "griddepcontrol": nothing,
    "setmaxnreg": nothing,
}
