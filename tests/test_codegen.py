"""The ahead-of-time table: what it must catch, on kernels made to be wrong."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: nothing to compile")

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
