"""What commands share: where they print, how a user's mistake looks, and how the precision is chosen."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Annotated, Any

import typer

from fastbert.utils.errors import DataError, InputError, Resumable


class Precision(str, Enum):
    bf16 = "bf16"
    float32 = "float32"


PrecisionOption = Annotated[Precision | None, typer.Option(help="Default: bf16 on a GPU, float32 on a CPU.")]


OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Begin again where --out exists; what was there goes when the new is written.")
]


def chosen_precision(precision: Precision | None) -> str:
    """The precision by name, the default where none was given."""
    import torch

    return precision.value if precision else "bf16" if torch.cuda.is_available() else "float32"


def console() -> Any:
    """Rich's console; wide enough for the tables where the output is not a terminal."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=120)


@contextmanager
def plain_errors() -> Iterator[None]:
    """What a user named wrongly, or the system refused, is one line and exit status 2; anything else keeps its traceback.

    Ctrl-C and SIGTERM end what runs as an exception would, with status 128 + the signal, so that what is open is left whole.
    """
    with _terminating():
        try:
            yield
        except KeyboardInterrupt as error:
            typer.echo("fastbert: interrupted", err=True)
            raise typer.Exit(130) from error
        except Resumable as error:
            typer.echo(f"fastbert: {error}", err=True)
            raise typer.Exit(error.status) from error
        except (OSError, ValueError, TypeError) as error:
            if not _is_on_purpose(error):
                raise
            typer.echo(f"fastbert: {' '.join(_told(error).split())}", err=True)
            raise typer.Exit(2) from error


def _told(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"expected a file or folder that exists, got {error.filename}"
    return str(error)


def _is_on_purpose(error: Exception) -> bool:
    """Whether it tells of the system or of what a user named: one of the classes for that, or a function of fastbert that
    refuses an argument in the words it has for it. Any other is a bug."""
    from fastbert.kernels.matmul.table import TableError

    if isinstance(error, (InputError, DataError, TableError, OSError)):
        return True
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    raised_in = "" if place is None else str(place.tb_frame.f_globals.get("__name__", ""))
    return raised_in.partition(".")[0] == "fastbert" and str(error).startswith("expected ")


@contextmanager
def _terminating() -> Iterator[None]:
    """SIGTERM unwinds the stack, as Ctrl-C does, unless somebody handles it already."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    is_ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if is_ours:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
