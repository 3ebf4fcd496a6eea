"""A full pre-training step of BertForPreTraining, MLM and next sentence, against every peer at its best micro-batch."""

from benchmarks.harness import lengths, work
from benchmarks.harness.records import Case
from benchmarks.peers.training import Pretraining
from fastbert.utils.flops import pretraining_flops


def test_pretraining_step(training_case, race, device):
    config = work.config(training_case.model)
    contest = Pretraining(
        config,
        training_case.precision,
        device,
        lambda size: lengths.draw(training_case.lengths, size, training_case.seqlen),
        training_case.micro_batches,
        training_case.modes,
    )
    largest = contest.batch(training_case.micro_batches[-1])
    case = Case(
        suite="pretraining",
        model=training_case.model,
        dtype=training_case.precision,
        batch_size=len(largest.seqlens),
        seqlen=largest.seqlen,
        lengths=training_case.lengths,
        real_tokens=largest.real_tokens,
        padded_tokens=largest.padded_tokens,
        flops=pretraining_flops(config, largest.seqlens, largest.num_labels),
        num_layers=config.num_hidden_layers,
    )
    race(case, list(contest.candidates()))
