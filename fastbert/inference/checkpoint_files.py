"""Which files a checkpoint has, so that one that was rewritten is not taken for the one that is in memory."""

from pathlib import Path

import transformers

from fastbert.utils.errors import InputError
from fastbert.utils.folders import CONFIG, MODULES, read_json, relative

# Folder, then name, times of last change in ns, size and number of every file.
Files = tuple[str, tuple[tuple[str, int, int, int, int], ...]]


def files_of(path: str) -> Files | None:
    """Folder and files of a checkpoint; None where there is none on this disk. Asks no hub and reads no weights.

    path: a folder or a hub name. Its files are those in the folder and in those that modules.json of sentence-transformers
    names.
    """
    folder = Path(path) if Path(path).is_dir() else _snapshot(path)
    if folder is None:
        return None
    found = []
    for part in (folder, *_modules(folder)):
        try:
            for file in part.iterdir():
                facts = file.stat()
                if not file.is_dir():
                    name = file.relative_to(folder).as_posix()
                    found.append((name, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_ino))
        except OSError:  # it is being rewritten, or a link leads nowhere: what reads it will say so
            return None
    return str(folder.resolve()), tuple(sorted(found))


def _snapshot(name: str) -> Path | None:
    """The folder in which the files of a hub name are kept on this disk."""
    for file in (CONFIG, MODULES):
        try:
            found = transformers.utils.cached_file(
                name, file, local_files_only=True, _raise_exceptions_for_missing_entries=False
            )
        except (OSError, ValueError):  # no name that a hub has
            return None
        if found is not None:
            return Path(found).parent
    return None


def _modules(folder: Path) -> set[Path]:
    """The folders inside that modules.json names."""
    if not (folder / MODULES).is_file():
        return set()
    try:
        listed = read_json(str(folder), MODULES) or []
        inside = [relative(str(folder), one.get("path", "")) for one in listed if isinstance(one, dict)]
    except (InputError, TypeError):  # what reads it will say so
        return set()
    return {folder / name for name in inside if name and (folder / name).is_dir()}
