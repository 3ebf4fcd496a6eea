"""The detectors and the late schedule find the race of planted.py, and nothing in what replaced it."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from fastbert.kernels.matmul.config import candidates
from fastbert.kernels.matmul.pointers import gemm_wgrad
from tests.compiled import planted

ROWS = 1000  # 16 steps of a sum over rows, the last one ragged: at least four times the stages of every tile
FAULT = "shared memory written while wgmma"
TILES = candidates("wgrad", torch.bfloat16, "ieee", "sm_90")

each_tile = pytest.mark.parametrize("config", TILES, ids=lambda config: config.name)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def relative_error(result: Tensor, exact: Tensor) -> float:
    return ((result.double() - exact).abs().max() / exact.abs().max()).item()


def faults_on_hopper(emulator: Any, target: int) -> Any:
    return pytest.raises(emulator.Fault, match=FAULT) if target == 90 else nullcontext()


@each_tile
def test_the_old_wgrad_faults(emulator, target, config):
    dy, x = draw(ROWS, 256), draw(ROWS, 256)
    with emulator.settings.changed(late_products=False), faults_on_hopper(emulator, target):
        dweight, dbias = planted.wgrad_summing_its_operand(dy, x, config)
        assert relative_error(dweight, dy.double().t() @ x.double()) < 2**-8
        assert relative_error(dbias, dy.double().sum(0)) < 1e-6


@each_tile
def test_the_old_wgrad_is_wrong_under_the_late_schedule(emulator, target, config):
    """By as much as the gradient is large, while its bias gradient, which reads registers, stays right."""
    dy, x = draw(ROWS, 256), draw(ROWS, 256)
    with emulator.settings.changed(late_products=True):
        dweight, dbias = planted.wgrad_summing_its_operand(dy, x, config)
    error = relative_error(dweight, dy.double().t() @ x.double())
    assert error > 0.5 if target == 90 else error < 2**-8
    assert relative_error(dbias, dy.double().sum(0)) < 1e-6


@pytest.mark.parametrize("late", [False, True], ids=["usual", "late"])
@each_tile
def test_the_wgrad_that_ships_is_right(emulator, config, late):
    dy, x = draw(ROWS, 256), draw(ROWS, 256)
    with emulator.settings.changed(late_products=late):
        dweight = gemm_wgrad(dy, x, config=config)
    assert relative_error(dweight, dy.double().t() @ x.double()) < 2**-8


@pytest.mark.parametrize("row_sum", planted.RACING)
def test_an_operand_that_is_summed_too_races(emulator, target, row_sum):
    a, b = draw(512, 64), draw(512, 64)
    with emulator.settings.changed(late_products=False), faults_on_hopper(emulator, target):
        planted.product_and_row_sum(a, b, row_sum)
    with emulator.settings.changed(late_products=True):
        product, _ = planted.product_and_row_sum(a, b, row_sum)
    error = relative_error(product, a.double().t() @ b.double())
    assert error > 0.5 if target == 90 else error < 1e-5


@pytest.mark.parametrize("row_sum", planted.SOUND)
def test_the_ways_round_it_do_not(emulator, row_sum):
    a, b = draw(512, 64), draw(512, 64)
    for late in (False, True):
        with emulator.settings.changed(late_products=late):
            product, sums = planted.product_and_row_sum(a, b, row_sum)
        assert relative_error(product, a.double().t() @ b.double()) < 1e-5
        if row_sum != "none":
            assert relative_error(sums, a.double().sum(0)) < 1e-6


def test_whole_tiles_race_alike(emulator, target):
    """Copies by TMA: without the sum all is right, with it the product is wrong."""
    if target < 90:
        pytest.skip("tiles are copied whole on Hopper and later")
    a, b = draw(64, 1024), draw(64, 1024)
    exact = a.double() @ b.double().t()
    with emulator.settings.changed(late_products=False):
        assert relative_error(planted.tile_product_and_row_sum(a, b, False)[0], exact) < 1e-5
        with pytest.raises(emulator.Fault, match=FAULT):
            planted.tile_product_and_row_sum(a, b, True)
    with emulator.settings.changed(late_products=True):
        assert relative_error(planted.tile_product_and_row_sum(a, b, False)[0], exact) < 1e-5
        assert relative_error(planted.tile_product_and_row_sum(a, b, True)[0], exact) > 0.5
