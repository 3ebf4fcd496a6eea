"""One kernel compiled ahead of time for one target, and what is wrong with the result; needs no GPU."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fastbert.kernels.specs.spec import KernelVariant

from .assembler import FENCE, ptxas_log, registers_and_stack, waits_added
from .slots import overwritten_operands


@dataclass(frozen=True)
class Target:
    """backend, arch, warp_size: as in Triton's GPUTarget. max_shared_bytes: shared memory of one block."""

    backend: str
    arch: int | str
    warp_size: int
    max_shared_bytes: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 * 1024),
    "sm_90": Target("cuda", 90, 32, 227 * 1024),
    "sm_100": Target("cuda", 100, 32, 227 * 1024),
    "gfx942": Target("hip", "gfx942", 64, 64 * 1024),
}
MATRIX_INSTRUCTIONS = {
    "wgmma": r"\bwgmma\.mma_async",
    "tcgen05": r"\btcgen05\.mma",
    "mma.sync": r"\bmma\.sync",
    "mfma": r"\bv_s?mfmac?_",
}
# The assembler spills one or two values of its own choice where registers are left, for more programs to a multiprocessor.
FEW_BYTES, MANY_REGISTERS = 8, 128
ASYNC_COPY = r"\bcp\.async\.c[ag]\."
BULK_COPY = r"\bcp\.async\.bulk\.(?!commit_group|wait_group)"


@dataclass(frozen=True)
class Row:
    """One kernel on one target.

    spill: bytes of stack per thread on NVIDIA, spilled vector registers on AMD. matrix_instructions: their kind.
    """

    operation: str
    variant: str
    target: str
    num_warps: int
    num_stages: int
    registers: int = 0
    spill: int = 0
    shared_bytes: int = 0
    blocks_per_multiprocessor: int | None = None
    matrix_instructions: str = ""
    matrix_count: int = 0
    async_copies: int = 0
    bulk_copies: int = 0
    problems: tuple[str, ...] = ()
    note: str = ""


def compile_variant(operation: str, variant: KernelVariant, target_name: str) -> Row:
    """The row of one variant compiled for one target. Raises what the compiler raises."""
    target = TARGETS[target_name]
    compiled = _compile(variant, target)
    assembly = compiled.asm["ptx" if target.backend == "cuda" else "amdgcn"]
    counts = {kind: len(re.findall(pattern, assembly)) for kind, pattern in MATRIX_INSTRUCTIONS.items()}
    kind = next((kind for kind, count in counts.items() if count), "")
    row = Row(
        operation,
        variant.name,
        target_name,
        variant.num_warps,
        variant.num_stages,
        shared_bytes=compiled.metadata.shared,
        matrix_instructions=kind,
        matrix_count=counts.get(kind, 0),
        async_copies=len(re.findall(ASYNC_COPY, assembly)),
        bulk_copies=len(re.findall(BULK_COPY, assembly)),
    )
    problems, notes = [], []
    if target.backend == "cuda":
        registers, spill = registers_and_stack(compiled.asm["cubin"])
        blocks = _blocks_per_multiprocessor(registers, row.shared_bytes, variant.num_warps, target_name)
        row = replace(row, registers=registers, spill=spill, blocks_per_multiprocessor=blocks)
        if kind in ("wgmma", "tcgen05"):  # asynchronous products
            problems += overwritten_operands(compiled.asm["ttgir"])
        if kind == "wgmma":
            waits = [f"ptxas {sentence}" for sentence in waits_added(ptxas_log(assembly, int(target.arch)))]
            waits = [wait for wait in waits if not re.search(FENCE, wait)]
            problems += [] if variant.added_waits else waits
            notes += [f"ptxas waits: {variant.added_waits}"] if waits and variant.added_waits else []
        notes += [f"spills: {variant.spills}"] if spill and variant.spills else []
    else:
        row = replace(row, registers=_count_of("vgpr_count", assembly), spill=_count_of("vgpr_spill_count", assembly))
    uses_older_unit = variant.unit == "tensor" and target_name == "sm_90" and counts["mma.sync"] > 0
    if uses_older_unit and not variant.older_unit:
        problems.append(f"{counts['mma.sync']} mma.sync where wgmma is meant")
    if uses_older_unit and variant.older_unit:
        notes.append(f"mma.sync: {variant.older_unit}")
    return replace(row, problems=(*problems, *_problems(row, variant, target)), note="; ".join(notes))


def _compile(variant: KernelVariant, target: Target) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.kernel.arg_names
    signature = {name: "constexpr" if name in variant.constexprs else variant.signature[name] for name in names}
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if (signature[name].startswith("*") and name not in variant.unaligned) or name in variant.divisible
    }
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    if variant.maxnreg is not None and target.backend == "cuda":
        options["maxnreg"] = variant.maxnreg
    source = ASTSource(variant.kernel, signature, dict(variant.constexprs), attributes)
    gpu_target = GPUTarget(target.backend, target.arch, target.warp_size)
    return triton.compile(source, target=gpu_target, options=options)


def _problems(row: Row, variant: KernelVariant, target: Target) -> Iterator[str]:
    is_choice = row.spill <= FEW_BYTES and (row.registers <= MANY_REGISTERS or not variant.of_bert)
    if row.spill and not is_choice and not variant.spills:
        yield f"spills {row.spill}"
    if row.shared_bytes > target.max_shared_bytes:
        yield f"{row.shared_bytes} bytes of shared memory, {target.max_shared_bytes} fit"
    if row.bulk_copies == 0 and any(kind.startswith("tensordesc") for kind in variant.signature.values()):
        yield "tensor descriptors, and no bulk copy"
    if variant.unit == "tensor" and not row.matrix_instructions:
        yield "no matrix instruction"
    if variant.unit == "scalar" and target.backend == "cuda" and row.matrix_instructions:
        yield f"{row.matrix_count} {row.matrix_instructions} where float32 products are meant to be exact"


def _count_of(key: str, assembly: str) -> int:
    found = re.search(rf"\.{key}:\s+(\d+)", assembly)
    if found is None:
        raise RuntimeError(f"expected .{key} in the assembly, got none")
    return int(found[1])


def _blocks_per_multiprocessor(registers: int, shared: int, num_warps: int, target_name: str) -> int:
    """How many blocks fit at once: registers come in units of 256 per warp, a block takes 1 KiB of shared memory on top."""
    per_warp = -(-registers * 32 // 256) * 256
    total_shared = (164 if target_name == "sm_80" else 228) * 1024
    return min(65536 // (per_warp * num_warps), total_shared // (shared + 1024), 2048 // (32 * num_warps), 32)
