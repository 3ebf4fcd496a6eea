"""attention: dropout, tiles of every target, layouts, limits. The float64 comparisons are generated in test_specs.py."""

import mmap

import pytest
import torch

from fastbert.kernels.attention.config import Problem
from fastbert.kernels.attention.op import MAX_STRIDE, attention_bwd, attention_fwd
from fastbert.kernels.attention.packing import attention_packs
from fastbert.kernels.batch_invariance import batch_invariant_kernels
from fastbert.kernels.dropout import scale, threshold
from fastbert.kernels.functional import attention, attention_schedule
from fastbert.kernels.reference import attention_ref
from fastbert.kernels.specs.attention import SPECS, dropout_mask
from fastbert.kernels.specs.spec import generator, normal, seed_tensor
from tests.kernels.harness import DTYPES, GPU, compare, forward_backward

SPEC = SPECS[0]
SHORT, LONG = (17, 64, 3), (17, 130, 64)  # through the whole-sequence kernels; through the loops


def make(seqlens, heads=2, head_dim=16, dtype=torch.float32, device="cpu"):
    """qkv, cu_seqlens and max_seqlen of a packed batch."""
    qkv = normal((sum(seqlens), 3, heads, head_dim), dtype, torch.device(device), generator())
    bounds = [0, *torch.tensor(seqlens).cumsum(0).tolist()]
    return qkv, torch.tensor(bounds, dtype=torch.int32, device=device), max(seqlens)


def tiles_of(cu_seqlens, max_seqlen, qkv):
    return list(attention_schedule(cu_seqlens, max_seqlen, qkv.shape[0], qkv).tiles)


def test_mask_rate_and_scale(device):
    mask = dropout_mask(3, 200, 260, 0.1, seed_tensor(5, device), 0)
    dropped = (mask == 0).double()
    assert abs(dropped.mean().item() - threshold(0.1) / 65536) < 4 * (0.09 / mask.numel()) ** 0.5
    assert mask.unique().tolist() == [0.0, pytest.approx(scale(0.1), rel=1e-6)]
    for axes in ((0, 1), (0, 2), (1, 2)):  # neither heads, queries nor keys share their draws
        assert dropped.mean(axes).std() < 0.03


def test_mask_depends_on_place_not_on_tiles(device):
    seed = seed_tensor(7, device)
    large = dropout_mask(3, 70, 200, 0.3, seed, 1)
    assert torch.equal(large[:2, :9, :33], dropout_mask(2, 9, 33, 0.3, seed, 1))
    assert not torch.equal(large, dropout_mask(3, 70, 200, 0.3, seed, 2))
    assert not torch.equal(large, dropout_mask(3, 70, 200, 0.3, seed_tensor(8, device), 1))


