"""Asynchronous copies and barriers in shared memory: PTX ISA, "Asynchronous copy" and "mbarrier"."""

from ..ptx import Box, Instr, Sink, UnknownInstruction
from .modifiers import Translation, only
from .source import Source, immediate


def cp(source: Source, instr: Instr, mask: str | None) -> list[str]:
    kind = instr.parts[1:]
    if kind[:2] == ["async", "bulk"]:
        return _bulk(source, instr, mask)
    if kind == ["async", "commit_group"]:
        return [f"S.cp_commit({mask}, {instr.index})"]
    if kind == ["async", "wait_group"]:
        return [f"S.cp_wait({immediate(instr.args[0])}, {mask}, {instr.index})"]
    if kind == ["async", "wait_all"]:
        return [f"S.cp_wait(-1, {mask}, {instr.index})"]
    if kind[0] == "async" and kind[1] in ("ca", "cg"):
        return _copy(source, instr, mask)
    raise UnknownInstruction("copy")


def _copy(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """Of 4, 8 or 16 bytes from global to shared memory; of the bytes past the last operand, zeros are written."""
    modifiers = only(instr.parts[3:], "shared shared::cta global L2::.+")
    target, place, size, *rest = instr.args
    if "L2::cache_hint" in modifiers:
        rest.pop()
    if immediate(size) not in ((16,) if instr.parts[2] == "cg" else (4, 8, 16)) or len(rest) > 1:
        raise UnknownInstruction(f"a copy of {immediate(size)} bytes with {len(instr.args)} operands")
    read = source.array(rest[0], "u4") if rest else None
    places = f"{source.address(target, 'u4')}, {source.address(place, 'u8')}"
    return [f"S.cp_async({places}, {immediate(size)}, {read}, {mask}, {instr.index})"]


def _bulk(source: Source, instr: Instr, mask: str | None) -> list[str]:
    kind = instr.parts[3:]
    if kind == ["commit_group"]:
        return [f"S.bulk_commit({mask}, {instr.index})"]
    if kind[0] == "wait_group":
        only(kind[1:], "read")
        return [f"S.bulk_wait({immediate(instr.args[0])}, {'read' in kind}, {mask}, {instr.index})"]
    if kind[0] != "tensor":
        raise UnknownInstruction("bulk copy")
    rank, to, of = int(kind[1][0]), kind[2], kind[3]
    first, second, *rest = instr.args
    if to in ("shared::cta", "shared::cluster") and of == "global" and isinstance(second, Box):
        only(kind[4:], "tile mbarrier::complete_tx::bytes L2::cache_hint")
        barrier = source.address(rest[0], "u4")
        return [f"S.tma_load({source.address(first, 'u4')}, {_box(source, second)}, {barrier}, {rank}, {mask}, {instr.index})"]
    if to == "global" and of == "shared::cta" and isinstance(first, Box):
        only(kind[4:], "tile bulk_group L2::cache_hint")
        return [f"S.tma_store({source.address(second, 'u4')}, {_box(source, first)}, {rank}, {mask}, {instr.index})"]
    raise UnknownInstruction("tile copy")


def _box(source: Source, box: Box) -> str:
    coordinates = ", ".join(source.array(each, "i4") for each in box.coordinates)
    return f"{source.array(box.descriptor, 'u8')}, [{coordinates}]"


def mbarrier(source: Source, instr: Instr, mask: str | None) -> list[str]:
    """Barriers in shared memory; waits for them end a basic block and are the schedule's."""
    kind, *modifiers = instr.parts[1:]
    only(modifiers, f"shared shared::cta b64{' expect_tx release cta' if kind == 'arrive' else ''}")
    if kind == "init":
        place, count = instr.args
        return [f"S.mbar_init({source.address(place, 'u4')}, {immediate(count)}, {mask}, {instr.index})"]
    if kind == "inval":
        return [f"S.mbar_inval({source.address(instr.args[0], 'u4')}, {mask}, {instr.index})"]
    if kind != "arrive":
        raise UnknownInstruction(f"mbarrier.{kind}")
    state, place, *transferred = instr.args
    if not isinstance(state, Sink) or len(transferred) != ("expect_tx" in modifiers):
        raise UnknownInstruction("an arrival that gives a state, or counts for several")
    expected = source.array(transferred[0], "u4") if transferred else None
    return [f"S.mbar_arrive({source.address(place, 'u4')}, {expected}, {mask}, {instr.index})"]


TABLE: dict[str, Translation] = {"cp": cp, "mbarrier": mbarrier}
