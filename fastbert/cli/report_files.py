"""The file of --json: checked before the time for the report is spent, and written whole."""

from pathlib import Path
from typing import Any

from fastbert.utils.errors import InputError
from fastbert.utils.existing_outputs import exists_error
from fastbert.utils.files import strict_json, write_whole


def check_report_file(file: Path | None, overwrite: bool) -> None:
    """Raises InputError for a file that cannot be written."""
    if file is None:
        if overwrite:
            raise InputError("expected --json beside --overwrite")
        return
    if not file.parent.is_dir():
        raise InputError(f"expected a folder that exists for {file}, got {file.parent}")
    if file.exists() and not overwrite:
        raise exists_error(file, "exists", resumable=False)


def write_report(file: Path, report: dict[str, Any]) -> None:
    """Writes strict JSON: what is not finite becomes null."""
    write_whole(file, strict_json(report))