def test_mask_matches_an_independent_philox(device):
    """Philox 4x32-7 in plain integers, from the paper's definition."""

    def philox(key, counter):
        (k0, k1), c = key, list(counter)
        for _ in range(7):
            p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
            c = [(p1 >> 32) ^ c[1] ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k1, p0 & 0xFFFFFFFF]
            k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
        return c

    seed, stream, p = 0x1234_5678_9ABC_DEF0, 3, 0.4
    mask = dropout_mask(2, 3, 140, p, seed_tensor(seed, device), stream)
    for head in range(2):
        for token in range(3):
            for key in range(140):
                words = philox((seed & 0xFFFFFFFF, seed >> 32), (token, key // 64 * 8 + key % 8, head, stream))
                place = key % 64 // 8
                half_word = words[place // 2] >> (16 * (place % 2)) & 0xFFFF
                assert (mask[head, token, key] != 0) == (half_word >= threshold(p))


@pytest.mark.parametrize("seqlens", [SHORT, LONG], ids=["whole", "loops"])
def test_forward_and_backward_drop_the_same(seqlens, device):
    """out is linear in v, so <dout, out> = <dv, v> only if both directions drew one mask; q and k by differences."""
    qkv, cu_seqlens, max_seqlen = make(seqlens, device=device)
    options = dict(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, dropout_p=0.3, seed=seed_tensor(11, device))
    dout = normal((qkv.shape[0], *qkv.shape[2:]), torch.float32, device, generator(1))
    got = forward_backward(attention, dict(qkv=qkv, **options), ("qkv",), None, lambda out: dout)
    torch.testing.assert_close((dout * got["out"]).sum(), (got["dqkv"][:, 2] * qkv[:, 2]).sum(), rtol=1e-4, atol=1e-3)

    direction, step = normal(qkv.shape, torch.float32, device, generator(2)), 1e-2
    direction[:, 2] = 0
    up, down = (attention(qkv + sign * step * direction, **options) for sign in (1, -1))
    difference = (dout * (up - down)).double().sum() / (2 * step)
    torch.testing.assert_close((got["dqkv"] * direction).double().sum(), difference, rtol=1e-2, atol=1e-2)


TARGETS = [("sm_80", "ieee"), ("sm_80", "tf32"), ("sm_90", "tf32"), ("sm_100", "ieee"), ("gfx942", "ieee")]


@pytest.mark.skipif(GPU, reason="tiles chosen for another card need not fit this one")
@pytest.mark.parametrize(("target", "precision"), TARGETS)
def test_tiles_of_every_target_match_float64(target, precision, device, monkeypatch):
    """The interpreter computes with the tiles that each architecture would get; numbers and dropout mask must not move."""
    chosen = set()

    def of(qkv, max_seqlen, dropout_p):
        problem = Problem(max_seqlen, qkv.shape[-1], qkv.dtype, precision, dropout_p > 0, target)
        chosen.add(problem)
        return problem

    monkeypatch.setattr(Problem, "of", of)
    short, long = "up-to-64-causal-dropout", "tokens-inside-heads"
    cases = [(dtype, name) for dtype in (torch.float32, torch.float16) for name in (short, long, "unused-keys-up-to-64")]
    cases += [(torch.float32, "head-dim-40-causal"), (torch.float32, "head-dim-80-dropout")]
    cases += [(torch.float16, name) for name in ("head-dim-80-dropout", "head-dim-128", "up-to-128-causal")]
    for dtype, name in cases:
        sample = next(sample for sample in SPEC.samples if sample.name == name)
        compare(SPEC, sample.make(dtype, device), dtype)
    assert {problem.target for problem in chosen} == {target}


@pytest.mark.parametrize("seqlens", [SHORT, (17, 5, 0, 30, 12), (40, 100, 3), LONG], ids=["64", "shared", "128", "loops"])
def test_sequences_do_not_leak_into_each_other(seqlens, device):
    """What stands before, after and behind a sequence in memory does not touch it, not even as 0 * NaN."""
    qkv, cu_seqlens, max_seqlen = make(seqlens, device=device)
    options = dict(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
    clean = forward_backward(attention, dict(qkv=qkv, **options), ("qkv",), None, torch.cos)
    for place, (start, end) in enumerate(zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:])):
        poisoned = torch.full_like(qkv, float("nan"))
        poisoned[start:end] = qkv[start:end]
        got = forward_backward(attention, dict(qkv=poisoned, **options), ("qkv",), None, torch.cos)
        for name, value in clean.items():
            assert torch.equal(got[name][start:end], value[start:end]), f"{name} of sequence {place} differs"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["q", "k", "v", "dout"])
def test_what_is_not_finite_stays_in_its_sequence_of_a_shared_tile(place, value, device):
    """One element: the neighbours keep their bits, and the sequence's own results do not hide it."""
    qkv, cu_seqlens, max_seqlen = make((9, 20, 30), device=device)
    options = dict(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, dropout_p=0.1, seed=seed_tensor(1, device))
    dout = normal((59, 2, 16), torch.float32, device, generator(1))
    clean = forward_backward(attention, dict(qkv=qkv, **options), ("qkv",), None, lambda out: dout)
    bad_qkv, bad_dout = qkv.clone(), dout.clone()
    (bad_dout[13] if place == "dout" else bad_qkv[13, "qkv".index(place)])[1, 3] = value
    got = forward_backward(attention, dict(qkv=bad_qkv, **options), ("qkv",), None, lambda out: bad_dout)
    for name in clean:
        assert torch.equal(got[name][:9], clean[name][:9])
        assert torch.equal(got[name][29:], clean[name][29:])
        assert torch.equal(got[name][..., 0, :], clean[name][..., 0, :]), "the other head"
    assert not got["dqkv"][9:29].isfinite().all()
    assert got["out"][9:29].isfinite().all() == (place == "dout")


@pytest.mark.parametrize(("seqlens", "keys"), [(LONG, (17, 70, 0)), ((9, 20, 30), (9, 4, 0))], ids=["loops", "shared"])
def test_unused_keys_are_not_read(seqlens, keys, device):
    """NaN in the keys and values past seqused_k changes nothing, and their gradients are zeros."""
    qkv, cu_seqlens, max_seqlen = make(seqlens, device=device)
    seqused_k = torch.tensor(keys, dtype=torch.int32, device=device)
    options = dict(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, seqused_k=seqused_k)
    clean = forward_backward(attention, dict(qkv=qkv, **options), ("qkv",), None, torch.cos)
    unused = torch.cat([torch.arange(n) >= used for n, used in zip(seqlens, keys)])
    poisoned = qkv.clone()
    poisoned[unused, 1:] = float("nan")
    got = forward_backward(attention, dict(qkv=poisoned, **options), ("qkv",), None, torch.cos)
    assert all(torch.equal(got[name], clean[name]) for name in clean)
    assert (got["dqkv"][unused, 1:] == 0).all()
    assert (got["out"][-seqlens[-1] :] == 0).all(), "a sequence without keys gives zeros"


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_tiles_are_not_shared_in_batch_invariant_mode(dropout_p, device):
    """There a sequence gets the bits it gets alone, wherever it stands; elsewhere it gets the same numbers and mask."""
    qkv, cu_seqlens, max_seqlen = make((5, 20, 30), device=device)
    options = dict(dropout_p=dropout_p, seed=seed_tensor(1, device))
    shared = attention(qkv, cu_seqlens, max_seqlen, **options)
    with batch_invariant_kernels():
        together = attention(qkv, cu_seqlens, max_seqlen, **options)
        alone = attention(qkv[25:], cu_seqlens[[0, 3]] - cu_seqlens.new_tensor([0, 25]), 30)
    torch.testing.assert_close(shared, together)
    if not dropout_p:
        assert torch.equal(together[25:], alone)


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
    qkv, cu_seqlens, _ = make((1,), heads=1, device=device)
    odd = torch.empty_strided(qkv.shape, (1, 16, 1, 1), device=device).copy_(qkv)
    assert torch.equal(attention(odd, cu_seqlens, 1), attention(qkv, cu_seqlens, 1))
    expanded = attention(qkv.requires_grad_(), cu_seqlens, 1)
    expanded.sum().backward()  # a gradient of strides 0
    torch.testing.assert_close(qkv.grad[:, 2], torch.ones_like(expanded))


def test_lse_is_base_two(device):
    qkv, cu_seqlens, max_seqlen = make(LONG, device=device)
    _, lse = attention_fwd(qkv, tiles_of(cu_seqlens, max_seqlen, qkv), max_seqlen, 0.25, False, 0.0, None, 0, True)
    for start, end in zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:]):
        q, k, _ = qkv[start:end].double().permute(1, 2, 0, 3)
        expected = (0.25 * q @ k.transpose(-1, -2)).logsumexp(-1) / torch.tensor(2.0).double().log()
        torch.testing.assert_close(lse[:, start:end].double(), expected, rtol=1e-5, atol=1e-5)


