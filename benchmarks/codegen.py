"""What the compiler makes of every shipped kernel, on a machine without a GPU: `python -m benchmarks.codegen`.

Compiles each variant of each operation's spec for each target and prints one row: registers, spilled bytes, shared memory,
thread blocks per multiprocessor, matrix instructions and bulk copies. Exit status 1 on a spill, on shared memory that does
not fit, on wgmma that the assembler serialised, on a row that misses the matrix instructions it is meant to use, or the bulk
copies that its tensor descriptors are for; with --check also on a row that differs from the recorded table, so that a
change of the machine code is seen in review.
"""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fastbert.utils.files import write_whole

# Largest shared memory of one block in bytes; the matrix instruction that a tensor row is meant to use.
TARGETS = {
    "sm_80": ("cuda", 80, 32, 163 * 1024, "mma.sync"),
    "sm_90": ("cuda", 90, 32, 227 * 1024, "wgmma"),
    "sm_100": ("cuda", 100, 32, 227 * 1024, "tcgen05"),
    "gfx942": ("hip", "gfx942", 64, 64 * 1024, "mfma"),
}
INSTRUCTIONS = {
    "wgmma": r"\bwgmma\.mma_async",
    "tcgen05": r"\btcgen05\.mma",
    "mma.sync": r"\bmma\.sync",
    "mfma": r"\bv_s?mfmac?_",
}
BULK_COPY = r"\bcp\.async\.bulk\.(?!commit_group|wait_group)"


@dataclass(frozen=True)
class Row:
    """One kernel on one target. spill: bytes of stack per thread on NVIDIA, spilled vector registers on AMD."""

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


def compile_row(job: tuple[int, int, str]) -> Row:
    """Compiles variant number job[1] of spec number job[0] for target job[2]."""
    from fastbert.kernels.specs.registry import ALL_SPECS

    spec = ALL_SPECS[job[0]]
    variant = spec.variants()[job[1]]
    try:
        return _compile(spec.name, variant, job[2])
    except Exception as error:
        problem = f"does not compile: {type(error).__name__}: {str(error).strip().splitlines()[-1][:200] if str(error) else ''}"
        return Row(spec.name, variant.name, job[2], variant.num_warps, variant.num_stages, problems=(problem,))


def _compile(operation: str, variant, target: str) -> Row:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    backend, arch, warp_size, max_shared, _ = TARGETS[target]
    names = variant.kernel.arg_names
    signature = {name: "constexpr" if name in variant.constexprs else variant.signature[name] for name in names}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if signature[name].startswith("*") or name in variant.divisible
    }
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    if variant.maxnreg is not None and backend == "cuda":
        options["maxnreg"] = variant.maxnreg
    source = ASTSource(variant.kernel, signature, dict(variant.constexprs), attributes)
    compiled = triton.compile(source, target=GPUTarget(backend, arch, warp_size), options=options)

    assembly = compiled.asm["ptx" if backend == "cuda" else "amdgcn"]
    counts = {kind: len(re.findall(pattern, assembly)) for kind, pattern in INSTRUCTIONS.items()}
    bulk_copies = len(re.findall(BULK_COPY, assembly))
    kind = next((kind for kind, count in counts.items() if count), "")
    shared, problems, note = compiled.metadata.shared, [], ""
    if backend == "cuda":
        registers, spill = _resource_usage(compiled.asm["cubin"])
        blocks = _blocks_per_multiprocessor(registers, shared, variant.num_warps, target)
        if kind == "wgmma" and (code := serialised(_ptxas_log(assembly, arch))) is not None:
            problems.append(f"wgmma serialised (ptxas {code})")
    else:
        registers, spill = (int(re.search(rf"\.{key}:\s+(\d+)", assembly)[1]) for key in ("vgpr_count", "vgpr_spill_count"))
        blocks = None
    if spill:
        problems.append(f"spills {spill}")
    if shared > max_shared:
        problems.append(f"{shared} bytes of shared memory, {max_shared} fit")
    if bulk_copies == 0 and any(kind.startswith("tensordesc") for kind in variant.signature.values()):
        problems.append("tensor descriptors, and no bulk copy")
    if variant.unit == "tensor":
        if not kind:
            problems.append("no matrix instruction")
        elif target == "sm_90" and counts["mma.sync"]:
            if variant.older_unit:
                note = f"mma.sync: {variant.older_unit}"
            else:
                problems.append(f"{counts['mma.sync']} mma.sync where wgmma is meant")
    elif variant.unit == "scalar" and backend == "cuda" and kind:
        problems.append(f"{counts[kind]} {kind} where float32 products are meant to be exact")
    return Row(
        operation, variant.name, target, variant.num_warps, variant.num_stages, registers, spill, shared, blocks, kind,
        counts.get(kind, 0), len(re.findall(r"\bcp\.async\.c[ag]\.", assembly)),
        bulk_copies, tuple(problems), note,
    )  # fmt: skip


