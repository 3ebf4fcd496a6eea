"""Results in a file that appears under its name only when it is complete, and that an interrupted run goes on with.

Until then FILE.partial grows, and FILE.partial.json says how many rows and bytes of it are on the disk, and of which input,
model and options they are the results.
"""

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints import InputError
from ..files import write_whole

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
    """

    def __init__(
        self, file: Path, identity: dict[str, Any], *, resume: bool = False, header: Callable[[int], bytes] = lambda rows: b""
    ) -> None:
        """Raises InputError where an unfinished file is there without `resume`, or is of something else."""
        self.file, self.identity, self.header = file, json.loads(json.dumps(identity)), header
        self.partial = file.with_name(f"{file.name}.partial")
        self.state = file.with_name(f"{file.name}.partial.json")
        self.rows, self._size = 0, 0
        if self.state.is_file() or self.partial.is_file():
            if not resume:
                raise InputError(f"expected no unfinished {self.partial}: go on with --resume, or delete it")
            self.rows, self._size = self._read_state()

    def begin(self) -> None:
        """Opens the unfinished file behind the rows that are kept; from here on something is written."""
        self._handle = self.partial.open("r+b" if self._size else "wb")
        self._handle.truncate(self._size)
        self._handle.seek(self._size)
        if not self._size:
            self._handle.write(self.header(0))
        self.save()

    def _read_state(self) -> tuple[int, int]:
        """(rows, bytes) that can be kept."""
        if not self.state.is_file():
            return 0, 0  # interrupted before anything was vouched for
        try:
            found = json.loads(self.state.read_text(encoding="utf-8"))
            identity, rows, size = found["identity"], int(found["rows"]), int(found["bytes"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"expected the state of {self.partial} in {self.state}, got {error!r}") from error
        for name in sorted({*identity, *self.identity}):
            was, now = identity.get(name), self.identity.get(name)
            if was != now:
                raise InputError(f"expected the same {name} as {self.partial} was begun with, {was!r}, got {now!r}")
        here = self.partial.stat().st_size if self.partial.is_file() else 0
        if here < size:
            raise InputError(f"expected at least {size} bytes in {self.partial}, got {here}: delete it and begin again")
        return rows, size

    def write(self, row: bytes) -> None:
        self._handle.write(row)
        self.rows += 1

    def keep(self) -> None:
        """Saves where the last time is a while ago. Rows come in bursts: to be called between them."""
        if self.rows > self._saved_rows and time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Brings the rows to the disk, then the state that vouches for them."""
        self._handle.flush()
        os.fsync(self._handle.fileno())
        content = {"identity": self.identity, "rows": self.rows, "bytes": self._handle.tell()}
        write_whole(self.state, json.dumps(content, indent=1) + "\n")
        self._saved, self._saved_rows = time.monotonic(), self.rows

    def finish(self) -> None:
        """The file under its name, whole."""
        self._handle.seek(0)
        self._handle.write(self.header(self.rows))
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        self.partial.replace(self.file)
        self.state.unlink()

    def interrupt(self) -> None:
        """Leaves what `--resume` goes on with."""
        self.save()
        self._handle.close()

    def discard(self) -> None:
        self._handle.close()
        self.partial.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)


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
