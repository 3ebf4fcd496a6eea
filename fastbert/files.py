"""Files that appear under their name only when they are complete."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_whole(file: Path, content: str | bytes | Callable[[BinaryIO], Any]) -> None:
    """Writes beside the file, brings it to the disk and renames it: whole or not at all, whatever interrupts.

    content: text (as UTF-8), bytes, or a function that fills an open binary file. The folder must exist.
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
    finally:
        partial.unlink(missing_ok=True)
