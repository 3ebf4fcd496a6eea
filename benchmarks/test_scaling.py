"""How time and memory grow with batch, length and layers: one series per axis, everything else fixed. The report fits the
slopes, so that a quadratic surprise is seen.
"""

import torch

from benchmarks.harness import work
from benchmarks.harness.records import Case
from benchmarks.peers.models import Encoders, Inference
from benchmarks.peers.training import Pretraining
from fastbert.utils.flops import encoder_flops, pretraining_flops

WANTED = ("transformers, SDPA", "fastbert")


def test_growth(scaling_case, race, size, device):
    model = "tiny" if size in ("check", "quick") else "bert-base"
    config = work.config(model, num_hidden_layers=scaling_case.num_layers)
    seqlens = (scaling_case.seqlen,) * scaling_case.batch_size
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    if scaling_case.training:
        precision = "bf16" if device.type == "cuda" else "float32"
        contest = Pretraining(config, precision, device, lambda count: (scaling_case.seqlen,) * count, (len(seqlens),), ())
        batch = contest.small if len(contest.small.seqlens) == len(seqlens) else contest.batch(len(seqlens))
        flops = pretraining_flops(config, seqlens, batch.num_labels)
    else:
        encoders = Encoders(config, getattr(torch, dtype), device)
        batch = work.batch(seqlens, config.vocab_size, device)
        contest = Inference(encoders, batch, ())
        flops = encoder_flops(config, seqlens)
    case = Case(
        suite="scaling",
        model=model,
        dtype=dtype,
        batch_size=len(seqlens),
        seqlen=scaling_case.seqlen,
        lengths="fixed",
        real_tokens=batch.real_tokens,
        padded_tokens=batch.padded_tokens,
        flops=flops,
        operation="training step" if scaling_case.training else "inference",
        num_layers=scaling_case.num_layers,
    )
    wanted = [candidate for candidate in contest.candidates() if candidate.name in WANTED]
    race(case, wanted, details={"axis": scaling_case.axis, "value": scaling_case.value})
