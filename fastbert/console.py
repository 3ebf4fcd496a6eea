"""What every command shares: where it prints, and how a user's mistake looks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer


def console() -> Any:
    """Rich's console; wide enough for the tables where the output is not a terminal."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=120)


@contextmanager
def plain_errors() -> Iterator[None]:
    """What a user named wrongly is one line and exit status 2; anything else keeps its traceback."""
    from .checkpoints import InputError
    from .data.shards import DataError

    try:
        yield
    except (InputError, DataError, OSError) as error:
        typer.echo(f"fastbert: {error}", err=True)
        raise typer.Exit(2) from error
