"""Blocks to functions: masks and guards, operands, what goes to the machine, and that the unknown is an error."""

import numpy as np
import pytest

from tests.emulator.one_instruction import Threads, execute, kernel_of
from tests.emulator.parse import parse
from tests.emulator.ptx import SPECIAL_REGISTERS, UnknownInstruction
from tests.emulator.translate import PARAM_SPACE, Translator
from tests.emulator.translate.products import independent

LANES = np.arange(8, dtype=np.uint32)
EVEN = LANES % 2 == 0
REGISTERS = ".reg .b16 %h<9>;\n.reg .b32 %r<20>;\n.reg .b64 %d<9>;\n.reg .pred %p<9>;"


class Memory(Threads):
    """A machine whose loads give the address plus the place in the vector, and keep what they were asked."""

    def ldg(self, address, size, length, index):
        self.calls.append(("ldg", address.tolist(), size, length, index))
        return [(address + address.dtype.type(place)).astype(f"u{size}") for place in range(length)]

    def ldg_m(self, address, size, length, mask, index):
        places = np.flatnonzero(mask)
        return places, self.ldg(address[places], size, length, index)

    lds, lds_m = ldg, ldg_m

    def param(self, offset, kind):
        return np.full(self.count, offset).astype(kind)

    def param_at(self, address, extra, kind, mask, index):
        return (address + np.uint64(extra)).astype(kind)

    def special(self, name):
        return np.arange(self.count, dtype=np.uint32) + np.uint32(len(name))


def statements(body):
    """The source of the first block."""
    return Translator(kernel_of(body, REGISTERS)).statements(0, False)


def test_threads_outside_of_the_mask_keep_their_registers():
    got = execute("mov.b32 %d, 7;\nadd.s32 %d, %d, %a;", mask=EVEN, d="b32", a=LANES)
    assert got.tolist() == [7, 0, 9, 0, 11, 0, 13, 0]


def test_guards():
    for guard, here in (("@%p", EVEN), ("@!%p", ~EVEN)):
        assert execute(f"{guard} mov.b32 %d, 7;", p=EVEN, d="b32").tolist() == np.where(here, 7, 0).tolist()
        mask = LANES < 4
        assert execute(f"{guard} mov.b32 %d, 7;", mask=mask, p=EVEN, d="b32").tolist() == np.where(here & mask, 7, 0).tolist()


def test_an_instruction_that_writes_its_own_guard_reads_it_first():
    p, q = execute("mov.pred %p, %a;\n@%p setp.eq.s32 %p|%q, %x, 0;", a=EVEN, x=LANES, p="pred", q="pred")
    assert p.tolist() == [True, *[False] * 7]
    assert q.tolist() == [False, False, True, False, True, False, True, False]


def test_registers_are_never_changed_in_place():
    before = LANES.copy()
    copied, changed = execute("mov.b32 %c, %a;\nadd.s32 %d, %c, 1;\nmov.b32 %c, %d;", a=LANES, c="b32", d="b32")
    assert np.array_equal(LANES, before)
    assert copied is changed


def test_vectors_are_cut_and_put_together_from_the_lowest_bits():
    whole = np.array([0x44332211, 0xFFFF0000], np.uint32)
    low, high = execute("mov.b32 {%x, %y}, %a;", a=whole, x="b16", y="b16")
    assert (low.tolist(), high.tolist()) == ([0x2211, 0], [0x4433, 0xFFFF])
    assert execute("mov.b32 {_, %y}, %a;", a=whole, y="b16").tolist() == [0x4433, 0xFFFF]
    assert execute("mov.b32 %d, {%x, %y};", x=low, y=high, d="b32").tolist() == whole.tolist()
    assert execute("mov.b64 %d, {%x, -1};", x=whole, d="b64").tolist() == [0xFFFFFFFF44332211, 0xFFFFFFFFFFFF0000]
    swapped = execute("mov.b64 {%x, %y}, %a;\nmov.b64 %d, {%y, %x};", a=np.uint64(1 << 32 | 2), d="b64", x="b32", y="b32")[0]
    assert swapped.tolist() == [2 << 32 | 1]


