"""The dropout mask of attention: rate, what it depends on, and that forward and backward draw the same one."""

import pytest
import torch

from fastbert.kernels.dropout import scale, threshold
from fastbert.kernels.functional import attention
from fastbert.kernels.specs.attention import dropout_mask
from fastbert.kernels.specs.spec import generator, normal, seed_tensor
from tests.kernels.attention.batches import LONG, SHORT, packed_batch
from tests.kernels.harness import forward_backward


def test_mask_rate_and_scale(device):
    mask = dropout_mask(3, 200, 260, 0.1, seed_tensor(5, device), 0)
    dropped = (mask == 0).double()
    assert abs(dropped.mean().item() - threshold(0.1) / 65536) < 4 * (0.09 / mask.numel()) ** 0.5
    assert mask.unique().tolist() == [0.0, pytest.approx(scale(0.1), rel=1e-6)]
    for axes in ((0, 1), (0, 2), (1, 2)):  # neither heads, queries nor keys share their draws
        assert dropped.mean(axes).std() < 0.03


def test_mask_depends_on_position_not_on_tiles(device):
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
                half = key % 64 // 8
                half_word = words[half // 2] >> (16 * (half % 2)) & 0xFFFF
                assert (mask[head, token, key] != 0) == (half_word >= threshold(p))


@pytest.mark.parametrize("seqlens", [SHORT, LONG], ids=["whole", "loops"])
def test_forward_and_backward_drop_the_same(seqlens, device):
    """out is linear in v, so <dout, out> = <dv, v> only if both directions drew one mask; q and k by differences."""
    qkv, cu_seqlens, max_seqlen = packed_batch(seqlens, device=device)
    options = dict(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, dropout_p=0.3, seed=seed_tensor(11, device))
    dout = normal((qkv.shape[0], *qkv.shape[2:]), torch.float32, device, generator(1))
    got = forward_backward(attention, dict(qkv=qkv, **options), ("qkv",), None, lambda out: dout)
    torch.testing.assert_close((dout * got["out"]).sum(), (got["dqkv"][:, 2] * qkv[:, 2]).sum(), rtol=1e-4, atol=1e-3)

    direction, step = normal(qkv.shape, torch.float32, device, generator(2)), 1e-2
    direction[:, 2] = 0
    up, down = (attention(qkv + sign * step * direction, **options) for sign in (1, -1))
    difference = (dout * (up - down)).double().sum() / (2 * step)
    torch.testing.assert_close((got["dqkv"] * direction).double().sum(), difference, rtol=1e-2, atol=1e-2)
