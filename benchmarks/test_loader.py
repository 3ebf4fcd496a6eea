"""How fast one core makes masked, packed batches from prepared samples: real tokens per second."""

import numpy as np
import pytest

from fastbert.data.batches import MicroBatches, Phase, Plan
from fastbert.data.masking import Masker
from fastbert.data.shards import Meta, Sample, Shards, write_meta, write_shard

VOCAB_SIZE, MASK, SPECIAL = 30522, 103, (0, 100, 101, 102, 103)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Shards:
    """Lengths as the original recipe makes them: nine of ten samples full, the others anything."""
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    lengths = np.where(rng.random(5000) < 0.1, rng.integers(5, 128, 5000), 128)
    samples = []
    for length in lengths:
        ids = rng.integers(1000, VOCAB_SIZE, length)
        ids[0], ids[length // 2], ids[-1] = 101, 102, 102
        samples.append(Sample(ids, int(length) // 2 + 1, bool(rng.integers(2))))
    tokens = write_shard(folder, 0, samples, VOCAB_SIZE)
    write_meta(folder, Meta(128, VOCAB_SIZE, "none", (len(samples),), tokens))
    return Shards(folder)


@pytest.mark.parametrize("whole_words", [False, True], ids=["pieces", "whole words"])
def test_batches(shards, whole_words, benchmark, size):
    continues = np.arange(VOCAB_SIZE) % 4 == 0 if whole_words else None
    masker = Masker(VOCAB_SIZE, MASK, SPECIAL, continues=continues)
    batches = MicroBatches([Phase(shards, masker, Plan(shards.lengths, 8192), steps=1000)])
    numbers = range(2 if size == "check" else 40)

    def make() -> int:
        return sum(batches.micro_batch(number)["input_ids"].numel() for number in numbers)

    tokens = make()
    benchmark.pedantic(make, rounds=5, warmup_rounds=1)
    if benchmark.stats is not None:
        rate = tokens / benchmark.stats.stats.median
        benchmark.extra_info["tokens per second"] = rate
        print(f"\n{rate:,.0f} real tokens per second")
