"""Model FLOPs, and what a device can do: the parts of model FLOP utilisation (MFU).

As Chowdhery et al. 2022 (PaLM, appendix B) count them: matrix products of forward and backward on real tokens, each once.
Recomputation, padding and everything that is no matrix product are not counted.
"""

import statistics
import time
from collections.abc import Sequence

import torch
import transformers

WARM_UP, ROUNDS = 3, 10


def encoder_flops(config: transformers.BertConfig, seqlens: Sequence[int]) -> float:
    """FLOPs of one forward of the encoder.

    Multiplications and additions of four projections and two feed-forward products per token, and of two products of the
    scores' size per sequence.
    """
    d, f = config.hidden_size, config.intermediate_size
    per_layer = sum(2 * seqlen * (4 * d * d + 2 * d * f) + 4 * seqlen * seqlen * d for seqlen in seqlens)
    return float(config.num_hidden_layers * per_layer)


def pretraining_flops(config: transformers.BertConfig, seqlens: Sequence[int], num_labels: int) -> float:
    """FLOPs of forward and backward, three times the forward, of the encoder and of the MLM head at the labelled positions."""
    d = config.hidden_size
    head = 2 * num_labels * (d * d + d * config.vocab_size)
    return 3 * (encoder_flops(config, seqlens) + head)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of PyTorch's matrix product on this device, measured now in half a second.

    Uses its own random generator.
    """
    size = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(WARM_UP + ROUNDS):
        begin = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / statistics.median(seconds[WARM_UP:])
