"""The encoder on padded batches, fixed and real lengths, against every peer."""

import torch

from benchmarks.harness import lengths, work
from benchmarks.harness.records import Case
from benchmarks.peers.models import Encoders, Inference
from fastbert.utils.flops import encoder_flops

_encoders: dict[tuple[str, str], Encoders] = {}  # one at a time: weights of a large model are not drawn for each case


def encoders_of(model: str, dtype: str, device: torch.device) -> Encoders:
    if (model, dtype) not in _encoders:
        _encoders.clear()
        _encoders[model, dtype] = Encoders(work.config(model), getattr(torch, dtype), device)
    return _encoders[model, dtype]


def test_inference(inference_case, race, device):
    encoders = encoders_of(inference_case.model, inference_case.dtype, device)
    seqlens = lengths.draw(inference_case.lengths, inference_case.batch_size, inference_case.seqlen)
    batch = work.batch(seqlens, encoders.config.vocab_size, device)
    contest = Inference(encoders, batch, inference_case.modes)
    case = Case(
        suite="inference",
        model=inference_case.model,
        dtype=inference_case.dtype,
        batch_size=len(seqlens),
        seqlen=batch.seqlen,
        lengths=inference_case.lengths,
        real_tokens=batch.real_tokens,
        padded_tokens=batch.padded_tokens,
        flops=encoder_flops(encoders.config, seqlens),
        num_layers=encoders.config.num_hidden_layers,
    )
    race(case, list(contest.candidates()))
