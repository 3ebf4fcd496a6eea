"""`fastbert prepare`: documents -> tokens (many processes) -> next-sentence pairs -> shards, and an audit of it all.

What is not finished lies in `OUT/.work`: first the tokenised documents (`spool`), then a record of each finished shard. A
shard holds the pairs of a range of documents that depends on the text and the options only, so that any number of processes,
with any interruption, writes the same bytes. Pairs are not shuffled: shards are read by number, in any order.
"""

import hashlib
import json
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from fastbert.utils.errors import DataError
from fastbert.utils.files import write_whole

from .audit import ShardCounts, audit_samples, audit_text
from .documents import HUB, Report, Source, open_sources, total_size
from .pairs import PairOptions, document_pairs
from .shards import META, TOKENIZER, Meta, Sample, Shards, fingerprint, write_meta, write_shard
from .spool import STATE, Batch, Spool, SpooledDocuments

RECIPE = 1  # raised whenever the same options give other shards
WORK = ".work"
OPTIONS = "options.json"
BATCH_BYTES = 1 << 20  # of text, handed to a process at a time
SENTENCES_AT_ONCE = 1000


def prepare(
    names: Sequence[str], tokenizer: str | Path, out: str | Path, *, seq_len: int = 128, seed: int = 0,
    short_seq_prob: float = 0.1, duplicates: int = 1, workers: int | None = None, shard_samples: int = 1 << 16,
    resume: bool = False, overwrite: bool = False, report: Report | None = None, say: Callable[[str], None] = lambda line: None,
) -> Meta:  # fmt: skip
    """Writes the samples of a text into `out` (format: `shards`), or goes on where the same call was interrupted.

    names: files and data sets, see `documents`. tokenizer: a folder or hub name of a BERT tokenizer. seq_len: most tokens of
    a sample. duplicates: passes over the text, each with other pairs. workers: processes, by default one for each core; they
    change nothing but the time. shard_samples: about how many samples a shard has. resume: go on where an earlier call of the
    same options was, or return what it made. overwrite: begin again, whatever `out` holds of an earlier call. Other options:
    see `pairs`. say: called with a line for the user.

    Raises DataError for options out of range, a tokenizer without BERT's special tokens, a folder that was begun with other
    options, text that cannot be read, a single document; InputError for a folder that holds something else, or an earlier
    call's work without resume or overwrite, or is written to by another run. What raises leaves no half-written file.
    """
    from fastbert.utils.existing_outputs import (
        check_flags,  # brings transformers, which the processes that share the work have no use for
    )
    from fastbert.utils.locks import locked_folder

    check_flags(resume, overwrite)
    report = report or (lambda stage, done, total, documents: None)
    if duplicates < 1:
        raise DataError(f"expected at least one pass over the text, got duplicates {duplicates}")
    if shard_samples < 1:
        raise DataError(f"expected shards of at least one sample, got {shard_samples}")
    if workers is not None and workers < 1:
        raise DataError(f"expected at least one process, got {workers}")
    out = Path(out)
    sources = open_sources(names)
    vocabulary = _open_tokenizer(tokenizer, seq_len)
    pairs = PairOptions(seq_len, vocabulary.ids["cls"], vocabulary.ids["sep"], short_seq_prob, seed)
    options = {
        "recipe": RECIPE, "files": [_describe(source) for source in sources], "tokenizer": vocabulary.fingerprint,
        "tokenizer_pipeline": vocabulary.pipeline, "seq_len": seq_len, "short_seq_prob": short_seq_prob,
        "duplicates": duplicates, "seed": seed, "shard_samples": shard_samples,
    }  # fmt: skip
    with locked_folder(out, say):
        _check_folder(out, options, resume, overwrite)
        if (out / META).is_file() and not overwrite:
            return Shards(out).meta
        work = out / WORK
        is_new = overwrite or not (work / OPTIONS).is_file()
        work.mkdir(exist_ok=True)
        if is_new:
            _clear(out)
        for partial in [*out.glob(".shard-*"), *work.glob(".*.json.*")]:  # of a process that was killed
            partial.unlink()
        try:
            write_whole(work / OPTIONS, json.dumps(options))
            vocabulary.loaded.save_pretrained(out / TOKENIZER)
            workers = workers or _cores()
            _tokenise(sources, Spool(work, vocabulary.vocab_size), vocabulary, workers, report)
            documents = SpooledDocuments(work, vocabulary.vocab_size)
            if len(documents) < 2:
                raise DataError(
                    f"expected at least two documents, for a random B comes from another one, got {len(documents)} in "
                    f"{', '.join(source.name for source in sources)}; text files have a blank line between documents"
                )
            counts = _make_shards(out, documents, vocabulary.vocab_size, pairs, duplicates, shard_samples, workers, report)
            report("audit", 0, None, len(documents))
            audit = audit_text(documents, vocabulary.vocab_size, vocabulary.special_ids, vocabulary.ids["unk"])
            audit |= audit_samples(counts, seq_len)
            meta = Meta(
                seq_len, vocabulary.vocab_size, vocabulary.fingerprint, tuple(shard.samples for shard in counts),
                sum(shard.tokens for shard in counts), options, audit,
            )  # fmt: skip
            write_meta(out, meta)
        except (DataError, OSError) as error:
            # Text that cannot be read will be another file when it is mended: nothing of this could be gone on with.
            if is_new and (isinstance(error, DataError) or not (work / STATE).is_file()):
                _clear(out)
                work.rmdir()
            raise
        shutil.rmtree(work)
    return meta


