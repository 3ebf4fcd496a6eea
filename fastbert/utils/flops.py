"""Model FLOP utilisation: the arithmetic a step cannot do without, per second, over what the device can do.

"Model" FLOPs, as Chowdhery et al. 2022 (PaLM, appendix B) count them: matrix products of forward and backward on real tokens,
each once; recomputation, padding and everything that is no matrix product count nothing.
"""

import statistics
import time
from collections.abc import Sequence

import torch
import transformers

WARM_UP, ROUNDS = 3, 10


def encoder_flops(config: transformers.BertConfig, seqlens: Sequence[int]) -> float:
    """Multiplications and additions of the matrix products of one forward: four projections and two feed-forward products
    per token, two products of the scores' size per sequence."""
    d, f = config.hidden_size, config.intermediate_size
    per_layer = sum(2 * seqlen * (4 * d * d + 2 * d * f) + 4 * seqlen * seqlen * d for seqlen in seqlens)
    return float(config.num_hidden_layers * per_layer)


def pretraining_flops(config: transformers.BertConfig, seqlens: Sequence[int], num_labels: int) -> float:
    """Forward and backward (three times the forward) of the encoder and of the MLM head at the labelled positions."""
    d = config.hidden_size
    head = 2 * num_labels * (d * d + d * config.vocab_size)
    return 3 * (encoder_flops(config, seqlens) + head)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the library's matrix product of random numbers on this device, now; half a second.

    No random state but its own is touched.
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
