"""Faults planted in small kernels, each of which the emulator must find and name; without the fault each kernel passes."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
import triton

from tests.compiled import small_kernels
from tests.compiled.small_kernels import Edit, add_kernel, edited, product, replaced, softmax_kernel, tile_copy_product

WHERE = r".*{kernel}: PTX line \d+ `.*` \(.*small_kernels\.py:\d+:\d+.*\), block \(\d+, \d+, \d+\) thread \d+"


@pytest.fixture(autouse=True)
def _usual_schedule(emulator: ModuleType) -> Iterator[None]:
    """With all detectors, whatever the session asks for; what they noted on the way is not judged."""
    with emulator.settings.changed(late_products=False):
        yield
    emulator.stats.reset()


def without(pattern: str) -> Edit:
    return lambda ptx: re.sub(pattern, "", ptx)


def run_product(rows: int = 128) -> tuple[torch.Tensor, torch.Tensor, triton.compiler.CompiledKernel]:
    """Its result, the exact one, and the kernel: cp.async in three stages, and the matrix unit of the target."""
    a, b = torch.randn(rows, 128).bfloat16(), torch.randn(128, 128).bfloat16()
    c, kernel = product(a, b, (64, 64, 32))
    return c, a.double() @ b.double(), kernel


def run_tile_copies() -> tuple[torch.Tensor, torch.Tensor, triton.compiler.CompiledKernel]:
    a, b = torch.randn(128, 256).bfloat16(), torch.randn(128, 256).bfloat16()
    c, kernel = tile_copy_product(a, b, (64, 64, 64))
    return c, a.double() @ b.double().t(), kernel


# ---- global memory


def test_missing_mask_of_a_load(emulator: ModuleType) -> None:
    x, y, z = torch.randn(1000), torch.randn(1000), torch.empty(1000)
    add_kernel[(1,)](x, y, z, 1000, 1024, True)
    with pytest.raises(
        emulator.Fault, match=r"out-of-bounds read of 16 bytes at .* past the end of x" + WHERE.format(kernel="add_kernel")
    ):
        add_kernel[(1,)](x, y, z, 1000, 1024, False)


def test_missing_mask_of_a_store(emulator: ModuleType) -> None:
    x, y, z = torch.randn(1024), torch.randn(1024), torch.empty(1000)
    add_kernel[(1,)](x, y, z, 1000, 1024, True)
    with pytest.raises(emulator.Fault, match=r"out-of-bounds write of 16 bytes at .* past the end of z"):
        add_kernel[(1,)](x, y, z, 1024, 1024, False)


def test_write_beside_a_slice(emulator: ModuleType) -> None:
    whole = torch.zeros(300)
    small_kernels.ones_kernel[(1,)](whole[:200], 200, 256)
    assert whole.sum() == 200
    with pytest.raises(emulator.Fault, match="writes x outside of the tensor given, inside its storage"):
        small_kernels.ones_kernel[(1,)](whole[:200], 201, 256)


def test_read_beside_a_slice_is_noted(emulator: ModuleType) -> None:
    x, y, z = torch.randn(1024)[:1000], torch.randn(1000), torch.empty(1000)
    add_kernel[(1,)](x, y, z, 1000, 1024, True)
    assert not emulator.stats.report.notes
    add_kernel[(1,)](x, torch.randn(1024), torch.empty(1024), 1024, 1024, False)
    assert any("reads x outside of the tensor given" in note for note in emulator.stats.report.notes)


@pytest.mark.parametrize(
    ("threads_at_once", "message"),
    [(128, "writes another value where another block wrote"), (256, "two threads write different values to one address")],
    ids=["one after the other", "at once"],
)
def test_blocks_that_overwrite_each_other(threads_at_once: int, message: str, emulator: ModuleType) -> None:
    small_kernels.same_row_kernel[(1,)](torch.randn(256), torch.empty(256), 256)
    with (
        emulator.settings.changed(threads_at_once=threads_at_once),
        pytest.raises(emulator.Fault, match="global race: " + message),
    ):
        small_kernels.same_row_kernel[(2,)](torch.randn(256), torch.empty(256), 256)


def test_blocks_that_read_what_others_write(emulator: ModuleType) -> None:
    small_kernels.neighbour_kernel[(1,)](torch.randn(1024), 256)
    with pytest.raises(emulator.Fault, match="global race: writes where another block read"):
        small_kernels.neighbour_kernel[(3,)](torch.randn(1024), 256)


def test_read_of_what_nobody_wrote(emulator: ModuleType) -> None:
    arguments = torch.randn(1024), torch.empty(1024), 1024, 1024, False
    add_kernel[(1,)](torch.randn(1024), *arguments)
    assert not emulator.stats.report.unwritten
    add_kernel[(1,)](torch.empty(1024), *arguments)
    findings = list(emulator.stats.report.unwritten.values())
    assert findings
    for finding in findings:  # of each load of x
        assert re.match(r"read of memory that nobody wrote \(x\)" + WHERE.format(kernel="add_kernel"), finding)
    with (
        emulator.settings.changed(unwritten_reads="fault"),
        pytest.raises(emulator.Fault, match=r"read of memory that nobody wrote \(x\)"),
    ):
        add_kernel[(1,)](torch.empty(1024), *arguments)


def test_view_that_is_aligned_less_than_the_kernel_was_told(emulator: ModuleType) -> None:
    y, z = torch.randn(1024), torch.empty(1024)
    kernel = add_kernel[(1,)](torch.randn(1024), y, z, 1024, 1024, False)
    kernel[(1, 1, 1)](torch.randn(1024), y, z, 1024, 1024, False)
    with pytest.raises(emulator.Fault, match="misaligned read of 16 bytes"):
        kernel[(1, 1, 1)](torch.randn(1025)[1:], y, z, 1024, 1024, False)


# ---- the launch


def test_empty_grid(emulator: ModuleType) -> None:
    x = torch.randn(16)
    with pytest.raises(emulator.Fault, match=r"add_kernel: launch of an empty grid \(0, 1, 1\), which CUDA refuses"):
        add_kernel[(0,)](x, x, torch.empty(16), 16, 16, True)


def test_too_large_a_grid(emulator: ModuleType) -> None:
    x = torch.randn(16)
    kernel = add_kernel[(1,)](x, x, torch.empty(16), 16, 16, True)
    with pytest.raises(emulator.Fault, match="expected a grid of at most"):
        kernel[(1, 65536, 1)](x, x, torch.empty(16), 16, 16, True)
    with emulator.settings.changed(most_blocks=2), pytest.raises(emulator.Fault, match=r"expected at most 2 blocks.*, got 3"):
        kernel[(3, 1, 1)](x, x, torch.empty(16), 16, 16, True)


def test_argument_out_of_its_type(emulator: ModuleType) -> None:
    x = torch.randn(1000)
    kernel = add_kernel[(1,)](x, x, torch.empty(1000), 1000, 1024, True)
    kernel[(1, 1, 1)](x, x, torch.empty(1000), 1000, 1024, True)
    with pytest.raises(emulator.Fault, match=rf"add_kernel: expected an argument that fits i32, got {1 << 32}"):
        kernel[(1, 1, 1)](x, x, torch.empty(1000), 1 << 32, 1024, True)


def test_unknown_instruction_is_named(emulator: ModuleType) -> None:
    x, y, z = torch.randn(1000), torch.randn(1000), torch.empty(1000)
    kernel = add_kernel[(1,)](x, y, z, 1000, 1024, True)
    for new in ("frobnicate.f32", "add.rz.f32"):
        with (
            edited(kernel, replaced(r"add(?:\.rn)?\.f32", new, count=1)),
            pytest.raises(NotImplementedError, match=rf"add_kernel: PTX line \d+.*{re.escape(new)}"),
        ):
            add_kernel[(1,)](x, y, z, 1000, 1024, True)


# ---- shared memory and barriers


def test_read_of_shared_memory_that_nobody_wrote(emulator: ModuleType) -> None:
    x, y = torch.randn(1, 700), torch.empty(1, 700)
    kernel = softmax_kernel[(1,)](x, y, 700, 700, 1024)
    with (
        edited(kernel, without(r"(@%p\d+ )?st\.shared[^;]*;")),
        pytest.raises(emulator.Fault, match="read of uninitialised shared memory" + WHERE.format(kernel="softmax_kernel")),
    ):
        softmax_kernel[(1,)](x, y, 700, 700, 1024)


def test_barrier_that_is_not_known(emulator: ModuleType) -> None:
    x, y = torch.randn(1, 700), torch.empty(1, 700)
    kernel = softmax_kernel[(1,)](x, y, 700, 700, 1024)
    with (
        edited(kernel, replaced(r"bar\.sync\s+0;", "bar.sync 1;", count=1)),
        pytest.raises(NotImplementedError, match=r"softmax_kernel: PTX line \d+: .*`bar\.sync.*1;?` \(expected bar\.sync 0"),
    ):
        softmax_kernel[(1,)](x, y, 700, 700, 1024)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(without(r"bar\.sync\s+0;"), "shared race", id="no barriers"),
        pytest.param(
            without(r"cp\.async\.wait_group\s+\d+;"), "an asynchronous copy into it has not been waited for", id="no waits"
        ),
        pytest.param(
            replaced(r"cp\.async\.wait_group\s+(\d+);", lambda m: f"cp.async.wait_group {int(m[1]) + 2};"),
            "an asynchronous copy into it has not been waited for",
            id="waits for one stage too few",
        ),
    ],
)
def test_pipelined_product(edit: Edit, message: str, emulator: ModuleType) -> None:
    _found(emulator, run_product, edit, message)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(
            replaced(r"(ldmatrix[^;]*\[%r\d+)", r"\1+32768", count=1),
            "out-of-bounds shared read of 16 bytes",
            id="past the end",
        ),
        pytest.param(
            replaced(r"(cp\.async\.c[ag][^;]*\[ %rd\d+ \+ )0", r"\g<1>8", count=1),
            "misaligned read of 16 bytes",
            id="copy from a misaligned address",
        ),
    ],
)
def test_product_of_warps(edit: Edit, message: str, target: int, emulator: ModuleType) -> None:
    if target != 80:
        pytest.skip("sm_90 multiplies by wgmma")
    _found(emulator, run_product, edit, message)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(without(r"fence\.proxy\.async\.shared::cta;"), "without fence.proxy.async", id="no proxy fence"),
        pytest.param(
            without(r"wgmma\.wait_group\.sync\.aligned\s+1;"),
            "shared memory written while wgmma of warpgroup 0 may still read it",
            id="no wait for the product before",
        ),
        pytest.param(
            without(r"wgmma\.wait_group\.sync\.aligned\s+0;"),
            "accumulator of a wgmma in flight is used before wgmma.wait_group",
            id="accumulators used before the wait",
        ),
        pytest.param(
            without(r"wgmma\.fence\.sync\.aligned;"),
            "registers written after wgmma.fence and used by wgmma",
            id="no wgmma.fence",
        ),
        pytest.param(
            replaced(r"(or\.b64\s+%rd\d+, %rd\d+, )(461\d+);", lambda m: f"{m[1]}{int(m[2]) + 0x3F00};"),
            r"wgmma \([AB]\) reads shared memory at",
            id="past the end",
        ),
    ],
)
def test_product_of_warpgroups(edit: Edit, message: str, target: int, emulator: ModuleType) -> None:
    if target != 90:
        pytest.skip("sm_80 has no wgmma")
    with emulator.settings.changed(product_registers="fault"):
        _found(emulator, run_product, edit, message)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(
            without(r"mbarrier\.try_wait[^;]*;\s*@!complete bra\.uni waitLoop;"),
            "an asynchronous copy into it has not been waited for",
            id="no wait",
        ),
        pytest.param(
            replaced(r"(arrive\.expect_tx[^;]*, )(\d+);", lambda m: f"{m[1]}{int(m[2]) + 16};"),
            "deadlock: every thread waits, this one for a barrier in shared memory",
            id="waits for more bytes than arrive",
        ),
        pytest.param(without(r"@%p\d+ mbarrier\.init[^;]*;"), "mbarrier that is not initialised", id="no initialisation"),
        pytest.param(
            without(r"fence\.proxy\.async\.shared::cta;"), "without fence.proxy.async", id="no proxy fence before a store"
        ),
        pytest.param(without(r"bar\.sync\s+0;"), "race", id="no barriers"),
    ],
)
def test_tile_copies(edit: Edit, message: str, target: int, emulator: ModuleType) -> None:
    if target != 90:
        pytest.skip("sm_80 has no tile copies")
    _found(emulator, run_tile_copies, edit, message)


def test_tile_store_that_is_not_waited_for_is_noted(target: int, emulator: ModuleType) -> None:
    if target != 90:
        pytest.skip("sm_80 has no tile copies")
    _, _, kernel = run_tile_copies()
    with edited(kernel, without(r"cp\.async\.bulk\.wait_group\.read\s+0;")):
        run_tile_copies()
    assert list(emulator.stats.report.notes) == [
        "tile_copy_product_kernel: ends while tile stores may still read shared memory"
    ]


def _found(emulator: ModuleType, run: Callable, edit: Edit, message: str) -> None:
    """The kernel of `run` is right as it is, and a fault with this message once it is edited."""
    result, exact, kernel = run()
    assert (result.double() - exact).abs().max() < 1e-2 * exact.abs().max()
    assert not emulator.stats.report.notes
    with edited(kernel, edit), pytest.raises(emulator.Fault, match=message + WHERE.format(kernel=kernel.metadata.name)):
        run()


# ---- layouts of shared memory


def _with_descriptor(change: Callable[[int], int]) -> Edit:
    """Changes the constant part of every wgmma descriptor: the swizzle in its two highest bits, the offsets below."""
    return replaced(r"(or\.b64\s+%rd\d+, %rd\d+, )(\d{19});", lambda m: f"{m[1]}{change(int(m[2]))};")


def _field(word: int, bit: int, change: Callable[[int], int]) -> int:
    """The word with the field of 14 bits at this bit changed."""
    value = word >> bit & 0x3FFF
    return word + ((change(value) - value) << bit)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda word: word & (1 << 62) - 1, id="no swizzle"),
        pytest.param(lambda word: word ^ 3 << 62, id="swizzle of 64 bytes"),
        pytest.param(lambda word: word | 3 << 62, id="swizzle of 32 bytes"),
        pytest.param(lambda word: _field(word, 32, lambda stride: stride // 2), id="half the stride"),
        pytest.param(lambda word: _field(word, 16, lambda leading: leading // 2), id="half the leading offset"),
    ],
)
def test_wrong_matrix_descriptor_shows(change: Callable[[int], int], target: int, emulator: ModuleType) -> None:
    if target != 90:
        pytest.skip("sm_80 has no matrix descriptors")
    a, b = torch.randn(64, 128).bfloat16(), torch.randn(128, 128).bfloat16()
    exact = a.double() @ b.double()
    result, kernel = product(a, b, (64, 128, 64))  # B is N-major and two swizzle patterns wide: every field counts
    assert (result.double() - exact).abs().max() < 1e-4
    with edited(kernel, _with_descriptor(change)):
        assert _differs(emulator, lambda: product(a, b, (64, 128, 64))[0], exact)


@pytest.mark.parametrize("swizzle", [0, 1, 2])
def test_wrong_swizzle_of_a_tensor_map_shows(
    swizzle: int, target: int, emulator: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    if target != 90:
        pytest.skip("sm_80 has no tensor maps")
    a, b = torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16()
    exact = a.double() @ b.double().t()
    assert not _differs(emulator, lambda: tile_copy_product(a, b, (64, 64, 64))[0], exact)
    utils = triton.runtime.driver.active.utils
    encode, maps = utils.fill_tma_descriptor_tiled, []

    def encode_wrongly(*arguments):
        maps.append(encode(*arguments))
        return dataclasses.replace(maps[-1], swizzle=swizzle)

    monkeypatch.setattr(utils, "fill_tma_descriptor_tiled", encode_wrongly)
    # The rows of a box must fit the pattern, and the driver refuses what does not: here only the copy shall be wrong.
    monkeypatch.setattr("tests.emulator.tensor_map.TensorMap.refusal", lambda self: None)
    assert _differs(emulator, lambda: tile_copy_product(a, b, (64, 64, 64))[0], exact)
    assert {tensor.swizzle for tensor in maps} == {3}


def _differs(emulator: ModuleType, run: Callable[[], torch.Tensor], exact: torch.Tensor) -> bool:
    """Whether it stops with a fault, or its result is not the exact one."""
    try:
        result = run()
    except emulator.Fault:
        return True
    return not bool((result.double() - exact).abs().max() < 1e-2 * exact.abs().max())
