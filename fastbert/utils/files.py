"""Files that appear under their name only when they are complete, and the room for them."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError


def write_whole(file: Path, content: str | bytes | Callable[[BinaryIO], Any]) -> None:
    """Writes beside the file, brings it to the disk and renames it: whole or not at all, whatever interrupts.

    content: text (as UTF-8), bytes, or a function that fills an open binary file. The folder must exist. Raises OSError that
    names the file.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with partial.open("wb") as handle:
            if callable(content):
                content(handle)
            else:
                handle.write(content.encode() if isinstance(content, str) else content)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(file)
    except OSError as error:
        name_file(error, file)
        raise
    finally:
        partial.unlink(missing_ok=True)


def copy_whole(source: Path, file: Path) -> None:
    """A file under another name on the same disk, without taking room where the disk knows links; whole or not at all."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.unlink(missing_ok=True)
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
        partial.replace(file)
    except OSError as error:
        name_file(error, file)
        raise
    finally:
        partial.unlink(missing_ok=True)


def name_file(error: OSError, file: Path) -> None:
    """Puts the file into an error of the operating system that does not say where, as one of a full disk."""
    if error.errno is not None and error.filename is None:
        error.filename = str(file)


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raises InputError where the disk of a folder, or of the nearest one above that exists, has fewer bytes free than needed.

    what: the bytes are for, to be named.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"expected {needed:,} bytes of disk for {what}, got {free:,} free in {folder}")


def size_of(path: Path) -> int:
    """Bytes of all files in a folder but those whose names begin with a dot; 0 where there is none."""
    files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return sum(file.stat().st_size for file in files)


def strict_json(value: Any) -> str:
    """Indented JSON that every reader takes: a number that JSON has no sign for (NaN, infinity) becomes null."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
