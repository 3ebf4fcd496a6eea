"""The check that no copy overwrites what a product in flight reads, on loops written by hand."""

import pytest

from benchmarks.harness.slots import overwritten_operands

TYPE = "!ttg.memdesc<64x64xbf16, #shared, #smem, mutable>"


def wgmma_loop(slots: int, ahead: int, pendings: int, *, copy_first: bool = False, is_async: bool = True) -> str:
    """A loop whose copies run `ahead` iterations before the product that reads them."""
    product = f"""
      %r0 = arith.addi %read, %c1 : i32
      %r1 = arith.cmpi sge, %r0, %c{slots} : i32
      %r2 = arith.select %r1, %c0, %r0 : i32
      %a = ttg.memdesc_index %ring[%r2] : !ttg.memdesc<{slots}x64x64xbf16, #shared, #smem, mutable> -> {TYPE}
      %at = ttg.memdesc_trans %a {{order = array<i32: 1, 0>}} : {TYPE} -> {TYPE}
      %d = ttng.warp_group_dot %at, %a, %acc {{isAsync = {str(is_async).lower()}}} : {TYPE} * {TYPE} -> tensor<64x64xf32, #mma>
      %w:2 = ttng.warp_group_dot_wait %d, %at {{pendings = {pendings} : i32}} : tensor<64x64xf32, #mma>, {TYPE}"""
    copy = f"""
      %i0 = arith.addi %insert, %c1 : i32 loc("x_ptr"(#loc3))
      %i1 = arith.cmpi sge, %i0, %c{slots} : i32
      %i2 = arith.select %i1, %c0, %i0 : i32
      %slot = ttg.memdesc_index %ring[%i2] : !ttg.memdesc<{slots}x64x64xbf16, #shared, #smem, mutable> -> {TYPE}
      %t = ttg.async_copy_global_to_local %ptrs, %slot mask %m : tensor<64x64x!tt.ptr<bf16>> -> <64x64xbf16, #shared>"""
    numbers = "".join(f"    %c{i} = arith.constant {i} : i32\n" for i in range(9))
    return f"""
module attributes {{"ttg.num-warps" = 4 : i32}} {{
  tt.func public @kernel(%p: !tt.ptr<bf16>, %M: i32) {{
{numbers}    %start = arith.constant -1 : i32
    %first = arith.constant {ahead - 1} : i32
    %ring = ttg.local_alloc : () -> !ttg.memdesc<{slots}x64x64xbf16, #shared, #smem, mutable>
    %out:3 = scf.for %iv = %c0 to %M step %c1 iter_args(%acc = %z, %read = %start, %insert = %first) -> (f32, i32) : i32 {{
{copy + product if copy_first else product + copy}
      scf.yield %w#0, %r2, %i2 : tensor<64x64xf32, #mma>, i32, i32
    }} loc(#loc1)
    tt.return
  }}
}}
"""


@pytest.mark.parametrize("copy_first", [False, True])
@pytest.mark.parametrize("pendings", [0, 1, 2])
@pytest.mark.parametrize(
    ("slots", "ahead"), [(slots, ahead) for slots in range(1, 7) for ahead in range(1, 4) if ahead <= slots]
)
def test_a_copy_must_not_meet_a_product_in_flight(slots, ahead, pendings, copy_first):
    """After the wait of iteration i, the copy for iteration i + ahead meets the last `pendings` products, the newest of i."""
    newest = 1 if copy_first else 0
    meets = any((ahead + newest + older) % slots == 0 for older in range(pendings))
    found = overwritten_operands(wgmma_loop(slots, ahead, pendings, copy_first=copy_first))
    assert found == (["a copy overwrites %ring, which a product in flight still reads"] if meets else [])


def test_a_product_that_is_not_asynchronous_is_over_before_the_next_copy():
    assert overwritten_operands(wgmma_loop(3, 3, 1, is_async=False)) == []


def test_a_ring_whose_slot_is_not_known_is_told():
    text = wgmma_loop(4, 3, 1).replace("%c1 : i32 loc", "%unknown : i32 loc")
    assert overwritten_operands(text) == ["a copy overwrites %ring, which a product in flight still reads"]


