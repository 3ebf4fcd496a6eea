"""The file of --json: checked before the time for the report is spent, and written whole."""

from pathlib import Path
from typing import Any

from fastbert.utils.errors import InputError
from fastbert.utils.existing_outputs import refuse_existing_file
from fastbert.utils.files import strict_json, write_whole


def check_report_file(file: Path | None, overwrite: bool) -> None:
    """Raises InputError for a file that cannot be written."""
    if file is None:
        if overwrite:
            raise InputError("expected --json beside --overwrite")
        return
    refuse_existing_file(file, overwrite)


def write_report(file: Path | None, report: dict[str, Any]) -> None:
    """Writes strict JSON, if to a file: what is not finite becomes null."""
    if file is not None:
        write_whole(file, strict_json(report))
