"""One rule for outputs that exist: --resume continues them, --overwrite starts over, and without either they are left alone."""

import re
from pathlib import Path
from typing import Any

from .errors import InputError


def check_flags(resume: bool, overwrite: bool) -> None:
    """Raises InputError for both at once."""
    if resume and overwrite:
        raise InputError("expected --resume or --overwrite, got both")


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
