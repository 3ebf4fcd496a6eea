"""The second stage of `prepare`: ranges of tokenised documents to shards of pairs, in worker processes."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from fastbert.utils.files import write_whole

from .audit import ShardCounts
from .documents import Report
from .pairs import PairOptions, document_pairs
from .shards import Sample, shard_files, write_shard
from .spool import SpooledDocuments
from .work_folder import WORK, shard_record
from .workers import map_in_order


def make_shards(
    out: Path,
    documents: SpooledDocuments,
    vocab_size: int,
    options: PairOptions,
    duplicates: int,
    shard_samples: int,
    *,
    workers: int,
    report: Report,
) -> list[ShardCounts]:
    """Writes the shards that are not there yet; returns the counts of all."""
    ranges = list(_ranges(documents, options.seq_len, shard_samples))
    plan = [(duplicate, *bounds) for duplicate in range(duplicates) for bounds in ranges]
    counts: list[ShardCounts | None] = []
    for shard in range(len(plan)):
        record = shard_record(out, shard)
        finished = record.is_file() and all(file.is_file() for file in shard_files(out, shard))
        counts.append(ShardCounts(**json.loads(record.read_text(encoding="utf-8"))) if finished else None)
    done = sum(end - begin for (_, begin, end), count in zip(plan, counts) if count)
    total = duplicates * len(documents)
    report("pairs", done, total, done)
    missing = ((shard, (shard, *plan[shard])) for shard, count in enumerate(counts) if count is None)
    workers = min(workers, max(1, counts.count(None)))
    with closing(map_in_order(MakeShard(out, vocab_size, options), missing, workers)) as results:
        for shard, count in results:
            counts[shard] = count
            _, begin, end = plan[shard]
            done += end - begin
            report("pairs", done, total, done)
    return [count for count in counts if count is not None]


@dataclass
class MakeShard:
    """Writes a shard and its record in a worker process, from (shard, duplicate, first document, end of the documents)."""

    out: Path
    vocab_size: int
    options: PairOptions

    @cached_property
    def documents(self) -> SpooledDocuments:
        return SpooledDocuments(self.out / WORK, self.vocab_size)

    def __call__(self, task: tuple[int, int, int, int]) -> ShardCounts:
        shard, duplicate, begin, end = task
        samples: list[Sample] = []
        lengths = [0] * (self.options.seq_len + 1)
        random = truncated = dropped = 0
        for number in range(begin, end):
            for pair in document_pairs(self.documents, number, duplicate, self.options):
                samples.append(pair.sample)
                lengths[len(pair.sample.input_ids)] += 1
                random += pair.sample.is_random_next
                truncated += pair.dropped > 0
                dropped += pair.dropped
        tokens = write_shard(self.out, shard, samples, self.vocab_size)
        counts = ShardCounts(len(samples), tokens, random, truncated, dropped, lengths)
        write_whole(shard_record(self.out, shard), json.dumps(asdict(counts)))
        return counts


def _ranges(documents: SpooledDocuments, seq_len: int, shard_samples: int) -> Iterator[tuple[int, int]]:
    """(first document, end) of each shard, for about `shard_samples` samples.

    A sample takes up three quarters of its length on average: a random B returns the rest of its chunk.
    """
    per_sample = 0.75 * (seq_len - 3)
    begin = 0
    samples = 0.0
    for number in range(len(documents)):
        samples += max(1.0, documents.num_tokens(number) / per_sample)
        if samples >= shard_samples or number == len(documents) - 1:
            yield begin, number + 1
            begin, samples = number + 1, 0.0
