"""Files that appear under their name only when they are complete."""

import json
import math
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


def strict_json(value: Any) -> str:
    """Indented JSON that every reader takes: a number that JSON has no sign for (NaN, infinity) becomes null."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
