"""Prepared pre-training samples on disk: memory-mapped arrays and a `meta.json`, which is written last.

A sample is [CLS] A [SEP] B [SEP] without padding. A folder without `meta.json` is unfinished. Arrays are .npy files, read
without unpickling:
    shard-00000.tokens.npy    uint16 or uint32 (tokens,), ids of all samples, concatenated
    shard-00000.samples.npy   int64 (samples, 2), the start of each sample, and first_length * 2 + is_random_next
`tokenizer/` beside them is the tokenizer of the samples.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastbert.utils.errors import DataError
from fastbert.utils.files import write_whole

FORMAT = 1
META = "meta.json"
TOKENIZER = "tokenizer"
OPEN_ARRAYS = 128


class Sample(NamedTuple):
    """A pair of text segments.

    input_ids: (length,). first_length: tokens of [CLS] A [SEP]. is_random_next: whether B does not follow A in the text.
    """

    input_ids: np.ndarray
    first_length: int
    is_random_next: bool


@dataclass(frozen=True)
class Meta:
    """What `meta.json` holds.

    shards: samples of each. fingerprint: of the tokenizer, see `fingerprint`. options: of `prepare`. audit: counts of the text
    and the samples, see `audit`.
    """

    seq_len: int
    vocab_size: int
    fingerprint: str
    shards: tuple[int, ...]
    num_tokens: int
    options: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


def fingerprint(tokenizer: Any) -> str:
    """Identifies a tokenizer by its vocabulary in the order of ids and its special tokens: sha256, hexadecimal."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id]
    return hashlib.sha256(json.dumps([vocabulary, special]).encode()).hexdigest()


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def shard_files(folder: Path, number: int) -> tuple[Path, Path]:
    """The files of tokens and of samples of one shard."""
    return folder / f"shard-{number:05d}.tokens.npy", folder / f"shard-{number:05d}.samples.npy"


def write_shard(folder: Path, number: int, samples: Sequence[Sample], vocab_size: int) -> int:
    """Writes one shard, each file whole or not at all; returns its number of tokens. vocab_size: above every id."""
    starts = np.cumsum([0, *(len(sample.input_ids) for sample in samples)])
    dtype = token_dtype(vocab_size)
    tokens = np.concatenate([sample.input_ids for sample in samples]).astype(dtype) if samples else np.empty(0, dtype)
    lengths_and_flags = [sample.first_length * 2 + sample.is_random_next for sample in samples]
    tokens_file, samples_file = shard_files(folder, number)
    _save(tokens_file, tokens)
    _save(samples_file, np.stack([starts[:-1], np.array(lengths_and_flags, np.int64)], 1))
    return int(starts[-1])


def write_meta(folder: Path, meta: Meta) -> None:
    """Writes `meta.json`, which marks the folder as finished."""
    content = json.dumps(asdict(meta), indent=1, ensure_ascii=False) + "\n"
    write_whole(folder / META, content)


class Shards:
    """The samples of a prepared folder, by number, read when they are indexed.

    Raises DataError where the folder is unfinished, of another format, or lacks a shard.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        file = self.folder / META
        if not file.is_file():
            raise DataError(f"expected the folder of a finished `fastbert prepare` (with {META}), got {self.folder}")
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            if values.get("format") != FORMAT:
                raise DataError(f"expected shards of format {FORMAT}, got {values.get('format')} in {self.folder}")
            self.meta = Meta(**{**values, "shards": tuple(values["shards"])})
        except DataError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"expected what `fastbert prepare` writes in {file}, got {error!r}") from error
        self._array = lru_cache(maxsize=OPEN_ARRAYS)(self._open)  # an open array holds a file descriptor
        for number, count in enumerate(self.meta.shards):
            found = len(self._array(number, "samples"))
            if found != count:
                raise DataError(f"expected {count} samples in shard {number} of {self.folder}, got {found}")
            self._array(number, "tokens")
        self._ends = np.cumsum(self.meta.shards)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"expected a sample from 0 to {len(self) - 1}, got {index}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[shard - 1]) if shard else 0)
        samples, tokens = self._array(shard, "samples"), self._array(shard, "tokens")
        start, length_and_flag = samples[row]
        end = samples[row + 1][0] if row + 1 < len(samples) else len(tokens)
        return Sample(np.asarray(tokens[start:end], np.int64), int(length_and_flag) >> 1, bool(length_and_flag & 1))

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every sample, int64 (samples,)."""
        found = [np.empty(0, np.int64)]
        for shard in range(len(self.meta.shards)):
            samples, tokens = self._array(shard, "samples"), self._array(shard, "tokens")
            found.append(np.append(samples[1:, 0], len(tokens)) - samples[:, 0])
        return np.concatenate(found)

    def __getstate__(self) -> dict[str, Any]:
        """For the worker processes of a DataLoader, which open the arrays themselves."""
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Shards.__init__(self, state["folder"])

    def _open(self, number: int, part: str) -> np.ndarray:
        """part: "tokens" or "samples"."""
        file = shard_files(self.folder, number)[("tokens", "samples").index(part)]
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"expected an array of `fastbert prepare` in {file}, got {error}") from error


def _save(file: Path, array: np.ndarray) -> None:
    write_whole(file, lambda handle: np.save(handle, array, allow_pickle=False))
