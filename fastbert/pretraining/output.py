"""The folder of a pre-training run: whether a run may write to it, and from which checkpoint one is resumed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from fastbert.training import checkpoints
from fastbert.utils.errors import InputError
from fastbert.utils.existing_outputs import other_options_error
from fastbert.utils.printing import number_of

from .folder import OPTIONS as OPTIONS
from .folder import is_started
from .options import MAY_CHANGE, Options

PICTURE = "loss.png"


def resume_point(options: Options, identity: dict[str, Any], resume: bool, overwrite: bool, console: Console) -> Path | None:
    """The checkpoint to continue from, or None to start at the beginning.

    identity: of `options.identity_of`. Raises InputError where the run may not write to its folder.
    """
    if not is_started(options.out, options.last_checkpoint, resume, overwrite):
        return None
    if (options.out / OPTIONS).is_file():
        _compare(options.out, _read_options(options.out / OPTIONS), identity, console)
    checkpoint, refused = checkpoints.last_good(options.out)
    for folder, reason in refused.items():
        console.print(f"[yellow]refused {reason}; kept as {checkpoints.set_aside(folder).name}[/]")
    console.print("no checkpoint to continue from: starting over" if checkpoint is None else f"continuing from {checkpoint}")
    return checkpoint


def _compare(out: Path, before: dict[str, Any], now: dict[str, Any], console: Console) -> None:
    """Raises InputError where an option differs that may not change."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if before.get("processes") != world:
        console.print(
            f"[yellow]{number_of(before.get('processes') or 0, 'process', 'processes')} before, "
            f"{world} now: the same samples in every step, but other "
            "dropout than an uninterrupted run[/]"
        )
    for name, value in now.items():
        if name not in MAY_CHANGE and before.get(name) != value:
            raise other_options_error(out, name, before.get(name), value)


def _read_options(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
    except ValueError as error:
        raise InputError(f"expected the options of a run in {file}, got {error}") from error
    return found


def clear(out: Path) -> None:
    """Removes what an earlier run left, and nothing else. The file that marks the folder as a run's goes last."""
    for folder in [*out.glob("*checkpoint-*"), *out.glob("stopped-at-step-*"), *out.glob(f"{checkpoints.STAGING}-*")]:
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(out / "runs", ignore_errors=True)  # TensorBoard's curves
    for name in (PICTURE, OPTIONS):
        (out / name).unlink(missing_ok=True)
