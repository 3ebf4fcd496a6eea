"""One rule for outputs that exist: --resume continues them, --overwrite starts over, and without either they are left alone."""

import os
import re
from pathlib import Path
from typing import Any

from .errors import InputError


def check_flags(resume: bool, overwrite: bool) -> None:
    """Raises InputError for both at once."""
    if resume and overwrite:
        raise InputError("expected --resume or --overwrite, got both")


def require_place(out: Path, *, file: bool) -> None:
    """Raises InputError where `out` cannot be written.

    file: `out` is a file, whose folder must exist; else a folder, which is created with those above it.
    """
    if file and not out.parent.is_dir():
        raise InputError(f"expected a folder that exists for {out}, got {out.parent}")
    if not file and out.exists() and not out.is_dir():
        raise InputError(f"expected a folder to write to, got the file {out}")
    place = out.parent if file else out
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise InputError(f"expected a folder that this user may write to for {out}, got {place}")


def refuse_existing_file(out: Path, overwrite: bool) -> None:
    """`require_place` for a file that no run continues; raises InputError where it exists without `overwrite`."""
    require_place(out, file=True)
    if out.exists() and not (overwrite and out.is_file()):
        raise exists_error(out, "exists", resumable=False)


def refuse_existing_folder(out: Path, command: str, is_own: bool, is_finished: bool, resume: bool, overwrite: bool) -> bool:
    """Whether there is a run of `fastbert {command}` in this folder, to continue.

    is_own, is_finished: whether such a run has written there, and all that it will. Raises InputError where a new run may not
    write there.
    """
    check_flags(resume, overwrite)
    require_place(out, file=False)
    names = visible_names(out)
    if names and not is_own:
        raise foreign_folder_error(out, command, names[0])
    if overwrite or not names:
        return False
    if not resume:
        raise exists_error(out, "is finished" if is_finished else "is unfinished")
    return True


def exists_error(out: Path, state: str, *, resumable: bool = True) -> InputError:
    """The error for an output that exists. state: 'is finished', 'is unfinished', or 'exists' where that cannot be known."""
    flags = "--resume, which continues it, or --overwrite, which starts over" if resumable else "--overwrite, which starts over"
    return InputError(f"expected a new output, {flags}, got {out}, which {state}")


def foreign_folder_error(out: Path, command: str, found: str) -> InputError:
    """The error for a folder of another command or of the user. found: a file in it that shows this."""
    return InputError(f"expected a new or empty folder, or one of `fastbert {command}`, got {out} with other files: {found}")


def other_options_error(out: Path, name: str, before: Any, now: Any) -> InputError:
    """The error for a resumed run whose option, data or model is not that of the run it would continue.

    name: of the first difference. before, now: its values, see `first_difference`.
    """
    if _is_digest(before) and _is_digest(now):
        what = name.removesuffix(" sha256 of its ends")
        return InputError(
            f"expected the {what} with which {out} was started, got other content; --overwrite, which starts over, accepts it"
        )
    return InputError(
        f"expected {name} {before!r}, with which {out} was started, got {now!r}; --overwrite, which starts over, accepts it"
    )


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def first_difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """(name, before, now) of the first value in which two descriptions of a run differ; None where they are the same."""
    if isinstance(before, dict) and isinstance(now, dict):
        parts = ((f"{name} {key}".strip(), before.get(key), now.get(key)) for key in {**now, **before})
        return next((found for key, was, is_now in parts if (found := first_difference(was, is_now, key))), None)
    return None if before == now else (name, before, now)


def finished_message(out: Path) -> str:
    """What --resume prints where nothing is left to do."""
    return f"{out}: is finished, with these options; nothing is left to compute"


def visible_names(folder: Path) -> list[str]:
    """The names in a folder that do not begin with a dot, sorted; none where it does not exist."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
