"""Documents from files and data sets, one at a time: a document is its sentences in order, blank ones left out.

    FILE.txt                        one sentence a line, a blank line between documents
    FILE.jsonl                      one object a line, {"text": ...} (a sentence a line) or {"sentences": [...]}
    FILE.parquet                    one row a document, column `text` (a sentence a line); needs pyarrow
    hf:NAME[@CONFIG][:SPLIT[:COLUMN]]   a data set of Hugging Face, streamed; needs datasets; `train` and `text` if left out

Memory is bounded by the longest document, which is bounded by MAX_DOCUMENT_BYTES.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fastbert.utils.errors import DataError

MAX_DOCUMENT_BYTES = 1 << 26
SUFFIXES = (".txt", ".jsonl", ".parquet")
HUB = "hf:"

# How a pass over documents tells its progress: its name, what is done, the whole or None where unknown, documents so far.
Report = Callable[[str, int, int | None, int], None]


@dataclass(frozen=True)
class Document:
    """sentences: without outer blanks, none empty. read: what of the source has been read up to its end, in its unit."""

    sentences: list[str]
    read: int


@dataclass(frozen=True)
class Source:
    """One file or data set. size: bytes, or None where it is not known; `Document.read` counts up to it."""

    name: str
    size: int | None

    def __iter__(self) -> Iterator[Document]:
        """The documents in order, those without a sentence left out.

        Raises DataError, with the file and the line, where the text is not UTF-8 or not of the format, and where there is no
        document at all.
        """
        empty = True
        for document in self._read():
            if document.sentences:
                empty = False
                yield document
        if empty:
            raise DataError(f"expected documents in {self.name}, got none: nothing but blanks")

    def _read(self) -> Iterator[Document]:
        if self.name.startswith(HUB):
            return _read_hub(self.name)
        suffix = Path(self.name).suffix
        return {".txt": _read_text, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[suffix](self.name)


def open_source(name: str) -> Source:
    """Checks what can be checked without reading. name: a file or `hf:...`, see above.

    Raises DataError for a kind of file that is not known, for an empty file, for a library that is missing; OSError where there
    is no such file.
    """
    if name.startswith(HUB):
        _parse_hub(name)
        _import_datasets(name)
        return Source(name, None)
    file = Path(name)
    if file.suffix not in SUFFIXES:
        raise DataError(f"expected a file named {', '.join(SUFFIXES)} or {HUB}NAME, got {name}")
    with file.open("rb"):
        size = file.stat().st_size
    if size == 0:
        raise DataError(f"expected documents in {name}, got an empty file")
    if file.suffix == ".parquet":
        _open_parquet(name)
    return Source(name, size)


def open_sources(names: Iterable[str]) -> list[Source]:
    """Every source, in the order given. Raises as `open_source`, and DataError where none or one twice is named."""
    sources: dict[str, Source] = {}
    for name in names:
        key = name if name.startswith(HUB) else str(Path(name).resolve())
        if key in sources:
            raise DataError(f"expected each file once, got {name} twice")
        sources[key] = open_source(name)
    if not sources:
        raise DataError("expected at least one file, got none")
    return list(sources.values())


def total_size(sources: Iterable[Source]) -> int | None:
    """Bytes of all sources, None where one is not known."""
    total = 0
    for source in sources:
        if source.size is None:
            return None
        total += source.size
    return total


def _lines(name: str) -> Iterator[tuple[int, int, str]]:
    """Number from 1, bytes up to the end of the line, text without outer blanks. A line ends at LF, as in every tool."""
    with open(name, "rb") as file:
        read = 0
        number = 0
        while raw := _next_line(file, name, number + 1):
            number += 1
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                # With a byte-order mark in front the codec counts from behind it.
                place = error.start + (3 if number == 1 and raw.startswith(b"\xef\xbb\xbf") else 0)
                raise DataError(
                    f"expected UTF-8 in {name}, got byte 0x{raw[place]:02x} in line {number} (byte {read + place} of the file)"
                ) from error
            read += len(raw)
            yield number, read, line.strip()


def _next_line(file: BinaryIO, name: str, number: int) -> bytes:
    raw = file.readline(MAX_DOCUMENT_BYTES + 1)
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise DataError(f"expected lines of at most {MAX_DOCUMENT_BYTES} bytes, got a longer one: line {number} of {name}")
    return raw


def _read_text(name: str) -> Iterator[Document]:
    sentences: list[str] = []
    begin = read = number = 0
    for number, read, line in _lines(name):
        if line:
            sentences.append(line)
            if read - begin > MAX_DOCUMENT_BYTES:
                raise DataError(
                    f"expected a blank line between documents, each of at most {MAX_DOCUMENT_BYTES} bytes, "
                    f"got a longer one that ends behind line {number} of {name}"
                )
        else:
            yield Document(sentences, read)
            sentences, begin = [], read
    yield Document(sentences, read)


def _read_jsonl(name: str) -> Iterator[Document]:
    for number, read, line in _lines(name):
        if not line:
            continue
        place = f"line {number} of {name}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"expected a JSON object in {place}, got {error}") from error
        keys = [key for key in ("text", "sentences") if isinstance(value, dict) and key in value]
        if len(keys) != 1:
            got = f"keys {sorted(value)}" if isinstance(value, dict) else type(value).__name__
            raise DataError(f'expected an object with either "text" or "sentences" in {place}, got {got}')
        yield Document(_split(value[keys[0]], place, text=keys[0] == "text"), read)


def _split(value: Any, place: str, text: bool = True) -> list[str]:
    """Sentences of a text, a line each, or of a list of sentences."""
    if text:
        if not isinstance(value, str):
            raise DataError(f"expected text in {place}, got {type(value).__name__}")
        parts = value.split("\n")
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        # A sentence with a line feed in it stays one sentence: the tokenizer takes it for a blank.
        parts = value
    else:
        raise DataError(f"expected a list of texts in {place}, got {value!r:.80}")
    sentences = [part for part in map(str.strip, parts) if part]
    for sentence in sentences:
        try:
            sentence.encode()
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
            raise DataError(f"expected text that UTF-8 can hold in {place}, got {sentence[error.start]!r}") from error
    return sentences


def _open_parquet(name: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"expected pyarrow for {name}, got none installed: pip install 'fastbert-triton[train]'") from error
    try:
        file = pyarrow.parquet.ParquetFile(name)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"expected a parquet file in {name}, got {error}") from error
    if "text" not in file.schema_arrow.names:
        raise DataError(f"expected a column `text` in {name}, got {file.schema_arrow.names}")
    if not file.metadata.num_rows:
        raise DataError(f"expected documents in {name}, got no rows")
    return file


def _read_parquet(name: str) -> Iterator[Document]:
    size = Path(name).stat().st_size
    row = 0
    with _open_parquet(name) as file:
        rows = file.metadata.num_rows
        for batch in file.iter_batches(batch_size=256, columns=["text"]):
            for value in batch.column(0):
                row += 1
                yield Document(_split(value.as_py(), f"row {row} of {name}"), size * row // rows)


def _parse_hub(name: str) -> tuple[str, str | None, str, str]:
    """Name, configuration, split, column."""
    parts = name.removeprefix(HUB).split(":")
    data_set, _, config = parts[0].partition("@")
    if not data_set or len(parts) > 3 or not all(parts):
        raise DataError(f"expected {HUB}NAME[@CONFIG][:SPLIT[:COLUMN]], got {name}")
    split, column = (parts[1:] + ["train", "text"][len(parts) - 1 :])[:2]
    return data_set, config or None, split, column


def _import_datasets(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"expected datasets for {name}, got none installed: pip install 'fastbert-triton[train]'") from error
    return datasets


def _read_hub(name: str) -> Iterator[Document]:
    data_set, config, split, column = _parse_hub(name)
    number = 0
    try:
        for row in _import_datasets(name).load_dataset(data_set, config, split=split, streaming=True):
            number += 1
            if column not in row:
                raise DataError(f"expected a column `{column}` in {name}, got {sorted(row)}")
            value = row[column]
            yield Document(_split(value, f"row {number} of {name}", text=not isinstance(value, list)), number)
    except DataError:
        raise
    except ValueError as error:  # what datasets says of a split, a configuration or a file that is not as the others
        raise DataError(f"expected a data set that can be read as {name}, got at row {number + 1}: {error}") from error
