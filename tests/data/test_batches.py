"""Steps and packed batches: each sample once an epoch, the same whatever the processes, a step found by its number."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fastbert.data.batches import MicroBatches, Phase, Plan, collate, deal
from fastbert.data.masking import Masker
from fastbert.data.shards import Meta, Sample, Shards, write_meta, write_shard
from fastbert.kernels.limits import IGNORE_INDEX
from fastbert.utils.errors import DataError

VOCAB_SIZE, MASK, SPECIAL = 1000, 4, (0, 1, 2, 3, 4)
MASKER = Masker(VOCAB_SIZE, MASK, SPECIAL, seed=2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Shards:
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    counts, tokens = (400, 0, 350), 0
    for number, count in enumerate(counts):
        made = []
        for length in rng.integers(8, 65, count):
            ids = rng.integers(5, VOCAB_SIZE, length)
            ids[0], ids[length // 2], ids[-1] = 2, 3, 3
            made.append(Sample(ids, int(length) // 2 + 1, bool(rng.integers(2))))
        tokens += write_shard(folder, number, made, VOCAB_SIZE)
    write_meta(folder, Meta(64, VOCAB_SIZE, "none", counts, tokens))
    return Shards(folder)


def test_shards_give_back_what_was_written(tmp_path):
    made = [Sample(np.arange(n) + 5, n // 2, n % 2 == 0) for n in (7, 3, 90)]
    tokens = write_shard(tmp_path, 0, made[:1], 70_000) + write_shard(tmp_path, 1, made[1:], 70_000)
    with pytest.raises(DataError, match="finished"):
        Shards(tmp_path)
    write_meta(tmp_path, Meta(128, 70_000, "none", (1, 2), tokens))
    shards = Shards(tmp_path)
    assert shards.lengths.tolist() == [7, 3, 90]
    for number, sample in enumerate(made):
        assert shards[number].input_ids.tolist() == sample.input_ids.tolist()
        assert shards[number][1:] == sample[1:]
    with pytest.raises(IndexError, match="from 0 to 2, got 3"):
        shards[3]
    (tmp_path / "shard-00001.tokens.npy").write_bytes(b"damaged")
    with pytest.raises(DataError, match="shard-00001"):
        Shards(tmp_path)


def test_more_shards_than_may_be_open(tmp_path):
    import pickle
    import resource

    count = 300
    for number in range(count):
        write_shard(tmp_path, number, [Sample(np.arange(9) + number, 4, False)], 70_000)
    write_meta(tmp_path, Meta(128, 70_000, "none", (1,) * count, 9 * count))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 400), hard))
    try:
        shards = Shards(tmp_path)
        again = pickle.loads(pickle.dumps(shards))
        assert [int(shards[number].input_ids[0]) for number in range(count)] == list(range(count))
        assert again.lengths.tolist() == [9] * count
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_epoch_has_every_sample_once_in_steps_of_about_the_same_tokens(shards):
    plan = Plan(shards.lengths, batch_tokens=1024, seed=3)
    for epoch in (0, 1):
        steps = [plan.samples(epoch * plan.steps_per_epoch + step) for step in range(plan.steps_per_epoch)]
        assert {found for found, _ in steps} == {epoch}
        assert sorted(np.concatenate([samples for _, samples in steps])) == list(range(len(shards)))
        tokens = [shards.lengths[samples].sum() for _, samples in steps]
        assert max(tokens) - min(tokens) <= 3 * 64
    assert plan.samples(0)[1].tolist() != plan.samples(plan.steps_per_epoch)[1].tolist()


def test_steps_group_samples_of_like_length_without_drifting(shards):
    plan = Plan(shards.lengths, batch_tokens=1024)
    steps = [shards.lengths[plan.samples(step)[1]] for step in range(plan.steps_per_epoch)]
    assert np.mean([lengths.std() for lengths in steps]) < 0.5 * shards.lengths.std()
    count, drifts = plan.steps_per_epoch, []
    for epoch in range(10):
        means = [shards.lengths[plan.samples(epoch * count + step)[1]].mean() for step in range(count)]
        drifts.append(np.corrcoef(np.arange(count), means)[0, 1])
    assert abs(np.mean(drifts)) < 0.25  # four standard errors of ten chance correlations


def test_the_samples_of_a_step_do_not_depend_on_the_processes(shards):
    plan = Plan(shards.lengths, batch_tokens=1024)
    phase = Phase(shards, MASKER, plan, steps=50)
    for step in (0, 7, 40):
        whole = sorted(plan.samples(step)[1])
        for world, accumulation in ((1, 1), (2, 1), (1, 4), (4, 2)):
            parts = [
                MicroBatches([phase], process=(rank, world), accumulation=accumulation).locate(step * accumulation + turn)[2]
                for rank in range(world)
                for turn in range(accumulation)
            ]
            assert sorted(np.concatenate(parts)) == whole
            tokens = [shards.lengths[part].sum() for part in parts]
            assert max(tokens) - min(tokens) <= 64


def test_a_later_start_and_workers_give_the_same_batches(shards):
    phase = Phase(shards, MASKER, Plan(shards.lengths, batch_tokens=1024), steps=6)
    expected = list(MicroBatches([phase], accumulation=2))
    assert len(expected) == 12
    late = list(MicroBatches([phase], accumulation=2, first_step=4))
    loaded = list(DataLoader(MicroBatches([phase], accumulation=2), batch_size=None, num_workers=2))
    for some, same in ((late, expected[8:]), (loaded, expected)):
        assert len(some) == len(same)
        for a, b in zip(some, same):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


def test_phases_follow_each_other(shards):
    plan = Plan(shards.lengths, batch_tokens=1024)
    first, second = Phase(shards, MASKER, plan, 3), Phase(shards, MASKER, Plan(shards.lengths, 2048), 2)
    batches = MicroBatches([first, second])
    assert batches.steps == 5
    assert [batches.locate(n)[0] is second for n in range(5)] == [False, False, False, True, True]
    np.testing.assert_array_equal(batches.locate(3)[2], deal(second.plan.samples(0)[1], shards.lengths, 1)[0])
    with pytest.raises(IndexError, match="below 5, got 5"):
        batches.locate(5)


def test_a_packed_batch_holds_its_samples_one_after_the_other(shards):
    batch = collate(shards, MASKER, [5, 600, 3], epoch=1)
    bounds = batch["cu_seqlens"].tolist()
    assert bounds == np.cumsum([0, *shards.lengths[[5, 600, 3]]]).tolist()
    assert batch["max_seqlen"] == shards.lengths[[5, 600, 3]].max()
    for number, start, end, label in zip((5, 600, 3), bounds, bounds[1:], batch["next_sentence_label"]):
        sample = shards[number]
        ids, labels = MASKER(sample, number, 1)
        assert batch["input_ids"][start:end].tolist() == ids.tolist()
        assert batch["labels"][start:end].tolist() == labels.tolist()
        types = batch["token_type_ids"][start:end]
        assert types.tolist() == [0] * sample.first_length + [1] * (end - start - sample.first_length)
        assert bool(label) == sample.is_random_next
    assert (batch["labels"] != IGNORE_INDEX).any()


def test_steps_that_cannot_be_are_refused(shards):
    with pytest.raises(ValueError, match="two of the longest samples, 128, got 100"):
        Plan(shards.lengths, 100)
    with pytest.raises(ValueError, match=f"as the data has, {shards.lengths.sum()}, got 10000000"):
        Plan(shards.lengths, 10_000_000)
    phase = Phase(shards, MASKER, Plan(shards.lengths, 1024), 1)
    with pytest.raises(ValueError, match=r"at most 15 micro-batches .* got 4 processes times 4"):
        MicroBatches([phase], process=(0, 4), accumulation=4)
    with pytest.raises(ValueError, match="rank below 2"):
        MicroBatches([phase], process=(2, 2))
