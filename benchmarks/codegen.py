"""Registers, spills and instructions of every shipped kernel, without a GPU: `python -m benchmarks.codegen`.

Compiles each variant of each operation's spec for each target and prints one row: registers, spilled bytes, shared memory,
thread blocks per multiprocessor, matrix instructions and bulk copies. Exit status 1 on a spill (but of one or two values,
where registers are left or BERT does not make the launch; or for a reason that the spec gives), on shared memory that does
not fit, on a copy that may overwrite what a product in flight reads, on wgmma that the assembler serialised or made wait, on
a row that misses the matrix instructions it is meant to use, or the bulk copies that its tensor descriptors are for; with
--check also on a row that differs from the recorded table, so that a change of the machine code is seen in review.

--part compiles what `make test` has the time for: the rows that BERT-base and BERT-large launch on sm_80 and sm_90, and of the
others one in ONE_IN, always the same ones. The whole table is for `make codegen`, and for a change of Triton or of a kernel.
"""

import json
import multiprocessing
import os
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fastbert.kernels.specs.spec import KernelVariant
from fastbert.utils.files import write_whole

from .harness.ahead_of_time import TARGETS, Row, compile_variant

Job = tuple[int, str]  # number of the variant among the shipped, name of the target
ONE_IN = 16  # of the rows that are not BERT's own, how many there are for each one that a part has


@cache
def shipped() -> list[tuple[str, KernelVariant]]:
    """(operation, variant) of every row; a kernel that two operations launch alike is a row of the first."""
    from fastbert.kernels.specs.launches import identity
    from fastbert.kernels.specs.registry import ALL_SPECS

    seen: set[Any] = set()
    found = []
    for spec in ALL_SPECS:
        for variant in spec.variants():
            targets = [target for target in variant.targets or TARGETS if (identity(variant), target) not in seen]
            seen |= {(identity(variant), target) for target in targets}
            if targets:
                found.append((spec.name, replace(variant, targets=tuple(targets))))
    return found


def in_part(operation: str, variant: KernelVariant, target: str) -> bool:
    """Whether --part compiles this row."""
    if variant.of_bert and target in ("sm_80", "sm_90"):
        return True
    return zlib.crc32(f"{operation} {variant.name} {target}".encode()) % ONE_IN == 0


def rows(operations: list[str], targets: list[str], jobs: int, part: bool = False) -> list[Row]:
    """Compiles everything asked for in `jobs` processes, with a progress bar on standard error."""
    work: list[Job] = [
        (number, target)
        for number, (operation, variant) in enumerate(shipped())
        if not operations or operation in operations
        for target in targets
        if target in variant.targets and (not part or in_part(operation, variant, target))
    ]
    done: list[Row] = []
    console = Console(stderr=True)
    progress = iter(track(range(len(work)), "compiling", total=len(work), console=console, transient=True))
    while len(done) < len(work):
        with _pool(jobs) as pool:
            try:
                for row in pool.map(compile_row, work[len(done) :]):
                    done.append(row)
                    next(progress)
            except BrokenProcessPool:  # a compiler that crashes takes its process along: the row is one of the next few
                done.append(_compile_alone(work[len(done)]))
                next(progress)
    list(progress)
    return done


def compile_row(job: Job) -> Row:
    """The row of one job; one that does not compile is a row with a problem."""
    operation, variant = shipped()[job[0]]
    try:
        return compile_variant(operation, variant, job[1])
    except Exception as error:
        last_line = str(error).strip().splitlines()[-1][:200] if str(error) else ""
        return _without_code(job, f"does not compile: {type(error).__name__}: {last_line}")


def _compile_alone(job: Job) -> Row:
    with _pool(1) as pool:
        try:
            return pool.submit(compile_row, job).result()
        except BrokenProcessPool:
            return _without_code(job, "the compiler crashed")


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


def _without_code(job: Job, problem: str) -> Row:
    operation, variant = shipped()[job[0]]
    return Row(operation, variant.name, job[1], variant.num_warps, variant.num_stages, problems=(problem,))


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
        copies = str(row.async_copies), str(row.bulk_copies)
        out.add_row(row.operation, row.variant, row.target, *map(str, numbers), blocks, matrix, *copies, _remarks(row))
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


def differences(results: list[Row], version: str, recorded: str, part: bool = False) -> list[str]:
    """Lines that only one of the two has, marked - (recorded) or + (compiled now).

    Operations and targets that were not compiled now are left out; where part, every row that was not. Raises ValueError
    where the recorded lines are of another version of Triton.
    """
    head, columns, *before = recorded.splitlines()
    now_head, now_columns, *now = as_text(results, version).splitlines()
    if head != now_head:
        raise ValueError(f"recorded with {head.removeprefix('# ')}")
    compared = (0, 1, 2) if part else (0, 2)
    compiled = {tuple((row.operation, row.variant, row.target)[column] for column in compared) for row in results}
    before = [line for line in before if tuple(line.split("\t")[column] for column in compared) in compiled]
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
    part: Annotated[bool, typer.Option("--part", help=f"BERT's own rows, and one in {ONE_IN} of the others.")] = False,
) -> None:
    """Compile every shipped kernel ahead of time and print what came out."""
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise typer.BadParameter("TRITON_INTERPRET=1 replaces the compiler by the interpreter: unset it")
    for name in target or []:
        if name not in TARGETS:
            raise typer.BadParameter(f"expected a target among {', '.join(TARGETS)}, got {name!r}")
    if part and record is not None:
        raise typer.BadParameter("a part of the rows is no record: --part or --record")
    import triton

    results = rows(op or [], target or list(TARGETS), jobs, part)
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
    changes = [] if check is None else _compared(results, triton.__version__, check, part)
    raise typer.Exit(1 if wrong or changes else 0)


def _compared(results: list[Row], version: str, file: Path, part: bool) -> list[str]:
    try:
        changes = differences(results, version, file.read_text(encoding="utf-8"), part)
    except ValueError as error:
        print(f"{file}: {error}, not compared with triton {version}")
        return []
    print(f"{file}: {'as recorded' if not changes else 'differs; --record rewrites it'}")
    for line in changes:
        print(line)
    return changes


if __name__ == "__main__":
    typer.run(main)
