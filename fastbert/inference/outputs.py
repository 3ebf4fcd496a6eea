"""Results in a file that gets its name only when it is complete, and that an interrupted run can continue.

Until then FILE.partial grows, and FILE.partial.json holds how many rows and bytes of it are on the disk, and from which input,
model and options they come. For a finished file .FILE.record.json holds the same, so that `--resume` can check that it is the
requested one.
"""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fastbert.utils.errors import InputError
from fastbert.utils.existing_outputs import check_flags, exists_error, first_difference, other_options_error
from fastbert.utils.files import name_file, write_whole

SAVE_SECONDS = 5.0
# Suffixes that would be wrong for JSONL.
OTHER_SUFFIXES = (".csv", ".tsv", ".tab", ".json", ".txt", ".parquet", ".xlsx", ".npy", ".npz", ".pt", ".safetensors", ".gz")


def check_name(file: Path, vectors: bool) -> None:
    """Raises InputError where a JSONL file would get the suffix of another format. vectors: whether it is .npy instead."""
    if not vectors and file.suffix.lower() in OTHER_SUFFIXES:
        raise InputError(f"expected --out to end in .jsonl (or .npy for embed), got {file}")


def refuse_existing(file: Path, resume: bool, overwrite: bool) -> None:
    """Raises InputError where the file or an unfinished one exists without `resume` or `overwrite`, or both are given."""
    check_flags(resume, overwrite)
    if file.exists() and not file.is_file():
        raise InputError(f"expected a file to write to, got {file}, which is none")
    if resume or overwrite:
        return
    if _partial(file).is_file():
        raise exists_error(file, f"is unfinished ({_partial(file).name})")
    if file.exists():
        raise exists_error(file, "is finished" if _record(file).is_file() else "exists")


def _partial(file: Path) -> Path:
    return file.with_name(f"{file.name}.partial")


def _record(file: Path) -> Path:
    return file.with_name(f".{file.name}.record.json")


class Output:
    """A file of results while it is written.

    identity: what the results depend on; a run that continues must have the same. header: the bytes the file begins with, from
    the number of rows; of the same length for every number. rows: how many are written. finished: whether the file is complete
    already.
    """

    def __init__(
        self,
        file: Path,
        identity: dict[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        header: Callable[[int], bytes] = lambda rows: b"",
    ) -> None:
        """Writes nothing yet. overwrite: an existing file is replaced when the new one is complete, not before.

        Raises InputError where the file or an unfinished one exists without `resume` or `overwrite`, or, with `resume`, has
        another identity.
        """
        refuse_existing(file, resume, overwrite)
        self.file, self.identity, self.header = file, json.loads(json.dumps(identity)), header
        self.partial = _partial(file)
        self.state = file.with_name(f"{file.name}.partial.json")
        self.record = _record(file)
        self.rows, self._size, self.finished = 0, 0, False
        if overwrite:
            return
        if self.partial.is_file():
            self.rows, self._size = self._read_state()
        elif file.exists():
            self.rows, self.finished = self._read_record(), True
            self.state.unlink(missing_ok=True)  # of a run that was killed as it finished

    def begin(self) -> None:
        """Opens the unfinished file after the rows that are kept."""
        self._handle = self.partial.open("r+b" if self._size else "wb")
        self._handle.truncate(self._size)
        self._handle.seek(self._size)
        try:
            if not self._size:
                self._handle.write(self.header(0))
            self.save()
        except BaseException:
            self._close()
            if not self._size:
                self.partial.unlink(missing_ok=True)
            raise

    def _read_state(self) -> tuple[int, int]:
        """(rows, bytes) that can be kept."""
        if not self.state.is_file():
            return 0, 0  # interrupted before its first save
        try:
            found = json.loads(self.state.read_text(encoding="utf-8"))
            identity, rows, size = found["identity"], int(found["rows"]), int(found["bytes"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"expected the state of {self.partial} in {self.state}, got {error!r}") from error
        self._check(identity)
        here = self.partial.stat().st_size
        if here < size:
            raise InputError(f"expected at least {size} bytes in {self.partial}, got {here}: delete it and start over")
        return rows, size

    def _read_record(self) -> int:
        """The rows of the finished file. Raises InputError where its identity is another one or not known."""
        try:
            found = json.loads(self.record.read_text(encoding="utf-8"))
            identity, rows, mark = found["identity"], int(found["rows"]), found["file"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"expected {self.record} beside {self.file}, which records its input and options, got none that can be read; "
                "--overwrite replaces it"
            ) from error
        if mark != fingerprint(self.file):
            raise InputError(f"expected {self.file} as it was written, got another one; --overwrite replaces it")
        self._check(identity)
        return rows

    def _check(self, identity: Any) -> None:
        if changed := first_difference(identity, self.identity):
            raise other_options_error(self.file, *changed)

    def write(self, row: bytes) -> None:
        try:
            self._handle.write(row)
        except OSError as error:
            name_file(error, self.partial)
            raise
        self.rows += 1

    def keep(self) -> None:
        """Saves where the last save is SAVE_SECONDS ago. Called between bursts of rows."""
        if self.rows > self.saved_rows and time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes the rows to the disk, then the state that counts them."""
        try:
            self._handle.flush()
            os.fsync(self._handle.fileno())
        except OSError as error:
            name_file(error, self.partial)
            raise
        content = {"identity": self.identity, "rows": self.rows, "bytes": self._handle.tell()}
        write_whole(self.state, json.dumps(content, indent=1) + "\n")
        self._saved, self.saved_rows = time.monotonic(), self.rows

    def finish(self) -> None:
        """Completes the file and gives it its name."""
        self._handle.seek(0)
        self._handle.write(self.header(self.rows))
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        content = {"identity": self.identity, "rows": self.rows, "file": fingerprint(self.partial)}
        write_whole(self.record, json.dumps(content, indent=1) + "\n")
        self.partial.replace(self.file)
        self.state.unlink()

    def interrupt(self) -> bool:
        """Leaves a file that `--resume` continues; returns whether the latest rows were saved too."""
        try:
            self.save()
            return True
        except (OSError, ValueError):  # a full disk, or a closed file: what was saved before stays
            return False
        finally:
            self._close()

    def discard(self) -> None:
        """Removes the unfinished file."""
        self._close()
        self.partial.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)

    def _close(self) -> None:
        with suppress(OSError):  # a full disk: the buffer is lost, the file is closed all the same
            self._handle.close()


def npy_header(size: int, dtype: np.dtype) -> Callable[[int], bytes]:
    """The .npy header of an array (rows, size), as a function of rows. NumPy pads it, so its length does not depend on rows."""

    def header(rows: int) -> bytes:
        content = io.BytesIO()
        description = np.lib.format.dtype_to_descr(dtype.newbyteorder("<"))
        fields = {"descr": description, "fortran_order": False, "shape": (rows, size)}
        np.lib.format.write_array_header_1_0(content, fields)
        return content.getvalue()

    return header


def fingerprint(file: Path) -> dict[str, Any]:
    """Identifies a file by its size and a digest of its two ends, in the same time for any size."""
    size, ends = file.stat().st_size, 1 << 16
    with file.open("rb") as handle:
        digest = hashlib.sha256(handle.read(ends))
        handle.seek(max(size - ends, 0))
        digest.update(handle.read(ends))
    return {"size": size, "sha256 of its ends": digest.hexdigest()}
