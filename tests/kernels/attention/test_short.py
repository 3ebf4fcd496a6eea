"""Short sequences that share a tile do not affect each other."""

import pytest
import torch

from fastbert.kernels.batch_invariance import batch_invariant_kernels
from fastbert.kernels.functional import attention
from fastbert.kernels.specs.spec import generator, normal, seed_tensor
from tests.kernels.attention.batches import packed_batch
from tests.kernels.harness import forward_backward


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["q", "k", "v", "dout"])
def test_nan_and_inf_stay_in_their_sequence_of_a_shared_tile(where, value, device):
    """One element: the neighbours keep their bits, and the sequence's own results do not hide it."""
    qkv, cu_seqlens, max_seqlen = packed_batch((9, 20, 30), device=device)
    options = dict(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, dropout_p=0.1, seed=seed_tensor(1, device))
    dout = normal((59, 2, 16), torch.float32, device, generator(1))
    clean = forward_backward(attention, dict(qkv=qkv, **options), ("qkv",), None, lambda out: dout)
    bad_qkv, bad_dout = qkv.clone(), dout.clone()
    (bad_dout[13] if where == "dout" else bad_qkv[13, "qkv".index(where)])[1, 3] = value
    got = forward_backward(attention, dict(qkv=bad_qkv, **options), ("qkv",), None, lambda out: bad_dout)
    for name in clean:
        assert torch.equal(got[name][:9], clean[name][:9])
        assert torch.equal(got[name][29:], clean[name][29:])
        assert torch.equal(got[name][..., 0, :], clean[name][..., 0, :]), "the other head"
    assert not got["dqkv"][9:29].isfinite().all()
    assert got["out"][9:29].isfinite().all() == (where == "dout")


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_tiles_are_not_shared_in_batch_invariant_mode(dropout_p, device):
    """In that mode a sequence gets the bits it gets alone; without it, the same numbers to tolerance and the same mask."""
    qkv, cu_seqlens, max_seqlen = packed_batch((5, 20, 30), device=device)
    options = dict(dropout_p=dropout_p, seed=seed_tensor(1, device))
    shared = attention(qkv, cu_seqlens, max_seqlen, **options)
    with batch_invariant_kernels():
        together = attention(qkv, cu_seqlens, max_seqlen, **options)
        alone = attention(qkv[25:], cu_seqlens[[0, 3]] - cu_seqlens.new_tensor([0, 25]), 30)
    torch.testing.assert_close(shared, together)
    if not dropout_p:
        assert torch.equal(together[25:], alone)
