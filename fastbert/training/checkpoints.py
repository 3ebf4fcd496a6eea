"""Atomic checkpoints: written to a staging folder, synced, listed in a manifest, then renamed.

A folder `checkpoint-N` is valid if the sizes and sums in its manifest are right; a run is resumed from the last valid one.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
STAGING = ".saving"
_NAME = re.compile(r"checkpoint-(\d+)")


class Damaged(ValueError):
    """A checkpoint does not match its manifest; the message names the file, what was expected and what was found."""


def staging(out: Path, step: int) -> Path:
    """The folder in which the checkpoint of a step is written before `commit`."""
    return out / f"{STAGING}-{step}"


def commit(folder: Path, out: Path, step: int, facts: dict[str, Any]) -> Path:
    """Makes a written folder the checkpoint of a step; everything is on the disk before its name appears.

    facts: further entries of the manifest, JSON values. Returns the checkpoint's folder.
    """
    return install(folder, out / f"checkpoint-{step}", {"step": step, **facts})


def install(folder: Path, target: Path, facts: dict[str, Any]) -> Path:
    """`commit` under any name in the same folder; an old folder of that name stays until the new one is whole."""
    files, mode = {}, _mode_of_new_files(folder)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        file.chmod(mode)  # safetensors writes for the owner alone, whatever the umask
        _sync(file)
        files[str(file.relative_to(folder))] = [file.stat().st_size, _sum(file)]
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({**facts, "files": files}, indent=1) + "\n", encoding="utf-8")
    _sync(manifest)
    _sync(folder)
    old = target.with_name(f"{STAGING}-old-{target.name}")
    if target.exists():  # a damaged checkpoint, one of a run that starts over, or a best epoch that is no longer the best
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    folder.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)
    return target


def verify(folder: Path) -> dict[str, Any]:
    """Checks every file of a checkpoint against its manifest, which is returned.

    Raises Damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"].items()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{folder.name}: expected a whole {MANIFEST}, got {type(error).__name__}: {error}") from error
    for name, (size, digest) in files:
        file = folder / name
        if not file.is_file():
            raise Damaged(f"{folder.name}: expected the file {name}, got none")
        if file.stat().st_size != size:
            raise Damaged(f"{folder.name}: expected {size} bytes in {name}, got {file.stat().st_size}")
        if _sum(file) != digest:
            raise Damaged(f"{folder.name}: expected other bytes in {name}, its sum differs")
    return manifest


def all_of(out: Path) -> list[Path]:
    """The folders of checkpoints, valid or not, the latest step first."""
    found = [(int(match[1]), path) for path in out.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def last_good(out: Path) -> tuple[Path | None, dict[Path, str]]:
    """(the latest valid checkpoint or None, why each later one is not)."""
    refused = {}
    for folder in all_of(out):
        try:
            verify(folder)
        except Damaged as error:
            refused[folder] = str(error)
        else:
            return folder, refused
    return None, refused


def set_aside(folder: Path) -> Path:
    """Renames a damaged checkpoint, so that it is no longer found, nor in the way of a new one; returns its new path."""
    number = 0
    while (aside := folder.with_name(f"refused-{folder.name}" + f"-{number}" * (number > 0))).exists():
        number += 1
    folder.rename(aside)
    return aside


def keep_last(out: Path, count: int) -> None:
    """Removes all but the latest `count` checkpoints, and what interrupted writes left."""
    for folder in [*all_of(out)[count:], *out.glob(f"{STAGING}-*")]:
        shutil.rmtree(folder, ignore_errors=True)


def _mode_of_new_files(folder: Path) -> int:
    """As the umask has it, which can be read only by setting it."""
    probe = folder / f".{MANIFEST}"
    probe.touch()
    try:
        return probe.stat().st_mode & 0o777
    finally:
        probe.unlink()


def _sum(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