@dataclass(frozen=True)
class _Vocabulary:
    """A tokenizer. ids: of cls, sep, mask, pad, unk. pipeline: sha256 of all that it does to a text. serialised: as JSON for
    `tokenizers`."""

    loaded: Any
    vocab_size: int
    ids: dict[str, int]
    special_ids: list[int]
    fingerprint: str
    pipeline: str
    serialised: str


def _open_tokenizer(name: str | Path, seq_len: int) -> _Vocabulary:
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(name))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"expected a folder or hub name of a BERT tokenizer, got {name}: {error}") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise DataError(f"expected a tokenizer of the library `tokenizers`, got {type(loaded).__name__} in {name}")
    vocabulary = backend.get_vocab(with_added_tokens=False)
    ids = {}
    for role in ("cls", "sep", "mask", "pad", "unk"):
        token = getattr(loaded, f"{role}_token", None)
        # One that the vocabulary lacks is given a number behind its end when it is loaded: no embedding belongs to it.
        if token is None or token not in vocabulary:
            raise DataError(f"expected a vocabulary with a token for {role}_token, got none for {token!r} in {name}")
        ids[role] = vocabulary[token]
    numbers = sorted(loaded.get_vocab().values())
    if numbers != list(range(len(numbers))):
        raise DataError(f"expected ids 0 to {len(numbers) - 1}, each once, got {numbers[0]} to {numbers[-1]} in {name}")
    if seq_len > loaded.model_max_length:
        raise DataError(f"expected a sequence length of at most {loaded.model_max_length} (the tokenizer's), got {seq_len}")
    # A copy: what is set here must not change the tokenizer that is saved.
    copy = type(backend).from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    serialised = copy.to_str()
    pipeline = hashlib.sha256(serialised.encode()).hexdigest()
    special = sorted(set(loaded.all_special_ids))
    return _Vocabulary(loaded, len(numbers), ids, special, fingerprint(loaded), pipeline, serialised)


