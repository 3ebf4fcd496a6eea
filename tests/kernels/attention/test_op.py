"""The operators of attention: layouts of memory, 64-bit offsets, what is saved, fake tensors, torch.compile."""

import mmap

import pytest
import torch

from fastbert.kernels.attention.op import attention_bwd, attention_fwd
from fastbert.kernels.attention.operands import MAX_STRIDE, with_aligned_rows
from fastbert.kernels.attention.packing import attention_packs
from fastbert.kernels.functional import attention
from fastbert.kernels.specs.spec import generator, normal, seed_tensor
from tests.kernels.attention.batches import LONG, SHORT, packed_batch, tiles_of
from tests.kernels.harness import DTYPES, GPU, forward_backward


def test_gradient_reaches_the_buffer_behind_a_view(device):
    wide = normal((147, 3, 4, 48), torch.float32, device, generator()).requires_grad_()
    cu_seqlens = torch.tensor([0, 17, 147], dtype=torch.int32, device=device)
    attention(wide[:, :, 1:3, 8:40], cu_seqlens, 130).cos().sum().backward()
    packed = wide.detach()[:, :, 1:3, 8:40].contiguous().requires_grad_()
    attention(packed, cu_seqlens, 130).cos().sum().backward()
    assert torch.equal(wide.grad[:, :, 1:3, 8:40], packed.grad)
    wide.grad[:, :, 1:3, 8:40] = 0
    assert (wide.grad == 0).all()


def test_axes_of_one_element_may_have_any_stride(device):
    qkv, cu_seqlens, _ = packed_batch((1,), heads=1, device=device)
    odd = torch.empty_strided(qkv.shape, (1, 16, 1, 1), device=device).copy_(qkv)
    assert torch.equal(attention(odd, cu_seqlens, 1), attention(qkv, cu_seqlens, 1))
    expanded = attention(qkv.requires_grad_(), cu_seqlens, 1)
    expanded.sum().backward()  # a gradient of strides 0
    torch.testing.assert_close(qkv.grad[:, 2], torch.ones_like(expanded))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seqlens", [SHORT, LONG], ids=["short", "loops"])
def test_gradients_of_any_layout(seqlens, dtype, device):
    """The gradient of the output may start or continue off multiples of 16 bytes, or be the same for all tokens."""
    qkv, cu_seqlens, max_seqlen = packed_batch(seqlens, head_dim=24, dtype=dtype, device=device)
    out = attention(qkv.requires_grad_(), cu_seqlens, max_seqlen)
    dout = normal(out.shape, dtype, device, generator(1))
    (expected,) = torch.autograd.grad(out, qkv, dout, retain_graph=True)
    odd = dout.new_zeros((*out.shape[:2], 25))[..., 1:].copy_(dout)
    shifted = dout.new_zeros(out.numel() + 1)[1:].view(out.shape).copy_(dout)
    heads_first = dout.transpose(0, 1).contiguous().transpose(0, 1)
    for layout in (odd, shifted, heads_first):
        assert torch.equal(torch.autograd.grad(out, qkv, layout, retain_graph=True)[0], expected)
    for same in (dout[:1].expand(out.shape), dout[:1, :1, :1].expand(out.shape)):
        (expected,) = torch.autograd.grad(out, qkv, same.clone(), retain_graph=True)
        assert torch.equal(torch.autograd.grad(out, qkv, same, retain_graph=True)[0], expected)


def test_lse_is_base_two(device):
    qkv, cu_seqlens, max_seqlen = packed_batch(LONG, device=device)
    _, lse = attention_fwd(qkv, tiles_of(cu_seqlens, max_seqlen, qkv), max_seqlen, 0.25, False, 0.0, None, 0, True)
    for start, end in zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:]):
        q, k, _ = qkv[start:end].double().permute(1, 2, 0, 3)
        expected = (0.25 * q @ k.transpose(-1, -2)).logsumexp(-1) / torch.tensor(2.0).double().log()
        torch.testing.assert_close(lse[:, start:end].double(), expected, rtol=1e-5, atol=1e-5)


def test_opcheck(device):
    seed = seed_tensor(3, device)
    for seqlens, options in ((SHORT, (0.25, False, 0.0, None, 0)), (LONG, (0.25, True, 0.2, seed, 1))):
        qkv, cu_seqlens, max_seqlen = packed_batch(seqlens, device=device)
        tiles = tiles_of(cu_seqlens, max_seqlen, qkv)
        torch.library.opcheck(attention_fwd, (qkv.clone().requires_grad_(), tiles, max_seqlen, *options, True))
        torch.library.opcheck(attention_fwd, (qkv, tiles, max_seqlen, *options, False))
        out, lse = attention_fwd(qkv, tiles, max_seqlen, *options, True)
        torch.library.opcheck(attention_bwd, (out.cos(), qkv, out, lse, tiles, max_seqlen, *options))


