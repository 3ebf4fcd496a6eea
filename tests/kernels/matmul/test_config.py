"""Tiles follow the shape and the device; splits of a wgrad fill it, repeat, and change rounding only."""

import pytest
import torch

from fastbert.kernels.device import pretend
from fastbert.kernels.matmul import pointers
from fastbert.kernels.matmul.config import LARGE, LARGE_ACTIVATION, SMALL, WIDE, GemmConfig, configs, wgrad_splits
from fastbert.kernels.matmul.pointers import gemm_wgrad
from fastbert.kernels.specs.spec import generator, normal


def test_tiles_follow_the_shape(device):
    def config(product, rows, columns, dtype=torch.bfloat16):
        with pretend("sm_90"):
            return GemmConfig.for_shape(product, rows, columns, dtype, device)

    assert config("fwd", 65536, 3072) == WIDE
    assert config("dgrad_activation", 65536, 3072) == LARGE_ACTIVATION  # its epilogue wants two programs per multiprocessor
    (on_amd, _) = configs("dgrad_activation", torch.bfloat16, "ieee", "gfx942")
    assert "maxnreg" in LARGE_ACTIVATION.launch
    assert "maxnreg" not in on_amd.launch  # an option of NVIDIA's compiler alone
    assert config("fwd", 8192, 768) == LARGE
    assert config("fwd", 128, 3072) == SMALL
    for arch in ("sm_80", "sm_86", "gfx942"):
        for tile in configs("fwd", torch.bfloat16, "ieee", arch):
            stages = tile.num_stages - (arch == "gfx942")  # AMD keeps the stage in flight in registers
            assert stages * (tile.rows + tile.columns) * tile.inner * 2 <= (64 if arch == "gfx942" else 99) * 1024


def test_splits_fill_the_last_wave(device):
    for N, K in ((2304, 768), (768, 768), (3072, 768), (768, 3072), (3072, 1024), (1024, 1024), (4096, 1024)):
        with pretend("sm_90"):
            splits = wgrad_splits(LARGE, 65536, N, K, device)
        programs = LARGE.num_tiles(N, K) * splits
        waves = -(-programs // 132)
        assert programs / (waves * 132) >= 0.94, (N, K, splits)
    assert wgrad_splits(LARGE, 200, 2304, 768, device) == 1  # too few rows to share out


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_split_wgrad_repeats_and_agrees(splits, device, monkeypatch):
    """Every split has its own slot: same bits each time, and another number of splits differs by rounding only."""
    monkeypatch.setattr(pointers, "wgrad_splits", lambda *_: splits)
    g = generator()
    dy, x = (normal(shape, torch.float32, device, g, std=0.5) for shape in ((331, 40), (331, 24)))
    once, again = (gemm_wgrad(dy, x) for _ in range(2))
    assert torch.equal(once, again)
    torch.testing.assert_close(once.double(), dy.double().t() @ x.double(), rtol=1e-5, atol=1e-5)
