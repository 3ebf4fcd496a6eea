"""The folder that `prepare` writes to: whether it may, where an earlier call left off, and how to start over.

`OUT/.work` holds the options of an unfinished call, the tokenised documents (`spool`) and a record of each finished shard.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from fastbert.utils.errors import DataError
from fastbert.utils.existing_outputs import exists_error, foreign_folder_error, require_place, visible_names

from .shards import META, TOKENIZER, Shards

WORK = ".work"
OPTIONS = "options.json"


def shard_record(out: Path, shard: int) -> Path:
    """The file of a shard's counts, written when the shard is finished."""
    return out / WORK / f"shard-{shard:05d}.json"


def is_started(out: Path, resume: bool, overwrite: bool) -> bool:
    """Whether `out` holds an earlier call's work to continue.

    Raises InputError for a folder that cannot be written to or holds something else, or that work without resume or overwrite.
    """
    require_place(out, file=False)
    names, is_finished = visible_names(out), (out / META).is_file()
    if names and not is_finished and not (out / WORK).is_dir():
        raise foreign_folder_error(out, "prepare", names[0])
    if overwrite or not (names or (out / WORK).is_dir()):
        return False
    if not resume:
        raise exists_error(out, "is finished" if is_finished else "is unfinished")
    return True


def check_folder(out: Path, options: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Whether a call with these options may write to `out`.

    Raises as `is_started`, and DataError where the work there was started with other options.
    """
    if not is_started(out, resume, overwrite):
        return
    work, is_finished = out / WORK, (out / META).is_file()
    if is_finished:
        before = Shards(out).meta.options
    elif (work / OPTIONS).is_file():
        before = _read_options(work / OPTIONS)
    else:
        return
    differences = [
        f"{name} {before.get(name)!r} then, {value!r} now" for name, value in options.items() if before.get(name) != value
    ]
    if differences:
        raise DataError(
            f"expected the options with which {out} was {'made' if is_finished else 'started'}, got {'; '.join(differences)} "
            "(--overwrite starts over)"
        )


def begin_folder(out: Path, overwrite: bool) -> bool:
    """Makes the folder of unfinished work; returns whether the call starts from nothing."""
    work = out / WORK
    is_new = overwrite or not (work / OPTIONS).is_file()
    work.mkdir(exist_ok=True)
    if is_new:
        clear_folder(out)
    for partial in [*out.glob(".shard-*"), *work.glob(".*.json.*")]:  # half-written by a killed process
        partial.unlink()
    return is_new


def clear_folder(out: Path) -> None:
    """Removes what an earlier call wrote, the mark of a finished folder first; nothing else."""
    (out / META).unlink(missing_ok=True)
    for file in out.glob("shard-*.npy"):
        file.unlink()
    shutil.rmtree(out / TOKENIZER, ignore_errors=True)
    for file in (out / WORK).iterdir():
        file.unlink()


def _read_options(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
    except ValueError as error:
        raise DataError(f"expected the options of `fastbert prepare` in {file}, got {error}") from error
    return found
