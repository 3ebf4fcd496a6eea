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


# The accumulator is touched inside the loop while a product may still be in flight.
WGMMA_LOOP = """
    .version 8.0
    .target sm_90a
    .address_size 64
    .visible .entry kernel(.param .u64 out, .param .u32 n)
    {{
        .reg .f32 %f<5>;
        .reg .b64 %rd<3>;
        .reg .b32 %r<3>;
        .reg .pred %p<2>;
        ld.param.u64 %rd1, [out];
        ld.param.u32 %r1, [n];
        mov.f32 %f1, 0f00000000; mov.f32 %f2, %f1; mov.f32 %f3, %f1; mov.f32 %f4, %f1;
        mov.u64 %rd2, 0;
    LOOP:
        wgmma.fence.sync.aligned;
        wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%f1,%f2,%f3,%f4}}, %rd2, %rd2, 1, 1, 1, 0, 0;
        wgmma.commit_group.sync.aligned;
        wgmma.wait_group.sync.aligned {in_flight};
        add.f32 %f1, %f1, 0f3f800000;
        sub.u32 %r1, %r1, 1;
        setp.ne.u32 %p1, %r1, 0;
        @%p1 bra LOOP;
        wgmma.wait_group.sync.aligned 0;
        st.global.f32 [%rd1], %f1;
        ret;
    }}
"""


def test_serialised_wgmma_is_found_in_the_words_of_the_assembler():
    for in_flight, code in ((1, "C7514"), (0, None)):
        ptx = textwrap.dedent(WGMMA_LOOP).format(in_flight=in_flight)
        assert ahead_of_time.serialised(ahead_of_time.ptxas_log(ptx, 90)) == code


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

    for variant in {variant.kernel: variant for spec in ALL_SPECS for variant in spec.variants()}.values():
        for parameter in variant.kernel.params:
            kind = variant.signature.get(parameter.name)
            stated = parameter.name in variant.divisible or parameter.name in variant.constexprs
            if kind in ("i32", "i64") and not stated and not parameter.do_not_specialize:
                print(parameter.name)
"""
OF_A_MODEL = {"H", "V", "ignore_index", "num_segments", "padding_idx", "skip", "splits"}


def test_another_batch_is_no_reason_to_compile(tmp_path):
    """A launch compiles again for integers that are 1 or divisible by 16, unless declared otherwise: only a model's own may."""
    assert set(run_script(tmp_path, textwrap.dedent(SPECIALISED)).split()) == OF_A_MODEL


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


def test_a_record_of_another_version_is_not_compared():
    recorded = codegen.as_text(rows_of(100), "3.6.0")
    with pytest.raises(ValueError, match=r"recorded with triton 3\.6\.0"):
        codegen.differences(rows_of(120), "3.7.1", recorded)


def test_the_record_holds_every_shipped_variant():
    """An operation that is added must be recorded too; the rows themselves are compared when they are compiled."""
    from fastbert.kernels.specs.registry import ALL_SPECS

    lines = (ROOT / "benchmarks" / "codegen.tsv").read_text(encoding="utf-8").splitlines()[2:]
    recorded = {tuple(line.split("\t")[:3]) for line in lines}
    shipped = {
        (spec.name, variant.name, target)
        for spec in ALL_SPECS
        for variant in spec.variants()
        for target in variant.targets or ahead_of_time.TARGETS
    }
    assert recorded == shipped
    assert {line.split("\t")[6] for line in lines} == {"0"}  # no spill
