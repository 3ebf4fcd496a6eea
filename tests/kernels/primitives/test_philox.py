"""The random words behind dropout: rate, independence of tiles, and Philox as its paper defines it."""

import pytest
import torch

from fastbert.kernels.dropout import scale, threshold
from fastbert.kernels.specs.layer_norm import dropout_mask
from fastbert.kernels.specs.spec import seed_tensor


def test_mask_rate_and_scale(device):
    mask = dropout_mask((512, 768), 0.1, seed_tensor(5, device), 0)
    rate = (mask == 0).double().mean().item()
    assert abs(rate - threshold(0.1) / 65536) < 4 * (0.09 / mask.numel()) ** 0.5
    assert mask.unique().tolist() == [0.0, pytest.approx(scale(0.1), rel=1e-6)]
    # Neither rows nor columns share their draws.
    assert (mask == 0).double().mean(0).std() < 0.03
    assert (mask == 0).double().mean(1).std() < 0.03


def test_mask_depends_on_position_not_on_tiles(device):
    """A row of a longer batch, or a column of a wider tensor, has the same mask: no tile enters the counter."""
    seed = seed_tensor(7, device)
    large = dropout_mask((33, 1000), 0.3, seed, 1)
    assert torch.equal(large[:5, :64], dropout_mask((5, 64), 0.3, seed, 1))
    assert not torch.equal(large, dropout_mask((33, 1000), 0.3, seed, 2))
    assert not torch.equal(large, dropout_mask((33, 1000), 0.3, seed_tensor(8, device), 1))


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
    mask = dropout_mask((4, 24), p, seed_tensor(seed, device), stream)
    for row in range(4):
        for column in range(24):
            words = philox((seed & 0xFFFFFFFF, seed >> 32), (row, column // 8, 0, stream))
            half_word = words[column % 8 // 2] >> (16 * (column % 2)) & 0xFFFF
            assert (mask[row, column] != 0) == (half_word >= threshold(p))
