"""Results in a file that appears under its name only when it is complete, and that an interrupted run goes on with.

Until then FILE.partial grows, and FILE.partial.json says how many rows and bytes of it are on the disk, and of which input,
model and options they are the results. Of a finished file .FILE.record.json says the same, so that `--resume` can tell whether
it is the one that was asked for.
"""

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
# Names that would say something else of what is JSONL.
OTHER_NAMES = (".csv", ".tsv", ".tab", ".json", ".txt", ".parquet", ".xlsx", ".npy", ".npz", ".pt", ".safetensors", ".gz")


def check_name(file: Path, vectors: bool) -> None:
    """Raises InputError where a file that becomes JSONL has the name of another format. vectors: it becomes .npy."""
    if not vectors and file.suffix.lower() in OTHER_NAMES:
        raise InputError(f"expected --out to end in .jsonl (or .npy for embed), got {file}")


class Output:
    """identity: of what these are the results; a run that goes on must have the same.

    header: what the file begins with, from the number of rows; as long for every number. rows: how many are there already.
    finished: whether the file is whole, and nothing is to be done.
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
        """overwrite: what is there goes when the new is whole, not before.

        Raises InputError where the file or an unfinished one is there without `resume` or `overwrite`, or, with `resume`, is of
        something else.
        """
        check_flags(resume, overwrite)
        self.file, self.identity, self.header = file, json.loads(json.dumps(identity)), header
        self.partial = file.with_name(f"{file.name}.partial")
        self.state = file.with_name(f"{file.name}.partial.json")
        self.record = file.with_name(f".{file.name}.record.json")
        self.rows, self._size, self.finished = 0, 0, False
        if file.exists() and not file.is_file():
            raise InputError(f"expected a file to write to, got {file}, which is none")
        if overwrite:
            return
        if self.partial.is_file():
            if not resume:
                raise exists_error(file, f"is unfinished ({self.partial.name})")
            self.rows, self._size = self._read_state()
        elif file.exists():
            if not resume:
                raise exists_error(file, "is finished" if self.record.is_file() else "exists")
            self.rows, self.finished = self._read_record(), True
            self.state.unlink(missing_ok=True)  # of a run that was killed as it finished

    def begin(self) -> None:
        """Opens the unfinished file behind the rows that are kept; from here on something is written."""
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
            return 0, 0  # interrupted before anything was vouched for
        try:
            found = json.loads(self.state.read_text(encoding="utf-8"))
            identity, rows, size = found["identity"], int(found["rows"]), int(found["bytes"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"expected the state of {self.partial} in {self.state}, got {error!r}") from error
        self._check(identity)
        here = self.partial.stat().st_size
        if here < size:
            raise InputError(f"expected at least {size} bytes in {self.partial}, got {here}: delete it and begin again")
        return rows, size

    def _read_record(self) -> int:
        """The rows of the finished file. Raises InputError where it is not, or not known to be, what is asked for."""
        try:
            found = json.loads(self.record.read_text(encoding="utf-8"))
            identity, rows, mark = found["identity"], int(found["rows"]), found["file"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"expected {self.record} beside {self.file}, which tells what it is the result of, got none that can be read; "
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
        """Saves where the last time is a while ago. Rows come in bursts: to be called between them."""
        if self.rows > self.saved_rows and time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Brings the rows to the disk, then the state that vouches for them."""
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
        """The file under its name, whole."""
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
        """Leaves what `--resume` goes on with; whether the latest rows could be saved too."""
        try:
            self.save()
            return True
        except (OSError, ValueError):  # a full disk, or a file that is closed already: what was saved before stays
            return False
        finally:
            self._close()

    def discard(self) -> None:
        self._close()
        self.partial.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)

    def _close(self) -> None:
        with suppress(OSError):  # what is in the buffer does not fit either; the file is closed all the same
            self._handle.close()


def npy_header(size: int, dtype: np.dtype) -> Callable[[int], bytes]:
    """The header of an array (rows, size) as a function of rows; NumPy leaves room for every number of rows."""

    def header(rows: int) -> bytes:
        content = io.BytesIO()
        description = np.lib.format.dtype_to_descr(dtype.newbyteorder("<"))
        fields = {"descr": description, "fortran_order": False, "shape": (rows, size)}
        np.lib.format.write_array_header_1_0(content, fields)
        return content.getvalue()

    return header


def fingerprint(file: Path) -> dict[str, Any]:
    """Size of a file and a digest of its two ends: enough to notice another one, whatever its size."""
    import hashlib

    size, ends = file.stat().st_size, 1 << 16
    with file.open("rb") as handle:
        digest = hashlib.sha256(handle.read(ends))
        handle.seek(max(size - ends, 0))
        digest.update(handle.read(ends))
    return {"size": size, "sha256 of its ends": digest.hexdigest()}
