"""Tokenised documents on disk while they are prepared: flat files that grow by whole batches, then read memory-mapped.

tokens.bin      uint16 or uint32, ids of all sentences one after the other
sentences.bin   int64, where each sentence ends in tokens.bin
documents.bin   int64, which sentence each document ends before
lines.bin       uint64, a hash of each sentence's text
spool.json      how much of them is valid, and of which input; written after them, so that an interruption loses one batch
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fastbert.utils.errors import DataError
from fastbert.utils.files import write_whole

from .shards import token_dtype

STATE = "spool.json"


@dataclass(frozen=True)
class Batch:
    """Tokenised documents in order. tokens: (tokens,). sentence_lengths: tokens of each sentence, none 0. document_lengths:
    sentences of each document, none 0. lines: (sentences,) uint64."""

    tokens: np.ndarray
    sentence_lengths: np.ndarray
    document_lengths: np.ndarray
    lines: np.ndarray


@dataclass(frozen=True)
class State:
    """source, in_source: the input read so far: whole sources, and documents of the next. documents, sentences, tokens: kept.
    finished: nothing follows."""

    source: int = 0
    in_source: int = 0
    documents: int = 0
    sentences: int = 0
    tokens: int = 0
    finished: bool = False


class Spool:
    """Appends batches; goes on where the last valid batch ended. vocab_size: ids lie below it."""

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
        """source, in_source: the input read up to the end of this batch, see State."""
        state = self.state
        self._write("tokens.bin", batch.tokens.astype(self.dtype))
        self._write("sentences.bin", state.tokens + np.cumsum(batch.sentence_lengths, dtype=np.int64))
        self._write("documents.bin", state.sentences + np.cumsum(batch.document_lengths, dtype=np.int64))
        self._write("lines.bin", batch.lines.astype(np.uint64))
        self.state = State(
            source, in_source, state.documents + len(batch.document_lengths), state.sentences + len(batch.sentence_lengths),
            state.tokens + len(batch.tokens), finished,
        )  # fmt: skip
        write_whole(self.folder / STATE, json.dumps(asdict(self.state)))

    def _sizes(self) -> dict[str, int]:
        state = self.state
        return {
            "tokens.bin": state.tokens * self.dtype.itemsize, "sentences.bin": state.sentences * 8,
            "documents.bin": state.documents * 8, "lines.bin": state.sentences * 8,
        }  # fmt: skip

    def _write(self, name: str, array: np.ndarray) -> None:
        # Not in append mode: what a failed write left behind the valid bytes is written over.
        with (self.folder / name).open("r+b") as file:
            file.seek(self._sizes()[name])
            file.write(array.tobytes())
            file.flush()
            os.fsync(file.fileno())


class SpooledDocument(Sequence[np.ndarray]):
    """The sentences of one document, each (tokens,)."""

    def __init__(self, tokens: np.ndarray, ends: np.ndarray, begin: int, end: int) -> None:
        self._tokens, self._ends, self._begin, self._end = tokens, ends, begin, end

    def __len__(self) -> int:
        return self._end - self._begin

    def __getitem__(self, index):  # type: ignore[override]  # a slice is never asked for
        if not 0 <= index < len(self):
            raise IndexError(index)
        sentence = self._begin + index
        start = self._ends[sentence - 1] if sentence else 0
        return self._tokens[start : self._ends[sentence]]


class SpooledDocuments(Sequence[SpooledDocument]):
    """A finished spool, memory-mapped. tokens, sentences, documents, lines: the files, see above."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.tokens = _open(folder / "tokens.bin", token_dtype(vocab_size))
        self.sentences = _open(folder / "sentences.bin", np.dtype(np.int64))
        self.documents = _open(folder / "documents.bin", np.dtype(np.int64))
        self.lines = _open(folder / "lines.bin", np.dtype(np.uint64))

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index):  # type: ignore[override]  # a slice is never asked for
        if not 0 <= index < len(self):
            raise IndexError(index)
        begin = int(self.documents[index - 1]) if index else 0
        return SpooledDocument(self.tokens, self.sentences, begin, int(self.documents[index]))


def _open(file: Path, dtype: np.dtype) -> np.ndarray:
    if not file.stat().st_size:
        return np.empty(0, dtype)
    return np.asarray(np.memmap(file, dtype, "r"))
