"""A ragged batch, one of a text sorted by length and a full one on one CPU thread, at BERT-base width: what packing alone gains
where sequences differ in length, what sorting leaves of that, and what packing costs where they do not differ.
"""

import random

import pytest
import torch

from benchmarks.harness import work
from benchmarks.harness.records import Case
from benchmarks.peers.models import Encoders, Inference
from fastbert.utils.flops import encoder_flops

BATCH_SIZE, SEQLEN = 32, 128


def ragged_lengths(seed: int) -> list[int]:
    """One sequence of the full length, the others short: fill rate below 0.4."""
    rng = random.Random(seed)
    return [SEQLEN, *(rng.randint(8, 80) for _ in range(BATCH_SIZE - 1))]


def sorted_lengths(seed: int) -> list[int]:
    """The batch in the middle of thirty-two such batches, sorted together: nearly no padding."""
    lengths = sorted(length for batch in range(32) for length in ragged_lengths(seed + batch))
    first = (len(lengths) - BATCH_SIZE) // 2
    return lengths[first : first + BATCH_SIZE]


LENGTHS = {"ragged": ragged_lengths(0), "sorted": sorted_lengths(0), "full": [SEQLEN] * BATCH_SIZE}


@pytest.mark.parametrize("lengths", LENGTHS)
def test_one_thread(lengths, race, size, device):
    if device.type == "cuda" and size != "full":
        pytest.skip("a statement about CPUs; on a GPU test_inference.py has ragged batches")
    seqlens = LENGTHS[lengths]
    model = "tiny" if size == "check" else "bert-base, 4 layers"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        encoders = Encoders(work.config(model), torch.float32, torch.device("cpu"))
        batch = work.batch(seqlens, encoders.config.vocab_size, encoders.device)
        assert lengths != "ragged" or batch.real_tokens <= 0.40 * batch.padded_tokens
        contest = Inference(encoders, batch, ("default",) if size != "check" else ())
        case = Case(
            suite="inference",
            model=f"{model}, one CPU thread",
            dtype="float32",
            batch_size=BATCH_SIZE,
            seqlen=max(seqlens),
            lengths=lengths,
            real_tokens=batch.real_tokens,
            padded_tokens=batch.padded_tokens,
            flops=encoder_flops(encoders.config, seqlens),
            num_layers=encoders.config.num_hidden_layers,
        )
        wanted = ("transformers, SDPA", "transformers, torch.compile", "fastbert")
        race(case, [candidate for candidate in contest.candidates() if candidate.name in wanted])
    finally:
        torch.set_num_threads(threads)