def test_schedule_is_shared_and_optional(device):
    qkv, cu_seqlens, max_seqlen = make(LONG, device=device)
    schedule = attention_schedule(cu_seqlens, max_seqlen, qkv.shape[0], qkv)
    assert torch.equal(attention(qkv, cu_seqlens, max_seqlen, schedule=schedule), attention(qkv, cu_seqlens, max_seqlen))


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.float32])
def test_autocast_lowers_the_precision(dtype, device):
    qkv, cu_seqlens, max_seqlen = make(SHORT, device=device)
    with torch.autocast(device.type, dtype=dtype):
        out = attention(qkv, cu_seqlens, max_seqlen)
    assert torch.equal(out, attention(qkv.to(dtype), cu_seqlens, max_seqlen))


def test_opcheck(device):
    seed = seed_tensor(3, device)
    for seqlens, options in ((SHORT, (0.25, False, 0.0, None, 0)), (LONG, (0.25, True, 0.2, seed, 1))):
        qkv, cu_seqlens, max_seqlen = make(seqlens, device=device)
        tiles = tiles_of(cu_seqlens, max_seqlen, qkv)
        torch.library.opcheck(attention_fwd, (qkv.clone().requires_grad_(), tiles, max_seqlen, *options, True))
        torch.library.opcheck(attention_fwd, (qkv, tiles, max_seqlen, *options, False))
        out, lse = attention_fwd(qkv, tiles, max_seqlen, *options, True)
        torch.library.opcheck(attention_bwd, (out.cos(), qkv, out, lse, tiles, max_seqlen, *options))


