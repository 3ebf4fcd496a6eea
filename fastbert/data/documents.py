"""Documents from files and data sets, one at a time: a document is its non-empty sentences in order.

    FILE.txt                        one sentence per line, a blank line between documents
    FILE.jsonl                      one object per line, {"text": ...} (a sentence per line) or {"sentences": [...]}
    FILE.parquet                    one document per row, column `text` (a sentence per line); needs pyarrow
    hf:NAME[@CONFIG][:SPLIT[:COLUMN]]   a streamed data set of Hugging Face, by default `train` and `text`; needs datasets

Memory is bounded by the longest document, which is bounded by MAX_DOCUMENT_BYTES.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fastbert.utils.errors import DataError
from fastbert.utils.installation import install_command

MAX_DOCUMENT_BYTES = 1 << 26
SUFFIXES = (".txt", ".jsonl", ".parquet")
HUB = "hf:"

# Reports progress: (name of the stage, amount done, total amount or None where unknown, documents so far).
Report = Callable[[str, int, int | None, int], None]


@dataclass(frozen=True)
class Document:
    """One document.

    sentences: stripped, none empty. read: how much of the source is read at its end, in the unit of `Source.size`.
    """

    sentences: list[str]
    read: int


@dataclass(frozen=True)
class Source:
    """One file or data set. size: in bytes, or None where it is not known."""

    name: str
    size: int | None

    def __iter__(self) -> Iterator[Document]:
        """The documents in order, without empty ones.

        Raises DataError, with file and line, where the text is not UTF-8 or not of the format, and where there is no document.
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

    Raises DataError for an unknown kind of file, an empty file, a missing library; OSError where there is no such file.
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
    """Every source, in the given order. Raises as `open_source`, and DataError for no name and for a name given twice."""
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
    """Bytes of all sources, None where the size of one is not known."""
    total = 0
    for source in sources:
        if source.size is None:
            return None
        total += source.size
    return total


def _lines(name: str) -> Iterator[tuple[int, int, str]]:
    """(line number from 1, bytes up to the end of the line, stripped text). Lines end at LF alone."""
    with open(name, "rb") as file:
        read = 0
        number = 0
        while raw := _next_line(file, name, number + 1):
            number += 1
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                # The codec does not count a byte-order mark.
                offset = error.start + (3 if number == 1 and raw.startswith(b"\xef\xbb\xbf") else 0)
                raise DataError(
                    f"expected UTF-8 in {name}, got byte 0x{raw[offset]:02x} in line {number} "
                    f"(byte {read + offset} of the file)"
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
                    f"got a longer one that ends after line {number} of {name}"
                )
        else:
            yield Document(sentences, read)
            sentences, begin = [], read
    yield Document(sentences, read)


def _read_jsonl(name: str) -> Iterator[Document]:
    for number, read, line in _lines(name):
        if not line:
            continue
        where = f"line {number} of {name}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"expected a JSON object in {where}, got {error}") from error
        keys = [key for key in ("text", "sentences") if isinstance(value, dict) and key in value]
        if len(keys) != 1:
            got = f"keys {sorted(value)}" if isinstance(value, dict) else type(value).__name__
            raise DataError(f'expected an object with either "text" or "sentences" in {where}, got {got}')
        yield Document(_split(value[keys[0]], where, text=keys[0] == "text"), read)


def _split(value: Any, where: str, text: bool = True) -> list[str]:
    """The sentences of a text, one per line, or of a list. where: for messages."""
    if text:
        if not isinstance(value, str):
            raise DataError(f"expected text in {where}, got {type(value).__name__}")
        parts = value.split("\n")
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        # A line feed inside a sentence does not split it: to the tokenizer it is a blank.
        parts = value
    else:
        raise DataError(f"expected a list of texts in {where}, got {value!r:.80}")
    sentences = [part for part in map(str.strip, parts) if part]
    for sentence in sentences:
        try:
            sentence.encode()
        except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair
            raise DataError(f"expected text that UTF-8 can hold in {where}, got {sentence[error.start]!r}") from error
    return sentences


def _open_parquet(name: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"expected pyarrow for {name}, got none installed: {install_command('train')}") from error
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
    """(name, configuration, split, column)."""
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
        raise DataError(f"expected datasets for {name}, got none installed: {install_command('train')}") from error
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
    except ValueError as error:  # by datasets, for an unknown split or configuration, or a file unlike the others
        raise DataError(f"expected a data set that can be read as {name}, got at row {number + 1}: {error}") from error
