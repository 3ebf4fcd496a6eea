"""functional.attention: sequences are independent, unused keys, arguments. Float64 comparisons are in test_specs.py."""

import pytest
import torch

from fastbert.kernels.functional import attention, attention_schedule
from fastbert.kernels.reference import attention_ref
from tests.kernels.attention.batches import LONG, SHORT, packed_batch
from tests.kernels.harness import DTYPES, forward_backward


@pytest.mark.parametrize("seqlens", [SHORT, (17, 5, 0, 30, 12), (40, 100, 3), LONG], ids=["64", "shared", "128", "loops"])
def test_sequences_do_not_leak_into_each_other(seqlens, device):
    """Memory before and after a sequence does not affect it, not even as 0 * NaN."""
    qkv, cu_seqlens, max_seqlen = packed_batch(seqlens, device=device)
    options = dict(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
    clean = forward_backward(attention, dict(qkv=qkv, **options), ("qkv",), None, torch.cos)
    for i, (start, end) in enumerate(zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:])):
        poisoned = torch.full_like(qkv, float("nan"))
        poisoned[start:end] = qkv[start:end]
        got = forward_backward(attention, dict(qkv=poisoned, **options), ("qkv",), None, torch.cos)
        for name, value in clean.items():
            assert torch.equal(got[name][start:end], value[start:end]), f"{name} of sequence {i} differs"


@pytest.mark.parametrize(("seqlens", "keys"), [(LONG, (17, 70, 0)), ((9, 20, 30), (9, 4, 0))], ids=["loops", "shared"])
def test_unused_keys_are_not_read(seqlens, keys, device):
    """NaN in the keys and values past seqused_k changes nothing, and their gradients are zeros."""
    qkv, cu_seqlens, max_seqlen = packed_batch(seqlens, device=device)
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


def test_schedule_is_shared_and_optional(device):
    qkv, cu_seqlens, max_seqlen = packed_batch(LONG, device=device)
    schedule = attention_schedule(cu_seqlens, max_seqlen, qkv.shape[0], qkv)
    assert torch.equal(attention(qkv, cu_seqlens, max_seqlen, schedule=schedule), attention(qkv, cu_seqlens, max_seqlen))


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.float32])
def test_autocast_lowers_the_precision(dtype, device):
    qkv, cu_seqlens, max_seqlen = packed_batch(SHORT, device=device)
    with torch.autocast(device.type, dtype=dtype):
        out = attention(qkv, cu_seqlens, max_seqlen)
    assert torch.equal(out, attention(qkv.to(dtype), cu_seqlens, max_seqlen))


def good(**change):
    qkv, cu_seqlens, max_seqlen = packed_batch((3, 5))
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
    qkv, cu_seqlens, _ = packed_batch((2,), heads=1, device=device)
    for out in (attention(qkv, cu_seqlens, 2, causal=True), attention_ref(qkv, cu_seqlens, causal=True)):
        torch.testing.assert_close(out[0], qkv[0, 2])
    one_key = torch.ones(1, dtype=torch.int32, device=device)
    out = attention(qkv, cu_seqlens, 2, seqused_k=one_key)
    torch.testing.assert_close(out, qkv[:1, 2].expand_as(out))
