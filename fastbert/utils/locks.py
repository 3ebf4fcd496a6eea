"""One run at a time for each output: a lock file that names the process which writes there.

The lock is the operating system's, not the existence of the file, so that it ends with the process in every case. A file that
a killed process left behind is taken over, and the next run says so.
"""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import InputError
from .existing_outputs import require_place
from .files import name_file
from .printing import Say

NAME = ".lock"  # of a folder's lock file, inside it
_held: set[Path] = set()  # by this process, to which the system would grant a second lock


@contextmanager
def locked_folder(folder: Path, say: Say) -> Iterator[None]:
    """Inside, no other run writes to this folder, which is created if needed and removed again if it stays empty.

    say: called with a line where the lock of a process that has ended is taken over. Raises InputError where another run holds
    it or the path is no folder, OSError where the lock file cannot be written.
    """
    require_place(folder, file=False)
    with _created(folder), _locked(folder / NAME, folder, say):
        yield


@contextmanager
def locked_file(file: Path, say: Say) -> Iterator[None]:
    """`locked_folder` for a single file. Raises InputError where its folder does not exist."""
    require_place(file, file=True)
    with _locked(_beside(file), file, say):
        yield


def refuse_busy_folder(folder: Path) -> None:
    """Raises InputError where another run holds the lock of this folder. Takes no lock, and touches nothing."""
    _refuse_busy(folder / NAME, folder)


def refuse_busy_file(file: Path) -> None:
    """`refuse_busy_folder` for a single file."""
    _refuse_busy(_beside(file), file)


def _beside(file: Path) -> Path:
    return file.with_name(f".{file.name}{NAME}")


@contextmanager
def locked_replacement(folder: Path, say: Say) -> Iterator[None]:
    """`locked_folder` for a folder that is replaced as a whole: the lock file is beside it."""
    with _created(folder.parent), locked_file(folder, say):
        yield


@contextmanager
def _created(folder: Path) -> Iterator[None]:
    """Creates a folder and those above it; afterwards removes the new ones that are still empty."""
    new: list[Path] = []
    while not (missing := new[-1].parent if new else folder).exists():
        new.append(missing)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for one in new:
            try:
                one.rmdir()
            except OSError:  # something was written, or another run has it
                break


@contextmanager
def locked_together(folder: Path, say: Say) -> Iterator[None]:
    """`locked_folder` for training on several processes: rank 0 takes the lock. Every rank calls it."""
    from .processes import decide_on_rank0

    with ExitStack() as stack:
        decide_on_rank0(lambda: stack.enter_context(locked_folder(folder, say)))
        yield


def _refuse_busy(file: Path, output: Path) -> None:
    _key(file, output)  # first: closing the file would release this process's own lock
    try:
        handle: BinaryIO = file.open("r+b", buffering=0)
    except OSError:  # there is none; or it cannot be opened, which whoever takes it will say
        return
    with handle:
        if not _try_lock(handle):
            raise _busy(handle, file, output)


def _key(file: Path, output: Path) -> Path:
    """The lock file's name in `_held`. Raises InputError where this process holds it."""
    key = file.parent.resolve() / file.name
    if key in _held:
        raise InputError(f"expected no other run that writes to {output}, got one of this process ({file})")
    return key


def _busy(handle: BinaryIO, file: Path, output: Path) -> InputError:
    handle.seek(0)
    return InputError(f"expected no other run that writes to {output}, got {_holder(handle.read())}, which does ({file})")


@contextmanager
def _locked(file: Path, output: Path, say: Say) -> Iterator[None]:
    key = _key(file, output)
    handle = _acquire(file, output)
    _held.add(key)
    try:
        handle.seek(0)
        before = handle.read()
        if before:
            say(f"{file}: taken over from {_holder(before)}, which has ended")
        handle.truncate(0)
        try:
            content = {"process": os.getpid(), "host": socket.gethostname()}
            handle.write(json.dumps(content).encode())
            handle.flush()
        except OSError as error:
            name_file(error, file)
            raise
        yield
    finally:
        # Before the lock is released: a process that opened the file meanwhile sees that it no longer exists, and retries.
        file.unlink(missing_ok=True)
        _held.discard(key)
        handle.close()


def _acquire(file: Path, output: Path) -> BinaryIO:
    while True:
        handle: BinaryIO = file.open("a+b", buffering=0)
        try:
            if not _try_lock(handle):
                raise _busy(handle, file, output)
            try:
                current = file.stat()
            except FileNotFoundError:
                current = None
            if current is not None and os.path.samestat(os.fstat(handle.fileno()), current):
                return handle
        except BaseException:
            handle.close()
            raise
        handle.close()


def _try_lock(handle: BinaryIO) -> bool:
    """Whether this process now has the lock. It is a record lock, which a worker that outlives its parent does not inherit."""
    if sys.platform == "win32":
        import msvcrt

        handle.seek(1 << 30)  # beyond the bytes that other processes read
        try:
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        return False
    return True


def _holder(content: bytes) -> str:
    try:
        values = json.loads(content)
        return f"process {int(values['process'])} on {values['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
