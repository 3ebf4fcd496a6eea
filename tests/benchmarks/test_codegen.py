"""The ahead-of-time table: what it must catch, on kernels made to be wrong."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: nothing to compile")

from benchmarks import codegen
from benchmarks.harness import ahead_of_time
from benchmarks.harness.ahead_of_time import FEW_BYTES, MANY_REGISTERS

ROOT = Path(__file__).resolve().parents[2]

PLANTED = """
    import triton
    import triton.language as tl
    from benchmarks.harness.ahead_of_time import compile_variant
    from fastbert.kernels.specs.spec import KernelVariant

    @triton.jit
    def kernel(x_ptr, y_ptr, N: tl.constexpr):
        rows = tl.arange(0, N)
        x = tl.load(x_ptr + rows[:, None] * N + rows[None, :])
        {body}

    pointers = dict(x_ptr="*fp16", y_ptr="*fp16")
    variant = KernelVariant("planted", kernel, pointers, dict(N={size}), num_warps={warps}, unit={unit!r})
    row = compile_variant("planted", variant, {target!r})
    print("PROBLEMS", row.problems, "REGISTERS", row.registers)
"""


def compile_planted(tmp_path, body, *, size=64, warps=4, unit="memory", target="sm_90") -> str:
    return run_script(tmp_path, textwrap.dedent(PLANTED).format(body=body, size=size, warps=warps, unit=unit, target=target))


def run_script(tmp_path, text: str) -> str:
    script = tmp_path / "planted.py"
    script.write_text(text)
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


PIPELINED = """
    import triton
    import triton.language as tl
    from benchmarks.harness.ahead_of_time import compile_variant
    from fastbert.kernels.specs.spec import KernelVariant

    @triton.jit
    def kernel(a_ptr, b_ptr, c_ptr, sum_ptr, M, N: tl.constexpr, SUM: tl.constexpr):
        offs = tl.arange(0, N)
        acc = tl.zeros([N, N], tl.float32)
        total = tl.zeros([N], tl.float32)
        for m in range(0, M, N):
            a = tl.load(a_ptr + (m + offs)[:, None] * N + offs[None, :])
            b = tl.load(b_ptr + (m + offs)[:, None] * N + offs[None, :])
            acc = tl.dot(tl.trans(a), b, acc)
            if SUM:
                total += tl.sum(a.to(tl.float32), axis=0)
        tl.store(c_ptr + offs[:, None] * N + offs[None, :], acc)
        if SUM:
            tl.store(sum_ptr + offs, total)

    types = dict(a_ptr="*bf16", b_ptr="*bf16", c_ptr="*fp32", sum_ptr="*fp32", M="i32")
    for SUM in (True, False):
        for target in ("sm_90", "sm_80", "sm_100"):
            constexprs = dict(N=64, SUM=SUM)
            variant = KernelVariant("planted", kernel, types, constexprs, num_warps=4, num_stages=4, unit="tensor")
            row = compile_variant("planted", variant, target)
            print(SUM, target, [problem for problem in row.problems if "overwrites" in problem])
"""


def test_a_copy_that_overwrites_an_operand_in_use_is_found(tmp_path):
    """Summed in registers too, a loses the slot that its ring needs for the product in flight: Triton 3.7.1, Hopper only."""
    lines = run_script(tmp_path, textwrap.dedent(PIPELINED)).splitlines()
    wrong, *right = lines
    assert wrong.startswith("True sm_90 ['a copy overwrites %a")
    assert [line.split()[-1] for line in right] == ["[]"] * 5


DESCRIPTOR = """
    import triton
    import triton.language as tl
    from benchmarks.harness.ahead_of_time import compile_variant
    from fastbert.kernels.specs.spec import KernelVariant

    @triton.jit
    def kernel(x_desc, y_desc):
        y_desc.store([0, 0], x_desc.load([0, 0]) + 1.0)

    block = "tensordesc<fp16[16, 64]>"
    variant = KernelVariant("planted", kernel, dict(x_desc=block, y_desc=block), {}, num_warps=4)
    for target in ("sm_90", "sm_80"):
        row = compile_variant("planted", variant, target)
        print(target, row.bulk_copies, row.problems)