def test_a_gradient_needs_what_was_saved(device):
    qkv, cu_seqlens, max_seqlen = make(SHORT, device=device)
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
            qkv, cu_seqlens, max_seqlen = make(seqlens, device=device)
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
    qkv, cu_seqlens, max_seqlen = make(LONG, dtype=torch.float16)
    T, _, H, D = qkv.shape
    strides = {"token": (MAX_STRIDE, 2 * D, D), "part": (D, 2**31 + 8, T * D), "head": (D, T * D, 2**31 + 8)}[axis]
    before = 2**31
    length = before + sum(stride * (size - 1) for stride, size in zip(strides, (T, 3, H))) + D
    if axis == "token":
        strides = (strides[0], H * D, D)
        length += 3 * H * D
    far = reserve(length)[before:].as_strided(qkv.shape, (*strides, 1))
    far.copy_(qkv)
    arguments = dict(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
    expected = forward_backward(attention, dict(qkv=qkv, **arguments), ("qkv",), None, torch.cos)
    for name, value in forward_backward(attention, dict(qkv=far, **arguments), ("qkv",), None, torch.cos).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.skipif(GPU, reason="rests on memory that is reserved but never touched, which a GPU does not have")
@pytest.mark.parametrize(("seqlen", "max_seqlen"), [(70, 200), (100, 128), (40, 64)], ids=["loops", "whole", "short"])
def test_tokens_past_two_to_the_31_elements(seqlen, max_seqlen):
    """The last sequence of a batch whose qkv and gradient have more than 2^31 elements; no other row is touched."""
    few = make((seqlen,), heads=1, dtype=torch.float16)[0]
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


def good(**change):
    qkv, cu_seqlens, max_seqlen = make((3, 5))
    return dict(qkv=qkv, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen) | change


def bounds(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(qkv=torch.ones(8, 96)), ValueError, r"expected qkv of shape \(tokens, 3, heads, head_dim\), got \(8, 96\)"),
        (dict(qkv=torch.ones(8, 2, 1, 16)), ValueError, r"expected qkv of shape .*got \(8, 2, 1, 16\)"),
        (dict(qkv=torch.ones(8, 3, 1, 12)), ValueError, "expected head_dim a multiple of 8 from 16 to 128, got 12"),
        (dict(qkv=torch.ones(8, 3, 1, 8)), ValueError, "expected head_dim a multiple of 8 from 16 to 128, got 8"),
        (dict(qkv=torch.ones(8, 3, 1, 136)), ValueError, "expected head_dim a multiple of 8 from 16 to 128, got 136"),
        (dict(qkv=torch.ones(8, 3, 1, 16, dtype=torch.int32)), TypeError, "floating-point dtype, got torch.int32"),
        (dict(qkv=torch.ones(8, 3, 1, 16, dtype=torch.float64)), RuntimeError, "not float64"),
        (dict(cu_seqlens=bounds(1, 3, 8)), ValueError, "expected cu_seqlens to start at 0, got 1"),
        (dict(cu_seqlens=bounds(0, 3, 7)), ValueError, "expected cu_seqlens to end at the token count 8, got 7"),
        (dict(cu_seqlens=bounds(0, 5, 3, 8)), ValueError, "expected cu_seqlens not to decrease, got a step of -2"),
        (dict(cu_seqlens=bounds(0, 3, 8, dtype=torch.int64)), TypeError, "cu_seqlens of dtype int32, got torch.int64"),
        (dict(cu_seqlens=bounds(0, 3, 8)[None]), ValueError, r"cu_seqlens of shape \(batch_size \+ 1,\), got \(1, 3\)"),
        (dict(max_seqlen=4), ValueError, "sequences of at most max_seqlen 4, got one of 5"),
        (dict(seqused_k=bounds(3)), ValueError, r"expected seqused_k int32 of shape \(2,\), got torch.int32 \(1,\)"),
        (dict(seqused_k=bounds(3, 6)), ValueError, r"expected seqused_k in \[0, 5\] for a sequence of 5, got 6"),
        (dict(dropout_p=-0.1), ValueError, r"dropout_p must lie in \[0, 1\], got -0.1"),
        (dict(dropout_p=1.1), ValueError, r"dropout_p must lie in \[0, 1\], got 1.1"),
        (dict(softmax_scale=0.0), ValueError, "expected a positive softmax_scale, got 0.0"),
        (dict(softmax_scale=-1.0), ValueError, "expected a positive softmax_scale, got -1.0"),
    ],
)
def test_rejects_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        attention(**good(**change))


def test_reference_agrees_on_a_hand_made_case(device):
    """Two rows, one key each by causality or use: nothing to add up, so the answer is known."""
    qkv, cu_seqlens, _ = make((2,), heads=1, device=device)
    for out in (attention(qkv, cu_seqlens, 2, causal=True), attention_ref(qkv, cu_seqlens, causal=True)):
        torch.testing.assert_close(out[0], qkv[0, 2])
    one_key = torch.ones(1, dtype=torch.int32, device=device)
    out = attention(qkv, cu_seqlens, 2, seqused_k=one_key)
    torch.testing.assert_close(out, qkv[:1, 2].expand_as(out))
