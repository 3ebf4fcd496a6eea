"""The one rule for outputs that exist: --resume goes on with them, --overwrite begins again, and without either they stay."""

import re
from pathlib import Path
from typing import Any

from .errors import InputError


def check_flags(resume: bool, overwrite: bool) -> None:
    """Raises InputError for both at once."""
    if resume and overwrite:
        raise InputError("expected --resume or --overwrite, got both")


def existing(out: Path, state: str, *, resumable: bool = True) -> InputError:
    """The refusal of an output that is there. state: 'is finished', 'is unfinished', or 'exists' where nobody can tell."""
    flags = "--resume, which goes on, or --overwrite, which begins again" if resumable else "--overwrite, which begins again"
    return InputError(f"expected a new output, {flags}, got {out}, which {state}")


def foreign(out: Path, command: str, found: str) -> InputError:
    """The refusal of what another command or the user made; found: what tells."""
    return InputError(f"expected a new or empty folder, or one of `fastbert {command}`, got {out} with other files: {found}")


def other_options(out: Path, name: str, before: Any, now: Any) -> InputError:
    """The refusal to go on with other options, data or another model than those an output was begun with."""
    if _is_digest(before) and _is_digest(now):
        what = name.removesuffix(" sha256 of its ends")
        return InputError(
            f"expected the {what} with which {out} was begun, got other content; --overwrite, which begins again, takes it"
        )
    return InputError(
        f"expected {name} {before!r}, with which {out} was begun, got {now!r}; --overwrite, which begins again, takes it"
    )


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def first_difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """(name, before, now) of the first value in which two descriptions of a run differ; None where they are the same."""
    if isinstance(before, dict) and isinstance(now, dict):
        parts = ((f"{name} {key}".strip(), before.get(key), now.get(key)) for key in {**now, **before})
        return next((found for key, was, is_now in parts if (found := first_difference(was, is_now, key))), None)
    return None if before == now else (name, before, now)


def finished(out: Path) -> str:
    """What --resume says where nothing is left to do."""
    return f"{out}: is finished, with these options; nothing is computed again"


def visible(folder: Path) -> list[str]:
    """The names in a folder that do not begin with a dot, sorted; none where it does not exist."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
