"""How commands end: one line on stderr for every error that a user can act on, and an exit status.

Bugs keep their traceback.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from fastbert.utils.errors import DataError, InputError, Resumable

# typer has had two homes for click's exceptions; its own name for this one is the same in both
ClickException: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class CommandGroup(TyperGroup):
    """All commands. A wrong option or argument is one line on stderr and status 2, as every other error of the user is."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        words = list(args[0] if args else kwargs.get("args") or sys.argv[1:])
        standalone = kwargs.pop("standalone_mode", True)
        kwargs["standalone_mode"] = False
        if not standalone:
            return super().main(*args, **kwargs)
        try:
            with plain_errors():
                status = super().main(*args, **kwargs)
        except typer.Exit as error:
            status = error.exit_code
        except typer.Abort:
            status = 130
        except ClickException as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
            else:
                context = getattr(error, "ctx", None)
                message = error.format_message().replace("Value error, ", "")  # pydantic's words, where typer finds it
                where = f"; see {context.command_path} --help" if context is not None else ""
                typer.echo(f"fastbert: {' '.join(message.split()).rstrip('.')}{_came(error, words)}{where}", err=True)
            status = error.exit_code
        sys.exit(status or 0)


def _came(error: Any, words: list[str]) -> str:
    """What came for the option of an error that does not say it, as that of a number out of range does not in some versions.

    words: of the command line.
    """
    names = getattr(getattr(error, "param", None), "opts", [])
    for word, following in zip(words, [*words[1:], ""]):
        name, equals, value = word.partition("=")
        got = value if equals else following
        if name in names and got and got not in error.format_message():
            return f", got {got}"
    return ""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Inside, an error that a user can act on is printed as one line and ends the command with status 2.

    A `Resumable` ends it with its own status, Ctrl-C and SIGTERM with 128 + the signal; both unwind the stack as an exception
    does, so that files are closed and locks released. Any other exception keeps its traceback.
    """
    with _sigterm_as_exception():
        try:
            yield
        except KeyboardInterrupt as error:
            typer.echo("fastbert: interrupted", err=True)
            raise typer.Exit(130) from error
        except Resumable as error:
            typer.echo(f"fastbert: {error}", err=True)
            raise typer.Exit(error.status) from error
        except (OSError, ValueError, TypeError) as error:
            if not _is_for_the_user(error):
                raise
            typer.echo(f"fastbert: {' '.join(_message(error).split())}", err=True)
            raise typer.Exit(2) from error


def _message(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"expected a file or folder that exists, got {error.filename}"
    return str(error)


def _is_for_the_user(error: Exception) -> bool:
    """Whether the user can act on an error; if not, it is a bug.

    So are the errors of the operating system, InputError, DataError and TableError; and a ValueError or TypeError that a
    function of fastbert raises about an argument, which begins with "expected".
    """
    tables = sys.modules.get("fastbert.kernels.matmul.table")  # not imported: that loads torch, and no error is one before
    if isinstance(error, (InputError, DataError, OSError)) or (tables and isinstance(error, tables.TableError)):
        return True
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    module = "" if last is None else str(last.tb_frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] == "fastbert" and str(error).startswith("expected ")


@contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    """Inside, SIGTERM raises SystemExit, unless there is a handler for it already."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    in_main_thread = threading.current_thread() is threading.main_thread()
    replaced = in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if replaced:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if replaced:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
