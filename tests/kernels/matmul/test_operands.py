"""Where the operands of a product lie changes nothing: neither its tile nor its bits."""

import pytest
import torch

from fastbert.kernels.matmul import pointers
from fastbert.kernels.matmul.config import SMALL, TMA, GemmConfig
from fastbert.kernels.matmul.operands import readable, readable_weights
from tests.kernels.matmul.test_structures import needs_tma


def moved(tensor, layout):
    """The same values: one element after a vector's start, in rows that are no whole vectors apart, or column by column."""
    rows, columns = tensor.shape
    if layout == "unaligned":
        found = tensor.new_empty(rows * columns + 1)[1:].view(rows, columns)
    elif layout == "padded":
        found = tensor.new_empty(rows, columns + 3)[:, :columns]
    else:
        found = tensor.new_empty(rows, columns + 32)[:, :columns]
    return found.copy_(tensor)


def drawn(device, *shapes):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g).to(device, torch.float16) for shape in shapes]


@pytest.mark.parametrize("layout", ["unaligned", "padded"])
def test_neither_tile_nor_bits_depend_on_where_operands_lie(layout, triton_device, monkeypatch):
    chosen = []
    for_shape = GemmConfig.for_shape
    monkeypatch.setattr(GemmConfig, "for_shape", lambda *args: chosen.append(for_shape(*args)) or chosen[-1])
    monkeypatch.setattr(
        "fastbert.kernels.matmul.config.num_programs", lambda device, each: 1
    )  # few tiles are enough for the large
    g = torch.Generator().manual_seed(0)
    dy, x, w = (
        torch.randn(shape, generator=g).to(triton_device, torch.float16) for shape in ((256, 128), (256, 64), (128, 64))
    )
    for product in (
        lambda dy, x, w: pointers.gemm_wgrad(dy, x),
        lambda dy, x, w: pointers.gemm_fwd(x, [w, moved(w, "far"), w], [None] * 3, None, False)[0],
        lambda dy, x, w: pointers.gemm_dgrad(dy, [w], u=x, activation="relu", want_sum=True)[0],
    ):
        expected = product(dy, x, w)
        assert torch.equal(product(*(moved(operand, layout) for operand in (dy, x, w))), expected)
        assert chosen[-2] == chosen[-1] != SMALL


@pytest.mark.parametrize("layout", ["unaligned", "padded"])
@needs_tma
def test_tiles_copied_by_the_hardware_are_those_of_a_copy(layout, triton_device):
    x, w = drawn(triton_device, (16, 64), (32, 64))
    expected = pointers.gemm_fwd(x, [w], [None], None, False, config=TMA[-1])[0]
    assert torch.equal(
        pointers.gemm_fwd(moved(x, layout), [moved(w, layout)], [None], None, False, config=TMA[-1])[0], expected
    )


def test_only_what_could_be_read_in_vectors_is_copied():
    x = torch.zeros(4, 48)
    for N, K, tensor, copied in ((16, 48, x, False), (16, 48, moved(x, "far"), False), (16, 48, moved(x, "padded"), True)):
        assert (readable(N, K, tensor)[0] is not tensor) is copied
    odd = moved(torch.zeros(4, 47), "unaligned")
    assert readable(16, 47, odd)[0] is odd


def test_weights_side_by_side_have_one_stride():
    w = torch.zeros(16, 48)
    found = readable_weights(16, 48, [w, moved(w, "far"), moved(w, "unaligned")])
    assert [one.stride(0) for one in found] == [48] * 3
    assert found[0] is w