def _resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack per thread, as cuobjdump reads them from the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([_tool("cuobjdump"), "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage printed no registers: {text!r}")
    return int(found[1]), int(found[2])


def _ptxas_log(ptx: str, arch: int) -> str:
    """What the assembler that Triton itself uses for this architecture says of the code."""
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={target[1]}", file.name, "-o", os.devnull]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def serialised(log: str) -> str | None:
    """The code under which ptxas says that it waits for each wgmma before the next; it has ten reasons, C7515 is one."""
    found = re.search(r"\((C\d+)\).*wgmma\.mma_async instructions are serialized", log)
    return found[1] if found else None


def _tool(name: str) -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _blocks_per_multiprocessor(registers: int, shared: int, num_warps: int, target: str) -> int:
    """How many blocks fit at once: registers come in units of 256 per warp, a block takes 1 KiB of shared memory on top."""
    per_warp = -(-registers * 32 // 256) * 256
    total_shared = (164 if target == "sm_80" else 228) * 1024
    return min(65536 // (per_warp * num_warps), total_shared // (shared + 1024), 2048 // (32 * num_warps), 32)


def rows(operations: list[str], targets: list[str], jobs: int) -> list[Row]:
    """Compiles everything asked for in `jobs` processes, with a progress bar on standard error."""
    from fastbert.kernels.specs.registry import ALL_SPECS

    work = [
        (place, number, target)
        for place, spec in enumerate(ALL_SPECS)
        if not operations or spec.name in operations
        for number, variant in enumerate(spec.variants())
        for target in targets
        if not variant.targets or target in variant.targets
    ]
    done: list[Row] = []
    progress = track(range(len(work)), "compiling", total=len(work), console=Console(stderr=True), transient=True)
    bar = iter(progress)
    while len(done) < len(work):
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                for row in pool.map(compile_row, work[len(done) :]):
                    done.append(row)
                    next(bar)
            except BrokenProcessPool:  # a compiler that crashes takes its process along: the row is one of the next few
                done.append(_compile_alone(work[len(done)]))
                next(bar)
    list(bar)
    return done


def _compile_alone(job: tuple[int, int, str]) -> Row:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(compile_row, job).result()
        except BrokenProcessPool:
            from fastbert.kernels.specs.registry import ALL_SPECS

            spec = ALL_SPECS[job[0]]
            variant = spec.variants()[job[1]]
            return Row(
                spec.name, variant.name, job[2], variant.num_warps, variant.num_stages, problems=("the compiler crashed",)
            )


def table(results: list[Row]) -> Table:
    out = Table(title="Kernels as compiled", caption="spill: bytes per thread (gfx942: registers); blocks: per multiprocessor")
    for name in ("operation", "variant", "target"):
        out.add_column(name, no_wrap=True)
    for name in ("warps", "stages", "registers", "spill", "shared KiB", "blocks", "matrix", "cp.async", "bulk"):
        out.add_column(name, justify="right")
    out.add_column("problems")
    for row in results:
        blocks = "" if row.blocks_per_multiprocessor is None else str(row.blocks_per_multiprocessor)
        matrix = f"{row.matrix_count} {row.matrix_instructions}" if row.matrix_count else ""
        numbers = (row.num_warps, row.num_stages, row.registers, row.spill, f"{row.shared_bytes / 1024:.0f}")
        out.add_row(
            row.operation, row.variant, row.target, *map(str, numbers), blocks, matrix, str(row.async_copies),
            str(row.bulk_copies), _remarks(row),
        )  # fmt: skip
    return out


def _remarks(row: Row) -> str:
    return f"[red]{'; '.join(row.problems)}[/red]" if row.problems else row.note


def as_text(results: list[Row], version: str) -> str:
    """The rows as tab-separated text under a line that names Triton's version."""
    columns = [one.name for one in fields(Row) if one.name != "problems"]
    lines = [f"# triton {version}", "\t".join(columns)]
    for row in results:
        values = asdict(row)
        lines.append("\t".join("" if values[column] is None else str(values[column]) for column in columns))
    return "\n".join(lines) + "\n"


def differences(results: list[Row], version: str, recorded: str) -> list[str]:
    """Lines that only one of the two has, marked - (recorded) or + (compiled now), operations and targets not compiled now
    left out. Raises ValueError where the recorded ones are of another version of Triton."""
    head, columns, *before = recorded.splitlines()
    now_head, now_columns, *now = as_text(results, version).splitlines()
    if head != now_head:
        raise ValueError(f"recorded with {head.removeprefix('# ')}")
    asked = {(row.operation, row.target) for row in results}
    before = [line for line in before if tuple(line.split("\t")[place] for place in (0, 2)) in asked]
    changes = [f"-{line}" for line in before if line not in set(now)] + [f"+{line}" for line in now if line not in set(before)]
    return ([] if columns == now_columns else [f"-{columns}", f"+{now_columns}"]) + sorted(changes, key=lambda line: line[1:])


def summary_table(results: list[Row]) -> Table:
    """One line per operation and target, and one for each row with a problem or a note."""
    out = Table(title="Kernels as compiled")
    for name in ("operation", "target", "kernels", "most registers", "spills", "matrix instructions", "problems"):
        out.add_column(name)
    for operation, target in dict.fromkeys((row.operation, row.target) for row in results):
        group = [row for row in results if (row.operation, row.target) == (operation, target)]
        kinds = ", ".join(sorted({row.matrix_instructions for row in group} - {""}))
        problems = "\n".join(f"{row.variant}: {_remarks(row)}" for row in group if row.problems or row.note)
        spills, registers = sum(row.spill > 0 for row in group), max(row.registers for row in group)
        out.add_row(operation, target, str(len(group)), str(registers), str(spills), kinds, problems)
    return out


def main(
    op: Annotated[list[str] | None, typer.Option(help="Only this operation (repeatable).")] = None,
    target: Annotated[list[str] | None, typer.Option(help=f"Only this target of {', '.join(TARGETS)} (repeatable).")] = None,
    jobs: Annotated[int, typer.Option(help="Processes.")] = os.cpu_count() or 1,
    summary: Annotated[bool, typer.Option("--summary", help="One line per operation and target, and every problem.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows to this file as well.")] = None,
    record: Annotated[Path | None, typer.Option(help="Write the rows to this file as tab-separated text.")] = None,
    check: Annotated[Path | None, typer.Option(exists=True, help="Compare with a file that --record wrote.")] = None,
) -> None:
    """Compile every shipped kernel ahead of time and print what came out."""
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise typer.BadParameter("TRITON_INTERPRET=1 replaces the compiler by the interpreter: unset it")
    for name in target or []:
        if name not in TARGETS:
            raise typer.BadParameter(f"expected a target among {', '.join(TARGETS)}, got {name!r}")
    import triton

    results = rows(op or [], target or list(TARGETS), jobs)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(summary_table(results) if summary else table(results))
    wrong = [row for row in results if row.problems]
    print(f"triton {triton.__version__}: {len(results)} rows, {len(wrong)} with problems")
    if json_file is not None:
        content = {"triton": triton.__version__, "rows": [asdict(row) for row in results]}
        write_whole(json_file, json.dumps(content, indent=1) + "\n")
    if not results:
        raise typer.BadParameter(f"no kernel matches --op {op}")
    if record is not None:
        write_whole(record, as_text(results, triton.__version__))
    changes = [] if check is None else _compared(results, triton.__version__, check)
    raise typer.Exit(1 if wrong or changes else 0)


def _compared(results: list[Row], version: str, file: Path) -> list[str]:
    try:
        changes = differences(results, version, file.read_text(encoding="utf-8"))
    except ValueError as error:
        print(f"{file}: {error}, not compared with triton {version}")
        return []
    print(f"{file}: {'as recorded' if not changes else 'differs; --record writes it anew'}")
    for line in changes:
        print(line)
    return changes


if __name__ == "__main__":
    typer.run(main)