"""


def test_descriptors_that_become_plain_loads_are_found(tmp_path):
    assert run_script(tmp_path, textwrap.dedent(DESCRIPTOR)).splitlines() == [
        "sm_90 2 ()",
        "sm_80 0 ('tensor descriptors, and no bulk copy',)",
    ]


SPECIALISED = """
    from fastbert.kernels.specs.registry import ALL_SPECS

    for variant in [one for spec in ALL_SPECS for one in spec.variants() if one.of_bert or spec.name == "attention"]:
        for parameter in variant.kernel.params:
            kind = variant.signature.get(parameter.name)
            stated = parameter.name in variant.divisible or parameter.name in variant.constexprs
            if kind in ("i32", "i64") and not stated and not parameter.do_not_specialize:
                print(parameter.name)
"""
OF_A_MODEL = {"V", "ignore_index", "num_segments", "numel", "skip"}


def test_another_batch_is_no_reason_to_compile(tmp_path):
    """A launch compiles again for integers that are 1 or divisible by 16, unless declared otherwise: only a model's own may."""
    found = set(run_script(tmp_path, textwrap.dedent(SPECIALISED)).split())
    assert found == OF_A_MODEL


def test_the_command_refuses_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.codegen"], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert "TRITON_INTERPRET" in done.stderr


def rows_of(*registers: int) -> list[ahead_of_time.Row]:
    return [
        ahead_of_time.Row("linear", f"tile {number}", target, 4, 2, registers=count)
        for number, (count, target) in enumerate(zip(registers, ("sm_90", "sm_80", "gfx942")))
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


def test_a_part_is_compared_with_its_own_rows():
    recorded = codegen.as_text(rows_of(100, 90, 80), "3.7.1")
    assert codegen.differences(rows_of(100, 90, 80)[:1], "3.7.1", recorded, part=True) == []
    changes = codegen.differences(rows_of(100, 91)[1:], "3.7.1", recorded, part=True)
    assert [line[0] for line in changes] == ["-", "+"]


def test_a_part_has_what_bert_launches_and_the_same_few_of_the_rest():
    rows = [(operation, variant, target) for operation, variant in codegen.shipped() for target in variant.targets]
    part = [row for row in rows if codegen.in_part(*row)]
    assert {variant.name for _, variant, target in rows if variant.of_bert and target == "sm_90"} <= {
        row[1].name for row in part
    }
    others = len([row for row in rows if not row[1].of_bert])
    assert 0.5 < len([row for row in part if not row[1].of_bert]) * codegen.ONE_IN / others < 2


def test_no_row_is_compiled_twice():
    from fastbert.kernels.specs.launches import identity

    keys = [(identity(variant), target) for _, variant in codegen.shipped() for target in variant.targets]
    names = [(operation, variant.name, target) for operation, variant in codegen.shipped() for target in variant.targets]
    assert len(keys) == len(set(keys)) == len(set(names))


def test_a_record_of_another_version_is_not_compared():
    recorded = codegen.as_text(rows_of(100), "3.6.0")
    with pytest.raises(ValueError, match=r"recorded with triton 3\.6\.0"):
        codegen.differences(rows_of(120), "3.7.1", recorded)


def test_the_record_holds_every_shipped_variant():
    """An operation that is added must be recorded too; the rows themselves are compared when they are compiled."""
    lines = (ROOT / "benchmarks" / "codegen.tsv").read_text(encoding="utf-8").splitlines()[2:]
    recorded = {tuple(line.split("\t")[:3]) for line in lines}
    shipped = {(operation, variant.name, target) for operation, variant in codegen.shipped() for target in variant.targets}
    assert recorded == shipped
    found = {tuple(line.split("\t")[:3]): tuple(map(int, line.split("\t")[5:7])) for line in lines}
    for operation, variant in codegen.shipped():
        for target in variant.targets:
            registers, spilled = found[operation, variant.name, target]
            is_choice = spilled <= FEW_BYTES and (registers <= MANY_REGISTERS or not variant.of_bert)
            assert not spilled or variant.spills or is_choice, (variant.name, target)