def test_selection():
    a, b = LANES, LANES + np.uint32(100)
    assert execute("selp.b32 %d, %a, %b, %p;", a=a, b=b, p=EVEN, d="b32").tolist() == np.where(EVEN, a, b).tolist()
    got = execute("selp.f32 %d, 0f3F800000, 0fBF800000, !%p;", p=EVEN, d="b32").view(np.float32)
    assert got.tolist() == np.where(EVEN, -1.0, 1.0).tolist()


@pytest.mark.parametrize("operator", ["lt", "le", "gt", "ge", "eq", "ne"])
@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64"])
def test_comparisons_of_integers(operator, kind):
    bits = int(kind[1:])
    a = np.array([0, 1, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits) - 1] * 5, f"u{bits // 8}")
    b = np.sort(a)
    x, y = (each.view(f"{'i' if kind[0] == 's' else 'u'}{bits // 8}") for each in (a, b))
    want = {"lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y, "eq": x == y, "ne": x != y}[operator]
    assert np.array_equal(execute(f"setp.{operator}.{kind} %p, %a, %b;", a=a, b=b, p="pred"), want)
    unsigned = {"lt": "lo", "le": "ls", "gt": "hi", "ge": "hs"}.get(operator)
    if unsigned and kind[0] == "u":
        assert np.array_equal(execute(f"setp.{unsigned}.{kind} %p, %a, %b;", a=a, b=b, p="pred"), want)


@pytest.mark.parametrize("name", ["and", "or", "xor"])
def test_comparisons_combined_with_a_predicate(name):
    """The second result combines the opposite of the comparison, not of the first."""
    combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[name]
    holds = LANES < 3
    p, q = execute(f"setp.lt.{name}.u32 %p|%q, %a, 3, %c;", a=LANES, c=EVEN, p="pred", q="pred")
    assert np.array_equal(p, combine(holds, EVEN))
    assert np.array_equal(q, combine(~holds, EVEN))
    assert np.array_equal(execute(f"setp.lt.{name}.u32 %p, %a, 3, !%c;", a=LANES, c=EVEN, p="pred"), combine(holds, ~EVEN))


def test_special_registers():
    assert execute("mov.u32 %d, %tid.x;", state=Memory(8), a=LANES, d="b32").tolist() == (LANES + 6).tolist()
    assert execute("cvt.u64.u32 %d, %ctaid.x;", state=Memory(8), a=LANES, d="b64").tolist() == (LANES + 8).tolist()
    assert "%laneid" in SPECIAL_REGISTERS


def test_loads():
    address = LANES.astype(np.uint64) * np.uint64(16)
    state = Memory(8)
    x, y = execute("ld.global.L1::evict_first.v2.b32 {%x, %y}, [%a+16];", state=state, a=address, x="b32", y="b32")
    assert (x.tolist(), y.tolist()) == ((address + 16).tolist(), (address + 17).tolist())
    assert state.calls == [("ldg", (address + 16).tolist(), 4, 2, 0)]
    state = Memory(8)
    got = execute("ld.shared.b32 %d, [%a];", mask=EVEN, state=state, a=LANES * 4, d="b32")
    assert got.tolist() == np.where(EVEN, LANES * 4, 0).tolist()
    assert state.calls == [("ldg", [0, 8, 16, 24], 4, 1, 0)]


def test_loads_of_few_bits_extend_them():
    address = np.array([0x7F, 0x80, 0xFF], np.uint32)
    for mask in (None, np.ones(3, bool)):
        load = {"mask": mask, "a": address, "d": "b32"}
        assert execute("ld.shared.b8 %d, [%a];", state=Memory(3), **load).tolist() == [0x7F, 0x80, 0xFF]
        assert execute("ld.shared.s8 %d, [%a];", state=Memory(3), **load).tolist() == [0x7F, 0xFFFFFF80, 0xFFFFFFFF]


def test_stores():
    state = Threads(8)
    execute("st.shared.v2.b32 [%a+8], {%x, 5};", state=state, mask=EVEN, a=LANES, x=LANES)
    ((name, address, size, (first, second), mask, index),) = state.calls
    assert (name, size, index) == ("sts", 4, 0)
    assert address.tolist() == (LANES + 8).tolist()
    assert (first.tolist(), second.tolist(), mask.tolist()) == (LANES.tolist(), [5] * 8, EVEN.tolist())


def test_parameters():
    kernel = parse(
        """.visible .entry one_kernel(.param .u64 one, .param .align 64 .b8 two[128], .param .u32 three)
        { .reg .b32 %r<4>; .reg .b64 %d<4>;
        ld.param.b32 %r1, [three];
        ld.param.v2.b32 {%r2, %r3}, [two+8];
        mov.b64 %d1, two;
        ld.param.b64 %d2, [%d1+16];
        ret; }"""
    )
    registers = [np.zeros(2, kind) for kind in kernel.reg_class]
    Translator(kernel).block(0, False)(Memory(2), registers)
    assert [register.tolist() for register in registers[1:4]] == [[192] * 2, [72] * 2, [76] * 2]
    assert registers[5].tolist() == [PARAM_SPACE + 64] * 2
    assert registers[6].tolist() == [PARAM_SPACE + 80] * 2


MMA = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"


def test_products_that_do_not_depend_on_each_other_are_computed_together():
    a, b = "{%r0, %r1, %r2, %r3}", "{%r4, %r5}"
    first = f"{MMA} {{%r6, %r7, %r8, %r9}}, {a}, {b}, {{%r6, %r7, %r8, %r9}};"
    second = f"{MMA} {{%r10, %r11, %r12, %r13}}, {a}, {{%r14, %r15}}, {{%r10, %r11, %r12, %r13}};"
    on_first = f"{MMA} {{%r6, %r7, %r8, %r9}}, {a}, {{%r14, %r15}}, {{%r6, %r7, %r8, %r9}};"
    assert independent(kernel_of(first + second + on_first, REGISTERS).instrs[:3]) == 2
    assert independent(kernel_of(first + on_first, REGISTERS).instrs[:2]) == 1
    assert independent(kernel_of(first + "@%p1 " + second, REGISTERS).instrs[:2]) == 1
    call, *stores = statements(first + second)
    assert call == (
        "v = S.mma('m16n8k16', 'bf16', [[R[9], R[10], R[11], R[12]]], [[R[13], R[14]], [R[23], R[24]]], "
        "[[R[15], R[16], R[17], R[18]], [R[19], R[20], R[21], R[22]]], [0, 0], [0, 1], None, 0)"
    )
    assert stores[0] == "R[15] = v[0][0]"
    assert stores[-1] == "R[22] = v[1][3]"


def test_a_guarded_product_is_computed_where_its_guard_holds():
    body = f"@%p1 {MMA} {{%r6, %r7, %r8, %r9}}, {{%r0, %r1, %r2, %r3}}, {{%r4, %r5}}, {{%r6, %r7, %r8, %r9}};"
    guard, call, *_ = statements(body)
    assert guard == "g = R[39]"
    assert call.endswith("[0], [0], g, 0)")


def test_registers_of_wgmma_are_watched():
    product = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r0, %r1, %r2, %r3}, %d0, %d1, %p1, 1, 1, 0, 0;"
    assert statements("mov.b32 %r1, 0;\n" + product + "add.s32 %r4, %r1, %r5;") == [
        "S.wg_touch((10,), True, None, 0)",
        "R[10] = S.const(K0)",
        "S.wg_dirty((10,))",
        "S.wg_check((9, 10, 11, 12), 1)",
        "v = S.wgmma(8, 16, 'bf16', [R[9], R[10], R[11], R[12]], R[29], R[30], R[39], [1, 1, 0, 0], None, 1)",
        *(f"R[{9 + place}] = v[{place}]" for place in range(4)),
        "S.wg_regs((9, 10, 11, 12), None)",
        "S.wg_touch((10,), False, None, 2)",
        "R[13] = (R[10] + R[14])",
    ]