def test_a_gradient_needs_what_was_saved(device):
    qkv, cu_seqlens, max_seqlen = packed_batch(SHORT, device=device)
    tiles = tiles_of(cu_seqlens, max_seqlen, qkv)
    with pytest.raises(RuntimeError, match="save=False"):
        attention_fwd(qkv.requires_grad_(), tiles, max_seqlen, 0.25, False, 0.0, None, 0, False)


def test_compiles_without_a_graph_break(device):
    """Two lengths and both kinds of path through one graph."""
    graphs = 0

    def count(graph, inputs):
        nonlocal graphs
        graphs += 1
        return graph

    def step(qkv, cu_seqlens, max_seqlen):
        return attention(qkv, cu_seqlens, max_seqlen, causal=True)

    for backend in ("aot_eager", count):
        compiled = torch.compile(step, fullgraph=True, backend=backend, dynamic=True)
        for seqlens in (LONG, SHORT, (100, 7, 2)):
            qkv, cu_seqlens, max_seqlen = packed_batch(seqlens, device=device)
            inputs = dict(qkv=qkv, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
            expected = forward_backward(step, inputs, ("qkv",), None, torch.cos)
            for name, value in forward_backward(compiled, inputs, ("qkv",), None, torch.cos).items():
                assert torch.equal(value, expected[name]), name
    assert graphs == 1


def reserve(elements: int) -> torch.Tensor:
    """Address space for that many float16 elements, zeros where read; only pages that are written take memory."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        return torch.frombuffer(mmap.mmap(-1, 2 * elements, flags=flags), dtype=torch.float16)
    except OSError as error:
        pytest.skip(f"the system does not reserve {elements >> 29} GiB of address space: {error}")


@pytest.mark.skipif(GPU, reason="rests on memory that is reserved but never touched, which a GPU does not have")
@pytest.mark.parametrize("axis", ["token", "part", "head"])
def test_strides_past_two_to_the_31_elements(axis):
    """Real launches on a view so spread out that 32-bit offsets would wrap to the zeros before it."""
    qkv, cu_seqlens, max_seqlen = packed_batch(LONG, dtype=torch.float16)
    T, _, H, D = qkv.shape
    strides = {"token": (MAX_STRIDE, 2 * D, D), "part": (D, 2**31 + 8, T * D), "head": (D, T * D, 2**31 + 8)}[axis]
    before = 2**31
    length = before + sum(stride * (size - 1) for stride, size in zip(strides, (T, 3, H))) + D
    if axis == "token":
        strides = (strides[0], H * D, D)
        length += 3 * H * D
    far = reserve(length)[before:].as_strided(qkv.shape, (*strides, 1))
    far.copy_(qkv)
    assert with_aligned_rows(far) is far
    arguments = dict(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
    expected = forward_backward(attention, dict(qkv=qkv, **arguments), ("qkv",), None, torch.cos)
    for name, value in forward_backward(attention, dict(qkv=far, **arguments), ("qkv",), None, torch.cos).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.skipif(GPU, reason="rests on memory that is reserved but never touched, which a GPU does not have")
@pytest.mark.parametrize(("seqlen", "max_seqlen"), [(70, 200), (100, 128), (40, 64)], ids=["loops", "whole", "short"])
def test_tokens_past_two_to_the_31_elements(seqlen, max_seqlen):
    """The last sequence of a batch whose qkv and gradient have more than 2^31 elements; no other row is touched."""
    few = packed_batch((seqlen,), heads=1, dtype=torch.float16)[0]
    T = 2**31 // 48 + 1000
    qkv = reserve(T * 48).view(T, 3, 1, 16)
    qkv[-seqlen:] = few
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # would write every page
    try:
        results = []
        for x in (qkv, few):
            tiles = [torch.tensor([[len(x) - seqlen, seqlen, seqlen, offset]], dtype=torch.int32) for offset in (0, 0)]
            tiles[0] = torch.cat([tiles[0], tiles[0] + torch.tensor([0, 0, 0, 64])]).to(torch.int32)
            tiles += attention_packs(torch.tensor([len(x) - seqlen, len(x)], dtype=torch.int32), None, len(x))
            options = (tiles, max_seqlen, 0.25, False, 0.0, None, 0)
            out, lse = attention_fwd(x, *options, True)
            dqkv = attention_bwd(out[-1:].expand_as(out), x, out, lse, *options)
            results.append([part[-seqlen:] for part in (out, lse.t(), dqkv)])
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before
    for far, near in zip(*results):
        assert torch.equal(far, near)
