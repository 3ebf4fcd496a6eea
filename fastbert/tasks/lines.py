"""A file of any size, gzipped or not, or the standard input, read in parts: numbered lines, or text in pieces."""

import codecs
import gzip
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from fastbert.utils.errors import InputError

MAX_LINE_BYTES = 1 << 26
SAMPLE_BYTES = 1 << 16
PIECE_BYTES = 1 << 16
STDIN = "the standard input"


def name_of(file: Path | None) -> str:
    """The name of a file for messages. file: None for the standard input."""
    return STDIN if file is None else str(file)


@contextmanager
def opened(file: Path | None) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed where its name ends in .gz. file: None for the standard input."""
    if file is None:
        yield sys.stdin.buffer
        return
    with cast(BinaryIO, gzip.open(file, "rb")) if file.suffix.lower() == ".gz" else file.open("rb") as handle:
        yield handle


class Lines:
    """Iterates once over (number from 1, text with its line end) of each line, without a byte order mark.

    Raises InputError where a line is too long or not UTF-8, or a gzip file is truncated.
    """

    def __init__(self, handle: BinaryIO, name: str) -> None:
        self._lines = _numbered(handle, name)
        self._ahead: deque[tuple[int, str]] = deque()
        self._error: InputError | None = None
        self._ended = False

    def sample(self) -> tuple[str, bool]:
        """(the text of the next lines, about SAMPLE_BYTES, whether that is all). The iteration still gives these lines."""
        size = sum(len(line) for _, line in self._ahead)
        while size < SAMPLE_BYTES and self._error is None and not self._ended:
            try:
                number, line = next(self._lines)
            except StopIteration:
                self._ended = True
            except InputError as error:  # raised where the iteration reaches it
                self._error = error
            else:
                self._ahead.append((number, line))
                size += len(line)
        return "".join(line for _, line in self._ahead), self._ended

    def __iter__(self) -> Iterator[tuple[int, str]]:
        while self._ahead:
            yield self._ahead.popleft()
        if self._error is not None:
            raise self._error
        yield from self._lines


def _numbered(handle: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    encoding, number = "utf-8-sig", 0
    with _decompressing(name):
        while raw := handle.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                raise InputError(f"expected lines of at most {MAX_LINE_BYTES} bytes, got a longer one: line {number} of {name}")
            try:
                text = raw.decode(encoding)
            except UnicodeDecodeError as error:
                raise _not_utf8(raw[error.start], number, name) from error
            encoding = "utf-8"
            yield number, text


def pieces(handle: BinaryIO, name: str) -> Iterator[str]:
    """The text in pieces of any length, without a byte order mark. Raises InputError where it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line = 1
    while True:
        with _decompressing(name):
            raw = handle.read(PIECE_BYTES)
        try:
            text = decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise _not_utf8(byte, line + error.object.count(b"\n", 0, error.start), name) from error
        if text:
            yield text
        if not raw:
            return
        line += text.count("\n")


def sample_of(file: Path) -> tuple[str, bool]:
    """(the text of the first lines of a file, whether that is all)."""
    with opened(file) as handle:
        return Lines(handle, str(file)).sample()


@contextmanager
def _decompressing(name: str) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"expected a whole gzip file, got {error} in {name}") from error


def _not_utf8(byte: int, line: int, name: str) -> InputError:
    return InputError(f"expected UTF-8, got byte 0x{byte:02x} in line {line} of {name}")
