"""Tokenised documents on disk between the two stages of `prepare`: appended by whole batches, then read memory-mapped.

tokens.bin      uint16 or uint32, ids of all sentences, concatenated
sentences.bin   int64, the end of each sentence in tokens.bin
documents.bin   int64, the end of each document in sentences.bin
lines.bin       uint64, a hash of each sentence's text
spool.json      how much of them is valid, and of which input; written after them, so that an interruption loses one batch
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fastbert.utils.errors import DataError
from fastbert.utils.files import write_whole

from .shards import token_dtype

STATE = "spool.json"


@dataclass(frozen=True)
class Batch:
    """Tokenised documents in order.

    tokens: (tokens,). sentence_lengths: tokens of each sentence, at least 1. document_lengths: sentences of each document, at
    least 1. lines: uint64 (sentences,), a hash of each sentence's text.
    """

    tokens: np.ndarray
    sentence_lengths: np.ndarray
    document_lengths: np.ndarray
    lines: np.ndarray


@dataclass(frozen=True)
class State:
    """What the spool holds.

    source, in_source: the input read so far, in whole sources and documents of the next one. documents, sentences, tokens:
    written so far. finished: whether that is the whole input.
    """

    source: int = 0
    in_source: int = 0
    documents: int = 0
    sentences: int = 0
    tokens: int = 0
    finished: bool = False


class Spool:
    """Appends batches, after the last valid one that is there. vocab_size: above every id."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.folder = folder
        self.dtype = token_dtype(vocab_size)
        file = folder / STATE
        self.state = State(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else State()
        for name, size in self._sizes().items():
            with (folder / name).open("ab") as handle:
                if handle.tell() < size:
                    raise DataError(f"expected {size} bytes in {folder / name}, got {handle.tell()}: start over (--overwrite)")
                handle.truncate(size)

    def append(self, batch: Batch, source: int, in_source: int, finished: bool = False) -> None:
        """Writes a batch, then the state that includes it. source, in_source: the input up to the end of this batch."""
        state = self.state
        self._write("tokens.bin", batch.tokens.astype(self.dtype))
        self._write("sentences.bin", state.tokens + np.cumsum(batch.sentence_lengths, dtype=np.int64))
        self._write("documents.bin", state.sentences + np.cumsum(batch.document_lengths, dtype=np.int64))
        self._write("lines.bin", batch.lines.astype(np.uint64))
        self.state = State(
            source,
            in_source,
            documents=state.documents + len(batch.document_lengths),
            sentences=state.sentences + len(batch.sentence_lengths),
            tokens=state.tokens + len(batch.tokens),
            finished=finished,
        )
        write_whole(self.folder / STATE, json.dumps(asdict(self.state)))

    def _sizes(self) -> dict[str, int]:
        state = self.state
        return {
            "tokens.bin": state.tokens * self.dtype.itemsize,
            "sentences.bin": state.sentences * 8,
            "documents.bin": state.documents * 8,
            "lines.bin": state.sentences * 8,
        }

    def _write(self, name: str, array: np.ndarray) -> None:
        # Not in append mode: a failed write may have left bytes after the valid ones.
        with (self.folder / name).open("r+b") as file:
            file.seek(self._sizes()[name])
            file.write(array.tobytes())
            file.flush()
            os.fsync(file.fileno())


class SpooledDocument:
    """The sentences of one document, each (tokens,)."""

    def __init__(self, tokens: np.ndarray, ends: np.ndarray, begin: int, end: int) -> None:
        self._tokens, self._ends, self._begin, self._end = tokens, ends, begin, end

    def __len__(self) -> int:
        return self._end - self._begin

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        sentence = self._begin + index
        start = self._ends[sentence - 1] if sentence else 0
        return self._tokens[start : self._ends[sentence]]


class SpooledDocuments:
    """The documents of a finished spool, memory-mapped. tokens, sentences, documents, lines: the files."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.tokens = _open(folder / "tokens.bin", token_dtype(vocab_size))
        self.sentences = _open(folder / "sentences.bin", np.dtype(np.int64))
        self.documents = _open(folder / "documents.bin", np.dtype(np.int64))
        self.lines = _open(folder / "lines.bin", np.dtype(np.uint64))

    def __len__(self) -> int:
        return len(self.documents)

    def num_tokens(self, index: int) -> int:
        """Tokens of one document."""
        begin = self.sentences[self.documents[index - 1] - 1] if index else 0
        return int(self.sentences[self.documents[index] - 1]) - int(begin)

    def __getitem__(self, index: int) -> SpooledDocument:
        if not 0 <= index < len(self):
            raise IndexError(index)
        begin = int(self.documents[index - 1]) if index else 0
        return SpooledDocument(self.tokens, self.sentences, begin, int(self.documents[index]))


def _open(file: Path, dtype: np.dtype) -> np.ndarray:
    if not file.stat().st_size:
        return np.empty(0, dtype)
    return np.asarray(np.memmap(file, dtype, "r"))
