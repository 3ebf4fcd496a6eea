"""Checkpoints that are whole or not there: written beside their place, synced, listed in a manifest, then renamed.

A folder `checkpoint-N` counts only with a manifest whose sizes and sums hold; the last one that does is where a run goes on.
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
    """A checkpoint that is not what its manifest says; the message names the file, what was expected and what came."""


def staging(out: Path, step: int) -> Path:
    """The folder in which the checkpoint of a step is to be written."""
    return out / f"{STAGING}-{step}"


def commit(folder: Path, out: Path, step: int, facts: dict[str, Any]) -> Path:
    """Makes a written folder the checkpoint of a step: everything reaches the disk before its name appears.

    facts: what a reader may want to know, JSON types. Returns the checkpoint's folder.
    """
    return install(folder, out / f"checkpoint-{step}", {"step": step, **facts})


def install(folder: Path, place: Path, facts: dict[str, Any]) -> Path:
    """`commit` for a folder of any name beside it; what is there stays until the new one is whole. Returns the place."""
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        _sync(file)
        files[str(file.relative_to(folder))] = [file.stat().st_size, _sum(file)]
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({**facts, "files": files}, indent=1) + "\n", encoding="utf-8")
    _sync(manifest)
    _sync(folder)
    old = place.with_name(f"{STAGING}-old-{place.name}")
    if place.exists():  # damaged, of a run that was told to start again, or no longer the best
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
    folder.rename(place)
    _sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)
    return place


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, every file checked against it.

    Raises Damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"].items()
    except (OSError, ValueError, KeyError, AttributeError) as error:
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
    """Folders named as checkpoints, the latest step first."""
    found = [(int(match[1]), path) for path in out.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def last_good(out: Path) -> tuple[Path | None, dict[Path, str]]:
    """(the latest checkpoint that holds or None, why each later one was refused)."""
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
    """Renames a refused checkpoint, so that it neither counts as one nor takes the place of a good one."""
    number = 0
    while (aside := folder.with_name(f"refused-{folder.name}" + f"-{number}" * (number > 0))).exists():
        number += 1
    folder.rename(aside)
    return aside


def keep_last(out: Path, count: int) -> None:
    """Removes all but the latest `count` checkpoints, and what interrupted writes left."""
    for folder in [*all_of(out)[count:], *out.glob(f"{STAGING}-*")]:
        shutil.rmtree(folder, ignore_errors=True)


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
