"""Sums over rows: against float64, layouts, an order that does not change."""

import pytest
import torch

from fastbert.kernels.device import architecture, pretend
from fastbert.kernels.primitives.reduce import column_sum, sum_partials
from fastbert.kernels.specs.spec import generator, normal
from tests.kernels.harness import DTYPES


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (17, 7), (100, 256), (33, 300), (0, 5), (5, 0)], ids=str)
def test_column_sum(shape, dtype, device):
    x = normal(shape, dtype, device, generator())
    got = column_sum(x, torch.float32)
    torch.testing.assert_close(got.double(), x.double().sum(0), rtol=1e-6, atol=1e-5)
    assert torch.equal(column_sum(x, torch.float32), got)
    assert torch.equal(column_sum(x, dtype), got.to(dtype))


def test_column_sum_of_rows_in_a_wider_tensor(device):
    wide = normal((37, 90), torch.float32, device, generator())
    x = wide[:, 5:75]
    assert torch.equal(column_sum(x, torch.float32), column_sum(x.contiguous(), torch.float32))


def test_column_sum_accumulates_in_float32(device):
    """A running sum in float16 would stop growing at 2048."""
    ones = torch.ones(5000, 3, dtype=torch.float16, device=device)
    assert column_sum(ones, torch.float32).tolist() == [5000.0] * 3


@pytest.mark.parametrize("multiprocessors", [1, 2, 50])
def test_column_sum_over_any_number_of_programs(multiprocessors, device):
    x = torch.arange(200 * 11, device=device).remainder(17).view(200, 11).float()  # small integers: any order is exact
    with pretend(architecture(device), multiprocessors):
        assert torch.equal(column_sum(x, torch.float32), x.sum(0))


@pytest.mark.parametrize("shape", [(1, 3), (32, 64), (33, 65), (100, 3, 40)], ids=str)
def test_sum_partials(shape, device):
    partial = normal(shape, torch.float32, device, generator())
    got = sum_partials(partial, torch.float32)
    assert got.shape == shape[1:]
    torch.testing.assert_close(got.double(), partial.double().sum(0), rtol=1e-6, atol=1e-5)
    assert torch.equal(sum_partials(partial, torch.float16), got.half())
