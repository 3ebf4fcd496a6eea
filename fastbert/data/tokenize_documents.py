"""The first stage of `prepare`: documents to token ids, in worker processes, appended to the spool in order."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from .documents import Report, Source, total_size
from .spool import Batch, Spool
from .tokenizer import Tokenizer
from .workers import map_in_order

BATCH_CHARACTERS = 1 << 20  # of text, given to a worker at a time
SENTENCES_AT_ONCE = 1000

# (whole sources read, documents read of the next one, amount read in the unit of `total_size`)
Position = tuple[int, int, int]


def tokenize_documents(sources: Sequence[Source], spool: Spool, tokenizer: Tokenizer, workers: int, report: Report) -> None:
    """Fills the spool, from where it ends; does nothing where it is finished."""
    if spool.state.finished:
        return
    total = total_size(sources)
    batches = _batches(sources, spool.state.source, spool.state.in_source)
    with closing(map_in_order(TokenizeBatch(tokenizer.serialised), batches, workers)) as results:
        for (source, in_source, read), batch in results:
            spool.append(batch, source, in_source)
            report("tokens", read, total, spool.state.documents)
    nothing = np.empty(0, np.int64)
    spool.append(Batch(nothing, nothing, nothing, nothing), len(sources), 0, finished=True)


def _batches(sources: Sequence[Source], first: int, skipped: int) -> Iterator[tuple[Position, list[list[str]]]]:
    """(position in the input at the end of the batch, sentences of each document).

    first: the source to begin with. skipped: documents of it that were read before.
    """
    before = sum(source.size or 0 for source in sources[:first])
    for number, source in enumerate(sources[first:], first):
        batch: list[list[str]] = []
        size = 0
        position = (number, 0, before)
        for count, document in enumerate(source, 1):
            if number == first and count <= skipped:
                continue
            batch.append(document.sentences)
            size += sum(map(len, document.sentences))
            position = (number, count, before + document.read)
            if size >= BATCH_CHARACTERS:
                yield position, batch
                batch, size = [], 0
        if batch:
            yield position, batch
        before += source.size or 0


@dataclass
class TokenizeBatch:
    """Tokenises documents, given as lists of sentences, in a worker process. serialised: the tokenizer as JSON."""

    serialised: str

    @cached_property
    def tokenizer(self) -> Any:
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_str(self.serialised)
        tokenizer.encode_special_tokens = True  # "[SEP]" in a text is split like any other word
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
        digests = b"".join(hashlib.blake2b(sentence.encode(), digest_size=8).digest() for sentence in sentences)
        hashes = np.frombuffer(digests, "<u8")
        sentence_lengths = np.array(lengths, np.int64)
        # Control characters alone give no token: such sentences, and documents of nothing else, are dropped.
        kept = sentence_lengths > 0
        owner = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
        document_lengths = np.bincount(owner[kept], minlength=len(documents))
        return Batch(np.concatenate(tokens), sentence_lengths[kept], document_lengths[document_lengths > 0], hashes[kept])
