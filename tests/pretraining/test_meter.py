"""What the log says about speed is counted, not guessed."""

from types import SimpleNamespace

import pytest
import torch
import transformers

from fastbert.pretraining import meter as meter_module
from fastbert.pretraining.meter import Meter
from fastbert.utils.flops import matmul_rate, pretraining_flops


def packed(*lengths: int) -> dict:
    return {"cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)}


def test_a_reading_counts_tokens_padding_and_arithmetic(monkeypatch):
    clock = iter([0.0, 0.0, 4.0, 4.0])
    monkeypatch.setattr(meter_module.time, "perf_counter", lambda: next(clock))
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16
    )
    args = SimpleNamespace(world_size=1, device=torch.device("cpu"))
    trainer = SimpleNamespace(model=SimpleNamespace(config=config), args=args, batches=None)
    meter = Meter(trainer, device_rate=1e6)
    meter.reset()
    meter.add_batches([packed(3, 9), packed(6, 6)], num_labels=4)
    meter.add_wait(1.0)
    for value in (3.0, 5.0):
        meter.add_losses(torch.tensor(value), torch.tensor(0.5))
    meter.steps = 1
    found = meter.read()
    assert found["tokens_per_second"] == pytest.approx(24 / 4)
    assert found["padding_skipped"] == pytest.approx(1 - 24 / 30)
    assert found["data_wait"] == pytest.approx(1 / 4)
    assert found["mlm_loss"] == pytest.approx(8.0)
    assert 0.05 < found["memory_gib"] < 100  # PyTorch alone takes more than 50 MiB
    # by hand: a layer has 4 * 8 * 8 + 2 * 8 * 16 weights; scores and their products are n * n * 8 each
    tokens, squares = 24, 9 + 81 + 36 + 36
    layers = 3 * (2 * tokens * 512 + 4 * squares * 8)
    head = 2 * 4 * (8 * 8 + 8 * 50)
    assert found["mfu"] == pytest.approx(3 * (layers + head) / 4 / 1e6)
    assert pretraining_flops(config, [3, 9, 6, 6], 4) == 3 * (layers + head)


def test_measuring_the_device_moves_no_random_state():
    before = torch.get_rng_state()
    assert matmul_rate(torch.device("cpu"), torch.float32) > 1e8
    assert torch.equal(torch.get_rng_state(), before)
