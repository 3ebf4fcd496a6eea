"""The arithmetic of dropout: rates in steps of 1/65536, exact scales, seeds."""

import pytest
import torch

from fastbert.kernels.dropout import RESOLUTION, check_dropout_p, new_seed, scale, threshold


@pytest.mark.parametrize("p", [0.0, 1e-6, 0.1, 0.5, 0.9, 1.0])
def test_kept_elements_keep_the_mean(p):
    dropped = threshold(p) / RESOLUTION
    assert abs(dropped - p) <= 0.5 / RESOLUTION
    assert scale(p) * (1 - dropped) == pytest.approx(0.0 if dropped == 1 else 1.0)


def test_rates_too_small_to_drop_anything():
    assert threshold(1e-6) == 0
    assert scale(1e-6) == 1.0
    assert scale(1.0) == 0.0


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_rejects_what_is_no_probability(p):
    with pytest.raises(ValueError, match=r"dropout_p must lie in \[0, 1\]"):
        check_dropout_p(p)


def test_seeds_follow_the_generator(device):
    torch.manual_seed(3)
    first, second = new_seed(device), new_seed(device)
    torch.manual_seed(3)
    assert torch.equal(new_seed(device), first)
    assert first.dtype == torch.int64
    assert first.shape == (1,)
    assert not torch.equal(first, second)
