"""Files that appear under their name only when they are complete, and room on the disk."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError


def write_whole(file: Path, content: str | bytes | Callable[[BinaryIO], Any]) -> None:
    """Writes a file whole or not at all, whatever interrupts: under another name, synced to the disk, then renamed.

    content: text (as UTF-8), bytes, or a function that fills an open binary file. The folder must exist. Raises OSError that
    names the file.
    """
    with _replacing(file) as partial, partial.open("wb") as handle:
        if callable(content):
            content(handle)
        else:
            handle.write(content.encode() if isinstance(content, str) else content)
        handle.flush()
        os.fsync(handle.fileno())


def copy_whole(source: Path, file: Path) -> None:
    """Copies a file on the same disk, whole or not at all; as a hard link, which needs no room, where the disk has them."""
    with _replacing(file) as partial:
        partial.unlink(missing_ok=True)
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to, renamed to `file` at the end; removed after an error, which names `file`."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(file)
    except OSError as error:
        name_file(error, file)
        raise
    finally:
        partial.unlink(missing_ok=True)


def name_file(error: OSError, file: Path) -> None:
    """Sets the file name of an error of the operating system that names none, as one about a full disk."""
    if error.errno is not None and error.filename is None:
        error.filename = str(file)


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raises InputError where the disk has fewer bytes free than needed.

    folder: on that disk; it or a folder above it must exist. what: the bytes are for, in the message.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"expected {needed:,} bytes of disk for {what}, got {free:,} free in {folder}")


def size_of(path: Path) -> int:
    """Bytes of all files in a folder, but those whose names begin with a dot; 0 where it does not exist."""
    files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return sum(file.stat().st_size for file in files)


def strict_json(value: Any) -> str:
    """Indented JSON of the standard, which has neither NaN nor infinity: both become null."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
