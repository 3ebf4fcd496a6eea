"""`fastbert prepare`: documents -> tokens -> next-sentence pairs -> shards, and an audit of the text.

Each stage runs in several worker processes and can be interrupted: unfinished work is in `OUT/.work` (`work_folder`). A shard
holds the pairs of a range of documents that depends on the text and the options only, so the bytes are the same whatever the
number of processes and the interruptions. Pairs are not shuffled: shards are read by sample number, in any order.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastbert.utils.errors import DataError
from fastbert.utils.existing_outputs import check_flags
from fastbert.utils.files import write_whole
from fastbert.utils.locks import locked_folder, refuse_busy_folder

from .audit import audit_samples, audit_text
from .documents import HUB, Report, Source, open_sources
from .make_shards import make_shards
from .pairs import PairOptions
from .shards import META, TOKENIZER, Meta, Shards, write_meta
from .spool import STATE, Spool, SpooledDocuments
from .tokenize_documents import tokenize_documents
from .tokenizer import Tokenizer, open_tokenizer
from .work_folder import OPTIONS, WORK, begin_folder, check_folder, clear_folder, is_started
from .workers import num_cores

RECIPE = 1  # raised whenever the same options give other shards


def prepare(
    names: Sequence[str],
    tokenizer: str | Path,
    out: str | Path,
    *,
    seq_len: int = 128,
    seed: int = 0,
    short_seq_prob: float = 0.1,
    duplicates: int = 1,
    workers: int | None = None,
    shard_samples: int = 1 << 16,
    resume: bool = False,
    overwrite: bool = False,
    report: Report | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Meta:
    """Writes the samples of a text into `out`, or continues an interrupted call; returns what `out/meta.json` holds.

    names: files and data sets, see `documents`. tokenizer: a folder or hub name of a BERT tokenizer. out: see `shards` for
    the format. seq_len: most tokens of a sample. duplicates: passes over the text, each with other pairs. workers: processes,
    None for one per core; they change nothing but the time. shard_samples: about how many samples a shard has. resume:
    continue an earlier call with the same options, or return its result. overwrite: start over, whatever an earlier call
    left in `out`. short_seq_prob, seed: see `pairs`. say: called with a line for the user.

    Raises DataError for options out of range, a tokenizer without BERT's special tokens, a folder started with other options,
    text that cannot be read, a single document; InputError for a folder that holds something else, or an earlier call's work
    without resume or overwrite, or that another run writes to. No error leaves a half-written file.
    """
    check_flags(resume, overwrite)
    report = report or (lambda stage, done, total, documents: None)
    if duplicates < 1:
        raise DataError(f"expected at least one pass over the text, got duplicates {duplicates}")
    if shard_samples < 1:
        raise DataError(f"expected shards of at least one sample, got {shard_samples}")
    if workers is not None and workers < 1:
        raise DataError(f"expected at least one process, got {workers}")
    out = Path(out)
    refuse_busy_folder(out)  # before its work is called unfinished
    is_started(out, resume, overwrite)
    sources = open_sources(names)
    opened = open_tokenizer(tokenizer, seq_len)
    pairs = PairOptions(seq_len, opened.ids["cls"], opened.ids["sep"], short_seq_prob, seed)
    options = {
        "recipe": RECIPE,
        "files": [_describe(source) for source in sources],
        "tokenizer": opened.fingerprint,
        "tokenizer_pipeline": opened.pipeline,
        "seq_len": seq_len,
        "short_seq_prob": short_seq_prob,
        "duplicates": duplicates,
        "seed": seed,
        "shard_samples": shard_samples,
    }
    with locked_folder(out, say):
        check_folder(out, options, resume, overwrite)
        if (out / META).is_file() and not overwrite:
            return Shards(out).meta
        is_new = begin_folder(out, overwrite)
        work = out / WORK
        try:
            write_whole(work / OPTIONS, json.dumps(options))
            meta = _run_stages(out, sources, opened, pairs, options, workers or num_cores(), report)
        except (DataError, OSError) as error:
            # Text that cannot be read is another file once it is corrected, so no work done on it can be used.
            if is_new and (isinstance(error, DataError) or not (work / STATE).is_file()):
                clear_folder(out)
                work.rmdir()
            raise
        shutil.rmtree(work)
    return meta


def _run_stages(
    out: Path,
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    pairs: PairOptions,
    options: dict[str, Any],
    workers: int,
    report: Report,
) -> Meta:
    """Everything between a folder with its options and a finished one; what an earlier call finished is kept."""
    work, vocab_size = out / WORK, tokenizer.vocab_size
    tokenizer.loaded.save_pretrained(out / TOKENIZER)
    tokenize_documents(sources, Spool(work, vocab_size), tokenizer, workers, report)
    documents = SpooledDocuments(work, vocab_size)
    if len(documents) < 2:
        raise DataError(
            f"expected at least two documents, for a random B comes from another one, got {len(documents)} in "
            f"{', '.join(source.name for source in sources)}; text files have a blank line between documents"
        )
    counts = make_shards(
        out, documents, vocab_size, pairs, options["duplicates"], options["shard_samples"], workers=workers, report=report
    )
    report("audit", 0, None, len(documents))
    audit = audit_text(documents, vocab_size, tokenizer.special_ids, tokenizer.ids["unk"])
    audit |= audit_samples(counts, pairs.seq_len)
    samples, tokens = tuple(shard.samples for shard in counts), sum(shard.tokens for shard in counts)
    meta = Meta(pairs.seq_len, vocab_size, tokenizer.fingerprint, samples, tokens, options, audit)
    write_meta(out, meta)
    return meta


def _describe(source: Source) -> dict[str, Any]:
    """What identifies the same file in a later call; of a data set only its name is known."""
    if source.name.startswith(HUB):
        return {"name": source.name}
    stat = Path(source.name).stat()
    return {"name": Path(source.name).name, "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}