@pytest.mark.parametrize(
    ("body", "call"),
    [
        ("cp.async.ca.shared.global [%r1], [%d1+4], 4;", "S.cp_async(R[10], (R[30] + K0), 4, None, None, 0)"),
        ("cp.async.cg.shared.global [%r1], [%d1], 0x10, %r2;", "S.cp_async(R[10], R[30], 16, R[11], None, 0)"),
        ("cp.async.cg.shared.global.L2::cache_hint [%r1], [%d1], 16, %d2;", "S.cp_async(R[10], R[30], 16, None, None, 0)"),
        ("cp.async.commit_group;", "S.cp_commit(None, 0)"),
        ("cp.async.wait_group 2;", "S.cp_wait(2, None, 0)"),
        ("cp.async.wait_all;", "S.cp_wait(-1, None, 0)"),
        ("cp.async.bulk.wait_group.read 0;", "S.bulk_wait(0, True, None, 0)"),
        ("fence.proxy.async.shared::cta;", "S.proxy_fence(None, 0)"),
        ("mbarrier.init.shared::cta.b64 [%r1], 1;", "S.mbar_init(R[10], 1, None, 0)"),
        ("mbarrier.arrive.shared::cta.b64 _, [%r1];", "S.mbar_arrive(R[10], None, None, 0)"),
        ("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 64;", "S.mbar_arrive(R[10], S.const(K0), None, 0)"),
        (
            "cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%d1, {%r2, 0}], [%r3];",
            "S.tma_load(R[10], R[30], [R[11].view(Ti4), S.const(K0)], R[12], 2, None, 0)",
        ),
        (
            "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%d1, {%r2, %r3}], [%r1];",
            "S.tma_store(R[10], R[30], [R[11].view(Ti4), R[12].view(Ti4)], 2, None, 0)",
        ),
        ("wgmma.wait_group.sync.aligned 1;", "S.wg_wait(1, None, 0)"),
        ("bar.warp.sync -1;", "S.warp_sync(None, 0)"),
    ],
)
def test_what_goes_to_the_machine(body, call):
    assert statements(body) == [call]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("frobnicate.b32 %r1, %r2;", "frobnicate"),
        ("slct.f32.s32 %r1, %r2, %r3, %r4;", "slct"),
        ("add.cc.s32 %r1, %r2, %r3;", "modifier cc"),
        ("add.sat.s32 %r1, %r2, %r3;", "modifier sat"),
        ("mad.lo.cc.s32 %r1, %r2, %r3, %r4;", "modifier cc"),
        ("add.rz.f32 %r1, %r2, %r3;", "modifier rz"),
        ("add.f32x2 %d1, %d2, %d3;", "add"),
        ("fma.rn.relu.bf16 %h1, %h2, %h3, %h4;", "modifier relu"),
        ("div.f32 %r1, %r2, %r3;", "expected one modifier of rn full approx, got none"),
        ("ex2.approx.f16 %h1, %h2;", "ex2"),
        ("rcp.approx.ftz.f64 %d1, %d2;", "approximation of f64"),
        ("min.xorsign.f32 %r1, %r2, %r3;", "xorsign and .abs apart"),
        ("min.f32 %r1, %r2, %r3, %r4;", "expected 2 operands, got 3"),
        ("add.bf16 %h1, %h2;", "expected 2 operands, got 1"),
        ("fma.rn.f16 %h1, %h2, %h3;", "expected 3 operands, got 2"),
        ("shl.b32 %r1, %r2;", "expected 2 operands, got 1"),
        ("setp.lt.s32 %p1, %r1, %r2, %p2;", "expected 2 operands, got 3"),
        ("setp.ltu.s32 %p1, %r1, %r2;", "comparison ltu"),
        ("setp.lt.bf16x2 %p1, %r1, %r2;", "two predicates"),
        ("cvt.rz.f32.f64 %r1, %d1;", "modifier rz"),
        ("cvt.sat.u8.s32 %r1, %r2;", "modifier sat"),
        ("cvt.rn.bf16.f64 %h1, %d1;", "conversion of f64 to bf16"),
        ("cvt.rn.relu.bf16.f32 %h1, %r1;", "modifier relu"),
        ("cvt.rn.e4m3x2.f32 %h1, %r1, %r2;", "expected the modifiers rn satfinite"),
        ("cvt.rn.satfinite.e5m2x2.f32 %h1, %r1, %r2;", "e5m2x2"),
        ("prmt.b32.f4e %r1, %r2, %r3, %r4;", "f4e"),
        ("mov.b64 %d1, %r1;", "a register of type u4 read as u8"),
        ("mov.b32 %h1, %r1;", "a result of type u4 for a register of type u2"),
        ("mov.b32 %r1, %p1;", "a register of type p read as u4"),
        ("mov.b32 %r1, nothing;", "symbol nothing"),
        ("mov.b64 %d1, 0f3F800000;", "the float 0f3F800000 read as u8"),
        ("ld.local.b32 %r1, [%d1];", "modifier local"),
        ("ld.b32 %r1, [%d1];", "expected one state space"),
        ("ld.acquire.gpu.global.b32 %r1, [%d1];", "modifier acquire"),
        ("ld.global.v4.b32 {%r1, %r2}, [%d1];", "expected 4 registers"),
        ("st.param.b32 [%d1], %r1;", "a store to parameters"),
        ("ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {%r1, %r2}, [%r3];", "modifier b8, m16n16"),
        ("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r1}, {%r2}, {%r3}, {%r4};", "shape or types of the product"),
        ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%r1}, {%r2}, {%r3}, {%r4};", "shape or types of the product"),
        ("wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.bf16.bf16 {%r1}, %d1, %d2, %r2, 0, %p1, 1, 1, 0, 0;", "shape or types"),
        ("cp.async.cg.shared.global [%r1], [%d1], 8;", "a copy of 8 bytes"),
        ("cp.async.bulk.shared::cta.global [%r1], [%d1], 16, [%r2];", "bulk copy"),
        ("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%d1], [%r1], 16;", "copy"),
        ("mbarrier.arrive.shared::cta.b64 %d1, [%r1];", "an arrival that gives a state"),
        ("mbarrier.arrive.shared::cta.b64 _, [%r1], 2;", "an arrival that gives a state, or counts for several"),
        ("mbarrier.expect_tx.shared::cta.b64 [%r1], 2;", "expect_tx"),
        ("shfl.down.b32 %r1, %r2, 1, 31;", "expected shfl.sync.b32"),
        ("atom.global.add.u32 %r1, [%d1], %r2;", "modifier u32"),
        ("atom.global.max.f32 %r1, [%d1], %r2;", "modifier max"),
        ("barrier.cluster.arrive;", "barrier"),
        ("fence.proxy.tensormap::generic.acquire.gpu [%d1], 128;", "modifier acquire, proxy"),
        ("tcgen05.wait::ld.sync.aligned;", "tcgen05"),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_what_is_not_known_is_named(body, reason, masked):
    """With the kernel, the line and the instruction, in whatever block it stands."""
    kernel = kernel_of(f"mov.b32 %r0, 0;\nbar.sync 0;\n{body}", REGISTERS)
    line = next(instr.line for instr in kernel.instrs if instr.text == body[:-1])
    translator = Translator(kernel)
    translator.block(0, masked)
    with pytest.raises(UnknownInstruction, match=reason) as error:
        translator.block(1, masked)
    assert str(error.value).startswith(f"one_kernel: PTX line {line}: unknown instruction `{body[:-1]}` (")


def test_hints_compute_nothing():
    body = "prefetch.global.L2 [%d1];\nnanosleep.u32 40;\ngriddepcontrol.wait;\nsetmaxnreg.inc.sync.aligned.u32 240;"
    assert statements(body) == []
    Translator(kernel_of(body, REGISTERS)).block(0, False)(Threads(1), [])