def _describe(source: Source) -> dict[str, Any]:
    """What tells that a file is the same as before; of a data set only the name is known."""
    if source.name.startswith(HUB):
        return {"name": source.name}
    stat = Path(source.name).stat()
    return {"name": Path(source.name).name, "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}


def _check_folder(out: Path, options: dict[str, Any], resume: bool, overwrite: bool) -> None:
    from fastbert.utils.existing_outputs import exists_error, foreign_folder_error, visible_names

    meta, work = out / META, out / WORK
    names, is_finished = visible_names(out), meta.is_file()
    if names and not is_finished and not work.is_dir():
        raise foreign_folder_error(out, "prepare", names[0])
    if overwrite or not (names or work.is_dir()):
        return
    if not resume:
        raise exists_error(out, "is finished" if is_finished else "is unfinished")
    if is_finished:
        before = Shards(out).meta.options
    elif (work / OPTIONS).is_file():
        before = _read_options(work / OPTIONS)
    else:
        return
    differences = [
        f"{name} {before.get(name)!r} then, {value!r} now" for name, value in options.items() if before.get(name) != value
    ]
    if differences:
        raise DataError(
            f"expected the options that {out} was {'made' if is_finished else 'begun'} with, got {'; '.join(differences)} "
            "(--overwrite starts over)"
        )


def _read_options(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
    except ValueError as error:
        raise DataError(f"expected the options of `fastbert prepare` in {file}, got {error}") from error
    return found


def _clear(out: Path) -> None:
    """Removes what an earlier call made, the mark of a finished folder first; nothing else."""
    (out / META).unlink(missing_ok=True)
    for file in out.glob("shard-*.npy"):
        file.unlink()
    shutil.rmtree(out / TOKENIZER, ignore_errors=True)
    for file in (out / WORK).iterdir():
        file.unlink()


def _cores() -> int:
    """Those this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Tokenise:
    """From the sentences of documents to a Batch."""

    serialised: str

    @cached_property
    def tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.serialised)
        # A text that spells out [SEP] has no separator in it: it is split like any other word.
        tokenizer.encode_special_tokens = True
        return tokenizer

    def __call__(self, documents: list[list[str]]) -> Batch:
        sentences = [sentence for document in documents for sentence in document]
        tokens: list[np.ndarray] = []
        lengths: list[int] = []
        for start in range(0, len(sentences), SENTENCES_AT_ONCE):
            part = self.tokenizer.encode_batch_fast(sentences[start : start + SENTENCES_AT_ONCE], add_special_tokens=False)
            ids = [encoding.ids for encoding in part]
            lengths.extend(map(len, ids))
            tokens.append(np.array(list(chain.from_iterable(ids)), np.uint32))
        hashes = b"".join(hashlib.blake2b(sentence.encode(), digest_size=8).digest() for sentence in sentences)
        sentence_lengths = np.array(lengths, np.int64)
        # Control characters alone give no token; a document of nothing else is left out with them.
        kept = sentence_lengths > 0
        owner = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
        document_lengths = np.bincount(owner[kept], minlength=len(documents))
        return Batch(
            np.concatenate(tokens), sentence_lengths[kept], document_lengths[document_lengths > 0],
            np.frombuffer(hashes, "<u8")[kept],
        )  # fmt: skip


def _tokenise(sources: Sequence[Source], spool: Spool, vocabulary: _Vocabulary, workers: int, report: Report) -> None:
    if spool.state.finished:
        return
    total = total_size(sources)

    def batches() -> Iterator[tuple[tuple[int, int, int], list[list[str]]]]:
        """Where the input has been read to (whole sources, documents of the next, the unit of `total`), and the documents."""
        state = spool.state
        before = sum(source.size or 0 for source in sources[: state.source])
        for number, source in enumerate(sources[state.source :], state.source):
            batch: list[list[str]] = []
            size = 0
            place = (number, 0, before)
            for count, document in enumerate(source, 1):
                if number == state.source and count <= state.in_source:
                    continue
                batch.append(document.sentences)
                size += sum(map(len, document.sentences))
                place = (number, count, before + document.read)
                if size >= BATCH_BYTES:
                    yield place, batch
                    batch, size = [], 0
            if batch:
                yield place, batch
            before += source.size or 0

    with closing(_map(_Tokenise(vocabulary.serialised), batches(), workers)) as results:
        for (source, in_source, read), batch in results:
            spool.append(batch, source, in_source)
            report("tokens", read, total, spool.state.documents)
    nothing = np.empty(0, np.int64)
    spool.append(Batch(nothing, nothing, nothing, nothing), len(sources), 0, finished=True)


@dataclass
class _MakeShard:
    """From a range of documents to a shard and its record."""

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
        random = truncated = lost = 0
        for number in range(begin, end):
            for sample, dropped in document_pairs(self.documents, number, duplicate, self.options):
                samples.append(sample)
                lengths[len(sample.input_ids)] += 1
                random += sample.is_random_next
                truncated += dropped > 0
                lost += dropped
        tokens = write_shard(self.out, shard, samples, self.vocab_size)
        counts = ShardCounts(len(samples), tokens, random, truncated, lost, lengths)
        write_whole(_record(self.out, shard), json.dumps(asdict(counts)))
        return counts


def _record(out: Path, shard: int) -> Path:
    return out / WORK / f"shard-{shard:05d}.json"


def _make_shards(
    out: Path, documents: SpooledDocuments, vocab_size: int, options: PairOptions, duplicates: int, shard_samples: int,
    workers: int, report: Report,
) -> list[ShardCounts]:  # fmt: skip
    ranges = list(_ranges(documents, options.seq_len, shard_samples))
    plan = [(duplicate, *bounds) for duplicate in range(duplicates) for bounds in ranges]
    counts: list[ShardCounts | None] = []
    for shard in range(len(plan)):
        record = _record(out, shard)
        files = [out / f"shard-{shard:05d}.{part}.npy" for part in ("tokens", "samples")]
        whole = record.is_file() and all(file.is_file() for file in files)
        counts.append(ShardCounts(**json.loads(record.read_text(encoding="utf-8"))) if whole else None)
    done = sum(task[2] - task[1] for task, count in zip(plan, counts) if count)
    total = duplicates * len(documents)
    report("pairs", done, total, done)
    missing = ((shard, (shard, *plan[shard])) for shard, count in enumerate(counts) if count is None)
    workers = min(workers, max(1, counts.count(None)))
    with closing(_map(_MakeShard(out, vocab_size, options), missing, workers)) as results:
        for shard, count in results:
            counts[shard] = count
            done += plan[shard][2] - plan[shard][1]
            report("pairs", done, total, done)
    return [count for count in counts if count is not None]


def _ranges(documents: SpooledDocuments, seq_len: int, shard_samples: int) -> Iterator[tuple[int, int]]:
    """Documents from, to: so many that about `shard_samples` samples come of them.

    A sample takes up three quarters of its length on average, for a random B gives the rest of the chunk back.
    """
    per_sample = 0.75 * (seq_len - 3)
    begin = 0
    samples = 0.0
    for number in range(len(documents)):
        samples += max(1.0, _tokens_of(documents, number) / per_sample)
        if samples >= shard_samples or number == len(documents) - 1:
            yield begin, number + 1
            begin, samples = number + 1, 0.0


def _tokens_of(documents: SpooledDocuments, number: int) -> int:
    ends, sentences = documents.documents, documents.sentences
    begin = sentences[ends[number - 1] - 1] if number else 0
    return int(sentences[ends[number] - 1]) - int(begin)


def _map(task: Callable[[Any], Any], items: Iterable[tuple[Any, Any]], workers: int) -> Generator[tuple[Any, Any], None, None]:
    """(key, task(item)) for each (key, item), in order, in `workers` processes; a few items ahead and no more.

    Raises what the task raises, and ChildProcessError where a process ended by itself.
    """
    if workers == 1:
        for key, item in items:
            yield key, task(item)
        return
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    pending: deque[tuple[Any, Future]] = deque()
    # Spawned, not forked: this process may hold threads and locks of other libraries.
    executor = ProcessPoolExecutor(workers, get_context("spawn"), _begin_process, (task,))
    try:
        for key, item in items:
            pending.append((key, executor.submit(_in_process, item)))
            if len(pending) > workers + 1:
                key, future = pending.popleft()
                yield key, future.result()
        while pending:
            key, future = pending.popleft()
            yield key, future.result()
    except BrokenProcessPool as error:
        raise ChildProcessError("a worker process ended by itself, perhaps for lack of memory: try fewer workers") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


_task: Callable[[Any], Any] | None = None


def _begin_process(task: Callable[[Any], Any]) -> None:
    global _task
    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one decides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _in_process(item: Any) -> Any:
    assert _task is not None
    return _task(item)