def test_an_operand_that_cannot_be_followed_is_told():
    text = wgmma_loop(4, 3, 1).replace("ttg.memdesc_trans", "ttg.memdesc_of_tomorrow")
    assert "a product reads memory that cannot be followed" in overwritten_operands(text)


def test_products_that_the_parser_misses_are_told():
    text = wgmma_loop(4, 3, 1).replace("scf.for", "scf.forall")
    assert overwritten_operands(text) == ["no product is found where there is one"]


def tcgen05_loop(slots: int, ahead: int) -> str:
    """The wait of an iteration is for the product of the one before, at the other of two barriers."""
    numbers = "".join(f"    %c{i} = arith.constant {i} : i32\n" for i in range(9))
    barrier = "!ttg.memdesc<1xi64, #shared, #smem, mutable>"
    starts = dict(read="start", insert="first", which="c0", phase="c0", last="bar0", last_phase="c1")
    carried = ", ".join(f"%{name} = %{start}" for name, start in starts.items())
    return f"""
  tt.func public @kernel(%p: !tt.ptr<bf16>, %M: i32) {{
{numbers}    %true = arith.constant true
    %start = arith.constant -1 : i32
    %first = arith.constant {ahead - 1} : i32
    %bars = ttg.local_alloc : () -> !ttg.memdesc<2x1xi64, #shared, #smem, mutable>
    %bar0 = ttg.memdesc_index %bars[%c0] : !ttg.memdesc<2x1xi64, #shared, #smem, mutable> -> {barrier}
    ttng.init_barrier %bar0, 1 : {barrier}
    %ring = ttg.local_alloc : () -> !ttg.memdesc<{slots}x64x64xbf16, #shared, #smem, mutable>
    %acc = ttng.tmem_alloc : () -> !ttg.memdesc<64x64xf32, #tmem, #ttng.tensor_memory, mutable>
    %out = scf.for %iv = %c0 to %M step %c1 iter_args({carried}) -> (i32) : i32 {{
      %r0 = arith.addi %read, %c1 : i32
      %r2 = arith.remsi %r0, %c{slots} : i32
      %a = ttg.memdesc_index %ring[%r2] : !ttg.memdesc<{slots}x64x64xbf16, #shared, #smem, mutable> -> {TYPE}
      %bar = ttg.memdesc_index %bars[%which] : !ttg.memdesc<2x1xi64, #shared, #smem, mutable> -> {barrier}
      ttng.tc_gen5_mma %a, %a, %acc, %true, %true, %bar[%true] {{is_async}} : {TYPE}, {TYPE}, {TYPE}, {barrier}
      ttng.wait_barrier %last, %last_phase : {barrier}
      %other = arith.xori %which, %c1 : i32
      %wraps = arith.cmpi eq, %other, %c0 : i32
      %flipped = arith.xori %phase, %c1 : i32
      %next_phase = arith.select %wraps, %flipped, %phase : i32
      %i0 = arith.addi %insert, %c1 : i32
      %i2 = arith.remsi %i0, %c{slots} : i32
      %slot = ttg.memdesc_index %ring[%i2] : !ttg.memdesc<{slots}x64x64xbf16, #shared, #smem, mutable> -> {TYPE}
      %t = ttg.async_copy_global_to_local %ptrs, %slot mask %m : tensor<64x64x!tt.ptr<bf16>, #blocked> -> <64x64xbf16, #shared>
      scf.yield %r2, %i2, %other, %next_phase, %bar, %phase : i32, i32, i32, i32, {barrier}, i32
    }}
    tt.return
  }}
"""


@pytest.mark.parametrize(("slots", "ahead", "safe"), [(4, 3, True), (3, 3, False), (3, 2, True), (2, 2, False), (2, 1, True)])
def test_products_that_end_at_barriers_are_followed_too(slots, ahead, safe):
    assert (overwritten_operands(tcgen05_loop(slots, ahead)) == []) == safe
