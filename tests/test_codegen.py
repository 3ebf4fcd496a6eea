"""The ahead-of-time table: what it must catch, on kernels made to be wrong."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: nothing to compile")

from benchmarks import codegen

ROOT = Path(__file__).resolve().parents[1]

PLANTED = """
    import triton
    import triton.language as tl
    from benchmarks import codegen
    from fastbert.kernels.spec import KernelVariant

    @triton.jit
    def kernel(x_ptr, y_ptr, N: tl.constexpr):
        rows = tl.arange(0, N)
        x = tl.load(x_ptr + rows[:, None] * N + rows[None, :])
        {body}

    pointers = dict(x_ptr="*fp16", y_ptr="*fp16")
    variant = KernelVariant("planted", kernel, pointers, dict(N={size}), num_warps={warps}, unit={unit!r})
    row = codegen._compile("planted", variant, {target!r})
    print("PROBLEMS", row.problems, "REGISTERS", row.registers)
"""


def compile_planted(tmp_path, body, *, size=64, warps=4, unit="memory", target="sm_90") -> str:
    script = tmp_path / "planted.py"
    script.write_text(textwrap.dedent(PLANTED).format(body=body, size=size, warps=warps, unit=unit, target=target))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_kernel_that_fits_has_no_problem(tmp_path):
    out = compile_planted(tmp_path, "tl.store(y_ptr + rows, tl.sum(x, 1))")
    assert "PROBLEMS ()" in out


def test_spills_are_found(tmp_path):
    # 128 x 128 float32 numbers alive across a row sum, in one warp: 512 registers per thread.
    body = "z = x.to(tl.float32); tl.store(y_ptr + rows[:, None] * N + rows[None, :], z / tl.sum(z, 1)[:, None])"
    assert "spills" in compile_planted(tmp_path, body, size=128, warps=1)


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_a_tensor_kernel_without_matrix_instructions_is_found(tmp_path, target):
    out = compile_planted(tmp_path, "tl.store(y_ptr + rows, tl.sum(x, 1))", unit="tensor", target=target)
    assert "no matrix instruction" in out


def test_mma_sync_where_wgmma_is_meant_is_found(tmp_path):
    body = "tl.store(y_ptr + rows[:, None] * N + rows[None, :], tl.dot(x, x).to(tl.float16))"
    assert "mma.sync where wgmma is meant" in compile_planted(tmp_path, body, size=32, unit="tensor")
    assert "PROBLEMS ()" in compile_planted(tmp_path, body, size=64, unit="tensor")


def test_a_matrix_instruction_where_products_must_be_exact_is_found(tmp_path):
    body = "tl.store(y_ptr + rows[:, None] * N + rows[None, :], tl.dot(x, x).to(tl.float16))"
    assert "meant to be exact" in compile_planted(tmp_path, body, unit="scalar")


def test_the_command_refuses_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.codegen"], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert "TRITON_INTERPRET" in done.stderr


def rows_of(*registers: int) -> list[codegen.Row]:
    return [
        codegen.Row("linear", f"tile {place}", target, 4, 2, registers=count)
        for place, (count, target) in enumerate(zip(registers, ("sm_90", "sm_80", "gfx942")))
    ]


def test_a_changed_register_count_is_seen_against_the_record():
    recorded = codegen.as_text(rows_of(100, 90, 80), "3.7.1")
    assert codegen.differences(rows_of(100, 90, 80), "3.7.1", recorded) == []
    changes = codegen.differences(rows_of(100, 91, 80), "3.7.1", recorded)
    assert [line[0] for line in changes] == ["-", "+"]
    assert all("tile 1\tsm_80" in line for line in changes)


def test_only_what_was_compiled_is_compared_and_a_new_row_is_a_change():
    recorded = codegen.as_text(rows_of(100, 90, 80), "3.7.1")
    assert codegen.differences(rows_of(100), "3.7.1", recorded) == []
    missing = codegen.as_text(rows_of(100, 90), "3.7.1")
    assert [line[0] for line in codegen.differences(rows_of(100, 90, 80), "3.7.1", missing)] == ["+"]
    gone = [row for row in rows_of(100, 90, 80) if row.target != "sm_80"]
    assert codegen.differences(gone, "3.7.1", recorded) == []


def test_a_record_of_another_version_is_not_compared():
    recorded = codegen.as_text(rows_of(100), "3.6.0")
    with pytest.raises(ValueError, match=r"recorded with triton 3\.6\.0"):
        codegen.differences(rows_of(120), "3.7.1", recorded)


def test_the_record_holds_every_shipped_variant():
    """So that an operation that is added is recorded too; what the rows say is compared when they are compiled."""
    from fastbert.kernels.specs import ALL_SPECS

    lines = (ROOT / "benchmarks" / "codegen.tsv").read_text(encoding="utf-8").splitlines()[2:]
    recorded = {tuple(line.split("\t")[:3]) for line in lines}
    shipped = {
        (spec.name, variant.name, target)
        for spec in ALL_SPECS
        for variant in spec.variants()
        for target in variant.targets or codegen.TARGETS
    }
    assert recorded == shipped
    assert {line.split("\t")[6] for line in lines} == {"0"}  # no spill
